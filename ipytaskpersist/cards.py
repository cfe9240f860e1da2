"""The live status cards of this process: each updated in place where it was first shown."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from time import sleep
from typing import TYPE_CHECKING
from uuid import uuid4

from ipytaskpersist import views
from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.records import TaskRecord, TaskState
from ipytaskpersist.statuscard import Card, CardReader, bundle

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

INTERVAL_S = 0.5
CLOCK_S = 1.0
"""How often a card is updated of which nothing changes but the clock."""
FIRST_UPDATE_S = 0.05


@dataclass(slots=True)
class _Shown:
    """A card in a cell's output."""

    display_id: str
    task: TaskRecord
    reader: CardReader
    updated_at: float
    """By the monotonic clock."""


class Cards:
    """Shows cards in a notebook, and keeps those of running tasks up to date."""

    def __init__(self, shell: InteractiveShell, manager: BackgroundTasks) -> None:
        self._shell = shell
        self._manager = manager
        self._shown: dict[int, _Shown] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._version = -1
        self._closed = False
        manager.on_change.append(self._on_end)

    def show(self, task: TaskRecord) -> None:
        """Show a task's card in the running cell, and update it until the task ends."""
        display_id = uuid4().hex
        first = task
        if task.runner == "thread":
            # It has been started; the card need not wait for the store to say so.
            first = replace(task, state=TaskState.RUNNING, started_at=task.created_at)
        self._publish(Card(first, views.utc_now()), display_id, update=False)
        reader = CardReader(self._manager)
        self._shown[task.key] = _Shown(display_id, task, reader, time.monotonic())
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="ipytaskpersist-cards", daemon=True
            )
            start_outside(self._thread)
        self._wake.set()

    def close(self) -> None:
        """Leave the cards as they are."""
        self._closed = True
        self._wake.set()

    def _on_end(self, key: int) -> None:
        if key in self._shown:
            self._wake.set()

    def _run(self) -> None:
        while True:
            woken = self._wake.wait(INTERVAL_S if self._shown else None)
            self._wake.clear()
            if woken:
                # The cell that launched a task replies first: an update now would only delay it.
                sleep(FIRST_UPDATE_S)
            if self._closed:
                return
            # Looking costs microseconds, an update a hundred times as much.
            changed = self._store_has_changed() or woken
            for key, shown in list(self._shown.items()):
                if changed or time.monotonic() - shown.updated_at >= CLOCK_S:
                    self._update(key, shown)

    def _store_has_changed(self) -> bool:
        """Whether anybody has committed anything. This thread's connection sees all others."""
        try:
            version = self._manager.store.database.data_version
        except BackgroundError:
            return False
        changed, self._version = version != self._version, version
        return changed

    def _update(self, key: int, shown: _Shown) -> None:
        try:
            task = self._manager.refresh(shown.task)
            self._publish_if_new(shown, task)
            if task.state.is_final:
                del self._shown[key]
        except BackgroundError:
            # The task was deleted, or the store cannot be read: the card stays as it is.
            del self._shown[key]

    def _publish_if_new(self, shown: _Shown, task: TaskRecord) -> None:
        is_due = time.monotonic() - shown.updated_at >= CLOCK_S
        if is_due or task != shown.task:
            card = shown.reader.read(task, views.utc_now())
            self._publish(card, shown.display_id, update=True)
            shown.task, shown.updated_at = task, time.monotonic()

    def _publish(self, card: Card, display_id: str, *, update: bool) -> None:
        self._shell.display_pub.publish(
            bundle([card]), transient={"display_id": display_id}, update=update
        )
