"""The supervisor: one detached process for each session, which owns that session's process tasks.

It outlives the kernel, because it has a session of its own and nothing of the kernel's. It claims
the tasks that the store has as pending, starts them, records what they print and how they end, and
leaves when its kernel is gone and nothing is left to do. The store is its only channel: it looks
there when another connection has committed.

It imports neither IPython nor sqlite_utils, so that it is small; a test holds that.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ipytaskpersist import environments, leftovers, problems
from ipytaskpersist.errors import BackgroundError, StoreError, StoreNewer
from ipytaskpersist.identity import ProcessIdentity
from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.processes import Snapshot, kill_tasks
from ipytaskpersist.recorder import Recorder
from ipytaskpersist.recording import Recording
from ipytaskpersist.records import ProcessRecord, SessionRecord, SupervisorRecord, TaskState
from ipytaskpersist.runners import revival, telling
from ipytaskpersist.runners.detached import remove_empty
from ipytaskpersist.runners.machine import MemoryEvents, OpenFiles
from ipytaskpersist.runners.supervised import LIMITS, CannotStart, End, Supervised
from ipytaskpersist.runners.watch import LogWatch
from ipytaskpersist.store import TaskStore

LOOK_S = 0.01
"""How long after a look at the store the next one comes at the earliest."""
LET_REPLY_S = 0.012
"""How long after a change was told: the cell that has launched a task replies first, and does not
share its cores with the start of a process meanwhile."""
POLLED_LOOK_S = 0.02
"""How long where the system does not tell of changes."""
UNTOLD_LOOK_S = 0.5
"""How long where it does, and has not."""
KERNEL_S = 1.0
"""How often an idle supervisor looks whether its kernel is still there."""
ENDS_S = 1.0
"""How often it looks whose processes have ended, also when no signal has said that one has."""
CLAIM_AT_ONCE = 50
"""How many tasks are started before what the others print is read."""
PRESS_S = 0.05
REGISTRATION_S = 30.0
STOP_S = 10.0


class Supervisor:
    """The main loop, in one thread; a `Recorder` writes to the store in another."""

    def __init__(self, store: TaskStore, session_id: str) -> None:
        self._store = store
        self._session_id = session_id
        self._record: SupervisorRecord | None = None
        self._tasks: dict[int, Supervised] = {}
        """By process id."""
        self._touched: set[Supervised] = set()
        """Those that may be over: only they are looked at, however many there are."""
        self._stuck: set[Supervised] = set()
        """Those of which it was said that their processes cannot be ended."""
        self._limited: set[Supervised] = set()
        """Those with a time limit, and those that were told to end."""
        self._waiting: deque[ProcessRecord] = deque()
        """Those that were claimed and could not be started yet."""
        self._is_short = False
        """Whether the machine's limits have just kept a task from being started."""
        self._retry_at = 0.0
        self._child_has_ended = False
        self._selector = selectors.DefaultSelector()
        self._seen = -1
        self._looked_at = self._press_at = self._kernel_seen_at = self._ends_seen_at = 0.0
        self._told_at = 0.0
        """When the store was first written since the last look; infinite when it was not."""
        self._watch: LogWatch | None = None
        self._stopping = False
        self._replacements = 0
        """How often the store had been replaced when it was last watched."""
        self._trouble = ""
        """What was last wrong with the store."""
        self._said: set[str] = set()
        """What was said once, and would be met again with each turn."""
        self._kernel_watch: threading.Thread | None = None
        self._memory = MemoryEvents()
        store.session_id, store.say = session_id, self._warn
        self._limit = OpenFiles()
        self._recorder = Recorder(store, warn=self._warn, heartbeat=self._heartbeat, quiet_wait_s=0)

    def _warn(self, message: str) -> None:
        _log(message)
        problems.record(self._store.directory, f"supervisor: {message}")

    def _guarded(self, what: str, call: Callable[[], object]) -> bool:
        """Do something for one task: what goes wrong with it is said, and the others go on.

        Returns whether it was done.
        """
        try:
            call()
        except Exception as error:
            self._warn_once(f"{what} failed ({type(error).__name__}: {error})")
            return False
        return True

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._warn(message)

    def run(self) -> None:
        """Supervise until there is nothing left to do."""
        self._listen_to_signals()
        self._record = self._registration()
        if self._record is None:
            return
        reason = "supervisor died"
        try:
            self._recorder.start()
            self._watch_store()
            self._watch_kernel()
            while not self._stopping and not self._has_retired():
                if not self._guarded("a turn", self._turn):
                    time.sleep(PRESS_S)
            reason = "supervisor stopped"
        finally:
            self._end_all(reason)

    def _registration(self) -> SupervisorRecord | None:
        """What the kernel has recorded of this process, as soon as it has."""
        own, until = ProcessIdentity.own(), time.monotonic() + REGISTRATION_S
        while time.monotonic() < until and self._kernel_is_there():
            record = self._store.supervisors.of_process(self._session_id, own)
            if record is not None:
                return record
            time.sleep(POLLED_LOOK_S)
        return self._store.supervisors.of_process(self._session_id, own)

    def _watch_store(self) -> None:
        if self._store.database.is_shared_by_hosts:
            return
        watch = LogWatch(self._store.database.log)
        if watch.descriptor >= 0:
            self._watch = watch
            self._selector.register(watch.descriptor, selectors.EVENT_READ, watch)

    def _follow_store(self) -> None:
        """The store is another file now: watch that, and look at all of it."""
        self._replacements, self._seen = self._store.replacements, -1
        if self._watch is not None:
            self._selector.unregister(self._watch.descriptor)
            os.close(self._watch.descriptor)
            self._watch = None
        self._record = (
            self._store.supervisors.of_process(self._session_id, ProcessIdentity.own())
            or self._record
        )
        self._watch_store()

    def _listen_to_signals(self) -> None:
        """SIGCHLD and SIGTERM end the waiting; what asks a terminal's programs to end does not."""
        # A kernel may have been started with signals blocked, which its tasks would inherit too.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._selector.register(read, selectors.EVENT_READ, None)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                # A handler, because what is ignored would be ignored by the tasks too.
                signal.signal(number, lambda *_: None)

    def _stop(self, *_signal: object) -> None:
        self._stopping = True

    # One turn.

    def _turn(self) -> None:
        self._take_output()
        now = time.monotonic()
        if self._child_has_ended or now - self._ends_seen_at >= ENDS_S:
            self._ends_seen_at = now
            self._notice_ends()
        if now >= self._look_at:
            self._looked_at, self._told_at = now, math.inf
            self._look()
        if self._limited and now >= self._press_at:
            self._press()
            # Looking at all processes of a busy machine takes a while: most time is for output.
            self._press_at = now + max(PRESS_S, 5 * (time.monotonic() - now))
        has_ended_some = self._finish()
        if self._waiting and (has_ended_some or now >= self._retry_at):
            self._start_waiting()

    @property
    def _look_at(self) -> float:
        """When to look at the store again, by the monotonic clock."""
        if self._watch is None:
            return self._looked_at + POLLED_LOOK_S
        told = max(self._told_at + LET_REPLY_S, self._looked_at + LOOK_S)
        return min(told, self._looked_at + UNTOLD_LOOK_S)

    def _take_output(self) -> None:
        """Wait a moment for output, and take it in: channels before streams."""
        streams: list[tuple[Supervised, int]] = []
        wake_at = min(self._look_at, self._press_at) if self._limited else self._look_at
        for key, _events in self._selector.select(max(0.0, wake_at - time.monotonic())):
            source: Supervised | LogWatch | None = key.data
            if source is None:
                self._child_has_ended = True
                with suppress(BlockingIOError):
                    os.read(key.fd, 4096)
            elif isinstance(source, LogWatch):
                self._told_at = min(self._told_at, time.monotonic())
                source.clear()
            elif source.is_channel(key.fd):
                self._read(source, key.fd)
            else:
                streams.append((source, key.fd))
        for task, descriptor in streams:
            self._read(task, descriptor)

    def _read(self, task: Supervised, descriptor: int) -> None:
        """Take in what a task has sent; where that makes no sense, no more is read of it."""
        is_open = False

        def read() -> None:
            nonlocal is_open
            is_open = task.read(descriptor)

        if not self._guarded(f"reading what task {task.record.task_id} sends", read):
            task.drop(descriptor)
        if not is_open:
            self._selector.unregister(descriptor)
            self._touched.add(task)

    def _notice_ends(self) -> None:
        """See whose processes have ended."""
        self._child_has_ended = False
        for task in [*self._tasks.values()]:
            self._guarded(f"looking at task {task.record.task_id}", partial(self._notice, task))

    def _notice(self, task: Supervised) -> None:
        if task.has_just_ended():
            self._touched.add(task)

    def _look(self) -> None:
        """See what others have written, if they have."""
        try:
            self._store.open()
            version = self._store.database.data_version
            if self._replacements != self._store.replacements:
                self._follow_store()
            if version != self._seen:
                self._seen = version
                self._do_what_others_ask()
        except StoreError as error:
            self._seen = -1
            self._say_trouble(error)
        except Exception:
            self._seen = -1  # what was to be done has not been
            raise

    def _do_what_others_ask(self) -> None:
        try:
            self._store.require_writable()
            self._take_back()
            self._cancel()
            self._claim()
        except StoreNewer as error:
            self._recorder.go_aside(error)
            # That a column says so is what all versions have in common.
            self._cancel_started(self._store.tasks.cancel_requested(self._session_id))

    def _say_trouble(self, error: StoreError) -> None:
        """Write to the log what is wrong with the store: once, and not with each look."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            _log(self._trouble)

    def _take_back(self) -> None:
        """Go on with tasks of which another process has said that they were interrupted."""
        waiting = {process.task_key for process in self._waiting}
        running = {task.record.task_key for task in self._tasks.values()}
        revival.take_back(self._store, waiting | running)

    def _claim(self) -> None:
        """Start the tasks that wait: few at a time, because those that run are to be read too."""
        if self._waiting:
            return
        if not self._store.processes.has_pending(self._session_id):
            self._is_short = False
            return
        assert self._record is not None
        few = 1 if self._is_short else CLAIM_AT_ONCE
        self._waiting.extend(
            self._store.processes.claim(self._session_id, self._record.key, time.time(), few)
        )
        self._start_waiting()
        self._seen = -1  # there may be more

    def _start_waiting(self) -> None:
        """Start what was claimed, as far as the machine allows."""
        while self._waiting and self._start(self._waiting[0]):
            self._waiting.popleft()

    def _start(self, process: ProcessRecord) -> bool:
        """Start a task. Returns False when it has to wait for the end of another one."""
        recording = Recording(self._recorder, process.task_key, process.max_output_bytes)
        task = Supervised(process, recording)
        try:
            if self._tasks and not self._limit.has_room():
                raise CannotStart(LIMITS[errno.EMFILE], is_shortage=True)
            # Kept by who waits, for the file with its environment is gone when it was read.
            process = self._waiting[0] = self._with_values(process)
            task.start(_whole(process.environment), self._limit.as_it_was())
        except CannotStart as error:
            if error.is_shortage and self._tasks:
                self._recorder.recordings.discard(recording)
                self._say_shortage(error)
                return False
            self._record_end(task, End(TaskState.FAILED, str(error), None))
            return True
        except Exception as error:  # one bad row must not keep the others from starting
            reason = f"could not be started: {type(error).__name__}: {error}"
            self._record_end(task, End(TaskState.FAILED, reason, None))
            return True
        for descriptor in task.readers:
            self._selector.register(descriptor, selectors.EVENT_READ, task)
        self._tasks[task.pid] = task
        if process.timeout_s is not None:
            self._limited.add(task)
        self._recorder.live_tasks = len(self._tasks)
        start = task.leader.start if task.leader else None
        self._recorder.post(
            lambda store: store.processes.started(process.task_key, task.pid, start)
        )
        return True

    def _say_shortage(self, error: CannotStart) -> None:
        self._retry_at = time.monotonic() + UNTOLD_LOOK_S
        if not self._is_short:
            self._is_short = True
            self._warn(f"{error}; tasks wait until others of this session have ended")

    def _with_values(self, process: ProcessRecord) -> ProcessRecord:
        """A process with the values in its environment. Raises `CannotStart`."""
        if True not in process.environment.values():
            return process
        values = environments.take(self._store.directory, process.task_id)
        if values is None:
            raise CannotStart("its environment is gone, which waited in the state directory")
        return replace(process, environment={**process.environment, **values})

    def _cancel(self) -> None:
        wanted = self._store.tasks.cancel_requested(self._session_id)
        started = {task.record.task_key for task in self._tasks.values()}
        for key in set(wanted) - started:
            self._cancel_waiting(key)
        self._cancel_started(wanted)

    def _cancel_started(self, wanted: Sequence[int]) -> None:
        running = self._tasks.values()
        asked = [task for task in running if task.record.task_key in wanted and not task.ending]
        snapshot = Snapshot() if asked else None
        for task in asked:
            assert snapshot is not None
            self._ask_to_end(task, TaskState.CANCELLED, "cancelled", snapshot)

    def _ask_to_end(
        self, task: Supervised, state: TaskState, reason: str, snapshot: Snapshot
    ) -> None:
        self._limited.add(task)  # whatever becomes of the first signal, the next look goes on
        self._guarded(
            f"telling task {task.record.task_id} to end",
            lambda: task.ask_to_end(state, reason, snapshot),
        )

    def _cancel_waiting(self, key: int) -> None:
        """Cancel a task that has not begun; one that has just ended keeps its end."""
        if any(process.task_key == key for process in self._waiting):
            self._waiting = deque(each for each in self._waiting if each.task_key != key)
            self._store.tasks.end(key, TaskState.CANCELLED, "cancelled", None, time.time())
            return
        record = self._store.tasks.get(key)
        if record is not None and record.state is TaskState.PENDING and record.runner == "process":
            self._store.tasks.end(key, TaskState.CANCELLED, "cancelled", None, time.time())
            environments.remove(self._store.directory, record.id)

    def _press(self) -> None:
        """Hold the time limits, and go on with ending those that were told to end."""
        late = [task for task in self._limited if task.is_late]
        ending = [task for task in self._limited if task.is_to_press]
        if not late and not ending:
            return
        snapshot = Snapshot()
        for task in ending:
            what = f"ending task {task.record.task_id}"
            self._guarded(what, partial(self._press_one, task, snapshot))
        for task in late:
            reason = f"timed out after {task.record.timeout_s:g} s"
            self._ask_to_end(task, TaskState.FAILED, reason, snapshot)
        self._touched.update(ending)

    def _press_one(self, task: Supervised, snapshot: Snapshot) -> None:
        task.press(snapshot)
        if task.stuck and task not in self._stuck:
            self._stuck.add(task)
            self._warn(
                f"task {task.record.task_id} was told to end, and counts as running until it has: "
                f"{task.stuck} is there all the same"
            )

    def _finish(self) -> bool:
        """Record the end of those that are over. Returns whether there were any."""
        over = [task for task in self._touched if task.is_over]
        self._touched.clear()
        for task in over:
            for descriptor in task.readers:
                self._selector.unregister(descriptor)
            self._close(task)
            task.reap()
            del self._tasks[task.pid]
            self._limited.discard(task)
            self._stuck.discard(task)
            self._record_end(task, task.end(self._memory.have_killed))
        return bool(over)

    def _close(self, task: Supervised) -> None:
        """Take in the last of what a task has sent, as far as it makes sense."""
        if not self._guarded(f"reading what task {task.record.task_id} has sent", task.close):
            for descriptor in list(task.readers):
                task.drop(descriptor)

    def _record_end(self, task: Supervised, end: End) -> None:
        key, ended = task.record.task_key, time.time()

        def record(store: TaskStore) -> None:
            task.recording.finish(store)
            for result in task.results:
                store.results.save(key, result)
            if end.state is TaskState.FAILED and task.post_mortem is not None:
                store.tasks.save_post_mortem(key, task.post_mortem)
            if task.usage is not None:
                usage = task.usage
                cpu_s = usage.ru_utime + usage.ru_stime
                store.processes.used(key, cpu_s, usage.ru_maxrss * RSS_UNIT_BYTES)
            revival.end(store, key, end.state, end.reason, end.exit_code, ended)

        self._recorder.post(record)
        self._recorder.post(lambda store: telling.tell(store, key))
        self._recorder.recordings.discard(task.recording)
        self._recorder.live_tasks = len(self._tasks)

    # The end of the supervisor.

    def _kernel_is_there(self) -> bool:
        session = self._store.sessions.get(self._session_id)
        if session is None or session.ended_at is not None:
            return False
        return ProcessIdentity.recorded(session).may_be_alive

    def _watch_kernel(self) -> None:
        """End what the kernel's threads have started, once it is gone and its guard, too."""
        session = self._store.sessions.get(self._session_id)
        if session is not None:
            watch = threading.Thread(target=_end_left_by, args=(session,), daemon=True)
            with suppress(RuntimeError):  # the limit on processes, which counts threads
                watch.start()
                self._kernel_watch = watch

    def _is_ending_left(self) -> bool:
        """Whether what a kernel has left is being ended. A session may end before its process."""
        session, watch = self._store.sessions.get(self._session_id), self._kernel_watch
        if session is None or watch is None or not watch.is_alive():
            return False
        return not ProcessIdentity.recorded(session).may_be_alive

    def _has_retired(self) -> bool:
        """Leave when nothing is left to do. Returns whether that is so."""
        now = time.monotonic()
        if self._tasks or now - self._kernel_seen_at < KERNEL_S:
            return False
        self._kernel_seen_at = now
        assert self._record is not None
        if self._recorder.is_aside:
            return not self._waiting  # it may claim nothing more
        try:
            if self._kernel_is_there():
                return False
            if self._is_ending_left():
                return False
            # What was recorded just now is written first: nobody is left to do it later.
            self._recorder.change(lambda _store: None)
            return self._store.supervisors.retire(self._record)
        except StoreNewer as error:
            self._recorder.go_aside(error)
            return True
        except StoreError as error:
            self._say_trouble(error)
            return False

    def _end_all(self, reason: str) -> None:
        """End every task that still runs, record why, and that this supervisor has ended."""
        assert self._record is not None
        record, at = self._record, time.time()
        survivors = self._kill_all()
        for task in self._tasks.values():
            self._close(task)
        self._recorder.change(
            lambda store: store.processes.interrupt(record.key, reason, at, except_tasks=survivors),
            STOP_S,
        )
        # Of what could not be ended the next reconcile says what became of it.
        if not survivors:
            self._recorder.change(
                lambda store: store.supervisors.end(record.key, reason, at), STOP_S
            )
        self._recorder.change(telling.tell, STOP_S)
        self._recorder.stop(STOP_S)

    def _kill_all(self) -> set[str]:
        """End the processes of all tasks. Returns the ids of those that go on all the same."""
        survivors = {task.record.task_id for task in self._tasks.values()}

        def kill() -> None:
            tasks = [(task.record.task_id, task.leader) for task in self._tasks.values()]
            survivors.intersection_update(kill_tasks(tasks))

        self._guarded("ending all tasks", kill)
        return survivors

    def _heartbeat(self) -> None:
        if self._record is not None:
            self._store.supervisors.heartbeat(self._record.key)


