"""What a running task does now, whatever it does: seen by another process, without stopping it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from kernels import NotebookKernel, end_processes_of, until
from typed import Notebook

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.inspection import listening
from ipytaskpersist.inspection.looks import Look
from ipytaskpersist.inspection.stacks import ProcessStacks, Stack
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

pytestmark = pytest.mark.skipif(not listening.CAN_BE_ASKED, reason="asking needs Linux")

CELLS = {
    "pure": "def spin(n):\n    while True:\n        n += 1\n\nspin(0)",
    "lock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "in_c": "sum(range(10**12))",
    "regex": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "numpy": "import numpy\na = numpy.ones((3000, 3000))\nwhile True:\n    a @ a",
    "command": "import subprocess\nsubprocess.run(['sleep', '1000'])",
    "deadlock": (
        "import threading\n"
        "first, second = threading.Lock(), threading.Lock()\n"
        "both = threading.Barrier(2)\n"
        "def take(one, other):\n"
        "    with one:\n"
        "        both.wait()\n"
        "        with other:\n"
        "            pass\n"
        "threads = [threading.Thread(target=take, args=each, name=f'taker-{n}')\n"
        "    for n, each in enumerate([(first, second), (second, first)])]\n"
        "for each in threads: each.start()\n"
        "for each in threads: each.join()"
    ),
    "coroutine": (
        "import asyncio\n"
        "async def inner():\n"
        "    await asyncio.sleep(1000)\n"
        "async def outer():\n"
        "    await inner()\n"
        "task = asyncio.create_task(outer(), name='waits')\n"
        "await task"
    ),
    "generator": (
        "import time\n"
        "def numbers():\n"
        "    while True:\n"
        "        time.sleep(1000)\n"
        "        yield 1\n"
        "list(numbers())"
    ),
    "forks": (
        "import multiprocessing, time\n"
        "def work():\n"
        "    time.sleep(1000)\n"
        "child = multiprocessing.get_context('fork').Process(target=work)\n"
        "child.start()\n"
        "child.join()"
    ),
}
STARTS = """import os, subprocess, time
time.sleep(0.3)
for _ in range(40):
    subprocess.run(["true"], check=True)
    subprocess.run(["true"], check=True, preexec_fn=os.getpid)
    child = os.fork()
    if not child:
        os.closerange(3, 1000)
        os.execv("/bin/true", ["true"])
    assert os.waitpid(child, 0)[1] == 0
"""
"""Starts programs in each way, none of which a question must end."""
WHERE = {
    "pure": (2, 3),
    "lock": (4,),
    "in_c": (1,),
    "regex": (2,),
    "numpy": (4,),
    "command": (2,),
    "deadlock": (12,),
    "coroutine": (7,),
    "generator": (4,),
    "forks": (6,),
}
"""The lines of the cells at which they are; of `pure`, one of two."""
BUSY = ("pure", "in_c", "regex", "numpy")
IN_THREADS = ("lock", "command", "deadlock", "coroutine", "generator")
ENOUGH_S = 0.05


class Running:
    """Tasks that run, and this process beside their kernel."""

    def __init__(self, notebook: Notebook, manager: BackgroundTasks) -> None:
        self.notebook = notebook
        self.manager = manager

    def task(self, name: str) -> TaskRecord:
        tasks = self.manager.store.tasks.select(Selection(None))
        return next(task for task in reversed(tasks) if task.name == name)

    def look(self, name: str) -> Look:
        return self.manager.inspecting.look(self.task(name))

    def cell_of(self, name: str) -> Stack:
        """The stack of the cell of a task, once it is where it stays."""

        def find() -> Stack | None:
            found = look()
            first = found.processes[0].stacks[:1] if found else ()
            there = [each for each in first if line_of(each) in where]
            return there[0] if there else None

        def look() -> Look | None:
            with suppress(InvalidRequest):  # it has no process yet
                return self.look(name)
            return None

        where = WHERE[name.removeprefix("in a thread ")]
        return until(find, message=f"{name} at its line")

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Have a task keep a processor busy for as long as the block takes."""
        if name in BUSY:
            self.notebook.kernel.run(f"%%background --process {name}\n{CELLS[name]}")
        yield
        if name in BUSY:
            self.manager.changes.cancel(self.task(name))


def line_of(stack: Stack) -> int:
    return lines_of(stack)[-1]


def lines_of(stack: Stack) -> list[int]:
    return [frame.line for frame in stack.frames if frame.is_cell] or [0]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("stacks")
    state, path = folder / "state", folder / "stacks.ipynb"
    try:
        with NotebookKernel(state, notebook=path) as kernel:
            kernel.run("%load_ext ipytaskpersist")
            for name in IN_THREADS:
                kernel.run(f"%%background --thread 'in a thread {name}'\n{CELLS[name]}")
            for name, source in CELLS.items():
                if name not in BUSY:
                    kernel.run(f"%%background --process {name}\n{source}")
            store = TaskStore(StateDirectory(state))
            with closing(BackgroundTasks(store=store)) as manager:
                yield Running(Notebook(kernel, state, path), manager)
    finally:
        end_processes_of(state)


