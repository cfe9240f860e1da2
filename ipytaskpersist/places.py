"""Places where the end of a task is told: what they are, and how they look without their secrets.

A place is ``desktop`` or an address of apprise (``mailto://…``, ``json://…``), which may hold a
password or a token. Nothing here imports apprise before it is needed: importing it takes a while.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.records import TaskRecord, TaskState

DESKTOP = "desktop"
DESKTOP_ADDRESSES = {"darwin": "macosx://", "win32": "windows://"}
OTHER_DESKTOP = "dbus://"
HIDDEN = "***"
OPEN = frozenset(("json", "jsons", "xml", "xmls", "form", "forms", "mailto", "mailtos"))
"""The schemas whose user and host are no secrets. Those of others may be tokens."""
SCHEMA = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
PLAIN_HOST = re.compile(r"[\w.-]+(:\d+)?", re.ASCII)
PLAIN_USER = re.compile(r"[\w.+-]+", re.ASCII)
AFTER = "after:"
"""How the condition begins that a task has run for so many seconds, among the places kept."""
TOLD = (TaskState.COMPLETED, TaskState.FAILED, TaskState.INTERRUPTED)
"""The ends that are told. Whoever cancels a task knows."""
INSTALL = "pip install 'ipytaskpersist[notify]'"


class Place(str):
    """A place whose secrets are not shown where it is shown by accident."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked(self))


def masked(place: str) -> str:
    """The place without what may be secret."""
    found = SCHEMA.match(place)
    if found is None:
        before, colon, _rest = place.partition(":")
        shown = before if before.isprintable() else ascii(before)
        return f"{shown[:40]}:{HIDDEN}" if colon else shown[:40]
    schema = found.group(1).lower()
    return f"{schema}://{_masked_rest(place[found.end() :]) if schema in OPEN else HIDDEN}"


def _masked_rest(rest: str) -> str:
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    # A password may hold any of these characters where somebody forgot to encode it.
    if "@" in rest[len(authority) :] or not PLAIN_HOST.fullmatch(host):
        return HIDDEN
    name, colon, _password = user.partition(":")
    shown = name if colon and PLAIN_USER.fullmatch(name) else HIDDEN
    who = f"{shown}:{HIDDEN}@" if colon else f"{HIDDEN}@" if at else ""
    more = f"/{HIDDEN}" if rest[len(authority) :].strip("/") else ""
    return f"{who}{host}{more}"


def in_words(kept: Iterable[str]) -> list[str]:
    """What is kept of a task's places, without secrets."""
    found = Wanted.of(kept)
    after = "" if found.after_s is None else f" after {found.after_s:g} s"
    return [f"{masked(place)}{after}" for place in found.places]


def address(place: str) -> str:
    """What apprise calls the place."""
    if place == DESKTOP:
        return DESKTOP_ADDRESSES.get(sys.platform, OTHER_DESKTOP)
    return place


# What a task wants.


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a task's end is to be told, and when."""

    places: tuple[str, ...]
    after_s: float | None = None
    """Only when it has run so long; None for always."""

    @classmethod
    def of(cls, kept: Iterable[str]) -> Wanted:
        """What the store keeps of it."""
        places, after_s = [], None
        for each in kept:
            if each.startswith(AFTER):
                after_s = float(each.removeprefix(AFTER))
            else:
                places.append(each)
        return cls(tuple(places), after_s)

    def kept(self) -> tuple[str, ...]:
        """The form in which the store keeps it."""
        condition = () if self.after_s is None or not self.places else (f"{AFTER}{self.after_s}",)
        return (*condition, *self.places)

    def is_due(self, task: TaskRecord) -> bool:
        """Whether the end of the task, which has ended, is to be told."""
        if task.state not in TOLD or not self.places or task.ended_at is None:
            return False
        return self.after_s is None or (task.elapsed_s(task.ended_at) or 0.0) >= self.after_s


def wanted(asked: bool, more: Sequence[str], usual: Sequence[str], after_s: float | None) -> Wanted:
    """Where the end of a task that is being launched is to be told.

    `asked` and `more` are what was said about this task, `usual` and `after_s` what is set. Raises
    `InvalidRequest` for what was said and makes no sense.
    """
    if not asked and not more:
        return Wanted(tuple(usual) if after_s is not None else (), after_s)
    chosen = tuple(dict.fromkeys([*usual, *more]))
    if not chosen:
        raise InvalidRequest(
            "--notify needs a place: set one with %config BackgroundTasks.notify = ['desktop'], or "
            "add --notify-to PLACE"
        )
    for place in chosen:
        check(place)
    return Wanted(chosen)


# What makes sense.


def looks_right(place: str) -> bool:
    """Whether it has the form of a place."""
    return place == DESKTOP or SCHEMA.match(place) is not None


_checked: set[str] = set()


def check(place: str) -> None:
    """Raise `InvalidRequest` for a place at which nothing can be told. Imports apprise."""
    if place in _checked:
        return
    if not looks_right(place):
        raise InvalidRequest(
            f"'{masked(place)}' is no place for notifications; give 'desktop', or an address of "
            "apprise such as mailto://ada:password@example.com"
        )
    try:
        from apprise import Apprise
        from apprise.manager_plugins import NotificationManager
    except ImportError:
        raise InvalidRequest(f"notifications need apprise; install it: {INSTALL}") from None
    url = address(place)
    schema = url.partition("://")[0].lower()
    if schema not in NotificationManager():  # type: ignore[no-untyped-call]
        raise InvalidRequest(
            f"apprise knows no place '{masked(place)}'; https://appriseit.com/services/ lists what "
            "it knows"
        )
    if Apprise.instantiate(url, suppress_exceptions=True) is None:
        raise InvalidRequest(_why_unusable(place, schema))
    _checked.add(place)


def _why_unusable(place: str, schema: str) -> str:
    if place == DESKTOP:
        package = "dbus-python" if schema == "dbus" else "apprise's requirements for it"
        return (
            f"this Python cannot show desktop notifications ({schema}); install {package}, or give "
            "another place with --notify-to"
        )
    return (
        f"the place '{masked(place)}' is not complete; "
        f"https://appriseit.com/services/ says what {schema}:// needs"
    )
