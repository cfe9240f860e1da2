"""What a tool is, and what it answers: one JSON document, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Progress = Callable[[float, float | None, str], None]
"""Is told how far a call has come, how far it goes at most, and in words what it waits for. Raises
`CallEnded` if the client does not wait for the answer any more."""


class CallEnded(Exception):
    """The client has cancelled the call, or has gone."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure of a task."""

    mime: str
    base64: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call of a tool has come to."""

    text: str
    """A JSON document."""
    pictures: Sequence[Picture] = ()
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that an agent can ask for."""

    name: str
    description: str
    schema: Mapping[str, Any]
    """JSON Schema of its arguments."""
    is_reading: bool
    """Whether it changes nothing."""
    call: Callable[[Mapping[str, Any], Progress], Answer]
