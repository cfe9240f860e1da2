"""Group commit: one writer thread a process takes what all tasks print to the store.

A task's thread only puts its output into a queue, which costs about a microsecond. The writer
commits a quiet stream at once, and lets a busy one gather for at most 10 ms or 256 KiB. State
changes go the same way, so a task is never said to have ended before its last output is kept,
and whoever asked for the change waits until it is committed.

The queue is a `queue.SimpleQueue`: its ``put`` is one call in C, so that neither a cancellation
raised in the middle of a print nor a print from a finalizer can leave a lock behind.
"""

from __future__ import annotations

import json
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import StoreError
from ipytaskpersist.screen import LastLine
from ipytaskpersist.store import NewOutput, TaskStore
from ipytaskpersist.records import STREAM_KINDS, OutputKind

GATHER_S = 0.010
CHUNK_BYTES = 256 * 1024
QUEUE_CHARACTERS = 4 * 1024 * 1024
"""How much may wait for the writer before a print waits for it too."""
KEEP_CHARACTERS = 32 * 1024 * 1024
"""How much is kept in memory while the store cannot be written; what is beyond it is counted."""
RETRY_S = 0.25
QUIET_WAIT_S = 0.002
"""How long a quiet print waits for its commit, so that it is on disk before the next statement."""
HEARTBEAT_S = 15.0
WATCH_S = 0.1

Change = Callable[[TaskStore], object]


@dataclass(slots=True, eq=False)
class Stream:
    """How far one of a task's two streams has come."""

    size_bytes: int = 0
    lines: int = 0
    last_line: LastLine = field(default_factory=LastLine)


class Recording:
    """The way of one task's output into the store."""

    def __init__(self, recorder: Recorder, task_key: int) -> None:
        self.task_key = task_key
        self.streams = {kind: Stream() for kind in STREAM_KINDS}
        self._recorder = recorder
        self._put = recorder.put

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Record a piece of a stream."""
        self._put(self, kind, text)

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Record a display, a result or an error: the content of its message."""
        self._put(self, kind, json.dumps(content, default=str))

    def next_outputs(self, kind: OutputKind, at: float, data: bytes) -> list[NewOutput]:
        """The rows for the next piece. Only the writer asks, in the order of the pieces."""
        stream = self.streams.get(kind)
        if stream is None:
            return [NewOutput(self.task_key, kind, at, data)]
        return [
            self._next_chunk(stream, kind, at, data[start : start + CHUNK_BYTES])
            for start in range(0, len(data), CHUNK_BYTES)
        ]

    def _next_chunk(self, stream: Stream, kind: OutputKind, at: float, data: bytes) -> NewOutput:
        before = (stream.size_bytes, stream.lines)
        stream.size_bytes += len(data)
        stream.lines += (lines := data.count(b"\n"))
        last = stream.last_line.feed(data[-4 * 4096 :].decode("utf-8", "replace"))
        return NewOutput(self.task_key, kind, at, data, *before, lines, last or None)


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


