"""What running commands as background tasks costs: how soon, how many, and how much they print."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import LOAD, Bench
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.output import replay
from ipytaskpersist.store.tasks import Selection

IMPORT = "from benchmarks.inside_commands import *"
FEW = 4
"""How many of what takes a second or more each."""
MB = 1_000_000
CHECKPOINT_S = 30.0
ROOM_MB = 800
"""More than the store's file and its log take together for what is written in bulk."""


@contextmanager
def supervised_kernel(bench: Bench, state: Path) -> Iterator[Kernel]:
    """A fresh kernel whose supervisor runs and has had a task already."""
    with bench.kernel(state) as kernel:
        kernel.run(LOAD)
        kernel.run(IMPORT)
        kernel.value("tasks_seconds('true')")
        yield kernel


def in_turns(
    kernel: Kernel, calls: Sequence[str], rounds: int, rare_rounds: int
) -> dict[str, tuple[float, ...]]:
    """What each call in the kernel returns, in rounds; the last one only in the first rounds.

    Each stands equally often in each place of a round, so that none has the best one.
    """
    samples: dict[str, list[float]] = {call: [] for call in calls}
    for turn in range(rounds):
        now = calls if turn < rare_rounds else calls[:-1]
        first = turn % len(now)
        for call in (*now[first:], *now[:first]):
            kernel.settle()
            samples[call].append(kernel.value(call))
    return {call: tuple(values) for call, values in samples.items()}


# How soon, and how many.


def start(bench: Bench) -> list[Row]:
    """How long after its launch a command begins to run, in each way."""
    ways = {
        "task_start_ms()": "a shell task",
        "child_start_ms()": "`subprocess.run(…, shell=True)`",
        "bash_start_ms()": "`%%bash --bg`",
        "submitted_start_ms()": "a function with submitit's local executor",
    }
    bench.say(f"starting {bench.scale.starts} commands in each way")
    with supervised_kernel(bench, bench.new_state()) as kernel:
        samples = in_turns(kernel, [*ways], bench.scale.starts, rare_rounds=FEW)
    ours, *others = [
        Row("start", f"from launch to the command's start: {way}", "ms", samples[call])
        for call, way in ways.items()
    ]
    return [ours.at_most(30), *others]


def many(bench: Bench) -> list[Row]:
    """How long a great many commands take, in each way."""
    count = bench.scale.commands
    ways = {
        f"tasks_seconds('true', {count})": (
            f"{count:,} shell tasks of `true`, first launch to last exit code stored"
        ),
        f"loop_seconds({count}, shell=True)": (
            f'a loop of {count:,} `subprocess.run("true", shell=True)`'
        ),
        f"loop_seconds({count}, shell=False)": f'a loop of {count:,} `subprocess.run(["true"])`',
        f"bash_seconds({count})": f"{count:,} `%%bash --bg` of `true`, nothing recorded",
        f"submitted_seconds({FEW})": f"only {FEW} functions with submitit's local executor",
    }
    state, loops = bench.new_state(), bench.scale.command_loops
    bench.say(f"running `true` {count:,} times in each way")
    with supervised_kernel(bench, state) as kernel:
        samples = in_turns(kernel, [*ways], loops, rare_rounds=1)
    check_completed(state, count * loops + 1)
    ours, loop, *others = [Row("many", way, "s", samples[call]) for call, way in ways.items()]
    return [ours.at_most_times(3, loop, "the loop through a shell"), loop, *others]


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
    flushed_s: list[float] = field(default_factory=list)
    stored_mb: list[float] = field(default_factory=list)
    file_mb: list[float] = field(default_factory=list)

    def rows(self, benchmark: str, what: str, limit: float) -> list[Row]:
        """The time as a task, held against the time through a pipe into a file."""
        pipe = f"the same, piped through `cat` into a file of {self.file_mb[0]:,.0f} MB"
        usual = Row(benchmark, pipe, "s", tuple(self.pipe_s))
        ours = Row(benchmark, f"{what}, launch to end recorded", "s", tuple(self.task_s))
        return [
            ours.at_most_times(limit, usual, "the file"),
            usual,
            Row(benchmark, "the same, and `sync` of the file", "s", tuple(self.flushed_s)),
        ]


def text(bench: Bench) -> list[Row]:
    """A shell task that prints much text, beside a file."""
    command = f"seq 1 {bench.scale.text_lines}"
    copies = copy(bench, command)
    file = Row("text", "the size of the file", "MB", tuple(copies.file_mb))
    stored = Row("text", "growth of the store by that text", "MB", tuple(copies.stored_mb))
    return [
        *copies.rows("text", f"a shell task `{command}`", 2),
        stored.at_most_times(0.1, file, "the file"),
    ]


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
    bench.say(f"keeping the output of `{command.split(maxsplit=1)[0]}` {bench.scale.copies} times")
    copies = Copies()
    for turn in range(bench.scale.copies):
        copy_once(bench, command, turn, copies)
    return copies


def copy_once(bench: Bench, command: str, turn: int, copies: Copies) -> None:
    """Keep a command's output once in each way, with a store of its own."""
    state, target = bench.new_state(), bench.new_file()
    file = repr(str(target))
    calls = {
        f"tasks_seconds({command!r})": copies.task_s,
        f"pipe_seconds({command!r}, {file})": copies.pipe_s,
        f"pipe_seconds({command!r}, {file}, flush=True)": copies.flushed_s,
    }
    first = turn % len(calls)
    with supervised_kernel(bench, state) as kernel:
        before = store_mb(state)
        for call in [*calls, *calls][first : first + len(calls)]:
            target.unlink(missing_ok=True)
            make_room(target)
            kernel.settle()
            calls[call].append(kernel.value(call, timeout_s=600))
            if target.exists():
                copies.file_mb.append(target.stat().st_size / MB)
        copies.stored_mb.append(store_mb(state) - before)
    check_same(state, command)
    target.unlink(missing_ok=True)
    shutil.rmtree(state)


def make_room(scratch: Path) -> None:
    """Let the disk come to rest, and leave memory that was in use a moment ago.

    A virtual machine is given memory by its host when it first touches it, which takes longer
    than to copy into it; the first way measured would pay for that.
    """
    with scratch.open("wb") as file:
        for _ in range(ROOM_MB):
            file.write(bytes(MB))
    os.sync()
    scratch.unlink()


def store_mb(state: Path) -> float:
    """How big the store's file is once everything has been moved there from the log beside it."""
    deadline = time.monotonic() + CHECKPOINT_S
    with stores.opened(state) as store:
        # The supervisor uses the pause to do the same, and one waits for the other.
        while store.database.row("PRAGMA wal_checkpoint(TRUNCATE)")[0]:
            if time.monotonic() > deadline:
                raise BenchmarkError("the store could not be checkpointed")
            time.sleep(0.05)
        return store.database.path.stat().st_size / MB


def check_same(state: Path, command: str) -> None:
    """Make sure that the latest task's stored output is what the command prints, to the byte."""
    with (
        stores.opened(state) as store,
        subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None, "it was started with a pipe"
        (task,) = store.tasks.select(Selection(limit=1))
        for piece in replay.stream_bytes(store, task.key):
            if process.stdout.read(len(piece)) != piece:
                raise BenchmarkError("the stored output differs from what the command prints")
        if process.stdout.read(1):
            raise BenchmarkError("the stored output is shorter than what the command prints")
