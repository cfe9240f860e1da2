"""How much of what a task prints is lost when its kernel is killed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import LOAD, Bench
from benchmarks.results import BenchmarkError, Judgement, Row
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.store.tasks import Selection

LIMIT_MS = 50
PACES = ((1, 0.0), (1, 0.003), (7, 0.02), (1000, 0.001))
"""After how many lines the task pauses, and for how many seconds."""
LIVES_S = (0.05, 0.3)
"""For how long it prints, at least and at most."""

# Prints a number and writes the same number, with the time, to a file that no kernel buffers.
PRINTING = """\
%%background numbers
import os, time
witness = os.open({witness!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
number = 0
while True:
    print("line", number)
    os.write(witness, b"%d %.6f\\n" % (number, time.time()))
    number += 1
    if number % {burst} == 0:
        time.sleep({pause})
"""


def killed(bench: Bench) -> list[Row]:
    """The oldest line that the store does not have: how long before the kernel's death it was."""
    kills = len(PACES) * bench.scale.kernels
    bench.say(f"killing {kills} kernels")
    lost_ms = tuple(lost_by_a_kill(bench, number, kills) for number in range(kills))
    row = Row("killed", "of a killed kernel's output, what is not in the store", "ms", lost_ms)
    return [replace(row, judgement=Judgement(max(lost_ms), LIMIT_MS, "ms at worst"))]


def lost_by_a_kill(bench: Bench, number: int, of: int) -> float:
    """Kill a kernel while it prints. Returns the milliseconds of its output that are lost."""
    state, witness = bench.new_state(), bench.new_file()
    burst, pause_s = PACES[number % len(PACES)]
    least, most = LIVES_S
    with bench.kernel(state) as kernel:
        kernel.run(LOAD)
        kernel.run(PRINTING.format(witness=str(witness), burst=burst, pause=pause_s))
        time.sleep(least + number / of * (most - least))
        kernel.process.kill()
    return lost_ms(state, witness)


def lost_ms(state: Path, witness: Path) -> float:
    """How long before the last line the first one was printed that the store does not have."""
    rows = [line.split() for line in witness.read_text().splitlines()]
    with stores.opened(state) as store:
        (task,) = store.tasks.select(Selection())
        pieces = store.outputs.of(task.key, kinds=[OutputKind.STDOUT])
        text = b"".join(output.data for output in pieces).decode()
    if not "".join(f"line {number}\n" for number in range(len(rows) + 1)).startswith(text):
        raise BenchmarkError("what is in the store is not a prefix of what was printed")
    lost = [float(at) for _number, at in rows[text.count("\n") :]]
    return 1e3 * (float(rows[-1][1]) - lost[0]) if lost else 0.0
