"""How a worker process comes to print for the submitter of the work that it does next.

Its descriptors 1 and 2 were fixed when it was started. Work that arrives says where its submitter
reads, as paths in ``/proc``: they need no file, and no connection between the two processes.

Worker processes import this module when work arrives, so it imports little.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

Identity = tuple[int, int]
"""Device and inode of an open file: descriptors and process ids are used again, this is not."""
Streams = tuple[tuple[str, Identity], ...]
"""Path and identity of what a process is to have as descriptors 1 and 2; empty where unknown."""
HAS_PATHS = sys.platform == "linux"
NAMES = {1: "stdout", 2: "stderr"}
OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

given: dict[int, Identity] = {}
"""Which files this package has put on the calling process's descriptors 1 and 2.

Where another file is there, the process has redirected itself, and is left alone.
"""


def identity_of(descriptor: int) -> Identity:
    """Which file a descriptor is of."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def streams_of(descriptors: Iterable[int]) -> Streams:
    """How other processes find what this one has open. Nothing where the system has no paths."""
    if not HAS_PATHS:
        return ()
    folder = f"/proc/{os.getpid()}/fd"
    return tuple((f"{folder}/{each}", identity_of(each)) for each in descriptors)


def have_given() -> None:
    """Note that descriptors 1 and 2 of the calling process are as this package has set them."""
    for descriptor in NAMES:
        given[descriptor] = identity_of(descriptor)
        _write_lines(descriptor)


def arrive(args: Any, *ways: Streams) -> Any:
    """In the worker: print where the submitter reads from now on. Returns the work's arguments.

    The first of the ways that is still there is taken; the last are the kernel's own streams, with
    which a worker of the foreground has begun.
    """
    for descriptor, *streams in zip(NAMES, *ways, strict=False) if ways else ():
        try:
            _turn(descriptor, streams)
        except (OSError, ValueError):  # a descriptor that is closed: there is nothing to turn
            continue
    return args


def _turn(descriptor: int, streams: Sequence[tuple[str, Identity]]) -> None:
    """Have a descriptor write to the first of these that is still there."""
    here, kernel = identity_of(descriptor), streams[-1][1]
    if here not in (kernel, given.get(descriptor)):
        return
    for path, identity in streams:
        if here == identity or _put(path, identity, descriptor):
            break
    _write_lines(descriptor)


def _put(path: str, identity: Identity, descriptor: int) -> bool:
    """Put another process's open file on a descriptor. Returns False when it is gone."""
    try:
        opened = os.open(path, OPEN_FLAGS)
    except OSError:
        return False
    try:
        if identity_of(opened) != identity:
            return False
        _flush(descriptor)
        os.set_blocking(opened, True)
        os.dup2(opened, descriptor)
    finally:
        os.close(opened)
    if descriptor not in given:
        _leave_kernel_stream(descriptor)
    given[descriptor] = identity
    return True


def _stream(descriptor: int) -> Any:
    return getattr(sys, NAMES[descriptor], None)


def _flush(descriptor: int) -> None:
    """Write what is held back for the submitter before."""
    stream = _stream(descriptor)
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()


def _write_lines(descriptor: int) -> None:
    """Hold back nothing but the line that is not finished, so that each is read in its time."""
    stream = _stream(descriptor)
    if not isinstance(stream, io.TextIOWrapper) or stream.line_buffering:
        return
    if stream.fileno() == descriptor:
        stream.reconfigure(line_buffering=True)


def _leave_kernel_stream(descriptor: int) -> None:
    """In a fork of a kernel, let its stream write to the descriptor.

    It would send what is printed to the cell that has forked. In place, because log handlers hold
    the very object.
    """
    from ipytaskpersist.forked import text_stream

    stream = _stream(descriptor)
    if type(stream).__module__.startswith("ipykernel."):
        stream.write = text_stream(descriptor).write
