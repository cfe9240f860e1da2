"""The end of a task, as its runner records it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.base.records import ResultRecord, TaskState
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.runners import revival


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a task ended, and what it has left."""

    key: int
    state: TaskState
    reason: str | None
    exit_code: int | None
    ended_at: float
    """In seconds since the epoch."""
    results: Sequence[ResultRecord] = ()
    post_mortem: dict[str, Any] | None = None

    def record(self, store: Any, recording: Recording) -> None:
        """Record it, after all that the task has printed. Only the writer does."""
        recording.finish(store)
        for result in self.results:
            store.results.save(self.key, result)
        if self.state is TaskState.FAILED and self.post_mortem is not None:
            store.tasks.save_post_mortem(self.key, self.post_mortem)
        revival.end(store, self.key, self.state, self.reason, self.exit_code, self.ended_at)
