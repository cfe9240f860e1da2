"""A task's output on its way into the store: printed pieces, and the rows made from them.

A task's thread only appends to its own queue, which costs well under a microsecond. The queue is a
`collections.deque`, whose `append` is one call in C. So neither a cancellation raised in the middle
of a print nor a print from a finalizer can leave a lock behind. The writer in `output.recorder`
takes it from there.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, Progress
from ipytaskpersist.base.widget_marks import is_about_widget
from ipytaskpersist.running.sinks import Listener
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.encoding import encode, encode_all, encode_content, new_decoder
from ipytaskpersist.text.progress_bars import Bars
from ipytaskpersist.text.screen import TAIL_CHARACTERS, LastLine

PROGRESS_S = 0.2
"""Minimum interval between two saves of a task's progress."""
CHUNK_BYTES = 256 * 1024
WAITING_CHARACTERS = 1024 * 1024
"""Amount that may wait for the writer before a print waits for it, too."""
END_BYTES = 4 * TAIL_CHARACTERS
LOST = "\n[{:,} characters that were printed here are lost: the store could not be written]\n"
LIMITED = (*STREAM_KINDS, OutputKind.DISPLAY_DATA, OutputKind.UPDATE_DISPLAY_DATA)
"""The kinds to which an output limit applies."""
CUT = "\n[more than {:,} bytes: what follows is counted, not kept; see max_output_bytes]\n"
USUAL_KIND = OutputKind.STDOUT
"""A constant: looking up an enumeration's member costs as much as the rest of a write."""
Item = str | tuple[OutputKind, str | bytes]
"""A piece of output on its way: text for stdout, the most frequent, else with its kind."""


@dataclass(frozen=True, slots=True)
class Offset:
    """Mark between pieces of output: how far the spool was read from which they come."""

    spool: int


@dataclass(slots=True, eq=False)
class Stream:
    """The position in one of a task's two streams."""

    size_bytes: int = 0
    lines: int = 0
    last_line: LastLine = field(default_factory=LastLine)
    bars: Bars = field(default_factory=Bars)
    decoder: codecs.IncrementalDecoder = field(default_factory=new_decoder)

    def decode_end(self, data: bytes) -> str:
        """Return the text at the end of the next piece, which may start and end mid-character."""
        if len(data) > END_BYTES:
            self.decoder.reset()
            data = data[-END_BYTES:]
        return self.decoder.decode(data)

    def row(
        self, task_key: int, kind: OutputKind, at: float, data: bytes, last_line: str | None
    ) -> NewOutput:
        """The next piece as the store keeps it: with where it begins, and its last line."""
        before, lines = (self.size_bytes, self.lines), data.count(b"\n")
        self.size_bytes += len(data)
        self.lines += lines
        return NewOutput(task_key, kind, at, data, *before, lines, last_line)


@dataclass(slots=True, eq=False)
class Backlog:
    """Output that waits for a writer, of all recordings together.

    Tasks and writer update it without a lock, so it is approximate.
    """

    characters: int = 0
    is_quiet: bool = True
    """Whether the last commit is so long ago that the next print is committed at once."""


class Writer(Protocol):
    """The writer's interface for recordings, which it saves in the store."""

    backlog: Backlog

    def add(self, recording: Recording) -> None:
        """Add a recording to those that it looks after."""

    def announce(self, recording: Recording) -> None:
        """Queue a recording's pending output."""

    def commit_now(self, recording: Recording) -> None:
        """Save pending output at once, and give its commit a moment."""

    def wait_for_room(self) -> None:
        """Wait until less is pending."""

    def say(self, message: str) -> None:
        """Report a problem."""


