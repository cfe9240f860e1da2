"""The supervisor: one detached process for each session that owns the session's process tasks.

It shares neither session nor resources with the kernel, so it outlives the kernel. It claims the
store's pending tasks, starts them, and records their output and their end. It exits when its kernel
is gone and nothing is left to do. The store is its only means of communication: it reads the store
when another connection has committed.

To stay small, it imports neither IPython nor sqlite_utils. A test checks that.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ipytaskpersist.base.detached import remove_empty
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, host_name
from ipytaskpersist.base.process_tree import Snapshot, kill_tasks
from ipytaskpersist.base.records import ProcessRecord, SupervisorRecord, TaskState
from ipytaskpersist.base.retries import SUPERVISOR_STOPPED, TIMED_OUT, USED
from ipytaskpersist.errors import BackgroundError, StoreError, StoreNewer
from ipytaskpersist.notify import dispatch
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.runners import reconciling, revival, sent_files
from ipytaskpersist.runners.adoption import Strangers
from ipytaskpersist.runners.durability import Flushes
from ipytaskpersist.runners.kernel_watch import KERNEL_S, KernelWatch
from ipytaskpersist.runners.link import Link
from ipytaskpersist.runners.liveness import Watch
from ipytaskpersist.runners.machine import MachineReader
from ipytaskpersist.runners.machine_limits import MemoryEvents, OpenFiles
from ipytaskpersist.runners.memory_watch import MemoryWatch
from ipytaskpersist.runners.placed import Placed
from ipytaskpersist.runners.placements import Placements
from ipytaskpersist.runners.store_watch import POLLED_LOOK_S, StoreWatch
from ipytaskpersist.runners.supervised import LIMITS, CannotStart, End, Supervised
from ipytaskpersist.runners.task_end import TaskEnd
from ipytaskpersist.runners.task_rows import TaskRows, files_to_send
from ipytaskpersist.runners.usage_watch import UsageWatch
from ipytaskpersist.runners.warm import ForkServer
from ipytaskpersist.runners.warm_starts import WarmStarts
from ipytaskpersist.store import environments, problems
from ipytaskpersist.store.booking import Machine
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.formatting import short_size, size
from ipytaskpersist.values.travelling import FileToSend

ENDS_S = 1.0
"""How often ended processes are looked for, even without SIGCHLD."""
CLAIM_AT_ONCE = 50
"""How many tasks are started before the output of the others is read."""
PRESS_S = 0.05
RETRY_S = 0.5
"""Delay of another attempt when the machine's limits have kept a task from being started."""
RECONCILE_S = 2.0
"""How often owners are looked at while tasks wait: a dead one may hold a slot of their group."""
REGISTRATION_S = 30.0
STOP_S = 10.0


