"""What a launch costs, beside the other ways to launch something from a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import LOAD, Bench, Scale
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.tasks import Selection

PREPARE = """\
import submitit
from IPython.lib.backgroundjobs import BackgroundJobManager
from benchmarks.inside import compute, nothing
manager = BackgroundJobManager()
executor = submitit.AutoExecutor("submitted", cluster="local")
"""
WARM_UP_ROUNDS = 5


@dataclass(frozen=True, eq=False)
class Way:
    """A cell whose round trip is taken."""

    what: str
    cell: str
    until_over: str = ""
    """A cell that waits for what was launched, where that goes on for longer than a moment."""
    is_rare: bool = False
    """Whether it is measured in some rounds only, because what it launches takes its time."""
    is_ours: bool = False


PLAIN = Way("a plain cell: `pass`", "pass")
BACKGROUND = Way(
    "`%%background` adds, with record, card and thread", "%%background\npass", is_ours=True
)
BASH = Way("`%%bash --bg` adds", "%%bash --bg\ntrue")
MANAGER = Way("`BackgroundJobManager.new` adds", "background = manager.new(nothing)")
SUBMITIT = Way(
    "submitit's local `.submit` adds",
    "submitted = executor.submit(nothing)",
    "submitted.result()",
    is_rare=True,
)
BUSY_BACKGROUND = Way(
    "`%%background` adds, when its cell computes in pure Python",
    "%%background\ncompute()",
    "%bg_wait",
    is_rare=True,
    is_ours=True,
)
BUSY_MANAGER = Way(
    "`BackgroundJobManager.new` adds, with the same",
    "background = manager.new(compute)",
    "background.join()",
    is_rare=True,
)
SHELL = Way(
    "`%%background --shell` adds, once the supervisor runs",
    "%%background --shell\ntrue",
    "%bg_wait",
    is_ours=True,
)
PROCESS = Way(
    "`%%background --process` adds, once the supervisor runs",
    "%%background --process\npass",
    "%bg_wait",
    is_rare=True,
    is_ours=True,
)
IN_THREADS = (BACKGROUND, BASH, MANAGER, SUBMITIT, BUSY_BACKGROUND, BUSY_MANAGER)
IN_PROCESSES = (SHELL, BASH, PROCESS)


def launch(bench: Bench) -> list[Row]:
    """What each way to launch adds to a plain cell: round trips, taken in turns."""
    rows = rows_of("launch", bench, IN_THREADS)
    rows[BACKGROUND] = rows[BACKGROUND].at_most_times(1.0, rows[BASH], "`%%bash --bg`")
    return [*rows.values()]


def shell(bench: Bench) -> list[Row]:
    """The same for cells that run in processes of their own, and the first one of a kernel."""
    rows = rows_of("shell", bench, IN_PROCESSES)
    rows[SHELL] = rows[SHELL].at_most_times(1.0, rows[BASH], "`%%bash --bg`")
    first_ms = tuple(first_launch_ms(bench) for _ in range(bench.scale.kernels))
    what = "the first of a kernel, which starts the supervisor, round trip"
    return [*rows.values(), Row("shell", what, "ms", first_ms)]


def first_launch_ms(bench: Bench) -> float:
    """The round trip of a fresh kernel's first shell task."""
    with bench.kernel(bench.empty_state()) as kernel:
        kernel.run(LOAD)
        return round_trip_ms(kernel, SHELL)


def rows_of(benchmark: str, bench: Bench, adding: Sequence[Way]) -> dict[Way, Row]:
    """A row for the plain cell and for each way, taken in turns in one kernel."""
    state = bench.new_state()
    bench.say(f"launching {bench.scale.launches} times in each way")
    with bench.kernel(state) as kernel:
        kernel.run(LOAD)
        kernel.run(PREPARE)
        samples, launched = take_turns(kernel, bench.scale, adding)
    check_launched(state, launched)
    return {way: Row(benchmark, way.what, "ms", tuple(samples[way])) for way in samples}


def take_turns(
    kernel: Kernel, scale: Scale, adding: Sequence[Way]
) -> tuple[dict[Way, list[float]], int]:
    """The plain cell's round trips, and what each way added to the one of its own round.

    Also how many background cells were launched in all.
    """
    samples: dict[Way, list[float]] = {way: [] for way in (PLAIN, *adding)}
    launched = 0
    for turn in range(-WARM_UP_ROUNDS, scale.launches):
        ways = in_turn(turn, scale, adding)
        took = {way: round_trip_ms(kernel, way) for way in ways}
        launched += sum(way.is_ours for way in ways)
        if turn >= 0:
            plain = took.pop(PLAIN)
            samples[PLAIN].append(plain)
            for way, milliseconds in took.items():
                samples[way].append(milliseconds - plain)
    return samples, launched


def in_turn(turn: int, scale: Scale, adding: Sequence[Way]) -> list[Way]:
    """The ways of one round. Each stands equally often in each place, so none has the best one."""
    is_long = turn < 0 or turn % (scale.launches // scale.rare_launches) == 0
    ways = [way for way in (PLAIN, *adding) if is_long or not way.is_rare]
    first = turn % len(ways)
    return ways[first:] + ways[:first]


def round_trip_ms(kernel: Kernel, way: Way) -> float:
    """How long a cell takes in a kernel that has come to rest and has been woken again."""
    kernel.settle()
    # The first cell after a rest takes up to twice as long, whatever it does, and less steadily.
    kernel.run(PLAIN.cell)
    reply = kernel.run(way.cell)
    if way.is_ours and not reply.has_display:
        raise BenchmarkError("%%background showed no card")
    if way.until_over:
        kernel.run(way.until_over)
    if way.is_rare and not way.is_ours:  # our supervisor is a child that stays
        kernel.wait_for_children()
    return reply.seconds * 1e3


def check_launched(state: Path, launched: int) -> None:
    """Make sure that every launched cell is in the store and ran to its end."""
    with stores.opened(state) as store:
        completed = store.tasks.count(Selection(states=[TaskState.COMPLETED]))
    if completed != launched:
        raise BenchmarkError(f"{launched} tasks were launched, {completed} completed")
