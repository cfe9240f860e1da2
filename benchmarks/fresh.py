"""What a fresh kernel costs: loading the extension, and finding what earlier kernels left."""

from __future__ import annotations

from pathlib import Path

from benchmarks import stores
from benchmarks.bench import BACKGROUND, LOAD, Bench
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.tasks import Selection

IMPORT_CLOCK = "from benchmarks.inside import timed_magic"
LEFT_RUNNING = "%%background left-running\nimport time\ntime.sleep(600)"


def load(bench: Bench) -> list[Row]:
    """Loading the extension in a fresh kernel, and the first launch after it."""
    full = bench.full_state
    bench.say(f"loading in {2 * bench.scale.kernels} fresh kernels")
    full_ms, empty_ms, launch_ms = [], [], []
    load_full(bench, full)
    for _ in range(bench.scale.kernels):
        full_ms.append(load_full(bench, full))
        loaded, launched = load_empty(bench)
        empty_ms.append(loaded)
        launch_ms.append(launched)
    return [
        Row("load", "`%load_ext`, empty store", "ms", tuple(empty_ms)).at_most(80),
        Row("load", f"`%load_ext`, {bench.past}", "ms", tuple(full_ms)).at_most(80),
        Row("load", "the first `%%background` after it, round trip", "ms", tuple(launch_ms)),
    ]


def load_full(bench: Bench, state: Path) -> float:
    """How many milliseconds loading takes in a kernel whose predecessor died at work."""
    with bench.kernel(state) as kernel:
        took = timed_load_ms(kernel)
        kernel.run(LEFT_RUNNING)
    return took


def load_empty(bench: Bench) -> tuple[float, float]:
    """The same over an empty store, and the first launch's round trip."""
    with bench.kernel(bench.empty_state()) as kernel:
        took = timed_load_ms(kernel)
        kernel.settle()
        return took, kernel.run(BACKGROUND).seconds * 1e3


def timed_load_ms(kernel: Kernel) -> float:
    """Load the extension; how long that took by the kernel's own clock."""
    kernel.run(IMPORT_CLOCK)
    kernel.settle()
    kernel.run("load_ms = timed_magic('load_ext', 'ipytaskpersist')")
    return float(kernel.value("load_ms"))


def recovery(bench: Bench) -> list[Row]:
    """The first list of a fresh kernel whose predecessor died with a task running."""
    full, empty = bench.full_state, bench.empty_state()
    bench.say(f"listing in {2 * bench.scale.kernels} fresh kernels")
    with bench.loaded_kernel(full) as kernel:
        kernel.run(LEFT_RUNNING)
    took: dict[Path, list[tuple[float, float]]] = {full: [], empty: []}
    for _ in range(bench.scale.kernels):
        for state, samples in took.items():
            with bench.kernel(state) as kernel:
                samples.append(first_list_ms(kernel))
                if state == full:
                    check_recovered(state)
                    kernel.run(LEFT_RUNNING)
    rows = []
    for kind, where in enumerate(("in the kernel", "round trip")):
        what = "first `%bg_list`, {}, " + where
        times = {state: tuple(pair[kind] for pair in pairs) for state, pairs in took.items()}
        less = Row("recovery", what.format("empty store"), "ms", times[empty])
        more = Row("recovery", what.format(bench.past), "ms", times[full])
        rows += [less, more.at_most_above(30, less)]
    return rows


def first_list_ms(kernel: Kernel) -> tuple[float, float]:
    """How long the first list takes, by the kernel's own clock and as a round trip."""
    kernel.run(IMPORT_CLOCK)
    kernel.run(LOAD)
    kernel.settle()
    reply = kernel.run("list_ms = timed_magic('bg_list')")
    return float(kernel.value("list_ms")), reply.seconds * 1e3


def check_recovered(state: Path) -> None:
    """Make sure that the list found out which task had died with its kernel."""
    with stores.opened(state) as store:
        live = store.tasks.count(Selection(states=[TaskState.PENDING, TaskState.RUNNING]))
    if live:
        raise BenchmarkError(f"{live} tasks of dead kernels still count as running")
