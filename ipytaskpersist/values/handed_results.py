"""Results of tasks as arguments of later ones: each is loaded where the later one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.payloads import Payloads


@dataclass(frozen=True)
class ResultOf:
    """Stands for the value of another task, as an argument or in a list that is one."""

    task_id: str


# Without slots, so that a message can name the argument that cannot be pickled.
@dataclass(frozen=True)
class CallWithResults:
    """A call of which some arguments are the values of other tasks."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    named: Mapping[str, Any]

    def with_values(self, value_of: Callable[[str], Any]) -> Callable[[], Any]:
        """Return the call with the values that `value_of` returns for the ids of tasks."""
        value = cache(value_of)

        def given(argument: Any) -> Any:
            if isinstance(argument, ResultOf):
                return value(argument.task_id)
            return [*map(given, argument)] if _has_results(argument) else argument

        named = {name: given(argument) for name, argument in self.named.items()}
        return partial(self.function, *map(given, self.arguments), **named)


Call = Callable[[], Any] | CallWithResults
"""What a task calls."""


def _has_results(argument: Any) -> bool:
    return type(argument) is list and any(type(each) is ResultOf for each in argument)


def each_argument(arguments: Sequence[Any], named: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the arguments, and in place of each list what is in it."""
    for argument in (*arguments, *named.values()):
        yield from argument if type(argument) is list else (argument,)


def completed(store: TaskStore, task_id: str) -> TaskRecord:
    """Return a task whose value is to be handed on: the last try of one that was tried again.

    Raises `ResultUnavailable` if there is none, because it was deleted or has not completed: it
    completes before a task that waits for it begins, but not before that is run again.
    """
    task = store.tasks.by_id(task_id)
    if task is None:
        raise ResultUnavailable(
            f"the value of task {task_id} cannot be handed on: the task was deleted or archived; "
            "launch both again"
        )
    task = store.tasks.last_try(task)
    if task.state is not TaskState.COMPLETED:
        raise ResultUnavailable(
            f"task {task.label} is {task.state.value}, so it has no value to hand on; launch this "
            "task again with one that completes"
        )
    return task


def load(
    store: TaskStore, payloads: Payloads, namespace: dict[str, Any] | None, task_id: str
) -> Any:
    """Return the value of a completed task. Raises `ResultUnavailable`."""
    task = completed(store, task_id)
    kept = store.results.get(task.key)
    return None if kept is None else payloads.load(task, kept, namespace)
