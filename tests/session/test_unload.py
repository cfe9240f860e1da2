"""Unloading the extension puts back everything that loading it has changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kernels import Cell, NotebookKernel, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.task_store import TaskStore

MakeKernel = Callable[..., NotebookKernel]

# Describes all that others own and the extension might change: `look()` gives a text for every
# callable and every class that hangs on them. A method is made anew whenever it is asked for, so it
# stands for its function and its object. A function's code may be exchanged.
LOOK = r"""
import asyncio, builtins, concurrent.futures, contextlib, getpass, json, logging
import multiprocessing.process, os, select, signal, subprocess, sys, threading, time, warnings
import IPython.core.displaypub, IPython.utils.capture

def _look_owners():
    shell = get_ipython()
    owners = {
        "shell": shell, "kernel": shell.kernel, "session": shell.kernel.session,
        "display_pub": shell.display_pub, "displayhook": shell.displayhook,
        "stdout": sys.stdout, "stderr": sys.stderr, "history": shell.history_manager,
        "Thread": threading.Thread, "Executor": concurrent.futures.ThreadPoolExecutor,
        "Popen": subprocess.Popen, "Process": multiprocessing.process.BaseProcess,
        "redirect": contextlib._RedirectStream, "capture": IPython.utils.capture.capture_output,
        "capturing": IPython.core.displaypub.CapturingDisplayPublisher,
        "Shell": type(shell), "Kernel": type(shell.kernel),
        "os": os, "time": time, "builtins": builtins, "getpass": getpass, "select": select,
        "subprocess": subprocess, "threading": threading, "signal": signal, "sys": sys,
        "warnings": warnings, "logging": logging, "asyncio": asyncio, "contextlib": contextlib,
        "futures": concurrent.futures,
    }
    if "matplotlib.pyplot" in sys.modules:
        import matplotlib.pyplot, matplotlib._pylab_helpers, matplotlib_inline.backend_inline
        owners |= {
            "Gcf": matplotlib._pylab_helpers.Gcf, "inline": matplotlib_inline.backend_inline,
            "pyplot": matplotlib.pyplot,
        }
    return owners

def _look_name(value):
    function = getattr(value, "__func__", value)
    owner = id(getattr(value, "__self__", None)) if hasattr(value, "__func__") else ""
    code = id(getattr(function, "__code__", None))
    name = getattr(function, "__qualname__", "?")
    return f"{type(value).__name__} {name} {id(function)} {code} {owner}"

def _look_attributes(owner):
    kind = owner if isinstance(owner, type) else type(owner)
    attributes = {}
    for each in reversed(kind.__mro__):
        attributes |= vars(each)
    return attributes | vars(owner)

def look():
    shell, seen = get_ipython(), {}
    for place, owner in _look_owners().items():
        seen[place] = f"{type(owner).__qualname__} {id(type(owner))}"
        for name, value in _look_attributes(owner).items():
            if callable(value) and not name.startswith(("_i", "_o", "last_")):
                seen[f"{place}.{name}"] = _look_name(value)
    if "Gcf" in seen:
        import matplotlib._pylab_helpers
        seen["figures"] = type(matplotlib._pylab_helpers.Gcf.figs).__name__
    for kind, magics in shell.magics_manager.magics.items():
        seen |= {f"{kind} magic {name}": "" for name in magics}
    seen |= {f"class of {each.__name__}": str(type(each)) for each in (sys, warnings)}
    seen |= {"__main__": _look_name(sys.modules["__main__"])}
    for event, calls in shell.events.callbacks.items():
        seen |= {f"at {event}: {getattr(call, '__qualname__', call)}": "" for call in calls}
    seen |= {f"configurable {type(each).__name__}": "" for each in shell.configurables}
    # Threads of others come and go.
    for name in [each.name for each in threading.enumerate()]:
        if name == "MainThread" or name.startswith("background ") or "taskpersist" in name:
            seen[f"threads {name}"] = seen.get(f"threads {name}", "") + "|"
    seen |= {f"finder {each!r}": "" for each in sys.meta_path}
    seen |= {f"attribute {name}": "" for name in vars(shell) if "taskpersist" in name}
    seen["display hook"] = _look_name(sys.displayhook)
    return seen

between = []
def look_after_this_cell():
    # While a cell runs, IPython itself has changed the streams.
    asyncio.get_running_loop().call_soon(lambda: between.append(look()))
