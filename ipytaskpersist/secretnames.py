"""Which names are those of secrets: their values are neither kept nor shown.

A pattern is that of `fnmatch`: ``*`` stands for anything, and case does not matter.
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
"""What is a secret's name in any case: no setting, so no folder's ``pyproject.toml``, takes it
away."""
NAME_CHARACTERS = 100
"""So much of a name is looked at."""

_more: tuple[str, ...] = ()


def use(patterns: Iterable[str]) -> None:
    """From now on names like these are those of secrets, too."""
    global _more
    _more = tuple(patterns)


def in_use() -> tuple[str, ...]:
    """The patterns that are in use besides those that always are."""
    return _more


def is_secret(name: str) -> bool:
    """Whether a name is that of a secret."""
    return _expression(_more).fullmatch(name[:NAME_CHARACTERS]) is not None


@cache
def _expression(more: tuple[str, ...]) -> re.Pattern[str]:
    patterns = (*ALWAYS, *more)
    return re.compile("|".join(map(fnmatch.translate, patterns)), re.IGNORECASE)


def without_values(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """An environment in which None stands for the values of secrets."""
    return {name: None if is_secret(name) else value for name, value in environment.items()}
