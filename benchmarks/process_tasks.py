"""What a Python task in a process of its own costs: until its first line, and in memory."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import LOAD, Bench
from benchmarks.commands import FEW, in_turns
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.output.replay import Cut, stream_bytes
from ipytaskpersist.store.tasks import Selection

IMPORT = "import time, numpy, pandas\nfrom benchmarks.inside_processes import *"
PROCESS = "%%background --process"
FIRST_LINE = f"{PROCESS}\npandas.Series([1.0, 2.0]).sum()\nprint(time.time())"
STDOUT = Cut((OutputKind.STDOUT,))
WARM_UPS = 3
IDLE_S = 3.0
"""How long a kernel and its supervisor are left alone after the warm-up."""
TASK_S = 600.0
PEERS = {
    "python_ms()": '`python -c "import pandas"`, until its end',
    "pooled_ms()": "a function in a warm `ProcessPoolExecutor(forkserver)`",
    "engine_ms()": "a function in a warm engine of ipyparallel",
    "submitted_ms()": "a function with submitit's local executor",
}
"""Each with a function of the kernel; the last takes its time."""
IDLE = f"{PROCESS}\npandas.Series([1.0]).sum()\nprint(os.getpid())\ntime.sleep(600)"
IDLE_PYTHON = "import pandas, time; pandas.Series([1.0]).sum(); print(flush=True); time.sleep(600)"


@contextmanager
def warm_kernel(bench: Bench, state: Path) -> Iterator[Kernel]:
    """A fresh kernel with numpy and pandas, which has run process tasks and come to rest."""
    with bench.kernel(state) as kernel:
        kernel.run(LOAD)
        kernel.run(IMPORT)
        for _ in range(WARM_UPS):
            run_task(kernel, FIRST_LINE)
        time.sleep(IDLE_S)
        yield kernel


def run_task(kernel: Kernel, cell: str) -> float:
    """Run a background cell until its task's end. Returns the seconds until the cell's reply."""
    reply = kernel.run(cell, TASK_S)
    if not reply.has_display:
        raise BenchmarkError("%%background showed no card")
    kernel.run("%bg_wait", TASK_S)
    return reply.seconds


def latest(state: Path) -> tuple[TaskRecord, list[float]]:
    """The latest task, which must have completed, and the numbers that it has printed."""
    with stores.opened(state) as store:
        (task,) = store.tasks.select(Selection(limit=1))
        text = b"".join(stream_bytes(store, task.key, STDOUT)).decode()
    if task.state is not TaskState.COMPLETED:
        raise BenchmarkError(f"a task is {task.state}, {task.reason}: {text}")
    return task, [float(each) for each in text.split()]


# Until the first line, and a whole round.


def process_start(bench: Bench) -> list[Row]:
    """From the launch of a cell that uses pandas until its first line, beside other workers."""
    state, count = bench.new_state(), bench.scale.process_launches
    bench.say(f"launching {count} process tasks, and functions in other workers")
    calls = [call for call in PEERS if call != "engine_ms()" or has_ipyparallel()]
    with warm_kernel(bench, state) as kernel:
        ours = tuple(first_line_ms(kernel, state) for _ in range(count))
        samples = in_turns(kernel, calls, count, rare_rounds=FEW)
    rows = {call: peer_row(what, samples.get(call)) for call, what in PEERS.items()}
    what = "from the launch of a `--process` cell to its first line"
    return [
        Row("process-start", what, "ms", ours).at_most(50),
        Row("process-start", "the same, beside a new interpreter", "ms", ours).at_most_times(
            0.1, rows["python_ms()"], '`python -c "import pandas"`'
        ),
        *rows.values(),
    ]


def has_ipyparallel() -> bool:
    """Whether ipyparallel can be measured."""
    return importlib.util.find_spec("ipyparallel") is not None


def peer_row(what: str, samples: tuple[float, ...] | None) -> Row:
    """The row of another worker, which may not be installed."""
    if samples is None:
        return Row("process-start", what, "ms", problem="not installed")
    return Row("process-start", what, "ms", samples)


def first_line_ms(kernel: Kernel, state: Path) -> float:
    """How long after the request the first line of a task is printed."""
    kernel.settle()
    launched = time.time()
    run_task(kernel, FIRST_LINE)
    _task, (printed,) = latest(state)
    return (printed - launched) * 1e3


def process_round(bench: Bench) -> list[Row]:
    """A small cell: launched, waited for, and its variable back in the notebook."""
    count = bench.scale.process_launches
    bench.say(f"running {count} small process tasks")
    with warm_kernel(bench, bench.new_state()) as kernel:
        kernel.run("value = 1")
        rounds = tuple(round_ms(kernel, number) for number in range(count))
    what = "a small `--process` cell, `%bg_wait`, and its variable back"
    return [Row("process-round", what, "ms", rounds).at_most(150)]


def round_ms(kernel: Kernel, number: int) -> float:
    """The three cells' time together."""
    kernel.settle()
    begun = time.perf_counter()
    run_task(kernel, f"{PROCESS}\ntotal = value + {number}")
    kernel.run(f"assert total == value + {number}")
    return (time.perf_counter() - begun) * 1e3


# The memory of tasks that wait.


def process_memory(bench: Bench) -> list[Row]:
    """The private memory of tasks that have used pandas and now wait."""
    state, count = bench.new_state(), bench.scale.idle_tasks
    bench.say(f"keeping {count} process tasks waiting")
    with warm_kernel(bench, state) as kernel:
        kernel.run("import os")
        for _ in range(count):
            kernel.run(IDLE)
        ours = tuple(private_mb(pid) for pid in waiting(state, count))
    what = f"{count} idle tasks that use pandas: private memory of each"
    return [
        Row("process-memory", what, "MB", ours).at_most(20),
        Row("process-memory", "`python` that does the same", "MB", (python_private_mb(),)),
    ]


def waiting(state: Path, count: int) -> list[int]:
    """The pids of so many running tasks, once each has printed its own."""
    deadline = time.monotonic() + TASK_S
    while time.monotonic() < deadline:
        with stores.opened(state) as store:
            tasks = store.tasks.select(Selection(states=[TaskState.RUNNING]))
            texts = [b"".join(stream_bytes(store, task.key, STDOUT)) for task in tasks]
        if len(texts) == count and all(texts):
            return [int(text) for text in texts]
        time.sleep(0.1)
    raise BenchmarkError(f"{count} tasks were launched, and did not all begin")


def python_private_mb() -> float:
    """The same of an interpreter that has imported pandas."""
    with subprocess.Popen(
        [sys.executable, "-c", IDLE_PYTHON], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None, "it was started with a pipe"
        process.stdout.readline()
        try:
            return private_mb(process.pid)
        finally:
            process.kill()


def private_mb(pid: int) -> float:
    """The memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3
