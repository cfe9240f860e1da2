"""What running commands as background tasks costs: how soon, how many, and how much they print."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import LOAD, Bench
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist import outputs
from ipytaskpersist.records import TaskState
from ipytaskpersist.store import Selection, TaskStore

IMPORT = "from benchmarks.inside_commands import *"
FEW = 4
"""How many of what takes a second or more each."""
MB = 1_000_000
COMPARE_BYTES = 1_000_000


@contextmanager
def supervised_kernel(bench: Bench, state: Path) -> Iterator[Kernel]:
    """A fresh kernel whose supervisor runs and has had a task already."""
    with bench.kernel(state) as kernel:
        kernel.run(LOAD)
        kernel.run(IMPORT)
        kernel.value("tasks_seconds('true')")
        yield kernel


# How soon.


def start(bench: Bench) -> list[Row]:
    """How long after its launch a command begins to run, in each way."""
    calls = ("task_start_ms()", "child_start_ms()", "bash_start_ms()", "submitted_start_ms()")
    task, child, bash, submitted = calls
    bench.say(f"starting {bench.scale.starts} commands in each way")
    samples: dict[str, list[float]] = {call: [] for call in calls}
    with supervised_kernel(bench, bench.new_state()) as kernel:
        for turn in range(bench.scale.starts):
            for call in calls if turn < FEW else calls[:-1]:
                kernel.settle()
                samples[call].append(kernel.value(call))
    from_launch = "from launch to the command's start: "
    ours = Row("start", f"{from_launch}a shell task", "ms", tuple(samples[task])).at_most(30)
    others = {
        child: "`subprocess.run(…, shell=True)`",
        bash: "`%%bash --bg`",
        submitted: "a function with submitit's local executor",
    }
    return [
        ours,
        *(Row("start", from_launch + w, "ms", tuple(samples[c])) for c, w in others.items()),
    ]


# How many.


def many(bench: Bench) -> list[Row]:
    """How long a great many commands take, in each way."""
    count = bench.scale.commands
    ours = f"tasks_seconds('true', {count})"
    loop = f"loop_seconds({count}, shell=True)"
    bare = f"loop_seconds({count}, shell=False)"
    bash = f"bash_seconds({count})"
    submitted = f"submitted_seconds({FEW})"
    bench.say(f"running `true` {count:,} times in each way")
    samples: dict[str, list[float]] = {call: [] for call in (ours, loop, bare, bash, submitted)}
    state = bench.new_state()
    with supervised_kernel(bench, state) as kernel:
        for turn in range(bench.scale.command_loops):
            for call in samples if turn == 0 else (ours, loop, bare, bash):
                kernel.settle()
                samples[call].append(kernel.value(call))
    check_completed(state, count * bench.scale.command_loops + 1)
    times = {call: tuple(taken) for call, taken in samples.items()}
    usual = Row(
        "many", f'a loop of {count:,} `subprocess.run("true", shell=True)`', "s", times[loop]
    )
    what = f"{count:,} shell tasks of `true`, first launch to last exit code stored"
    return [
        Row("many", what, "s", times[ours]).at_most_times(3, usual, "the loop through a shell"),
        usual,
        Row("many", f'a loop of {count:,} `subprocess.run(["true"])`', "s", times[bare]),
        Row("many", f"{count:,} `%%bash --bg` of `true`, nothing recorded", "s", times[bash]),
        Row("many", f"only {FEW} functions with submitit's local executor", "s", times[submitted]),
    ]


def check_completed(state: Path, expected: int) -> None:
    """Make sure that every task is in the store with its exit code."""
    with stores.opened(state) as store:
        tasks = store.tasks.select(Selection(states=[TaskState.COMPLETED]))
    if len(tasks) != expected or any(task.exit_code != 0 for task in tasks):
        raise BenchmarkError(f"{expected} tasks were launched, {len(tasks)} completed")


# How much.


@dataclass
class Copies:
    """How long it took to keep a command's output, and in how much room, run by run."""

    task_s: list[float] = field(default_factory=list)
    pipe_s: list[float] = field(default_factory=list)
    stored_mb: list[float] = field(default_factory=list)
    file_mb: list[float] = field(default_factory=list)

    def rows(self, benchmark: str, what: str, limit: float) -> tuple[Row, Row]:
        """The time as a task, held against the time through a pipe into a file."""
        pipe = f"the same, piped through `cat` into a file of {self.file_mb[0]:,.0f} MB"
        usual = Row(benchmark, pipe, "s", tuple(self.pipe_s))
        ours = Row(benchmark, f"{what}, launch to end recorded", "s", tuple(self.task_s))
        return ours.at_most_times(limit, usual, "the file"), usual


def text(bench: Bench) -> list[Row]:
    """A shell task that prints much text, beside a file."""
    command = f"seq 1 {bench.scale.text_lines}"
    copies = copy(bench, command)
    time_rows = copies.rows("text", f"a shell task `{command}`", 2)
    file = Row("text", "the size of the file", "MB", tuple(copies.file_mb))
    stored = Row("text", "growth of the store by that text", "MB", tuple(copies.stored_mb))
    return [*time_rows, stored.at_most_times(0.1, file, "the file")]


def random_bytes(bench: Bench) -> list[Row]:
    """A shell task that prints what cannot be compressed, beside a file."""
    source = bench.new_file()
    with source.open("wb") as file:
        for _ in range(bench.scale.random_bytes // MB):
            file.write(os.urandom(MB))
    copies = copy(bench, f"cat {shlex.quote(str(source))}")
    source.unlink()
    what = f"a shell task `cat` of {bench.scale.random_bytes // MB:,} MB of random bytes"
    stored = Row("bytes", "growth of the store by these bytes", "MB", tuple(copies.stored_mb))
    return [*copies.rows("bytes", what, 3), stored]


def copy(bench: Bench, command: str) -> Copies:
    """Keep a command's output in the store and in a file, in turns."""
    copies, state, target = Copies(), bench.new_state(), bench.new_file()
    bench.say(f"keeping the output of `{command.split()[0]}` {bench.scale.copies} times")
    calls = {
        f"pipe_seconds({command!r}, {str(target)!r})": copies.pipe_s,
        f"tasks_seconds({command!r})": copies.task_s,
    }
    with supervised_kernel(bench, state) as kernel:
        for turn in range(bench.scale.copies):
            before = store_mb(state)
            for call in calls if turn % 2 else reversed(calls):
                kernel.settle()
                calls[call].append(kernel.value(call, timeout_s=600))
            copies.stored_mb.append(store_mb(state) - before)
            copies.file_mb.append(target.stat().st_size / MB)
            check_same(state, target)
            target.unlink()
    shutil.rmtree(state)  # several of them would need much room
    return copies


def store_mb(state: Path) -> float:
    """How big the store's file is once everything has been moved there from the log beside it."""
    with stores.opened(state) as store:
        busy, *_ = store.database.row("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise BenchmarkError("the store could not be checkpointed")
        return store.database.path.stat().st_size / MB


def check_same(state: Path, path: Path) -> None:
    """Make sure that the latest task's stored output is what is in the file, byte for byte."""
    with stores.opened(state) as store, path.open("rb") as file:
        for piece in stdout_pieces(store):
            if file.read(len(piece)) != piece:
                raise BenchmarkError("the stored output differs from the file")
        if file.read(1):
            raise BenchmarkError("the stored output is shorter than the file")


def stdout_pieces(store: TaskStore) -> Iterator[bytes]:
    """The output of the latest task, piece by piece."""
    (task,) = store.tasks.select(Selection(limit=1))
    return chain(outputs.stream_bytes(store, task.key))
