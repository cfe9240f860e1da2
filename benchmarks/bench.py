"""One run of the benchmarks: how much of everything, and the stores that several of them need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

from benchmarks import stores
from benchmarks.kernels import Kernel, MemoryWatch
from benchmarks.results import BenchmarkError
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.store.tasks import Selection

LOAD = "%load_ext ipytaskpersist"
BACKGROUND = "%%background\npass"
NAME = "gigabyte"
"""The task that prints the long log."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    launches: int
    rare_launches: int
    """Of what takes its time when it is launched."""
    prints: int
    """In one loop."""
    print_loops: int
    kernels: int
    """Fresh ones, for each figure that only a fresh kernel gives."""
    tails: int
    tasks: int
    sessions: int
    log_bytes: int
    log_runs: int
    """How often the memory is measured while a task prints so much."""
    store_calls: int
    copies: int
    """How often a command's output is taken in bulk, in each way."""
    text_lines: int
    random_bytes: int
    commands: int
    """How many are run one after the other."""
    command_loops: int
    starts: int
    followed_lines: int
    sleepers: int
    idle_s: float
    """For how long the supervisor is watched, three times."""
    process_launches: int
    payload_bytes: int
    """How big a value is that is handed to a process task."""
    payload_runs: int
    swept_tasks: int
    """How many tasks are given the same value."""
    idle_tasks: int


FULL = Scale(
    launches=150,
    rare_launches=15,
    prints=100_000,
    print_loops=7,
    kernels=9,
    tails=40,
    tasks=10_000,
    sessions=10_000,
    log_bytes=1_000_000_000,
    log_runs=3,
    store_calls=1_000,
    copies=5,
    text_lines=30_000_000,
    random_bytes=300_000_000,
    commands=1_000,
    command_loops=3,
    starts=30,
    followed_lines=60,
    sleepers=500,
    idle_s=10,
    process_launches=20,
    payload_bytes=1_000_000_000,
    payload_runs=3,
    swept_tasks=20,
    idle_tasks=20,
)
QUICK = Scale(
    launches=40,
    rare_launches=4,
    prints=20_000,
    print_loops=3,
    kernels=3,
    tails=10,
    tasks=1_000,
    sessions=1_000,
    log_bytes=50_000_000,
    log_runs=1,
    store_calls=200,
    copies=1,
    text_lines=10_000_000,
    random_bytes=100_000_000,
    commands=200,
    command_loops=1,
    starts=10,
    followed_lines=20,
    sleepers=50,
    idle_s=1,
    process_launches=8,
    payload_bytes=100_000_000,
    payload_runs=1,
    swept_tasks=5,
    idle_tasks=5,
)


def in_words(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:g} GB" if size >= 1e9 else f"{size / 1e6:g} MB"


class Bench:
    """The run's scale, its folder, and what several benchmarks need."""

    def __init__(self, folder: Path, scale: Scale, say: Callable[[str], None]) -> None:
        self.scale = scale
        self.say = say
        self.memory_mb: list[float] = []
        """How much a kernel grew, for each task so far that printed the long log."""
        self._folder = folder
        self._numbers = count(1)

    def new_state(self) -> Path:
        """A state directory that does not exist yet."""
        return self._folder / f"state-{next(self._numbers)}"

    def new_file(self) -> Path:
        """A file that does not exist yet."""
        return self._folder / f"file-{next(self._numbers)}"

    def kernel(self, state: Path) -> Kernel:
        """A fresh kernel."""
        return Kernel(self._folder / f"kernel-{next(self._numbers)}", state)

    @contextmanager
    def loaded_kernel(self, state: Path) -> Iterator[Kernel]:
        """A fresh kernel with the extension loaded, which has run a task already."""
        with self.kernel(state) as kernel:
            kernel.run(LOAD)
            kernel.run("%%background warm-up\nprint('ready')")
            kernel.run("%bg_wait warm-up")
            yield kernel

    @cached_property
    def full_state(self) -> Path:
        """The state directory with the long past, and with the task that printed the long log."""
        state = self.new_state()
        self.say(f"storing {self.scale.tasks:,} tasks")
        stores.fill(state, self.scale.tasks)
        self.print_log(state)
        return state

    def empty_state(self) -> Path:
        """A state directory whose store has no task in it yet."""
        state = self.new_state()
        with stores.opened(state):
            pass
        return state

    @property
    def log_size(self) -> str:
        """The long log's size, for people."""
        return in_words(self.scale.log_bytes)

    @property
    def past(self) -> str:
        """What the full store holds, for people."""
        return f"{self.scale.tasks:,} tasks and {self.log_size} of output"

    def print_log(self, state: Path) -> None:
        """Print the long log in a background cell, and note how the kernel's memory grew."""
        self.say(f"printing {self.log_size} in a background cell")
        with self.loaded_kernel(state) as kernel:
            kernel.run("from benchmarks.inside import long_log")
            with MemoryWatch(kernel.process) as memory:
                kernel.run(
                    f"%%background {NAME}\n"
                    f"for text in long_log({self.scale.log_bytes}):\n"
                    "    print(text, end='')"
                )
                kernel.run(f"%bg_wait {NAME}", timeout_s=600)
            self.memory_mb.append(memory.growth_mb)
        self._check_log(state)

    def _check_log(self, state: Path) -> None:
        with stores.opened(state) as store:
            (task,) = store.tasks.select(Selection(states=[TaskState.COMPLETED], limit=1))
            size = store.outputs.stream_size(task.key, OutputKind.STDOUT)
        if task.name != NAME or size.size_bytes != self.scale.log_bytes:
            raise BenchmarkError(f"{self.scale.log_bytes:,} bytes were printed; stored: {size}")
