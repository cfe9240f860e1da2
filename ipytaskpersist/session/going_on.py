"""From which checkpoint a task goes on that is run again."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ipytaskpersist.base import checkpoint_folders
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore


@dataclass(frozen=True, slots=True)
class GoesOn:
    """Where a new task finds the checkpoint of an earlier one, and leaves its own."""

    place: str | None = None
    """Name of the folder; None for one of its own."""
    at: float | None = None
    """Time of the latest checkpoint there, in seconds since the epoch."""


def goes_on(store: TaskStore, task: TaskRecord) -> GoesOn:
    """Return from where a task goes on that runs this one again.

    A completed one has nothing to go on with, and those of the archive have left theirs behind. Two
    tasks that run at once do not share one: what one keeps would overwrite what the other does.
    """
    place = task.checkpoint_place
    latest = checkpoint_folders.latest(store.directory, place, task.kind)
    if place is None or latest is None or task.archive or task.state is TaskState.COMPLETED:
        return GoesOn()
    other = store.tasks.live_at(place)
    if other is not None:
        print(
            f"task {other.label} has gone on from the checkpoint of task {task.label} and still "
            f"runs, so the new one begins without; %bg_cancel {other.number} ends it",
            file=sys.stderr,
        )
        return GoesOn()
    return GoesOn(place, latest.at)
