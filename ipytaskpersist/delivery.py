"""Bring the variables that process tasks have left back into the notebook, between cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from ipytaskpersist import librarysettings
from ipytaskpersist.active import is_own_command
from ipytaskpersist.errors import BackgroundError, InvalidRequest, ResultUnavailable
from ipytaskpersist.librarysettings import Left
from ipytaskpersist.mishaps import describe
from ipytaskpersist.payload import SETTINGS, Payloads
from ipytaskpersist.records import TaskRecord, TaskState
from ipytaskpersist.store import TaskStore

SHOWN_AT_MOST = 4
"""So many settings are named, and the rest counted: a theme of seaborn's sets thirty."""


@dataclass(slots=True)
class Loaded:
    """What came of loading a task's variables."""

    names: list[str] = field(default_factory=list)
    """Those that are there now."""
    settings: list[str] = field(default_factory=list)
    """The settings of libraries that hold now."""
    problems: dict[str, str] = field(default_factory=dict)
    """What is not there, each with why."""

    modules: list[str] = field(default_factory=list)
    """Those of `names` that are modules."""

    def without(self, imported: Set[str]) -> Loaded:
        """The same without what is there because it was imported, which is not worth a word."""
        quiet = {*imported, *self.modules}
        return replace(self, names=[name for name in self.names if name not in quiet])

    def __bool__(self) -> bool:
        return bool(self.names or self.settings or self.problems)

    def in_words(self, task: TaskRecord) -> str:
        """What of a task is in the notebook now, and what is not, in one line."""
        which = f"task {task.label}"
        if task.state is not TaskState.COMPLETED:
            which += f", which {_VERBS.get(task.state, 'was ' + task.state.value)}"
        parts = [
            f"{', '.join(names)} {_are(names)} not ({why})"
            for why, names in _by_reason(self.problems).items()
        ]
        if self.settings:
            parts.insert(0, f"{_some(self.settings)} {_are(self.settings)} set")
        if self.names:
            parts.insert(0, f"{', '.join(self.names)} {_are(self.names)} in the notebook")
        return f"{which}: " + ("; ".join(parts) or "it has left no variables")


_VERBS = {TaskState.FAILED: "failed"}


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _by_reason(problems: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, why in problems.items():
        names.setdefault(why, []).append(name)
    return names


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_AT_MOST
    return ", ".join(names[:SHOWN_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def load(
    store: TaskStore,
    payloads: Payloads,
    task: TaskRecord,
    namespace: dict[str, Any],
    names: Sequence[str] = (),
) -> Loaded:
    """Put what a task has left into a namespace: all, settings included, or the variables named.

    Raises `InvalidRequest` for a name that the task has not left.
    """
    kept = {result.name: result for result in store.results.variables(task.key)}
    for name in names:
        if name not in kept:
            there = ", ".join(kept) or "none"
            raise InvalidRequest(f"task {task.label} has left no variable '{name}'; there: {there}")
    loaded = Loaded()
    left = Left({}, []) if names else _left(store, payloads, task, loaded)
    # Before the variables, which may need a path from which the task has imported.
    path = librarysettings.bring(
        {name: left.changes[name] for name in left.changes if name == "sys"}
    )
    wanted = [kept[name] for name in names or kept]
    for name, value in payloads.load_all(task, wanted, namespace).items():
        if isinstance(value, ResultUnavailable):
            loaded.problems[name] = kept[name].problem or str(value)
        else:
            namespace[name] = value
            loaded.names.append(name)
            if issubclass(type(value), ModuleType):
                loaded.modules.append(name)
    submodules = librarysettings.bring_submodules(left.submodules)
    # After them: what a library sets when it is imported is the same here by now, and not told.
    brought = librarysettings.bring(left.changes)
    loaded.settings += brought.names
    loaded.problems |= path.problems | submodules.problems | brought.problems
    return loaded


def _left(store: TaskStore, payloads: Payloads, task: TaskRecord, loaded: Loaded) -> Left:
    kept = store.results.get(task.key, SETTINGS)
    if kept is None:
        return Left({}, [])
    try:
        return Left(*payloads.load(task, kept))
    except ResultUnavailable as error:
        loaded.problems["what it set in libraries"] = kept.problem or str(error)
        return Left({}, [])


class Delivery:
    """The process tasks of this session whose variables are to come back by themselves."""

    def __init__(
        self,
        store: TaskStore,
        load_into_notebook: Callable[[TaskRecord], Loaded],
        say: Callable[[TaskRecord, Loaded], None],
        to_assign: Callable[[TaskRecord], Sequence[str]],
        imports: Callable[[TaskRecord], Set[str]],
    ) -> None:
        self._store = store
        self._load = load_into_notebook
        self._to_assign = to_assign
        """Gives the variables that a task's cell assigns."""
        self._imports = imports
        """Gives the names that a task's cell imports."""
        self._say = say
        self._expected: set[int] = set()
        self._unsaid: list[tuple[TaskRecord, Loaded]] = []

    def expect(self, task: TaskRecord) -> None:
        """Bring back what this task leaves, once it has ended."""
        self._expected.add(task.key)

    def before_cell(self, info: Any = None) -> None:
        """A cell is about to run: bring what has become ready, and say so.

        Not in the output of one of this package's commands, which shows what it was asked for and
        nothing else.
        """
        for key in sorted(self._expected):
            try:
                self._deliver(key)
            except BackgroundError:
                return  # the store cannot be read just now: before the next cell, then
        if self._unsaid and not is_own_command(str(getattr(info, "raw_cell", ""))):
            unsaid, self._unsaid = self._unsaid, []
            for task, loaded in unsaid:
                self._say(task, loaded)

    def _deliver(self, key: int) -> None:
        task = self._store.tasks.get(key)
        if task is not None and (not task.state.is_final or task.declared_dead == "presumed"):
            return  # what was only presumed dead may go on
        self._expected.discard(key)
        if task is not None:
            loaded = self._loaded(task)
            if not loaded and task.state is not TaskState.COMPLETED:
                loaded.problems = dict.fromkeys(
                    self._missing(task), task.reason or "it left nothing"
                )
            worth_saying = loaded.without(self._imports(task))
            if worth_saying:
                self._unsaid.append((task, worth_saying))

    def _loaded(self, task: TaskRecord) -> Loaded:
        try:
            return self._load(task)
        except BackgroundError:
            raise
        except BaseException as error:  # in a hook of IPython it would end the kernel
            why = f"{describe(error)}; %bg_load {task.number} loads them"
            return Loaded(problems={"its variables": why})

    def _missing(self, task: TaskRecord) -> Sequence[str]:
        """What a task would have left, had its process not ended before it could.

        One that ended by an error of its cell has left what the cell had assigned.
        """
        is_by_error = task.exit_code == 1 and not (task.reason or "").startswith("exit status")
        imported = self._imports(task)
        return () if is_by_error else [n for n in self._to_assign(task) if n not in imported]
