"""The live status cards of this process: each updated in place where it was first shown."""

from __future__ import annotations

import threading
from dataclasses import replace
from time import sleep
from typing import TYPE_CHECKING
from uuid import uuid4

from ipytaskpersist import views
from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.records import TaskRecord, TaskState

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

INTERVAL_S = 0.25
FIRST_UPDATE_S = 0.05


class Cards:
    """Shows cards in a notebook, and keeps those of running tasks up to date."""

    def __init__(self, shell: InteractiveShell, manager: BackgroundTasks) -> None:
        self._shell = shell
        self._manager = manager
        self._shown: dict[int, tuple[str, TaskRecord, str]] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        manager.on_change.append(self._on_end)

    def show(self, task: TaskRecord) -> None:
        """Show a task's card in the running cell, and update it until the task ends."""
        display_id = uuid4().hex
        shown = task
        if task.runner == "thread":
            # It has been started; the card need not wait for the store to say so.
            shown = replace(task, state=TaskState.RUNNING, started_at=task.created_at)
        html = self._publish(shown, display_id, update=False)
        self._shown[task.key] = (display_id, task, html)
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
            self._wake.wait(INTERVAL_S if self._shown else None)
            self._wake.clear()
            # The cell that launched a task replies first: an update now would only delay it.
            sleep(FIRST_UPDATE_S)
            if self._closed:
                return
            for key, (display_id, task, html) in list(self._shown.items()):
                self._update(key, display_id, task, html)

    def _update(self, key: int, display_id: str, task: TaskRecord, html: str) -> None:
        try:
            now = self._manager.refresh(task)
            if views.card_html(now, views.utc_now()) != html:
                html = self._publish(now, display_id, update=True)
            self._shown[key] = (display_id, now, html)
            if now.state.is_final:
                del self._shown[key]
        except BackgroundError:
            # The task was deleted, or the store cannot be read: the card stays as it is.
            del self._shown[key]

    def _publish(self, task: TaskRecord, display_id: str, *, update: bool) -> str:
        now = views.utc_now()
        html = views.card_html(task, now)
        self._shell.display_pub.publish(
            {"text/html": html, "text/plain": views.card_text(task, now)},
            transient={"display_id": display_id},
            update=update,
        )
        return html