look_after_this_cell()
"""

USE = """
from IPython.display import display
_run = get_ipython().run_cell_magic
_run("background", "printing", "print('printed'); display(1)\\n2")
_run("background", "starting", "import threading; threading.Thread(target=print).start()\\n!echo 1")
_run("background", "failing", "1 / 0")
get_ipython().run_line_magic("bg_wait", "printing starting failing")
get_ipython().run_line_magic("bg_list", "")
get_ipython().run_line_magic("bg_output", "printing")
"""

LOAD, UNLOAD = "%load_ext ipytaskpersist\n", "%unload_ext ipytaskpersist\n"
LEAVE = "look_after_this_cell()\n"


@pytest.fixture
def fresh(make_kernel: MakeKernel) -> NotebookKernel:
    """A kernel without the extension that has looked at itself."""
    kernel = make_kernel(load=False)
    kernel.run("%unload_ext nothing")  # IPython makes this magic when it is first used
    kernel.run(LOOK)
    kernel.run("del between[:]\n" + LEAVE)
    return kernel


def looks(kernel: NotebookKernel) -> list[dict[str, str]]:
    return json.loads(kernel.run("print(json.dumps(between))").stream("stdout"))


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    return {
        place: (before.get(place), after.get(place))
        for place in before.keys() | after.keys()
        if before.get(place) != after.get(place)
    }


def assert_put_back(kernel: NotebookKernel) -> None:
    """The last look is like the first, but for threads that are just about to end."""
    first = looks(kernel)[0]

    def left() -> dict[str, tuple[Any, Any]]:
        kernel.run(LEAVE)
        return changes(first, looks(kernel)[-1])

    until(
        lambda: not [place for place in left() if place.startswith("threads")],
        timeout=5,
        message=f"the end of the threads of {left()}",
    )
    assert left() == {}


def test_loading_and_using_changes_what_these_tests_look_at(fresh: NotebookKernel) -> None:
    """Else they would prove nothing."""
    fresh.run("import matplotlib.pyplot\n" + LEAVE)
    fresh.run(LOAD + USE + LEAVE)
    _, before, after = looks(fresh)
    assert changes(before, after).keys() >= {
        "stdout", "stderr", "Thread.start", "time.sleep", "os.fork",
        "builtins.input", "capture.__enter__", "shell._showtraceback", "shell.run_cell",
        "display_pub.publish", "figures", "line magic bg_list", "cell magic background",
        "configurable BackgroundTasks", "kernel.do_shutdown",
        "attribute _ipytaskpersist", "threads ipytaskpersist-writer",
    }  # fmt: skip


def test_unloading_puts_everything_back(fresh: NotebookKernel) -> None:
    fresh.run(LOAD)
    fresh.run(USE)
    fresh.run(UNLOAD)
    assert_put_back(fresh)


def test_unloading_an_unused_extension_puts_everything_back(fresh: NotebookKernel) -> None:
    fresh.run(LOAD)
    fresh.run(UNLOAD)
    assert_put_back(fresh)


def test_unloading_in_the_cell_of_the_loading_puts_everything_back(fresh: NotebookKernel) -> None:
    fresh.run(LOAD + USE + UNLOAD)
    assert_put_back(fresh)


def test_unloading_in_the_cell_of_the_first_task_puts_everything_back(
    fresh: NotebookKernel,
) -> None:
    fresh.run(LOAD)
    fresh.run(USE + UNLOAD)
    assert_put_back(fresh)


def test_loading_again_works_and_unloads_again(fresh: NotebookKernel) -> None:
    for number in (1, 4, 7):
        fresh.run(LOAD)
        listed = fresh.run(USE + "get_ipython().run_line_magic('bg_list', '--json')")
        task = json.loads(listed.stream("stdout").partition("printed\n")[2])["tasks"][-3]
        assert (task["number"], task["name"], task["state"]) == (number, "printing", "completed")
        assert task["last_line"] == "printed"
        fresh.run(UNLOAD)
        assert_put_back(fresh)


def test_reloading_is_unloading_and_loading(fresh: NotebookKernel) -> None:
    fresh.run(LOAD)
    fresh.run(USE)
    fresh.run("%reload_ext ipytaskpersist")
    assert fresh.run("%bg_output printing").text.startswith("printed\n")
    fresh.run(USE)
    fresh.run(UNLOAD)
    assert_put_back(fresh)


@pytest.mark.parametrize("when", ["before", "after", "in a task"])
def test_matplotlib_is_put_back_whenever_it_was_imported(fresh: NotebookKernel, when: str) -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\n"
    if when == "before":
        fresh.run(plot)
    fresh.run(LOAD)
    fresh.run(USE)
    fresh.run(f"_run('background', 'plot', {plot!r})\n%bg_wait plot")
    if when == "after":
        fresh.run(plot)
    fresh.run(UNLOAD + "import matplotlib._pylab_helpers, matplotlib_inline.backend_inline")
    kinds = fresh.run(
        "print(type(matplotlib._pylab_helpers.Gcf.figs).__name__,"
        " type(matplotlib_inline.backend_inline.show).__name__)"
    )
    assert kinds.text == "OrderedDict function\n"
    drawn = fresh.run(plot)
    assert [output.output_type for output in drawn.outputs][-1] == "display_data"


def test_the_foreground_works_as_before(fresh: NotebookKernel) -> None:
    """What a cell prints, shows and raises goes to that cell, and nowhere else."""

    def run() -> list[Any]:
        cell = fresh.run(
            "import logging, subprocess, threading, warnings\nprint('out')\n"
            "print('err', file=sys.stderr)\nthread = threading.Thread(target=print, args=['in'])\n"
            "thread.start(); thread.join()\n"
            "!echo shell\n"
            "display({'text/plain': 'shown'}, raw=True)\n"
            "with IPython.utils.capture.capture_output() as captured: print('captured')\n"
            "print(captured.stdout.upper())\n'value'"
        )
        displays = [out.data["text/plain"] for out in cell.outputs if "data" in out]
        return [cell.stream("stdout"), cell.stream("stderr"), displays]

    before = run()
    assert before == ["out\nin\nshell\r\nCAPTURED\n\n", "err\n", ["shown", "'value'"]]
    fresh.run(LOAD)
    fresh.run(USE)
    assert run() == before
    fresh.run(UNLOAD)
    assert run() == before


def test_the_magics_are_gone(fresh: NotebookKernel) -> None:
    fresh.run(LOAD)
    fresh.run(UNLOAD)
    for typed in ("%bg_list", "%bg list", "%%background\n1", "%background 1"):
        cell = fresh.run(typed, check=False)
        assert cell.error
        assert "not found" in cell.text


def test_unloading_interrupts_running_tasks_and_keeps_what_they_printed(
    fresh: NotebookKernel,
) -> None:
    fresh.run(LOAD)
    fresh.run("%%background endless\nprint('begun')\nwhile True: time.sleep(0.01)")
    until(lambda: "begun" in fresh.run("%bg_output").text)
    fresh.run(UNLOAD)
    fresh.run(LOAD)
    (task,) = json.loads(fresh.run("%bg_list --json").stream("stdout"))["tasks"]
    assert (task["state"], task["reason"]) == ("interrupted", "extension unloaded")
    assert fresh.run("%bg_output").text == "begun\n"


def test_a_task_that_runs_on_after_unloading_prints_into_no_cell(fresh: NotebookKernel) -> None:
    fresh.run(LOAD)
    fresh.run(
        "go, done = threading.Event(), threading.Event()\n"
        "get_ipython().run_cell_magic('background', '', "
        '\'go.wait()\\nprint("stray")\\ndone.set()\\nprint("stray")\')'
    )
    fresh.run(UNLOAD)
    cell = fresh.run("go.set()\nprint(done.wait(10))")
    after: Cell = fresh.run("1")
    assert "stray" not in cell.text + after.text
    assert fresh.alive


def open_files(pid: int, state_dir: Path) -> list[str]:
    """Event loops, sockets, pipes and files of the store. IPython opens its history as it likes."""
    kinds = ("anon_inode:[eventpoll]", "socket:", "pipe:", str(state_dir))
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return [file for file in found if file.startswith(kinds)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_file_stays_open(fresh: NotebookKernel, state_dir: Path) -> None:
    fresh.run(LOAD)
    fresh.run(USE)
    fresh.run(UNLOAD)
    before = len(open_files(fresh.pid, state_dir))
    for _ in range(3):
        fresh.run(LOAD)
        fresh.run(USE)
        assert len(open_files(fresh.pid, state_dir)) > before
        fresh.run(UNLOAD)
    until(lambda: len(open_files(fresh.pid, state_dir)) <= before, timeout=5)


def test_a_kernel_ends_by_itself_while_a_task_runs(
    make_kernel: MakeKernel, state_dir: Path
) -> None:
    """A server kills one that is slow, and then nothing would say that it was shut down."""
    used = make_kernel()
    used.run(f"{USE}_run('background', '', 'import time; time.sleep(1000)')")
    used.shutdown()
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        (session,) = store.sessions.select(None)
    assert session.end_reason == "kernel shut down"
    assert dict(session.task_counts) == {"completed": 2, "failed": 1, "interrupted": 1}
