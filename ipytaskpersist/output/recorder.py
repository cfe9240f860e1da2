"""Group commit: one writer thread per process saves the output of all tasks.

The writer commits a quiet stream at once, and lets a busy one accumulate for at most 10 ms or 256
KiB. State changes go through the same queue, so a task is never recorded as ended before its last
output is saved, and the caller of the change waits for the commit. The writer is woken through a
`queue.SimpleQueue`, whose `put` is one call in C, as is the `append` of each `Recording`.
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

from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.errors import NoThread, StoreBusy, StoreDamaged, StoreError, StoreNewer
from ipytaskpersist.output.recording import (
    CHUNK_BYTES,
    PROGRESS_S,
    WAITING_CHARACTERS,
    Backlog,
    Recording,
)
from ipytaskpersist.store.aside import Aside
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore

GATHER_S = 0.010
KEEP_CHARACTERS = 32_000_000
"""Amount kept in memory while the store cannot be written; the excess is dropped and counted."""
RETRY_S = 0.25
PATIENCE_MS = 250
"""How long one write attempt waits for others. Between two, the excess output is dropped."""
BUSY_S = 5.0
"""Time after which a warning says that others keep the store from being written."""
QUIET_WAIT_S = 0.002
"""How long a quiet print waits for its commit, to be on disk before the next statement."""
HEARTBEAT_S = 15.0
WRITER_S = 5.0
"""How often a waiting caller checks that the writer thread is alive."""
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""Amount of output after which the next pause is used for a checkpoint."""
CHECKPOINT_COMMITS = 250
"""Number of commits after which it is, however small. Each writes a few pages of 4 KiB, so this is
about the same amount."""
WATCH_S = 0.1
Change = Callable[[TaskStore], object]


