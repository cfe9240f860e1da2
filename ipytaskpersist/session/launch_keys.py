"""Keys of launches: a launch that is repeated with its key is answered with the same task."""

from __future__ import annotations

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.finding import TAG

PREFIX = "key:"
"""Beginning of the tag by which the store knows the task of a key."""


def tag_of(key: str) -> str:
    """Return the tag of a key. Raise `InvalidRequest` for a text that cannot be one."""
    tag = f"{PREFIX}{key}"
    if not TAG.fullmatch(tag) or not tag.isprintable():
        raise InvalidRequest(
            f"{key!r} cannot be a key: a key is one word of at most {64 - len(PREFIX)} characters, "
            "without commas"
        )
    return tag


def refuse_other(task: TaskRecord, tag: str, source: str) -> None:
    """Raise `InvalidRequest` if the task of a key was launched with another source."""
    if task.source != source:
        raise InvalidRequest(
            f"the key {legible(tag.removeprefix(PREFIX))} is that of task {task.label}, which has "
            "another source; give this one another key"
        )
