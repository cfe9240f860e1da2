"""What all pages of one server share: the store, the watcher's thread, and the pages' wishes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import LIVE_STATES, TaskRecord
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.filling.entries import SaveLink
from ipytaskpersist.filling.matching import Cell, Matching, Place
from ipytaskpersist.server.command_line import Upkeep
from ipytaskpersist.server.documents import Documents, Held, stamp
from ipytaskpersist.server.page import Followed, Page, Wishes
from ipytaskpersist.server.task_document import Describer
from ipytaskpersist.server.task_lists import TASKS, TaskList, has_text, listed
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store import problems
from ipytaskpersist.store.changes import Position
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.store.reading import ReadingStore
from ipytaskpersist.store.tasks import Selection

POLL_S = 0.03
"""Interval of checks whether the store has changed; a check costs microseconds."""
UPDATE_S = 0.1
"""Minimum interval between updates while something changes all the time."""
SHARE = 0.03
"""Maximum share of one core for the watcher: a costly update delays the next one."""
LONGEST_UPDATE_S = 2.0
CLOCK_S = 1.0
"""Interval at which the card of a running task is made again, so that its clock moves."""
LIST_S = 0.5
UPKEEP_S = 5.0
ANSWER_BYTES = 4_000_000
"""Size of an answer about cells beyond which it has only cards. The rest comes in small pieces."""


class Hub:
    """Answers pages from the store, and has one thread that watches it while there is a page."""

    def __init__(self, directory: StateDirectory, root: Path, save_link: SaveLink) -> None:
        """`root` is the folder of the server's notebooks."""
        self.store = ReadingStore(directory)
        self.manager = BackgroundTasks(store=self.store)
        self.matching = Matching(self.store, self.manager.archives)
        self.describer = Describer(root)
        self.documents = Documents(self.manager, self.describer, save_link)
        self._upkeep = Upkeep(self.store)
        self._pages: set[Page] = set()
        self._lists: dict[tuple[int | None, int], TaskList] = {}
        self._lock = threading.Lock()
        """Held while pages come and go, and during a turn of the watcher."""
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._commits = CommitWatch(self.store.database)
        self._position: Position | None = None
        self._replacements = 0
        self._changed: set[int] = set()
        """Tasks that may have changed since the lists were updated."""
        self._are_lists_old = False
        self._lists_took_s = 0.0
        """How long it took to read the lists the last time. Long lists are read less often."""
        self._beside_s = 0.0
        """Part of a turn that has a pace of its own, and so does not delay what pages follow."""
        self._done_at = dict.fromkeys(("clock", "list", "upkeep"), 0.0)

    # Answers.

    @property
    def is_there(self) -> bool:
        """Whether there is a store. Raises `BackgroundError` for one that cannot be read."""
        if not self.store.exists:
            return False
        if self.store.needs_command:
            self._upkeep.mend()
        self.store.open()
        return True

    def filled(self, place: Place, cells: list[Cell]) -> dict[str, Any]:
        """Return task, outputs and position of each cell that has a task.

        And, of a cell that has an earlier try's outputs, that try.
        """
        if not self.is_there:
            return {"cells": {}, "seen": 0}
        seen, room = self.store.tasks.latest_key(), ANSWER_BYTES
        found = {}
        for cell, task in zip(cells, self.matching.tasks(place, cells), strict=True):
            if task is not None:
                document = self.documents.of(task)
                held, room = document.first(room)
                found[cell.id] = {
                    "task": document.about,
                    "outputs": [entry.output for entry in held.entries],
                    "position": held.position,
                    "complete": held is document.now,
                    "follows": self.matching.earlier_try(cell, task),
                }
        return {"cells": found, "seen": seen}

    def listed(self, place: Place | None, text: str, limit: int) -> dict[str, Any]:
        """Return the first tasks of a notebook or all that contain a text, if one is given."""
        if not self.is_there:
            return {"tasks": [], "running": 0}
        key = None if place is None else self.matching.notebook_key(place) or -1
        tasks = listed(self.store, key, TASKS if text else limit)
        described = (self.describer.document(task) for task in tasks)
        wanted = [task for task in described if has_text(task, text)][:limit]
        running = self.store.tasks.count(Selection(key, LIVE_STATES))
        return {"tasks": wanted, "running": running}

    def task(self, task_id: str) -> TaskRecord | None:
        """Return the task with this id, archived or not."""
        return self.matching.task(task_id) if self.is_there else None

    # Pages.

    def join(self, page: Page) -> None:
        """Tell a page from now on what it wishes to know."""
        with self._lock:
            try:
                if self.is_there:
                    self._attach(page)
            except BackgroundError as error:
                page.has_problem(str(error))
            self._pages.add(page)
            self._start()
        self._commits.forget()
        self._wake.set()
        page.wake()

    def leave(self, page: Page) -> None:
        """Forget a page that has gone away."""
        with self._lock:
            self._pages.discard(page)
            wanted = {id(each.list) for each in self._pages}
            self._lists = {key: one for key, one in self._lists.items() if id(one) in wanted}
            if not self._pages:
                self._position = None

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="ipytaskpersist-server", daemon=True
            )
            self._thread.start()

    def _attach(self, page: Page) -> None:
        """Find in the store what a page wishes to know, as far as it is not known yet."""
        wishes = page.wishes
        for task_id, position in wishes.follow.items():
            task = None if task_id in page.followed else self.matching.task(task_id)
            if task is not None:
                self._follow(page, task, position)
        self._tell_launched(page)
        if wishes.wants_list and page.list is None:
            page.list = self._list_for(wishes)

    def _follow(self, page: Page, task: TaskRecord, position: str) -> None:
        followed = Followed(task, Held(position))
        store = self.manager.tasks.store_of(task)
        is_same = position == stamp(task, store.outputs.last_sequence(task.key))
        if not (task.state.is_final and is_same):
            followed.document = self.documents.of(task)
            followed.held = followed.document.at(position)
            page.lacks(task.id)
        page.followed[task.id] = followed

    def _tell_launched(self, page: Page) -> None:
        """Tell a page what its notebook has launched since it last was told."""
        latest = self.store.tasks.latest_key()
        if page.seen is None:
            page.seen = latest
        if latest <= page.seen:
            return
        for path, place in page.wishes.places.items():
            key = page.notebooks.get(path) or self.matching.notebook_key(place)
            if key is None:
                continue  # it has launched nothing yet
            page.notebooks[path] = key
            rows = self.store.tasks.watched(key, [], page.seen)
            for task in sorted(self.store.tasks.of_keys(rows), key=lambda task: task.key):
                if task.id not in page.followed:
                    page.launched(path, self.describer.document(task))
        page.seen = latest

    def _list_for(self, wishes: Wishes) -> TaskList | None:
        place = wishes.list_place
        key = None if place is None else self.matching.notebook_key(place)
        if place is not None and key is None:
            return None  # a notebook without tasks, so far
        which = key, wishes.list_limit
        if which not in self._lists:
            self._lists[which] = TaskList(key, wishes.list_limit, self.describer)
            self._lists[which].read(self.store)
        return self._lists[which]

    # The watcher.

    def _run(self) -> None:
        pause_s = POLL_S
        while True:
            self._wake.wait(pause_s if self._pages else None)
            self._wake.clear()
            begun, self._beside_s = time.thread_time(), 0.0
            with self._lock:
                has_told = self._turn() if self._pages else False
            spent_s = time.thread_time() - begun - self._beside_s
            busy_s = min(max(UPDATE_S, spent_s / SHARE), LONGEST_UPDATE_S)
            pause_s = busy_s if has_told else POLL_S

    def _turn(self) -> bool:
        """Look what is new, and wake the pages that lack it. Return whether there was anything."""
        problem = None
        try:
            if self.store.exists:
                self._look()
        except BackgroundError as error:
            problem = str(error)
            self._commits.forget()
        except Exception as error:  # one task that cannot be shown must not end this thread
            problem = f"that went wrong: {type(error).__name__}: {error}"
            problems.record_once(self.store.directory, f"the Jupyter server's extension: {problem}")
            self._commits.forget()
        told = False
        for page in self._pages:
            page.has_problem(problem)
            if page.has_news:
                page.wake()
                told = True
        return told or problem is not None

    def _is_due(self, what: str, interval_s: float) -> bool:
        now = time.monotonic()
        if now - self._done_at[what] < interval_s:
            return False
        self._done_at[what] = now
        return True

    def _look(self) -> None:
        if self._commits.has_news():
            if self.store.needs_command:
                self._upkeep.mend()
            self.store.open()
            self._take_changes()
            self._are_lists_old = True
        if self._is_due("clock", CLOCK_S):
            self._update({task.id for task in self._live()})
        if self._are_lists_old and self._is_due("list", max(LIST_S, self._lists_took_s / SHARE)):
            self._update_lists()
        if self._is_due("upkeep", UPKEEP_S) and self._has_live():
            self._upkeep.look()

    def _take_changes(self) -> None:
        if self._position is None or self._replacements != self.store.replacements:
            self._begin_anew()
            return
        changed = self.store.changes.since(self._position)
        has_new = changed.position.task > self._position.task
        self._position = changed.position
        self._changed |= changed.tasks
        self._update({task.id for task in self.store.tasks.of_keys(changed.tasks)})
        for page in self._pages if has_new else ():
            self._attach(page)

    def _begin_anew(self) -> None:
        """Read everything: this is the first look, or another file is at the store's path."""
        self._position = self.store.changes.now()
        if self._replacements != self.store.replacements:
            self._replacements = self.store.replacements
            self.documents.forget()
            self._lists.clear()
            for page in self._pages:
                page.begin_anew()
        for one in self._lists.values():
            one.read(self.store)
        for page in self._pages:
            self._attach(page)
        self._update(
            {
                task_id
                for page in self._pages
                for task_id, followed in page.followed.items()
                if followed.document is not None
            }
        )

    def _live(self) -> list[TaskRecord]:
        return [
            each.task
            for page in self._pages
            for each in page.followed.values()
            if not each.task.state.is_final
        ]

    def _has_live(self) -> bool:
        return bool(self._live()) or any(each.running for each in self._lists.values())

    def _update(self, task_ids: set[str]) -> None:
        """Read what these tasks have added, if a page follows them."""
        for task_id in task_ids:
            followers = [page for page in self._pages if task_id in page.followed]
            task = self.store.tasks.by_id(task_id) if followers else None
            if task is None:
                continue
            document = self.documents.of(task)
            for page in followers:
                followed = page.followed[task_id]
                if followed.document is not document:
                    followed.document = document
                    if not followed.held.entries:
                        followed.held = document.at(followed.held.position)
                followed.task = task
                if followed.held.position != document.now.position:
                    page.lacks(task_id)
                else:
                    followed.rest()

    def _update_lists(self) -> None:
        begun = time.thread_time()
        changed, self._changed, self._are_lists_old = self._changed, set(), False
        for one in self._lists.values():
            one.read(self.store, changed)
        self._lists_took_s = self._beside_s = time.thread_time() - begun
