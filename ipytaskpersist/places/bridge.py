"""What the programs share that connect a supervisor with a place: their streams and their words."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.places import agent
from ipytaskpersist.places.far.files import Refused, write_all
from ipytaskpersist.places.messages import pack

Json = dict[str, Any]
Message = tuple[Json, bytes]
Answer = Callable[[Json, bytes, agent.Pause], Message]
"""Answers a request. The pause ends early when the next request is there."""
WORDS_LENGTH = 300


class Unreachable(Exception):
    """The place could not be asked. The message says why."""


def unreachable(words: str) -> Message:
    """Return the answer to a request with which the place could not be asked."""
    return {"error": words, "unreachable": True}, b""


class Streams:
    """The requests on the standard input, and the answers on what was the standard output."""

    def __init__(self) -> None:
        self.requests = agent.Requests()
        self._answers = os.dup(1)
        os.dup2(2, 1)  # whatever else is printed is no answer
        write_all(self._answers, agent.GREETING)

    def write(self, answer: Message) -> None:
        """Write an answer. Raises `BrokenPipeError`."""
        write_all(self._answers, pack(*answer))


def serve(answer: Answer) -> None:
    """Answer the requests one after another, until the supervisor has gone."""
    streams = Streams()
    with suppress(EOFError, BrokenPipeError):
        while True:
            try:
                found = answer(*streams.requests.take(), streams.requests.wait)
            except (Refused, Unreachable) as error:
                found = unreachable(str(error))
            streams.write(found)


def arguments() -> tuple[Json, Path]:
    """Return the place and the state directory, as `places.connecting` puts them into a command."""
    spec, state_directory = sys.argv[1:]
    return json.loads(spec), Path(state_directory)


def last_line(text: str) -> str:
    """Return the last line of what a program said, fit to be shown."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return legible(lines[-1])[:WORDS_LENGTH] if lines else ""