class Recording:
    """A task's output on its way into the store."""

    def __init__(self, writer: Writer, task_key: int, max_output_bytes: int | None = None) -> None:
        """Keep at most `max_output_bytes` of what it prints and displays; None for all."""
        self.task_key = task_key
        self.dropped_bytes = 0
        """Number of bytes beyond the limit."""
        self._saved_bytes = 0
        """The part of that which is saved in the store."""
        self._limit = self._room = max_output_bytes
        self._pending: deque[Any] = deque()
        """Items, and offsets between them."""
        self._append = self._pending.append
        self._is_queued = False
        """Whether the writer knows that something is pending."""
        self._writer = writer
        self._backlog = writer.backlog
        self._streams = {kind: Stream() for kind in STREAM_KINDS}
        self._progress: Progress | None = None
        self._saved_progress: Progress | None = None
        self._checkpoint_at: float | None = None
        self._saved_checkpoint_at: float | None = None
        self._said_progress = False
        """Whether its code has reported its progress: it knows better than its bars."""
        self._is_watched = False
        """Whether the writer is already due to save this task's progress."""
        self._lost_characters = 0
        """Number of characters dropped since the store was last written."""
        self.listener: Listener | None = None
        """Receives all of the task's output before it is recorded."""
        self.spool_offset: int | None = None
        """How far the spool was read from which the rows come that were taken last."""
        writer.add(self)

    def go_on(self, store: TaskStore) -> None:
        """Go on where the recording of another process has ended. Raises `StoreError`."""
        for kind, stream in self._streams.items():
            size = store.outputs.stream_size(self.task_key, kind)
            stream.size_bytes, stream.lines = size.size_bytes, size.lines
        task = store.tasks.get(self.task_key)
        if task is not None and self._limit is not None:
            self._room = max(0, self._limit - store.outputs.kept_bytes(self.task_key))
            self.dropped_bytes = self._saved_bytes = task.dropped_bytes

    def come_to(self, offset: int) -> None:
        """Note that what comes from a spool was recorded as far as this.

        The store gets the offset in the transaction that adds what was recorded before.
        """
        self._append(Offset(offset))
        if not self._is_queued:
            self._is_queued = True
            self._writer.announce(self)

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Record a piece of a stream."""
        if self.listener is not None:
            self.listener(kind, text)
        is_usual = kind is USUAL_KIND and type(text) is str
        self._append(text if is_usual else (kind, text))
        backlog = self._backlog
        waiting = backlog.characters = backlog.characters + len(text)
        if backlog.is_quiet and text[-1:] in ("\n", b"\n"):
            self._is_queued = True
            self._writer.commit_now(self)
        elif not self._is_queued:
            self._is_queued = True
            self._writer.announce(self)
        if waiting > WAITING_CHARACTERS:
            self._writer.wait_for_room()

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Record a display, a result or an error: the content of its message."""
        if self.listener is not None:
            self.listener(kind, content)
        self.add_encoded(kind, encode_content(content))

    def add_encoded(self, kind: OutputKind, data: bytes) -> None:
        """Record a display, a result or an error that is already JSON."""
        self._pending.append((kind, data))
        self._backlog.characters += len(data)
        self._is_queued = True
        self._writer.commit_now(self)

    def progress(self, progress: Progress) -> None:
        """Record how far the task has come, as its code reports it."""
        self._said_progress = True
        self._progress = progress
        if not self._is_watched:
            self._is_watched = True
            self._writer.announce(self)

    def checkpointed(self, at: float) -> None:
        """Record the time of the task's latest checkpoint."""
        self._checkpoint_at = at
        if not self._is_watched:
            self._is_watched = True
            self._writer.announce(self)

    @property
    def has_moved(self) -> bool:
        """Whether the task has come further than the store knows."""
        return (
            self._progress is not self._saved_progress
            or self._checkpoint_at != self._saved_checkpoint_at
        )

    def still_moves(self) -> bool:
        """Return the same to the writer, which checks again later if so."""
        if not self.has_moved:
            # Reset before the check: progress made in between is announced.
            self._is_watched = False
            if not self.has_moved:
                return False
        self._is_watched = True
        return True

    def save_progress(self, store: TaskStore) -> None:
        """Save how far the task has come. Only the writer does."""
        progress = self._progress
        if progress is not None and progress is not self._saved_progress:
            store.tasks.progress(self.task_key, progress)
            self._saved_progress = progress
        at = self._checkpoint_at
        if at is not None and at != self._saved_checkpoint_at:
            store.tasks.checkpointed(self.task_key, at)
            self._saved_checkpoint_at = at

    def finish(self, store: TaskStore) -> None:
        """Save the remaining facts at the task's end."""
        self.save_dropped(store)
        self.save_progress(store)

    def take(self, at: float) -> list[NewOutput]:
        """Return the rows of pending output. Only the writer calls this."""
        # Before the queue is emptied: whatever is appended from now on is announced again.
        self._is_queued = False
        take = self._pending.popleft
        items = [take() for _ in range(len(self._pending))]
        offsets = [item.spool for item in items if type(item) is Offset]
        if offsets:
            self.spool_offset = offsets[-1]
            items = [item for item in items if type(item) is not Offset]
        self._backlog.characters -= sum(map(size_of, items))
        if self._lost_characters:
            items.insert(0, (OutputKind.STDERR, LOST.format(self._lost_characters)))
            self._lost_characters = 0
        pieces = joined(items) if self._room is None else self._within(self._room, joined(items))
        rows: list[NewOutput] = []
        for kind, data in pieces:
            rows.extend(self._rows(kind, at, data))
        return rows

    def drop_oldest(self) -> int | None:
        """Drop the oldest piece of pending output. Return its size; None when there is none."""
        if not self._pending:
            return None
        item = self._pending.popleft()
        if type(item) is Offset:
            return 0  # the next one says more
        size = size_of(item)
        self._backlog.characters -= size
        self._lost_characters += size
        return size

    def _within(
        self, room: int, pieces: Iterable[tuple[OutputKind, bytes]]
    ) -> Iterator[tuple[OutputKind, bytes]]:
        """Yield what fits into the limit: a prefix, then a mark; errors and results always."""
        for kind, data in pieces:
            if kind not in LIMITED or is_about_widget(kind, data):
                yield kind, data
                continue
            # A part of a stream is useful, a part of a picture is not.
            kept = data[:room] if kind in STREAM_KINDS or len(data) <= room else b""
            room -= len(kept)
            if kept:
                yield kind, kept
            if len(kept) < len(data):
                if not self.dropped_bytes:
                    yield OutputKind.STDERR, CUT.format(self._limit).encode()
                self.dropped_bytes += len(data) - len(kept)
                room = 0
        self._room = room

    def save_dropped(self, store: TaskStore) -> None:
        """Save how much was dropped. Only the writer does."""
        if self._saved_bytes != self.dropped_bytes:
            store.tasks.dropped(self.task_key, self.dropped_bytes)
            self._saved_bytes = self.dropped_bytes

    def _rows(self, kind: OutputKind, at: float, data: bytes) -> list[NewOutput]:
        stream = self._streams.get(kind)
        if stream is None:
            return [NewOutput(self.task_key, kind, at, data)]
        last = self._look_at(stream, data)
        return [
            stream.row(
                self.task_key,
                kind,
                at,
                data[start : start + CHUNK_BYTES],
                last if start + CHUNK_BYTES >= len(data) else None,
            )
            for start in range(0, len(data), CHUNK_BYTES)
        ]

    def _look_at(self, stream: Stream, data: bytes) -> str | None:
        """Return the last visible line, and note its progress. Matters less than the bytes."""
        try:
            last = stream.last_line.feed(stream.decode_end(data)) or None
            if not self._said_progress and (bar := stream.bars.feed(stream.last_line.lines)):
                self._progress = bar
        except Exception as error:  # whatever it is, the output itself must be kept
            self._writer.say(f"a line could not be looked at ({type(error).__name__}: {error})")
            return None
        return last


def size_of(item: Item) -> int:
    """Return the number of characters in an item."""
    return len(item) if type(item) is str else len(item[1])


def joined(items: list[Item]) -> Iterator[tuple[OutputKind, bytes]]:
    """Join adjacent pieces of the same stream."""
    for group_type, group in groupby(items, type):
        if group_type is str:
            yield OutputKind.STDOUT, encode_all(list(group))  # type: ignore[arg-type]
            continue
        for kind, pieces in groupby(group, lambda item: item[0]):
            data = [encode(piece[1]) for piece in pieces]
            if kind in STREAM_KINDS:
                yield kind, b"".join(data)
            else:
                yield from ((kind, each) for each in data)
