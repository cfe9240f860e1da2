"""What a person may type to name a task."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ipytaskpersist.errors import AmbiguousReference, InvalidRequest, TaskNotFound
from ipytaskpersist.records import SessionRecord, TaskRecord
from ipytaskpersist.safetext import legible
from ipytaskpersist.store import Selection, TaskStore
from ipytaskpersist.store.sessions import SHORT_CHARACTERS

SUGGESTIONS = 5
NUMBER = re.compile(r"\d{1,15}", re.ASCII)
FULL_ID = re.compile(r"-\d+$", re.ASCII)
TAG = re.compile(r"(?!-)[^\s,]{1,64}")


def find(store: TaskStore, notebook_key: int | None, reference: str | int | None) -> TaskRecord:
    """The task for a number, an id, a unique id prefix, a name, ``-1`` …, or the latest for None.

    Only a full id reaches another notebook's task. Raises `TaskNotFound`, `AmbiguousReference`.
    """
    text = "-1" if reference is None else str(reference).strip()
    found = store.open().tasks.by_id(text) if store.exists else None
    if found is None and store.exists and notebook_key is not None:
        found = _find_here(store, notebook_key, text)
    if found is None:
        raise _not_found(store, notebook_key, reference)
    return found


def find_archived(
    archive: TaskStore, notebook_key: int | None, reference: str | int | None
) -> TaskRecord | None:
    """The same in an archive, where nothing is the latest and nothing is counted back."""
    text = "" if reference is None else str(reference).strip()
    if not text or text.startswith("-"):
        return None
    found = archive.tasks.by_id(text)
    if found is None and notebook_key is not None:
        found = _find_here(archive, notebook_key, text)
    return found


def find_session(store: TaskStore, text: str) -> SessionRecord:
    """The session with this id, or the one whose id begins so. Raises `InvalidRequest`."""
    found = store.open().sessions.find(text) if store.exists and text else []
    exact = [session for session in found if session.id == text]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise _several_sessions(store, text, found)
    recent = store.sessions.select(None, SUGGESTIONS) if store.exists else []
    if not recent:
        raise InvalidRequest(f"no session '{text}'; there is none yet")
    known = ", ".join(store.sessions.short(session.id) for session in recent)
    raise InvalidRequest(f"no session '{text}'; the most recent are {known}")


def _several_sessions(
    store: TaskStore, text: str, found: Sequence[SessionRecord]
) -> AmbiguousReference:
    ids = ", ".join(store.sessions.short(session.id) for session in found[-SUGGESTIONS:])
    return AmbiguousReference(
        f"'{text}' is the beginning of {len(found)} sessions' ids ({ids}); type more of it"
    )


def session_meant(store: TaskStore, reference: str | None) -> SessionRecord | None:
    """The session whose id begins so, where enough of one is given to mean a session.

    A task's id, which begins like its session's, means the task. Raises `AmbiguousReference`.
    """
    if reference is None or len(reference) < SHORT_CHARACTERS or not store.exists:
        return None
    if store.open().tasks.by_id(reference) is not None:
        return None
    found = store.sessions.find(reference)
    return find_session(store, reference) if found else None


def as_number(reference: str | int | None) -> int | None:
    """The number that somebody has typed; None for anything else."""
    text = str(reference).strip()
    return int(text) if NUMBER.fullmatch(text) else None


def _find_here(store: TaskStore, notebook_key: int, text: str) -> TaskRecord | None:
    number = as_number(text)
    if number is not None:
        by_number = store.tasks.by_number(notebook_key, number)
        if by_number is not None:
            return by_number  # names and ids of digits are reached where no number is in the way
    if re.fullmatch(r"-\d{1,9}", text, re.ASCII) and int(text) < 0:
        return store.tasks.from_end(notebook_key, -int(text))
    named = store.tasks.by_name(notebook_key, text) if text else None
    return named or _by_prefix(store, notebook_key, text)


def _by_prefix(store: TaskStore, notebook_key: int, text: str) -> TaskRecord | None:
    if not text or FULL_ID.search(text):
        return None  # a whole id means that task, and no other
    found = store.tasks.by_id_prefix(notebook_key, text)
    refuse_several(found, text)
    return store.tasks.get(found[0].key) if found else None


def refuse_several(found: Sequence[TaskRecord], prefix: str) -> None:
    """Raise `AmbiguousReference` when the ids of several tasks begin so."""
    if len(found) > 1:
        ids = ", ".join(task.id for task in found[-SUGGESTIONS:])
        raise AmbiguousReference(
            f"'{prefix}' is the beginning of {len(found)} tasks' ids ({ids}); type more of it"
        )


def is_prefix(task: TaskRecord, reference: str | int | None) -> bool:
    """Whether only the beginning of a task's id was typed, and neither its name nor its number."""
    text = "" if reference is None else str(reference).strip()
    return (
        bool(text)
        and task.id.startswith(text)
        and text not in (task.id, task.name)
        and (as_number(text) != task.number)
    )


def _not_found(
    store: TaskStore, notebook_key: int | None, reference: str | int | None
) -> TaskNotFound:
    latest = []
    if store.exists and notebook_key is not None:
        latest = store.tasks.select(Selection(notebook_key, limit=SUGGESTIONS))
    what = "no task" if reference is None else f"no task '{str(reference).strip()}'"
    if not latest:
        return TaskNotFound(
            f"{what} in this notebook, which has none yet; put %%background above a cell, "
            "or see every notebook's tasks with %bg_list --all"
        )
    names = ", ".join(f"{task.number} {legible(task.name)}".strip() for task in reversed(latest))
    count = {1: "the only one is", 2: "the two are"}.get(len(latest), "the last ones are")
    return TaskNotFound(f"{what} in this notebook; {count} {names}")


def check_tags(tags: Sequence[str]) -> None:
    """Raise `InvalidRequest` for what cannot be a tag."""
    for tag in tags:
        if not TAG.fullmatch(tag) or not tag.isprintable():
            raise InvalidRequest(
                f"{tag!r} cannot be a tag: a tag is one word of at most 64 characters, without "
                "commas, that does not begin with a dash"
            )


def deleted(task: TaskRecord) -> TaskNotFound:
    """The error for a task that was there a moment ago."""
    return TaskNotFound(f"task {task.label} has been deleted; %bg_list shows those that are left")
