"""What it costs to hand a large value to a process task, and to have one back."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.bench import Bench, in_words
from benchmarks.commands import make_room
from benchmarks.kernels import Kernel
from benchmarks.process_tasks import PROCESS, TASK_S, latest, run_task, warm_kernel
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import TaskRecord

HIGH_WATER = "5"
"""Written to a process's ``clear_refs``, it makes its peak what it uses now."""
BLOCK_BYTES = 512
UNTOUCHED_RUNS = 5
PEAK_CELL = f"""{PROCESS}
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
len(given)
"""


@dataclass(frozen=True)
class Value:
    """What is handed over, as the kernel makes, doubles and checks it."""

    benchmark: str
    what: str
    make: str
    double: str
    check: str

    @property
    def cell(self) -> str:
        """A background cell that says when it has the value, and doubles it."""
        return f"{PROCESS}\nprint(time.time(), len(given))\ndoubled = {self.double}"


ARRAY = Value(
    "process-array",
    "a float64 array of {size}",
    "make_array",
    "given * 2",
    "bool(doubled[-1] == 2 * given[-1])",
)
FRAME = Value(
    "process-frame",
    "a DataFrame of {size}, 17 columns of numbers and 3 of text",
    "make_frame",
    "given.assign(**(given.select_dtypes('number') * 2))",
    "bool(doubled.iloc[-1, 0] == 2 * given.iloc[-1, 0]) and doubled.shape == given.shape",
)


@dataclass
class Handed:
    """How many seconds each step took, each time, from the launch."""

    write: list[float] = field(default_factory=list)
    reply: list[float] = field(default_factory=list)
    first_line: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    pool: list[Sequence[float]] = field(default_factory=list)
    joblib: list[Sequence[float]] = field(default_factory=list)
    by_hand: list[Sequence[float]] = field(default_factory=list)
    kernel_mb: list[float] = field(default_factory=list)


def process_array(bench: Bench) -> list[Row]:
    """A large array: there, doubled, and back."""
    return hand_over(bench, ARRAY)


def process_frame(bench: Bench) -> list[Row]:
    """The same with a table that also holds text."""
    return hand_over(bench, FRAME)


def hand_over(bench: Bench, value: Value) -> list[Row]:
    """Hand a value over in each way, in turns, beside one plain write of as many bytes."""
    size, state, handed = bench.scale.payload_bytes, bench.new_state(), Handed()
    bench.say(f"handing over {value.what.format(size=in_words(size))}")
    with warm_kernel(bench, state) as kernel:
        kernel.run(f"given = {value.make}({size})", TASK_S)
        # The pool's worker is at work before the first turn, as a warm task is.
        kernel.value("pooled_ms()")
        for _ in range(bench.scale.payload_runs):
            hand_over_once(bench, kernel, state, value, handed)
    shutil.rmtree(state)
    return rows_of(value, in_words(size), handed)


def hand_over_once(bench: Bench, kernel: Kernel, state: Path, value: Value, handed: Handed) -> None:
    """Hand it over once in each way. What is in the memory of a way is gone before the next."""
    make_room(bench.new_file())
    size, file = bench.scale.payload_bytes, str(bench.new_file())
    handed.write.append(kernel.value(f"write_s({size}, {file!r})"))
    as_a_task(kernel, state, value, handed)
    make_room(bench.new_file())
    handed.pool.append(kernel.value("pool_s(given)", TASK_S))
    make_room(bench.new_file())
    handed.joblib.append(kernel.value("joblib_s(given)", TASK_S))
    if value is ARRAY:
        make_room(bench.new_file())
        handed.by_hand.append(kernel.value("by_hand_s(given)", TASK_S))


def as_a_task(kernel: Kernel, state: Path, value: Value, handed: Handed) -> None:
    """Hand it to a task, and wait until the task's own value is in the notebook."""
    kernel.settle()
    launched = time.time()
    with peak_mb(kernel.process, handed.kernel_mb):
        handed.reply.append(run_task(kernel, value.cell))
    kernel.run("len(doubled)", TASK_S)
    handed.back.append(time.time() - launched)
    _task, (printed, _length) = latest(state)
    handed.first_line.append(printed - launched)
    if not kernel.value(value.check):
        raise BenchmarkError(f"{value.what} was not doubled")
    kernel.run("del doubled")


