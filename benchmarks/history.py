"""What a long history costs: to look at it, to put it away, and to ask for it from a terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import LOAD, Bench
from benchmarks.fresh import IMPORT_CLOCK
from benchmarks.kernels import environment_for, notebook_of
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

STATE_STYLES = {
    "`%bg_sessions --all`": "timed_magic('bg_sessions', '--all')",
    "`%bg_stats`": "timed_magic('bg_stats')",
    "`%bg_list --all`": "timed_magic('bg_list', '--all')",
}
PRINT = "from benchmarks.inside import print_until\nprint_until({path!r}, {pause_s})"
OLD_S = 40 * 86_400


def history(bench: Bench) -> list[Row]:
    """The verbs that look at everything, over a very long history."""
    state, scale = bench.new_state(), bench.scale
    tasks = 10 * scale.sessions
    bench.say(f"storing {tasks:,} tasks of {scale.sessions:,} sessions")
    stores.fill(state, tasks, tasks_a_session=10)
    held = f"{scale.sessions:,} sessions and {tasks:,} tasks"
    first: dict[str, list[float]] = {what: [] for what in STATE_STYLES}
    later: dict[str, list[float]] = {what: [] for what in STATE_STYLES}
    for _ in range(scale.kernels):
        with bench.kernel(state) as kernel:
            kernel.run(IMPORT_CLOCK)
            kernel.run(LOAD)
            for samples in (first, later):
                for what, call in STATE_STYLES.items():
                    kernel.settle()
                    samples[what].append(float(kernel.value(call)))
    return [
        *(
            Row("history", f"the first {what}, {held}", "ms", tuple(first[what]))
            for what in STATE_STYLES
        ),
        *(
            Row("history", f"{what}, {held}", "ms", tuple(later[what])).at_most(100)
            for what in STATE_STYLES
        ),
    ]


def archive(bench: Bench) -> list[Row]:
    """Archive a great many tasks while tasks print and another process commits."""
    longest_print, longest_commit, took = [], [], []
    for _ in range(bench.scale.log_runs):
        for pause_s in (0.0, 0.002):
            waits = archive_while_printing(bench, pause_s)
            longest_print.append(waits[0])
            longest_commit.append(waits[1])
            took.append(waits[2])
    what = f"while {bench.scale.tasks:,} tasks are archived"
    return [
        Row("archive", f"the longest wait of a print, {what}", "ms", tuple(longest_print))
        .at_most(100),
        Row("archive", f"the longest wait of a commit, {what}", "ms", tuple(longest_commit))
        .at_most(100),
        Row("archive", f"`jupyter bg archive --older-than 30d` of {bench.scale.tasks:,} tasks",
            "s", tuple(took)),
    ]  # fmt: skip


def archive_while_printing(bench: Bench, pause_s: float) -> tuple[float, float, float]:
    """The longest print and commit in milliseconds, and how many seconds the archiving took."""
    state, stop = bench.new_state(), bench.new_file()
    bench.say(f"archiving {bench.scale.tasks:,} tasks")
    stores.fill(state, bench.scale.tasks)
    with stores.opened(state) as store:
        store.database.execute(
            """UPDATE tasks SET created_at = created_at - ?1, started_at = started_at - ?1,
            ended_at = ended_at - ?1""",
            (OLD_S,),
        )
        with bench.loaded_kernel(state) as kernel:
            kernel.run(f"%%background printer\n{PRINT.format(path=str(stop), pause_s=pause_s)}")
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "ipytaskpersist", "archive", "--older-than", "30d"],
                env=environment_for(state), stdout=subprocess.DEVNULL,
            )  # fmt: skip
            longest_commit = 0.0
            while process.poll() is None:
                longest_commit = max(longest_commit, commit_ms(store))
                time.sleep(0.001)
            took = time.perf_counter() - begun
            stop.touch()
            kernel.run("%bg_wait printer")
            longest_print, count = kernel.value("__import__('ipytaskpersist').task(-1).result()")
            check_archived(bench, store, count)
    return longest_print, longest_commit, took


def commit_ms(store: TaskStore) -> float:
    """How long one small commit takes."""
    begun = time.perf_counter()
    store.upkeep.claim("probe", 0)
    return (time.perf_counter() - begun) * 1e3


def check_archived(bench: Bench, store: TaskStore, count: int) -> None:
    """Make sure that every line was kept and every old task was moved."""
    (printer,) = store.tasks.select(Selection(limit=1))
    pieces = store.outputs.of(printer.key, kinds=[OutputKind.STDOUT])
    lines = b"".join(piece.data for piece in pieces).split()
    if lines != [str(number).encode() for number in range(count)]:
        raise BenchmarkError(f"{count:,} lines were printed, {len(lines):,} other ones are stored")
    archives = Archives(store)
    moved = sum(place.statistics.count() for place in archives.all())
    archives.close()
    if moved != bench.scale.tasks:
        raise BenchmarkError(f"{moved:,} of {bench.scale.tasks:,} tasks were archived")


def terminal(bench: Bench) -> list[Row]:
    """A list in a terminal, as the process that it is."""
    state = bench.new_state()
    stores.fill(state, bench.scale.sessions)
    environment = environment_for(state)
    environment["IPYTASKPERSIST_NOTEBOOK"] = str(notebook_of(state))
    jupyter = str(Path(sys.executable).parent / "jupyter")
    ways = {
        "`jupyter bg list`": [jupyter, "bg", "list"],
        "`python -m ipytaskpersist list`": [sys.executable, "-m", "ipytaskpersist", "list"],
        "`python -c pass`": [sys.executable, "-c", "pass"],
    }
    samples: dict[str, list[float]] = {what: [] for what in ways}
    for _ in range(bench.scale.tails):
        for what, command in ways.items():
            begun = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            samples[what].append((time.perf_counter() - begun) * 1e3)
    listed, module, bare = (Row("terminal", what, "ms", tuple(samples[what])) for what in ways)
    return [listed.at_most_above(250, bare), module.at_most_above(250, bare), bare]
