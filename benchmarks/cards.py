"""What a kernel does for the status card of a task that runs in a process of its own."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.commands import supervised_kernel
from benchmarks.kernels import Kernel
from benchmarks.results import Row
from benchmarks.supervising import TICKING, WATCHES, core_percent

SLEEPING = "sleep 600"


def card(bench: Bench) -> list[Row]:
    """The share of a core that a card takes, over the same kernel without one."""
    bench.say(
        f"watching a kernel with and without cards for {3 * WATCHES * bench.scale.idle_s:g} s"
    )
    with supervised_kernel(bench, bench.new_state()) as kernel:
        alone = shares(bench, kernel)
        kernel.run(f"%%background --shell quiet\n{SLEEPING}")
        quiet = shares(bench, kernel)
        kernel.run("%bg_cancel quiet")
        kernel.run(f"%%background --shell ticking\n{TICKING}")
        ticking = shares(bench, kernel)
    usual = Row("card", "a kernel that does nothing: share of a core", "%", alone)
    what = "with the card of a task that {}: share of a core"
    rows = [
        Row("card", what.format("prints ten lines a second"), "%", ticking).at_most(1),
        Row("card", what.format("sleeps"), "%", quiet).at_most(1),
    ]
    return [*rows, usual]


def shares(bench: Bench, kernel: Kernel) -> tuple[float, ...]:
    """How much of a core the kernel uses, each of a few times."""
    kernel.settle()
    return tuple(core_percent(kernel.process, bench.scale.idle_s) for _ in range(WATCHES))
