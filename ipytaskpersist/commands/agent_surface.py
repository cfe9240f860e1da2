"""The fourth surface of the commands: an agent's call, whose answer is one document."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ipytaskpersist.agents.bounding import brief
from ipytaskpersist.agents.tools import Progress
from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.commands.surfaces import Surface, Waiting
from ipytaskpersist.errors import ConfirmationNeeded
from ipytaskpersist.output import replay
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text import formatting

if TYPE_CHECKING:
    from ipytaskpersist.session.launcher import Launched

LAST_LINES = 5
COMMAND = re.compile(r"(?:%bg_|jupyter bg )(\w+)")


class AgentSurface(Surface):
    """The call of a tool."""

    has_exit_status = False
    loads_values = False

    def __init__(self, manager: BackgroundTasks, progress: Progress) -> None:
        super().__init__(manager)
        self.progress = progress
        self.answer: dict[str, Any] = {}
        """The members of the answer that the command has shown."""

    def come_to(self, launched: Launched, source: str) -> None:
        """Answer with the task, and with whether this very call has launched it."""
        self.answer |= {"task": self.brief(launched.task), "is_new": launched.is_new}

    def waiting(self) -> Waiting:
        return AgentWaiting(self)

    def in_words(self, text: str) -> str:
        """Return a text with the names of tools in place of those of commands."""
        return COMMAND.sub(r"\1", legible_lines(text))

    def confirm(self, question: str, hint: str) -> None:
        """Refuse: only a person can confirm."""
        raise ConfirmationNeeded(
            f"nothing was changed, because a person has to confirm this: {question}"
        )

    def exit(self, code: int) -> None:
        """Do nothing: a call has no exit status."""

    def brief(self, task: TaskRecord) -> dict[str, Any]:
        """Return what an agent is told about a task."""
        return brief(task.as_json(formatting.utc_now()))


class AgentWaiting(Waiting):
    """Tells the client how far the tasks have come, and the call whether anyone still waits."""

    def __init__(self, surface: AgentSurface) -> None:
        self._surface = surface
        self._begun_at = time.monotonic()
        self._tasks: Sequence[TaskRecord] = ()

    def show(self, tasks: Sequence[TaskRecord]) -> None:
        self._tasks = tasks
        said = "; ".join(
            f"{task.label} {task.state.value} {task.last_line or ''}".strip() for task in tasks
        )
        self._surface.progress(time.monotonic() - self._begun_at, None, legible_lines(said)[:400])

    def close(self) -> None:
        """Answer with the state of each task, and its last lines."""
        self._surface.answer["tasks"] = [
            {**self._surface.brief(task), "last_lines": self._last_lines(task)}
            for task in self._tasks
        ]

    def _last_lines(self, task: TaskRecord) -> list[str]:
        store = self._surface.manager.tasks.store_of(task)
        return replay.last_lines(store, task.key, LAST_LINES)
