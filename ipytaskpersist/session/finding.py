"""Find a task by what a user types to name it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import LIVE_STATES, RESTORED, SessionRecord, TaskRecord
from ipytaskpersist.errors import AmbiguousReference, InvalidRequest, TaskNotFound
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.runners import liveness
from ipytaskpersist.session import names_of_words
from ipytaskpersist.session.own_session import OwnSession
from ipytaskpersist.session.runners import Runners
from ipytaskpersist.store.sessions import SHORT_CHARACTERS
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

SUGGESTIONS = 5
NUMBER = re.compile(r"#?(\d{1,15})", re.ASCII)
FULL_ID = re.compile(r"-\d+$", re.ASCII)
TAG = re.compile(r"(?!-)[^\s,]{1,64}")


def find(
    store: TaskStore, notebook_key: int | None, reference: str | int | None, *, live: bool = False
) -> TaskRecord:
    """Return the task for a number, an id, a unique id prefix, a name, ``-1`` …, or the latest.

    None means the latest. Only a full id reaches another notebook's task. With `live`, a name means
    a live task rather than a later one that has ended. Raise `TaskNotFound` or
    `AmbiguousReference`.
    """
    text = "-1" if reference is None else str(reference).strip()
    found = store.open().tasks.by_id(text) if store.exists else None
    if found is None and store.exists and notebook_key is not None:
        found = _find_here(store, notebook_key, text, live=live)
    if found is None:
        raise _not_found(store, notebook_key, reference)
    return found


def find_archived(
    archive: TaskStore, notebook_key: int | None, reference: str | int | None
) -> TaskRecord | None:
    """Do the same in an archive, which has no latest task and does not count back."""
    text = "" if reference is None else str(reference).strip()
    if not text or text.startswith("-"):
        return None
    found = archive.tasks.by_id(text)
    if found is None and notebook_key is not None:
        found = _find_here(archive, notebook_key, text)
    return found


def find_session(store: TaskStore, text: str) -> SessionRecord:
    """Return the session with this id or unique id prefix. Raise `InvalidRequest`."""
    found = store.open().sessions.find(text) if store.exists and text else []
    exact = [session for session in found if session.id == text]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise _several_sessions(store, text, found)
    recent = store.sessions.select(None, SUGGESTIONS) if store.exists else []
    if not recent:
        raise InvalidRequest(f"no session '{text}'; there is none yet")
    known = ", ".join(store.sessions.short(session.id) for session in recent)
    raise InvalidRequest(f"no session '{text}'; the most recent are {known}")


def _several_sessions(
    store: TaskStore, text: str, found: Sequence[SessionRecord]
) -> AmbiguousReference:
    ids = ", ".join(store.sessions.short(session.id) for session in found[-SUGGESTIONS:])
    return AmbiguousReference(
        f"'{text}' is the beginning of {len(found)} sessions' ids ({ids}); type more of it"
    )


def session_meant(store: TaskStore, reference: str | None) -> SessionRecord | None:
    """Return the session whose id begins so, if the text is long enough to mean a session.

    A task's id, which begins like its session's, means the task. Raise `AmbiguousReference`.
    """
    if reference is None or len(reference) < SHORT_CHARACTERS or not store.exists:
        return None
    if store.open().tasks.by_id(reference) is not None:
        return None
    found = store.sessions.find(reference)
    return find_session(store, reference) if found else None


def as_number(reference: str | int | None) -> int | None:
    """Return the number that was typed; None for anything else."""
    text = str(reference).strip()
    found = NUMBER.fullmatch(text)
    return int(found[1]) if found else None


def _find_here(
    store: TaskStore, notebook_key: int, text: str, *, live: bool = False
) -> TaskRecord | None:
    number = as_number(text)
    if number is not None:
        by_number = store.tasks.by_number(notebook_key, number)
        if by_number is not None:
            return by_number  # numeric names and ids count only without such a number
    if re.fullmatch(r"-\d{1,9}", text, re.ASCII) and int(text) < 0:
        return store.tasks.from_end(notebook_key, -int(text))
    lives = store.tasks.live_of_name(notebook_key, text) if live and text else []
    named = store.tasks.by_name(notebook_key, text) if text else None
    return next(iter(lives), named) or _by_prefix(store, notebook_key, text)


def _by_prefix(store: TaskStore, notebook_key: int, text: str) -> TaskRecord | None:
    if not text or FULL_ID.search(text):
        return None  # a full id means only that task
    found = store.tasks.by_id_prefix(notebook_key, text)
    refuse_several(found, text)
    return store.tasks.get(found[0].key) if found else None


def refuse_several(found: Sequence[TaskRecord], prefix: str) -> None:
    """Raise `AmbiguousReference` if the ids of several tasks begin so."""
    if len(found) > 1:
        ids = ", ".join(task.id for task in found[-SUGGESTIONS:])
        raise AmbiguousReference(
            f"'{prefix}' is the beginning of {len(found)} tasks' ids ({ids}); type more of it"
        )


def is_prefix(task: TaskRecord, reference: str | int | None) -> bool:
    """Return whether only the beginning of a task's id was typed, not its name or number."""
    text = "" if reference is None else str(reference).strip()
    return (
        bool(text)
        and task.id.startswith(text)
        and text not in (task.id, task.name)
        and (as_number(text) != task.number)
    )


