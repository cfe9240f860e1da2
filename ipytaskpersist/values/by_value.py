"""Pickle objects by value that pickle itself refers to by name, or cannot pickle at all.

Each becomes a call of its own class, so that the pickle needs nothing of this package.
"""

from __future__ import annotations

import copyreg
import functools
import typing
import weakref
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

Reduced = tuple[Any, ...]


class _Attribute:
    """Becomes an attribute of something that is pickled by name."""

    def __init__(self, owner: Any, name: str) -> None:
        self._found = getattr, (owner, name)

    def __reduce__(self) -> Reduced:
        return self._found


def _cache(function: Any) -> Reduced:
    """Reduce a function with ``lru_cache``: the same parameters, and an empty cache."""
    parameters = function.cache_parameters()
    # Otherwise pickled by value: its own name is another one.
    info = _Attribute(functools, "_CacheInfo")
    given = parameters["maxsize"], parameters["typed"], info
    return type(function), (function.__wrapped__, *given), vars(function)


def _cached_property(value: Any) -> Reduced:
    """Reduce a property without the lock that it has before Python 3.12; a copy makes its own."""
    state = {name: each for name, each in vars(value).items() if name != "lock"}
    return cached_property, (value.func,), state


def _new_type(value: Any) -> Reduced:
    return typing.NewType, (value.__name__, value.__supertype__), vars(value)


def _parameter(value: Any) -> Reduced:
    options = {"bound": value.__bound__, "covariant": value.__covariant__}
    return partial(typing.ParamSpec, contravariant=value.__contravariant__, **options), (
        value.__name__,
    )


def _parameters(value: Any) -> Reduced:
    return typing.TypeVarTuple, (value.__name__,)


def _weak(value: Any) -> Reduced:
    return type(value), (dict(value),)


def _memory(value: memoryview) -> Reduced:
    """Reduce a view to what it shows: the object itself if it shows all of it, or a copy."""
    whole = value.obj
    if isinstance(whole, bytes | bytearray) and value.format == "B" and len(value) == len(whole):
        return memoryview, (whole,)
    return memoryview, (bytes(value) if value.readonly else bytearray(value),)


BY_NAME: dict[type, Callable[[Any], Reduced]] = {
    functools._lru_cache_wrapper: _cache,
    typing.NewType: _new_type,
    typing.ParamSpec: _parameter,
    typing.TypeVarTuple: _parameters,
}
"""Types pickled by name. By value when no other process finds that name."""
NOT_AT_ALL: dict[type, Callable[[Any], Reduced]] = {
    cached_property: _cached_property,
    memoryview: _memory,
    weakref.WeakKeyDictionary: _weak,
    weakref.WeakValueDictionary: _weak,
}
"""Types with parts that do not pickle, and need not."""


def is_plain(kind: type) -> bool:
    """Return whether instances of a class are pickled as an object with its attributes."""
    methods: Any = kind
    return (
        methods.__reduce_ex__ is object.__reduce_ex__
        and methods.__reduce__ is object.__reduce__
        and kind not in copyreg.dispatch_table
    )
