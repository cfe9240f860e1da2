"""The parts that run the tasks of this process, and end with it."""

from __future__ import annotations

import atexit
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.cell_events import call_between_cells
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.errors import BackgroundError, StoreError, StoreUnwritable
from ipytaskpersist.notify import dispatch
from ipytaskpersist.runners import liveness, reconciling, revival
from ipytaskpersist.session import leaving
from ipytaskpersist.session.own_session import OwnSession
from ipytaskpersist.session.provenance import GitWatch
from ipytaskpersist.session.task_settings import TaskSettings
from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.checkpoints import Checkpoints
from ipytaskpersist.values.payloads import Payloads

if TYPE_CHECKING:
    from ipytaskpersist.base.patches import Patches
    from ipytaskpersist.isolation.context_variables import Contexts
    from ipytaskpersist.output.recorder import Recorder
    from ipytaskpersist.runners.process import ProcessRunner
    from ipytaskpersist.runners.thread import ThreadRunner
    from ipytaskpersist.running.running_task import RunningTask

SHUTDOWN_S = 3.0
GIT_S = 1.0
LAUNCH_S = 5.0
"""Time after which a recorded task must have a thread; a launch takes far less."""


class Runners:
    """The parts that run the tasks of this process, each created on first use."""

    def __init__(
        self,
        settings: TaskSettings,
        store: TaskStore,
        payloads: Payloads,
        session: OwnSession,
        git: GitWatch,
    ) -> None:
        self._settings = settings
        self._store = store
        self._payloads = payloads
        self._session = session
        self._git = git
        self.on_end: list[Callable[[int], None]] = []
        """Called with a task's key when a task of this process has ended."""
        self.on_close: list[Callable[[], None]] = []
        """Called before the extension releases the store."""
        self._unsaid: deque[reconciling.Loss] = deque()
        """Losses of this session that have not been reported yet."""
        self._said = ""
        """Last message about a full disk, which is not repeated."""
        self._reconciling = threading.Lock()
        self._watch = liveness.Watch()
        """Observations of sessions that this process cannot look into."""
        self._has_ended = False
        self._recorder: Recorder | None = None
        self._threads: ThreadRunner | None = None
        self._processes: ProcessRunner | None = None
        self._contexts: Contexts | None = None
        self._patches: Patches | None = None

    def get_ready(self) -> None:
        """Create what launching needs, for a caller that launches outside the main thread.

        Two threads at the same time would create it twice. Raise `StoreError` if tasks cannot be
        recorded.
        """
        self._session.record()
        assert self.threads is not None
        assert self.processes is not None

    @property
    def processes(self) -> ProcessRunner:
        """This session's tasks that run in their own processes."""
        if self._processes is None:
            from ipytaskpersist.runners.process import ProcessRunner

            self._processes = ProcessRunner(
                self._store, self._payloads, self._session.record, self._replace_supervisor
            )
        return self._processes

    @property
    def threads(self) -> ThreadRunner:
        """The tasks of this process's threads. Starts capturing on first use."""
        if self._threads is None:
            self._threads = self._make_threads()
        return self._threads

    @property
    def existing_threads(self) -> ThreadRunner | None:
        """The thread runner if it exists, else None."""
        return self._threads

    def _make_threads(self) -> ThreadRunner:
        from ipytaskpersist.output.recorder import Recorder
        from ipytaskpersist.runners.guarded import Guarded
        from ipytaskpersist.runners.thread import ThreadRunner

        self._recorder = Recorder(
            self._store,
            warn=partial(problems.say, self._store.directory),
            heartbeat=lambda: self._store.sessions.heartbeat(self._session.record().id),
            watch=self._obey_others,
        )
        self.install_capture()
        guarded = Guarded(self._store.directory, partial(self.end_process, "IPython ended"))
        if self._patches is not None:
            guarded.install(self._patches)
        runner = ThreadRunner(
            self._recorder,
            self._payloads,
            self._text_form,
            self.contexts,
            lambda: self._settings.large_result_bytes,
            guarded,
            self._with_checkpoints,
        )
        if self._settings.shell is not None:
            call_between_cells(
                self._settings.shell, self.on_close.append, runner.settings.before_cell
            )
        return runner

    def _with_checkpoints(self, task: RunningTask) -> None:
        task.checkpoints = Checkpoints(self._store.directory, task.record)
        task.cancellation.grace_s = self._settings.cancel_grace_s

    @property
    def contexts(self) -> Contexts:
        """The context variables of tasks and foreground. Follows cells from its first use on."""
        if self._contexts is None:
            from ipytaskpersist.isolation.context_variables import Contexts

            self._contexts = Contexts()
            if self._settings.shell is not None:
                call_between_cells(
                    self._settings.shell,
                    self.on_close.append,
                    self._contexts.before_cell,
                    self._contexts.after_cell,
                )
        return self._contexts

    def install_capture(self) -> None:
        """Route output to tasks from now on."""
        if self._patches is None and self._settings.shell is not None:
            from ipytaskpersist.cells.install import install_in_notebook

            self._patches = install_in_notebook(self._settings.shell)
            atexit.register(self.end_process, "IPython ended")

    def _text_form(self, value: Any) -> str:
        formatter = self._settings.shell.display_formatter if self._settings.shell else None
        if formatter is None:
            return repr(value)
        data, _metadata = formatter.format(value, include={"text/plain"})
        return str(data.get("text/plain") or repr(value))

    def notify_end(self, key: int) -> None:
        """Send notifications for a task of this process that has ended, and call `on_end`."""
        if self._recorder is not None:
            self._recorder.post(lambda store: dispatch.notify(store, key))
        for call in self.on_end:
            call(key)

    # Reconciling.

    def reconcile(self) -> None:
        """Record the end of every session whose process is gone, and of its tasks with the reason.

        If the disk accepts no more data, this is reported later, and commands that read go on.
        """
        try:
            if not self.reconcile_silently():
                return
        except StoreUnwritable as error:
            self._say_once(f"what has ended is not recorded yet: {error}")
            return
        while self._unsaid:
            print(self._unsaid.popleft().in_words(), file=sys.stderr)
        if self._processes is not None:
            self._processes.serve_pending()

    def _say_once(self, message: str) -> None:
        if message != self._said:
            self._said = message
            print(legible(message), file=sys.stderr)

    def reconcile_silently(self) -> bool:
        """Reconcile from a thread, which has no cell to print to: the next command reports losses.

        Return False if there is no store that could be updated.
        """
        if not self._store.exists or self._store.open().read_only:
            return False
        own = self._session.identity.id
        with self._reconciling:  # or two threads would find the same loss
            losses = reconciling.reconcile(self._store, own, self._watch)
        self._unsaid.extend(loss for loss in losses if loss.supervisor.session == own)
        if self._threads is not None:
            self._end_what_has_no_thread(self._threads)
        return True

    def _end_what_has_no_thread(self, threads: ThreadRunner) -> None:
        """End tasks that nothing will run: their launch broke off after it was recorded."""
        at = time.time()
        for key in self._store.tasks.waiting_for_threads(self._session.identity.id, at - LAUNCH_S):
            if not threads.owns(key):
                reason = "its launch was interrupted"
                self._store.tasks.end(key, TaskState.INTERRUPTED, reason, None, at)

    def _replace_supervisor(self) -> None:
        """Start a new supervisor for waiting tasks after the old one died, without a command."""
        with suppress(BackgroundError):  # the next command tries again, and says why not
            if not self._has_ended and self.reconcile_silently():
                self.processes.serve_pending()

    def _obey_others(self) -> None:
        """Cancel the tasks of this process for which another process has requested it.

        First revive tasks that another process has marked as interrupted by mistake.
        """
        runner = self._threads
        if runner is None:
            return
        revival.take_back(self._store, [task.record.key for task in runner.running()])
        wanted = set(self._store.tasks.cancel_requested(self._session.record().id))
        for task in runner.running():
            if task.record.key in wanted and not task.cancelled:
                task.cancellation.ask()
        if runner.waiting:
            self._serve_waiting(runner, wanted)

    def _serve_waiting(self, runner: ThreadRunner, cancelled: set[int]) -> None:
        """Start the tasks in threads that need not wait any longer, and drop those that ended."""
        at, session = time.time(), self._session.record().id
        for key in cancelled.intersection(runner.waiting):
            self._store.tasks.end(key, TaskState.CANCELLED, "cancelled", None, at)
        while runner.waiting and self._store.queue.may_claim(session, "thread", at):
            worker = runner.reserve()  # first: a claimed task must get its thread
            claimed = self._store.queue.claim_for_threads(session, at)
            if claimed is None:
                runner.give_back(worker)
                break
            runner.start(claimed, worker)
        ended = [
            task.key for task in self._store.tasks.of_keys(runner.waiting) if task.state.is_final
        ]
        for dropped in runner.drop(ended):
            self.notify_end(dropped)
        if self._recorder is not None:
            self._recorder.watch_at = self._store.queue.next_due(session) or math.inf

    # Ending.

    def end_session(self, reason: str) -> None:
        """Record the end of this process: its running tasks are interrupted for this reason."""
        if self._has_ended or not self._session.is_recorded:
            return
        self._has_ended, session = True, self._session.identity
        self._git.finish(GIT_S)

        def end(store: TaskStore) -> None:
            at = time.time()
            store.tasks.interrupt_session(session.id, "thread", reason, at)
            store.sessions.end(session.id, reason, at)
            dispatch.notify(store)

        try:
            if self._recorder is not None:
                if self._threads is not None:
                    self._threads.keep_widgets()
                self._recorder.change(end, SHUTDOWN_S)
                # A kernel that ends clears its variables while threads still run. The errors that
                # they then raise are not the task's.
                self._recorder.stop(SHUTDOWN_S)
            else:
                end(self._store)
        except StoreError as error:
            problems.say(
                self._store.directory, f"the end of this session could not be recorded: {error}"
            )

    def end_process(self, reason: str, *, is_exit: bool = True) -> None:
        """End the session, and the processes that its thread tasks have started.

        With `is_exit`, no kernel follows at once that would report what was interrupted. So wait
        for the tasks in threads as the settings say, and name those that are cut off.
        """
        cut_off: list[TaskRecord] = []
        # Not in a process that a task has forked: it has none of these tasks.
        is_own = not self._has_ended and self._session.is_recorded
        if is_exit and self._threads is not None and is_own:
            is_kernel = hasattr(self._settings.shell, "kernel")
            seconds = self._settings.patience_at_exit_s
            cut_off = leaving.wait(self._threads, seconds, is_kernel=is_kernel)
        self.end_session(reason)
        leaving.say_cut_off(cut_off, reason)
        if self._threads is not None and self._session.is_recorded:
            self._threads.end_children()

    def close(self) -> None:
        """Interrupt running tasks, and undo all changes."""
        for call in self.on_close:
            call()
        self.end_session("extension unloaded")
        if self._threads is not None:
            self._threads.close()
        if self._recorder is not None:
            self._recorder.stop(SHUTDOWN_S)
        if self._patches is not None:
            self._patches.undo()
        atexit.unregister(self.end_session)
        atexit.unregister(self.end_process)