class Recorder:
    """The queue, and the thread that empties it into the store."""

    def __init__(
        self,
        store: TaskStore,
        *,
        warn: Callable[[str], None],
        heartbeat: Callable[[], None],
        watch: Callable[[], None],
    ) -> None:
        """`heartbeat` is called now and then while tasks run, `watch` when others have committed."""
        self._store = store
        self._warn = warn
        self._heartbeat = heartbeat
        self._watch = watch
        self._queue: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._waiting = 0
        self._committed_at = 0.0
        self._healthy = True
        self._lost_characters = 0
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self.live_tasks = 0
        """How many tasks run. The owner counts; while it is zero the writer only waits."""

    def start(self) -> None:
        """Start the writer, unless it runs."""
        with self._start_lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="ipytaskpersist-writer", daemon=True
                )
                start_outside(self._thread)

    def put(self, recording: Recording, kind: OutputKind, data: str | bytes) -> None:
        """Queue a piece of output. Waits only for a quiet stream's commit or for room."""
        now = time.time()
        self._waiting += len(data)
        if now - self._committed_at > GATHER_S and self._healthy:
            committed = allocate_lock()
            committed.acquire()
            self._queue.put((recording, kind, now, data, committed))
            committed.acquire(True, QUIET_WAIT_S)
            return
        self._queue.put((recording, kind, now, data, None))
        if self._waiting > QUEUE_CHARACTERS:
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        while self._waiting > QUEUE_CHARACTERS and self._healthy:
            time.sleep(0.001)

    def change(self, change: Change, timeout_s: float | None = None) -> bool:
        """Make a change of state after all that is queued, and wait until it is committed.

        Returns False when the store could not take it within `timeout_s`; it is then made as soon
        as the store is back.
        """
        committed = allocate_lock()
        committed.acquire()
        self._queue.put((None, change, 0.0, "", committed))
        return committed.acquire(True, -1 if timeout_s is None else timeout_s)

    def post(self, change: Change) -> None:
        """Make a change of state after all that is queued, without waiting for it."""
        self._queue.put((None, change, 0.0, "", None))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything that is queued now is committed."""
        return self.change(lambda store: None, timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Commit what is queued and end the writer."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            self._queue.put(None)
            thread.join(timeout_s)

    # The writer thread.

    def _run(self) -> None:
        running = True
        seen = heartbeat_at = 0.0
        while running:
            batch, running = self._next_batch()
            if batch:
                self._commit(batch)
            if self.live_tasks and running:
                if time.monotonic() - heartbeat_at > HEARTBEAT_S:
                    heartbeat_at = time.monotonic()
                    self._quietly(self._heartbeat)
                seen = self._look_around(seen)
        self._store.database.close_own()

    def _next_batch(self) -> tuple[list[tuple[Any, ...]], bool]:
        """What to commit next, and whether to go on after it."""
        try:
            first = self._queue.get(timeout=WATCH_S if self.live_tasks else None)
        except Empty:
            return [], True
        if first is None:
            return self._rest([], 0)
        batch, size = [first], len(first[3])
        if first[4] is None:
            until = time.monotonic() + GATHER_S
            while size < CHUNK_BYTES and (left := until - time.monotonic()) > 0:
                try:
                    item = self._queue.get(timeout=left)
                except Empty:
                    break
                if item is None:
                    return self._rest(batch, size)
                batch.append(item)
                size += len(item[3])
                if item[4] is not None:
                    break
        return batch, True

    def _rest(self, batch: list[tuple[Any, ...]], size: int) -> tuple[list[tuple[Any, ...]], bool]:
        while not self._queue.empty():
            item = self._queue.get()
            if item is not None:
                batch.append(item)
        return batch, False

    def _commit(self, batch: list[tuple[Any, ...]]) -> None:
        outputs: list[NewOutput] = []
        for recording, kind_or_change, at, pieces in runs(batch):
            if recording is not None:
                data = b"".join(map(encode, pieces))
                outputs.extend(recording.next_outputs(kind_or_change, at, data))
            else:
                self._write(outputs)
                outputs = []
                self._persist(lambda change=kind_or_change: change(self._store))
        self._write(outputs)
        self._committed_at = time.time()
        for item in batch:
            self._waiting -= len(item[3])
            if item[4] is not None:
                item[4].release()
        if self._queue.empty():
            # The count is kept without a lock, so it may have drifted.
            self._waiting = 0

    def _write(self, outputs: list[NewOutput]) -> None:
        if outputs:
            rows = [output.as_row() for output in outputs]
            self._persist(lambda: self._store.outputs.append(rows))

    def _persist(self, write: Callable[[], object]) -> None:
        """Write, and try again for as long as the store cannot be written."""
        while True:
            try:
                write()
                break
            except StoreError as error:
                self._set_unhealthy(error)
                self._make_room()
                time.sleep(RETRY_S)
        if not self._healthy:
            self._set_healthy()

    def _set_unhealthy(self, error: StoreError) -> None:
        if self._healthy:
            self._healthy = False
            self._warn(
                f"{error}. Background tasks go on; their output is kept in memory (up to "
                f"{KEEP_CHARACTERS // 2**20} MB) and stored when the store can be written again."
            )

    def _set_healthy(self) -> None:
        self._healthy = True
        lost, self._lost_characters = self._lost_characters, 0
        self._warn(
            "the store can be written again; "
            + (f"{lost:,} characters of output were lost." if lost else "nothing was lost.")
        )

    def _make_room(self) -> None:
        """Drop the oldest output beyond what may be kept. State changes are never dropped."""
        if self._waiting <= KEEP_CHARACTERS:
            return
        kept = []
        while not self._queue.empty():
            item = self._queue.get()
            if item is None or item[0] is None or self._waiting <= KEEP_CHARACTERS:
                kept.append(item)
            else:
                self._waiting -= len(item[3])
                self._lost_characters += len(item[3])
                if item[4] is not None:
                    item[4].release()
        for item in kept:
            self._queue.put(item)

    def _look_around(self, seen: float) -> float:
        """Call `watch` when another connection has committed since."""
        try:
            version = self._store.database.data_version
        except StoreError:
            return seen
        if version != seen:
            self._quietly(self._watch)
        return version

    def _quietly(self, call: Callable[[], None]) -> None:
        """The writer must not die of a store that is busy for a moment: it will call again."""
        try:
            call()
        except StoreError as error:
            self._set_unhealthy(error)


def runs(batch: list[tuple[Any, ...]]) -> list[tuple[Any, Any, float, list[Any]]]:
    """Join neighbouring pieces of the same stream, up to a chunk's size."""
    joined: list[tuple[Any, Any, float, list[Any]]] = []
    size = 0
    for recording, kind, at, data, _committed in batch:
        last = joined[-1] if joined else None
        if (
            last is not None
            and recording is not None
            and last[0] is recording
            and last[1] is kind
            and kind in STREAM_KINDS
            and size < CHUNK_BYTES
        ):
            last[3].append(data)
            size += len(data)
        else:
            joined.append((recording, kind, at, [data]))
            size = len(data)
    return joined
