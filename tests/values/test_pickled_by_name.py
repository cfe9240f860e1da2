"""What pickle takes by a name that no other process finds: by value, or refused at the launch."""

from __future__ import annotations

import functools
import io
import sys
import types
import typing
import weakref
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel
from processcells import Notebook

from ipytaskpersist.values import changeable
from ipytaskpersist.values.pickling import Unpickler, to_bytes

NOTEBOOK = """
import functools, importlib.util, sys, types, typing
import numpy as np
@functools.lru_cache(maxsize=7)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
partial = functools.partial(fib, 20)
class Tool:
    @functools.cache
    def twice(self, x):
        return 2 * x
    @functools.cached_property
    def once(self):
        return 'once'
tool = Tool()
bound = tool.twice
@functools.singledispatch
def kind(x):
    return 'any'
@kind.register
def _of_int(x: int):
    return 'int'
vector = np.vectorize(lambda x: x + 1)
UserId = typing.NewType('UserId', int)
P = typing.ParamSpec('P')
def decorate(f: typing.Callable[P, int]) -> typing.Callable[P, int]:
    return f

by_hand = types.ModuleType('by_hand')
sys.modules['by_hand'] = by_hand
exec('''
count = 1
class Counter:
    pass
def up():
    global count
    count += 1
    return count
''', vars(by_hand))
Counter = by_hand.Counter
def imports():
    import by_hand
    return by_hand.up()

spec = importlib.util.spec_from_file_location('beside', 'elsewhere/beside_it.py')
beside = importlib.util.module_from_spec(spec)
sys.modules['beside'] = beside
spec.loader.exec_module(beside)
plus, box = beside.plus, beside.Box()
import pack.inner

class Error(Exception):
    def __init__(self, one, two):
        super().__init__(one)
error, fine = Error(1, 2), 1
universal = np.frompyfunc(lambda x: x, 1, 1)
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with NotebookKernel(tmp_path_factory.mktemp("by-name")) as kernel:
        folder = kernel.cwd / "elsewhere"
        (folder / "packs" / "pack").mkdir(parents=True)
        (folder / "beside_it.py").write_text(
            "import functools\nvalue = 5\n@functools.cache\ndef plus(x):\n    return x + value\n"
            "class Box:\n    def open(self):\n        return 'open'\n"
        )
        (folder / "packs" / "pack" / "__init__.py").write_text("")
        (folder / "packs" / "pack" / "inner.py").write_text("def inside():\n    return 'inside'\n")
        kernel.run("%load_ext ipytaskpersist")
        # A package that is found while its folder is on the path, and not afterwards.
        kernel.run(f"import sys\nsys.path.insert(0, {str(folder / 'packs')!r})\nimport pack.inner")
        kernel.run("del sys.path[0]")
        kernel.run(NOTEBOOK)
        yield Notebook(kernel)


def test_what_has_only_a_name_is_taken_by_value(notebook: Notebook) -> None:
    assert notebook.printed(
        "print(fib(30), fib.cache_parameters()['maxsize'], fib.__wrapped__.__name__, partial())\n"
        "print(tool.twice(2), tool.once, bound(3))\n"
        "print(kind(1), kind('a'), vector(1), UserId(5), UserId, P, decorate(len) is len)"
    ).splitlines() == [
        "832040 7 fib 6765",
        "4 once 6",
        "int any 2 5 __main__.UserId ~P True",
    ]


def test_modules_that_only_the_notebook_finds_are_there(notebook: Notebook) -> None:
    assert notebook.printed(
        "print(by_hand.up(), by_hand.count, imports(), Counter is by_hand.Counter)\n"
        "print(plus(1), box.open(), type(box) is beside.Box, beside.plus is plus)\n"
        "print(pack.inner.inside())\n"
        "import by_hand as again, beside as also\n"
        "from pack import inner\n"
        "print(again is by_hand, also is beside, inner.inside())"
    ).splitlines() == [
        "2 2 3 True",
        "6 open True True",
        "inside",
        "True True inside",
    ]
    assert notebook.cell("by_hand.count, beside.value") == "(1, 5)"


def test_what_a_process_makes_comes_back(notebook: Notebook) -> None:
    said = notebook.process(
        "import functools, types, sys, typing\n"
        "@functools.cache\ndef remembered(x):\n    return x * 2\n"
        "calls = functools.partial(remembered, 4)\nAge = typing.NewType('Age', int)\n"
        "made = types.ModuleType('made')\nsys.modules['made'] = made\nmade.value = 3"
    )
    assert said.endswith(": calls, Age are in the notebook\n")
    assert notebook.cell("calls(), remembered(1), Age(3), made.value") == "(8, 2, 3, 3)"


def test_what_cannot_be_taken_is_refused_by_its_name(notebook: Notebook) -> None:
    refused = notebook.refused("universal(1)")
    assert "universal (ufunc): PicklingError: it is pickled by its name alone" in refused
    notebook.cell("import weakref\nweak = weakref.ref(tool)")
    assert "weak (ReferenceType): TypeError" in notebook.refused("weak()")


def test_what_cannot_be_loaded_is_named(notebook: Notebook) -> None:
    notebook.process("print(fine, error)")
    ended = notebook.cell("%bg_wait -1")
    assert "error, which it was given, cannot be unpickled (TypeError: " in ended


# Without a kernel.


def there_and_back(value: Any) -> Any:
    return Unpickler(io.BytesIO(to_bytes(value, None)), {}).load()


@functools.cache
def importable(x: int) -> int:
    return x


def test_what_another_process_finds_is_taken_by_its_name() -> None:
    for value in (importable, functools.partial(importable, 1).func, typing.Any, len, Path, sys):
        assert there_and_back(value) is value


def test_weak_dictionaries_are_taken_with_what_is_in_them() -> None:
    held = functools.partial(len)
    by_key, by_value = weakref.WeakKeyDictionary({held: 1}), weakref.WeakValueDictionary({1: held})
    loaded, other, held_there = there_and_back((by_key, by_value, held))
    assert (dict(loaded), dict(other)) == ({held_there: 1}, {1: held_there})


def test_a_module_that_is_there_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = types.ModuleType("made_here")
    made.value, made.only_then = 1, 1
    monkeypatch.setitem(sys.modules, "made_here", made)
    pickled = to_bytes(made, None)
    made.value = 2
    del made.only_then
    assert Unpickler(io.BytesIO(pickled), {}).load() is made
    assert (made.value, made.only_then) == (2, 1)


def test_values_are_pickled_while_another_thread_imports_a_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a process task beside a thread whose cell begins with ``import numpy``."""
    for name in ("numpy", "pandas"):
        beginning = types.ModuleType(name)
        beginning.__spec__ = ModuleSpec(name, None)
        beginning.__spec__._initializing = True  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, beginning)
    value = {"list": [1, 2], "instance": types.SimpleNamespace(n=1)}
    assert Unpickler(io.BytesIO(to_bytes(value, {})), {}).load() == value
    assert changeable.kind_of(value) is not None
