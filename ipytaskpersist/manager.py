"""`BackgroundTasks`: launch, find, wait for, cancel and reconcile the tasks of one process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ipytaskpersist import liveness, problems, reconciling, references, waits
from ipytaskpersist.active import FOREGROUND, active_task
from ipytaskpersist.archives import Archives
from ipytaskpersist.betweencells import call_between_cells
from ipytaskpersist.errors import (
    BackgroundError,
    ForkedProcess,
    InvalidRequest,
    StoreError,
    StoreUnwritable,
    TaskNotDone,
    TaskNotFound,
)
from ipytaskpersist.identity import SessionIdentity, session_identity
from ipytaskpersist.paths import StateDirectory, default_directory
from ipytaskpersist.payload import Payloads
from ipytaskpersist.provenance import GitWatch
from ipytaskpersist.records import RESTORED, SessionRecord, TaskRecord, TaskState
from ipytaskpersist.runners import revival, telling
from ipytaskpersist.safetext import legible, legible_lines
from ipytaskpersist.store import Selection, TaskStore
from ipytaskpersist.tasksettings import TaskSettings
from ipytaskpersist.upkeep import Limits, UpkeepTimer

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.cell import Outcome
    from ipytaskpersist.contexts import Contexts
    from ipytaskpersist.delivery import Delivery, Loaded
    from ipytaskpersist.launcher import Launcher
    from ipytaskpersist.patches import Patches
    from ipytaskpersist.recorder import Recorder
    from ipytaskpersist.runners.process import ProcessRunner
    from ipytaskpersist.runners.thread import ThreadRunner

POLL_S = 0.02
RECONCILE_S = 1.0
SHUTDOWN_S = 3.0
GIT_S = 1.0
LAUNCH_S = 5.0
"""How long a task may be recorded before it has a thread: far longer than a launch takes."""


class BackgroundTasks(TaskSettings):
    """The background tasks of this process, and through the store those of all others."""

    def __init__(self, shell: InteractiveShell | None = None, **options: Any) -> None:
        super().__init__(shell, **options)
        self.directory = StateDirectory(default_directory())
        self.store = TaskStore(
            self.directory, synchronous=self.synchronous, backups_kept=self.backups_kept
        )
        self.archives = Archives(self.store)
        self.payloads = Payloads(self.directory)
        self.git = GitWatch(self.store)
        self.upkeep = UpkeepTimer(self.store, self._limits)
        self.on_change: list[Callable[[int], None]] = []
        """Called with a task's key when a task of this process has ended."""
        self.ends_shown: set[int] = set()
        """The keys of tasks whose end a command has just shown, and nobody need tell again."""
        self.on_close: list[Callable[[], None]] = []
        """Called before this lets go of the store."""
        self._unsaid: deque[reconciling.Loss] = deque()
        """What this session has lost, and nobody has been told."""
        self._said = ""
        """What was said last of a disk that takes nothing more, and is not said again."""
        self._reconciling = threading.Lock()
        self._waits = waits.Waits()
        self._watch = liveness.Watch()
        """What this process has seen of sessions that it cannot look at."""
        self._session: SessionRecord | None = None
        self._replacements = 0
        """How often the store had been replaced when the session was recorded."""
        self.store.say = self.warn
        self._pid = os.getpid()
        self._has_ended = False
        self._identity: SessionIdentity | None = None
        self._recorder: Recorder | None = None
        self._threads: ThreadRunner | None = None
        self._processes: ProcessRunner | None = None
        self._contexts: Contexts | None = None
        self._delivery: Delivery | None = None
        self._patches: Patches | None = None

    # The session.

    @property
    def identity(self) -> SessionIdentity:
        """Which session and notebook this process is."""
        if self._identity is None:
            self._identity = session_identity(self.shell, self.notebook)
        return self._identity

    def session(self) -> SessionRecord:
        """This session, recorded in the store. Makes the store where there is none.

        Raises `ForkedProcess` in a forked child, which is no part of its parent's session.
        """
        if self._pid != os.getpid():
            raise ForkedProcess
        self.store.keep_up()
        if self._session is None:
            self._session = self._begin_session()
            self.upkeep.begin()
            if self.shell is None:
                atexit.register(self.end_session, "program ended")
        elif self._replacements != self.store.replacements:
            self._session = self._begin_session()
        return self._session

    def _begin_session(self) -> SessionRecord:
        self.store.open().require_writable()
        if self.store.notice:
            print(legible(self.store.notice), file=sys.stderr)
        session = self.store.sessions.begin(self.identity)
        self.store.session_id, self._replacements = session.id, self.store.replacements
        return session

    def notebook_key(self) -> int | None:
        """This notebook's key in the store, or None when the store does not know it."""
        if self._session is not None:
            return self.session().notebook_key
        if not self.store.exists:
            return None
        notebook = self.store.open().sessions.find_notebook(self.identity)
        return notebook.key if notebook else None

    def end_session(self, reason: str) -> None:
        """Record that this process ends: its running tasks are interrupted for this reason."""
        session = self._session
        if session is None or self._has_ended or self._pid != os.getpid():
            return
        self._has_ended = True
        self.git.finish(GIT_S)

        def end(store: TaskStore) -> None:
            at = time.time()
            store.tasks.interrupt_session(session.id, "thread", reason, at)
            store.sessions.end(session.id, reason, at)
            telling.tell(store)

        try:
            if self._recorder is not None:
                if self._threads is not None:
                    self._threads.keep_widgets()
                self._recorder.change(end, SHUTDOWN_S)
                # A kernel that ends clears its variables under the threads that still run: the
                # errors that they then raise are not the task's.
                self._recorder.stop(SHUTDOWN_S)
            else:
                end(self.store)
        except StoreError as error:
            self.warn(f"the end of this session could not be recorded: {error}")

    def end_process(self, reason: str) -> None:
        """The same, and end what its tasks in threads have started."""
        self.end_session(reason)
        if self._threads is not None and self._pid == os.getpid():
            self._threads.end_children()

    def warn(self, message: str) -> None:
        """Say that the store has a problem, and keep that for the doctor."""
        problems.record(self.directory, message)
        with suppress(OSError, ValueError):  # a file on the full disk, or closed
            print(legible(message), file=sys.stderr)

    # Launching.

    @property
    def launcher(self) -> Launcher:
        """What launches tasks in this process."""
        from ipytaskpersist.launcher import Launcher

        return Launcher(self)

    def get_ready(self) -> None:
        """Make what launching needs, for who launches from another thread than the main one.

        Two threads that make it at once would make it twice. Raises `StoreError` when tasks cannot
        be recorded.
        """
        self.session()
        assert self.threads is not None
        assert self.processes is not None

    def launched(self, task: TaskRecord, directory: str) -> None:
        """Find out what else is to be known of a task that was just launched in a directory."""
        if self._threads is not None:
            self._threads.forget(task.key)  # where a store was lost, its keys are given again
        self.git.expect(task.key, directory)
        self.upkeep.soon()

    def _limits(self) -> Limits:
        return Limits(self.archive_after_days, self.max_store_bytes, self.keep)

    def tell_end(self, key: int) -> None:
        """Tell who wants to know that a task of this process has ended."""
        if self._recorder is not None:
            self._recorder.post(lambda store: telling.tell(store, key))
        for call in self.on_change:
            call(key)

    @property
    def processes(self) -> ProcessRunner:
        """The tasks of this session that run in processes of their own."""
        if self._processes is None:
            from ipytaskpersist.runners.process import ProcessRunner

            self._processes = ProcessRunner(
                self.store, self.directory, self.payloads, self.session, self._replace_supervisor
            )
        return self._processes

    @property
    def threads(self) -> ThreadRunner:
        """The tasks of this process's threads. Starts capturing at its first use."""
        if self._threads is None:
            self._threads = self._make_threads()
        return self._threads

    def _make_threads(self) -> ThreadRunner:
        from ipytaskpersist.recorder import Recorder
        from ipytaskpersist.runners.guarded import Guarded
        from ipytaskpersist.runners.thread import ThreadRunner

        self._recorder = Recorder(
            self.store,
            warn=self.warn,
            heartbeat=lambda: self.store.sessions.heartbeat(self.session().id),
            watch=self._obey_others,
        )
        self.install_capture()
        runner = ThreadRunner(
            self._recorder,
            self.payloads,
            self._text_form,
            self.contexts,
            lambda: self.large_result_bytes,
            Guarded(self.directory, partial(self.end_process, "IPython ended")),
        )
        if self.shell is not None:
            call_between_cells(self.shell, self.on_close.append, runner.settings.before_cell)
        return runner

    @property
    def contexts(self) -> Contexts:
        """The context variables of tasks and foreground. Follows cells from its first use on."""
        if self._contexts is None:
            from ipytaskpersist.contexts import Contexts

            self._contexts = Contexts()
            if self.shell is not None:
                call_between_cells(
                    self.shell,
                    self.on_close.append,
                    self._contexts.before_cell,
                    self._contexts.after_cell,
                )
        return self._contexts

    def install_capture(self) -> None:
        """Route output to tasks from now on."""
        if self._patches is None and self.shell is not None:
            from ipytaskpersist import (
                capture,
                cell,
                directories,
                figures,
                foregroundonly,
                inherit,
                ownstate,
                ownwarnings,
                progress,
                scripts,
            )
            from ipytaskpersist.patches import Patches

            self._patches = Patches()
            capture.install(self.shell, self._patches)
            inherit.install(self._patches)
            figures.install(self.shell, self._patches)
            cell.install(self.shell, self._patches)
            progress.install(self._patches)
            ownstate.install(self._patches)
            ownwarnings.install(self._patches)
            directories.install(self._patches)
            scripts.install(self.shell, self._patches)
            foregroundonly.install(self.shell, self._patches)
            foregroundonly.install_for_threads(self.shell, self._patches)
            atexit.register(self.end_process, "IPython ended")

    def _text_form(self, value: Any) -> str:
        formatter = self.shell.display_formatter if self.shell else None
        if formatter is None:
            return repr(value)
        data, _metadata = formatter.format(value, include={"text/plain"})
        return str(data.get("text/plain") or repr(value))

    # Finding.

    def find(self, reference: str | int | None = None) -> TaskRecord:
        """The task for a number, an id, a unique id prefix, a name, ``-1`` …, or the latest.

        Raises `TaskNotFound` or `AmbiguousReference`. Only a full id reaches another notebook.
        """
        self.reconcile()
        key = self.notebook_key()
        try:
            # An archived task's number goes before an id of another that begins so.
            found = self._archived_number(key, reference) or references.find(
                self.store, key, reference
            )
        except TaskNotFound:
            archived = self._in_archives(
                lambda archive, there: references.find_archived(archive, there, reference)
            )
            if archived is None:
                raise
            found = archived
        if references.is_prefix(found, reference):
            self._refuse_two(found, str(reference).strip())
        return found

    def _refuse_two(self, found: TaskRecord, prefix: str) -> None:
        """An id that begins so may be in an archive, too. Raises `AmbiguousReference`."""
        key = self.notebook_key()
        for archive in self.archives.all():
            there = None if key is None else self.archives.notebook_key(key, archive)
            if there is not None:
                others = self.archives.without_own(archive.tasks.by_id_prefix(there, prefix))
                both = {task.id: task for task in (*others, found)}
                references.refuse_several([*both.values()], prefix)

    def _archived_number(self, key: int | None, reference: str | int | None) -> TaskRecord | None:
        """The archived task of this number, where the store has none."""
        number = references.as_number(reference)
        if number is None or key is None or self.store.tasks.by_number(key, number) is not None:
            return None
        return self._in_archives(
            lambda archive, there: archive.tasks.by_number(-1 if there is None else there, number)
        )

    def _in_archives(
        self, find: Callable[[TaskStore, int | None], TaskRecord | None]
    ) -> TaskRecord | None:
        """What `find` gives for an archive and this notebook's key there; the latest first."""
        key = self.notebook_key()
        for archive in self.archives.all():
            there = None if key is None else self.archives.notebook_key(key, archive)
            found = find(archive, there)
            if found is not None:
                return found
        return None

    def store_of(self, task: TaskRecord) -> TaskStore:
        """The store that has a task: an archive, or the store itself."""
        return self.archives.store_of(task)

    def find_all(self, given: Sequence[str]) -> list[TaskRecord]:
        """The task for each reference, each once; the latest one when there is none."""
        found = [self.find(reference) for reference in given] if given else [self.find()]
        return list({task.id: task for task in found}.values())

    def interrupted(self) -> list[TaskRecord]:
        """This notebook's interrupted tasks that nobody has run again, oldest first."""
        self.reconcile()
        key = self.notebook_key()
        return [] if key is None else self.store.tasks.interrupted(key)

    def resumable(self) -> list[TaskRecord]:
        """Those of `interrupted` that may be resumed without being asked for.

        One that has been run again before and whose kernel died under it may be what killed it.
        """
        return [
            task
            for task in self.certainly_dead(self.interrupted())
            if task.reason != RESTORED
            and (
                "rerun_of" not in task.provenance
                or task.reason not in ("kernel died", "supervisor died")
            )
        ]

    def certainly_dead(self, tasks: Sequence[TaskRecord]) -> list[TaskRecord]:
        """Those of these interrupted tasks of which nothing can run on any more.

        Of the others nobody has seen a sign of life for a while, on another host or in another
        container: to run them again by themselves could mean to run them twice at once.
        """
        return [
            task
            for task in tasks
            if task.declared_dead != "presumed" or liveness.is_proven(self.store, task)
        ]

    def select(self, selection: Selection) -> list[TaskRecord]:
        """The tasks of a selection, oldest first."""
        self.reconcile()
        return self.store.tasks.select(selection) if self.store.exists else []

    def select_archived(self, selection: Selection) -> list[TaskRecord]:
        """The archived tasks of a selection, oldest first."""
        return self.archives.select(selection) if self.store.exists else []

    def tasks_of(self, session: SessionRecord) -> list[TaskRecord]:
        """Every task that a session launched, archived or not, oldest first."""
        archived = [
            task
            for archive in self.archives.all()
            for task in self.archives.without_own(archive.tasks.of_session(session.id))
        ]
        return sorted(
            [*archived, *self.store.tasks.of_session(session.id)], key=lambda task: task.number
        )

    def is_own(self, task: TaskRecord) -> bool:
        """Whether the task is one of this notebook's."""
        key = self.notebook_key()
        if task.archive and key is not None:
            key = self.archives.notebook_key(key, self.store_of(task))
        return task.notebook_key == key

    def refresh(self, task: TaskRecord) -> TaskRecord:
        """What is known of the task now, also when it has been archived, or has come back."""
        found = self.store_of(task).tasks.get(task.key)
        if found is None or found.id != task.id:
            found = self.store.tasks.by_id(task.id) or self._in_archives(
                lambda archive, _there: archive.tasks.by_id(task.id)
            )
        if found is None:
            raise references.deleted(task)
        return found

    # Reconciling.

    def reconcile(self) -> None:
        """Say of every session whose process is gone that it ended, and of its tasks why.

        Where the disk takes nothing more it is said later: commands that read go on.
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
        """The same from a thread, which has no cell to print to: the next command says it.

        Returns False where there is no store that could be brought up to date.
        """
        if not self.store.exists or self.store.open().read_only:
            return False
        own = self.identity.id
        with self._reconciling:  # or two threads would find the same loss
            losses = reconciling.reconcile(self.store, own, self._watch)
        self._unsaid.extend(loss for loss in losses if loss.supervisor.session == own)
        if self._threads is not None:
            self._end_what_has_no_thread(self._threads)
        return True

    def _end_what_has_no_thread(self, threads: ThreadRunner) -> None:
        """A launch that broke off after it was recorded has left a task that nothing will run."""
        at = time.time()
        for key in self.store.tasks.waiting_for_threads(self.identity.id, at - LAUNCH_S):
            if not threads.owns(key):
                reason = "its launch was interrupted"
                self.store.tasks.end(key, TaskState.INTERRUPTED, reason, None, at)

    def _replace_supervisor(self) -> None:
        """The supervisor has died, perhaps while nobody types: what waits for it need not."""
        with suppress(BackgroundError):  # the next command tries again, and says why not
            if not self._has_ended and self.reconcile_silently():
                self.processes.serve_pending()

    # Waiting.

    def wait(
        self,
        tasks: Sequence[TaskRecord],
        timeout_s: float | None = None,
        on_change: Callable[[list[TaskRecord]], None] | None = None,
    ) -> list[TaskRecord]:
        """Wait until all have ended, at most so long, and return what they are then.

        `on_change` is called at once, whenever the store has changed, and every second. Raises
        `InvalidRequest` for a task that would wait for ever: for itself, or for one that waits for
        it.
        """
        with FOREGROUND.waiting(), self._not_in_a_circle(tasks, timeout_s):
            return self._wait(tasks, timeout_s, on_change)

    def _not_in_a_circle(
        self, tasks: Sequence[TaskRecord], timeout_s: float | None
    ) -> AbstractContextManager[None]:
        if timeout_s is not None or active_task.get() is None:
            return nullcontext()
        now = [self.refresh(task) for task in tasks]
        return self._waits.endless([task for task in now if not self._is_over(task)])

    def _wait(
        self,
        tasks: Sequence[TaskRecord],
        timeout_s: float | None,
        on_change: Callable[[list[TaskRecord]], None] | None,
    ) -> list[TaskRecord]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        reconciled_at, version, shown_at = time.monotonic(), -1, 0.0
        current = list(tasks)
        while True:
            seen = self.store.database.data_version
            is_old = time.monotonic() - shown_at > 1
            if is_old or seen != version or any(self._just_ended(task) for task in current):
                version, shown_at = seen, time.monotonic()
                current = [task if self._is_over(task) else self.refresh(task) for task in current]
                if on_change is not None:
                    on_change(current)
            if all(self._is_over(task) for task in current):
                return current
            if deadline is not None and time.monotonic() >= deadline:
                return current
            if time.monotonic() - reconciled_at > RECONCILE_S:
                self.reconcile()
                self._refuse_to_wait_in_vain()
                reconciled_at = time.monotonic()
            self._pause(current)

    def _refuse_to_wait_in_vain(self) -> None:
        """What becomes of this version's tasks is no longer in the store. Raises `StoreNewer`."""
        if self.store.is_taken_over:
            self.store.require_writable()

    def _is_over(self, task: TaskRecord) -> bool:
        """Whether a task has ended. What others say of one of this process, it says otherwise."""
        runner = self._threads
        is_own = (
            runner is not None and runner.owns(task.key) and not runner.ended(task.key).is_set()
        )
        return task.state.is_final and not (task.declared_dead and is_own and not task.archive)

    def _just_ended(self, task: TaskRecord) -> bool:
        runner = self._threads
        return (
            not task.state.is_final
            and runner is not None
            and runner.owns(task.key)
            and runner.ended(task.key).is_set()
        )

    def _pause(self, tasks: list[TaskRecord]) -> None:
        """Sleep a little, but wake at once when a task of this process ends."""
        live = [task for task in tasks if not self._is_over(task)]
        if live and self._threads is not None and self._threads.owns(live[0].key):
            self._threads.ended(live[0].key).wait(POLL_S)
        else:
            time.sleep(POLL_S)

    # Changing.

    def cancel(self, task: TaskRecord) -> bool:
        """Ask for a task's cancellation, wherever it runs. Returns whether it was still live."""
        if task.archive:
            return False
        self.store.require_writable()
        asked = self.store.tasks.request_cancel(task.key)
        if asked and self._threads is not None:
            self._threads.cancel(task.key)
        return asked

    def end_left(self, task: TaskRecord) -> int:
        """End the processes that an interrupted task has left here. Returns how many.

        Raises `InvalidRequest` for those that could not be ended.
        """
        return reconciling.end_left(task)

    def _obey_others(self) -> None:
        """Cancel the tasks of this process for which another process has asked.

        First those go on that another process has taken for interrupted by mistake.
        """
        runner = self._threads
        if runner is None:
            return
        revival.take_back(self.store, [task.record.key for task in runner.running()])
        wanted = set(self.store.tasks.cancel_requested(self.session().id))
        for task in runner.running():
            if task.record.key in wanted and not task.cancelled:
                task.cancellation.ask()

    def clear(self) -> tuple[int, int]:
        """Cancel this session's live tasks and take ended ones off the default list.

        Returns how many were cancelled, and how many taken off.
        """
        key = self.notebook_key()
        if key is None:
            return 0, 0
        self.store.require_writable()
        self.reconcile()
        mine = Selection(key, (TaskState.PENDING, TaskState.RUNNING), self.identity.id)
        cancelled = [task for task in self.store.tasks.select(mine) if self.cancel(task)]
        self.wait(cancelled, timeout_s=SHUTDOWN_S)
        cleared = self.store.tasks.clear(key)
        return len(cancelled), cleared

    def delete(self, tasks: Sequence[TaskRecord]) -> None:
        """Remove ended tasks for good, with everything that was stored of them."""
        self.store.require_own_version()
        for task in tasks:
            if not task.state.is_final:
                raise InvalidRequest(
                    f"task {task.label} is {task.state}; cancel it first: %bg_cancel {task.number}"
                )
        reconciling.end_left(*tasks)  # no command would find it later
        self.archives.delete(tasks)
        for task in tasks:
            self.payloads.delete(task.id)
            if self._threads is not None and not task.archive:
                self._threads.forget(task.key)
        self.upkeep.soon()

    def delete_session(self, session: SessionRecord) -> None:
        """Remove an ended session's tasks for good, and what is known of the session."""
        self.delete(self.tasks_of(session))
        if session.ended_at is not None:
            self.store.sessions.delete(session.id)
            for archive in self.archives.all():
                archive.sessions.delete(session.id)

    # Variables and results.

    @property
    def delivery(self) -> Delivery:
        """What brings variables of process tasks back before the next cell."""
        if self._delivery is None:
            from ipytaskpersist.delivery import Delivery

            contexts = self.contexts  # which hear of a cell before the delivery does
            self._delivery = Delivery(
                self.store,
                lambda task: contexts.change(lambda: self.load_variables(task)),
                self._say_loaded,
                self.launcher.to_assign,
                self.launcher.imports,
            )
            if self.shell is not None:
                call_between_cells(self.shell, self.on_close.append, self._delivery.before_cell)
        return self._delivery

    def load_variables(self, task: TaskRecord, names: Sequence[str] = ()) -> Loaded:
        """Put the variables that a process task has left into the notebook: all, or those named.

        Raises `TaskNotDone` when it has not ended, and `InvalidRequest` for a name that it has not
        left.
        """
        from ipytaskpersist.delivery import load

        if not task.state.is_final:
            raise TaskNotDone(
                f"task {task.label} is {task.state.value}, so it has left nothing yet; "
                f"%bg_wait {task.number} waits for it"
            )
        assert self.shell is not None
        return load(self.store_of(task), self.payloads, task, self.shell.user_ns, names)

    @staticmethod
    def _say_loaded(task: TaskRecord, loaded: Loaded) -> None:
        stream = sys.stderr if loaded.problems else sys.stdout
        print(legible_lines(loaded.in_words(task)), file=stream)

    def outcome(self, task: TaskRecord) -> Outcome | None:
        """How a task of this very process ended, with its value and exception themselves."""
        if self._threads is None or task.archive:
            return None
        return self._threads.outcome(task.key)

    # Ending.

    def close(self) -> None:
        """Put back what was changed, and let go of the store. Running tasks are interrupted."""
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
        self.upkeep.stop()
        self.archives.close()
        self.store.close()


_current: BackgroundTasks | None = None


def current() -> BackgroundTasks:
    """The manager of this process: that of the loaded extension, else one that can only read."""
    global _current
    if _current is None:
        shell = _shell()
        _current = BackgroundTasks(shell, parent=shell)
        _current.say_setting_problems()
    return _current


def set_current(manager: BackgroundTasks | None) -> None:
    """Make this the manager of the process."""
    global _current
    _current = manager


def _shell() -> InteractiveShell | None:
    module: Any = sys.modules.get("IPython.core.getipython")
    return module.get_ipython() if module is not None else None
