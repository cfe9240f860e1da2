"""The user's time zone, by a name that another process can find it by."""

from __future__ import annotations

import os
from datetime import UTC, tzinfo
from pathlib import Path

LOCAL_TIME = Path("/etc/localtime")
ZONES = "zoneinfo/"
"""What precedes a zone's name in the path of its file."""


class UnknownZone(ValueError):
    """The environment names a time zone that this machine does not know."""


def local_zone_name() -> str:
    """Return the name of the local time zone, such as ``Europe/Berlin``; empty if it has none.

    Raises `UnknownZone` if the variable TZ does not name one.
    """
    asked = os.environ.get("TZ", "").removeprefix(":")
    name = asked or _link(LOCAL_TIME)
    name = name.rpartition(ZONES)[2]
    if _named(name) is not None:
        return name
    if asked:
        raise UnknownZone(asked)
    return ""


def zone_of(name: str) -> tzinfo:
    """Return the zone of this name; the machine's own for none, and for one that it has lost."""
    return _named(name) or _own() or UTC


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # no link, or no file
        return ""


def _named(name: str) -> tzinfo | None:
    # Imported late: few processes have a schedule.
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name) if name else None
    except (ValueError, OSError, KeyError):  # a zone that is not there is a KeyError
        return None


def _own() -> tzinfo | None:
    from zoneinfo import ZoneInfo

    try:
        with LOCAL_TIME.open("rb") as file:
            return ZoneInfo.from_file(file)
    except (ValueError, OSError):
        return None