@contextmanager
def peak_mb(process: psutil.Process, peaks: list[float]) -> Iterator[None]:
    """Note by how much a process's resident memory grows in the block, at its worst moment."""
    folder = Path("/proc") / str(process.pid)
    (folder / "clear_refs").write_text(HIGH_WATER)
    before = process.memory_info().rss / 1e6
    yield
    status = (folder / "status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    peaks.append(int(peak.split()[1]) * 1024 / 1e6 - before)


def rows_of(value: Value, size: str, handed: Handed) -> list[Row]:
    """A row for each step, held against the plain write."""
    what = value.what.format(size=size)
    name = f"one write of {size}"
    write = Row(value.benchmark, f"{name} in the same kernel", "s", tuple(handed.write))

    def row(step: str, seconds: Sequence[float]) -> Row:
        return Row(value.benchmark, step, "s", tuple(seconds))

    return [
        write,
        row(f"{what}: the reply of its cell", handed.reply).at_most_times(1.3, write, name),
        row("the first line of its task", handed.first_line).at_most_times(1.5, write, name),
        row("there, doubled, and back", handed.back).at_most_times(3.5, write, name),
        Row(
            value.benchmark, "growth of the kernel at its worst moment", "MB",
            tuple(handed.kernel_mb),
        ).at_most(50),
        *(row(f"by hand, in files without a check: {step}", each) for step, each in steps(
            handed.by_hand, "written", "in the worker", "there, doubled, and back")),
        *(row(f"through joblib's files: {step}", each) for step, each in steps(
            handed.joblib, "written", "in the worker", "there, doubled, and back")),
        *(row(f"by `ProcessPoolExecutor`: {step}", each) for step, each in steps(
            handed.pool, "in the worker", "there, doubled, and back")),
    ]  # fmt: skip


def steps(samples: Sequence[Sequence[float]], *names: str) -> Iterator[tuple[str, list[float]]]:
    """Each step's name with its seconds, if there are any."""
    for place, name in enumerate(names if samples else ()):
        yield name, [sample[place] for sample in samples]


# The same value for many tasks.


def process_sweep(bench: Bench) -> list[Row]:
    """Many tasks that are given the same array: the room it takes, and the launches' time."""
    size, state, count = bench.scale.payload_bytes, bench.new_state(), bench.scale.swept_tasks
    bench.say(f"giving {in_words(size)} to {count} tasks")
    with warm_kernel(bench, state) as kernel:
        kernel.run(f"given = make_array({size})", TASK_S)
        make_room(bench.new_file())
        before_mb = allocated_mb(state)
        replies = [run_task(kernel, f"{PROCESS}\nlen(given) * {each}") for each in range(count)]
        used_mb = allocated_mb(state) - before_mb
    shutil.rmtree(state)
    first = Row("process-sweep", f"the first launch with {in_words(size)}", "s", (replies[0],))
    what = f"{count} launches with the same"
    room = Row("process-sweep", f"room on the disk after {what}", "MB", (used_mb,))
    return [
        first,
        Row("process-sweep", what, "s", (sum(replies),)).at_most_times(2, first, "the first"),
        room.at_most(1.1 * size / 1e6),
    ]


def allocated_mb(state: Path) -> float:
    """The blocks that the files of a folder take, each file once however many names it has."""
    found = (Path(folder) / name for folder, _, names in os.walk(state) for name in names)
    files = {status.st_ino: status.st_blocks for status in map(Path.lstat, found)}
    return sum(files.values()) * BLOCK_BYTES / 1e6


# A value that is not touched.


def process_untouched(bench: Bench) -> list[Row]:
    """From a cell's end to its task's, given an array that it only looks at, and given nothing."""
    size, state = bench.scale.payload_bytes, bench.new_state()
    bench.say(f"giving {in_words(size)} to tasks that do nothing with it")
    ends: dict[str, list[float]] = {"": [], "len(given)": []}
    peaks: list[float] = []
    with warm_kernel(bench, state) as kernel:
        kernel.run(f"given = make_array({size})", TASK_S)
        for _ in range(UNTOUCHED_RUNS):
            for look, samples in ends.items():
                run_task(kernel, f"{PROCESS}\n{look}\nprint(time.time())")
                samples.append(until_end_ms(*latest(state)))
        run_task(kernel, PEAK_CELL)
        peaks.append(latest(state)[1][0] * 1024 / 1e6)
    shutil.rmtree(state)
    nothing, given = (tuple(samples) for samples in ends.values())
    without = Row(
        "process-untouched", "given nothing: from a cell's end to its task's", "ms", nothing
    )
    what = f"the same, given {in_words(size)} that it does not touch"
    return [
        without,
        Row("process-untouched", what, "ms", given).at_most_above(50, without),
        Row("process-untouched", "the peak of such a task's resident memory", "MB", tuple(peaks)),
    ]


def until_end_ms(task: TaskRecord, printed: Sequence[float]) -> float:
    """How long after its last print a task has ended."""
    if task.ended_at is None:
        raise BenchmarkError(f"the end of task {task.id} is not recorded")
    return (task.ended_at.timestamp() - printed[-1]) * 1e3
