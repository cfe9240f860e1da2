"""Which cells of a whole notebook are run: all, or those without which it cannot go on.

It goes on where an earlier run has ended, which it resumes or tries again. Cells are told by their
place among those that run and by their source. The saved notebook of the earlier run says which of
them have completed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from ipytaskpersist.cells import needed_cells
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.runners import notebook_content
from ipytaskpersist.runners.notebook_spec import NotebookRun

NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run of a notebook."""

    cells: Sequence[int]
    """The cells to run, in order, as places among those that a whole run runs."""
    said: str = ""
    """What a run does that goes on, in words; empty for a whole run."""


def number(place: int) -> str:
    """Return how a cell is named: as the kernel counts it, ``[1]`` for the first."""
    return f"[{place + 1}]"


def plan(run: NotebookRun, notebook: NotebookNode) -> Plan:
    """Decide what to run. Puts the outputs of the cells that are not run again into the notebook.

    The notebook has its parameters, and no outputs.
    """
    now = _cells(notebook)
    whole = Plan(range(len(now)))
    if not run.goes_on_from:
        return whole
    try:
        earlier = _cells(_earlier(run))
    except InvalidRequest as error:
        return Plan(whole.cells, f"runs all cells, because {error}")
    start = _first_to_run(now, earlier)
    changed = _changed(now, earlier, start)
    if start == 0:
        return Plan(whole.cells, "; ".join(filter(None, [_goes_on(start, len(now)), changed])))
    if not run.is_python:
        return Plan(
            whole.cells,
            f"runs all cells, because only of Python is it known what {number(start)} needs",
        )
    found = needed_cells.needed([cell.source for cell in now], start)
    again = list(found.cells)
    for place in set(range(start)).difference(again):
        notebook_content.keep(now[place], earlier[place])
    said = [_runs_again(again, found.names), _goes_on(start, len(now))]
    return Plan([*again, *range(start, len(now))], "; ".join(filter(None, [*said, changed])))


def _earlier(run: NotebookRun) -> NotebookNode:
    """Read the saved notebook to go on from. Raise `InvalidRequest` if there is none."""
    path = Path(run.goes_on_from)
    notebook = notebook_content.read(path)
    # With an output file of its own, a try that saved nothing leaves what was there before it.
    if run.tries and str(path) != run.resumes and notebook_content.task(notebook) not in run.tries:
        raise InvalidRequest(f"no earlier try has saved {path}")
    return notebook


def _cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [notebook.cells[place] for place in notebook_content.to_run(notebook)]


def _first_to_run(now: Sequence[NotebookNode], earlier: Sequence[NotebookNode]) -> int:
    """Return the first cell that has not completed, or has another source now."""
    for place, cell in enumerate(now):
        if place >= len(earlier) or cell.source != earlier[place].source:
            return place
        if notebook_content.state(earlier[place]) != notebook_content.COMPLETED:
            return place
    return len(now)


def _changed(now: Sequence[NotebookNode], earlier: Sequence[NotebookNode], start: int) -> str:
    """Say so if it goes on earlier than where the earlier run ended."""
    is_completed = start < min(len(now), len(earlier)) and (
        notebook_content.state(earlier[start]) == notebook_content.COMPLETED
    )
    return f"{number(start)} is not what it was in the earlier run" if is_completed else ""


def _runs_again(again: Iterable[int], names: Sequence[str]) -> str:
    numbers = " ".join(map(number, again))
    if not numbers:
        return "runs no earlier cell again"
    more = len(names) - NAMES_SHOWN
    shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    make = "makes" if numbers.count("[") == 1 else "make"
    return f"runs again {numbers}" + (f", which {make} {shown}" if names else "")


def _goes_on(start: int, count: int) -> str:
    return f"goes on at {number(start)}" if start < count else "all others had completed"
