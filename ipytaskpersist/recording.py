"""The way of one task's output into the store: pieces as they were printed, and the rows they make.

A task's thread only appends to a queue of its own, which costs well under a microsecond: a
`collections.deque`, whose appending is one call in C, so that neither a cancellation raised in the
middle of a print nor a print from a finalizer can leave a lock behind. The writer in `recorder`
takes it from there.
"""

from __future__ import annotations

import codecs
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ipytaskpersist.bars import Bars
from ipytaskpersist.records import STREAM_KINDS, OutputKind, Progress
from ipytaskpersist.screen import TAIL_CHARACTERS, LastLine
from ipytaskpersist.store import NewOutput, TaskStore
from ipytaskpersist.widgetmarks import is_about_widget

if TYPE_CHECKING:
    from ipytaskpersist.recorder import Recorder

PROGRESS_S = 0.2
"""How often the store is told at most how far a task has come."""
CHUNK_BYTES = 256 * 1024
WAITING_CHARACTERS = 1024 * 1024
"""How much may wait for the writer before a print waits for it too."""
END_BYTES = 4 * TAIL_CHARACTERS
LOST = "\n[{:,} characters that were printed here are lost: the store could not be written]\n"
LIMITED = (*STREAM_KINDS, OutputKind.DISPLAY_DATA, OutputKind.UPDATE_DISPLAY_DATA)
"""What a limit on output applies to."""
CUT = "\n[more than {:,} bytes: what follows is counted, not kept; see max_output_bytes]\n"
USUAL_KIND = OutputKind.STDOUT
"""A constant: looking up a member of an enumeration costs as much as the rest of a write."""
Item = str | tuple[OutputKind, str | bytes]
"""A piece of output on its way: text for stdout, the most frequent, else with its kind."""


def new_decoder() -> codecs.IncrementalDecoder:
    """A decoder for text that comes in pieces."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


@dataclass(slots=True, eq=False)
class Stream:
    """How far one of a task's two streams has come."""

    size_bytes: int = 0
    lines: int = 0
    last_line: LastLine = field(default_factory=LastLine)
    bars: Bars = field(default_factory=Bars)
    decoder: codecs.IncrementalDecoder = field(default_factory=new_decoder)

    def decode_end(self, data: bytes) -> str:
        """The text at the end of the next piece, which may begin and end inside a character."""
        if len(data) > END_BYTES:
            self.decoder.reset()
            data = data[-END_BYTES:]
        return self.decoder.decode(data)


