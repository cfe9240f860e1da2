"""What Python and IPython keep for the whole process harms neither a task nor the foreground."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import seccomp
from kernels import NotebookKernel, until
from many_cells import check_completed, ended, printed, run_all

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.isolation import working_directory
from ipytaskpersist.store.task_store import TaskStore

MakeKernel = Callable[..., NotebookKernel]

HELPERS = """\
import os, pathlib, pickle, sys, threading, time, warnings
import __main__

def here(x):
    return x + 1

def meet(*names):
    '''Say that the first is here, and wait for the others.'''
    pathlib.Path(names[0] + ".here").touch()
    while not all(pathlib.Path(name + ".here").exists() for name in names):
        time.sleep(0.005)
"""


# Scripts.

SCRIPT = """\
import argparse, multiprocessing, os, pathlib, pickle, sys, time
import __main__
import beside

class Thing:
    pass

def double(x):
    return 2 * x

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--with", nargs="*", dest="others")
    parser.add_argument("--code", type=int, default=0)
    given = parser.parse_args()
    pathlib.Path(given.name + ".begun").touch()
    while not all(pathlib.Path(other + ".begun").exists() for other in given.others or ()):
        time.sleep(0.005)
    copy = pickle.loads(pickle.dumps(Thing()))
    assert type(copy) is Thing is __main__.Thing is sys.modules["__main__"].Thing
    assert vars(__main__)["double"] is double
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(double, [4]) == [8]
    while not pathlib.Path("go").exists():
        time.sleep(0.005)
    assert sys.argv[1] == given.name and beside.name == "beside"
    print("script of", given.name, flush=True)
    sys.exit(given.code)

if __name__ == "__main__":
    main()
