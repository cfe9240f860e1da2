"""Many kernels at once on one store: nothing is lost, and nobody is told that it is locked."""

from __future__ import annotations

import json
import os
import statistics
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from kernels import NotebookKernel
from programs import run_together

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.output.replay import Cut, stream_bytes
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

KERNELS = int(os.environ.get("IPYTASKPERSIST_KERNELS", "2"))
"""How many are alive at the same time; `make stress` says 100."""
SESSIONS = 6
TASKS = 4
LINES = 200

pytestmark = pytest.mark.timeout(1800)

SESSION = f"""
import os, sys
place = sys.argv[1]
os.environ["IPYTASKPERSIST_NOTEBOOK"] = f"/{{place}}.ipynb"
from IPython.core.interactiveshell import InteractiveShell
import ipytaskpersist as bg
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")
start_together()
tasks = [
    bg.background(f"for line in range({LINES}): print({{place}}, {{number}}, line)")
    for number in range({TASKS})
]
assert all(task.wait(60) for task in tasks)
print(sorted(task.number for task in tasks))
"""

LAUNCH = f"""
import json, time, ipytaskpersist as bg
took, tasks = [], []
for number in range({TASKS}):
    begun = time.perf_counter()
    tasks.append(bg.background(
        f"for line in range({LINES}): print({{place}}, {{number}}, line)",
        process=False) if number % 2 else bg.background(
        f"for line in $(seq 0 {LINES - 1}); do echo {{place}} {{number}} $line; done", shell=True))
    took.append(time.perf_counter() - begun)
assert all(task.wait(600) for task in tasks), tasks
print(json.dumps(took))
"""


def lines_of(store: TaskStore, key: int) -> list[str]:
    stdout = b"".join(stream_bytes(store, key, Cut((OutputKind.STDOUT,))))
    return stdout.decode().splitlines()


def check(state_dir: Path, places: int) -> None:
    """Every task of every place is there, with a number of its own and every line."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        tasks = store.tasks.select(Selection())
        assert len(tasks) == places * TASKS
        assert {task.state for task in tasks} == {TaskState.COMPLETED}
        assert len({(task.notebook_key, task.number) for task in tasks}) == len(tasks)
        said = []
        for task in tasks:
            lines = [line.split() for line in lines_of(store, task.key)]
            assert [int(line) for _place, _number, line in lines] == [*range(LINES)]
            assert len({(place, number) for place, number, _line in lines}) == 1
            said.append(tuple(lines[0][:2]))
        assert len(set(said)) == len(tasks)
        assert store.database.row("PRAGMA integrity_check")[0] == "ok"
    problems = StateDirectory(state_dir).problems
    # That others keep the store busy for seconds is true of so many, and may be said.
    assert not problems.exists() or "output were lost" not in problems.read_text()


def test_many_sessions_at_once_lose_nothing(state_dir: Path) -> None:
    for ended in run_together(SESSION, state_dir, SESSIONS):
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines() == [str([*range(1, TASKS + 1)])]
        assert "locked" not in ended.stderr
    check(state_dir, SESSIONS)


def test_many_kernels_at_once_lose_nothing(state_dir: Path) -> None:
    """All are alive before the first one launches anything, and until the last one has ended."""
    with ExitStack() as alive:
        begun = time.perf_counter()
        kernels = [
            alive.enter_context(NotebookKernel(state_dir, notebook=f"/{place}.ipynb"))
            for place in range(KERNELS)
        ]
        for kernel in kernels:
            kernel.run("%load_ext ipytaskpersist", timeout=600)
        all_alive_s = time.perf_counter() - begun
        begun = time.perf_counter()
        cells = [kernel.start(f"place = {place}\n{LAUNCH}") for place, kernel in enumerate(kernels)]
        texts = [cell.wait(1200).text for cell in cells]
        all_ended_s = time.perf_counter() - begun
        assert all(kernel.alive for kernel in kernels)
        assert not [text for text in texts if "locked" in text]
        took = sorted(took for text in texts for took in json.loads(text.splitlines()[-1]))
        print(
            f"{KERNELS} kernels alive after {all_alive_s:.1f} s; {len(took)} tasks ended after "
            f"{all_ended_s:.1f} s; a launch took {statistics.median(took) * 1000:.1f} ms in the "
            f"median, {took[int(len(took) * 0.95)] * 1000:.1f} ms at 95 %, "
            f"{took[-1] * 1000:.1f} ms at most"
        )
    check(state_dir, KERNELS)
