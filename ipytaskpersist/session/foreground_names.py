"""Follow which variables the notebook itself assigns while its tasks run.

A cell's syntax tree says what it assigns, also if the value is the same again. The identities of
the values say what changed in other ways, as by `exec` or a thread.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ipytaskpersist.cells import variables

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


@dataclass(slots=True)
class _Since:
    """What has happened since a task was launched."""

    held: dict[str, int]
    """The `id` of each variable's value at the launch."""
    assigned: set[str] = field(default_factory=set)
    """The variables that cells have assigned since."""


class ForegroundNames:
    """The variables that the notebook has assigned since the launch of each expected task."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._since: dict[int, _Since] = {}

    def begin(self, key: int) -> None:
        """Follow the variables from now on, for a task that was just launched."""
        self._since[key] = _Since({name: id(each) for name, each in self._namespace().items()})

    def end(self, key: int, brought: Iterable[str]) -> None:
        """Note that a task's variables were brought, and forget the task.

        For later tasks this is no change by the notebook: they would have overwritten them.
        """
        self._since.pop(key, None)
        namespace = self._namespace()
        now = {name: id(namespace[name]) for name in brought if name in namespace}
        for other, since in self._since.items():
            if other > key:
                since.held |= now

    def after_cell(self, result: Any) -> None:
        """Note what a cell has assigned, unless it failed: then only what changed counts."""
        if not self._since or not getattr(result, "success", False):
            return
        source = str(getattr(result.info, "raw_cell", "") or "")
        try:
            tree = ast.parse(self._shell.transform_cell(source))
        except (SyntaxError, ValueError):
            return
        names = variables.assigned(tree)
        for since in self._since.values():
            since.assigned.update(names)

    def assigned(self, key: int) -> frozenset[str]:
        """Return the variables that have another value than at a task's launch, or the same again.

        A variable that is gone is none of them: bringing it overwrites nothing.
        """
        since = self._since.get(key)
        if since is None:
            return frozenset()
        return frozenset(
            name
            for name, value in self._namespace().items()
            if name in since.assigned or since.held.get(name) != id(value)
        )

    def _namespace(self) -> dict[str, Any]:
        return dict(self._shell.user_ns)
