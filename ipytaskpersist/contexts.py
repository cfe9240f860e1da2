"""Context variables from cell to cell.

What a foreground cell sets, a decimal precision or a numpy print option, holds for the cells after
it. So a task begins with what holds in the foreground when it is launched, and what it sets holds
in the foreground from the next cell on, as far as the foreground has not set it anew since.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from ipytaskpersist import ownstate
from ipytaskpersist.active import active_task, redirects

T = TypeVar("T")
_UNSET = object()
_cell: ContextVar[object] = ContextVar("ipytaskpersist_cell", default=None)
"""Which foreground cell the calling context belongs to."""
OWN: frozenset[ContextVar[Any]] = frozenset((active_task.variable, _cell, *ownstate.CARRIED))


@dataclass(frozen=True, slots=True)
class _Setting:
    """What an ended task has set a variable to."""

    value: Any
    before: Any
    """What the foreground had when the task was launched."""


class Contexts:
    """The context variables of one notebook's tasks."""

    def __init__(self) -> None:
        self._set: dict[ContextVar[Any], _Setting] = {}
        """What is not in the foreground's own context yet."""
        self._delivered: dict[ContextVar[Any], _Setting] = {}
        """What the foreground cell that runs began with."""
        self._last: dict[ContextVar[Any], _Setting] = {}
        """What the foreground was last given: a change of a task's, not of its own."""
        self._running_cell: object = None

    def for_task(self) -> Context:
        """The context of a task that is launched now, from the calling context."""
        context = copy_context()
        for variable in OWN:
            context.run(variable.set, {} if variable is redirects else None)
        for variable, setting in list(self._set.items()):
            if self._is_to_hold(variable, setting, context.get(variable, _UNSET)):
                context.run(variable.set, setting.value)
        context.run(ownstate.arguments.set, list(sys.argv))
        return context

    def keep(self, foreground: Context, ended: Context) -> None:
        """Keep what a task has set. `foreground` is the context from which it was launched."""
        for variable, value in ended.items():
            before = foreground.get(variable, _UNSET)
            if variable not in OWN and value is not before:
                self._set[variable] = _Setting(value, before)

    def _is_to_hold(self, variable: ContextVar[Any], setting: _Setting, current: Any) -> bool:
        """Whether the foreground, which has `current`, has set nothing since the task's launch."""
        last = self._last.get(variable)
        return current is setting.before or (
            last is not None and current is last.value and setting.before is last.before
        )

    def before_cell(self, *_event: object) -> None:
        """A foreground cell begins: let it find in the calling context what tasks have set."""
        self._running_cell = object()
        _cell.set(self._running_cell)
        self._delivered = {}
        self._deliver()

    def change(self, call: Callable[[], T]) -> T:
        """Call a function as a cell begins. What it sets holds in that cell and those after it."""
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
        """A foreground cell has ended.

        One that awaits has had a context of its own, which is gone: what it began with is to be set
        once more for the next one.
        """
        if _cell.get() is not self._running_cell:
            self._set = self._delivered | self._set
        self._delivered = {}
