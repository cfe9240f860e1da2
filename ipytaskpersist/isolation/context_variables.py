"""Context variables from cell to cell.

A value set in a foreground cell, such as a decimal precision or a numpy print option, applies to
later cells. So a task begins with the foreground's values at its launch. Its own values apply to
the foreground from the next cell on, unless the foreground has changed them meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from ipytaskpersist.isolation import process_state
from ipytaskpersist.running.running_task import active_task, redirects

T = TypeVar("T")
_UNSET = object()
_cell: ContextVar[object] = ContextVar("ipytaskpersist_cell", default=None)
"""The foreground cell to which the calling context belongs."""
OWN: frozenset[ContextVar[Any]] = frozenset((active_task.variable, _cell, *process_state.CARRIED))


@dataclass(frozen=True, slots=True)
class _Setting:
    """A variable's value set by an ended task."""

    value: Any
    before: Any
    """The foreground's value when the task was launched."""


class Contexts:
    """The context variables of one notebook's tasks."""

    def __init__(self) -> None:
        self._set: dict[ContextVar[Any], _Setting] = {}
        """Values not yet in the foreground's own context."""
        self._delivered: dict[ContextVar[Any], _Setting] = {}
        """Values with which the running foreground cell began."""
        self._last: dict[ContextVar[Any], _Setting] = {}
        """Values last passed to the foreground: changes by tasks, not its own."""
        self._running_cell: object = None

    def for_task(self) -> Context:
        """Create the context of a task that is launched now, from the calling context."""
        context = copy_context()
        for variable in OWN:
            context.run(variable.set, {} if variable is redirects else None)
        for variable, setting in list(self._set.items()):
            if self._is_to_hold(variable, setting, context.get(variable, _UNSET)):
                context.run(variable.set, setting.value)
        context.run(process_state.arguments.set, list(sys.argv))
        return context

    def keep(self, foreground: Context, ended: Context) -> None:
        """Keep the values that a task has set. `foreground` is the context of its launch."""
        for variable, value in ended.items():
            before = foreground.get(variable, _UNSET)
            if variable not in OWN and value is not before:
                self._set[variable] = _Setting(value, before)

    def _is_to_hold(self, variable: ContextVar[Any], setting: _Setting, current: Any) -> bool:
        """Whether the foreground's value, `current`, is unchanged since the task's launch."""
        last = self._last.get(variable)
        return current is setting.before or (
            last is not None and current is last.value and setting.before is last.before
        )

    def before_cell(self, *_event: object) -> None:
        """Apply the tasks' values to the calling context, because a foreground cell begins."""
        self._running_cell = object()
        _cell.set(self._running_cell)
        self._delivered = {}
        self._deliver()

    def change(self, call: Callable[[], T]) -> T:
        """Call a function at a cell's beginning. Its values apply to that cell and later ones."""
        context = copy_context()
        value = context.run(call)
        self.keep(copy_context(), context)
        self._deliver()
        return value

    def _deliver(self) -> None:
        while self._set:
            variable, setting = self._set.popitem()
            if self._is_to_hold(variable, setting, variable.get(_UNSET)):
                variable.set(setting.value)
                self._last[variable] = self._delivered[variable] = setting

    def after_cell(self, *_event: object) -> None:
        """Note the end of a foreground cell.

        A cell that awaits runs in its own context, which is now gone. The values with which it
        began are set again for the next cell.
        """
        if _cell.get() is not self._running_cell:
            self._set = self._delivered | self._set
        self._delivered = {}
