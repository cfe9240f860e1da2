"""What a resumed notebook runs, by what has completed and what has changed since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ipytaskpersist.runners import notebook_content
from ipytaskpersist.runners.notebook_plan import plan
from ipytaskpersist.runners.notebook_spec import NotebookRun

SOURCES = ("a = 1", "b = 2", "c = 3", "print(b)", "print(c)")


def notebook_of(sources: Sequence[str]) -> nbformat.NotebookNode:
    cells = [new_code_cell(source) for source in sources]
    skipped = new_code_cell("1 / 0", metadata={"tags": ["skip-execution"]})
    return new_notebook(cells=[new_markdown_cell("# A"), skipped, new_code_cell(" "), *cells])


def saved(folder: Path, completed: int, sources: Sequence[str] = SOURCES) -> str:
    """The saved notebook of a run that failed in the cell after this many."""
    notebook = notebook_of(sources)
    for place in notebook_content.to_run(notebook)[:completed]:
        cell = notebook.cells[place]
        cell.outputs = [new_output("stream", text=f"from {cell.source}\n")]
        notebook_content.set_state(cell, notebook_content.COMPLETED)
    notebook_content.save(notebook, folder / "saved.ipynb")
    return str(folder / "saved.ipynb")


@pytest.mark.parametrize(
    ("completed", "now", "cells", "said"),
    [
        (3, SOURCES, [1, 2, 3, 4], "runs again [2] [3], which make b, c; goes on at [4]"),
        (4, SOURCES, [2, 4], "runs again [3], which makes c; goes on at [5]"),
        (5, SOURCES, [], "runs no earlier cell again; all others had completed"),
        (0, SOURCES, [0, 1, 2, 3, 4], "goes on at [1]"),
        (
            4,
            ("a = 1", "b = 5", *SOURCES[2:]),
            [1, 2, 3, 4],
            "runs no earlier cell again; goes on at [2]; [2] is not what it was in the earlier run",
        ),
        (
            4,
            ("a = 5", *SOURCES[1:]),
            [0, 1, 2, 3, 4],
            "goes on at [1]; [1] is not what it was in the earlier run",
        ),
        (5, (*SOURCES, "print(a)"), [0, 5], "runs again [1], which makes a; goes on at [6]"),
        (4, SOURCES[:3], [], "runs no earlier cell again; all others had completed"),
    ],
)
def test_it_goes_on_at_the_first_cell_that_did_not_complete_or_has_changed(
    tmp_path: Path, completed: int, now: Sequence[str], cells: list[int], said: str
) -> None:
    run = NotebookRun("a.ipynb", "python3", "python", resumes=saved(tmp_path, completed))
    notebook = notebook_of(now)
    found = plan(run, notebook)
    assert (list(found.cells), found.said) == (cells, said)
    kept = set(range(len(now))) - set(cells)
    for place, index in enumerate(notebook_content.to_run(notebook)):
        cell = notebook.cells[index]
        texts = [f"from {cell.source}\n"] if place in kept else []
        assert [output.text for output in cell.outputs] == texts


def test_a_try_goes_on_from_the_latest_earlier_one_that_has_saved_the_notebook(
    tmp_path: Path,
) -> None:
    path, resumes = str(tmp_path / "a.ipynb"), saved(tmp_path, 1)
    run = NotebookRun(path, "python3", "python", resumes=resumes, tries=("x-1", "x-2"))
    assert run.goes_on_from == resumes, "none has saved anything"
    first = notebook_content.read(Path(resumes))
    notebook_content.set_task(first, "x-1")
    notebook_content.set_state(first.cells[4], notebook_content.COMPLETED)
    notebook_content.save(first, run.saved_as("x-1"))
    assert run.goes_on_from == str(run.saved_as("x-1"))
    assert plan(run, notebook_of(SOURCES)).said.endswith("goes on at [3]")


def test_a_try_does_not_go_on_from_what_another_task_has_saved_in_its_file(tmp_path: Path) -> None:
    output = saved(tmp_path, 5)
    run = NotebookRun("a.ipynb", "python3", "python", output=output, tries=("x-1",))
    found = plan(run, notebook_of(SOURCES))
    assert list(found.cells) == [0, 1, 2, 3, 4]
    assert found.said == f"runs all cells, because no earlier try has saved {output}"


def test_in_another_language_or_without_the_saved_notebook_all_cells_run(tmp_path: Path) -> None:
    resumes = saved(tmp_path, 3)
    found = plan(NotebookRun("a.ipynb", "ir", "R", resumes=resumes), notebook_of(SOURCES))
    assert list(found.cells) == [0, 1, 2, 3, 4]
    assert "only of Python is it known what [4] needs" in found.said
    Path(resumes).unlink()
    found = plan(NotebookRun("a.ipynb", "python3", "python", resumes=resumes), notebook_of(SOURCES))
    assert list(found.cells) == [0, 1, 2, 3, 4]
    assert "saved.ipynb cannot be read: No such file" in found.said


@pytest.mark.parametrize(
    ("tags", "at"),
    [([[], ["parameters"], []], 2), ([[], [], []], 0), ([["injected-parameters"]], 0)],
)
def test_parameters_stand_behind_the_usual_ones_or_before_all(
    tags: list[list[str]], at: int
) -> None:
    cells = [new_code_cell("x = 1", metadata={"tags": each}) for each in tags]
    notebook = new_notebook(cells=cells)
    notebook_content.assign(notebook, {"x": "it's", "y": [True, None]})
    assert notebook.cells[at].source == '# Parameters\nx = "it\'s"\ny = [True, None]'
    assert [each.metadata.tags for each in notebook.cells].count(["injected-parameters"]) == 1
    nbformat.validate(notebook)


def test_a_notebook_of_an_earlier_version_gets_cells_of_that_version() -> None:
    notebook = new_notebook(cells=[], nbformat_minor=4)
    notebook_content.assign(notebook, {"x": 1})
    assert "id" not in notebook.cells[0]
    nbformat.validate(notebook)
