"""Large arrays of objects, such as columns of strings, in few pieces instead of one by one.

Few different objects are kept once, with their places. Many different strings are one text.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from ipytaskpersist.base.imported_modules import imported

SMALLEST_COUNT = 10_000
FEW = 4
"""Objects are few if each is there so many times on average."""
SEPARATOR = "\0"


def is_large(value: Any) -> bool:
    """Return whether it is a plain array of many objects."""
    numpy: Any = imported("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.dtype != object:
        return False
    return value.size >= SMALLEST_COUNT and bool(value.flags.forc)


def reduced(array: Any) -> Any:
    """Reduce a large array of objects; NotImplemented for one that is pickled as usual."""
    order = "F" if array.flags.fnc else "C"
    flat = array.ravel(order="K")
    codes, first_places = _numbered(_addresses(flat))
    if len(first_places) * FEW <= flat.size:
        return _taken, (list(flat[first_places]), codes, array.shape, order)
    try:
        text = SEPARATOR.join(flat.tolist())
    except TypeError:  # not only strings
        return NotImplemented
    is_plain = text.count(SEPARATOR) == flat.size - 1 and set(map(type, flat)) == {str}
    return (_split, (text, array.shape, order)) if is_plain else NotImplemented


def _addresses(flat: Any) -> Any:
    """Return the addresses of an array's objects, by which they are told apart."""
    numpy: Any = sys.modules["numpy"]
    memory = (ctypes.c_ssize_t * flat.size).from_address(flat.ctypes.data)
    return numpy.frombuffer(memory, dtype=numpy.intp)


def _numbered(addresses: Any) -> tuple[Any, Any]:
    """Number addresses by their first places. Returns the numbers, and those places."""
    numpy: Any = sys.modules["numpy"]
    pandas: Any = imported("pandas")
    if pandas is not None:
        codes, found = pandas.factorize(addresses)
        first = numpy.full(len(found), -1, dtype=numpy.intp)
        first[codes[::-1]] = numpy.arange(len(codes))[::-1]
        return codes.astype(_small(len(found))), first
    _found, first, inverse = numpy.unique(addresses, return_index=True, return_inverse=True)
    rank = numpy.empty(len(first), dtype=numpy.intp)
    rank[numpy.argsort(first)] = numpy.arange(len(first))
    return rank[inverse.ravel()].astype(_small(len(first))), numpy.sort(first)


def _small(count: int) -> str:
    return "u1" if count <= 256 else "u2" if count <= 65_536 else "u4"


def _taken(objects: list[Any], codes: Any, shape: tuple[int, ...], order: str) -> Any:
    import numpy

    different: Any = numpy.fromiter(objects, dtype=object, count=len(objects))
    return different[codes].reshape(shape, order=order)


def _split(text: str, shape: tuple[int, ...], order: str) -> Any:
    import numpy

    words = text.split(SEPARATOR)
    flat: Any = numpy.fromiter(words, dtype=object, count=len(words))
    return flat.reshape(shape, order=order)
