"""What a task has used of its machine over time: points, the closer to each other the younger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass

CLOSEST_S = 1.0
"""Time between two of the youngest points that are kept."""
SHARE_OF_AGE = 60
"""A point stands for this part of its age, in seconds: for a minute when it is an hour old."""


@dataclass(frozen=True, slots=True)
class Point:
    """What all processes of a task together have used in one stretch of time."""

    at: float
    """End of the time, in seconds since the epoch."""
    span_s: float
    """How long it was, in seconds."""
    memory_bytes: int
    """The most resident memory in this time. What processes share is counted several times."""
    cpu_s: float
    """Processor time taken, in seconds."""
    read_bytes: int
    """Bytes read from disks."""
    written_bytes: int
    threads: int
    processes: int

    @property
    def cpus(self) -> float:
        """How many processors it has kept busy, on average."""
        return self.cpu_s / self.span_s if self.span_s else 0.0

    def then(self, later: Point) -> Point:
        """Return this time and the one after it as one."""
        return Point(
            later.at,
            self.span_s + later.span_s,
            max(self.memory_bytes, later.memory_bytes),
            self.cpu_s + later.cpu_s,
            self.read_bytes + later.read_bytes,
            self.written_bytes + later.written_bytes,
            max(self.threads, later.threads),
            max(self.processes, later.processes),
        )

    def is_like(self, other: Point) -> bool:
        """Return whether another time shows nothing new: neither work nor a change of memory."""
        has_worked = max(self.cpus, other.cpus) > 0.01 or other.read_bytes or other.written_bytes
        grown_bytes = abs(self.memory_bytes - other.memory_bytes)
        return not has_worked and grown_bytes * 100 <= self.memory_bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """What a task has used from its start on."""

    points: tuple[Point, ...]
    limit_bytes: int
    """How much memory there was for it."""
    is_own_limit: bool
    """Whether that is the limit with which it was launched; else it is the machine's memory."""

    @property
    def last(self) -> Point:
        """The latest point."""
        return self.points[-1]

    @property
    def peak_bytes(self) -> int:
        """The most memory that it was seen to use."""
        return max(point.memory_bytes for point in self.points)

    def as_stored(self) -> str:
        """Return the usage as the store keeps it."""
        points = [
            [round(each, 3) if isinstance(each, float) else each for each in astuple(point)]
            for point in self.points
        ]
        return json.dumps([self.limit_bytes, self.is_own_limit, points], separators=(",", ":"))

    @classmethod
    def from_stored(cls, text: str) -> Usage:
        """Return the usage that `as_stored` wrote."""
        limit_bytes, is_own_limit, points = json.loads(text)
        return cls(tuple(Point(*each) for each in points), limit_bytes, is_own_limit)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return the points with those joined that are old enough for it, or show nothing new.

    One of a second is kept for each second of the last minute, one of a minute for what was an hour
    ago, and so on. So a day takes some six hundred.
    """
    kept: list[Point] = []
    for point in points:
        if kept and _may_join(kept, point, points[-1].at - point.at):
            kept[-1] = kept[-1].then(point)
        else:
            kept.append(point)
    return kept


def _may_join(kept: Sequence[Point], point: Point, age_s: float) -> bool:
    before = kept[-1]
    if before.span_s + point.span_s <= max(CLOSEST_S, age_s / SHARE_OF_AGE):
        return True
    return len(kept) > 1 and before.is_like(point) and kept[-2].is_like(point)
