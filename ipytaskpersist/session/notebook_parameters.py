"""The parameters of a whole notebook: what ``-p NAME=VALUE`` means, and what may be given."""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.errors import InvalidRequest

WORDS = {"true": True, "false": False, "null": None, "none": None}
FRACTION = re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?")
"""Numbers that JSON does not write so: ``.5`` and ``2.``"""


def parsed(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``NAME=VALUE`` by name. Raise `InvalidRequest`.

    A value is a number, true, false, null, or a list, object or quoted text as JSON or Python write
    it; else text.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"-p takes NAME=VALUE, and '{legible(pair)}' is not of this form")
        if name in values:
            raise InvalidRequest(f"the parameter {legible(name)} is given twice; give it once")
        values[name] = value_of(text)
    check(values)
    return values


def value_of(text: str) -> Any:
    """Return the value that a text stands for; the text itself if it is nothing else."""
    stripped = text.strip()
    if stripped.lower() in WORDS:
        return WORDS[stripped.lower()]
    if FRACTION.fullmatch(stripped):
        return float(stripped)
    for read in (json.loads, _literal):
        try:
            value = read(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if _is_plain(value):
            return value
    return text


def _literal(text: str) -> Any:
    """Return a list, an object or a quoted text of Python. Raise `ValueError` for others."""
    if not text.startswith(("[", "{", "'", '"')):
        raise ValueError(text)
    return ast.literal_eval(text)


def _is_plain(value: Any) -> bool:
    """Return whether JSON has this value, and gives it back as it is."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (ValueError, TypeError, RecursionError):
        return False


def check(parameters: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for what cannot be the name or the value of a parameter."""
    for name, value in parameters.items():
        if not name.isidentifier() or keyword.iskeyword(name):
            raise InvalidRequest(
                f"a parameter is named as a variable is, and '{legible(name)}' is not such a name"
            )
        if not _is_plain(value):
            raise InvalidRequest(
                f"the parameter {legible(name)} (of type {type(value).__name__}) cannot be given: "
                "a notebook takes finite numbers, texts, True, False, None, and lists and dicts of "
                "these"
            )


def in_words(parameters: Mapping[str, Any]) -> str:
    """Return parameters as they are shown: ``day="2026-11-28", rows=100``."""
    return ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in parameters.items()
    )
