"""What it costs to look into running tasks, and to watch what they use."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.commands import supervised_kernel
from benchmarks.results import BenchmarkError, Row
from benchmarks.supervising import WATCHES, core_percent, supervisor_of, wait_until_running
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore

CELLS = {
    "a loop in pure Python": "while True:\n    pass",
    "one call in C that keeps the interpreter": "sum(range(10**12))",
    "50 threads that wait": (
        "import threading\nwait = threading.Event().wait\n"
        "for _ in range(50):\n    threading.Thread(target=wait).start()\nwait()"
    ),
}
LOOKS = 20
WATCHED = 50
WORKS = "while sleep 0.5; do :; done"
START_S = 60.0
LONG_S = 20.0
FAMILY_S = 12.0
"""By then the supervisor has looked for all processes of its tasks."""


def stack(bench: Bench) -> list[Row]:
    """How long a look at what a process task does takes, from another process."""
    rows = []
    for what, source in CELLS.items():
        bench.say(f"looking at {what}")
        state = bench.new_state()
        with supervised_kernel(bench, state) as kernel:
            kernel.run(f"%%background --process looked_at\n{source}")
            samples = looks_ms(state)
        row = Row("stack", f"a look at a process task: {what}", "ms", samples)
        rows.append(row.at_most(50))
    return rows


def looks_ms(state: Path) -> tuple[float, ...]:
    """How long each of some looks at the latest task takes, once it answers."""
    samples: list[float] = []
    deadline = time.monotonic() + START_S
    store = TaskStore(StateDirectory(state)).open()
    with closing(BackgroundTasks(store=store)) as manager:
        (task,) = store.tasks.live_of_name(1, "looked_at")
        while len(samples) < LOOKS:
            if time.monotonic() > deadline:
                raise BenchmarkError("the task does not say what it does")
            begun = time.perf_counter()
            with suppress(InvalidRequest):
                if manager.inspecting.look(task).processes[0].stacks:
                    samples.append((time.perf_counter() - begun) * 1e3)
            time.sleep(0.1)
    return tuple(samples)


def top(bench: Bench) -> list[Row]:
    """What it costs a supervisor to watch what its tasks use, while they do something."""
    state = bench.new_state()
    bench.say(f"watching the supervisor of {WATCHED} tasks")
    with supervised_kernel(bench, state) as kernel:
        process = supervisor_of(state)
        kernel.value(f"len(launch({WORKS!r}, {WATCHED}))")
        wait_until_running(state, WATCHED)
        time.sleep(FAMILY_S)
        shares = tuple(core_percent(process, LONG_S) for _ in range(WATCHES))
    what = f"a supervisor of {WATCHED} tasks that start a process each half second: share of a core"
    return [Row("top", what, "%", shares).at_most(0.5)]
