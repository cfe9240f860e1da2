"""Files mapped into memory: where a buffer comes from, and which of its pages have been written.

A mapped file is private to its process (copy on write): its arrays are writable, cost nothing until
they are touched, and the file stays as it was signed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from bisect import bisect_right, insort
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE_BYTES = mmap.PAGESIZE
PAGEMAP = "/proc/self/pagemap"
"""One entry of 8 bytes for each page, of which the last has these flags; see proc(5)."""
ENTRY_BYTES = 8
PRESENT, SWAPPED, OF_FILE = 0x80, 0x40, 0x20


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a buffer in a mapped file."""

    file: str
    """Name of the file."""
    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class _Mapping:
    address: int
    size: int
    path: Path
    status: tuple[int, ...]
    """What changes about a file when it is written, at the time of the mapping."""
    memory: weakref.ref[mmap.mmap]


_mappings: dict[int, _Mapping] = {}
"""The mappings that are in use, by address."""
_addresses: list[int] = []
_changed: set[Path] = set()
"""Files that had been written or cut when their mappings went out of use."""


def map_file(descriptor: int, path: Path) -> mmap.mmap:
    """Map an open file privately. Raises `OSError`."""
    status = os.fstat(descriptor)
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(
        descriptor, status.st_size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    address = address_of(memory)
    forget = weakref.ref(memory, lambda _gone: _forget(address))
    _mappings[address] = _Mapping(address, status.st_size, path, _signs(status), forget)
    insort(_addresses, address)
    return memory


def _forget(address: int) -> None:
    mapping = _mappings.pop(address, None)
    if mapping is not None:
        _addresses.remove(address)
        if _is_changed(mapping):
            _changed.add(mapping.path)


def _signs(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def place_of(buffer: Any) -> Place | None:
    """Return the place of a buffer that is an unwritten piece of a mapped file, else None."""
    address, size = address_of(buffer), memoryview(buffer).nbytes
    at = bisect_right(_addresses, address) - 1
    mapping = _mappings.get(_addresses[at]) if at >= 0 else None
    if mapping is None or address + size > mapping.address + mapping.size:
        return None
    if _is_written(address, size):
        return None
    return Place(mapping.path.name, mapping.path, address - mapping.address)


def _is_written(address: int, size: int) -> bool:
    """Return whether a page of private memory has been written since it was mapped.

    A written page is the process's own, and no page of the file any more. In case of doubt, True.
    """
    first, last = address // PAGE_BYTES, (address + size - 1) // PAGE_BYTES
    try:
        with open(PAGEMAP, "rb", buffering=0) as pages:
            pages.seek(first * ENTRY_BYTES)
            entries = pages.read((last - first + 1) * ENTRY_BYTES)
    except OSError:
        return True  # only Linux tells
    if len(entries) < (last - first + 1) * ENTRY_BYTES:
        return True
    kinds = set(entries[ENTRY_BYTES - 1 :: ENTRY_BYTES])
    return any(kind & (PRESENT | SWAPPED) and not kind & OF_FILE for kind in kinds)


def changed_files() -> list[Path]:
    """Return the files that were written or cut while they were mapped, and may have been read so.

    A file that was deleted or replaced stays as it was for those who have mapped it.
    """
    return sorted({*_changed, *(each.path for each in [*_mappings.values()] if _is_changed(each))})


def _is_changed(mapping: _Mapping) -> bool:
    try:
        signs = _signs(mapping.path.stat())
    except OSError:
        return False
    return signs[:2] == mapping.status[:2] and signs != mapping.status


class _Buffer(ctypes.Structure):
    """CPython's ``Py_buffer``, as in the limited C API."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(buffer: Any) -> int:
    """Return the address of a contiguous buffer's memory."""
    view = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    address = view.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address
