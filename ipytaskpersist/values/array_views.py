"""Arrays that share memory, which pickle would copy one by one.

An array that shows a piece of another one's memory is pickled as that: a place in its host.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipytaskpersist.base.imported_modules import imported

BASE_AT_MOST = 4
"""How many times larger than a view its base may be to go along for it alone."""


def is_array(value: Any) -> bool:
    """Return whether it is a plain array of numbers, whose memory others may share."""
    numpy: Any = imported("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.dtype.hasobject:
        return False
    return bool(value.nbytes)


def bounds(array: Any) -> tuple[int, int]:
    """Return the addresses of the first byte of an array and of the one after its last."""
    first = last = int(array.__array_interface__["data"][0])
    for length, stride in zip(array.shape, array.strides, strict=True):
        first += min(0, (length - 1) * stride)
        last += max(0, (length - 1) * stride)
    return first, last + array.itemsize


class Hosts:
    """Arrays of which others may be views."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._hosts: dict[int, tuple[int, int, Any]] = {}
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        """Add an array in one piece, unless it is a view of one that is here."""
        if is_array(value) and _is_in_one_piece(value) and self.find(value) is None:
            self._hosts[id(value)] = (*bounds(value), value)

    def find(self, array: Any) -> Any:
        """Return the array of which this is a view; None when there is none."""
        if not is_array(array):
            return None
        first, end = bounds(array)
        is_host = id(array) in self._hosts
        for its_first, its_end, host in self._hosts.values():
            is_within = its_first <= first and end <= its_end
            is_larger = its_end - its_first > end - first
            if host is not array and is_within and (is_larger or not is_host):
                return host
        return None

    def host_for(self, array: Any) -> Any:
        """Return the array as a view of which this one is pickled, if it is."""
        host = self.find(array)
        if host is None and is_array(array):
            base = array.base
            if is_array(base) and _is_in_one_piece(base):
                is_piece = bounds(base) != bounds(array)
                if is_piece and base.nbytes <= BASE_AT_MOST * array.nbytes:
                    host = base
        self.add(array if host is None else host)
        return host


def memory_of(array: Any) -> Any:
    """Return the bytes of an array in one piece, as an array: not all types are buffers."""
    return array.ravel("K").view("u1")


def _is_in_one_piece(array: Any) -> bool:
    return bool(array.flags.forc)


def reduced(array: Any, host: Any, own: Any = None) -> Any:
    """Reduce an array to its place in another one, or to its `own` object where it is loaded."""
    offset = int(array.__array_interface__["data"][0]) - bounds(host)[0]
    place = offset, array.shape, array.strides, array.dtype, bool(array.flags.writeable)
    return _view, (host, *place, own)


def _view(
    host: Any,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: Any,
    free: bool,
    own: Any = None,
) -> Any:
    import numpy

    if is_array(own) and (own.shape, own.strides, own.dtype) == (shape, strides, dtype):
        return own
    array: Any = numpy.ndarray(shape, dtype, memory_of(host), offset, strides)
    array.flags.writeable = free and array.flags.writeable
    return array
