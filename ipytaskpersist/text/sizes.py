"""Sizes as the user types them: ``8G``, ``500M``, ``1.5TB``, ``16GiB``."""

from __future__ import annotations

import re

from ipytaskpersist.base.legible import legible
from ipytaskpersist.errors import InvalidRequest

SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,12})?)\s*(b|[kmgt]i?b?)", re.ASCII)
POWERS = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str, flag: str) -> int:
    """Return the bytes of a size. Raise `InvalidRequest`, which names the option, for another text.

    ``G`` and ``GB`` are 10⁹ bytes, as sizes are shown; ``GiB`` and ``Gi`` are 2³⁰.
    """
    found = SIZE.fullmatch(text.strip().lower())
    amount, unit = found.groups() if found else ("0", "b")
    size_bytes = int(float(amount) * (1024 if "i" in unit else 1000) ** POWERS[unit[0]])
    if size_bytes <= 0:
        raise InvalidRequest(
            f"{flag} is a size greater than 0, with its unit, not '{legible(text)}'; examples: "
            "8G, 500M, 1.5T, 16GiB"
        )
    return size_bytes
