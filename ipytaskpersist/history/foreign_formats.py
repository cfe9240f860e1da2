"""Files of tasks in older formats: to-do lists, lists of tasks with logs, files of sessions.

docs/migrating.md shows each. They say less than an export; what they do not say stays unknown.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ipytaskpersist.base.process_identity import host_name
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.history.fields import (
    LATEST_S,
    LINE_BYTES,
    LINE_CHARACTERS,
    Fields,
    InvalidRecord,
)
from ipytaskpersist.history.output_reading import PortableResult
from ipytaskpersist.history.task_reading import SESSION_ID, SOURCE_CHARACTERS
from ipytaskpersist.store.file.database import storable
from ipytaskpersist.store.portable import (
    PortableNotebook,
    PortableOutput,
    PortableSession,
    PortableTask,
)

NAMESPACE = uuid.UUID("5d7e6d3c-6a0c-4f0e-9d53-0b9f4f5f1c2e")
"""Namespace of generated ids for sessions and notebooks without their own."""
LONG_ID_CHARACTERS = 16
"""Length from which an id is assumed to be unique."""
EARLIEST_MILLISECONDS = 1e11
"""Number from which a time is in milliseconds: in seconds it would be in the year 5138."""
STATES = {
    TaskState.COMPLETED: ("completed", "complete", "done", "success", "succeeded", "finished"),
    TaskState.FAILED: ("failed", "failure", "error", "errored", "crashed"),
    TaskState.CANCELLED: ("cancelled", "canceled", "aborted", "stopped", "killed"),
    TaskState.INTERRUPTED: ("interrupted", "lost"),
    TaskState.RUNNING: ("running", "in_progress", "in-progress", "active", "started"),
    TaskState.PENDING: ("pending", "queued", "waiting", "created", "new", "todo", "scheduled"),
}
STATUSES = {status: state for state, statuses in STATES.items() for status in statuses}
STREAMS = {
    "stdout": OutputKind.STDOUT,
    "output": OutputKind.STDOUT,
    "log": OutputKind.STDOUT,
    "info": OutputKind.STDOUT,
    "stderr": OutputKind.STDERR,
    "error": OutputKind.STDERR,
    "warning": OutputKind.STDERR,
}
SOURCES = ("source", "code", "command", "instruction", "text", "title", "description", "name")
NAMES = ("name", "title", "text", "instruction")
CREATED = ("created_at", "createdAt", "created", "start_time")
STARTED = ("started_at", "startedAt", "started", "start_time")
ENDED = ("completed_at", "completedAt", "ended_at", "endedAt", "finished_at", "end_time")
UPDATED = ("updated_at", "updatedAt", "updated")
NOT_COMPLETED = "was not completed"
LIVE_REASON = "was running when it was exported"


@dataclass(slots=True)
class Group:
    """The tasks of one session of a file."""

    session: PortableSession
    entries: Sequence[tuple[str, Any]]
    """The possible tasks, each with its place in the file."""
    turns: Counter[str] = field(default_factory=Counter)
    """Number of tasks without an id that had the same text so far."""


@dataclass(frozen=True, slots=True)
class OldTask:
    """The contents of one entry."""

    task: PortableTask
    outputs: list[PortableOutput]
    results: list[PortableResult]


def recognised(document: Any, path: Path) -> list[Group]:
    """Return the sessions of a file in one of the older formats; none if it is in another."""
    found = [
        _group(path, name, created, entries)
        for name, created, entries in _sessions(document)
        if entries
    ]
    return found if any(_is_task(each) for group in found for _place, each in group.entries) else []


def _is_task(value: Any) -> bool:
    return isinstance(value, dict) and (
        "status" in value or isinstance(value.get("completed"), bool)
    )


Entries = list[tuple[str, Any]]


def _sessions(document: Any) -> Iterator[tuple[str, Any, Entries]]:
    """Yield the name, time and entries of each session."""
    if isinstance(document, list):
        yield "", None, _entries("", document)
    elif isinstance(document, dict):
        session = document.get("session")
        holder, prefix = (session, "session.") if isinstance(session, dict) else (document, "")
        if isinstance(holder.get("tasks"), list | dict):
            name, created = document.get("session_id") or "", document.get("created_at")
            yield str(name), created, _entries(f"{prefix}tasks", holder["tasks"])
        elif any(map(_is_task, document.values())):
            yield "", None, _entries("", document)
        else:
            for name, tasks in document.items():
                if isinstance(tasks, dict) and isinstance(tasks.get("tasks"), list | dict):
                    yield name, tasks.get("created_at"), _entries(f"{name}.tasks", tasks["tasks"])
                elif isinstance(tasks, list | dict):
                    yield name, None, _entries(name, tasks)


def _entries(place: str, tasks: list[Any] | dict[str, Any]) -> Entries:
    if isinstance(tasks, list):
        return [(f"{place}[{turn}]", each) for turn, each in enumerate(tasks)]
    dot = "." if place else ""
    return [
        (f"{place}{dot}{name}", {"id": name, **each} if isinstance(each, dict) else each)
        for name, each in tasks.items()
    ]


def _group(path: Path, name: str, created: Any, entries: Entries) -> Group:
    """Return a session of a file: its own if it has one, or else one that stands for the file."""
    full = str(storable(str(path.resolve())))
    changed_at = path.stat().st_mtime
    is_own = len(name) >= LONG_ID_CHARACTERS and re.fullmatch(SESSION_ID, name)
    try:
        at = time_of(created) or changed_at
    except ValueError:
        at = changed_at
    notebook = PortableNotebook(uuid.uuid5(NAMESPACE, full).hex, full, 0, at)
    session = PortableSession(
        id=name if is_own else str(uuid.uuid5(NAMESPACE, f"{full}\n{storable(name)}")),
        notebook=notebook,
        path=full,
        has_path=False,
        kernel_uuid=None,
        front_end="program",
        host=host_name(),
        pid=0,
        process_start="",
        boot_id="",
        started_at=at,
        heartbeat_at=at,
        ended_at=at,
        end_reason="imported",
    )
    return Group(session, entries)


def task_of(value: Any, group: Group) -> OldTask:
    """Return the task that an entry describes. Raise `InvalidRecord`."""
    known = Fields.of(value)
    source = _first_text(known, SOURCES, SOURCE_CHARACTERS)
    if not source:
        raise InvalidRecord("", f"has none of {', '.join(SOURCES)}")
    state, reason = _state(known)
    created_at = _time(known, CREATED) or _time(known, STARTED) or group.session.started_at
    started_at = _time(known, STARTED)
    if started_at is None and state is TaskState.COMPLETED:
        started_at = created_at
    ended_at = _time(known, ENDED) or _time(known, UPDATED) or created_at
    name = " ".join(_first_text(known, NAMES, SOURCE_CHARACTERS).split())
    task = PortableTask(
        id="",
        number=0,
        session=group.session.id,
        name=name if len(name) <= 80 else f"{name[:79]}…",
        kind="shell" if "command" in known.members else "python",
        runner="process" if "command" in known.members else "thread",
        state=state,
        reason=reason,
        exit_code=0 if state is TaskState.COMPLETED else None,
        created_at=created_at,
        started_at=started_at,
        ended_at=max(ended_at, started_at or created_at),
        cancel_requested_at=None,
        cleared_at=None,
        cell_id=None,
        execution_count=None,
        source=source,
        is_call=False,
        max_output_bytes=None,
        dropped_bytes=0,
        provenance={"original_id": _original_id(known, source, group.turns)},
    )
    return OldTask(task, list(_outputs(known, created_at)), list(_results(known)))


def _original_id(known: Fields, source: str, turns: Counter[str]) -> str:
    """Return its original id or, without one, a value that distinguishes it within the file."""
    given = known.members.get("id")
    if isinstance(given, str | int) and not isinstance(given, bool) and str(given):
        if len(str(given)) > LINE_CHARACTERS:
            raise known.refuse("id", f"is longer than {LINE_CHARACTERS:,} characters")
        return str(storable(str(given)))
    if given is not None:
        raise known.refuse("id", "is neither a text nor a whole number")
    digest = hashlib.sha256(source.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    turns[digest] += 1
    return f"{digest}-{turns[digest]}"


def _first_text(known: Fields, names: Iterable[str], characters: int) -> str:
    for name in names:
        if known.has(name) and known.text(name, characters).strip():
            return known.text(name, characters)
    return ""


def _state(known: Fields) -> tuple[TaskState, str | None]:
    """Return the state, and the reason if it says more than the state."""
    if not known.has("status"):
        is_done = known.flag("completed")
        return (TaskState.COMPLETED, None) if is_done else (TaskState.INTERRUPTED, NOT_COMPLETED)
    given = known.text("status").strip().lower()
    state = STATUSES.get(given)
    if state is None:
        raise known.refuse("status", f"is {given[:40]!r}, which is no status that import knows")
    if not state.is_final:
        return TaskState.INTERRUPTED, LIVE_REASON
    error = known.members.get("error")
    first = error.strip().splitlines()[:1] if isinstance(error, str) else []
    return state, first[0][:LINE_CHARACTERS] if first and state is TaskState.FAILED else None


def _time(known: Fields, names: Iterable[str]) -> float | None:
    for name in names:
        if known.has(name):
            try:
                return time_of(known.members[name])
            except ValueError as error:
                raise known.refuse(name, str(error)) from None
    return None


def time_of(value: Any) -> float | None:
    """Parse ISO 8601, seconds or milliseconds into seconds since the epoch. Raise `ValueError`.

    A time without a zone is in this machine's zone, as Python and JavaScript write it.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{9,13}(\.\d{1,9})?", value, re.ASCII):
        value = float(value)
    if isinstance(value, str):
        try:
            seconds = datetime.fromisoformat(value.strip()[:64]).timestamp()
        except (ValueError, OverflowError, OSError):
            raise ValueError(f"is {value[:40]!r}, which is no time") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 < value < LATEST_S * 1000:
            raise ValueError("is not between 1970 and 9999")
        seconds = value / 1000 if value >= EARLIEST_MILLISECONDS else float(value)
    else:
        raise ValueError("is neither a text nor a number, so it is no time")
    if not 0 < seconds < LATEST_S:
        raise ValueError("is not between 1970 and 9999")
    return seconds