class Recording:
    """The way of one task's output into the store."""

    def __init__(
        self, recorder: Recorder, task_key: int, max_output_bytes: int | None = None
    ) -> None:
        """`max_output_bytes` is how much is kept of what it prints and displays; None for all."""
        self.task_key = task_key
        self.dropped_bytes = 0
        """How much was beyond the limit."""
        self._told_bytes = 0
        """How much of that the store knows of."""
        self._limit = self._room = max_output_bytes
        self.pending: deque[Item] = deque()
        self._append = self.pending.append
        self.is_queued = False
        """Whether the writer knows that something is pending."""
        self._recorder = recorder
        self._streams = {kind: Stream() for kind in STREAM_KINDS}
        self._progress: Progress | None = None
        self._told_progress: Progress | None = None
        self._said_progress = False
        """Whether its code has said how far it has come: it knows better than its bars."""
        self.is_watched = False
        """Whether the writer will look in a moment how far it has come."""
        self.lost_characters = 0
        """How much was dropped since the store has had the last of it."""
        self.listener: Callable[[OutputKind, Any], None] | None = None
        """Hears all that the task puts out, before it is recorded."""
        recorder.recordings.add(self)

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Record a piece of a stream."""
        if self.listener is not None:
            self.listener(kind, text)
        is_usual = kind is USUAL_KIND and type(text) is str
        self._append(text if is_usual else (kind, text))  # type: ignore[arg-type]
        recorder = self._recorder
        waiting = recorder.waiting = recorder.waiting + len(text)
        if recorder.is_quiet and text[-1:] in ("\n", b"\n"):
            recorder.commit_now(self)
        elif not self.is_queued:
            self.is_queued = True
            recorder.queue.put((self, None, None))
        if waiting > WAITING_CHARACTERS:
            recorder.wait_for_room()

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Record a display, a result or an error: the content of its message."""
        if self.listener is not None:
            self.listener(kind, content)
        self.add_encoded(kind, encode_content(content))

    def add_encoded(self, kind: OutputKind, data: bytes) -> None:
        """Record a display, a result or an error that is JSON already."""
        self.pending.append((kind, data))
        self._recorder.waiting += len(data)
        self._recorder.commit_now(self)

    def progress(self, progress: Progress) -> None:
        """Record how far the task has come, as its code says."""
        self._said_progress = True
        self._progress = progress
        if not self.is_watched:
            self.is_watched = True
            self._recorder.queue.put((self, None, None))

    @property
    def has_moved(self) -> bool:
        """Whether the task has come further than the store knows."""
        return self._progress is not self._told_progress

    def tell_progress(self, store: TaskStore) -> None:
        """Have the store know how far the task has come. Only the writer does."""
        progress = self._progress
        if progress is not None and progress is not self._told_progress:
            store.tasks.progress(self.task_key, progress)
            self._told_progress = progress

    def finish(self, store: TaskStore) -> None:
        """Have the store know what else there is to know at the task's end."""
        self.tell_dropped(store)
        self.tell_progress(store)

    def take(self, at: float) -> list[NewOutput]:
        """The rows of what is pending. Only the writer asks."""
        # Before the queue is emptied: what is appended from now on is announced again.
        self.is_queued = False
        take = self.pending.popleft
        items = [take() for _ in range(len(self.pending))]
        self._recorder.waiting -= sum(map(size_of, items))
        if self.lost_characters:
            items.insert(0, (OutputKind.STDERR, LOST.format(self.lost_characters)))
            self.lost_characters = 0
        pieces = joined(items) if self._room is None else self._within(self._room, joined(items))
        rows: list[NewOutput] = []
        for kind, data in pieces:
            rows.extend(self._rows(kind, at, data))
        return rows

    def _within(
        self, room: int, pieces: Iterable[tuple[OutputKind, bytes]]
    ) -> Iterator[tuple[OutputKind, bytes]]:
        """What fits into the limit: a prefix, then a mark; errors and results always."""
        for kind, data in pieces:
            if kind not in LIMITED or is_about_widget(kind, data):
                yield kind, data
                continue
            # A part of a stream is worth having, a part of a picture is not.
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

    def tell_dropped(self, store: TaskStore) -> None:
        """Have the store know how much was dropped. Only the writer does."""
        if self._told_bytes != self.dropped_bytes:
            store.tasks.dropped(self.task_key, self.dropped_bytes)
            self._told_bytes = self.dropped_bytes

    def _rows(self, kind: OutputKind, at: float, data: bytes) -> list[NewOutput]:
        stream = self._streams.get(kind)
        if stream is None:
            return [NewOutput(self.task_key, kind, at, data)]
        last = self._look_at(stream, data)
        return [
            self._chunk(
                stream,
                kind,
                at,
                data[start : start + CHUNK_BYTES],
                last if start + CHUNK_BYTES >= len(data) else None,
            )
            for start in range(0, len(data), CHUNK_BYTES)
        ]

    def _look_at(self, stream: Stream, data: bytes) -> str | None:
        """The last visible line, and the progress that it shows. Worth less than the bytes."""
        try:
            last = stream.last_line.feed(stream.decode_end(data)) or None
            if not self._said_progress and (bar := stream.bars.feed(stream.last_line.lines)):
                self._progress = bar
        except Exception as error:  # whatever it is, the output itself must be kept
            self._recorder.say(f"a line could not be looked at ({type(error).__name__}: {error})")
            return None
        return last

    def _chunk(
        self, stream: Stream, kind: OutputKind, at: float, data: bytes, last: str | None
    ) -> NewOutput:
        before = (stream.size_bytes, stream.lines)
        stream.size_bytes += len(data)
        stream.lines += (lines := data.count(b"\n"))
        return NewOutput(self.task_key, kind, at, data, *before, lines, last)


def encode_content(content: dict[str, Any]) -> bytes:
    """A message's content as JSON.

    Half of a surrogate pair, which no front end could be sent, becomes a question mark.
    """
    return json.dumps(content, default=str, ensure_ascii=False).encode("utf-8", "replace")


def size_of(item: Item) -> int:
    """How many characters an item holds."""
    return len(item) if type(item) is str else len(item[1])


def joined(items: list[Item]) -> Iterator[tuple[OutputKind, bytes]]:
    """Join neighbouring pieces of the same stream."""
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


def encode_all(texts: list[str]) -> bytes:
    """The bytes of many texts: each as it would be alone, but the usual way is the fast one."""
    try:
        return "".join(texts).encode()
    except UnicodeEncodeError:
        return b"".join(map(encode, texts))


def encode(text: str | bytes) -> bytes:
    """The bytes of a printed text. One that UTF-8 cannot hold is written as a terminal would."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return text.encode("utf-8", "backslashreplace")
