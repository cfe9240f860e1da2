"""Notification places, displayed without what may be secret in them."""

from __future__ import annotations

import re

HIDDEN = "***"

OPEN = frozenset(("json", "jsons", "xml", "xmls", "form", "forms", "mailto", "mailtos"))
"""Schemas whose user and host are not secret. In others they may be tokens."""

SCHEMA = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)

PLAIN_HOST = re.compile(r"[\w.-]+(:\d+)?", re.ASCII)

PLAIN_USER = re.compile(r"[\w.+-]+", re.ASCII)


class NotifyTarget(str):
    """A place whose secrets are hidden when it is displayed by accident."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked(self))


def masked(place: str) -> str:
    """Return the place without what may be secret."""
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
    # An unencoded password may contain any of these characters.
    if "@" in rest[len(authority) :] or not PLAIN_HOST.fullmatch(host):
        return HIDDEN
    name, colon, _password = user.partition(":")
    shown = name if colon and PLAIN_USER.fullmatch(name) else HIDDEN
    who = f"{shown}:{HIDDEN}@" if colon else f"{HIDDEN}@" if at else ""
    more = f"/{HIDDEN}" if rest[len(authority) :].strip("/") else ""
    return f"{who}{host}{more}"