"""
MEANWHILE = """\
assert sys.argv == before, sys.argv
assert __main__.here is here is sys.modules["__main__"].here
assert pickle.loads(pickle.dumps(here)) is here
__main__.set_from_outside = 3
assert set_from_outside == 3 and __name__ == "__main__"
import multiprocessing
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.map(here, [4]) == [5]
"""
NAMES = ("one", "two", "three", "module")


def test_scripts_at_once_have_their_own_arguments_and_main_module(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """Two of the same file, a third, and a module; the foreground pickles, and runs one itself."""
    kernel = make_kernel()
    (kernel.cwd / "scripts").mkdir()
    for name in ("same", "other"):
        (kernel.cwd / "scripts" / f"{name}.py").write_text(SCRIPT)
    (kernel.cwd / "scripts" / "beside.py").write_text("name = 'beside'")
    (kernel.cwd / "as_module.py").write_text(
        SCRIPT.replace("import beside", "import scripts.beside as beside")
    )
    kernel.run(HELPERS + "before = list(sys.argv); path = list(sys.path)")
    others = "--with " + " ".join(NAMES)
    run_all(
        kernel,
        {
            "one": f"%run scripts/same.py one {others}",
            "two": f"%run scripts/same.py two {others} --code 2\nprint('goes on')",
            "three": f"%run scripts/other.py three {others}",
            "module": f"%run -m as_module module {others} --code 5",
            "plain": "pathlib.Path('plain.argv').write_text(repr(sys.argv == before))\n"
            "meet('plain', 'end')\nassert pickle.loads(pickle.dumps(here)) is here",
        },
    )
    kernel.run(f"while not all(os.path.exists(n + '.begun') for n in {NAMES}): time.sleep(0.005)")
    kernel.run(MEANWHILE)
    kernel.run("pathlib.Path('go').touch()")
    cell = kernel.run("%run scripts/same.py foreground --code 3")
    assert "script of foreground" in cell.text
    kernel.run("meet('end')")
    tasks = ended(store, 5)
    kernel.run(MEANWHILE + "assert sys.path == path, sys.path")
    states = {name: (task.exit_code, task.reason) for name, task in tasks.items()}
    assert states == {
        "one": (0, None),
        "two": (2, "exit status 2"),
        "three": (0, None),
        "module": (5, "exit status 5"),
        "plain": (0, None),
    }, [printed(store, task) for task in tasks.values()]
    for name in NAMES:
        assert f"script of {name}" in printed(store, tasks[name])
    assert "goes on" in printed(store, tasks["two"])
    assert (kernel.cwd / "plain.argv").read_text() == "True"
    kernel.run("%unload_ext ipytaskpersist")
    kernel.run(
        "import types, gc\n"
        "assert type(sys) is type(warnings) is type(sys.modules['__main__']) is types.ModuleType\n"
        "assert sys.modules['__main__'] is get_ipython().user_module"
    )


def test_what_a_script_leaves_and_how_else_it_is_run(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """Options, ``.ipy``, nested, failing; variables come into the notebook."""
    kernel = make_kernel()
    kernel.run(HELPERS + "given = 5")
    (kernel.cwd / "leaves.py").write_text("left = __name__\nimport sys\nargs = sys.argv[1:]\n")
    (kernel.cwd / "uses.py").write_text("used = given + 1\n")
    (kernel.cwd / "fails.py").write_text("def f():\n    return 1 / 0\nf()\n")
    (kernel.cwd / "exits.py").write_text("import sys\nsys.exit(6)\n")
    (kernel.cwd / "cells.ipy").write_text("%matplotlib --list\nfrom_cells = here(1)\n")
    (kernel.cwd / "nested.py").write_text(
        "import sys\nget_ipython().run_line_magic('run', 'leaves.py inner')\n"
        "assert sys.argv[1:] == ['outer'], sys.argv\nclass A: pass\n"
        "import pickle; pickle.dumps(A())\n"
    )
    run_all(
        kernel,
        {
            "leaves": "%run leaves.py a 'b c'\nassert (left, args) == ('__main__', ['a', 'b c'])",
            "named": "%run -n leaves.py\nassert left == 'leaves'",
            "uses": "%run -i uses.py\nassert used == 6",
            "fails": "%run fails.py",
            "ignored": "%run -e exits.py",
            "timed": "%run -t leaves.py",
            "ipy": "%run cells.ipy\nassert from_cells == 2",
            "nested": "%run nested.py outer",
            "missing": "%run not_there.py",
        },
    )
    tasks = ended(store, 9)
    fails, missing = tasks.pop("fails"), tasks.pop("missing")
    check_completed(store, tasks)
    assert fails.reason == "ZeroDivisionError: division by zero"
    assert "fails.py" in printed(store, fails)
    assert "not_there.py" in str(missing.reason)
    kernel.run("assert left and args is not None and used == 6")


# The directory.


CAN = pytest.mark.skipif(
    not working_directory.can_be_own(), reason="threads share their directory here"
)


@CAN
def test_a_task_has_a_directory_of_its_own(make_kernel: MakeKernel, store: TaskStore) -> None:
    """It begins where the notebook is at its launch, and neither moves the other."""
    kernel = make_kernel()
    for name in ("a", "b", "c", "later"):
        (kernel.cwd / name).mkdir()
    kernel.run(HELPERS + "import subprocess\nroot = os.getcwd()\nos.umask(0o022)")
    look = "assert os.getcwd() == os.path.join(root, {0!r}), os.getcwd()\n"
    run_all(
        kernel,
        {
            "chdir": "os.chdir('a')\n" + look.format("a"),
            "magic": "%cd b\n" + look.format("b") + "%cd -\nassert os.getcwd() == root",
            "pushd": "%pushd c\n" + look.format("c") + "%popd\nassert os.getcwd() == root",
            "children": "os.chdir('a')\nt = threading.Thread(target=lambda: open('from', 'w'))\n"
            "t.start(); t.join()\nassert os.path.exists(os.path.join(root, 'a', 'from'))\n"
            "assert subprocess.check_output('pwd', text=True).strip() == os.path.join(root, 'a')\n"
            "found = !pwd\nassert found[0] == os.path.join(root, 'a'), found",
            "umask": "os.umask(0o077)",
            "stays": "pathlib.Path('begun').touch()\n"
            "while not os.path.exists(os.path.join(root, 'moved')): time.sleep(0.005)\n"
            "assert os.getcwd() == root",
        },
    )
    kernel.run("while not os.path.exists('begun'): time.sleep(0.005)")
    kernel.run("%cd later\npathlib.Path(root, 'moved').touch()")
    check_completed(store, ended(store, 6))
    kernel.run(look.format("later") + "%cd -\nassert os.getcwd() == root\n%cd later")
    kernel.run("mask = os.umask(0o027)\nassert mask == 0o022, oct(mask)")
    # The threads of ended tasks serve the next ones, wherever those have been.
    run_all(kernel, {f"next {n}": look.format("later") for n in range(5)})
    run_all(kernel, {"mask": "assert os.umask(0o022) == 0o027"})
    kernel.run("os.rmdir(os.getcwd())")
    run_all(kernel, {"gone": "try: os.getcwd()\nexcept FileNotFoundError: pass\nelse: 1 / 0"})
    check_completed(store, ended(store, 13))


@pytest.mark.skipif(not seccomp.IS_POSSIBLE, reason="the filter is for Linux on x86_64")
def test_where_threads_share_a_directory_a_task_that_changes_it_says_so(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = make_kernel(run_by=seccomp.command("EPERM", unshare=True))
    (kernel.cwd / "a").mkdir()
    kernel.run(HELPERS)
    run_all(kernel, {"moves": "os.chdir('a')\nos.chdir('.')"})
    said = printed(store, ended(store, 1)["moves"])
    assert said.count("the notebook's directory is now") == 1
    assert "--process" in said
    kernel.run("assert os.path.basename(os.getcwd()) == 'a'")


# Warnings.

WARNINGS = """\
with warnings.catch_warnings():
    warnings.simplefilter("{action}")
    meet("{name}", "{other}")
    for n in range(3):
        {call}
    meet("{name}2", "{other}2")