def _not_found(
    store: TaskStore, notebook_key: int | None, reference: str | int | None
) -> TaskNotFound:
    latest = []
    if store.exists and notebook_key is not None:
        latest = store.tasks.select(Selection(notebook_key, limit=SUGGESTIONS))
    what = "no task" if reference is None else f"no task '{str(reference).strip()}'"
    if not latest:
        return TaskNotFound(
            f"{what} in this notebook, which has none yet; put %%background above a cell, "
            "or see every notebook's tasks with %bg_list --all"
        )
    names = ", ".join(f"{task.number} {legible(task.name)}".strip() for task in reversed(latest))
    count = {1: "the only one is", 2: "the two are"}.get(len(latest), "the last ones are")
    return TaskNotFound(f"{what} in this notebook; {count} {names}")


def check_name(name: object) -> None:
    """Raise `InvalidRequest` for a name by which the task would not be found."""
    if not isinstance(name, str):
        raise InvalidRequest(f"the name of a task is a text, not {name!r}")
    if re.fullmatch(r"-?\d+", name.strip(), re.ASCII):
        raise InvalidRequest(
            f"'{name}' cannot be a name: a number means the task that has it; add a letter"
        )


def check_tags(tags: Sequence[str]) -> None:
    """Raise `InvalidRequest` for a text that cannot be a tag."""
    for tag in tags:
        if not TAG.fullmatch(tag) or not tag.isprintable():
            raise InvalidRequest(
                f"{tag!r} cannot be a tag: a tag is one word of at most 64 characters, without "
                "commas, that does not begin with a dash"
            )


def deleted(task: TaskRecord) -> TaskNotFound:
    """Return the error for a task that was there a moment ago."""
    return TaskNotFound(f"task {task.label} has been deleted; %bg_list shows those that are left")


