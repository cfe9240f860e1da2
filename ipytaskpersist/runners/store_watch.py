"""When a supervisor looks at the store: soon after others have written, and now and then anyway.

A report of the file system is only a reason to look. Where there are none, it looks often.
"""

from __future__ import annotations

import math
import os
import selectors
import time

from ipytaskpersist.runners.file_watch import WRITTEN, FileWatch
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.store.task_store import TaskStore

LOOK_S = 0.01
"""Shortest interval between two looks at the store."""
LET_REPLY_S = 0.012
"""Delay of a look after a change is reported.

The cell that launched a task replies first, without sharing its cores with a starting process.
"""
WARM_REPLY_S = 0.001
"""The same when a task can start from a fork server, which takes little."""
POLLED_LOOK_S = 0.02
"""Poll interval where changes are not reported."""
UNPROMPTED_LOOK_S = 0.5
"""Poll interval when inotify works but has reported nothing."""
IDLE_LOOK_S = 5.0
"""The same for a supervisor that has nothing to do, once inotify has reported something."""


class StoreWatch:
    """The looks of one supervisor at the store."""

    def __init__(self, store: TaskStore, selector: selectors.BaseSelector) -> None:
        self._store = store
        self._selector = selector
        self._files: FileWatch | None = None
        self._looked_at = 0.0
        self._has_reported = False
        """Whether the system has shown that it does report what others write."""
        self._signalled_at = 0.0
        """When the store was first written since the last look. Infinite if it was not."""
        self._replacements = 0
        """The store's count of replacements when it was last watched."""
        self.commits = CommitWatch(store.database)

    def begin(self) -> None:
        """Have what others write to the store reported to the selector, where that is possible."""
        if self._store.database.is_shared_by_hosts:
            return
        files = FileWatch([self._store.database.log], WRITTEN)
        if files.descriptor >= 0:
            self._files = files
            self._selector.register(files.descriptor, selectors.EVENT_READ, self)

    def read(self) -> None:
        """Take a report."""
        self._has_reported = True
        self._signalled_at = min(self._signalled_at, time.monotonic())
        if self._files is not None:
            self._files.clear()

    def next_look_at(self, *, is_warm: bool, is_idle: bool, due_in_s: float) -> float:
        """Return when to look again, by the monotonic clock.

        `is_warm`: a task starts at once. `is_idle`: there is nothing to do before `due_in_s`.
        """
        if self._files is None:
            return self._looked_at + POLLED_LOOK_S
        let_reply_s = WARM_REPLY_S if is_warm else LET_REPLY_S
        prompted = max(self._signalled_at + let_reply_s, self._looked_at + LOOK_S)
        if not is_idle or not self._has_reported:
            return min(prompted, self._looked_at + UNPROMPTED_LOOK_S)
        due_at = max(time.monotonic() + due_in_s, self._looked_at + UNPROMPTED_LOOK_S)
        return min(prompted, due_at, self._looked_at + IDLE_LOOK_S)

    def look(self, now: float) -> None:
        """Begin a look: what is written from now on is for the next one."""
        self._looked_at, self._signalled_at = now, math.inf

    def has_followed(self) -> bool:
        """Watch another file if the store is one now. Returns whether it is."""
        if self._replacements == self._store.replacements:
            return False
        self._replacements = self._store.replacements
        self.commits.forget()
        if self._files is not None:
            self._selector.unregister(self._files.descriptor)
            os.close(self._files.descriptor)
            self._files = None
        self.begin()
        return True
