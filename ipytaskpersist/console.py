"""What the terminal at hand can do, as it says itself and as the environment says."""

from __future__ import annotations

import os
from typing import Any

from ipytaskpersist.active import active_task

UNKNOWN_WIDTH = 110


def is_terminal(stream: Any) -> bool:
    """Whether what is written there is seen at once: not what a task prints."""
    return active_task.get() is None and bool(stream.isatty())


def can_move() -> bool:
    """Whether a terminal here understands any sequences."""
    return os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def has_styles(stream: Any) -> bool:
    """Whether colours are wanted there: a terminal that can have them, and no NO_COLOR."""
    return is_terminal(stream) and can_move() and not os.environ.get("NO_COLOR")


def width(stream: Any) -> int:
    """How many columns there are now."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or UNKNOWN_WIDTH
    except (OSError, ValueError, AttributeError):
        return UNKNOWN_WIDTH
