"""What the extension replaces stays to all others what it was, and is gone after unloading."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from kernels import NotebookKernel

MakeKernel = Callable[..., NotebookKernel]

IMPORT = r"""
import asyncio, builtins, concurrent.futures.process, contextlib, copy, getpass, inspect, io, json
import logging.handlers, multiprocessing as mp, multiprocessing.pool, os, pickle, pydoc, sys
import threading, time, types, warnings
from multiprocessing.reduction import ForkingPickler
import cloudpickle, IPython.core.displaypub, IPython.utils.capture
import ipywidgets, joblib, matplotlib.pyplot, matplotlib_inline.backend_inline, tqdm.notebook
import tqdm.auto
"""

# Describes what is in a place, and what is made of it. What cannot be done is described, too.
LOOK = r"""
PICKLERS = {
    "C": pickle.dumps, "Python": pickle._dumps, "cloudpickle": cloudpickle.dumps,
    "multiprocessing": lambda value: bytes(ForkingPickler.dumps(value)),
}

def attempt(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return f"{type(error).__name__}"

class Thing:
    pass

def binding(value):
    kind = type("Kind", (), {"method": value})
    return kind().method.__class__.__name__

def look(value):
    return {
        "class": value.__class__.__name__,
        "kind": type(value).__name__,
        "is": [each(value) for each in (
            callable, inspect.isfunction, inspect.isbuiltin, inspect.ismethod, inspect.isroutine,
            inspect.iscoroutinefunction, inspect.isgeneratorfunction)],
        "instance": [isinstance(value, each) for each in (
            types.BuiltinFunctionType, types.FunctionType, types.MethodType)],
        "names": [getattr(value, each, None) for each in (
            "__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__")],
        "repr": repr(value),
        "signature": attempt(lambda: str(inspect.signature(value))),
        "specification": attempt(lambda: str(inspect.getfullargspec(value))),
        "help": attempt(lambda: pydoc.render_doc(value)),
        "source": attempt(inspect.getsource, value),
        "binds": binding(value),
        "hash": hash(value),
        "self": id(getattr(value, "__self__", None)),
        "attributes": sorted(dir(value)),
        "vars": attempt(lambda: sorted(vars(value))),
        "weak": attempt(lambda: __import__("weakref").ref(value)() is not None),
        "copied": attempt(lambda: copy.copy(value) == value),
        "deepcopied": isinstance(value, types.MethodType) or copy.deepcopy(value) == value,
    }

def pickles(value):
    return {name: attempt(lambda: dumps(value).hex()) for name, dumps in PICKLERS.items()}

def names():
    return [f"{getattr(owner, '__name__', type(owner).__name__)}.{name}" for owner, name in PLACES]

def values():
    return [getattr(owner, name) for owner, name in PLACES]

def unlike(values, of):
    # Each difference: the place, what differs, what it is, and what it was.
    return [
        (place, key, each[key], before[key])
        for place, each, before in zip(names(), map(of, values), PLAIN[of])
        for key in before if each[key] != before[key]
    ]

def unequal(left, right):
    pairs = zip(names(), left, right)
    return [name for name, a, b in pairs if not (a == b and b == a and {a: True}.get(b))]

def others(left, right):
    # A method is made anew whenever it is asked for.
    pairs = zip(names(), left, right)
    return [name for name, a, b in pairs if a is not b and not isinstance(b, types.MethodType)]

def tell(value):
    print(json.dumps(value))
"""

USE = """
_run = get_ipython().run_cell_magic
_run("background", "", "1")
get_ipython().run_line_magic("bg_wait", "")
"""
LOAD, UNLOAD = "%load_ext ipytaskpersist\n" + USE, "%unload_ext ipytaskpersist\n"

PLACES = """
from ipytaskpersist.base import patches
PLACES = [
    (owner, name) for owner, name in patches.places()
    if callable(getattr(owner, name, None)) and hasattr(owner, name)
]
"""

# In a process of its own: what is loaded is what is there under its name.
ELSEWHERE = r"""
import json, pickle, pkgutil, sys
for name, pickled in json.load(sys.stdin):
    try:
        value = pickle.loads(bytes.fromhex(pickled))
        there = pkgutil.resolve_name(f"{value.__module__}:{value.__qualname__}")
        # cloudpickle pickles what is not there under its name by value.
        two = [getattr(each, "__func__", each) for each in (value, there)]
        same = two[0] is two[1] or two[0].__code__.co_name == two[1].__code__.co_name
    except Exception as error:
        value, same = repr(error), False
    if not same or "ipytaskpersist" in sys.modules: print(name, value)
"""


def told(kernel: NotebookKernel, source: str) -> Any:
    return json.loads(kernel.run(f"tell({source})", timeout=120).stream("stdout"))


def unlike_elsewhere(pickles: list[tuple[str, str]]) -> str:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps(pickles), env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran.stdout + ran.stderr


def assert_pickled(seen: list[dict[str, str]], plain: list[dict[str, str]], names: Any) -> None:
    """All that pickled before still does, and is found by other processes."""
    loadable = []
    for name, now, before in zip(names, seen, plain, strict=True):
        for pickler, pickled in before.items():
            if not pickled.endswith("Error"):
                loadable.append((f"{name} by {pickler}", now[pickler]))
    assert [each for each in loadable if each[1].endswith("Error")] == []
    assert len(loadable) > 40
    assert unlike_elsewhere(loadable) == ""


def errors(kernel: NotebookKernel) -> list[str]:
    """What cells show that fail in what is replaced, or call it wrongly."""
    cells = [kernel.run(source, check=False) for source in FAIL]
    return [re.sub(r"In\S*\[\d+\]", "In", "\n".join(cell.error[2])) for cell in cells if cell.error]


FAIL = (
    "threading.Condition().wait()", "time.sleep(-1)", "threading.current_thread().join()",
    "threading.Thread.join()", "time.sleep('1')", "time.sleep()", "os.system()",
    "os.system(c=1)", "os.fork(1)", "getpass.getpass()", "input('?')",
    "threading.Thread.start(threading.current_thread())", "mp.Process().join()",
)  # fmt: skip


# Functions of Python that are replaced as a whole: a reference from before the extension cannot be
# pickled, because nothing can be said to pickle about functions of Python.
HIDDEN = {
    "matplotlib_inline.backend_inline.show", "Pool._guarded_task_generation",
    "ZMQExitAutocall.__call__",
}  # fmt: skip


def but_for_hidden(unlike: list[list[Any]]) -> list[list[Any]]:
    """The differences, but for the help of what is not in its place any more."""
    return [each for each in unlike if each[0] not in HIDDEN or each[1] != "help"]


def test_what_is_replaced_stays_what_it_was(make_kernel: MakeKernel) -> None:
    """Each that a loaded extension with all its parts replaces; also what was imported earlier."""
    kernel = make_kernel(load=False)
    kernel.run(IMPORT + LOOK)
    kernel.run(LOAD)
    kernel.run(PLACES)
    kernel.run(UNLOAD)
    plain_errors = errors(kernel)
    kernel.run("earlier, PLAIN = values(), {of: [*map(of, values())] for of in (look, pickles)}")
    plain, names = told(kernel, "PLAIN[pickles]"), told(kernel, "names()")
    assert {
        "time.sleep", "os.fork", "os.system", "Thread.start", "BaseProcess.join",
        "Popen._get_handles",
        "_RedirectStream.__enter__", "tqdm_notebook.display", "Output.__exit__", *HIDDEN,
        "ZMQInteractiveShell.run_cell", "ZMQDisplayPublisher.publish", "IPythonKernel.do_shutdown",
    } <= {*names}  # fmt: skip
    kernel.run(LOAD)
    kernel.run("between = values()")
    assert errors(kernel) == plain_errors
    kernel.run("%%background\nthreading.Condition().wait()")
    shown = kernel.run("%bg_wait\n%bg_output").text
    assert "un-acquired" in shown
    assert "def wait" not in shown
    assert told(kernel, "unlike(between, look)") == []
    assert but_for_hidden(told(kernel, "unlike(earlier, look)")) == []
    assert told(kernel, "unequal(earlier, between)") == []
    assert_pickled(told(kernel, "[*map(pickles, between)]"), plain, names)
    seen = told(kernel, "[*map(pickles, earlier)]")
    for name in HIDDEN:
        seen[names.index(name)] = plain[names.index(name)]
    assert_pickled(seen, plain, names)
    kernel.run(UNLOAD)
    assert told(kernel, "others(values(), earlier)") == []
    assert told(kernel, "unlike(values(), look)") == []
    assert but_for_hidden(told(kernel, "unlike(between, look)")) == []
    assert told(kernel, "[*map(pickles, values())]") == plain
    assert_pickled(told(kernel, "[*map(pickles, between)]"), plain, names)


# Work for other processes, and a thing that uses what is replaced, as any module does.
WORK = """
import joblib, multiprocessing as mp, pickle, sys, os, time, threading, types, inspect
from concurrent.futures import ProcessPoolExecutor
from functools import partial

def work(sleep, seconds):
    sleep(seconds)
    return 1

def use(sleep):
    def nap(seconds):
        sleep(seconds)
        return 1
    return nap

class Bed:
    nap = time.sleep
    system = os.system

def try_all(sleep, system):
    with mp.Pool(2) as pool:
        codes = pool.map(system, ["exit 3", "true"])
        slept = pool.map(partial(work, sleep), [0, 0])
        pool.map(sleep, [0, 0])
    nap = use(sleep)
    there = joblib.Parallel(n_jobs=2)(joblib.delayed(nap)(0) for _ in range(2))
    there += joblib.Parallel(n_jobs=2, backend="multiprocessing")(
        joblib.delayed(work)(sleep, 0) for _ in range(2))
    joblib.Parallel(n_jobs=2)(joblib.delayed(sleep)(0) for _ in range(2))
    Bed().nap(0)
    with ProcessPoolExecutor(1, mp.get_context("spawn")) as executor:
        executor.submit(sleep, 0).result()
        assert executor.submit(Thread_start, threading.Thread()).exception() is not None
    return [os.waitstatus_to_exitcode(code) for code in codes], slept, there, Bed().system("true")
"""
RIGHT = ([3, 0], [1, 1], [1, 1, 1, 1], 0)


def test_work_for_other_processes_is_sent_as_without_the_extension(make_kernel: MakeKernel) -> None:
    """With what was imported before, between and after: in the foreground, a thread, a process."""
    kernel = make_kernel(load=False)
    kernel.run(WORK)
    kernel.run("from time import sleep as sleep_before; from os import system as system_before")
    kernel.run("Thread_start = threading.Thread.start")
    kernel.run(LOAD)
    kernel.run("from time import sleep as sleep_between; from os import system as system_between")
    for when in ("before", "between"):
        tried = f"assert try_all(sleep_{when}, system_{when}) == {RIGHT}"
        kernel.run(tried, timeout=120)
        kernel.run(f"%%background\n{tried}\nprint('right')")
        assert "right" in kernel.run("%bg_wait\n%bg_output").text
    kernel.run("nap = use(sleep_before), use(sleep_between)")
    kernel.run("%%background --process\nprint([each(0) for each in nap], work(sleep_before, 0))")
    assert "[1, 1] 1" in kernel.run("%bg_wait\n%bg_output").text
    kernel.run("%unload_ext ipytaskpersist")
    kernel.run("import copyreg; assert types.BuiltinFunctionType not in copyreg.dispatch_table")
    kernel.run(f"assert try_all(sleep_between, system_between) == {RIGHT}", timeout=120)
