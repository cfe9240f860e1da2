"""Wherever a stop button or a cancellation hits, others can write, and every task is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import NotebookKernel
from locks import WRITING, held
from programs import run_python

INJECTOR = '''
import atexit, os, signal, subprocess, sys, threading
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
import ipytaskpersist
from ipytaskpersist.running.running_task import active_task
from ipytaskpersist.errors import TaskCancelled

ROOT = Path(ipytaskpersist.__file__).parent
HIT = {str(ROOT / name) for name in (
    "store/file/database.py", "store/tasks.py", "store/sessions.py", "output/recorder.py",
    "session/launcher.py", "running/interruption.py", "runners/thread.py", "runners/process.py",
)}
assert all(map(os.path.exists, HIT))
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")
manager = ipytaskpersist.session.manager.current()


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
                sys.settrace(None)
                self.hit()
        return self.step


OTHER = """
import sys
from ipytaskpersist.store.file.database import sqlite3
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
    tasks = manager.waiting.wait(manager.tasks.select(Selection()), timeout_s=30)
    states = {task.state.value for task in tasks}
    assert states <= {"completed", "cancelled"}, [(t.label, t.state, t.reason) for t in tasks]
    return len(tasks)


from ipytaskpersist.store.tasks import Selection
import ipytaskpersist.session.manager


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


VERBS = (
    INJECTOR.replace(
        "HIT = {",
        "HIT = {*map(str, (ROOT / 'store').rglob('*.py')), str(ROOT / 'history/archives.py')} | {",
    )
    + """
import ipytaskpersist as bg

step, start, verb = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def archive(task):
    manager.archives.archive([task] if not task.archive else [])


def unarchive(task):
    if not manager.tasks.find(task.id).archive:
        archive(task)
    return lambda: manager.archives.unarchive([manager.tasks.find(task.id)])


def delete(task):
    manager.changes.delete([task])


PREPARED = {
    "tag": lambda task: lambda: manager.store.tasks.tag(task.key, ["seen"]),
    "cancel": lambda task: lambda: manager.changes.cancel(manager.tasks.find(task.id)),
    "archive": lambda task: lambda: archive(manager.tasks.find(task.id)),
    "unarchive": unarchive,
    "delete": lambda task: lambda: delete(task),
}
at, interrupted, count = start, 0, 0
source = "print('whole')" + ("\\nimport time\\ntime.sleep(60)" if verb == "cancel" else "")
while True:
    task = ipytaskpersist.background(source)
    if verb != "cancel":
        assert task.wait(30)
    run = PREPARED[verb](manager.tasks.find(task.id))
    injector = Injector(at, lambda: signal.raise_signal(signal.SIGINT))
    try:
        with injector:
            run()
    except KeyboardInterrupt:
        interrupted += 1
    count += 1
    check_store()
    everywhere = Selection()
    found = [*manager.tasks.select(everywhere), *manager.tasks.select_archived(everywhere)]
    places = [(each.archive, each.state.value) for each in found if each.id == task.id]
    assert len(places) == 1 or (verb == "delete" and not places), places
    if places:
        assert bg.task(task.id).stdout in (["whole\\n"] if verb != "cancel" else ["", "whole\\n"])
        if verb == "cancel":
            manager.changes.cancel(manager.tasks.find(task.id))
            assert task.wait(30) and task.state.value == "cancelled", task.state
        else:
            PREPARED[verb](manager.tasks.find(task.id))()  # it can be given again
        if verb != "delete":
            manager.changes.delete([manager.tasks.find(task.id)])
    if not injector.was_hit:
        break
    at += step
print(f"{interrupted} of {count} interrupted")
"""
)


@pytest.mark.parametrize(
    ("verb", "step"),
    [("tag", 9), ("cancel", 31), ("archive", 199), ("unarchive", 199), ("delete", 31)],
)
def test_a_verb_that_is_hit_at_any_bytecode_leaves_each_task_whole_and_in_one_place(
    verb: str, step: int, tmp_path: Path
) -> None:
    """Each verb is hit at every so-manyth bytecode of the store, from the first to the last."""
    ended = run_python(VERBS, tmp_path / "state", str(step), "0", verb)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert " interrupted" in ended.stdout


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("program", [STOP, CANCEL], ids=["stop button", "cancellation"])
def test_a_launch_that_is_hit_at_any_bytecode_locks_nothing_and_leaves_no_task_behind(
    program: str, start: int, tmp_path: Path
) -> None:
    """Each start takes every tenth bytecode; the two together, every fifth."""
    ended = run_python(program, tmp_path / "state", "10", str(start))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert " tasks" in ended.stdout


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[NotebookKernel]:
    with NotebookKernel(tmp_path / "state") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        kernel.run("%background 1\n%bg_wait")
        yield kernel


def test_a_stop_button_while_another_program_has_the_lock_is_heard_and_locks_nothing(
    kernel: NotebookKernel, tmp_path: Path
) -> None:
    kernel.run("%%background --process\n1")
    kernel.run("%bg_wait")
    for flags in ("", "--process", "--shell"):
        with held(tmp_path / "state", WRITING):
            # An interrupt before the cell runs would be the kernel's own, which then drops the
            # cell.
            named = f"{flags} stopped"
            launch = f"get_ipython().run_cell_magic('background', {named!r}, 'true = 1')"
            cell = kernel.start(f"print('begun', flush=True)\n{launch}")
            kernel.take_until(lambda cell=cell: "begun" in cell.text, 60, "the cell's beginning")
            kernel.interrupt()
            cell.wait(check=False)
            assert cell.error is not None, flags
            assert cell.error[0] == "KeyboardInterrupt", flags
        with held(tmp_path / "state", WRITING):
            pass  # another program has the lock at once
        kernel.run("%%background after\n1")
        kernel.run("%bg_wait")
        tasks = json.loads(kernel.run("%bg_list --json").text)["tasks"]
        assert {task["state"] for task in tasks} == {"completed"}, flags
        assert "stopped" not in {task["name"] for task in tasks}, flags
