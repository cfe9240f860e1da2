"""Protocols for a task's output and for the streams of its child processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ipytaskpersist.base.records import OutputKind, Progress

Listener = Callable[[OutputKind, Any], None]


class Sink(Protocol):
    """Takes a task's output."""

    listener: Listener | None
    """Called with all of the task's output before it goes on."""

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Take a piece of a stream."""

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Take the message content of a display, a result or an error."""

    def progress(self, progress: Progress) -> None:
        """Take the task's progress."""

    def checkpointed(self, at: float) -> None:
        """Take the time of the task's latest checkpoint, in seconds since the epoch."""


class Checkpoints(Protocol):
    """The values that a task leaves for a later one that goes on from it."""

    def keep(self, value: Any) -> float:
        """Keep a value. Return the time, in seconds since the epoch."""

    def newest(self) -> tuple[Any, str]:
        """Return the newest whole value, and what is wrong with a newer one.

        Raises `LookupError` if there is none.
        """


class ChildStreams(Protocol):
    """The streams to which a task's child processes print, and the end of these processes."""

    have_streams: bool
    """Whether a child may have printed something that is not recorded yet."""

    @property
    def in_child(self) -> bool:
        """Whether this is a forked copy in a child of the task."""

    def silent(self, sink: Sink) -> ChildStreams:
        """Return other streams, whose output goes to a sink that discards it."""

    def drain(self) -> None:
        """Record what children have printed so far."""

    def stream(self, kind: OutputKind) -> int:
        """Return the file descriptor to which children write a stream."""

    def terminate(self, whole: bool) -> None:
        """End the children. Unless `whole`, spare those of multiprocessing."""

    def close(self) -> None:
        """Record what children have printed until now, because the task has ended."""

    def leave_to_foreground(self) -> None:
        """Show later output of the children in the foreground."""


class Silence:
    """A sink that discards everything."""

    listener: Listener | None = None

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Discard a piece of a stream."""

    def progress(self, progress: Progress) -> None:
        """Discard the task's progress."""

    def checkpointed(self, at: float) -> None:
        """Discard the time of a checkpoint."""

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Discard a display, a result or an error."""
