"""The members of a JSON object, each checked when it is asked for.

Nothing that comes from a file is believed unchecked.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.errors import BackgroundError

Document = dict[str, Any]

LINE_BYTES = 128 * 1024 * 1024
"""How long one line of a file may be that is imported."""
VALUES_AT_MOST = 10_000_000
"""How many values one line may hold: in memory each takes many times the room of its text."""
LATEST_S = 253402214400.0
"""The end of the year 9999: a `datetime` holds nothing later."""
LARGEST = 2**53
"""The largest number that every reader of JSON holds exactly."""
LINE_CHARACTERS = 1_000
TEXT_CHARACTERS = 1_000_000


class InvalidRecord(BackgroundError):
    """A record of a file that cannot be imported: where in it, and why."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place} {reason}" if place else reason)
        self.place = place
        self.reason = reason


def parsed(data: bytes) -> Any:
    """The value of a piece of JSON. Raises `InvalidRecord` for anything else."""
    if sum(map(data.count, (b",", b"[", b"{"))) > VALUES_AT_MOST:
        raise InvalidRecord("", f"has more than {VALUES_AT_MOST:,} values")
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise InvalidRecord("", "is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRecord("", f"is not JSON ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise InvalidRecord("", "is nested too deeply") from None
    except MemoryError:
        raise InvalidRecord("", "needs more memory than there is") from None
    except ValueError as error:
        raise InvalidRecord("", f"is not JSON ({str(error).splitlines()[0]})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


@dataclass(frozen=True, slots=True)
class Fields:
    """The members of a JSON object, each checked when it is asked for."""

    members: Document
    place: str = ""

    @classmethod
    def of(cls, value: Any, place: str = "") -> Fields:
        """The members of a value, which must be an object."""
        if not isinstance(value, dict):
            raise InvalidRecord(place, "is not an object")
        return cls(value, place)

    def at(self, name: str) -> str:
        """How a message names a member."""
        return f"{self.place}.{name}" if self.place else name

    def has(self, name: str) -> bool:
        """Whether there is such a member, and not null."""
        return self.members.get(name) is not None

    def refuse(self, name: str, reason: str) -> InvalidRecord:
        """The error for a member."""
        return InvalidRecord(self.at(name), reason)

    def text(self, name: str, characters: int = LINE_CHARACTERS, pattern: str | None = None) -> str:
        """A text."""
        value = self.members.get(name)
        if not isinstance(value, str):
            raise self.refuse(name, "is not a text" if name in self.members else "is missing")
        if len(value) > characters:
            raise self.refuse(name, f"is longer than {characters:,} characters")
        if pattern is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise self.refuse(name, f"is not of the form {pattern}")
        return value

    def printable(self, name: str) -> str:
        """A text that can stand in a message, a file and a signature."""
        value = self.text(name)
        if not value.isprintable():
            raise self.refuse(name, "is not printable")
        return value

    def choice(self, name: str, values: Collection[str]) -> str:
        """One of a few texts."""
        value = self.text(name)
        if value not in values:
            raise self.refuse(name, f"is {value[:40]!r}, and must be one of {', '.join(values)}")
        return value

    def whole(self, name: str, low: int = 0, high: int = LARGEST) -> int:
        """A whole number."""
        value = self.members.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(name, "is not a whole number")
        if not low <= value <= high:
            raise self.refuse(name, f"is not between {low} and {high}")
        return value

    def number(self, name: str, high: float = LATEST_S) -> float:
        """A number that is not negative."""
        value = self.members.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, "is not a number")
        if not 0 <= value <= high or not math.isfinite(value):
            raise self.refuse(name, f"is not between 0 and {high:.0f}")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.members.get(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "is neither true nor false")
        return value

    def maybe(self, read: Callable[..., Any], name: str, *more: Any) -> Any:
        """What `read` makes of a member, or None where there is none."""
        return read(name, *more) if self.has(name) else None

    def each(self, name: str) -> Iterator[tuple[str, Any]]:
        """The entries of a list, with how messages name them."""
        value = self.members.get(name, [])
        if not isinstance(value, list):
            raise self.refuse(name, "is not a list")
        return ((f"{self.at(name)}[{place}]", entry) for place, entry in enumerate(value))

    def texts(self, name: str, characters: int = LINE_CHARACTERS) -> tuple[str, ...]:
        """A list of texts."""
        found = []
        for place, entry in self.each(name):
            if not isinstance(entry, str) or len(entry) > characters:
                raise InvalidRecord(place, f"is not a text of up to {characters:,} characters")
            found.append(entry)
        return tuple(found)

    def inside(self, name: str) -> Fields:
        """The members of an object in it."""
        return Fields.of(self.members.get(name), self.at(name))


def base64_of(known: Fields, name: str) -> bytes:
    """The bytes that a member holds as base64."""
    try:
        return base64.b64decode(known.text(name, LINE_BYTES), validate=True)
    except (binascii.Error, ValueError):
        raise known.refuse(name, "is not base64") from None
