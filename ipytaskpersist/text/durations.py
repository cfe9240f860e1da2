"""Ages, delays, times and dates as the user types them: ``90s``, ``1h30m``, ``7d``, ``22:00``,
``2026-01-31``."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

from ipytaskpersist.errors import InvalidRequest

PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw])\s*", re.ASCII)
AGE = re.compile(rf"(?:{PART.pattern})+", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_age(text: str) -> float:
    """Return the seconds of an age. Raises `InvalidRequest` for anything else."""
    if not is_age(text):
        raise InvalidRequest(
            f"'{text}' is no age; give a number and a unit: 90s, 30m (minutes), 12h, 7d, 2w, 1h30m"
        )
    return sum(float(count) * SECONDS[unit] for count, unit in PART.findall(text.lower()))


def is_age(text: str) -> bool:
    """Return whether a text is an age or a delay, such as ``90s`` or ``1h30m``."""
    return AGE.fullmatch(text.strip().lower()) is not None


def parse_since(text: str, now: datetime) -> datetime:
    """Return the time of an age before now, or of an ISO date or time, local without a zone.

    Raises `InvalidRequest` for anything else.
    """
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromtimestamp(now.timestamp() - parse_age(text), now.tzinfo)
    except (InvalidRequest, ValueError, OverflowError, OSError):
        raise InvalidRequest(
            f"'{text}' is neither an age (90s, 30m for minutes, 12h, 7d, 2w) nor a date such as "
            "2026-01-31 or 2026-01-31T14:00"
        ) from None


def parse_moment(text: str, now: datetime) -> datetime:
    """Return a time to come: ``22:00`` (the next one), ``tomorrow 6:30``, or an ISO date and time.

    Without a zone it is local, as the clock shows it on that day. Raises `InvalidRequest` for
    anything else, and for a time in the past.
    """
    words = text.strip().lower()
    try:
        moment = datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        clock = _clock(words.removeprefix("tomorrow "), text)
        moment = _on(now, 1 if words.startswith("tomorrow ") else 0, clock)
        if moment <= now:
            moment = _on(now, 1, clock)
    if moment <= now:
        raise InvalidRequest(f"{text} is in the past: now it is {now:%Y-%m-%d %H:%M:%S %Z}")
    return moment


def _on(now: datetime, days: int, clock: time) -> datetime:
    return datetime.combine((now + timedelta(days=days)).date(), clock).astimezone()


def _clock(words: str, text: str) -> time:
    try:
        hour, minute, *rest = words.split(":")
        return time.fromisoformat(":".join([hour.rjust(2, "0"), minute, *rest]))
    except (ValueError, TypeError):
        raise InvalidRequest(
            f"'{text}' is no time to start at; examples: 22:00, tomorrow 6:30, 2026-11-30T06:00; "
            "--in 2h waits for two hours"
        ) from None
