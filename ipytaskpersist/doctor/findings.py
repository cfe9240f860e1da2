"""The doctor's findings: a level, a message, and advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.examination import ExaminedStore

OK, WARNING, BROKEN = "ok", "warning", "broken"
LEVELS = (OK, WARNING, BROKEN)
"""From best to worst. The index of the worst finding is the exit status."""

GLYPHS = {OK: "✓", WARNING: "!", BROKEN: "✕"}

LIVE = (TaskState.PENDING, TaskState.RUNNING)


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of a check."""

    check: str
    """Name of the check."""
    level: str
    """``ok``; ``warning``: something may go wrong; or ``broken``: something does not work."""
    message: str
    advice: str = ""
    """What to do; empty if there is nothing to do."""

    def as_json(self) -> dict[str, str]:
        """Return the document of `doctor --json`."""
        return {
            "check": self.check,
            "level": self.level,
            "message": self.message,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class Examined:
    """The subject of the checks."""

    directory: StateDirectory
    store: ExaminedStore
    own_session: str
    """The session that runs the checks, which is alive."""
    setting_problems: Sequence[str]
    now: datetime
    refusal: OSError | None
    """The system's error when writing there, or in the folder that would contain it."""


Check = Callable[[Examined], Iterator[Finding]]


def ok(message: str) -> Finding:
    """Return a finding without a problem."""
    return Finding("", OK, message)


def warning(message: str, advice: str) -> Finding:
    """Return a finding that may become a problem."""
    return Finding("", WARNING, message, advice)


def broken(message: str, advice: str) -> Finding:
    """Return a finding that is a problem now."""
    return Finding("", BROKEN, message, advice)
