"""What the cell of one task shows: its card, and below it the outputs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ipytaskpersist.base import output_marks
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.display.card_content import CardReader
from ipytaskpersist.display.status_card import bundle
from ipytaskpersist.filling.entries import Entry, SaveLink, TaskOutputs, no_link
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.requests import THREAD


class FilledCell:
    """The outputs of a cell whose task has the page's place, kept up to date by `update`."""

    def __init__(
        self,
        manager: BackgroundTasks,
        task: TaskRecord,
        save_link: SaveLink = no_link,
        states: dict[str, Any] | None = None,
    ) -> None:
        """`states` takes in the states of widgets, for a file. A page has a kernel for them."""
        self.task = task
        self.entries: tuple[Entry, ...] = ()
        """The card, and the outputs."""
        self._store = manager.tasks.store_of(task)
        self._reader = CardReader(manager, carries_output=False)
        self._outputs = TaskOutputs(self._store, task, states=states, save_link=save_link)
        self._is_file = states is not None

    def update(self, task: TaskRecord, now: datetime) -> None:
        """Read what is new. The task's record is as new as its outputs, or older."""
        self.task = task
        self._outputs.set_models(has_models=self._has_models(task))
        self._outputs.read(task)
        self.entries = (self._card(task, now), *self._outputs.entries())

    @property
    def sequence(self) -> int:
        """The last record of the task's outputs that it shows."""
        return self._outputs.sequence

    def _has_models(self, task: TaskRecord) -> bool:
        """Return whether a kernel has the models of the widgets that the task displayed."""
        if self._is_file or task.is_imported or task.runner != THREAD:
            return False
        session = self._store.sessions.get(task.session)
        return session is not None and session.ended_at is None

    def _card(self, task: TaskRecord, now: datetime) -> Entry:
        data = bundle([self._reader.read(task, now)])
        mark = output_marks.mark(task.id, output_marks.CARD)
        return Entry({"output_type": "display_data", "data": data, "metadata": mark})
