"""Ages as a person types them: ``90s``, ``30m``, ``12h``, ``7d``, ``2w``."""

from __future__ import annotations

import re

from ipytaskpersist.errors import InvalidRequest

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_age(text: str) -> float:
    """Seconds. Raises `InvalidRequest` for what is no age."""
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw])\s*", text, re.ASCII)
    if found is None:
        raise InvalidRequest(
            f"'{text}' is no age; write a number with its unit: 90s, 30m, 12h, 7d or 2w"
        )
    return float(found[1]) * SECONDS[found[2]]
