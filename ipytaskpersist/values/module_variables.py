"""What belongs to modules, to find out what a cell has changed there: it stays in its process.

The variables of the notebook's own modules, and the attributes of their classes, are compared by
content. Those of installed modules, which change for reasons of their own, are compared by
identity, and only where the cell names the module, class or function that they belong to.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import xxhash

from ipytaskpersist.values.buffers import known_digest
from ipytaskpersist.values.importable import MAIN
from ipytaskpersist.values.pickling import PickleBuffer, pickler

LARGEST_BYTES = 1024 * 1024
"""Size of a pickle, without its arrays, above which a variable is compared by identity only."""
CODE = (ModuleType, FunctionType, BuiltinFunctionType, type, property, classmethod, staticmethod)
"""What is compared by identity."""
PRIVATE = ("_", "last_")
"""Beginnings of names of what Python and libraries set for themselves: ``sys.last_value``."""
SIMPLE = (int, float, complex, str, bytes, bool, type(None))
OURS = "ipytaskpersist"
MISSING = object()
Chain = Sequence[str]
"""A name and the attributes that follow it: ``pd``, ``DataFrame``, ``total``."""


class ModuleVariables:
    """The variables of modules, as they were when this was created."""

    def __init__(self, namespace: Mapping[str, Any], chains: Iterable[Chain]) -> None:
        """`chains` are those that the cell mentions, in `namespace`."""
        self._own = [*own_modules()]
        self._digests = dict(self._contents())
        self._named = {
            shown: owner for chain in chains for shown, owner in _owners(namespace, chain)
        }
        self._vars = {shown: dict(vars(owner)) for shown, owner in self._named.items()}

    def changed(self, namespace: Mapping[str, Any], assigned: Iterable[Chain]) -> list[str]:
        """Return the names of what has changed. `assigned` are the chains that the cell assigns."""
        now, again = dict(self._contents()), dict(self._contents())
        steady = {name: each for name, each in now.items() if each == again.get(name)}
        names = {**self._digests, **steady}
        found = dict.fromkeys(
            name for name in names if self._digests.get(name, "") != steady.get(name, "")
        )
        own = {id(each) for each in self._own}
        for shown, owner in self._named.items():
            if id(owner) not in own:
                found.update(dict.fromkeys(_foreign(shown, owner, self._vars[shown])))
        found.update(dict.fromkeys(self._new(namespace, assigned)))
        return list(found)

    def _contents(self) -> Iterator[tuple[str, str]]:
        for module in self._own:
            for name, value in [*vars(module).items()]:
                if not is_dunder(name):
                    yield from _content(f"{module.__name__}.{name}", value, module.__name__)

    def _new(self, namespace: Mapping[str, Any], assigned: Iterable[Chain]) -> Iterator[str]:
        """Yield what the cell has assigned to modules that it has imported itself."""
        for *owner, name in assigned:
            for shown, found in _owners(namespace, owner):
                is_last = shown == ".".join(owner)
                if is_last and shown not in self._named and name in vars(found):
                    yield f"{shown}.{name}"


def own_modules() -> Iterator[ModuleType]:
    """Yield the modules that people edit: those of files outside the environment."""
    for name, module in [*sys.modules.items()]:
        if _others.get(name) is not module:
            if _is_own(name, module):
                yield module
            else:
                _others[name] = module


def _is_own(name: str, module: Any) -> bool:
    if type(module) is not ModuleType or name.partition(".")[0] in (OURS, MAIN):
        return False
    file = vars(module).get("__file__")
    if not isinstance(file, str) or module.__name__ != name:
        return False
    return not file.startswith(_installed())


_others: dict[str, Any] = {}
"""The modules that are known not to be such. To ask a thousand takes a few milliseconds."""


@cache
def _installed() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return (sys.prefix, *(sysconfig.get_path(name) for name in names))


def is_dunder(name: Any) -> bool:
    """Return whether a name is the interpreter's, as ``__doc__`` is."""
    return type(name) is not str or (name.startswith("__") and name.endswith("__"))


def _content(shown: str, value: Any, module: str) -> Iterator[tuple[str, str]]:
    """Yield what there is to compare of a variable; of a class of the module, its attributes."""
    if isinstance(value, type) and value.__module__ == module:
        for name, each in [*vars(value).items()]:
            if not is_dunder(name) and not isinstance(each, type):
                yield from _content(f"{shown}.{name}", each, module)
    else:
        yield shown, _digest(value)


def _digest(value: Any) -> str:
    """Return what tells a value's content apart; its identity, where that cannot be known."""
    its_type = type(value)
    if its_type in SIMPLE:
        return f"{its_type.__name__} {value!r}" if its_type is not str else f"str {hash(value)}"
    if not issubclass(its_type, CODE):
        with suppress(Exception):  # a class may raise anything when it is pickled
            return _Digest().of(value)
    return f"id {id(value)}"


class _TooLarge(Exception):
    """A pickle is larger than what is compared."""


class _Digest:
    """A file that keeps the digest of a pickle."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self._size = 0

    def of(self, value: Any) -> str:
        pickler(self, None, self._take).dump(value)
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Take a piece of the pickle."""
        size = memoryview(data).nbytes
        self._size += size
        if self._size > LARGEST_BYTES:
            raise _TooLarge
        self._hash.update(data)
        return size

    def _take(self, buffer: PickleBuffer) -> bool:
        self._hash.update(known_digest(buffer.raw()).encode())
        return False


# What the cell names.


def _owners(namespace: Mapping[str, Any], chain: Chain) -> Iterator[tuple[str, Any]]:
    """Yield the modules, classes and functions along a chain that are found by their names."""
    found: Any = namespace.get(chain[0], MISSING)
    for count in range(1, len(chain) + 1):
        if isinstance(found, ModuleType):
            # One that was made by hand has no spec, and comes along as a value.
            is_known = found.__name__ != MAIN and found.__spec__ is not None
        else:
            is_known = isinstance(found, type | FunctionType) and found.__module__ != MAIN
        if not is_known:
            return
        yield ".".join(chain[:count]), found
        found = vars(found).get(chain[count], MISSING) if count < len(chain) else MISSING


def _foreign(shown: str, owner: Any, before: Mapping[str, Any]) -> Iterator[str]:
    """Yield the attributes of an installed module, class or function that are others now.

    Not what it has found or made by itself: submodules, and what it imports when it is asked for.
    """
    now = vars(owner)
    package = (owner.__name__ if isinstance(owner, ModuleType) else owner.__module__) or ""
    top = package.partition(".")[0]
    for name in {**before, **now}:
        value = now.get(name, MISSING)
        is_same = value is before.get(name, MISSING)
        if is_same or type(name) is not str or name.startswith(PRIVATE):
            continue
        its_module = str(getattr(value, "__module__", None))
        if not isinstance(value, ModuleType) and its_module.partition(".")[0] != top:
            yield f"{shown}.{name}"
