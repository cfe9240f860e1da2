"""Let a worker process print for the submitter of its next piece of work.

The worker's descriptors 1 and 2 were set when it was started. Arriving work names the submitter's
pipes as paths in ``/proc``, which need neither a file nor a connection between the two processes.

Worker processes import this module when work arrives, so it imports little.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

Identity = tuple[int, int]
"""Device and inode of an open file. Unlike descriptors and process ids, they are not reused."""
Streams = tuple[tuple[str, Identity], ...]
"""Path and identity of the files for descriptors 1 and 2. Empty if unknown."""
HAS_PATHS = sys.platform == "linux"
NAMES = {1: "stdout", 2: "stderr"}
OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

given: dict[int, Identity] = {}
"""Files that this package has put on the process's descriptors 1 and 2.

If another file is there, the process has redirected itself and is left alone.
"""


def identity_of(descriptor: int) -> Identity:
    """Return the identity of a descriptor's file."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def streams_of(descriptors: Iterable[int]) -> Streams:
    """Return how other processes find open descriptors of this one. Empty without ``/proc``."""
    if not HAS_PATHS:
        return ()
    folder = f"/proc/{os.getpid()}/fd"
    return tuple((f"{folder}/{each}", identity_of(each)) for each in descriptors)


def have_given() -> None:
    """Note that this package has set descriptors 1 and 2 of the calling process."""
    for descriptor in NAMES:
        given[descriptor] = identity_of(descriptor)
        _write_lines(descriptor)


def arrive(args: Any, *ways: Streams) -> Any:
    """In the worker, print to the submitter's streams from now on. Returns the work's arguments.

    The first streams that still exist are used. The last are the kernel's own, with which a worker
    of the foreground was started.
    """
    for descriptor, *streams in zip(NAMES, *ways, strict=False) if ways else ():
        try:
            _turn(descriptor, streams)
        except (OSError, ValueError):  # the descriptor is closed, so there is nothing to redirect
            continue
    return args


def _turn(descriptor: int, streams: Sequence[tuple[str, Identity]]) -> None:
    """Redirect a descriptor to the first of these streams that still exists."""
    here, kernel = identity_of(descriptor), streams[-1][1]
    if here not in (kernel, given.get(descriptor)):
        return
    for path, identity in streams:
        if here == identity or _put(path, identity, descriptor):
            break
    _write_lines(descriptor)


def _put(path: str, identity: Identity, descriptor: int) -> bool:
    """Put another process's open file on a descriptor. Returns False if it is gone."""
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
    """Write buffered output for the previous submitter."""
    stream = _stream(descriptor)
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()


def _write_lines(descriptor: int) -> None:
    """Enable line buffering, so that each line is read in time."""
    stream = _stream(descriptor)
    if not isinstance(stream, io.TextIOWrapper) or stream.line_buffering:
        return
    if stream.fileno() == descriptor:
        stream.reconfigure(line_buffering=True)


def _leave_kernel_stream(descriptor: int) -> None:
    """In a fork of a kernel, make the kernel's stream write to the descriptor.

    It would otherwise send the output to the cell that forked. The stream is changed in place,
    because log handlers hold the object.
    """
    from ipytaskpersist.running.forks import text_stream

    stream = _stream(descriptor)
    if type(stream).__module__.startswith("ipykernel."):
        stream.write = text_stream(descriptor).write
