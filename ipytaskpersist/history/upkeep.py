"""Maintain a long history: archive old tasks, enforce the limit, index words.

This happens in a separate process with the lowest priority, so that it takes nothing from a kernel.
It runs some time after a session has begun and after tasks were launched, at most once a minute for
all kernels of a store together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ipytaskpersist.base import checkpoint_folders
from ipytaskpersist.base.detached import python_command, remove_empty, start_detached
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.errors import BackgroundError, StoreBusy, StoreNewer
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.runners.reconciling import forget_environments
from ipytaskpersist.store import problems
from ipytaskpersist.store.statistics import repeated_bytes
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.buffers import forget_shared
from ipytaskpersist.values.payloads import Payloads

BEGIN_S = 30.0
"""Delay after the beginning of a session."""
SOON_S = 60.0
"""Delay after a launch or a deletion."""
INTERVAL_S = 55.0
DAY_S = 86_400
DELETED_AT_ONCE = 20
NICENESS = 19


class LimitSettings(Protocol):
    """The settings that are limits."""

    archive_after_days: Any
    max_store_bytes: Any
    keep: Any


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits from the traits."""

    archive_after_days: float | None
    max_store_bytes: int | None
    keep: str
    """Tag of tasks that are exempt from the limits."""

    @classmethod
    def of(cls, settings: LimitSettings) -> Limits:
        """Return the limits as currently set."""
        return cls(settings.archive_after_days, settings.max_store_bytes, settings.keep)


class UpkeepTimer:
    """Starts the upkeep of a store, from a process whose work it must not disturb."""

    def __init__(self, store: TaskStore, settings: LimitSettings) -> None:
        self._store = store
        self._settings = settings
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Schedule upkeep at the beginning of a session."""
        self._after(BEGIN_S)

    def soon(self) -> None:
        """Schedule upkeep after tasks were launched or deleted."""
        self._after(SOON_S)

    def stop(self) -> None:
        """Start no more upkeep."""
        if self._timer is not None:
            self._timer.cancel()

    def _after(self, seconds: float) -> None:
        if self._timer is None or not self._timer.is_alive():
            self._timer = threading.Timer(seconds, self._run)
            self._timer.name = "ipytaskpersist-upkeep"
            self._timer.daemon = True
            start_outside(self._timer)

    def _run(self) -> None:
        with suppress(BackgroundError, OSError):
            start(self._store.directory, Limits.of(self._settings)).wait()


def start(directory: StateDirectory, limits: Limits) -> subprocess.Popen[bytes]:
    """Start a process that does what is due, and that outlives this one."""
    command = [*python_command("history.upkeep"), str(directory.root), json.dumps(asdict(limits))]
    return start_detached(command, os.environ, directory.upkeep_log)


# In the upkeep process.


def run(store: TaskStore, limits: Limits) -> None:
    """Do everything that is due."""
    from ipytaskpersist.store.search_index import SearchIndex

    _remove_parts(store.directory)
    forget_environments(store)
    archives = Archives(store)
    try:
        if limits.archive_after_days is not None:
            age_s = limits.archive_after_days * DAY_S
            archives.archive(archives.older_than(age_s, limits.keep))
        if limits.max_store_bytes is not None:
            enforce(store, archives, limits)
        for place in [store, *archives.all()]:
            with closing(SearchIndex(place)) as index:
                index.catch_up()
                index.erase()
    finally:
        archives.close()


def _remove_parts(directory: StateDirectory) -> None:
    """Remove unfinished copies and values left by killed processes."""
    kept = (directory.payloads, directory.checkpoints)
    for folder in (directory.root, directory.backups, *kept):
        for part in folder.glob(".*.part*"):
            with suppress(OSError):
                if _written_at(part) < time.time() - DAY_S:
                    part.unlink()
    for shared in directory.buffers.glob("*.buffers"):
        forget_shared(shared)


def _written_at(part: Path) -> float:
    """Return when an unfinished file was made: a link has the age of the file, but a new status."""
    status = part.stat()
    return status.st_ctime if status.st_nlink > 1 else status.st_mtime


def enforce(store: TaskStore, archives: Archives, limits: Limits) -> list[str]:
    """Delete the tasks that ended first, archived tasks before others, until the limit is met.

    Return the ids of the deleted tasks.
    """
    assert limits.max_store_bytes is not None
    payloads, deleted, shrunk = Payloads(store.directory), list[str](), set[str]()
    for few in _oldest(store, archives, limits.keep):
        if _used_bytes(store, archives) <= limits.max_store_bytes:
            break
        going = [task for task in few if _may_go(archives, task, limits.keep)]
        archives.delete(going)
        for task in going:
            payloads.delete(task.id)
            deleted.append(task.id)
            shrunk.add(task.archive)
    # An archive is not written to again, so its free pages would stay. The store reuses its own.
    for month in shrunk - {""}:
        archives.open(month).upkeep.shrink()
    return deleted


def _may_go(archives: Archives, task: TaskRecord, keep: str) -> bool:
    """Return whether the task is still where it was, and is still not protected."""
    now = archives.store_of(task).tasks.get(task.key)
    is_same = now is not None and now.id == task.id and keep not in now.tags
    return is_same and (not task.archive or bool(archives.without_own([task])))


def _oldest(store: TaskStore, archives: Archives, keep: str) -> Iterator[list[TaskRecord]]:
    """Yield unprotected ended tasks, a few at a time, in the order of deletion."""
    for place in [*reversed(archives.all()), store]:
        tasks = place.tasks.ended_before(time.time(), except_tag=keep)
        for begin in range(0, len(tasks), DELETED_AT_ONCE):
            yield tasks[begin : begin + DELETED_AT_ONCE]


def _used_bytes(store: TaskStore, archives: Archives) -> int:
    used = sum(place.upkeep.used_bytes() for place in [store, *archives.all()])
    places = checkpoint_folders.all_places(store.directory)
    left = checkpoint_folders.size_of(store.directory, places)
    return used + left - repeated_bytes(store.directory)


def main() -> None:
    """Do what is due in a store. The arguments are its state directory and the limits."""
    root, limits = sys.argv[1:]
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    directory = StateDirectory(Path(root))
    store = TaskStore(directory)
    try:
        if not store.exists or not store.open().is_own_version:
            return
        if store.upkeep.claim("upkeep", INTERVAL_S):
            run(store, Limits(**json.loads(limits)))
    except (StoreBusy, StoreNewer):
        pass  # another process is already doing it, or a newer version has taken over
    except BackgroundError as error:
        problems.record(directory, f"upkeep: {error}")
        sys.exit(1)
    finally:
        store.close()
        remove_empty(directory.upkeep_log)
