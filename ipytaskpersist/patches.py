"""Changes to objects of others, each remembered, so that unloading puts everything back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import BuiltinFunctionType
from typing import Any
from weakref import WeakSet

from ipytaskpersist import standins

_ABSENT = object()
_all: WeakSet[Patches] = WeakSet()


class Patches:
    """The changes that one loaded extension has made."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self.are_undone = False
        self.places: list[tuple[Any, str]] = []
        """The attributes that are not what they were: the owner and the name."""
        _all.add(self)

    def replace(self, owner: Any, name: str, make: standins.Make) -> None:
        """Replace a callable, which keeps its identity, its looks and its pickle.

        make: makes the replacement of the plain callable. The replacement gets all arguments,
        defaults included, and of an object's method those without the object.

        A function of Python is replaced wherever it is: for other owners of it, and for code that
        has imported it earlier.
        """
        value = getattr(owner, name)
        function = standins.function_behind(value)
        if function is None:
            self.stand_in(owner, name, make)
            return
        inherits = isinstance(owner, type) and name not in vars(owner)
        self._undo.append(standins.exchange(function, value, make, owner if inherits else None))
        self.places.append((owner, name))

    def stand_in(
        self,
        owner: Any,
        name: str,
        make: standins.Make,
        base: type[standins.StandIn] = standins.StandIn,
    ) -> None:
        """Put an object in a callable's place that looks like it: its own code stays."""
        plain = getattr(owner, name)
        stand_in = standins.stand_in(plain, make(plain), base)
        self._undo.append(stand_in.retire)
        if type(plain) is BuiltinFunctionType:
            self._undo.append(standins.hide(plain))
        self.set(owner, name, stand_in)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, remembering what the owner itself had under that name."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self.places.append((owner, name))

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
        self.places.clear()


def places() -> Iterator[tuple[Any, str]]:
    """Each attribute of others that is changed in this process: its owner and its name."""
    for patches in [*_all]:
        yield from patches.places
