"""The live status cards of this process, each updated in place where it was first shown."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from time import sleep
from typing import TYPE_CHECKING
from uuid import uuid4

from ipytaskpersist.base import output_marks
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.capture import displays
from ipytaskpersist.display.card_content import Card, CardReader
from ipytaskpersist.display.status_card import bundle
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


@dataclass(slots=True)
class _Shown:
    """A card in a cell's output."""

    display_id: str
    task: TaskRecord
    reader: CardReader
    context: Context
    """Context of the launching cell, by which some front ends find the cell of a display."""
    updated_at: float
    """Monotonic time."""
    passed_on: int = 0
    """The last of its displays that was checked for displays of the foreground."""


class Cards:
    """Shows cards in a notebook, and keeps the cards of running tasks up to date."""

    def __init__(self, shell: InteractiveShell, manager: BackgroundTasks) -> None:
        self._shell = shell
        self._manager = manager
        self._shown: dict[int, _Shown] = {}
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
        context = copy_context()
        context.run(active_task.set, None)
        self._shown[task.key] = _Shown(display_id, task, reader, context, time.monotonic())
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="ipytaskpersist-cards", daemon=True)
            self._thread = thread if start_outside(thread) else None
        self._wake.set()

    def close(self) -> None:
        """Leave the cards as they are."""
        self._closed = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

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
            self._reconcile()
            # A check takes microseconds, an update a hundred times as long.
            changed = self._store_has_changed() or woken
            for key, shown in list(self._shown.items()):
                if changed or time.monotonic() - shown.updated_at >= CLOCK_S:
                    self._update(key, shown)
        self._manager.store.database.close_own()

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
            self._publish_if_new(shown, task)
            if task.runner == "process" and displays.has_displays():
                self._pass_on_displays(shown)
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

    def _publish_if_new(self, shown: _Shown, task: TaskRecord) -> None:
        is_due = time.monotonic() - shown.updated_at >= CLOCK_S
        if is_due or task != shown.task:
            card = shown.reader.read(task, formatting.utc_now(), cards=len(self._shown))
            shown.context.run(self._publish, card, shown.display_id, update=True)
            shown.task, shown.updated_at = task, time.monotonic()

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
