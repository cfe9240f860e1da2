"""Capabilities of the current terminal, from the terminal itself and the environment."""

from __future__ import annotations

import os
from typing import Any

from ipytaskpersist.running.running_task import active_task

UNKNOWN_WIDTH = 110


def is_terminal(stream: Any) -> bool:
    """Return whether text written there is visible at once, unlike a task's output."""
    return active_task.get() is None and bool(stream.isatty())


def can_move() -> bool:
    """Return whether the terminal understands control sequences."""
    return os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def has_styles(stream: Any) -> bool:
    """Return whether to use colours: on a terminal that supports them, without NO_COLOR."""
    return is_terminal(stream) and can_move() and not os.environ.get("NO_COLOR")


def width(stream: Any) -> int:
    """Return the current number of columns."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or UNKNOWN_WIDTH
    except (OSError, ValueError, AttributeError):
        return UNKNOWN_WIDTH
