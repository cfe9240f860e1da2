"""Counts and sizes of everything stored, for ``stats``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.display.drawing import RenderableType, Text
from ipytaskpersist.display.tables import Column, Columns, details
from ipytaskpersist.errors import StoreUnwritable
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.queue import GroupRecord
from ipytaskpersist.store.statistics import Day, Overview, Sizes
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text import formatting

LARGEST = 5
DAYS_SHOWN = 7


@dataclass(frozen=True, slots=True)
class Summary:
    """What the store holds, and what it costs."""

    overview: Overview
    archived: int
    """Number of archived tasks."""
    active_sessions: int
    ended_sessions: int
    sizes: Sizes
    largest: tuple[TaskRecord, ...]
    """The tasks that printed and displayed the most, largest first."""
    groups: tuple[GroupRecord, ...]
    """The groups of which tasks run or wait."""
    write_latency_s: float | None
    """Current duration of a small commit; None if the store cannot be written."""
    path: str


def gather(manager: BackgroundTasks) -> Summary | None:
    """Count everything. Return None if there is no store yet."""
    store = manager.store
    if not store.exists:
        return None
    found = store.statistics
    tasks = [store.tasks.get(key) for key in found.largest(LARGEST)]
    active, ended = found.sessions()
    return Summary(
        overview=found.overview(),
        archived=sum(archive.statistics.count() for archive in manager.archives.all()),
        active_sessions=active,
        ended_sessions=ended,
        sizes=found.sizes(),
        largest=tuple(task for task in tasks if task is not None),
        groups=tuple(group for group in store.queue.groups() if group.running or group.pending),
        write_latency_s=_write_latency_s(store),
        path=str(store.database.path),
    )


def _write_latency_s(store: TaskStore) -> float | None:
    with suppress(StoreUnwritable):
        return None if store.read_only else store.statistics.write_latency_s()
    return None


def as_document(found: Summary | None) -> dict[str, Any]:
    """Return the JSON document of ``stats --json``: sizes in bytes, days in UTC."""
    if found is None:
        return {"store": None, "tasks": {"total": 0}}
    by_state = {state.value: found.overview.by_state.get(state, 0) for state in TaskState}
    sizes = found.sizes
    return {
        "store": found.path,
        "tasks": {
            "total": sum(by_state.values()),
            "by_state": by_state,
            "archived": found.archived,
        },
        "sessions": {"active": found.active_sessions, "ended": found.ended_sessions},
        "groups": [asdict(group) for group in found.groups],
        "output_bytes": found.overview.output_bytes,
        "disk_bytes": {
            "total": sizes.total,
            "store": sizes.store,
            "free_in_store": sizes.free,
            "archives": sizes.archives,
            "results": sizes.results,
            "search_index": sizes.search,
            "backups": sizes.backups,
        },
        "largest": [
            {"id": task.id, "name": task.name or None, "output_bytes": task.output_bytes}
            for task in found.largest
        ],
        "days": [
            {"day": day.day.isoformat(), "tasks": day.tasks, "output_bytes": day.output_bytes}
            for day in found.overview.days
        ],
        "write_latency_s": found.write_latency_s,
    }


def as_tables(found: Summary | None) -> list[RenderableType]:
    """Return what ``stats`` prints."""
    if found is None or not (found.overview.by_state or found.archived):
        return [Text("no background tasks yet; put %%background above a cell", style="dim")]
    tables: list[RenderableType] = [details(_facts(found))]
    if found.largest:
        tables += [Text(), _largest(found.largest)]
    if found.overview.days:
        tables += [Text(), _days(found.overview.days)]
    return tables


def _facts(found: Summary) -> list[tuple[str, str]]:
    by_state, sizes = found.overview.by_state, found.sizes
    states = ", ".join(
        f"{by_state[state]:,} {state.value}" for state in TaskState if state in by_state
    )
    parts = (
        (f"store {formatting.size(sizes.store)}", True),
        (f"of which free {formatting.size(sizes.free)}", bool(sizes.free)),
        (f"archives {formatting.size(sizes.archives)}", bool(sizes.archives)),
        (f"results {formatting.size(sizes.results)}", bool(sizes.results)),
        (f"search index {formatting.size(sizes.search)}", bool(sizes.search)),
        (f"backups {formatting.size(sizes.backups)}", bool(sizes.backups)),
    )
    on_disk = ", ".join(text for text, shown in parts if shown)
    latency = found.write_latency_s
    facts = [
        ("tasks", f"{sum(by_state.values()):,}: {states}" if states else "0"),
        ("groups", "; ".join(map(_group, found.groups))),
        ("archived", f"{found.archived:,}" if found.archived else ""),
        ("sessions", f"{found.active_sessions:,} active, {found.ended_sessions:,} ended"),
        ("output", formatting.size(found.overview.output_bytes)),
        ("on disk", f"{formatting.size(sizes.total)}: {on_disk}"),
        ("write latency", "" if latency is None else f"{latency * 1000:.2f} ms"),
        ("store", found.path),
    ]
    return [(name, value) for name, value in facts if value]


def _group(group: GroupRecord) -> str:
    """Return ``gpu: 2 of 2 running, 5 waiting``."""
    of_width = "" if group.width is None else f" of {group.width}"
    waiting = f", {group.pending:,} waiting" if group.pending else ""
    paused = ", paused" if group.is_paused else ""
    return f"{legible(group.name)}: {group.running:,}{of_width} running{waiting}{paused}"


def _largest(tasks: tuple[TaskRecord, ...]) -> Columns:
    ids = [task.id for task in tasks]
    return Columns(
        Column("largest", ids, ["dim"], least=max(map(len, ids))),
        Column("name", [legible(task.name) for task in tasks], ["bold"],
               turn=1, least=3, share=4),
        Column("notebook",
               [legible(formatting.notebook_name(task.notebook)) for task in tasks],
               turn=3, least=8, share=4),
        Column("state", [task.state.value for task in tasks], turn=2, least=11),
        Column("output", [formatting.size(task.output_bytes or 0) for task in tasks], least=8),
    )  # fmt: skip


def _days(days: Any) -> Columns:
    shown: list[Day] = list(days)[:DAYS_SHOWN]
    return Columns(
        Column("day", [day.day.isoformat() for day in shown], ["dim"], least=10),
        Column("tasks", [f"{day.tasks:,}" for day in shown], least=5),
        Column("output", [formatting.size(day.output_bytes) for day in shown], least=8),
    )
