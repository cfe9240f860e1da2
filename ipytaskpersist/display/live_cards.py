"""The live status cards of this process, each updated in place where it was first shown."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from time import sleep
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from ipytaskpersist.base import output_marks
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.capture import displays
from ipytaskpersist.display.card_content import Card, CardReader
from ipytaskpersist.display.status_card import bundle, card_html
from ipytaskpersist.errors import BackgroundError, TaskNotFound
from ipytaskpersist.running.running_task import active_task
from ipytaskpersist.session.cell_runs import also_running
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store import problems
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.text import formatting

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

INTERVAL_S = 0.5
CLOCK_S = 1.0
"""Update interval of a card if only the clock changes."""
FIRST_UPDATE_S = 0.05
RECONCILE_S = 5.0
CLOSE_S = 1.0
DISPLAYS = (OutputKind.DISPLAY_DATA, OutputKind.UPDATE_DISPLAY_DATA)


class Pages(Protocol):
    """Pages that have loaded cards with the notebook, which updates of a display do not reach."""

    def send(self, content: dict[str, Any]) -> object:
        """Send all of them a message."""

    def close(self) -> None:
        """Leave them alone from now on."""


Ask = Callable[[Sequence[str]], None]


@dataclass(slots=True)
class _Shown:
    """A card in a cell's output."""

    display_id: str
    """Empty for a task that was not launched by this session: only `Pages` have its card."""
    task: TaskRecord
    """The task, or its latest try."""
    reader: CardReader
    context: Context
    """Context of the launching cell, by which some front ends find the cell of a display."""
    updated_at: float
    """Monotonic time."""
    passed_on: int = 0
    """The last of its displays that was checked for displays of the foreground."""
    asked_for: frozenset[str] = frozenset()
    """Ids of the tasks, of which this is the latest try, whose card pages want to be updated."""

    def go_on_with(self, task: TaskRecord, reader: CardReader) -> None:
        """Show the next try of the task from now on."""
        self.task, self.reader = task, reader
        self.updated_at, self.passed_on = 0.0, 0


