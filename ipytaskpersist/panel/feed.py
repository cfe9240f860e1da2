"""The feed of the panels of one process: one thread sends each panel what has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

from ipytaskpersist.base.records import LIVE_STATES, TaskRecord
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.panel.rows import Row, ends_of_sessions, row_of
from ipytaskpersist.panel.selected_task import SelectedTask
from ipytaskpersist.running.running_task import active_task
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store import problems
from ipytaskpersist.store.changes import Changed, Position
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

POLL_S = 0.1
"""Interval of checks whether the store has changed; a check costs microseconds."""
UPDATE_S = 0.2
"""Minimum interval between updates of the panels."""
SHARE = 0.03
"""Maximum share of one core for this thread: a costly update delays the next one."""
LONGEST_UPDATE_S = 2.0
BEAT_S = 2.0
CENSUS_S = 2.0
"""Interval of checks for tasks that are gone or off the list."""
RECONCILE_S = 5.0
UNHEARD_S = 75.0
"""Silence of its page after which a panel is no longer fed."""
TASKS = 1000
"""Number of newest tasks that are listed, in addition to all live ones."""
SESSIONS = 40

Send = Callable[[dict[str, Any]], None]


class Feed:
    """What one panel has been sent, and what to send it next.

    Only the feeder's thread uses it, except for its page's requests, each of which is one
    assignment.
    """

    def __init__(self, manager: BackgroundTasks, send: Send, *, everywhere: bool) -> None:
        self.everywhere = everywhere
        """Whether the tasks of all notebooks are listed."""
        self.wants_all = False
        """Whether its page has requested the whole list again."""
        self.selected: dict[str, str] = {}
        """Id of the task whose output each view shows."""
        self.views: dict[str, float] = {"": time.monotonic()}
        """Time of the last message from each of its views. The first view is yet to come."""
        self._manager = manager
        self._send = send
        self._rows: dict[int, Row] = {}
        self._confirmed = False
        self._told: dict[str, SelectedTask] = {}
        """What each view has been sent of its selected task."""

    # The list.

    def everything(self) -> dict[str, Any]:
        """Return the whole list, and remember it as sent."""
        store, key = self._manager.store, self._key()
        tasks, total, sessions = [], 0, []
        if store.exists:
            store.open()
            tasks, total = self._listed(store, key), store.tasks.count(self._selection(key))
            sessions = store.sessions.select(key, SESSIONS)
        self._rows = {task.key: self._row(task) for task in tasks}
        return {
            "kind": "all",
            "now": time.time(),
            "everywhere": self.everywhere,
            "tasks": [*self._rows.values()],
            "left_out": total - len(tasks),
            "sessions": ends_of_sessions(sessions),
        }

    def _row(self, task: TaskRecord) -> Row:
        start = self._manager.queueing.expected([task]).get(task.key, "")
        return row_of(task, self._manager.session.notebook_key(), start)

    def _key(self) -> int | None:
        return None if self.everywhere else self._manager.session.notebook_key() or -1

    @staticmethod
    def _selection(key: int | None) -> Selection:
        return Selection(key, cleared=False)

    def _listed(self, store: TaskStore, key: int | None) -> list[TaskRecord]:
        newest = store.tasks.select(Selection(key, cleared=False, limit=TASKS))
        live = store.tasks.select(Selection(key, LIVE_STATES))
        return [*{task.key: task for task in (*live, *newest)}.values()]

    # Sending.

    def send(self, records: dict[int, TaskRecord], changed: Changed, census: bool) -> None:
        """Send its page whatever is new about these tasks."""
        if self.wants_all:
            self.wants_all, self._confirmed = False, True
            self._told.clear()
            self._send(self.everything())
        else:
            self._tell_changes(records, census)
        self._tell_selected(changed)

    def _tell_changes(self, records: dict[int, TaskRecord], census: bool) -> None:
        key = self._key()
        rows = {
            each.key: self._row(each)
            for each in records.values()
            if key in (None, each.notebook_key) and each.cleared_at is None
        }
        new = {each: row for each, row in rows.items() if self._rows.get(each) != row}
        gone = self._gone(key) if census else set()
        if not new and not gone:
            return
        ids = [self._rows[each]["id"] for each in gone]
        self._send({"kind": "changes", "now": time.time(), "tasks": [*new.values()], "gone": ids})
        if self._confirmed:
            # Until a page has reported, it may not have received what was sent.
            self._rows.update(new)
            for each in gone:
                del self._rows[each]

    def _gone(self, key: int | None) -> set[int]:
        return self._rows.keys() - self._manager.store.tasks.keys(self._selection(key))

    def _tell_selected(self, changed: Changed) -> None:
        for view, task_id in [*self.selected.items()]:
            told = self._told.get(view)
            if told is None or told.task_id != task_id:
                told = self._told[view] = SelectedTask(self._manager, task_id)
            message = told.message(changed, self._key_of(task_id))
            if message is not None:
                self._send({"kind": "output", "view": view, "task": task_id, **message})
        for view in self._told.keys() - self.selected.keys():
            self._told.pop(view, None)

    def _key_of(self, task_id: str) -> int | None:
        return next((key for key, row in self._rows.items() if row["id"] == task_id), None)

    def beat(self) -> None:
        """Send a sign of life of the kernel to its page."""
        self._send({"kind": "beat"})

    # Its views.

    def heard(self, view: str) -> None:
        """Note a message from a view."""
        self.views.pop("", None)
        self.views[view] = time.monotonic()

    def left(self, view: str) -> None:
        """Remove a view that is gone."""
        self.views.pop("", None)
        self._forget(view)

    def select(self, view: str, task_id: str | None) -> None:
        """Show another task's output in a view, or none."""
        if task_id is None:
            self.selected.pop(view, None)
        else:
            self.selected[view] = task_id

    def _forget(self, view: str) -> None:
        self.views.pop(view, None)
        self.selected.pop(view, None)

    def forget_unheard(self, until: float) -> None:
        """Remove the views that have not sent a message since then."""
        for view, at in [*self.views.items()]:
            if at < until:
                self._forget(view)


