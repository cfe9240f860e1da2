"""Which variables a cell uses and assigns, and which cells are shell commands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ipytaskpersist.cells.shell_commands import ShellCommand, of_cell, of_shell, shell_of_ipython
from ipytaskpersist.cells.variables import assigned, needed, used


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> InteractiveShell:
    made = InteractiveShell(ipython_dir=str(tmp_path_factory.mktemp("ipython")))
    made.user_ns.update(name="value of it", count=3)
    return made


def names_used(shell: InteractiveShell, source: str) -> set[str]:
    tree = ast.parse(shell.transform_cell(source))
    return set(used(tree)) - {"print", "len", "range", "get_ipython", "open", "sum", "list"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("time.sleep(a)", ["time", "a"]),
        ("a += 1", ["a"]),
        ("def f():\n    return later + other\nlater = 1\nf()", ["other"]),
        ("import time\n[time.sleep(x) for x in items]", ["items"]),
        ("from math import *\nsqrt(x)", []),
        ("%run helpers.py\nhelp_me()", []),
        ("%%capture\nf(a)", ["f", "a"]),
        ("%sql rows << select 1\nrows", []),
        ("exec(code)\nmade", []),
        ("try:\n    done\nexcept NameError:\n    done = 0\nprint(done)", []),
        ("try:\n    done\nexcept KeyError:\n    pass", ["done"]),
        ("%load_ext autoreload\n!echo $HOME {b}\n%time f(c)", ["f", "c"]),
    ],
)
def test_what_a_cell_certainly_needs(
    shell: InteractiveShell, source: str, names: list[str]
) -> None:
    known = {"print", "get_ipython", "NameError", "KeyError"}
    found = needed(ast.parse(shell.transform_cell(source)))
    assert [name for name in found if name not in known] == names


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("print(a)", {"a"}),
        ("a = 1\nprint(a)", set()),
        ("a = a + 1", {"a"}),
        ("a += 1", {"a"}),
        ("a: int = b", {"b", "int"}),
        ("a.x = b[c]", {"a", "b", "c"}),
        ("del a", {"a"}),
        ("for i in items:\n    print(i, other)\nprint(i)", {"items", "other"}),
        ("with make() as m:\n    m.go()", {"make"}),
        ("if flag:\n    a = 1\nprint(a)", {"flag", "a"}),
        ("if flag:\n    a = 1\nelse:\n    a = 2\nprint(a)", {"flag"}),
        ("while go():\n    a = 1\nprint(a)", {"go", "a"}),
        ("try:\n    a = 1\nexcept Bad as e:\n    print(e)\nprint(a)", {"Bad", "a"}),
        ("try:\n    a = 1\nexcept Bad:\n    a = 2\nprint(a)", {"Bad"}),
        ("import os.path as p, json\nprint(p, json)", set()),
        ("from x import y as z\nprint(z, y)", {"y"}),
        ("def f(x, *y, k=d, **z):\n    t = x\n    return t + g + k\nf(1)", {"d", "g"}),
        ("def f():\n    global counter\n    counter += 1", {"counter"}),
        ("def f():\n    def g():\n        return a\n    a = 1\n    return g", set()),
        ("lambda x: x + y", {"y"}),
        ("class A(Base):\n    x = y\n    def m(self):\n        return z", {"Base", "y", "z"}),
        ("[x * f for x in xs if x > low]", {"f", "xs", "low"}),
        ("x = [x for x in x]", {"x"}),
        ("{k: v for k, v in pairs}", {"pairs"}),
        ("print(n := 5, n)", set()),
        ("await ready()\nasync for a in source():\n    print(a)", {"ready", "source"}),
        ("match thing:\n    case {'a': x}:\n        print(x)\n    case _:\n        print(y)",
         {"thing", "y"}),
        ("f'{a:{width}} {b!r}'", {"a", "b", "width"}),
        ("!echo {name} $count plain", {"name", "count"}),
        ("lines = !ls {folder}", {"folder"}),
        ("%time model = fit(data)", {"fit", "data"}),
        ("%%time\nmodel = fit(data)\nmodel.score", {"fit", "data"}),
        ("%timeit f(x)", {"f", "x", "timeit"} - {"timeit"}),
    ],
)  # fmt: skip
def test_a_name_is_used_when_it_is_read_before_it_is_surely_assigned(
    shell: InteractiveShell, source: str, names: set[str]
) -> None:
    assert names_used(shell, source) == names


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a, (b, *c) = 1, (2, 3)", ["a", "b", "c"]),
        ("a.x = 1\nb[0] = 2", []),
        ("for i in range(3):\n    with open(i) as f:\n        pass", ["i", "f"]),
        ("def f():\n    inner = 1\nclass A:\n    y = 2", ["f", "A"]),
        ("import os.path, json as j\nx = 1", ["x", "os", "j"]),
        ("print(n := 1)\n[m := 2 for _ in 'a']", ["n", "m"]),
        ("try:\n    a = 1\nexcept Exception as e:\n    b = 2", ["a", "e", "b"]),
        ("match x:\n    case [first, *rest]:\n        pass", ["first", "rest"]),
        ("%time model = fit()", ["model"]),
        ("%%capture\nmodel = fit()", ["model"]),
        ("a = b = 1\na += 1", ["a", "b"]),
    ],
)
def test_a_name_is_assigned_when_the_top_level_binds_it(
    shell: InteractiveShell, source: str, names: list[str]
) -> None:
    assert assigned(ast.parse(shell.transform_cell(source))) == names


MINE = shell_of_ipython()


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("%%bash\nmake", ShellCommand(["bash", "-c", "make"])),
        ("\n%%sh\nmake\n", ShellCommand(["sh", "-c", "make\n"])),
        ("%%bash -e\nmake", ShellCommand(["bash", "-e"], "make", "stdin")),
        ("%%script python3 -I\nprint(1)", ShellCommand(["python3", "-I"], "print(1)", "stdin")),
        ("!make", ShellCommand([MINE, "-c", "make"], pty=True)),
        ("!echo {name} $count", ShellCommand([MINE, "-c", "echo value of it 3"], pty=True)),
        ("# build\n!make \\\n  all", ShellCommand([MINE, "-c", "make    all"], pty=True)),
        ("!a\n!b c",
         ShellCommand([MINE, "-c", f"{MINE} -c a\n{MINE} -c 'b c'"], pty=True)),
        ("%%bash --out text\nmake", None),
        ("%%script", None),
        ("%%bash", ShellCommand(["bash", "-c", ""])),
        ("%%bashful\nmake", None),
        ("x = !make", None),
        ("!make\nprint(1)", None),
        ("!!make", None),
        ("print('!')", None),
        ("x = 1", None),
    ],
)  # fmt: skip
def test_a_cell_is_a_shell_command_when_it_is_nothing_else(
    shell: InteractiveShell, source: str, command: ShellCommand | None
) -> None:
    assert of_cell(shell, source) == command


def test_a_script_that_is_too_long_for_an_argument_becomes_a_file() -> None:
    source = "echo\n" * 100_000
    assert of_shell(source, "/bin/sh") == ShellCommand(["/bin/sh"], source, "file")


def test_a_supervisor_is_light(state_dir: Path) -> None:
    """It imports neither IPython nor sqlite_utils, which draws in numpy and pandas."""
    import json

    from programs import run_python

    code = "import ipytaskpersist.runners.supervisor, json, sys; print(json.dumps([*sys.modules]))"
    ended = run_python(code, state_dir)
    loaded = {name.split(".")[0] for name in json.loads(ended.stdout)}
    heavy = {"IPython", "sqlite_utils", "numpy", "traitlets", "click", "rich", "asyncio", "psutil"}
    assert loaded & heavy == set()