"""


def test_filters_of_warnings_hold_for_the_task_that_sets_them(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """Blocks that overlap neither exchange their filters nor leave any behind."""
    kernel = make_kernel()
    kernel.run(HELPERS + "filters = list(warnings.filters); hook = warnings.showwarning")
    raises = "try: warnings.warn('w')\n        except UserWarning: pass\n        else: 1 / 0"
    run_all(
        kernel,
        {
            "a": WARNINGS.format(action="error", name="a", other="b", call=raises),
            "b": WARNINGS.format(action="ignore", name="b", other="a", call="warnings.warn('n')"),
            "records": "with warnings.catch_warnings(record=True) as kept:\n"
            "    warnings.simplefilter('always')\n    meet('r', 'f')\n"
            "    thread = threading.Thread(target=warnings.warn, args=('in a thread',))\n"
            "    thread.start(); thread.join()\n"
            "    warnings.warn('recorded')\n    meet('r2', 'f2')\n"
            "assert [str(w.message) for w in kept] == ['in a thread', 'recorded'], kept",
            "reset": "with warnings.catch_warnings():\n    warnings.resetwarnings()\n"
            "    warnings.filterwarnings('error', append=True)\n"
            "    assert len(warnings.filters) == 1\n"
            "with warnings.catch_warnings(action='ignore'): pass",
        },
    )
    cell = kernel.run("meet('f', 'r')\nwarnings.warn('of the foreground')\nmeet('f2', 'r2')")
    assert "of the foreground" in cell.stream("stderr")
    tasks = ended(store, 4)
    check_completed(store, tasks)
    assert printed(store, tasks["b"]) == printed(store, tasks["records"]) == ""
    kernel.run("assert warnings.filters == filters and warnings.showwarning is hook")
    run_all(kernel, {"stays": "warnings.filterwarnings('ignore', 'only this')"})
    ended(store, 5)
    kernel.run("assert warnings.filters[0][0] == 'ignore'")


# Debuggers, backends, and the names of threads.

NO_DEBUGGER = {
    "pdb": ("1 / 0", "ZeroDivisionError: division by zero"),
    "called": ("def f(): [][1]\nf()", "IndexError: list index out of range"),
    "script": ("%run fails.py", "KeyError: 1"),
    "awaits": ("import asyncio\nawait asyncio.sleep(0)\nint('x')", "ValueError: invalid literal"),
    "nested": ("get_ipython().run_cell('None.x')", "AttributeError: 'NoneType' object"),
    "group": ("raise ExceptionGroup('several', [ValueError(1)])", "ExceptionGroup: several"),
    "debug": ("%debug", "UsageError: there is no debugger in background task"),
    "debugs": ("%debug 1 + 1", "UsageError: there is no debugger in background task"),
    "set_trace": ("import pdb; pdb.set_trace()", "UsageError: there is no debugger in"),
    "turns": ("%pdb on", "UsageError: there is no debugger in background task"),
    "run": ("%run -d fails.py", "UsageError: there is no debugger in background task"),
}


@pytest.mark.parametrize("where", ["--thread", "--process"])
def test_a_task_has_no_debugger(where: str, make_kernel: MakeKernel, store: TaskStore) -> None:
    """With ``%pdb on``, too: the reason of a failed task is its exception."""
    kernel = make_kernel()
    kernel.run(
        "open('fails.py', 'w').write('{}[1]')\nget_ipython().config.InteractiveShell.pdb = True"
    )
    kernel.run("%pdb on")
    chosen = NO_DEBUGGER if where == "--thread" else dict([*NO_DEBUGGER.items()][::3])
    if where == "--process":
        chosen |= {"turns": NO_DEBUGGER["turns"]}
    for name, (source, _reason) in chosen.items():
        kernel.run(f"%%background {where} {name}\n{source}")
    tasks = ended(store, len(chosen))
    for name, (_source, reason) in chosen.items():
        assert str(tasks[name].reason).startswith(reason), (name, printed(store, tasks[name]))
        assert tasks[name].exit_code == 1
        assert "Traceback" in printed(store, tasks[name]) or "UsageError" in reason
    kernel.run("assert get_ipython().call_pdb is True")


def test_the_thread_of_a_task_has_its_name(make_kernel: MakeKernel, store: TaskStore) -> None:
    """Code that is for the main thread, as handlers of signals, is not run in it."""
    kernel = make_kernel()
    kernel.run("import threading, logging")
    name = "print(threading.current_thread().name)"
    run_all(kernel, {"train": name, "": name})
    kernel.run("%bg_wait 2")
    run_all(
        kernel,
        {"again": f"{name}\nimport signal\nassert threading.main_thread().name == 'MainThread'"},
    )
    tasks = ended(store, 3)
    said = [printed(store, task).strip() for task in tasks.values()]
    assert said == ["background 1 (train)", "background 2", "background 3 (again)"]
    idle = kernel.run("print(*{thread.name for thread in threading.enumerate()}, sep='\\n')").text
    assert "background 3" not in idle
    assert idle.split("\n").count("MainThread") == 1


def test_what_belongs_to_the_notebook_alone_is_refused(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """A task starts no event loop of windows, and sets no handlers of signals."""
    kernel = make_kernel()
    kernel.run("%matplotlib inline")
    run_all(
        kernel,
        {
            "same": "%matplotlib inline",
            "listed": "%matplotlib --list",
            "qt": "%matplotlib qt",
            "gui": "%gui tk",
            "signal": "import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
        },
    )
    tasks = ended(store, 5)
    check_completed(store, {name: tasks.pop(name) for name in ("same", "listed")})
    assert "signal only works in main thread" in str(tasks.pop("signal").reason)
    for name, task in tasks.items():
        assert task.state is TaskState.FAILED, name
        assert "--process" in str(task.reason), (name, task.reason)
    kernel.run("import matplotlib; assert 'inline' in matplotlib.get_backend()")


# Ends.

EXITS: dict[str, tuple[str, int]] = {
    "exit": ("exit()", 0),
    "word": ("exit", 0),
    "quit": ("quit()\nprint('not reached')", 0),
    "keeps": ("exit(keep_kernel=True)\nprint('not reached')", 0),
    "code": ("print('a'); exit(3)\nprint('not reached')", 3),
    "text": ("quit('enough')\nprint('not reached')", 1),
    "asked": ("get_ipython().ask_exit()\nprint('not reached')", 0),
    "sys": ("import sys; sys.exit(2)", 2),
    "raised": ("raise SystemExit(4)", 4),
    "os": ("import os; os._exit(7)\nprint('not reached')", 7),
    "script": ("%run exits.py", 5),
    "awaits": ("import asyncio\nawait asyncio.sleep(0)\nexit(6)\nprint('not reached')", 6),
    "cell": ("get_ipython().run_cell('import sys; sys.exit(9)')", 9),
    "thread": (
        "import threading; t = threading.Thread(target=exit); t.start(); t.join()\nprint('on')",
        0,
    ),
}


@pytest.mark.parametrize("where", ["--thread", "--process"])
def test_exit_ends_the_task_and_not_the_kernel(
    where: str, make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = make_kernel()
    pid = kernel.pid
    kernel.run("open('exits.py', 'w').write('import sys; sys.exit(5)')")
    shown = [kernel.run(f"%%background {where} {n}\n{source}") for n, (source, _) in EXITS.items()]
    tasks = ended(store, len(EXITS))
    for name, (_source, code) in EXITS.items():
        task = tasks[name]
        state = TaskState.FAILED if code else TaskState.COMPLETED
        assert (task.state, task.exit_code) == (state, code), (name, printed(store, task))
        assert task.reason == (f"exit status {code}" if code else None), name
        assert "not reached" not in printed(store, task), name
    assert "on" in printed(store, tasks["thread"])
    kernel.run("1")  # what processes have left is told before it
    after = kernel.run("print(get_ipython().exit_now, get_ipython().keepkernel_on_exit)")
    assert after.text == "False None\n"
    assert not [cell for cell in [*shown, after] if cell.payload]
    assert kernel.alive
    assert kernel.pid == pid


def test_the_foreground_still_exits(make_kernel: MakeKernel) -> None:
    kernel = make_kernel()
    kernel.run("%%background\n1")
    kernel.run("%bg_wait")
    assert kernel.run("exit(keep_kernel=True)").payload == [
        {"source": "ask_exit", "keepkernel": True}
    ]
    cell = kernel.start("exit()")
    until(lambda: not kernel.alive, message="the end of the kernel")
    assert cell is not None


# What is shared, and said to be so in docs/differences.md.

SHARED = {
    "environ": ("os.environ['SET_BY_TASK'] = 'x'", "os.environ['SET_BY_TASK'] == 'x'"),
    "env": ("%env SET_BY_MAGIC=y", "os.environ['SET_BY_MAGIC'] == 'y'"),
    "path": ("sys.path.append('/added')", "sys.path.pop() == '/added'"),
    "locale": (
        "import locale; locale.setlocale(locale.LC_NUMERIC, 'C')",
        "__import__('locale').setlocale(__import__('locale').LC_NUMERIC) == 'C'",
    ),
    "socket": (
        "import socket; socket.setdefaulttimeout(3)",
        "__import__('socket').getdefaulttimeout() == 3",
    ),
    "recursion": ("sys.setrecursionlimit(4321)", "sys.getrecursionlimit() == 4321"),
    "decimal": ("import decimal; decimal.getcontext().prec = 7", "decimal.getcontext().prec == 7"),
    "local": ("local.x = 1", "not hasattr(local, 'x')"),
    "argv": ("sys.argv = ['mine']\nassert sys.argv == ['mine']", "sys.argv == before"),
    "argv in place": ("sys.argv.append('mine')", "sys.argv == before"),
}


def test_what_is_shared_and_what_is_not(make_kernel: MakeKernel, store: TaskStore) -> None:
    """The rows of the table in the documentation, each in a real kernel."""
    kernel = make_kernel()
    kernel.run(HELPERS + "import decimal\nlocal = threading.local(); before = list(sys.argv)")
    run_all(kernel, {name: source for name, (source, _after) in SHARED.items()})
    check_completed(store, ended(store, len(SHARED)))
    for name, (_source, after) in SHARED.items():
        assert kernel.run(f"print({after})").text == "True\n", name
    kernel.run(MODULES_CLASS)


BETWEEN_CELLS = """\
import builtins, threading
trap, found = get_ipython().builtin_trap, {}
def look():
    while trap._nested_level:
        time.sleep(0.001)
    found.update({name: hasattr(builtins, name) for name in ("exit", "quit", "get_ipython")})
