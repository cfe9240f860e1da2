"""The cells of a notebook that is run as a whole: read, given parameters, compared, saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ipytaskpersist.errors import InvalidRequest

PARAMETERS = "parameters"
"""Tag of the cell with the usual values, as papermill has it."""
INJECTED = "injected-parameters"
"""Tag of the cell that assigns the given values, as papermill has it."""
SKIPPED = "skip-execution"
"""Tag of a cell that is not run, as nbclient has it."""
MARK = "ipytaskpersist"
"""Name in the metadata of a saved notebook and of its cells, for its task and what became of it."""
COMPLETED = "completed"
VERSION = 4


def read(path: Path) -> NotebookNode:
    """Read a notebook of whatever version. Raise `InvalidRequest` if the file is not one."""
    try:
        # As a text, because nbformat takes a path for JSON if it looks like it.
        notebook: NotebookNode = nbformat.reads(
            path.read_text(encoding="utf-8"), as_version=VERSION
        )
        nbformat.validate(notebook)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # nbformat raises what its parts raise
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InvalidRequest(f"{path} is not a notebook: {why}") from error
    return notebook


def save(notebook: NotebookNode, path: Path) -> None:
    """Save a notebook so that the file is complete at every moment. Raise `OSError`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def tags(cell: NotebookNode) -> Sequence[str]:
    """Return a cell's tags."""
    return cell.metadata.get("tags") or ()


def to_run(notebook: NotebookNode) -> list[int]:
    """Return the places of the cells that are run: code that is neither blank nor to be skipped.

    They are the cells that the kernel counts: the first is ``[1]``.
    """
    return [
        place
        for place, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and cell.source.strip() and SKIPPED not in tags(cell)
    ]


def assign(notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Put a cell that assigns these values behind the one tagged `PARAMETERS`, or before all.

    A cell that an earlier run has put there is replaced.
    """
    cells = notebook.cells
    cells[:] = [cell for cell in cells if not (parameters and INJECTED in tags(cell))]
    if not parameters:
        return
    lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())]
    cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": [INJECTED]})
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        del cell["id"]
    usual = [place for place, each in enumerate(cells) if PARAMETERS in tags(each)]
    cells.insert(usual[0] + 1 if usual else 0, cell)


def forget_outputs(notebook: NotebookNode) -> None:
    """Remove what an earlier execution has left in the cells."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop(MARK, None)
            cell.metadata.pop("execution", None)


def task(notebook: NotebookNode) -> str:
    """Return the id of the task that has saved a notebook; empty if it is not known."""
    mark = notebook.metadata.get(MARK)
    return str(mark.get("task", "")) if isinstance(mark, Mapping) else ""


def set_task(notebook: NotebookNode, task_id: str) -> None:
    """Note which task saves a notebook."""
    notebook.metadata[MARK] = {"task": task_id}


def state(cell: NotebookNode) -> str:
    """Return what has become of a cell in a saved notebook; empty if it was not run."""
    mark = cell.metadata.get(MARK)
    return str(mark.get("state", "")) if isinstance(mark, Mapping) else ""


def set_state(cell: NotebookNode, reached: str) -> None:
    """Note what has become of a cell."""
    cell.metadata[MARK] = {"state": reached}


def keep(cell: NotebookNode, earlier: NotebookNode) -> None:
    """Give a cell that is not run again the outputs of the earlier run."""
    cell.outputs, cell.execution_count = earlier.outputs, earlier.execution_count
    set_state(cell, COMPLETED)
