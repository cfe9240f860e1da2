"""Keep a long history in order: old tasks to the archives, what a limit says, words to the index.

It happens in a process of its own, with the lowest priority, so that it takes nothing from a
kernel: some time after a session has begun and after tasks were launched, at most once a minute
for all kernels of a store together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ipytaskpersist import problems
from ipytaskpersist.active import start_outside
from ipytaskpersist.archives import Archives
from ipytaskpersist.errors import BackgroundError, StoreBusy, StoreNewer
from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.payload import Payloads
from ipytaskpersist.reconciling import forget_environments
from ipytaskpersist.records import TaskRecord
from ipytaskpersist.runners.detached import python_command, remove_empty, start_detached
from ipytaskpersist.store import TaskStore

BEGIN_S = 30.0
"""How long after the beginning of a session."""
SOON_S = 60.0
"""How long after a launch, or a deletion."""
INTERVAL_S = 55.0
DAY_S = 86_400
DELETED_AT_ONCE = 20
NICENESS = 19


@dataclass(frozen=True, slots=True)
class Limits:
    """What the traits say."""

    archive_after_days: float | None
    max_store_bytes: int | None
    keep: str
    """The tag of tasks to which no limit applies."""


class UpkeepTimer:
    """Starts the upkeep of a store, from a process whose work it must not disturb."""

    def __init__(self, store: TaskStore, limits: Callable[[], Limits]) -> None:
        self._store = store
        self._limits = limits
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """A session has begun."""
        self._after(BEGIN_S)

    def soon(self) -> None:
        """Tasks were launched or deleted."""
        self._after(SOON_S)

    def stop(self) -> None:
        """Start nothing any more."""
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
            start(self._store.directory, self._limits()).wait()


def start(directory: StateDirectory, limits: Limits) -> subprocess.Popen[bytes]:
    """Start a process that does what is due, and outlives this one."""
    command = [*python_command("upkeep"), str(directory.root), json.dumps(asdict(limits))]
    return start_detached(command, os.environ, directory.upkeep_log)


# In the process.


def run(store: TaskStore, limits: Limits) -> None:
    """Do what is due."""
    from ipytaskpersist.store.search import SearchIndex

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
    """Remove the unfinished copies that somebody who was killed has left."""
    for folder in (directory.root, directory.backups):
        for part in folder.glob(".*.part*"):
            with suppress(OSError):
                if part.stat().st_mtime < time.time() - DAY_S:
                    part.unlink()


def enforce(store: TaskStore, archives: Archives, limits: Limits) -> list[str]:
    """Delete the tasks that ended first, archived ones before others, until the limit is met.

    Returns the ids of what was deleted.
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
    # An archive is never written again, so its free pages would stay; the store uses its own.
    for month in shrunk - {""}:
        archives.open(month).upkeep.shrink()
    return deleted


def _may_go(archives: Archives, task: TaskRecord, keep: str) -> bool:
    """Whether the task is still where it was, and nobody keeps it now."""
    now = archives.store_of(task).tasks.get(task.key)
    is_same = now is not None and now.id == task.id and keep not in now.tags
    return is_same and (not task.archive or bool(archives.without_own([task])))


def _oldest(store: TaskStore, archives: Archives, keep: str) -> Iterator[list[TaskRecord]]:
    """The ended tasks that are not kept, a few at a time, in the order in which they may go."""
    for place in [*reversed(archives.all()), store]:
        tasks = place.tasks.ended_before(time.time(), except_tag=keep)
        for begin in range(0, len(tasks), DELETED_AT_ONCE):
            yield tasks[begin : begin + DELETED_AT_ONCE]


def _used_bytes(store: TaskStore, archives: Archives) -> int:
    return sum(place.upkeep.used_bytes() for place in [store, *archives.all()])


def main() -> None:
    """Do what is due in a store: its state directory and the limits are the arguments."""
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
        pass  # another process is at it, or a newer version has taken over meanwhile
    except BackgroundError as error:
        problems.record(directory, f"upkeep: {error}")
        sys.exit(1)
    finally:
        store.close()
        remove_empty(directory.upkeep_log)