class Recorder:
    """The thread that saves pending output and state changes in the store."""

    def __init__(
        self,
        store: TaskStore,
        *,
        warn: Callable[[str], None],
        heartbeat: Callable[[], None],
        watch: Callable[[], None] | None = None,
        quiet_wait_s: float = QUIET_WAIT_S,
    ) -> None:
        """While tasks run, `heartbeat` is called regularly, and `watch` when others commit.

        `quiet_wait_s` is how long a print to a quiet stream waits for its commit.
        """
        self._queue: SimpleQueue[tuple[Recording | None, Change | None, LockType | None]] = (
            SimpleQueue()
        )
        self.backlog = Backlog()
        self._recordings: set[Recording] = set()
        self.live_tasks = 0
        """Number of running tasks, set by their runner. While it is zero the writer only waits."""
        self._store = store
        self._aside: Aside | None = None
        """Takes the store's place after a newer version has taken it over."""
        self._warn = warn
        self._heartbeat = heartbeat
        self._watch = watch
        self.watch_at = math.inf
        """Time at which `watch` is called in any case, in seconds since the epoch."""
        self._watch_s = HEARTBEAT_S if watch is None else WATCH_S
        self._quiet_wait_s = quiet_wait_s
        self._healthy = True
        self._lost_characters = 0
        self._written_bytes = 0
        """Bytes of output written since the last checkpoint."""
        self._commits = 0
        """Number of commits since then: small changes are little output, but pages of the log."""
        self._moving: set[Recording] = set()
        """Recordings whose progress was just saved, to be checked again soon."""
        self._moved_at = 0.0
        self._checkpointing: threading.Thread | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()

    def add(self, recording: Recording) -> None:
        """Add a recording to those that the writer looks after."""
        self._recordings.add(recording)

    def discard(self, recording: Recording) -> None:
        """Remove a recording: its task has ended."""
        self._recordings.discard(recording)

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
        """Wake the writer, and give it a moment to commit pending output.

        Without the wait, the next call might hold the GIL, and a kernel that is killed in it would
        lose output printed long before.
        """
        committed = allocate_lock()
        committed.acquire()
        self._queue.put((recording, None, committed))
        if self._healthy and self._quiet_wait_s:
            committed.acquire(True, self._quiet_wait_s)

    def announce(self, recording: Recording) -> None:
        """Queue the pending output of a recording."""
        self._queue.put((recording, None, None))

    def wait_for_room(self) -> None:
        """Wait until the writer has caught up, or has dropped the excess."""
        while not self._stopping and self.backlog.characters > (
            WAITING_CHARACTERS if self._healthy else 2 * KEEP_CHARACTERS
        ):
            sleep(0.001)

    def change(self, change: Change, timeout_s: float | None = None) -> bool:
        """Change a state after everything that was printed, and wait until that is committed.

        Returns False when the store could not take it within `timeout_s`; it is then made as soon
        as the store is available again. After `stop` nothing is changed any more.
        """
        if self._stopping:
            return False
        committed = allocate_lock()
        committed.acquire()
        self._queue.put((None, change, committed))
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not committed.acquire(True, max(0.0, min(WRITER_S, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
            with suppress(NoThread):  # retried in a moment
                self.start()  # if the writer has died, the commit would never come
        return True

    def say(self, message: str) -> None:
        """Report a problem to the user, and record it for the doctor."""
        with suppress(OSError, ValueError):  # the stream may be full or closed
            self._warn(message)

    def watch_now(self) -> None:
        """Have `watch` called soon, although no other connection has committed."""
        self.watch_at = 0.0
        self._queue.put((None, None, None))

    def post(self, change: Change) -> None:
        """Change a state after everything that was printed, without waiting for it."""
        self._queue.put((None, change, None))

    def let_go_of_store(self) -> None:
        """Close the connection of the calling thread, which ends."""
        self._store.database.close_own()

    def stop(self, timeout_s: float) -> None:
        """Commit pending output and end the writer. Later output is dropped."""
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            self._stopping = True
            self._queue.put((None, None, None))
            thread.join(timeout_s)

    # The writer thread.

    def _run(self) -> None:
        heartbeat_at, commits = 0.0, CommitWatch(self._store.database)
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
                    self._quietly(self._save_dropped)
                if self._watch is not None:
                    self._look_around(commits, self._watch)
        self.let_go_of_store()

    def _next_batch(self) -> list[tuple[Any, ...]]:
        """Return what to commit next; empty when it is time for periodic work."""
        try:
            first = self._queue.get(timeout=GATHER_S)
        except Empty:
            self.backlog.is_quiet = True
            self._checkpoint()
            try:
                first = self._queue.get(timeout=self._pause_s)
            except Empty:
                return []
        batch = [first]
        until = time.monotonic() + GATHER_S
        while (
            batch[-1][2] is None and batch[-1][1] is None and self.backlog.characters < CHUNK_BYTES
        ):
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                batch.append(self._queue.get(timeout=min(left, GATHER_S / 5)))
            except Empty:
                continue
        while not self._queue.empty():
            batch.append(self._queue.get())
        self.backlog.is_quiet = False
        return batch

    @property
    def _pause_s(self) -> float | None:
        """How long to wait for something to commit; None for indefinitely."""
        if not self.live_tasks:
            return None
        return min(self._watch_s, PROGRESS_S) if self._moving else self._watch_s

    def _commit(self, batch: list[tuple[Any, ...]]) -> None:
        now, outputs, offsets = time.time(), [], {}
        for recording, change, _committed in batch:
            if recording is not None:
                outputs.extend(self._take(recording, now))
                if recording.spool_offset is not None:
                    offsets[recording.task_key] = recording.spool_offset
            elif change is not None:
                self._write(outputs, offsets)
                outputs, offsets = [], {}
                self._persist(change)
        self._write(outputs, offsets)
        self._moving.update(each for each, *_rest in batch if each and each.has_moved)
        for _recording, _change, committed in batch:
            if committed is not None:
                committed.release()

    def _take(self, recording: Recording, now: float) -> list[NewOutput]:
        try:
            return recording.take(now)
        except Exception as error:  # one task's output must not end the writer for all
            self.say(f"a piece of output was lost ({type(error).__name__}: {error})")
            return []

    def _write(self, outputs: list[NewOutput], offsets: dict[int, int]) -> None:
        if outputs or offsets:
            rows = [output.as_row() for output in outputs]
            self._written_bytes += sum(len(row[-1]) for row in rows)
            self._persist(lambda store: store.outputs.append(rows, offsets))

    def _checkpoint(self) -> None:
        """Checkpoint the log during a pause, in a thread, so that the next print need not wait."""
        running = self._checkpointing
        if running and running.is_alive():
            return
        if self._written_bytes < CHECKPOINT_BYTES and self._commits < CHECKPOINT_COMMITS:
            return
        thread = threading.Thread(
            target=self._copy_log, name="ipytaskpersist-checkpoint", daemon=True
        )
        # If no thread can be started, the next pause tries again; meanwhile the log is only longer.
        if start_outside(thread):
            self._checkpointing, self._written_bytes, self._commits = thread, 0, 0

    def _copy_log(self) -> None:
        with suppress(StoreError):
            self._store.database.checkpoint()
        self.let_go_of_store()

    def _persist(self, write: Callable[[Any], object]) -> None:
        """Write, retrying for as long as the store cannot be written."""
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
        """What takes changes: the store or its substitute."""
        return self._aside or self._store

    @property
    def is_aside(self) -> bool:
        """Whether the store is no longer written."""
        return self._aside is not None

    def go_aside(self, error: StoreNewer) -> None:
        """Keep further changes in a file: a newer version has taken over the store."""
        with self._start_lock:
            if self._aside is not None:
                return
            aside = self._aside = Aside(self._store.directory, self._store.session_id)
        self._warn(
            f"{error}. Background tasks go on, and the newer version can cancel them; what they "
            f"print and how they end is kept for it in aside/{aside.path.name}"
        )
        with suppress(StoreError):  # the first change tries again
            aside.begin()

    def _repair(self) -> None:
        """Repair the store at once: new output need not wait for the user's next command."""
        with suppress(StoreError, OSError):
            self._store.open()

    def _set_unhealthy(self, error: StoreError) -> None:
        if self._healthy:
            self._healthy = False
            self.say(
                f"{error}. Background tasks go on; their output is kept in memory (up to "
                f"{KEEP_CHARACTERS // 10**6} MB) and stored when the store can be written again."
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
        """Drop the oldest output beyond the limit. State changes are never dropped."""
        for recording in list(self._recordings):
            while self.backlog.characters > KEEP_CHARACTERS:
                size = recording.drop_oldest()
                if size is None:
                    break
                self._lost_characters += size

    def _look_around(self, commits: CommitWatch, watch: Callable[[], None]) -> None:
        """Call `watch` when another connection has committed since."""
        with suppress(StoreError):
            if commits.has_news() or time.time() >= self.watch_at:
                self._quietly(watch)

    def _follow_progress(self) -> None:
        """Save the progress of the tasks that were making progress a moment ago."""
        now = time.monotonic()
        if now - self._moved_at < PROGRESS_S:
            return
        self._moved_at = now
        for recording in list(self._moving):
            if not recording.still_moves():
                self._moving.discard(recording)
                continue
            self._quietly(partial(recording.save_progress, self._target))

    def _save_dropped(self) -> None:
        for recording in list(self._recordings):
            recording.save_dropped(self._target)

    def _quietly(self, call: Callable[[], None]) -> None:
        """Make a call that is repeated later. A briefly busy store does not end the writer."""
        try:
            call()
        except StoreBusy:
            pass
        except StoreNewer as error:
            self.go_aside(error)
        except StoreError as error:
            self._set_unhealthy(error)
        except Exception as error:  # one task's error must not end the writer for all
            self.say(f"tasks could not be looked after ({type(error).__name__}: {error})")
