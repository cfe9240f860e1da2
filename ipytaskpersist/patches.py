"""Changes to objects of others, each remembered, so that unloading puts everything back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Patches:
    """The changes that one loaded extension has made."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self.are_undone = False

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, remembering what the owner itself had under that name."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)

        def undo() -> None:
            if vars(owner).get(name, _ABSENT) is not value:
                return  # somebody changed it after us, and keeps what they set
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(undo)

    def on_undo(self, undo: Callable[[], None]) -> None:
        """Call `undo` when everything is put back."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Put everything back, the last change first."""
        self.are_undone = True
        while self._undo:
            self._undo.pop()()
