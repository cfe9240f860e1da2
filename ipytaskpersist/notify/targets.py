"""Notification places: what they are, and how they look without their secrets.

A place is ``desktop`` or an apprise address (``mailto://…``, ``json://…``), which may contain a
password or a token. Nothing here imports apprise before it is needed: importing it takes a while.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipytaskpersist.base.notify_target import SCHEMA, masked
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.errors import InvalidRequest

DESKTOP = "desktop"
DESKTOP_ADDRESSES = {"darwin": "macosx://", "win32": "windows://"}
OTHER_DESKTOP = "dbus://"
AFTER = "after:"
"""Prefix, among the places kept, of the minimum number of seconds that a task must have run."""
TOLD = (TaskState.COMPLETED, TaskState.FAILED, TaskState.INTERRUPTED)
"""Final states that trigger notifications. A cancelled task's end is no news to its canceller."""
INSTALL = "pip install 'ipytaskpersist[notify]'"


def in_words(kept: Iterable[str]) -> list[str]:
    """Return the kept places of a task in words, without secrets."""
    found = Wanted.of(kept)
    after = "" if found.after_s is None else f" after {found.after_s:g} s"
    return [f"{masked(place)}{after}" for place in found.places]


def address(place: str) -> str:
    """Return apprise's address for the place."""
    if place == DESKTOP:
        return DESKTOP_ADDRESSES.get(sys.platform, OTHER_DESKTOP)
    return place


# A task's notifications.


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to notify of a task's end, and when."""

    places: tuple[str, ...]
    after_s: float | None = None
    """Minimum run time in seconds; None to notify always."""

    @classmethod
    def of(cls, kept: Iterable[str]) -> Wanted:
        """Parse the form that the store keeps."""
        places, after_s = [], None
        for each in kept:
            if each.startswith(AFTER):
                after_s = float(each.removeprefix(AFTER))
            else:
                places.append(each)
        return cls(tuple(places), after_s)

    def kept(self) -> tuple[str, ...]:
        """Return the form that the store keeps."""
        condition = () if self.after_s is None or not self.places else (f"{AFTER}{self.after_s}",)
        return (*condition, *self.places)

    def is_due(self, task: TaskRecord) -> bool:
        """Return whether to notify of the end of this task, which has ended."""
        if task.state not in TOLD or not self.places or task.ended_at is None:
            return False
        return self.after_s is None or (task.elapsed_s(task.ended_at) or 0.0) >= self.after_s


def wanted(asked: bool, more: Sequence[str], usual: Sequence[str], after_s: float | None) -> Wanted:
    """Return where to notify of the end of a task that is being launched.

    `asked` and `more` are what the user said about this task, `usual` and `after_s` the settings.
    Raises `InvalidRequest` when what the user said makes no sense.
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


# Validation.


def looks_right(place: str) -> bool:
    """Return whether it has the form of a place."""
    return place == DESKTOP or SCHEMA.match(place) is not None


_checked: set[str] = set()


def check(place: str) -> None:
    """Raise `InvalidRequest` for a place that cannot be notified. Imports apprise."""
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