def _outputs(known: Fields, at: float) -> Iterator[PortableOutput]:
    """Yield what it printed: its logs, or one text for each stream."""
    if isinstance(known.members.get("logs"), str):
        yield _piece(OutputKind.STDOUT, at, known.text("logs", LINE_BYTES))
    elif known.has("logs"):
        for place, entry in known.each("logs"):
            yield _log(place, entry, at)
    for name in ("stdout", "output", "stderr"):
        if isinstance(known.members.get(name), str):
            yield _piece(STREAMS[name], at, known.text(name, LINE_BYTES))


def _log(place: str, entry: Any, at: float) -> PortableOutput:
    if isinstance(entry, str):
        return _piece(OutputKind.STDOUT, at, _as_line(entry))
    known = Fields.of(entry, place)
    kind = OutputKind.STDOUT
    if known.has("type"):
        kind = STREAMS[known.choice("type", STREAMS)]
    at = _time(known, ("timestamp", "time", "at")) or at
    for name in ("text", "data", "content"):
        if known.has(name):
            return _piece(kind, at, known.text(name, LINE_BYTES))
    return _piece(kind, at, _as_line(known.text("message", LINE_BYTES)))


def _as_line(message: str) -> str:
    return message if message.endswith("\n") else f"{message}\n"


def _piece(kind: OutputKind, at: float, text: str) -> PortableOutput:
    return PortableOutput(kind, at, text.encode("utf-8", "backslashreplace"))


def _results(known: Fields) -> Iterator[PortableResult]:
    """Yield its result, of which such a file has only the text."""
    value = known.members.get("result")
    if value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield PortableResult("", text[:4000], "the imported file has only its text")
