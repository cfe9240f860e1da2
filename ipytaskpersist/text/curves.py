"""Amounts over time, drawn in characters: a curve in one line, and a plot of several."""

from __future__ import annotations

from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
FULL = BARS[-1]


def resampled(amounts: Sequence[tuple[float, float]], columns: int) -> list[float]:
    """Return the largest amount in each of so many equal stretches of time.

    Each amount has the length of its time before it. They follow each other.
    """
    whole_s = sum(span_s for span_s, _amount in amounts)
    found = [0.0] * columns
    begun_s = 0.0
    for span_s, amount in amounts:
        ended_s = begun_s + span_s
        first = int(begun_s / whole_s * columns) if whole_s else 0
        last = int(ended_s / whole_s * columns - 1e-9) if whole_s else 0
        for column in range(min(first, columns - 1), min(last, columns - 1) + 1):
            found[column] = max(found[column], amount)
        begun_s = ended_s
    return found


def curve(amounts: Sequence[tuple[float, float]], columns: int = 12) -> str:
    """Return a curve of one line, from nothing to the largest amount; empty for none."""
    heights = resampled(amounts, min(columns, len(amounts)))
    most = max(heights, default=0.0)
    return "".join(BARS[round(each / most * (len(BARS) - 1))] for each in heights) if most else ""


def plot(amounts: Sequence[tuple[float, float]], top: float, columns: int, rows: int) -> list[str]:
    """Return a plot of so many lines, from nothing to `top`."""
    heights = [each / top * rows * len(BARS) for each in resampled(amounts, columns)]
    return ["".join(_cell(each - row * len(BARS)) for each in heights) for row in range(rows)][::-1]


def _cell(height: float) -> str:
    """Return the character for what of a column is in one line, in eighths of the line."""
    if height >= len(BARS):
        return FULL
    return BARS[max(0, round(height) - 1)] if height > 0 else " "
