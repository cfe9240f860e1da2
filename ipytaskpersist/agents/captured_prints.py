"""What a command prints, kept for the call that runs it: several run at once, in threads."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_captured: ContextVar[tuple[io.StringIO, io.StringIO] | None] = ContextVar(
    "ipytaskpersist_captured", default=None
)


class _Diverted(io.TextIOBase):
    """A standard stream whose text goes to the call that prints it, else to the real stderr."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, place: int) -> None:
        self._place = place

    def write(self, text: str) -> int:
        """Keep a text."""
        captured = _captured.get()
        target = sys.__stderr__ if captured is None else captured[self._place]
        return len(text) if target is None else target.write(text)

    def flush(self) -> None:
        """Do nothing: what is kept is in memory."""

    def isatty(self) -> bool:
        """Return that this is no terminal."""
        return False


def divert_prints() -> None:
    """Have both standard streams of this process print for calls, from now on."""
    sys.stdout, sys.stderr = _Diverted(0), _Diverted(1)


@contextmanager
def captured_prints() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Keep what is printed to stdout and stderr in the context of the caller."""
    both = (io.StringIO(), io.StringIO())
    token = _captured.set(both)
    try:
        yield both
    finally:
        _captured.reset(token)
