"""Changes to foreign objects, remembered so that unloading the extension reverts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import BuiltinFunctionType
from typing import Any
from weakref import WeakSet

from ipytaskpersist.base import stand_ins

_ABSENT = object()
_all: WeakSet[Patches] = WeakSet()


class Patches:
    """The changes that one loaded extension has made."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self.are_undone = False
        self.places: list[tuple[Any, str]] = []
        """Changed attributes, as owner and name."""
        _all.add(self)

    def replace(self, owner: Any, name: str, make: stand_ins.Make) -> None:
        """Replace a callable, which keeps its identity, its looks and its pickle.

        make: makes the replacement from the original callable. The replacement gets all arguments,
        defaults included, and for an object's method those without the object.

        A Python function is replaced everywhere: for other owners of it, and for code that has
        imported it earlier.
        """
        value = getattr(owner, name)
        function = stand_ins.function_behind(value)
        if function is None:
            self.stand_in(owner, name, make)
            return
        inherits = isinstance(owner, type) and name not in vars(owner)
        self._undo.append(stand_ins.exchange(function, value, make, owner if inherits else None))
        self.places.append((owner, name))

    def stand_in(
        self,
        owner: Any,
        name: str,
        make: stand_ins.Make,
        base: type[stand_ins.StandIn] = stand_ins.StandIn,
    ) -> None:
        """Replace a callable with an object that looks like it. Its code stays."""
        plain = getattr(owner, name)
        stand_in = stand_ins.stand_in(plain, make(plain), base)
        self._undo.append(stand_in.retire)
        if type(plain) is BuiltinFunctionType:
            self._undo.append(stand_ins.hide(plain))
        self.set(owner, name, stand_in)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, remembering what the owner itself had under that name."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self.places.append((owner, name))

        def undo() -> None:
            if vars(owner).get(name, _ABSENT) is not value:
                return  # changed after us by other code, which keeps its value
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(undo)

    def on_undo(self, undo: Callable[[], None]) -> None:
        """Call `undo` when everything is reverted."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Revert everything, the last change first."""
        self.are_undone = True
        while self._undo:
            self._undo.pop()()
        self.places.clear()


def places() -> Iterator[tuple[Any, str]]:
    """Yield each foreign attribute changed in this process: its owner and its name."""
    for patches in [*_all]:
        yield from patches.places
