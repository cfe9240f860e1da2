"""What the measured kernels call, so that a cell holds only what is measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep

from IPython.core.getipython import get_ipython

LINE_BYTES = 100
LINES_A_PRINT = 600


def nothing() -> None:
    """The smallest function that can be launched."""


def compute(seconds: float = 0.1) -> None:
    """Keep the interpreter busy, as a loop in pure Python does."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def timed_magic(name: str, line: str = "") -> float:
    """Run a line magic and return how many milliseconds it took."""
    shell = get_ipython()
    assert shell is not None, "only for code that runs in IPython"
    begun = perf_counter()
    shell.run_line_magic(name, line)
    return (perf_counter() - begun) * 1e3


def print_until(stop: str, pause_s: float) -> tuple[float, int]:
    """Print 0, 1, 2 … until a file appears: the longest print in ms, and how many there were."""
    longest, count, file = 0.0, 0, Path(stop)
    while count % 100 or not file.exists():
        begun = perf_counter()
        print(count)
        longest = max(longest, perf_counter() - begun)
        count += 1
        if pause_s:
            sleep(pause_s)
    return longest * 1e3, count


def log_line(index: int, texts: list[str]) -> str:
    """The line with this index of a long log."""
    return f"{index:011d} {texts[index % len(texts)]}\n"


def log_texts() -> list[str]:
    """What the lines of a long log say: always the same, and no easy prey for a compressor."""
    chance = random.Random(1)
    # The number before it, a space and the line feed make up the rest.
    return [f"{chance.getrandbits(348):087x}" for _ in range(4093)]


def long_log(size_bytes: int) -> Iterator[str]:
    """A log of so many bytes, some hundred lines at a time."""
    texts = log_texts()
    lines = size_bytes // LINE_BYTES
    for first in range(0, lines, LINES_A_PRINT):
        last = min(first + LINES_A_PRINT, lines)
        yield "".join([log_line(index, texts) for index in range(first, last)])
