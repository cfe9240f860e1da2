"""Wherever a stop button or a cancellation hits, others can write, and every task is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kernels import Cell, NotebookKernel, until
from locks import WRITING, held
from programs import run_python

INJECTOR = '''
import atexit, signal, subprocess, sys, threading
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
import ipytaskpersist
from ipytaskpersist.active import active_task
from ipytaskpersist.errors import TaskCancelled

ROOT = Path(ipytaskpersist.__file__).parent
HIT = {str(ROOT / name) for name in (
    "store/database.py", "store/tasks.py", "store/sessions.py", "recorder.py", "launcher.py",
    "interruption.py", "runners/thread.py", "runners/process.py",
)}
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")
manager = ipytaskpersist.manager.current()


class Injector:
    """Hits the calling thread at the so-manyth bytecode that it runs in the modules."""

    def __init__(self, at, hit):
        self.left, self.hit, self.was_hit = at, hit, False

    def __enter__(self):
        sys.settrace(self.call)

    def __exit__(self, *_exception):
        sys.settrace(None)

    def call(self, frame, event, _arg):
        if frame.f_code.co_filename not in HIT:
            return None
        frame.f_trace_opcodes = True
        return self.step

    def step(self, frame, event, _arg):
        if event == "opcode" and not self.was_hit:
            self.left -= 1
            if self.left < 0:
                self.was_hit = True
                self.hit()
        return self.step


OTHER = """
import sys
from ipytaskpersist.store.database import sqlite3
other = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)
for _line in sys.stdin:
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    print("could write", flush=True)
"""


def raise_here():
    """As a cancellation does that has lost its patience: it does not look where it hits."""
    cancellation = active_task.get().cancellation
    cancellation.is_asked = cancellation._is_due = True
    if not cancellation._held:
        cancellation._set_exception(TaskCancelled)
        cancellation._note_raised()


def check_store():
    """Another program can write."""
    other.stdin.write("\\n")
    other.stdin.flush()
    assert other.stdout.readline() == "could write\\n"


def check_tasks():
    """Every task that is recorded comes to its end."""
    tasks = manager.wait(manager.select(Selection()), timeout_s=30)
    states = {task.state.value for task in tasks}
    assert states <= {"completed", "cancelled"}, [(t.label, t.state, t.reason) for t in tasks]
    return len(tasks)


from ipytaskpersist.store import Selection
import ipytaskpersist.manager


def launch():
    return ipytaskpersist.background("1 + 1")


launch().wait(30)
other = subprocess.Popen(
    [sys.executable, "-c", OTHER, str(manager.store.database.path)],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
atexit.register(other.stdin.close)
'''

STOP = (
    INJECTOR
    + """
step, start = map(int, sys.argv[1:3])
at, interrupted, launched = start, 0, 0
while True:
    injector = Injector(at, lambda: signal.raise_signal(signal.SIGINT))
    try:
        with injector:
            launch()
            launched += 1
    except KeyboardInterrupt:
        interrupted += 1
    if not injector.was_hit:
        break
    check_store()
    at += step
count = check_tasks()
assert launched <= count - 1 <= launched + interrupted
print(f"{interrupted} launches of {interrupted + launched} interrupted, {count} tasks")
"""
)

CANCEL = (
    INJECTOR
    + """
step, start = map(int, sys.argv[1:3])
at = start
hits = []
shell.user_ns.update(Injector=Injector, raise_here=raise_here, hits=hits)
while True:
    shell.user_ns["at"] = at
    task = ipytaskpersist.background(
        "import ipytaskpersist\\n"
        "injector = Injector(at, raise_here)\\n"
        "try:\\n"
        "    with injector:\\n"
        "        ipytaskpersist.background('2 + 2')\\n"
        "finally:\\n"
        "    hits.append(injector.was_hit)\\n"
    )
    assert task.wait(30), task.state
    if not hits[-1]:
        break
    check_store()
    at += step
print(f"{len(hits)} tasks cancelled, {check_tasks()} tasks")
"""
)


@pytest.mark.parametrize("start", range(3))
@pytest.mark.parametrize("program", [STOP, CANCEL], ids=["stop button", "cancellation"])
def test_a_launch_that_is_hit_at_any_bytecode_locks_nothing_and_leaves_no_task_behind(
    program: str, start: int, tmp_path: Path
) -> None:
    """Each start takes every ninth bytecode; the three together with their steps, every third."""
    ended = run_python(program, tmp_path / "state", "9", str(3 * start))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert " tasks" in ended.stdout


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[NotebookKernel]:
    with NotebookKernel(tmp_path / "state") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        kernel.run("%background 1\n%bg_wait")
        yield kernel


def stopped(kernel: NotebookKernel, cell: Cell) -> bool:
    """Press the stop button; it may have been too early to hit what the cell waits for."""
    kernel.interrupt()
    with suppress(AssertionError):
        cell.wait(timeout=1, check=False)
    return cell.done


@pytest.mark.parametrize("flags", ["", "--process", "--shell"])
def test_a_stop_button_while_another_program_has_the_lock_is_heard_and_locks_nothing(
    kernel: NotebookKernel, tmp_path: Path, flags: str
) -> None:
    kernel.run("%%background --process\n1")
    kernel.run("%bg_wait")
    with held(tmp_path / "state", WRITING):
        cell = kernel.start(f"%%background {flags} stopped\ntrue = 1")
        until(lambda: stopped(kernel, cell), timeout=10, message="the end of a stopped cell")
        assert cell.error is not None
        assert cell.error[0] == "KeyboardInterrupt"
    with held(tmp_path / "state", WRITING):
        pass  # another program has the lock at once
    kernel.run("%%background after\n1")
    kernel.run("%bg_wait")
    tasks = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    assert {task["state"] for task in tasks} == {"completed"}
    assert "stopped" not in {task["name"] for task in tasks}
