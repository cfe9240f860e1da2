"""Modules that this process has imported, without importing any."""

from __future__ import annotations

import sys
from typing import Any


def imported(name: str) -> Any:
    """Return a module that is imported; None if it is not, or another thread is importing it."""
    module = sys.modules.get(name)
    return None if is_beginning(module) else module


def is_beginning(module: Any) -> bool:
    """Return whether a module's import is not over yet, so that it lacks some of its content."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
