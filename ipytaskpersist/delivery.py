"""Bring the variables that process tasks have left back into the notebook, between cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.active import is_own_command
from ipytaskpersist.errors import BackgroundError, InvalidRequest, ResultUnavailable
from ipytaskpersist.payload import Payloads
from ipytaskpersist.records import TaskRecord, TaskState
from ipytaskpersist.store import TaskStore


@dataclass(slots=True)
class Loaded:
    """What came of loading a task's variables."""

    names: list[str] = field(default_factory=list)
    """Those that are there now."""
    problems: dict[str, str] = field(default_factory=dict)
    """Those that are not, each with why."""

    def in_words(self, task: TaskRecord) -> str:
        """Which of a task's variables are in the notebook now, and which are not, in one line."""
        parts = [f"{name} is not ({why})" for name, why in self.problems.items()]
        if self.names:
            verb = "is" if len(self.names) == 1 else "are"
            parts.insert(0, f"{', '.join(self.names)} {verb} in the notebook")
        return f"task {task.label}: " + ("; ".join(parts) or "it has left no variables")


def load(
    store: TaskStore,
    payloads: Payloads,
    task: TaskRecord,
    namespace: dict[str, Any],
    names: Sequence[str] = (),
) -> Loaded:
    """Put a task's variables into a namespace: all, or those named.

    Raises `InvalidRequest` for a name that the task has not left.
    """
    kept = {result.name: result for result in store.results.variables(task.key)}
    for name in names:
        if name not in kept:
            there = ", ".join(kept) or "none"
            raise InvalidRequest(f"task {task.label} has left no variable '{name}'; there: {there}")
    loaded = Loaded()
    wanted = [kept[name] for name in names or kept]
    for name, value in payloads.load_all(task, wanted, namespace).items():
        if isinstance(value, ResultUnavailable):
            loaded.problems[name] = kept[name].problem or str(value)
        else:
            namespace[name] = value
            loaded.names.append(name)
    return loaded


class Delivery:
    """The process tasks of this session whose variables are to come back by themselves."""

    def __init__(
        self,
        store: TaskStore,
        load_into_notebook: Callable[[TaskRecord], Loaded],
        say: Callable[[TaskRecord, Loaded], None],
    ) -> None:
        self._store = store
        self._load = load_into_notebook
        self._say = say
        self._expected: set[int] = set()
        self._unsaid: list[tuple[TaskRecord, Loaded]] = []

    def expect(self, task: TaskRecord) -> None:
        """Bring back what this task leaves, once it has completed."""
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
        if task is not None and not task.state.is_final:
            return
        self._expected.discard(key)
        if task is not None and task.state is TaskState.COMPLETED:
            loaded = self._load(task)
            if loaded.names or loaded.problems:
                self._unsaid.append((task, loaded))