class Cards:
    """Shows cards in a notebook, and keeps the cards of running tasks up to date."""

    def __init__(
        self,
        shell: InteractiveShell,
        manager: BackgroundTasks,
        reach_pages: Callable[[Ask], Pages | None],
    ) -> None:
        """`reach_pages` is called once, after the first card was shown.

        It is given what to call with the ids of the tasks whose cards a page asks for.
        """
        self._shell = shell
        self._reach_pages = reach_pages
        self._pages: Pages | None = None
        self._has_reached = False
        self._asked: deque[str] = deque()
        self._context = copy_context()
        """That of the latest launching cell."""
        self._manager = manager
        self._shown: dict[int, _Shown] = {}
        """By the row of the task with which each card began."""
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._commits = CommitWatch(manager.store.database)
        self._closed = False
        self._reconciled_at = 0.0
        manager.runners.on_end.append(self._on_end)

    def show(self, task: TaskRecord) -> None:
        """Show a task's card in the running cell, and update it until the task ends."""
        display_id = uuid4().hex
        first = task
        if task.runner == "thread" and task.state is TaskState.PENDING and not task.waiting:
            # The task has been started; the card need not wait for the store to say so.
            first = replace(task, state=TaskState.RUNNING, started_at=task.created_at)
        earlier = also_running(self._manager.store, task)
        card = Card(first, formatting.utc_now(), also_running=earlier)
        self._publish(card, display_id, update=False)
        reader = CardReader(self._manager)
        self._context = copy_context()
        self._context.run(active_task.set, None)
        self._shown[task.key] = _Shown(display_id, task, reader, self._context, time.monotonic())
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="ipytaskpersist-cards", daemon=True)
            self._thread = thread if start_outside(thread) else None
        self._wake.set()

    def close(self) -> None:
        """Leave the cards as they are."""
        self._closed = True
        if self._pages is not None:
            self._pages.close()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def _ask(self, task_ids: Sequence[str]) -> None:
        """Send pages the cards of these tasks, from now on and until the tasks end."""
        self._asked.extend(task_ids)
        self._wake.set()

    def _on_end(self, key: int) -> None:
        if key in self._shown:
            self._wake.set()

    def _run(self) -> None:
        while True:
            woken = self._wake.wait(INTERVAL_S if self._shown else None)
            self._wake.clear()
            if woken:
                # Let the launching cell reply first: an update now would only delay it.
                sleep(FIRST_UPDATE_S)
            if self._closed:
                break
            if not woken and not self._has_reached:
                self._reach()
            self._find_asked()
            self._reconcile()
            # A check takes microseconds, an update a hundred times as long.
            changed = self._store_has_changed() or woken
            for key, shown in list(self._shown.items()):
                if changed or time.monotonic() - shown.updated_at >= CLOCK_S:
                    self._update(key, shown)
        self._manager.store.database.close_own()

    def _reach(self) -> None:
        """Offer updates to pages. It takes a tenth of a second, so it waits for a quiet moment."""
        self._has_reached = True
        try:
            self._pages = self._context.run(self._reach_pages, self._ask)
        except Exception as error:  # this session's own page is kept up to date all the same
            what = f"loaded pages cannot be reached ({type(error).__name__}: {error})"
            problems.record(self._manager.directory, what)

    def _find_asked(self) -> None:
        while self._asked:
            with suppress(BackgroundError):
                task = self._manager.store.tasks.by_id(self._asked.popleft())
                if task is not None and self._manager.tasks.is_own(task):
                    self._answer(task.id, self._manager.tasks.last_try(task))

    def _answer(self, asked_for: str, task: TaskRecord) -> None:
        """Have a page that has the card of a task receive that of its latest try."""
        shown = next((each for each in self._shown.values() if each.task.key == task.key), None)
        if shown is None:
            shown = _Shown("", task, CardReader(self._manager), self._context, 0.0)
            self._shown[task.key] = shown
        shown.asked_for, shown.updated_at = shown.asked_for | {asked_for}, 0.0

    def _reconcile(self) -> None:
        """Check whether a supervisor has died: this may be the only process that checks."""
        now = time.monotonic()
        if now - self._reconciled_at < RECONCILE_S:
            return
        self._reconciled_at = now
        if any(shown.task.runner == "process" for shown in self._shown.values()):
            with suppress(BackgroundError):
                self._manager.runners.reconcile_silently()

    def _store_has_changed(self) -> bool:
        """Return whether anything has been committed; this thread's connection sees all others."""
        try:
            return self._commits.has_news()
        except BackgroundError:
            return False

    def _update(self, key: int, shown: _Shown) -> None:
        try:
            task = self._manager.tasks.refresh(shown.task)
            if shown.display_id and task.runner == "process" and displays.has_displays():
                self._pass_on_displays(shown)
            task = self._latest_try(shown, task)
            self._publish_if_new(shown, task)
            # A task that was only presumed dead may go on.
            if task.state.is_final and task.declared_dead != "presumed":
                del self._shown[key]
        except TaskNotFound:
            del self._shown[key]  # it was deleted: the card stays as it is
        except BackgroundError:
            pass  # the store cannot be read at the moment
        except Exception as error:  # one card must not end the updates of all
            del self._shown[key]
            problems.record(
                self._manager.directory,
                f"the card of task {shown.task.label} could not be updated "
                f"({type(error).__name__}: {error})",
            )

    def _latest_try(self, shown: _Shown, task: TaskRecord) -> TaskRecord:
        """Return the task, or the next try of one that has ended, which its card then shows."""
        if not task.state.is_final or task.retries is None:
            return task
        last = self._manager.tasks.last_try(task)
        if last.key != task.key:
            shown.go_on_with(last, CardReader(self._manager))
        return last

    def _publish_if_new(self, shown: _Shown, task: TaskRecord) -> None:
        is_due = time.monotonic() - shown.updated_at >= CLOCK_S
        if is_due or task != shown.task:
            card = shown.reader.read(task, formatting.utc_now(), cards=len(self._shown))
            shown.context.run(self._show_again, shown, card)
            shown.task, shown.updated_at = task, time.monotonic()

    def _show_again(self, shown: _Shown, card: Card) -> None:
        if shown.display_id:
            self._publish(card, shown.display_id, update=True)
        if shown.asked_for and self._pages is not None:
            # From now on the pages have the card of this try.
            html, latest = card_html(card), frozenset({card.task.id})
            for task_id in shown.asked_for | latest:
                self._pages.send({"task": task_id, "html": html})
            shown.asked_for = latest

    def _pass_on_displays(self, shown: _Shown) -> None:
        """Update the displays of the foreground that a process task has updated."""
        found = self._manager.store.outputs.of(
            shown.task.key, kinds=DISPLAYS, after=shown.passed_on
        )
        for record in found:
            shown.passed_on = record.sequence
            shown.context.run(displays.pass_on, record, self._shell.display_pub.publish)

    def _publish(self, card: Card, display_id: str, *, update: bool) -> None:
        # A page that has lost the display finds the task by its mark.
        mark = output_marks.mark(card.task.id, output_marks.CARD)
        self._shell.display_pub.publish(
            bundle([card]), mark, transient={"display_id": display_id}, update=update
        )