class Supervisor:
    """The main loop, in one thread. A `Recorder` writes to the store in another."""

    def __init__(self, store: TaskStore, session_id: str) -> None:
        self._store = store
        self._session_id = session_id
        self._record: SupervisorRecord | None = None
        self._tasks: dict[int, Supervised | Placed] = {}
        """The running tasks, by process id; those at places by a number that no process has."""
        self._touched: set[Supervised | Placed] = set()
        """Tasks that may have ended. Only these are checked, however many run."""
        self._stuck: set[Supervised | Placed] = set()
        """Tasks whose processes were reported as impossible to end."""
        self._limited: set[Supervised | Placed] = set()
        """Tasks with a time limit, and tasks that were asked to end."""
        self._waiting: deque[ProcessRecord] = deque()
        """Claimed tasks that could not be started yet."""
        self._is_short = False
        """Whether the machine's limits have just kept a task from being started."""
        self._retry_at = 0.0
        self._has_pending = False
        """Whether tasks wait in the store for their group, for other tasks, or for a time."""
        self._is_blocked = False
        """Whether one of them waits for what another owner does."""
        self._due_at: float | None = None
        """The first of these times, in seconds since the epoch."""
        self._reconciled_at = 0.0
        self._owners = Watch()
        """Observations of owners that this process cannot look into."""
        self._child_has_ended = False
        self._waking = -1
        """Descriptor whose other end the selector watches."""
        self._selector = selectors.DefaultSelector()
        self._watch = StoreWatch(store, self._selector)
        self._kernel = KernelWatch(store, session_id)
        self._press_at = self._kernel_seen_at = self._ends_seen_at = 0.0
        self._stopping = False
        self._trouble = ""
        """The last reported problem with the store."""
        self._said: set[str] = set()
        """Messages already logged, which would otherwise recur every turn."""
        self._memory = MemoryEvents()
        self._memory_watch = MemoryWatch()
        self._usage_watch = UsageWatch()
        self._machine = MachineReader()
        store.session_id, store.say = session_id, self._warn
        self._limit = OpenFiles()
        self._warm = WarmStarts(
            self._selector, self._limit.as_it_was, self._modules, self._rows, _log
        )
        self._strangers = Strangers()
        self._flushes = Flushes(store.directory.payloads, self._warn)
        self._recorder = Recorder(store, warn=self._warn, heartbeat=self._heartbeat, quiet_wait_s=0)
        self._placements = Placements(
            store.directory, self._selector, self._recorder, self._touched.add
        )

    def _warn(self, message: str) -> None:
        _log(message)
        problems.record(self._store.directory, f"supervisor: {message}")

    def _guarded(self, what: str, call: Callable[[], object]) -> bool:
        """Do something for one task. A failure is reported and does not affect the other tasks.

        Returns whether it succeeded.
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
            self._watch.begin()
            self._kernel.begin(self._wake)
            while not self._stopping and not self._has_retired():
                if not self._guarded("a turn", self._turn):
                    time.sleep(PRESS_S)
            reason = SUPERVISOR_STOPPED
        finally:
            self._end_all(reason)

    def _registration(self) -> SupervisorRecord | None:
        """Wait for the kernel to record this process, and return the record."""
        until = time.monotonic() + REGISTRATION_S
        while time.monotonic() < until and self._is_wanted():
            record = self._registered()
            if record is not None:
                return record
            time.sleep(POLLED_LOOK_S)
        return self._registered()

    def _is_wanted(self) -> bool:
        """Whether there is a kernel, or tasks wait that it has left."""
        return (
            self._kernel.is_there()
            or self._store.processes.has_pending(self._session_id)
            or self._store.elsewhere.are_left(self._session_id)
        )

    def _registered(self) -> SupervisorRecord | None:
        return self._store.supervisors.of_process(self._session_id, ProcessIdentity.own())

    def _listen_to_signals(self) -> None:
        """Let SIGCHLD and SIGTERM end the waiting, but survive SIGINT and SIGHUP."""
        # A kernel may have been started with signals blocked, and tasks would inherit that.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._selector.register(read, selectors.EVENT_READ, None)
        self._waking = write
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                # Use a handler, because tasks would inherit an ignored signal.
                signal.signal(number, lambda *_: None)

    def _wake(self) -> None:
        """End the waiting, from another thread."""
        with suppress(OSError):  # it is full, or this process ends
            os.write(self._waking, b"\0")

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
            self._watch.look(now)
            self._look()
        if self._limited and now >= self._press_at:
            self._press()
            # Inspecting all processes of a busy machine is slow. Most of the time must go to
            # output.
            self._press_at = now + max(PRESS_S, 5 * (time.monotonic() - now))
        if now >= self._memory_watch.next_at:
            self._enforce_memory()
        if now >= self._usage_watch.next_at:
            self._guarded("looking at what tasks use", self._look_at_usage)
        self._placements.turn(now)
        has_ended_some = self._finish()
        if self._waiting and (has_ended_some or now >= self._retry_at):
            self._start_waiting()
        self._warm.turn(now)

    @property
    def _look_at(self) -> float:
        """When to look at the store again, by the monotonic clock."""
        due_in_s = math.inf if self._due_at is None else self._due_at - time.time()
        return self._watch.next_look_at(
            is_warm=self._warm.is_ready, is_idle=self._is_idle, due_in_s=due_in_s
        )

    @property
    def _is_idle(self) -> bool:
        """Whether there is nothing to do, but perhaps for a task that waits for its time."""
        has_some = self._tasks or self._waiting or self._is_blocked or self._placements.has_tasks
        return self._kernel.is_watched and not has_some and not self._warm.is_wanted

    def _take_output(self) -> None:
        """Wait a moment for output and read it, channels before streams."""
        streams: list[tuple[Supervised, int]] = []
        watches = (self._memory_watch, self._usage_watch, self._placements)
        wake_at = min(self._look_at, *(each.next_at for each in watches))
        if self._limited:
            wake_at = min(wake_at, self._press_at)
        for key, _events in self._selector.select(max(0.0, wake_at - time.monotonic())):
            source: Supervised | StoreWatch | ForkServer | Link | None = key.data
            if source is None:
                self._child_has_ended = True
                with suppress(BlockingIOError):
                    os.read(key.fd, 4096)
            elif isinstance(source, ForkServer):
                self._warm.read()
            elif isinstance(source, StoreWatch):
                source.read()
            elif isinstance(source, Link):
                source.serve(key.fd)
            elif source.is_channel(key.fd):
                self._read(source, key.fd)
            else:
                streams.append((source, key.fd))
        for task, descriptor in streams:
            self._read(task, descriptor)

    def _read(self, task: Supervised, descriptor: int) -> None:
        """Read what a task has sent. After malformed data, stop reading that descriptor."""
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
        """Find the tasks whose processes have ended."""
        self._child_has_ended = False
        self._strangers.reap()
        for task in [*self._tasks.values()]:
            self._guarded(f"looking at task {task.record.task_id}", partial(self._notice, task))

    def _notice(self, task: Supervised | Placed) -> None:
        if task.has_just_ended():
            self._touched.add(task)

    def _look(self) -> None:
        """Read the store if another connection has written to it."""
        try:
            self._store.open()
            if self._watch.has_followed():
                self._record = self._registered() or self._record
            if self._watch.commits.has_news() or self._is_due:
                self._do_what_others_ask()
            elif self._is_blocked:
                self._free_slots()
        except StoreError as error:
            self._watch.commits.forget()
            self._say_trouble(error)
        except Exception:
            self._watch.commits.forget()  # what was to be done has not been
            raise

    @property
    def _is_due(self) -> bool:
        return self._due_at is not None and time.time() >= self._due_at

    def _free_slots(self) -> None:
        """Record the end of owners that have died, so that their tasks keep no other waiting."""
        if time.monotonic() - self._reconciled_at >= RECONCILE_S:
            self._reconciled_at = time.monotonic()
            reconciling.reconcile(self._store, self._session_id, self._owners)
            self._watch.commits.forget()  # what this thread writes is no news to it

    def _do_what_others_ask(self) -> None:
        try:
            self._store.require_writable()
            self._take_back()
            self._cancel()
            self._pause_and_continue()
            self._take_over()
            self._claim()
        except StoreNewer as error:
            self._recorder.go_aside(error)
            # The column for this request is common to all versions.
            self._cancel_started(self._store.tasks.cancel_requested(self._session_id))

    def _say_trouble(self, error: StoreError) -> None:
        """Log a problem with the store once, not with every look."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            _log(self._trouble)

    def _take_back(self) -> None:
        """Take back tasks that another process has declared interrupted."""
        waiting = {process.task_key for process in self._waiting}
        running = {task.record.task_key for task in self._tasks.values()}
        revival.take_back(self._store, waiting | running)

    def _claim(self) -> None:
        """Start waiting tasks, a few at a time, because the running ones must be read too."""
        if self._waiting:
            return
        self._look_at_queue()
        if not self._has_pending:
            self._is_short = False
            return
        machine, at = self._seen_machine(), time.time()
        if not self._store.queue.may_claim(self._session_id, "process", at, machine):
            return
        assert self._record is not None
        few = 1 if self._is_short else CLAIM_AT_ONCE
        self._waiting.extend(
            self._store.processes.claim(self._session_id, self._record.key, at, few, machine)
        )
        self._start_waiting()
        self._watch.commits.forget()  # there may be more

    def _take_over(self) -> None:
        """Look after the session's tasks at places that a dead supervisor has left."""
        assert self._record is not None
        if not self._store.elsewhere.are_left(self._session_id):
            return
        for process in self._store.elsewhere.take_over(self._session_id, self._record.key):
            recording = Recording(self._recorder, process.task_key, process.max_output_bytes)
            recording.go_on(self._store)
            self._follow(Placed(process, recording, self._store.directory, may_run=True))

    def _follow(self, task: Placed) -> None:
        """Hand a task to its place, or follow it there."""
        environment = self._with_values(task.record).environment
        self._tasks[task.pid] = task
        pairs = environment.items()
        changes = {name: value for name, value in pairs if not isinstance(value, bool)}
        has_files = task.is_python or task.record.options.send
        given = partial(self._given_to, task) if has_files else None
        self._placements.add(task, changes, given)
        self._count_live()

    def _given_to(self, task: Placed) -> list[FileToSend]:
        files = sent_files.files_of(task.record.options)
        if task.is_python:
            files += files_to_send(self._store.directory, self._rows(task.record))
        return files

    def _seen_machine(self) -> Machine | None:
        """Return what the machine has free; None if no task that waits asks for any of it."""
        with_gpus = self._store.queue.asks_for_gpus(self._session_id)
        if with_gpus is None:
            return None
        bookings = self._store.queue.bookings_on(host_name())
        return self._machine.read(bookings, with_gpus=with_gpus)

    def _look_at_queue(self) -> None:
        has_pending = self._store.processes.has_pending(self._session_id)
        self._due_at = self._store.queue.next_due(self._session_id) if has_pending else None
        self._is_blocked = has_pending and self._store.queue.is_blocked(self._session_id)
        if has_pending != self._has_pending:
            self._has_pending = has_pending
            self._count_live()
            # Tasks that can never start were cancelled by the store. And it gives a sign of life.
            self._recorder.post(reconciling.forget_environments)

    def _count_live(self) -> None:
        self._recorder.live_tasks = len(self._tasks) + self._has_pending

    def _start_waiting(self) -> None:
        """Start the claimed tasks, as far as the machine allows."""
        while self._waiting and self._start(self._waiting[0]):
            self._waiting.popleft()

    def _start(self, process: ProcessRecord) -> bool:
        """Start a task. Returns False if it must wait until another one ends."""
        recording = Recording(self._recorder, process.task_key, process.max_output_bytes)
        if process.place is not None:
            placed = Placed(process, recording, self._store.directory, may_run=False)
            return self._start_elsewhere(placed)
        task = Supervised(process, recording, self._store.directory)
        try:
            if self._tasks and not self._limit.has_room():
                raise CannotStart(LIMITS[errno.EMFILE], is_shortage=True)
            # Put back into the queue, because reading the environment's file removes it.
            process = self._waiting[0] = self._with_values(process)
            environment = _whole(process)
            task.start(environment, self._limit.as_it_was(), self._warm)
        except CannotStart as error:
            if error.is_shortage and self._tasks:
                self._recorder.discard(recording)
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
        self._memory_watch.add(task)
        self._usage_watch.add(task)
        self._count_live()
        start = task.leader.start if task.leader else None
        self._recorder.post(
            lambda store: store.processes.started(
                process.task_key, task.pid, start, task.interpreter
            )
        )
        if task.is_python:
            self._make_durable(task)
            self._warm.begun(process, environment)
            known = [*self._tasks, *self._warm.pids(), *self._placements.pids]
            self._strangers.look(known)
        return True

    def _start_elsewhere(self, task: Placed) -> bool:
        try:
            self._follow(task)
        except CannotStart as error:
            self._record_end(task, End(TaskState.FAILED, str(error), None))
        return True

    def _modules(self) -> list[str]:
        """Return the modules that the kernel has imported."""
        assert self._record is not None
        return self._store.supervisors.modules(self._record.key)

    def _rows(self, process: ProcessRecord) -> TaskRows:
        return TaskRows.of(self._store, self._store.tasks.get(process.task_key))

    def _say_shortage(self, error: CannotStart) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        if not self._is_short:
            self._is_short = True
            self._warn(f"{error}; tasks wait until others of this session have ended")

    def _with_values(self, process: ProcessRecord) -> ProcessRecord:
        """Return the process with the values of its environment. Raises `CannotStart`."""
        is_to_be_read = process.is_whole and process.place is None and not process.environment
        if not is_to_be_read and True not in process.environment.values():
            return process
        read = environments.read if process.keeps_environment else environments.take
        values = read(self._store.directory, process.environment_of)
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
        self,
        task: Supervised | Placed,
        state: TaskState,
        reason: str,
        snapshot: Snapshot,
        *,
        at_once: bool = False,
    ) -> None:
        self._limited.add(task)  # even if the first signal fails, the next turn continues
        self._guarded(
            f"telling task {task.record.task_id} to end",
            lambda: task.ask_to_end(state, reason, snapshot, at_once=at_once),
        )
        if isinstance(task, Placed):
            self._placements.soon(task)
            if task.is_over:
                self._touched.add(task)

    def _enforce_memory(self) -> None:
        """End the tasks that use more memory than they may, before the machine has none left."""
        beyond, snapshot = self._memory_watch.beyond()
        for task in beyond:
            assert snapshot is not None, "there is one if a task was looked at"
            self._ask_to_end(task, TaskState.FAILED, _used(task), snapshot, at_once=True)

    def _look_at_usage(self) -> None:
        def save(texts: Mapping[int, str]) -> None:
            if not self._recorder.is_aside:
                self._recorder.post(lambda store: store.processes.note_usage(texts))

        self._usage_watch.look(save)

    def _pause_and_continue(self) -> None:
        running = {task.record.task_key: task for task in self._tasks.values()}
        for key, is_to_pause in self._store.queue.to_pause(self._session_id):
            task = running.get(key)
            if task is None or task.ending is not None:
                continue
            if is_to_pause:
                self._pause(task)
            elif self._store.queue.may_continue(key, time.time()):
                task.go_on()
                if isinstance(task, Placed):
                    self._placements.soon(task)

    def _pause(self, task: Supervised | Placed) -> None:
        refused = task.pause()
        if isinstance(task, Placed):
            self._placements.soon(task)
        try:
            self._store.queue.paused(task.record.task_key, time.time())
        except StoreError:
            task.go_on()  # the store does not know of the pause, so no command could end it
            raise
        if refused:
            which = ", ".join(refused)
            self._warn(f"task {task.record.task_id} is paused, except {which}")

    def _cancel_waiting(self, key: int) -> None:
        """Cancel a task that has not begun. A task that has just ended keeps its state."""
        if any(process.task_key == key for process in self._waiting):
            self._waiting = deque(each for each in self._waiting if each.task_key != key)
            self._store.tasks.end(key, TaskState.CANCELLED, "cancelled", None, time.time())
            return
        record = self._store.tasks.get(key)
        if record is None or record.state is not TaskState.PENDING or record.runner != "process":
            return
        self._store.tasks.end(key, TaskState.CANCELLED, "cancelled", None, time.time())
        if record.retries is None and record.schedule is None:
            environments.remove(self._store.directory, record.id)
        else:
            reconciling.forget_environments(self._store)

    def _press(self) -> None:
        """Enforce the time limits, and continue the ending of tasks."""
        late = [task for task in self._limited if task.is_late]
        ending = [task for task in self._limited if task.is_to_press]
        if not late and not ending:
            return
        snapshot = Snapshot()
        for task in ending:
            what = f"ending task {task.record.task_id}"
            self._guarded(what, partial(self._press_one, task, snapshot))
        for task in late:
            reason = f"{TIMED_OUT}{task.record.timeout_s:g} s"
            self._ask_to_end(task, TaskState.FAILED, reason, snapshot)
        self._touched.update(ending)

    def _press_one(self, task: Supervised | Placed, snapshot: Snapshot) -> None:
        if isinstance(task, Placed):
            return  # its keeper ends it
        task.press(snapshot)
        if task.stuck and task not in self._stuck:
            self._stuck.add(task)
            self._warn(
                f"task {task.record.task_id} was told to end, and counts as running until it has: "
                f"{task.stuck} is there all the same"
            )

    def _finish(self) -> bool:
        """Record the end of tasks that are over. Returns whether there were any."""
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
            end = task.end(self._memory.have_killed)
            if isinstance(task, Supervised):
                if not task.ending and self._memory_watch.has_killed(task):
                    end = End(TaskState.FAILED, _used(task), end.exit_code)
                self._memory_watch.discard(task)
            self._record_end(task, end)
        return bool(over)

    def _close(self, task: Supervised | Placed) -> None:
        """Read the last of a task's output. Discard it if it is malformed."""
        if isinstance(task, Placed):
            return
        if not self._guarded(f"reading what task {task.record.task_id} has sent", task.close):
            for descriptor in list(task.readers):
                task.drop(descriptor)

    def _record_end(self, task: Supervised | Placed, end: End) -> None:
        key = task.record.task_key
        task.note_checkpoint()
        usage = self._usage_watch.discard(task) if isinstance(task, Supervised) else None
        task_end = TaskEnd(
            key, end.state, end.reason, end.exit_code, time.time(), task.results, task.post_mortem
        )

        def record(store: TaskStore) -> None:
            if task.used is not None:
                store.processes.used(key, *task.used)
            if usage is not None and not self._recorder.is_aside:
                store.processes.note_usage({key: usage.as_stored()})
            task_end.record(store, task.recording)
            if task.record.keeps_environment:
                reconciling.forget_environments(store)
            if isinstance(task, Placed):
                task.is_committed = True

        self._recorder.post(record)
        self._recorder.post(lambda store: dispatch.notify(store, key))
        self._recorder.post(lambda _store: self._make_durable(task))
        self._recorder.discard(task.recording)
        self._count_live()

    def _make_durable(self, task: Supervised | Placed) -> None:
        """Have a task's values flushed, unless they were written so by its kernel and itself."""
        if task.is_python and self._store.database.synchronous != "full":
            self._flushes.add(task.record.task_id)

    # The end of the supervisor.

    def _has_retired(self) -> bool:
        """Retire if nothing is left to do. Returns whether it has."""
        now = time.monotonic()
        if self._tasks or now - self._kernel_seen_at < KERNEL_S:
            return False
        if not self._placements.may_leave():
            return False
        self._kernel_seen_at = now
        assert self._record is not None
        if self._recorder.is_aside:
            return not self._waiting  # it must not claim any more
        try:
            if self._kernel.is_there():
                return False
            if self._kernel.is_ending_left():
                return False
            # Write pending records first: after retiring, there is no process left to do it.
            self._recorder.change(lambda _store: None)
            return self._store.supervisors.retire(self._record)
        except StoreNewer as error:
            self._recorder.go_aside(error)
            return True
        except StoreError as error:
            self._say_trouble(error)
            return False

    def _end_all(self, reason: str) -> None:
        """End all running tasks, then record the reason and the end of this supervisor."""
        assert self._record is not None
        record, at = self._record, time.time()
        self._warm.end()
        self._placements.end()
        survivors = self._kill_all()
        for task in self._tasks.values():
            self._close(task)
        self._recorder.change(
            lambda store: store.processes.interrupt(record.key, reason, at, except_tasks=survivors),
            STOP_S,
        )
        # The next reconcile records what became of survivors.
        if not survivors:
            self._recorder.change(
                lambda store: store.supervisors.end(record.key, reason, at), STOP_S
            )
        self._recorder.change(dispatch.notify, STOP_S)
        self._recorder.stop(STOP_S)
        self._flushes.stop(STOP_S)

    def _kill_all(self) -> set[str]:
        """End the processes of all tasks. Returns the task ids of survivors."""
        tasks = [
            (task.record.task_id, task.leader)
            for task in self._tasks.values()
            if isinstance(task, Supervised)  # those at places go on
        ]
        survivors = {task_id for task_id, _leader in tasks}

        def kill() -> None:
            survivors.intersection_update(kill_tasks(tasks))

        self._guarded("ending all tasks", kill)
        return survivors

    def _heartbeat(self) -> None:
        if self._record is not None:
            self._store.supervisors.heartbeat(self._record.key)


def _used(task: Supervised) -> str:
    """Return the reason of a task that was ended because it used more memory than it may."""
    limit_bytes = task.record.memory_bytes or 0
    # The system may have been quicker than a look.
    is_known = task.memory_bytes > limit_bytes
    used = f"{size(task.memory_bytes)} of" if is_known else "more than"
    return f"{USED}{used} its {short_size(limit_bytes)}"


def _whole(process: ProcessRecord) -> dict[str, str]:
    """Return this process's environment with a task's changes. None removes a variable."""
    base: Mapping[str, str] = {} if process.is_whole else os.environ
    whole = {**base, **process.environment}
    return {name: value for name, value in whole.items() if isinstance(value, str)}


def _log(message: str) -> None:
    """Write to the supervisor's log, which is its standard error. The disk may be full."""
    with suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Supervise a session. The arguments are state directory, session id and `synchronous`."""
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
        # Log it before the cleanup, which removes an empty log.
        _log(traceback.format_exc())
        problems.record(directory, f"supervisor: {type(error).__name__}: {error}")
        sys.exit(1)
    finally:
        store.close()
        remove_empty(directory.supervisor_log(session_id))
