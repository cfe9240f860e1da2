"""Context variables from cell to cell.

What a foreground cell sets, a decimal precision or a numpy print option, holds for the cells after
it. So a task begins with what holds in the foreground when it is launched, and with what earlier
tasks have set, as far as the foreground has not set it anew since.
"""

from __future__ import annotations

from contextvars import Context, ContextVar, copy_context
from typing import Any

from ipytaskpersist.active import active_task, redirects

OWN: frozenset[ContextVar[Any]] = frozenset((active_task, redirects))
_UNSET = object()


class Contexts:
    """The context variables of one notebook's tasks."""

    def __init__(self) -> None:
        self._set: dict[ContextVar[Any], tuple[Any, Any]] = {}
        """What ended tasks have set, each with the foreground's value when they began."""

    def for_task(self) -> Context:
        """The context of a task that is launched now, from the calling context."""
        context = copy_context()
        for variable in OWN:
            context.run(variable.set, None if variable is active_task else {})
        for variable, (value, before) in list(self._set.items()):
            if context.get(variable, _UNSET) is before:
                context.run(variable.set, value)
            else:
                del self._set[variable]
        return context

    def keep(self, foreground: Context, ended: Context) -> None:
        """Keep what a task has set. `foreground` is the context from which it was launched."""
        for variable, value in ended.items():
            before = foreground.get(variable, _UNSET)
            if variable not in OWN and value is not before:
                self._set[variable] = (value, before)
