"""Ages as a person types them: ``90s``, ``30m``, ``12h``, ``7d``, ``2w``."""

from __future__ import annotations

import re

from ipytaskpersist.errors import InvalidRequest

AGE = re.compile(r"(?P<count>\d{1,9}(?:\.\d{1,9})?)\s*(?P<unit>[smhdw])", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_age(text: str) -> float:
    """How many seconds an age is. Raises `InvalidRequest` for anything else."""
    found = AGE.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidRequest(
            f"'{text}' is no age; give a number and a unit: 90s, 30m (minutes), 12h, 7d, 2w"
        )
    return float(found["count"]) * SECONDS[found["unit"]]
