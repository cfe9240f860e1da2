"""Ages and dates as the user types them: ``90s``, ``30m``, ``12h``, ``7d``, ``2026-01-31``."""

from __future__ import annotations

import re
from datetime import datetime

from ipytaskpersist.errors import InvalidRequest

AGE = re.compile(r"(?P<count>\d{1,9}(?:\.\d{1,9})?)\s*(?P<unit>[smhdw])", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_age(text: str) -> float:
    """Return the seconds of an age. Raises `InvalidRequest` for anything else."""
    found = AGE.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidRequest(
            f"'{text}' is no age; give a number and a unit: 90s, 30m (minutes), 12h, 7d, 2w"
        )
    return float(found["count"]) * SECONDS[found["unit"]]


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
