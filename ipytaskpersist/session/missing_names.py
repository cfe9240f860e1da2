"""Find the names that a task's source needs and this kernel lacks, and the cells that make them."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.cells import variables
from ipytaskpersist.store.task_store import TaskStore

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

HEADER = "%%background"
SEARCHED = 1000
"""How many of the latest cells with a background task are searched for the task's own."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a task would miss if it ran in this kernel now."""

    names: Sequence[str] = ()
    cells: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """The cells that made them, by execution count, each with what it made."""

    def __bool__(self) -> bool:
        return bool(self.names)

    def in_words(self, task: TaskRecord) -> str:
        """Return what to run first, and why: ``run cell [2] first: it makes time and plt, …``."""
        why = f"task {task.label} uses, and this kernel does not have"
        unknown = [n for n in self.names if not any(n in made for made in self.cells.values())]
        makes = [f"{_listed(made)} in [{count}]" for count, made in self.cells.items()]
        if len(self.cells) == 1 and not unknown:
            ((count, made),) = self.cells.items()
            return f"run cell [{count}] first: it makes {_listed(made)}, which {why}"
        if not self.cells:
            return f"run what makes {_listed(unknown)} first, which {why}"
        rest = [f"{_listed(unknown)} elsewhere"] if unknown else []
        return f"run the cells that make {_listed([*makes, *rest])} first, which {why}"


def _listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def missing(shell: InteractiveShell, store: TaskStore, task: TaskRecord) -> Missing:
    """Return what a thread task would miss, and which cells made it."""
    tree = _tree(shell, task.source)
    names = [] if tree is None else [n for n in variables.needed(tree) if not _is_there(shell, n)]
    if not names:
        return Missing()
    left, cells = set(names), dict[int, list[str]]()
    for count, source in _sources(shell, store, task):
        made_there = _made(shell, source, left)
        if made_there:
            cells.setdefault(count, []).extend(n for n in names if n in made_there)
            left -= made_there
        if not left:
            break
    return Missing(names, dict(sorted(cells.items())))


def _is_there(shell: InteractiveShell, name: str) -> bool:
    return name in shell.user_ns or hasattr(builtins, name)


def _tree(shell: InteractiveShell, source: str) -> ast.Module | None:
    try:
        tree: ast.Module = ast.parse(shell.transform_cell(source))
    except (SyntaxError, ValueError):
        return None
    return tree


def _made(shell: InteractiveShell, source: str, names: set[str]) -> set[str]:
    if not any(name in source for name in names):
        return set()  # the usual case, without parsing
    if source.startswith(HEADER):
        source = source.partition("\n")[2]
    tree = _tree(shell, source)
    return set() if tree is None else names & set(variables.assigned(tree))


def _sources(
    shell: InteractiveShell, store: TaskStore, task: TaskRecord
) -> Iterator[tuple[int, str]]:
    """Yield the cells that may have made something, each with its execution count.

    First IPython's history of the task's session, back from the task, then what ran after it; then
    the sources of the session's tasks, for a front end without a history.
    """
    count = task.execution_count or 0
    cells = _of_history(shell, task)
    yield from reversed([cell for cell in cells if cell[0] < count])
    yield from (cell for cell in cells if cell[0] > count)
    for other in reversed(store.tasks.of_session(task.session)):
        if other.id != task.id and other.kind == "python":
            yield other.execution_count or 0, other.source


def _of_history(shell: InteractiveShell, task: TaskRecord) -> list[tuple[int, str]]:
    """Return the cells of the session that launched a task; none if it is not in the history."""
    history: Any = shell.history_manager
    if history is None or not getattr(history, "enabled", False):
        return []
    with suppress(Exception):  # the history is another program's file
        session = _session_of(lambda: history.search(f"*{HEADER[2:]}*", n=SEARCHED), task)
        if session is not None:
            return [(line, source) for _session, line, source in history.get_range(session)]
    return []


def _session_of(
    search: Callable[[], Iterable[tuple[int, int, str]]], task: TaskRecord
) -> int | None:
    """Return the number of the history's latest session with the cell that launched a task."""
    own = task.source.strip()
    found = [
        session
        for session, line, source in search()
        if line == task.execution_count and own in source
    ]
    return found[-1] if found else None