@pytest.mark.parametrize("name", [*CELLS, *(f"in a thread {name}" for name in IN_THREADS)])
def test_a_task_says_at_which_line_of_its_cell_it_is(running: Running, name: str) -> None:
    with running.busy(name):
        line = line_of(running.cell_of(name))
        source = CELLS[name.removeprefix("in a thread ")].splitlines()[line - 1]
        if name != "pure":
            assert f"----> {line} {source}" in str(running.look(name))


def test_both_threads_of_a_deadlock_are_shown_where_they_wait(running: Running) -> None:
    for name in ("deadlock", "in a thread deadlock"):
        running.cell_of(name)
        stacks = running.look(name).processes[0].stacks
        assert sorted(map(line_of, stacks)) == [7, 7, 12]


def test_coroutines_are_shown_with_what_they_await(running: Running) -> None:
    running.cell_of("coroutine")
    stacks = running.look("coroutine").processes[0].stacks
    assert [lines_of(each) for each in stacks if "waits" in each.name] == [[5, 3]]


def test_children_are_shown_as_processes_and_forks_with_their_stacks(running: Running) -> None:
    running.cell_of("command")
    _own, command = running.look("command").processes
    assert (command.command, command.stacks) == ("sleep 1000", ())
    fork = until(lambda: running.look("forks").processes[1:])[0]
    assert line_of(fork.stacks[0]) == 3


def test_a_look_takes_less_than_it_may(running: Running) -> None:
    for name in ("in_c", "pure", "deadlock", "coroutine"):
        with running.busy(name):
            running.cell_of(name)
            assert min(running.look(name).took_s for _again in range(5)) < ENOUGH_S


def test_a_stopped_process_is_said_to_be_stopped_and_answers_when_it_goes_on(
    running: Running,
) -> None:
    pid = running.look("generator").processes[0].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        (stopped,) = until(
            lambda: [each for each in running.look("generator").processes if not each.stacks]
        )
        assert (stopped.state, "it is stopped" in stopped.note) == ("stopped", True)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert running.cell_of("generator")


def test_a_program_that_takes_the_place_of_the_process_is_not_ended_by_the_question(
    running: Running,
) -> None:
    running.notebook.kernel.run(
        "%%background --process replaced\nimport os\nos.execv('/bin/sleep', ['sleep', '1000'])"
    )

    def replaced() -> ProcessStacks | None:
        with suppress(InvalidRequest):  # it has no process yet
            (process,) = running.look("replaced").processes
            return process if process.command == "sleep 1000" else None
        return None

    until(replaced)
    for _again in range(10):
        (process,) = running.look("replaced").processes
        assert (process.stacks, process.note != "") == ((), True)
    assert running.task("replaced").state is TaskState.RUNNING


def test_a_task_that_is_asked_from_its_start_to_its_end_completes_with_its_programs(
    running: Running,
) -> None:
    running.notebook.kernel.run(f"%%background --process --fresh asked\n{STARTS}")
    seen = set()
    while not (task := running.task("asked")).state.is_final:
        with suppress(InvalidRequest):  # it is just starting, or ending
            seen.add(bool(running.look("asked").processes[0].stacks))
    assert (task.state, seen) == (TaskState.COMPLETED, {False, True})


def test_a_shell_task_is_shown_as_its_processes(running: Running) -> None:
    running.notebook.kernel.run("%%background --shell nested\nsleep 1000 | cat")
    until(lambda: len(running.look("nested").processes) == 3)
    shell, *others = running.look("nested").processes
    assert {each.command for each in others} == {"sleep 1000", "cat"}
    assert {each.parent for each in others} == {shell.pid}
    assert not any(each.stacks or each.note for each in (shell, *others))
    waits_in = {each.command: each.waits_in for each in others}
    assert "nanosleep" in (waits_in["sleep 1000"] or "nanosleep")  # the system may not tell


def test_looks_in_a_row_say_what_has_moved(running: Running) -> None:
    running.cell_of("generator")
    shown = running.notebook.underscored("stack", "generator", "--times", "2", "--every", "0.1s")
    assert "----> 4         time.sleep(1000)" in shown.stdout
    assert "nothing has moved, and no processor time was used" in shown.stdout
    with running.busy("in_c"):
        running.cell_of("in_c")
        still = running.notebook.in_terminal("stack", "in_c", "--times", "2", "--every", "0.3s")
    assert "nothing has moved, but " in still.stdout
    document = running.notebook.in_terminal("stack", "lock", "--times", "2", "--json").json()
    assert document["name"] == "lock"
    for look in document["looks"]:
        (process,) = look["processes"]
        assert process["threads"][0]["frames"][-1]["code"] == "lock.acquire()"


def test_what_does_not_run_has_no_stack_and_says_why(running: Running) -> None:
    notebook = running.notebook
    notebook.finish("1", "ended")
    assert "has ended (completed), so it does nothing now" in notebook.spaced("stack", "ended").text
    notebook.kernel.run("%%background --process --in 1h later\n1")
    assert "(later) is pending: " in notebook.spaced("stack", "later").text
