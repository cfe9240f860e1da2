"""Group commit: one writer thread a process takes what all tasks print to the store.

The writer commits a quiet stream at once, and lets a busy one gather for at most 10 ms or 256 KiB.
State changes go the same way, so a task is never said to have ended before its last output is
kept, and whoever asked for the change waits until it is committed. What wakes the writer is a
`queue.SimpleQueue`, whose putting is one call in C, as the appending to each `Recording` is.
"""

from __future__ import annotations

import math
import threading
import time
from _thread import LockType, allocate_lock
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import sleep
from typing import Any

from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import NoThread, StoreBusy, StoreDamaged, StoreError, StoreNewer
from ipytaskpersist.recording import (
    CHUNK_BYTES,
    PROGRESS_S,
    WAITING_CHARACTERS,
    Recording,
    size_of,
)
from ipytaskpersist.store import (
    NewOutput,
    TaskStore,
    repair,  # noqa: F401 - what a removed or damaged store needs is of this version, too
    restoring,  # noqa: F401
    succession,  # noqa: F401
)
from ipytaskpersist.store.aside import Aside

GATHER_S = 0.010
KEEP_CHARACTERS = 32 * 1024 * 1024
"""How much is kept in memory while the store cannot be written; what is beyond it is counted."""
RETRY_S = 0.25
PATIENCE_MS = 250
"""How long one trial to write waits for others: between two, room is made for what is printed."""
BUSY_S = 5.0
"""After how long it is said that others keep the store from being written."""
QUIET_WAIT_S = 0.002
"""How long a quiet print waits for its commit, so that it is on disk before the next statement."""
HEARTBEAT_S = 15.0
WRITER_S = 5.0
"""How often who waits for the writer looks whether it is there."""
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""How much may be written before the next pause is used to copy it from the log into the store."""
CHECKPOINT_COMMITS = 250
"""How often, however little each time. Each writes a few pages of 4 KiB, so it is about as much."""
WATCH_S = 0.1
Change = Callable[[TaskStore], object]


class Recorder:
    """The thread that takes what is pending into the store."""

    def __init__(
        self,
        store: TaskStore,
        *,
        warn: Callable[[str], None],
        heartbeat: Callable[[], None],
        watch: Callable[[], None] | None = None,
        quiet_wait_s: float = QUIET_WAIT_S,
    ) -> None:
        """While tasks run, `heartbeat` is called now and then, `watch` when others commit.

        `quiet_wait_s` is how long a print to a quiet stream waits for its commit.
        """
        self.queue: SimpleQueue[tuple[Recording | None, Change | None, LockType | None]] = (
            SimpleQueue()
        )
        self.recordings: set[Recording] = set()
        self.waiting = 0
        """How many characters are pending. Counted without a lock, so it is about right."""
        self.is_quiet = True
        """Whether the last commit is so long ago that the next print is committed at once."""
        self.live_tasks = 0
        """How many tasks run. Their runner says; while it is zero the writer only waits."""
        self._store = store
        self._aside: Aside | None = None
        """Takes the store's place once a newer version has taken over that."""
        self._warn = warn
        self._heartbeat = heartbeat
        self._watch = watch
        self._watch_s = HEARTBEAT_S if watch is None else WATCH_S
        self._quiet_wait_s = quiet_wait_s
        self._healthy = True
        self._lost_characters = 0
        self._written_bytes = 0
        """How much output has been written since the last checkpoint."""
        self._commits = 0
        """How often was written since: small changes are little output, but pages of the log."""
        self._moving: set[Recording] = set()
        """Those whose progress has just been told: the next look is in a moment."""
        self._moved_at = 0.0
        self._checkpointing: threading.Thread | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()

    def start(self) -> None:
        """Start the writer, unless it runs. Raises `NoThread`."""
        with self._start_lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="ipytaskpersist-writer", daemon=True
                )
                if not start_outside(self._thread):
                    raise NoThread

    def commit_now(self, recording: Recording) -> None:
        """Wake the writer, and give it a moment to commit what is pending.

        Without the wait a call that keeps the interpreter's lock could follow, and a kernel that
        is killed in it would lose what was printed long before.
        """
        committed = allocate_lock()
        committed.acquire()
        recording.is_queued = True
        self.queue.put((recording, None, committed))
        if self._healthy and self._quiet_wait_s:
            committed.acquire(True, self._quiet_wait_s)

    def wait_for_room(self) -> None:
        """Wait until the writer has caught up, or has dropped what cannot be kept."""
        while not self._stopping and self.waiting > (
            WAITING_CHARACTERS if self._healthy else 2 * KEEP_CHARACTERS
        ):
            sleep(0.001)

    def change(self, change: Change, timeout_s: float | None = None) -> bool:
        """Make a change of state after all that was printed, and wait until it is committed.

        Returns False when the store could not take it within `timeout_s`; it is then made as soon
        as the store is back. After `stop` nothing is changed any more.
        """
        if self._stopping:
            return False
        committed = allocate_lock()
        committed.acquire()
        self.queue.put((None, change, committed))
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not committed.acquire(True, max(0.0, min(WRITER_S, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
            with suppress(NoThread):  # asked again in a moment
                self.start()  # should it have died: what is waited for would never come
        return True

    def say(self, message: str) -> None:
        """Say what went wrong, and keep it for the doctor."""
        with suppress(OSError, ValueError):  # where it is said may be full, or closed
            self._warn(message)

    def post(self, change: Change) -> None:
        """Make a change of state after all that was printed, without waiting for it."""
        self.queue.put((None, change, None))

    def let_go_of_store(self) -> None:
        """Close the connection of the calling thread, which ends."""
        self._store.database.close_own()

    def stop(self, timeout_s: float) -> None:
        """Commit what is pending and end the writer. What is printed later is dropped."""
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            self._stopping = True
            self.queue.put((None, None, None))
            thread.join(timeout_s)

    # The writer thread.

    def _run(self) -> None:
        seen = heartbeat_at = 0.0
        self._store.database.be_impatient(PATIENCE_MS)
        while True:
            batch = self._next_batch()
            if batch:
                self._commit(batch)
            if self._moving:
                self._follow_progress()
            if self._stopping:
                break
            if self.live_tasks:
                if not self.is_aside and time.monotonic() - heartbeat_at > HEARTBEAT_S:
                    heartbeat_at = time.monotonic()
                    self._quietly(self._heartbeat)
                    self._quietly(self._tell_dropped)
                if self._watch is not None:
                    seen = self._look_around(seen, self._watch)
        self.let_go_of_store()

    def _next_batch(self) -> list[tuple[Any, ...]]:
        """What to commit next; nothing when it is time to look around."""
        try:
            first = self.queue.get(timeout=GATHER_S)
        except Empty:
            self.is_quiet = True
            self._checkpoint()
            try:
                first = self.queue.get(timeout=self._pause_s)
            except Empty:
                return []
        batch = [first]
        until = time.monotonic() + GATHER_S
        while batch[-1][2] is None and batch[-1][1] is None and self.waiting < CHUNK_BYTES:
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                batch.append(self.queue.get(timeout=min(left, GATHER_S / 5)))
            except Empty:
                continue
        while not self.queue.empty():
            batch.append(self.queue.get())
        self.is_quiet = False
        return batch

    @property
    def _pause_s(self) -> float | None:
        """How long to wait for something to commit; None for as long as it takes."""
        if not self.live_tasks:
            return None
        return min(self._watch_s, PROGRESS_S) if self._moving else self._watch_s

    def _commit(self, batch: list[tuple[Any, ...]]) -> None:
        now, outputs = time.time(), []
        for recording, change, _committed in batch:
            if recording is not None:
                outputs.extend(self._take(recording, now))
            elif change is not None:
                self._write(outputs)
                outputs = []
                self._persist(change)
        self._write(outputs)
        self._moving.update(each for each, *_rest in batch if each and each.has_moved)
        for _recording, _change, committed in batch:
            if committed is not None:
                committed.release()

    def _take(self, recording: Recording, now: float) -> list[NewOutput]:
        try:
            return recording.take(now)
        except Exception as error:  # what one task prints must not end the writer for all
            self.say(f"a piece of output was lost ({type(error).__name__}: {error})")
            return []

    def _write(self, outputs: list[NewOutput]) -> None:
        if outputs:
            rows = [output.as_row() for output in outputs]
            self._written_bytes += sum(len(row[-1]) for row in rows)
            self._persist(lambda store: store.outputs.append(rows))

    def _checkpoint(self) -> None:
        """Use a pause to shorten the log, in a thread, so that the next print need not wait."""
        running = self._checkpointing
        if running and running.is_alive():
            return
        if self._written_bytes < CHECKPOINT_BYTES and self._commits < CHECKPOINT_COMMITS:
            return
        thread = threading.Thread(
            target=self._copy_log, name="ipytaskpersist-checkpoint", daemon=True
        )
        # Where no thread can be had the next pause tries again: the log is only longer meanwhile.
        if start_outside(thread):
            self._checkpointing, self._written_bytes, self._commits = thread, 0, 0

    def _copy_log(self) -> None:
        with suppress(StoreError):
            self._store.database.checkpoint()
        self.let_go_of_store()

    def _persist(self, write: Callable[[Any], object]) -> None:
        """Write, and try again for as long as the store cannot be written."""
        begun_at = time.monotonic()
        while True:
            try:
                write(self._target)
                break
            except StoreNewer as error:
                self.go_aside(error)
            except StoreError as error:
                if isinstance(error, StoreBusy) and time.monotonic() - begun_at < BUSY_S:
                    self._make_room()
                    continue
                self._set_unhealthy(error)
                if self._stopping:
                    return
                self._make_room()
                sleep(RETRY_S)
                if isinstance(error, StoreDamaged):
                    self._repair()
            except Exception as error:  # one bad record must not end the writer for all tasks
                self.say(f"a record could not be stored ({type(error).__name__}: {error})")
                return
        self._commits += 1
        if not self._healthy:
            self._set_healthy()

    @property
    def _target(self) -> Any:
        """What takes changes: the store, or what stands in its place."""
        return self._aside or self._store

    @property
    def is_aside(self) -> bool:
        """Whether nothing more is written to the store."""
        return self._aside is not None

    def go_aside(self, error: StoreNewer) -> None:
        """Keep in a file what changes from now on: a newer version has taken over the store."""
        if self._aside is None:
            aside = self._aside = Aside(self._store.directory, self._store.session_id)
            self._warn(
                f"{error}. Background tasks go on, and the newer version can cancel them; what "
                f"they print and how they end is kept for it in aside/{aside.path.name}"
            )
            with suppress(StoreError):  # the first change tries again
                aside.begin()

    def _repair(self) -> None:
        """What is printed now has no place in the damaged store, and need not wait for a person."""
        with suppress(StoreError, OSError):
            self._store.open()

    def _set_unhealthy(self, error: StoreError) -> None:
        if self._healthy:
            self._healthy = False
            self.say(
                f"{error}. Background tasks go on; their output is kept in memory (up to "
                f"{KEEP_CHARACTERS // 2**20} MB) and stored when the store can be written again."
            )

    def _set_healthy(self) -> None:
        self._healthy = True
        lost, self._lost_characters = self._lost_characters, 0
        self.say(
            "the store can be written again; "
            + (
                f"{lost:,} characters of output were lost, and a line in it says where."
                if lost
                else "nothing printed meanwhile was lost."
            )
        )

    def _make_room(self) -> None:
        """Drop the oldest output beyond what may be kept. State changes are never dropped."""
        for recording in list(self.recordings):
            while self.waiting > KEEP_CHARACTERS and recording.pending:
                size = size_of(recording.pending.popleft())
                self.waiting -= size
                recording.lost_characters += size
                self._lost_characters += size

    def _look_around(self, seen: float, watch: Callable[[], None]) -> float:
        """Call `watch` when another connection has committed since."""
        try:
            version = self._store.database.data_version
        except StoreError:
            return seen
        if version != seen:
            self._quietly(watch)
        return version

    def _follow_progress(self) -> None:
        """Tell the store how far those have come that were going on just now."""
        now = time.monotonic()
        if now - self._moved_at < PROGRESS_S:
            return
        self._moved_at = now
        for recording in list(self._moving):
            if not recording.has_moved:
                # First the mark, then a look: what is said in between puts it into the queue.
                recording.is_watched = False
                if not recording.has_moved:
                    self._moving.discard(recording)
                    continue
            recording.is_watched = True
            self._quietly(partial(recording.tell_progress, self._target))

    def _tell_dropped(self) -> None:
        for recording in list(self.recordings):
            recording.tell_dropped(self._target)

    def _quietly(self, call: Callable[[], None]) -> None:
        """The writer must not die of a store that is busy for a moment: it will call again."""
        try:
            call()
        except StoreBusy:
            pass
        except StoreNewer as error:
            self.go_aside(error)
        except StoreError as error:
            self._set_unhealthy(error)
        except Exception as error:  # one task's trouble must not end the writer for all
            self.say(f"tasks could not be looked after ({type(error).__name__}: {error})")
