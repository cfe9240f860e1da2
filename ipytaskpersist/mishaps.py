"""What code of others has raised, in words, without running any more of it.

A class may define what its errors' texts, its name and its truth are, and any of these may raise
in its turn. So types are asked, never `isinstance`, and only builtin types' methods are called.
"""

from __future__ import annotations

from typing import Any

_name_of_class = type.__dict__["__name__"].__get__
MESSAGE_CHARACTERS = 10_000


def class_name(value: Any) -> str:
    """The name of a value's class."""
    name: str = _name_of_class(type(value))
    return name


def message(error: BaseException) -> str:
    """The text of an error; empty where its class raises something instead of giving one."""
    try:
        return plain_text(str(error))
    except BaseException:  # the text of an error must not become another error
        return ""


def plain_text(text: str) -> str:
    """The characters of a text, whose class may have methods of its own."""
    return str.__str__(text)


def describe(error: BaseException) -> str:
    """An error in one line: its class and the first line of its message."""
    return one_line(class_name(error), message(error))


def one_line(name: str, text: str) -> str:
    """The name of an error's class and the first line of its message."""
    first = next(iter(text[:MESSAGE_CHARACTERS].splitlines()), "")
    return f"{name}: {first}" if first else name
