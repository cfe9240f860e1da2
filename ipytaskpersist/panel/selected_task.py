"""What one view of a panel has been sent of its selected task, and what to send it next."""

from __future__ import annotations

import time
from typing import Any

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.output.counts import OutputCounter
from ipytaskpersist.panel.selected import Fact, Facts, Tail, shown_of
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.changes import Changed

LOOK_S = 2.0
"""Interval of checks what a running task's processes use."""


class SelectedTask:
    """The output of a task and the facts about it, as far as a view has them."""

    def __init__(self, manager: BackgroundTasks, task_id: str) -> None:
        self.task_id = task_id
        self._manager = manager
        self._tail = Tail()
        self._counter = OutputCounter()
        self._facts: Facts | None = None
        self._told_facts: list[Fact] = []
        self._is_live = True
        self._looked_at = 0.0

    def message(self, changed: Changed, key: int | None) -> dict[str, Any] | None:
        """Return what is new; None if nothing is. The first message is the whole."""
        is_new = self._facts is None
        has_output = is_new or key in changed.outputs
        has_facts = is_new or key in changed.states or self._are_facts_old()
        if not has_output and not has_facts:
            return None
        task = self._manager.store.tasks.by_id(self.task_id)
        if task is None:
            return None
        self._is_live = not task.state.is_final
        message = {
            **(self._new_output(task) if has_output else {}),
            **(self._new_facts(task) if has_facts else {}),
        }
        return {"anew": is_new, **message} if message or is_new else None

    def _are_facts_old(self) -> bool:
        return self._is_live and time.monotonic() - self._looked_at > LOOK_S

    def _new_output(self, task: TaskRecord) -> dict[str, Any]:
        shown = shown_of(self._manager.tasks.store_of(task), task, self._counter)
        change = self._tail.change(shown.pieces)
        return {} if change is None else {**change, "above": shown.left_out}

    def _new_facts(self, task: TaskRecord) -> dict[str, Any]:
        self._looked_at = time.monotonic()
        if self._facts is None:
            self._facts = Facts(self._manager, task)
        facts = self._facts.of(task)
        if facts == self._told_facts:
            return {}
        self._told_facts = facts
        return {"facts": facts}
