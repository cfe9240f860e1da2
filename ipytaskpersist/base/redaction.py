"""Names of secrets, whose values are neither kept nor shown.

A pattern is that of `fnmatch`: ``*`` matches anything, and case does not matter.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from functools import cache

ALWAYS = (
    *("*token*", "*passw*", "*passphrase*", "*pwd*", "*secret*", "*key*", "*credential*"),
    *("*authorization*", "*cookie*", "*bearer*", "*private*"),
)
"""Patterns that always apply: no setting, and so no folder's ``pyproject.toml``, removes them."""
NAME_CHARACTERS = 100
"""Length of a name's prefix that is matched."""

_more: tuple[str, ...] = ()


def use(patterns: Iterable[str]) -> None:
    """Add patterns of secret names, replacing those added before."""
    global _more
    _more = tuple(patterns)


def in_use() -> tuple[str, ...]:
    """Return the patterns in use besides those that always apply."""
    return _more


def is_secret(name: str) -> bool:
    """Return whether a name is that of a secret."""
    return _expression(_more).fullmatch(name[:NAME_CHARACTERS]) is not None


@cache
def _expression(more: tuple[str, ...]) -> re.Pattern[str]:
    patterns = (*ALWAYS, *more)
    return re.compile("|".join(map(fnmatch.translate, patterns)), re.IGNORECASE)


def without_values(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return an environment with None for the values of secrets."""
    return {name: None if is_secret(name) else value for name, value in environment.items()}
