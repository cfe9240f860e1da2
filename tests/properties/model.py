"""What a store must hold, said without a store: dictionaries of tasks, and what changes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from ipytaskpersist.base.records import RESTORED, STREAM_KINDS, OutputKind, Progress, TaskState

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, INTERRUPTED = TaskState
LEGAL = {(PENDING, RUNNING), (RUNNING, COMPLETED)} | {
    (live, ended) for live in (PENDING, RUNNING) for ended in (FAILED, CANCELLED, INTERRUPTED)
}
"""What the drawing in docs/architecture.md says."""
EXPORTED = "was running when it was exported"
Printed = tuple[tuple[OutputKind, bytes], ...]


@dataclass(frozen=True)
class Known:
    """All that a store must know of a task."""

    id: str
    number: int
    notebook: str
    session: str
    name: str
    runner: str
    source: str
    created_at: float
    tags: frozenset[str] = frozenset()
    state: TaskState = PENDING
    reason: str | None = None
    exit_code: int | None = None
    history: tuple[TaskState, ...] = (PENDING,)
    printed: Printed = ()
    """Pieces of one stream that follow one another are one."""
    progress: Progress | None = None
    is_cancel_asked: bool = False
    is_cleared: bool = False
    is_imported: bool = False
    rerun_of: str | None = None
    rerun_as: str | None = None

    @property
    def is_live(self) -> bool:
        return self.state in (PENDING, RUNNING)

    def moved(self, state: TaskState, reason: str | None = None, code: int | None = None) -> Known:
        """The task in its next state."""
        assert (self.state, state) in LEGAL
        return replace(
            self, state=state, reason=reason, exit_code=code, history=(*self.history, state)
        )

    def with_printed(self, kind: OutputKind, data: bytes) -> Known:
        return replace(self, printed=joined([*self.printed, (kind, data)]))

    def says(self, word: str) -> bool:
        """Whether it has the word in its name, its source or its output."""
        texts = [self.name, self.source]
        for kind in STREAM_KINDS:
            printed = b"".join(data for each, data in self.printed if each is kind)
            texts.append(printed.decode("utf-8", "replace"))
        texts += [data.decode() for kind, data in self.printed if kind not in STREAM_KINDS]
        return any(word in re.findall(r"[^\W_]+", text.lower()) for text in texts)


def joined(pieces: Sequence[tuple[OutputKind, bytes]]) -> Printed:
    """Pieces of one stream that follow one another made one, and empty ones left out."""
    done: list[tuple[OutputKind, bytes]] = []
    for kind, data in pieces:
        if kind in STREAM_KINDS and done and done[-1][0] is kind:
            done[-1] = (kind, done[-1][1] + data)
        elif data or kind not in STREAM_KINDS:
            done.append((kind, data))
    return tuple(done)


@dataclass
class Session:
    """One kernel process, and the supervisor that it may have started."""

    id: str
    notebook: str
    path: str
    kernel_uuid: str
    is_alive: bool = True
    end_reason: str | None = None
    supervisor: bool = False
    """Whether the store takes one for its supervisor."""
    is_supervisor_alive: bool = False
    supervised: set[str] = field(default_factory=set)
    """The ids of the tasks that this supervisor has claimed."""
    place: int = 0
    """Which of all sessions it is, in the order in which they began."""
    has_path: bool = True
    """Whether later sessions at its path belong to its notebook."""


@dataclass
class Notebook:
    """What successive sessions share."""

    path: str
    last_number: int = 0


class Ambiguous(Exception):
    """Several tasks answer to a reference."""


class Model:
    """What a state directory must hold."""

    def __init__(self) -> None:
        self.tasks: dict[str, Known] = {}
        """Those in the store itself."""
        self.archives: dict[str, dict[str, Known]] = {}
        """Those in each month's archive. The store's own goes before its copy there."""
        self.sessions: dict[str, Session] = {}
        self.notebooks: dict[str, Notebook] = {}
        """By uid, in the order in which they were made."""

    def copy(self) -> Model:
        return deepcopy(self)

    # Looking.

    def everything(self) -> dict[str, Known]:
        """Each task once, wherever it is."""
        archived = {each.id: each for there in self.archives.values() for each in there.values()}
        return {**archived, **self.tasks}

    def of_notebook(self, notebook: str | None) -> list[Known]:
        """The tasks of a notebook in the store, by number."""
        return _of_notebook(self.tasks, notebook)

    def live(self) -> list[Known]:
        return [task for task in self.tasks.values() if task.is_live]

    def notebook_of(self, path: str, kernel_uuid: str) -> str | None:
        """The notebook of a session: the kernel's, else the one at this path."""
        for is_same in (
            lambda each: each.kernel_uuid == kernel_uuid,
            lambda each: each.path == path and each.has_path,
        ):
            for session in sorted(self.sessions.values(), key=lambda each: -each.place):
                if is_same(session):
                    return session.notebook
        used = {session.notebook for session in self.sessions.values()}
        left = [uid for uid, each in self.notebooks.items() if each.path == path]
        return next((uid for uid in reversed(left) if uid not in used), None)

    def meant(self, notebook: str | None, text: str) -> str | None:
        """The id of the task that a person means who types this in a notebook.

        Raises `Ambiguous`. The store goes before the archives, but a number before all else.
        """
        archives = [self.archives[month] for month in sorted(self.archives)[::-1]]
        if text.isdecimal():
            for place in (self.tasks, *archives):
                for task in _of_notebook(place, notebook):
                    if task.number == int(text):
                        return task.id
        if text in self.tasks:
            return text
        own = self.of_notebook(notebook)
        if re.fullmatch(r"-[0-9]*[1-9][0-9]*", text):
            back = int(text[1:])
            return own[-back].id if back <= len(own) else None
        found = _called(own, text)
        for place in archives if found is None and not text.startswith("-") else ():
            found = text if text in place else _called(_of_notebook(place, notebook), text)
            if found is not None:
                break
        if found not in (None, text):
            self._refuse_several(notebook, text, found)
        return found

    def _refuse_several(self, notebook: str | None, text: str, found: str) -> None:
        """An id that begins as the found one may be in an archive, too."""
        places = (self.tasks, *self.archives.values())
        begun = {
            task.id: task
            for place in places
            for task in _of_notebook(place, notebook)
            if task.id.startswith(text)
        }
        if len(begun) > 1 and found in begun and begun[found].name != text:
            raise Ambiguous

    def to_resume(self, notebook: str) -> list[str]:
        """The interrupted tasks that nobody has run again."""
        return [
            task.id
            for task in self.of_notebook(notebook)
            if task.state is INTERRUPTED and not task.is_imported and task.rerun_as is None
        ]

    # Changes.

    def change(self, task_id: str, change: Callable[[Known], Known]) -> None:
        """Change a task in the store."""
        self.tasks[task_id] = change(self.tasks[task_id])

    def begin(self, session: Session) -> None:
        """A session begins, in its notebook."""
        self.notebooks.setdefault(session.notebook, Notebook(session.path)).path = session.path
        self.sessions[session.id] = session

    def launch(self, task: Known, rerun_of: str | None = None) -> None:
        """A task is recorded. One that is run again knows by which."""
        self.tasks[task.id] = task
        self.notebooks[task.notebook].last_number = task.number
        if rerun_of in self.tasks:
            self.change(rerun_of, lambda each: replace(each, rerun_as=task.id))

    def interrupt(self, reason: str, which: Callable[[Known], bool]) -> None:
        for task in [task for task in self.live() if which(task)]:
            self.tasks[task.id] = task.moved(INTERRUPTED, reason)

    def cancel_waiting(self, session: Session) -> None:
        """What waits for a supervisor that there is not is cancelled by whoever looks."""
        for task in [task for task in self.live() if _waiting_in(session)(task)]:
            if task.is_cancel_asked:
                self.tasks[task.id] = task.moved(CANCELLED, "cancelled")

    def reconcile(self) -> None:
        """Of all that is gone it is found out that it is gone."""
        for session in self.sessions.values():
            if not session.is_alive and session.end_reason is None:
                session.end_reason = "kernel died"
                self.interrupt("kernel died", _in_threads_of(session))
        for session in self.sessions.values():
            if session.supervisor and not session.is_supervisor_alive:
                session.supervisor = False
                self.interrupt("supervisor died", _supervised_in(session))
                session.supervised.clear()
        for session in self.sessions.values():
            if not session.supervisor:
                self.cancel_waiting(session)
            if not session.supervisor and session.end_reason is not None:
                self.interrupt(session.end_reason, _waiting_in(session))

    def end_session(self, session: Session, reason: str) -> None:
        """A kernel says that it ends."""
        self.interrupt(reason, _in_threads_of(session))
        session.end_reason, session.is_alive = reason, False

    def archive(self, ids: Sequence[str], month_of: Callable[[Known], str]) -> None:
        for task_id in ids:
            task = self.tasks.pop(task_id)
            self.archives.setdefault(month_of(task), {})[task_id] = task

    def unarchive(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            for there in self.archives.values():
                if task_id in there:
                    self.tasks.setdefault(task_id, there.pop(task_id))

    def delete(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            for place in (self.tasks, *self.archives.values()):
                place.pop(task_id, None)

    def delete_session(self, session: Session) -> None:
        ids = [task.id for task in self.everything().values() if task.session == session.id]
        self.delete(ids)
        if session.end_reason is not None:
            del self.sessions[session.id]

    def restore(self, backup: Model) -> None:
        """The tasks of a backup take the place of those in the store. Nothing else goes back."""
        self.tasks = {task.id: restored(task) for task in backup.tasks.values()}
        for session in backup.sessions.values():
            # One that was deleted comes back as it was, but its processes do not.
            self.sessions.setdefault(session.id, without_processes(session))

    def take_in(self, exported: Model) -> list[str]:
        """Tasks are imported that were exported from here. Returns the ids of the new ones."""
        there = self.everything()
        new = [imported(task) for task in exported.tasks.values() if task.id not in there]
        for task in new:
            self.tasks[task.id] = task
            if task.session not in self.sessions:
                self._take_in_session(exported.sessions[task.session])
        return [task.id for task in new]

    def _is_own(self, session: Session) -> bool:
        """Whether a session has a task in the store that was not imported, or none."""
        tasks = [task for task in self.tasks.values() if task.session == session.id]
        return not all(task.is_imported for task in tasks) or not tasks

    def _take_in_session(self, session: Session) -> None:
        others = (each for each in self.sessions.values() if each.notebook != session.notebook)
        is_taken = any(
            each.path == session.path and each.has_path and self._is_own(each) for each in others
        )
        self.sessions[session.id] = replace(
            without_processes(session),
            end_reason=session.end_reason or "was active when it was exported",
            has_path=session.has_path and not is_taken,
        )


def without_processes(session: Session) -> Session:
    """A session as it comes back from a file."""
    return replace(
        session, is_alive=False, supervisor=False, is_supervisor_alive=False, supervised=set()
    )


def restored(task: Known) -> Known:
    """A task as a restore leaves it: nobody knows what has become of one that ran."""
    return task.moved(INTERRUPTED, RESTORED) if task.is_live else task


def imported(task: Known) -> Known:
    """A task as an import brings it: it does not run here, and nothing here has run it again."""
    ended = task.moved(INTERRUPTED, EXPORTED) if task.is_live else task
    return replace(ended, is_imported=True, rerun_as=None)


def _of_notebook(tasks: dict[str, Known], notebook: str | None) -> list[Known]:
    own = (task for task in tasks.values() if task.notebook == notebook)
    return sorted(own, key=lambda task: task.number)


def _called(tasks: Sequence[Known], text: str) -> str | None:
    """The latest task of this name, else the only one whose id begins so."""
    named = [task.id for task in tasks if task.name == text and text]
    if named or not text or re.search(r"-[0-9]+$", text):
        return named[-1] if named else None
    begun = [task.id for task in tasks if task.id.startswith(text)]
    if len(begun) > 1:
        raise Ambiguous
    return begun[0] if begun else None


def _in_threads_of(session: Session) -> Callable[[Known], bool]:
    return lambda each: each.session == session.id and each.runner == "thread"


def _supervised_in(session: Session) -> Callable[[Known], bool]:
    return lambda each: each.id in session.supervised


def _waiting_in(session: Session) -> Callable[[Known], bool]:
    return lambda each: (
        each.session == session.id and each.runner == "process" and each.state is PENDING
    )
