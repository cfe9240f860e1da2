"""A separate working directory and umask for the threads of each task.

Linux keeps them for each thread, and a new thread shares those of the thread that starts it. So a
worker separates from the process once, and the threads of its tasks share with it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Thread

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.running.running_task import active_task

CLONE_FS = 0x200
STATUS = Path("/proc/thread-self/status")


@dataclass(frozen=True, slots=True)
class WorkingPlace:
    """A thread's working directory and umask."""

    directory: int | str
    """A descriptor of the directory, which may have been removed, or else its path."""
    umask: int


def part() -> bool:
    """Give the calling thread a separate directory and umask. Returns whether that worked."""
    if sys.platform != "linux":
        return False
    try:
        return _unshare()
    except (OSError, AttributeError):  # not available, or forbidden by a container's filter
        return False


def _unshare() -> bool:
    if sys.version_info >= (3, 12):
        os.unshare(CLONE_FS)
        return True
    import ctypes

    return int(ctypes.CDLL(None).unshare(CLONE_FS)) == 0


@cache
def can_be_own() -> bool:
    """Whether threads of this process can have separate directories."""
    found: list[bool] = []
    thread = Thread(target=lambda: found.append(part()), name="ipytaskpersist-place", daemon=True)
    if start_outside(thread):
        thread.join()
    return found == [True]


def here() -> WorkingPlace | None:
    """Return the calling thread's place. None where all threads share one."""
    if not can_be_own():
        return None
    try:
        directory: int | str = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        directory = str(Path.cwd())
    return WorkingPlace(directory, _umask())


def _umask() -> int:
    with suppress(OSError):
        found = re.search(r"^Umask:\s*(\d+)", STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def go_to(place: WorkingPlace) -> None:
    """Move the calling thread, which has been separated, to a place."""
    os.umask(place.umask)
    try:
        os.chdir(place.directory)
    finally:
        if isinstance(place.directory, int):
            os.close(place.directory)


def install(patches: Patches) -> None:
    """Where threads share a directory, report a task that changes it."""
    if not can_be_own():
        patches.replace(os, "chdir", _chdir)


def _chdir(plain: Callable[..., None]) -> Callable[..., None]:
    told = set[int]()

    def chdir(path: int | str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        plain(path)
        task = active_task.get()
        if task is None or task.children.in_child or task.record.key in told:
            return
        told.add(task.record.key)
        message = (
            f"the notebook's directory is now {Path.cwd()}, too: a thread cannot have one of its "
            f"own here; --process gives task {task.record.label} one\n"
        )
        task.write(OutputKind.STDERR, message)

    return chdir
