"""What the measured kernels call to run commands: as background tasks, and in other ways."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import submitit
from IPython.core.getipython import get_ipython

from benchmarks.inside import nothing
from ipytaskpersist import Task, background
from ipytaskpersist.session.manager import current

CLOCK = "date +%s.%N"
"""A command whose output says when it began to run."""
POLL_S = 0.001


def launch(command: str, count: int = 1) -> list[Task]:
    """Launch a command as so many shell tasks."""
    return [background(command, shell=True) for _ in range(count)]


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = perf_counter()
    call()
    return perf_counter() - begun


def tasks_seconds(command: str, count: int = 1) -> float:
    """From the launch of the first of so many shell tasks until the end of each is recorded."""
    begun = perf_counter()
    tasks = launch(command, count)
    for task in tasks:
        task.wait()
    took = perf_counter() - begun
    codes = {task.exit_code for task in tasks}
    if codes != {0}:
        raise RuntimeError(f"exit codes of {command}: {codes}")
    return took


def pipe_seconds(command: str, path: str, *, flush: bool = False) -> float:
    """How long a command takes whose output ``cat`` writes to a file, and if asked to the disk."""
    file = shlex.quote(path)
    line = f"{command} | cat > {file}" + (f" && sync {file}" if flush else "")
    return seconds(lambda: subprocess.run(["bash", "-c", line], check=True))


def loop_seconds(count: int, *, shell: bool) -> float:
    """How long it takes to run ``true`` so often, one after the other."""
    command: Any = "true" if shell else ["true"]
    return seconds(lambda: [subprocess.run(command, shell=shell, check=True) for _ in range(count)])


def bash_seconds(count: int) -> float:
    """How long so many ``%%bash --bg`` of ``true`` take, until the last has ended."""
    begun = perf_counter()
    for process in [bash("true") for _ in range(count)]:
        wait_for(process)
    return perf_counter() - begun


def bash(command: str) -> Any:
    """The process that ``%%bash --bg`` starts."""
    shell: Any = get_ipython()
    shell.run_cell_magic("bash", "--bg --proc process", command)
    return shell.user_ns["process"]


def wait_for(process: Any) -> None:
    """Wait until a process of ``%%bash --bg`` has ended: its own ``wait`` is a coroutine."""
    while process.returncode is None:
        time.sleep(POLL_S)


def submitted_seconds(count: int) -> float:
    """How long so many empty functions take with submitit's local executor."""
    executor = submitit.AutoExecutor("submitted", cluster="local")
    return seconds(
        lambda: [job.result() for job in [executor.submit(nothing) for _ in range(count)]]
    )


def task_start_ms() -> float:
    """How long after its launch a shell task's command begins to run."""
    launched = time.time()
    (task,) = launch(CLOCK)
    task.wait()
    return (float(task.stdout) - launched) * 1e3


def child_start_ms() -> float:
    """The same of a child process."""
    launched = time.time()
    done = subprocess.run(CLOCK, shell=True, capture_output=True, text=True, check=True)
    return (float(done.stdout) - launched) * 1e3


def bash_start_ms() -> float:
    """The same of ``%%bash --bg``."""
    launched = time.time()
    wait_for(bash(f"{CLOCK} > clock"))
    return (float(Path("clock").read_text()) - launched) * 1e3


def submitted_start_ms() -> float:
    """The same of a function with submitit's local executor."""
    launched = time.time()
    begun = submitit.AutoExecutor("submitted", cluster="local").submit(time.time).result()
    return (begun - launched) * 1e3


# The queue.

TREE_SIZE = 50
TREE = f"for i in $(seq {TREE_SIZE - 1}); do sleep 600 & done; echo all; wait"


def limit(width: int) -> None:
    """Let so many tasks of the group `few` run at once."""
    current().queueing.change_group("few", width, unlimited=False, paused=None)


def group_seconds(count: int, width: int) -> float:
    """How long so many tasks of ``true`` take in a group of this width."""
    limit(width)
    begun = perf_counter()
    tasks = [background("true", shell=True, group="few") for _ in range(count)]
    for task in tasks:
        task.wait()
    return perf_counter() - begun


def adding_seconds(count: int) -> float:
    """How long it takes to add so many tasks to a group that is full."""
    limit(1)
    tasks = [background("sleep 600", shell=True, group="few")]
    took = seconds(
        lambda: tasks.extend(background("true", shell=True, group="few") for _ in range(count))
    )
    for task in reversed(tasks):
        task.cancel()
    for task in tasks:
        task.wait()
    return took


def slot_ms(count: int) -> list[float]:
    """How long after each end the next task of a group of one begins, in milliseconds."""
    limit(1)
    tasks = [background("sleep 0.1", shell=True, group="few") for _ in range(count + 1)]
    for task in tasks:
        task.wait()
    pairs = pairwise(tasks)
    return [
        (after.started_at - before.ended_at).total_seconds() * 1e3
        for before, after in pairs
        if after.started_at and before.ended_at
    ]


def pause_ms(count: int) -> list[float]:
    """How long it takes from asking for a pause until a tree of processes is stopped."""
    task = background(TREE, shell=True)
    while "all" not in task.stdout:
        time.sleep(POLL_S)
    samples, queueing = [], current().queueing
    for _ in range(count):
        record = current().tasks.find(task.id)
        begun = perf_counter()
        queueing.pause(record, keep_slot=False)
        while current().tasks.find(task.id).paused_at is None:
            time.sleep(POLL_S)
        samples.append((perf_counter() - begun) * 1e3)
        queueing.go_on(record)
        while current().tasks.find(task.id).paused_at is not None:
            time.sleep(POLL_S)
    task.cancel()
    task.wait()
    return samples


def launch_later() -> None:
    """Launch a task that waits for a day."""
    background("true", shell=True, at=datetime.now().astimezone() + timedelta(days=1))
