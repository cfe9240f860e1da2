"""Fill a notebook file: put the present outputs of its tasks into the cells that launched them."""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from ipytaskpersist.base import disk_errors, output_marks
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.private_files import make_durable, remove
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.base.widget_marks import STATE
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.filling.filled_cell import FilledCell
from ipytaskpersist.filling.matching import Cell, Matching, Place
from ipytaskpersist.output.replay import Output
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text import formatting

FORMAT = 4
"""The format of notebooks whose cells can be filled."""
OLD_CARD = re.compile(
    r"[◌●✓✕⊘◐] (pending|running|completed|failed|cancelled|interrupted) · .*%bg_\w+ \d+"
)
"""The text form of a card from before cards were marked."""

Notebook = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Filling:
    """What became of a notebook file."""

    tasks: int
    """Number of its cells' tasks."""
    is_changed: bool
    """Whether the file did not show them already."""


def fill(path: Path, manager: BackgroundTasks) -> Filling:
    """Put the present outputs of a notebook's tasks into its file.

    Raises `InvalidRequest` if there is no such notebook, or none of its cells has a task.
    """
    path = path.resolve()
    before = _read(path)
    notebook = _parsed(path, before)
    states: dict[str, Any] = {}
    raw = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]
    cells = [*map(_cell, raw)]
    tasks = _tasks_of(path, cells, manager)
    if not any(tasks):
        raise InvalidRequest(
            f"no cell of {legible(str(path))} has launched a task that is stored here; jupyter bg "
            "list --all shows those of every notebook"
        )
    for cell, about, task in zip(raw, cells, tasks, strict=True):
        if task is not None and _cleared(cell) != task.id:
            parts = output_marks.filled_parts(cell["outputs"], is_whole=about.is_whole)
            cell["outputs"] = [*_filled(cell["outputs"], parts, about, task, manager, states)]
    _add_states(notebook, states)
    after = _in_file_form(path, notebook)
    is_changed = json.loads(after) != json.loads(before)
    if is_changed:
        _replace(path, before, after)
    return Filling(sum(task is not None for task in tasks), is_changed)


# Reading.


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {legible(str(path))}") from None
    except IsADirectoryError:
        raise InvalidRequest(f"{legible(str(path))} is a folder; name a notebook in it") from None
    except OSError as error:
        raise disk_errors.refused(str(path), error, path) from error


def _parsed(path: Path, data: bytes) -> Notebook:
    name = legible(str(path))
    try:
        notebook = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{name} is not a notebook: it is not JSON") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("nbformat"), int):
        raise InvalidRequest(f"{name} is not a notebook: it does not say its format")
    if notebook["nbformat"] != FORMAT:
        raise InvalidRequest(
            f"{name} is a notebook of format {notebook['nbformat']}, and only one of format "
            f"{FORMAT} can be filled; jupyter nbconvert --to notebook --inplace makes it one"
        )
    _validate(path, notebook)
    return notebook


def _validate(path: Path, notebook: Notebook) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is only about what a later format asks for
            nbformat.validate(nbformat.from_dict(notebook))
    except Exception as error:  # the validator itself fails on what is too far from a notebook
        line = legible((str(error).splitlines() or [type(error).__name__])[0])
        raise InvalidRequest(f"{legible(str(path))} is not a valid notebook: {line}") from None


def _tasks_of(
    path: Path, cells: Sequence[Cell], manager: BackgroundTasks
) -> list[TaskRecord | None]:
    if not manager.store.exists:
        return [None] * len(cells)
    manager.runners.reconcile()
    matching = Matching(manager.store.open(), manager.archives)
    return matching.tasks(Place(path), cells)


def _cell(cell: Mapping[str, Any]) -> Cell:
    outputs = cell["outputs"]
    cards = [task for each in outputs if (task := output_marks.task_of(each, output_marks.CARD))]
    source = cell["source"]
    text = source if isinstance(source, str) else "".join(source)
    return Cell(str(cell.get("id", "")), text, cards[-1] if cards else None)


def _cleared(cell: Mapping[str, Any]) -> str | None:
    """Return the id of the task whose outputs a person has cleared, as a page notes it."""
    known = cell.get("metadata", {}).get(output_marks.KEY)
    return known.get("cleared") if isinstance(known, Mapping) else None


# Filling.


def _filled(
    outputs: Sequence[Output],
    parts: Sequence[output_marks.Filled],
    cell: Cell,
    task: TaskRecord,
    manager: BackgroundTasks,
    states: dict[str, Any],
) -> Iterator[Output]:
    """Yield the outputs of a cell with those of its tasks in the place of earlier ones."""
    if not parts:
        yield from (each for each in outputs if not _is_old_card(each))
        yield from _outputs_of(task, cell, manager, states)
        return
    matching = Matching(manager.store, manager.archives)
    begin = 0
    for part in parts:
        yield from outputs[begin : part.start]
        known = task if part is parts[-1] else matching.latest_try(part.task)
        kept = outputs[part.start : part.end]
        yield from kept if known is None else _outputs_of(known, cell, manager, states)
        begin = part.end
    yield from outputs[begin:]


def _outputs_of(
    task: TaskRecord, cell: Cell, manager: BackgroundTasks, states: dict[str, Any]
) -> list[Output]:
    filled = FilledCell(manager, task, states=states)
    filled.update(task, formatting.utc_now())
    outputs = [entry.output for entry in filled.entries]
    return outputs if cell.is_whole else output_marks.closed(outputs, task.id)


def _is_old_card(output: Output) -> bool:
    text = output.get("data", {}).get("text/plain", "")
    return bool(OLD_CARD.match(text if isinstance(text, str) else "".join(text)))


def _add_states(notebook: Notebook, states: dict[str, Any]) -> None:
    if states:
        widgets = notebook.setdefault("metadata", {}).setdefault("widgets", {})
        kept = widgets.setdefault(STATE, {"version_major": 2, "version_minor": 0, "state": {}})
        kept["state"] = {**kept.get("state", {}), **states}


# Writing.


def _in_file_form(path: Path, notebook: Notebook) -> bytes:
    """Return the file's new content. Raises `InvalidRequest` for what is no valid notebook."""
    _validate(path, notebook)
    text = nbformat.v4.writes(nbformat.from_dict(notebook))
    return f"{text.rstrip()}\n".encode("utf-8", "backslashreplace")


def _replace(path: Path, before: bytes, after: bytes) -> None:
    """Write the file anew, complete or not at all, with its mode and its trust."""
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        status = path.stat()
        with partial.open("xb") as file:
            partial.chmod(stat.S_IMODE(status.st_mode))
            file.write(after)
        make_durable(partial)
        if path.read_bytes() != before:
            raise InvalidRequest(
                f"{legible(str(path))} was changed meanwhile, and is left as it is; try again"
            )
        _keep_trust(before, after)
        partial.replace(path)
    except OSError as error:
        raise disk_errors.refused(str(path), error, path) from error
    finally:
        remove(partial)


def _keep_trust(before: bytes, after: bytes) -> None:
    """Sign the notebook if it was signed: what its own tasks left is trusted as it is."""
    with suppress(Exception):  # without a signature, Jupyter shows the HTML sanitised
        from nbformat.sign import NotebookNotary

        notary = NotebookNotary()
        if notary.check_signature(nbformat.reads(before.decode(), FORMAT)):
            notary.sign(nbformat.reads(after.decode(), FORMAT))