def _end_left_by(session: SessionRecord) -> None:
    """Wait for the end of a kernel, and end what it has left."""
    kernel = ProcessIdentity.recorded(session)
    while kernel.may_be_alive:
        time.sleep(KERNEL_S)
    if kernel.is_local and kernel.start:
        leftovers.end_of_kernel(kernel.pid, kernel.start)


RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""In what getrusage(2) counts ``ru_maxrss``."""


def _whole(changes: Mapping[str, Any]) -> dict[str, str]:
    """This process's environment with a task's changes, of which some take a variable away."""
    whole = {**os.environ, **changes}
    return {name: value for name, value in whole.items() if isinstance(value, str)}


def _log(message: str) -> None:
    """To the supervisor's log: its standard error is a file, on the disk that may be full."""
    with suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Supervise a session: state directory, session id and `synchronous` are the arguments."""
    root, session_id, synchronous = sys.argv[1:]
    directory = StateDirectory(Path(root))
    store = TaskStore(directory, synchronous=synchronous)
    try:
        store.open().require_writable()
        Supervisor(store, session_id).run()
    except BackgroundError as error:
        _log(str(error))
        problems.record(directory, f"supervisor: {error}")
        sys.exit(1)
    except Exception as error:
        # Said now, because an empty log is removed.
        _log(traceback.format_exc())
        problems.record(directory, f"supervisor: {type(error).__name__}: {error}")
        sys.exit(1)
    finally:
        store.close()
        remove_empty(directory.supervisor_log(session_id))