class Feeder:
    """The one thread of a process that feeds its panels. It sleeps while no panel is in view."""

    def __init__(self, manager: BackgroundTasks, is_listening: Callable[[], bool]) -> None:
        """`is_listening` returns whether the kernel could have received a page's message lately."""
        self._manager = manager
        self._is_listening = is_listening
        self._feeds: list[Feed] = []
        self._wake = threading.Event()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._position: Position | None = None
        self._commits = CommitWatch(self._manager.store.database)
        self._beaten_at = self._counted_at = self._reconciled_at = 0.0
        self._is_census_due = False
        manager.runners.on_close.append(self.close)

    def add(self, feed: Feed) -> None:
        """Feed another panel."""
        self._feeds.append(feed)
        if self._thread is None or not self._thread.is_alive():
            # Some front ends use the context to find the cell to which a message belongs.
            context = copy_context()
            context.run(active_task.set, None)
            thread = threading.Thread(
                target=lambda: context.run(self._run), name="ipytaskpersist-panel", daemon=True
            )
            self._thread = thread if start_outside(thread) else None
        self.wake()

    def wake(self) -> None:
        """Look at the store now, whatever it says."""
        self._commits.forget()
        self._wake.set()

    def close(self) -> None:
        """End the feed. Pages notice that updates have stopped."""
        self._end.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(LONGEST_UPDATE_S)

    def _run(self) -> None:
        pause_s = POLL_S
        while not self._end.is_set():
            self._wake.wait(pause_s if self._watched() else None)
            self._wake.clear()
            begun = time.thread_time()
            has_told = not self._end.is_set() and self._turn(self._watched())
            spent_s = time.thread_time() - begun
            busy_s = min(max(UPDATE_S, spent_s / SHARE), LONGEST_UPDATE_S)
            pause_s = busy_s if has_told else POLL_S
        self._manager.store.database.close_own()

    def _watched(self) -> list[Feed]:
        return [feed for feed in self._feeds if feed.views]

    def _turn(self, watched: list[Feed]) -> bool:
        """Send the panels what is new. Return whether there was anything."""
        try:
            has_told = self._look(watched)
        except BackgroundError:
            has_told = False  # the store cannot be read at the moment
            self._begin_anew(watched)
        except Exception as error:  # a page that cannot be reached must not end this thread
            has_told = True  # and takes time
            self._begin_anew(watched)
            what = f"a panel could not be told ({type(error).__name__}: {error})"
            problems.record(self._manager.directory, what)
        now = time.monotonic()
        if now - self._beaten_at >= BEAT_S:
            self._beaten_at = now
            for feed in watched:
                feed.beat()
            self._forget_unheard(now)
        return has_told

    def _begin_anew(self, watched: list[Feed]) -> None:
        """Send everything the next time: it is unknown what the pages have received."""
        self._commits.forget()
        for feed in watched:
            feed.wants_all = True

    def _forget_unheard(self, now: float) -> None:
        if self._is_listening():
            for feed in self._feeds:
                feed.forget_unheard(now - UNHEARD_S)

    def _look(self, watched: list[Feed]) -> bool:
        store = self._manager.store
        if not store.exists:
            self._answer(watched, {}, Changed(Position()), census=False)
            return False
        now = time.monotonic()
        if now - self._reconciled_at >= RECONCILE_S:
            self._reconciled_at = now
            self._manager.runners.reconcile_silently()
        is_new = self._commits.has_news()
        self._is_census_due = self._is_census_due or is_new
        census = self._is_census_due and now - self._counted_at >= CENSUS_S
        if census:
            self._is_census_due, self._counted_at = False, now
        changed = self._changed(store, is_new)
        records = self._records(store, changed)
        self._answer(watched, records, changed, census=census)
        return is_new

    def _changed(self, store: TaskStore, is_new: bool) -> Changed:
        if self._position is None:
            self._position = store.changes.now()
        if not is_new:
            return Changed(self._position)
        changed = store.changes.since(self._position)
        self._position = changed.position
        return changed

    @staticmethod
    def _records(store: TaskStore, changed: Changed) -> dict[int, TaskRecord]:
        if not changed.tasks:
            return {}
        found = {task.key: task for task in store.tasks.of_keys(changed.tasks)}
        # Running a task again is recorded on the old task, which may not have changed otherwise.
        before = {task.rerun_of for task in found.values()} - {None} - found.keys()
        found.update((task.key, task) for task in store.tasks.of_keys(_known(before)))
        return found

    @staticmethod
    def _answer(
        watched: list[Feed], records: dict[int, TaskRecord], changed: Changed, *, census: bool
    ) -> None:
        for feed in watched:
            feed.send(records, changed, census)


def _known(keys: Iterable[int | None]) -> list[int]:
    return [key for key in keys if key is not None]
