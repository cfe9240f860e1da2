"""Groups of tasks as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from ipytaskpersist.base.legible import legible
from ipytaskpersist.display.tables import Column, Columns
from ipytaskpersist.session.queueing import GroupOverview
from ipytaskpersist.text.formatting import utc_now, waits_for


def as_document(shown: GroupOverview) -> dict[str, Any]:
    """Return a group as ``groups --json`` prints it."""
    return {
        **asdict(shown.group),
        "tasks": [
            {**task.as_json(utc_now()), "starts_in_s": shown.starts_in.get(task.key)}
            for task in shown.tasks
        ],
    }


def group_tables(found: Sequence[GroupOverview]) -> list[RenderableType]:
    """Return the groups, and the tasks that wait in them with what each waits for."""
    rows = [each.group for each in found]
    table = Columns(
        Column("group", [legible(group.name) for group in rows], ["bold"], least=8),
        Column("width", ["any" if group.width is None else str(group.width) for group in rows]),
        Column("running", [str(group.running) for group in rows]),
        Column("waiting", [str(group.pending) for group in rows]),
        Column("", ["paused" if group.is_paused else "" for group in rows]),
    )
    tasks = [task for each in found for task in each.tasks]
    starts = [each.start_of(task) for each in found for task in each.tasks]
    if not tasks:
        return [table]
    waiting = Columns(
        Column("task", [task.label for task in tasks], ["bold"], least=8),
        Column("group", [legible(task.group) for task in tasks], turn=1),
        Column("priority", [str(task.waiting.priority if task.waiting else 0) for task in tasks],
               turn=2),
        Column("waits", [waits_for(task) or "to be started" for task in tasks], least=16),
        Column("starts", starts, turn=3),
    )  # fmt: skip
    left = sum(each.group.pending for each in found) - len(tasks)
    more = [Text(f"{left:,} more wait; %bg_groups --json has all", style="dim")] if left else []
    return [table, Text(), waiting, *more]
