"""What a print costs in a background cell, beside a foreground cell."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.results import Row

PRINT_LOOP = """\
from time import perf_counter
begun = perf_counter()
for i in range({prints}):
    print(i)
print_us = (perf_counter() - begun) / {prints} * 1e6
"""


def printing(bench: Bench) -> list[Row]:
    """What a print costs in a background cell and in a foreground cell, taken in turns."""
    loop = PRINT_LOOP.format(prints=bench.scale.prints)
    bench.say(f"printing {bench.scale.prints:,} lines {bench.scale.print_loops} times each")
    foreground, background = [], []
    with bench.loaded_kernel(bench.new_state()) as kernel:
        for _ in range(bench.scale.print_loops):
            kernel.settle()
            kernel.run(loop)
            foreground.append(kernel.value("print_us"))
            kernel.settle()
            kernel.run("%%background printing\n" + loop)
            kernel.run("%bg_wait printing")
            background.append(kernel.value("print_us"))
    usual = Row("print", "`print(i)` in a foreground cell", "µs", tuple(foreground))
    ours = Row("print", "`print(i)` in a background cell", "µs", tuple(background))
    return [ours.at_most_times(0.2, usual, "the foreground"), usual]
