"""Rows of measurements, the targets they are held against, and how both are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from statistics import median, quantiles
from typing import Any


class BenchmarkError(Exception):
    """What was to be measured did not happen as it must, so there is no figure."""


@dataclass(frozen=True)
class Judgement:
    """One figure held against its upper limit."""

    figure: float
    limit: float
    unit: str
    """``ms``, ``MB``, ``ms more``, ``x the foreground`` …"""

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the limit."""
        return self.figure <= self.limit

    def __str__(self) -> str:
        return f"{number(self.figure)} {self.unit}"

    @property
    def target(self) -> str:
        """The limit, in words."""
        return f"≤ {self.limit:g} {self.unit}"

    @property
    def verdict(self) -> str:
        """Met, or by how much it was missed."""
        if self.is_met:
            return "met"
        return f"**missed by {number(self.figure - self.limit)}**"


@dataclass(frozen=True)
class Row:
    """One thing measured repeatedly."""

    benchmark: str
    """Which benchmark measured it, as `--only` names it."""
    what: str
    unit: str
    samples: tuple[float, ...] = ()
    judgement: Judgement | None = None
    problem: str | None = None
    """Why there are no samples."""

    @property
    def median(self) -> float:
        """The middle sample."""
        return median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between which values the middle half of the samples lies."""
        if len(self.samples) < 2:
            return self.median, self.median
        first, _, third = quantiles(self.samples, n=4, method="inclusive")
        return first, third

    @property
    def is_good(self) -> bool:
        """Whether it was measured and no target is missed."""
        return self.problem is None and (self.judgement is None or self.judgement.is_met)

    def at_most(self, limit: float) -> Row:
        """Hold the median itself against a limit."""
        return replace(self, judgement=Judgement(self.median, limit, self.unit))

    def at_most_times(self, limit: float, other: Row, name: str) -> Row:
        """Hold the median against a multiple of another row's."""
        ratio = self.median / other.median if other.median > 0 else float("inf")
        return replace(self, judgement=Judgement(ratio, limit, f"x {name}"))

    def at_most_above(self, limit: float, other: Row) -> Row:
        """Hold against a limit what the median has more than another row's."""
        more = self.median - other.median
        return replace(self, judgement=Judgement(more, limit, f"{self.unit} more"))

    def as_json(self) -> dict[str, Any]:
        """The row in the JSON document."""
        document: dict[str, Any] = {
            "benchmark": self.benchmark,
            "what": self.what,
            "unit": self.unit,
            "samples": list(self.samples),
            "problem": self.problem,
        }
        if self.samples:
            first, third = self.quartiles
            document |= {"median": self.median, "first_quartile": first, "third_quartile": third}
        if self.judgement:
            document["target"] = {
                "figure": self.judgement.figure,
                "limit": self.judgement.limit,
                "unit": self.judgement.unit,
                "met": self.judgement.is_met,
            }
        return document

    def cells(self) -> list[str]:
        """The row in the table."""
        if not self.samples:
            return [self.benchmark, self.what, "", "", "", "", "", self.problem or ""]
        first, third = self.quartiles
        spread = f"{number(first)} to {number(third)}" if len(self.samples) > 1 else ""
        held = self.judgement
        return [
            self.benchmark,
            self.what,
            f"{number(self.median)} {self.unit}",
            spread,
            str(len(self.samples)),
            str(held) if held else "",
            held.target if held else "",
            held.verdict if held else "",
        ]


HEADINGS = ["", "what", "median", "middle half", "n", "figure", "target", ""]


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{value:,.{digits}f}"


def table(rows: Sequence[Row]) -> str:
    """All rows as a Markdown table whose columns also line up in a terminal."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(map(_line, lines, repeat(widths)))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"