threading.Thread(target=look).start()
"""


def test_between_cells_the_built_in_functions_are_there(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """IPython hides some while a cell runs; a task needs another, and hides none for the rest."""
    kernel = make_kernel()
    kernel.run(HELPERS)
    for after, has_own in (
        ("%%background\nassert get_ipython() is not None", True),
        ("%unload_ext ipytaskpersist", False),
    ):
        kernel.run(after)
        if has_own:
            check_completed(store, ended(store, 1))
        kernel.run(BETWEEN_CELLS)
        # A cell that begins before the thread has looked makes it wait for the next pause.
        seen = until(lambda: kernel.run("if found: print(found)").text)
        expected = {"exit": True, "quit": True, "get_ipython": has_own}
        assert seen == f"{expected}\n", after


MODULES_CLASS = """\
import types, warnings
for module in (sys, warnings):
    assert type(module) == types.ModuleType and types.ModuleType == type(module)
    assert not type(module) != types.ModuleType and hash(type(module)) == hash(types.ModuleType)
    assert {types.ModuleType: 1}[type(module)] == 1 and repr(type(module)) == "<class 'module'>"
    assert isinstance(types, type(module)) and not isinstance(types, type(1))
    assert issubclass(types.ModuleType, type(module)) and issubclass(type(module), types.ModuleType)
    made = type(module)("made", "its docs")
    assert type(made) is types.ModuleType and made.__doc__ == "its docs"
    assert not hasattr(made, "argv")
