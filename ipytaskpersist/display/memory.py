"""One task's memory over time: in words, as a curve of one line, and as a plot."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ipytaskpersist.base.usage import Usage
from ipytaskpersist.text import curves, formatting

PLOT_COLUMNS, PLOT_ROWS = 60, 8
NEAR_LIMIT = 4
"""A limit is drawn if the peak is more than this part of it; else the plot would be flat."""


def memory_curve(usage: Usage | None) -> str:
    """Return a task's memory over time as a curve of one line; empty without two points."""
    if usage is None or len(usage.points) < 2:
        return ""
    return curves.curve(_memory_of(usage))


def _memory_of(usage: Usage) -> list[tuple[float, float]]:
    return [(point.span_s, float(point.memory_bytes)) for point in usage.points]


def in_words(usage: Usage) -> str:
    """Return how much memory a task has used of how much there was for it."""
    whole = formatting.short_size(usage.limit_bytes)
    of = f"its {whole}" if usage.is_own_limit else f"the machine's {whole}"
    last, at = usage.last, datetime.fromtimestamp(usage.last.at, UTC)
    peak = formatting.size(usage.peak_bytes)
    return (
        f"{formatting.size(last.memory_bytes)} of {of} when last seen at "
        f"{formatting.utc_clock(at)}, {peak} at most, all processes together"
    )


def memory_plot(usage: Usage) -> str:
    """Return a plot of a task's memory over time, with its limit where that is near."""
    has_limit = usage.peak_bytes * NEAR_LIMIT > usage.limit_bytes
    top = max(usage.limit_bytes, usage.peak_bytes) if has_limit else usage.peak_bytes
    lines = curves.plot(_memory_of(usage), top, PLOT_COLUMNS, PLOT_ROWS)
    label = formatting.short_size(int(top))
    width = len(label)
    drawn = [f"{'':{width}} │{line.rstrip()}" for line in lines]
    drawn[0] = f"{label} ┤{lines[0].rstrip()}"
    if has_limit:
        drawn.insert(0, f"{'':{width}} ╌{'╌' * PLOT_COLUMNS} {_limit_name(usage)}")
    whole_s = sum(point.span_s for point in usage.points)
    return "\n".join(["memory over time", *drawn, f"{'':{width}} └{_axis(whole_s)}"])


def _limit_name(usage: Usage) -> str:
    return "its limit" if usage.is_own_limit else "the machine's memory"


def _axis(whole_s: float) -> str:
    ended = formatting.duration(whole_s)
    return f"0{'─' * (PLOT_COLUMNS - len(ended) - 1)}{ended}"


def document(usage: Usage | None) -> dict[str, Any] | None:
    """Return a task's usage as ``show --json`` prints it."""
    if usage is None:
        return None
    return {
        "limit_bytes": usage.limit_bytes,
        "is_own_limit": usage.is_own_limit,
        "peak_bytes": usage.peak_bytes,
        "points": [asdict(point) for point in usage.points],
    }
