"""What a task that prints a gigabyte costs: memory while it prints, time to see its end."""

from __future__ import annotations

from benchmarks.bench import LOAD, NAME, Bench
from benchmarks.fresh import IMPORT_CLOCK
from benchmarks.inside import LINE_BYTES, log_line, log_texts
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row

TAIL_LINES = 20


def tail(bench: Bench) -> list[Row]:
    """The last lines of the task that printed the long log."""
    state = bench.full_state
    bench.say(f"reading the tail of {bench.log_size} {bench.scale.tails} times")
    inside, trips, first = [], [], []
    for _ in range(bench.scale.kernels):
        with bench.kernel(state) as kernel:
            kernel.run(IMPORT_CLOCK)
            kernel.run(LOAD)
            first.append(tail_ms(bench, kernel)[0])
            for _ in range(-(-bench.scale.tails // bench.scale.kernels)):
                by_kernel, trip = tail_ms(bench, kernel)
                inside.append(by_kernel)
                trips.append(trip)
    what = f"`%bg_output --tail {TAIL_LINES}` of {bench.log_size}"
    return [
        Row("tail", f"{what}, in the kernel", "ms", tuple(inside)).at_most(20),
        Row("tail", f"{what}, round trip", "ms", tuple(trips)).at_most(20),
        Row("tail", "the first in a fresh kernel", "ms", tuple(first)),
    ]


def tail_ms(bench: Bench, kernel: Kernel) -> tuple[float, float]:
    """How long the tail takes, by the kernel's own clock and as a round trip."""
    kernel.settle()
    reply = kernel.run(f"tail_ms = timed_magic('bg_output', '{NAME} --tail {TAIL_LINES}')")
    lines = bench.scale.log_bytes // LINE_BYTES
    texts = log_texts()
    expected = "".join(log_line(index, texts) for index in range(lines - TAIL_LINES, lines))
    if reply.text.strip() != expected.strip():
        raise BenchmarkError(f"not the last {TAIL_LINES} lines:\n{reply.text[:2000]}")
    return float(kernel.value("tail_ms")), reply.seconds * 1e3


def memory(bench: Bench) -> list[Row]:
    """How the kernel grows while a background task prints the long log."""
    _ = bench.full_state  # Making it is the first measurement.
    while len(bench.memory_mb) < bench.scale.log_runs:
        bench.print_log(bench.new_state())
    what = f"the kernel's growth while a task prints {bench.log_size}"
    return [Row("memory", what, "MB", tuple(bench.memory_mb)).at_most(25)]