"""
"""A module whose attributes each task may have for itself is of the class of all modules."""


LOOPS = """\
import asyncio
lock = asyncio.Lock()
"""
LOCKED = "async with lock:\n    await asyncio.sleep(0.2)\n'had'"


def test_objects_that_belong_to_one_thread_or_one_event_loop(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """``sqlite3`` says so; an ``asyncio.Lock`` serves one loop at a time, or says so."""
    kernel = make_kernel()
    kernel.run(LOOPS + "import sqlite3\ndatabase = sqlite3.connect(':memory:')")
    run_all(
        kernel,
        {
            "other": "database.execute('select 1')",
            "own": "mine = sqlite3.connect(':memory:', check_same_thread=False)",
            "first": LOCKED,
            "second": LOCKED,
        },
    )
    tasks = ended(store, 4)
    assert "SQLite objects created in a thread" in str(tasks["other"].reason)
    kernel.run("%bg_wait 2\nmine.execute('select 1')")
    states = {tasks[name].state for name in ("first", "second")}
    assert TaskState.COMPLETED in states
    reasons = [str(tasks[name].reason) for name in ("first", "second") if tasks[name].reason]
    assert all("is bound to a different event loop" in reason for reason in reasons)
    found: Any = json.loads(kernel.run("%bg_list --json").text)
    assert len(found["tasks"]) == 4
