"""Describe errors of foreign code without running any more of it.

A class may define its errors' text, its name and its truth value, and any of these may raise. So
types are compared, never tested with `isinstance`, and only builtin types' methods are called.
"""

from __future__ import annotations

from typing import Any

_name_of_class = type.__dict__["__name__"].__get__
MESSAGE_CHARACTERS = 10_000


def class_name(value: Any) -> str:
    """Return the name of a value's class."""
    name: str = _name_of_class(type(value))
    return name


def message(error: BaseException) -> str:
    """Return the text of an error; empty when its class raises instead of returning one."""
    try:
        return plain_text(str(error))
    except BaseException:  # the text of an error must not become another error
        return ""


def plain_text(text: str) -> str:
    """Return the characters of a text, whose class may have methods of its own."""
    return str.__str__(text)


def describe(error: BaseException) -> str:
    """Return an error in one line: its class and the first line of its message."""
    return one_line(class_name(error), message(error))


def one_line(name: str, text: str) -> str:
    """Return the name of an error's class and the first line of its message."""
    first = next(iter(text[:MESSAGE_CHARACTERS].splitlines()), "")
    return f"{name}: {first}" if first else name
