"""What a supervisor costs while its tasks run, and how soon others see what they print."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from benchmarks import stores
from benchmarks.bench import Bench
from benchmarks.commands import MB, supervised_kernel
from benchmarks.kernels import environment_for
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.tasks import Selection

TICKING = "while :; do date +%s.%N; sleep 0.1; done"
"""Prints the time now and then, in no step with those who look at intervals of their own."""
LONGEST_S = 120.0
WATCHES = 3
START_S = 60.0


# How soon a line is seen.


def follow(bench: Bench) -> list[Row]:
    """How long after a task printed a line another process shows it."""
    state, file = bench.new_state(), bench.new_file()
    count = bench.scale.followed_lines
    bench.say(f"following {count} lines")
    with supervised_kernel(bench, state) as kernel:
        task_id = kernel.value(f"launch({TICKING!r})[0].id")
        reader = [sys.executable, "-m", "ipytaskpersist", "output", task_id, "--follow"]
        ours = delays_ms(reader, state, count)
    with file.open("wb") as target, running(["sh", "-c", TICKING], state, stdout=target):
        usual = delays_ms(["tail", "-f", str(file)], state, count)
    what = "from a shell task's print of a line to another process's `jupyter bg output --follow`"
    return [
        Row("follow", what, "ms", tuple(ours)).at_most(50),
        Row("follow", "from a print into a file to `tail -f`", "ms", tuple(usual)),
    ]


def delays_ms(reader: Sequence[str], state: Path, count: int) -> list[float]:
    """How long after it was printed each of so many lines comes out of a command."""
    samples: list[float] = []
    with running(reader, state, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None, "it was started with a pipe"
        seen_first = 0.0
        for line in process.stdout:
            now, printed = time.time(), float(line)
            seen_first = seen_first or now
            if printed > seen_first:  # what was printed earlier had to wait for the reader's start
                samples.append((now - printed) * 1e3)
            if len(samples) == count:
                return samples
    raise BenchmarkError(f"only {len(samples)} lines came out of {reader}")


@contextmanager
def running(
    command: Sequence[str], state: Path, stdout: int | IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end of the `with` block, and also when it takes too long."""
    with subprocess.Popen(
        command,
        env=environment_for(state),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
    ) as process:
        timer = threading.Timer(LONGEST_S, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


# What a supervisor needs.


def supervisor(bench: Bench) -> list[Row]:
    """A supervisor's memory and share of a core while its tasks sleep."""
    state, count = bench.new_state(), bench.scale.sleepers
    bench.say(
        f"watching a supervisor of {count} sleeping tasks for {WATCHES * bench.scale.idle_s:g} s"
    )
    with supervised_kernel(bench, state) as kernel:
        process = supervisor_of(state)
        alone_mb = process.memory_info().rss / MB
        kernel.value(f"len(launch('sleep 600', {count}))")
        wait_until_running(state, count)
        shares = tuple(core_percent(process, bench.scale.idle_s) for _ in range(WATCHES))
        memory = process.memory_full_info()
    what = f"a supervisor of {count} tasks of `sleep 600`: "
    return [
        Row("supervisor", f"{what}resident memory", "MB", (memory.rss / MB,)).at_most(45),
        Row("supervisor", f"{what}memory of its own (USS)", "MB", (memory.uss / MB,)),
        Row("supervisor", f"{what}share of a core", "%", shares).at_most(0.5),
        Row("supervisor", "a supervisor without tasks: resident memory", "MB", (alone_mb,)),
    ]


def supervisor_of(state: Path) -> psutil.Process:
    """The process of the one supervisor that runs with this state directory."""
    with stores.opened(state) as store:
        (record,) = store.supervisors.unfinished()
    return psutil.Process(record.pid)


def wait_until_running(state: Path, count: int) -> None:
    """Wait until so many tasks run, and a moment more for what their starts have left to do."""
    deadline = time.monotonic() + START_S
    with stores.opened(state) as store:
        while store.tasks.count(Selection(states=[TaskState.RUNNING])) != count:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{count} tasks were launched; they do not all run")
            time.sleep(0.05)
    time.sleep(1)


def core_percent(process: psutil.Process, seconds: float) -> float:
    """How much of a core a process uses over so many seconds."""
    begun, used = time.perf_counter(), cpu_s(process)
    time.sleep(seconds)
    return (cpu_s(process) - used) / (time.perf_counter() - begun) * 100


def cpu_s(process: psutil.Process) -> float:
    """How much processor time a process has used so far."""
    times = process.cpu_times()
    return float(times.user + times.system)