class TaskFinder:
    """Finds this notebook's tasks in the store and in its archives."""

    def __init__(
        self, store: TaskStore, archives: Archives, session: OwnSession, runners: Runners
    ) -> None:
        self._store = store
        self._archives = archives
        self._session = session
        self._runners = runners

    def find(self, reference: str | int | None = None, *, live: bool = False) -> TaskRecord:
        """Return the task for a number, an id, a unique id prefix, a name, ``-1`` …, or the latest.

        With `live`, a name means a live task rather than a later one that has ended. Raise
        `TaskNotFound` or `AmbiguousReference`. Only a full id reaches another notebook.
        """
        self._runners.reconcile()
        key = self._session.notebook_key()
        try:
            # An archived task's number takes precedence over an id that begins so.
            found = self._archived_number(key, reference) or find(
                self._store, key, reference, live=live
            )
        except TaskNotFound:
            archived = self._in_archives(
                lambda archive, there: find_archived(archive, there, reference)
            )
            if archived is None:
                raise
            found = archived
        if is_prefix(found, reference):
            self._refuse_two(found, str(reference).strip())
        return found

    def _refuse_two(self, found: TaskRecord, prefix: str) -> None:
        """Raise `AmbiguousReference` if another id in an archive begins so, too."""
        key = self._session.notebook_key()
        for archive in self._archives.all():
            there = None if key is None else self._archives.notebook_key(key, archive)
            if there is not None:
                others = self._archives.without_own(archive.tasks.by_id_prefix(there, prefix))
                both = {task.id: task for task in (*others, found)}
                refuse_several([*both.values()], prefix)

    def _archived_number(self, key: int | None, reference: str | int | None) -> TaskRecord | None:
        """Return the archived task of this number, if the store has none."""
        number = as_number(reference)
        if number is None or key is None or self._store.tasks.by_number(key, number) is not None:
            return None
        return self._in_archives(
            lambda archive, there: archive.tasks.by_number(-1 if there is None else there, number)
        )

    def _in_archives(
        self, find: Callable[[TaskStore, int | None], TaskRecord | None]
    ) -> TaskRecord | None:
        """Call `find` for each archive and this notebook's key there, latest archive first."""
        key = self._session.notebook_key()
        for archive in self._archives.all():
            there = None if key is None else self._archives.notebook_key(key, archive)
            found = find(archive, there)
            if found is not None:
                return found
        return None

    def store_of(self, task: TaskRecord) -> TaskStore:
        """Return the store that has a task: an archive, or the store itself."""
        return self._archives.store_of(task)

    def find_all(self, given: Sequence[str]) -> list[TaskRecord]:
        """Return the task for each reference, each once; the latest if there is none.

        A name of several words may be given word by word.
        """
        named = [self.find(reference) for reference in self.references(given)]
        return list({task.id: task for task in named or [self.find()]}.values())

    def find_first(self, words: Sequence[str]) -> tuple[TaskRecord, Sequence[str]]:
        """Return the task that the first words refer to, and the other words.

        The latest task if there are no words.
        """
        if not words:
            return self.find(), ()
        first = next(self._references(words))
        return self.find(" ".join(first)), words[len(first) :]

    def references(self, words: Sequence[str]) -> list[str]:
        """Return the references that the words are: a name may have several words.

        A word may be several references with commas between them, unless it is a name.
        """
        named = [" ".join(parts) for parts in self._references(words)]
        return [part for each in named for part in self._at_commas(each)]

    def _at_commas(self, reference: str) -> list[str]:
        if "," not in reference or self._is_task(reference):
            return [reference]
        return [part.strip() for part in reference.split(",") if part.strip()]

    def _references(self, words: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield the words of each reference: a name may have several."""
        names = self._names_of_words() if len(words) > 1 else ()
        return names_of_words.references(words, names, self._is_task)

    def _names_of_words(self) -> set[str]:
        key = self._session.notebook_key()
        if key is None or not self._store.exists:
            return set()
        names = self._store.open().tasks.names_of_words(key)
        for archive in self._archives.all():
            there = self._archives.notebook_key(key, archive)
            names |= set() if there is None else archive.tasks.names_of_words(there)
        return names

    def _is_task(self, reference: str) -> bool:
        try:
            return self.find(reference) is not None
        except TaskNotFound:
            return False
        except AmbiguousReference:
            return True

    def find_live(self, given: Sequence[str]) -> list[TaskRecord]:
        """Do the same for a verb that is about live tasks: a name means a live one.

        Report on stderr which task is meant if several live tasks have the name.
        """
        references = self.references(given)
        found = [self.find(each, live=True) for each in references] or [self.find()]
        for reference, task in zip(references, found, strict=False):
            if task.name == reference.strip() and not task.state.is_final:
                self._say_which(task)
        last = [task if task.archive else self._store.tasks.last_try(task) for task in found]
        return list({task.id: task for task in last}.values())

    def _say_which(self, task: TaskRecord) -> None:
        lives = self._store.tasks.live_of_name(task.notebook_key, task.name)
        others = [
            str(each.number)
            for each in reversed(lives)
            if each.id != task.id and not each.is_next_run
        ]
        if others:
            is_are = "is" if len(others) == 1 else "are"
            print(
                legible(
                    f"{len(lives)} tasks named {task.name!r} are live: the latest, {task.number}, "
                    f"is meant, and {', '.join(others)} {is_are} meant by number"
                ),
                file=sys.stderr,
            )

    def interrupted(self) -> list[TaskRecord]:
        """Return this notebook's interrupted tasks that have not been run again, oldest first."""
        self._runners.reconcile()
        key = self._session.notebook_key()
        return [] if key is None else self._store.tasks.interrupted(key)

    def resumable(self) -> list[TaskRecord]:
        """Return the tasks of `interrupted` that may be resumed automatically.

        A task that was run again before and whose kernel died again is left out: it may be what
        killed the kernel.
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
        """Return the interrupted tasks of which nothing can be running any more.

        The others, on another host or in another container, have only shown no sign of life for a
        while. Running them again automatically could run them twice at once.
        """
        return [
            task
            for task in tasks
            if task.declared_dead != "presumed" or liveness.is_proven(self._store, task)
        ]

    def select(self, selection: Selection) -> list[TaskRecord]:
        """Return the tasks of a selection, oldest first."""
        self._runners.reconcile()
        return self._store.tasks.select(selection) if self._store.exists else []

    def select_with_live(self, selection: Selection) -> list[TaskRecord]:
        """Return the tasks of a selection, oldest first; its limit leaves out none that live."""
        found = self.select(selection)
        states = [state for state in LIVE_STATES if state in (selection.states or LIVE_STATES)]
        if selection.limit is None or len(found) < selection.limit or not states:
            return found
        live = self._store.tasks.select(replace(selection, states=states, limit=None))
        shown = {task.id for task in found}
        return [*(task for task in live if task.id not in shown), *found]

    def select_archived(self, selection: Selection) -> list[TaskRecord]:
        """Return the archived tasks of a selection, oldest first."""
        return self._archives.select(selection) if self._store.exists else []

    def of_session(self, session: SessionRecord) -> list[TaskRecord]:
        """Return every task that a session launched, archived or not, oldest first."""
        archived = [
            task
            for archive in self._archives.all()
            for task in self._archives.without_own(archive.tasks.of_session(session.id))
        ]
        return sorted(
            [*archived, *self._store.tasks.of_session(session.id)], key=lambda task: task.number
        )

    def is_own(self, task: TaskRecord) -> bool:
        """Return whether the task belongs to this notebook."""
        key = self._session.notebook_key()
        if task.archive and key is not None:
            key = self._archives.notebook_key(key, self.store_of(task))
        return task.notebook_key == key

    def last_try(self, task: TaskRecord) -> TaskRecord:
        """Return the current record of a task, or that of its latest try."""
        now = self.refresh(task)
        return now if now.archive else self._store.tasks.last_try(now)

    def refresh(self, task: TaskRecord) -> TaskRecord:
        """Return the task's current record, even if it has been archived or has come back."""
        found = self.store_of(task).tasks.get(task.key)
        if found is None or found.id != task.id:
            found = self._store.tasks.by_id(task.id) or self._in_archives(
                lambda archive, _there: archive.tasks.by_id(task.id)
            )
        if found is None:
            raise deleted(task)
        return found
