"""What is asked of a whole notebook is checked before there is a task."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session import notebook_parameters, whole_notebooks
from ipytaskpersist.session.requests import WholeNotebook


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-11-28", "2026-11-28"),
        ("7", 7),
        ("-7", -7),
        ("007", "007"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ('"5"', "5"),
        ("'5'", "5"),
        ("[1, 2]", [1, 2]),
        ("['a', \"b\"]", ["a", "b"]),
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("{'a': (1,)}", "{'a': (1,)}"),
        ("[1, 2", "[1, 2"),
        ("NaN", "NaN"),
        ("1e400", "1e400"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_parameter_is_a_value_if_it_is_written_as_one_else_text(text: str, value: Any) -> None:
    found = notebook_parameters.parsed([f"name={text}"])["name"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["day"], "NAME=VALUE"),
        (["=5"], "NAME=VALUE"),
        (["a b=5"], "named as a variable"),
        (["class=5"], "named as a variable"),
        (["a=1", "a=2"], "given twice"),
    ],
)
def test_a_parameter_that_cannot_be_one_is_refused(pairs: list[str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        notebook_parameters.parsed(pairs)


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 2}, (1, 2), b"a"])
def test_a_value_that_no_notebook_can_be_given_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"parameter x \(of type list\)"):
        whole_notebooks.source_of(WholeNotebook("report.ipynb", {"x": [value]}), "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a notebook in Python, one in R, and one without its kernel."""
    for name in ("ir", "python3"):
        spec = tmp_path / "jupyter" / "kernels" / name
        spec.mkdir(parents=True)
        language = {"ir": "R", "python3": "python"}[name]
        about = {"argv": ["true", "{connection_file}"], "display_name": name, "language": language}
        (spec / "kernel.json").write_text(json.dumps(about))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name, kernel in (("report", "python3"), ("r", "ir"), ("lost", "no-such-kernel")):
        metadata = {"kernelspec": {"name": kernel, "display_name": kernel}}
        notebook = new_notebook(cells=[new_code_cell("1")], metadata=metadata)
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    (tmp_path / "text.ipynb").write_text("hello")
    (tmp_path / "list.ipynb").write_text("[1, 2]")
    (tmp_path / "cells.ipynb").write_text('{"nbformat": 4, "nbformat_minor": 5, "cells": 3}')
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "report.ipynb")
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (WholeNotebook("repot.ipynb"), r"no notebook .*repot.ipynb; did you mean report.ipynb\?"),
        (WholeNotebook("nowhere/a.ipynb"), r"no notebook .*; there is no folder .*nowhere either"),
        (WholeNotebook("xyz.ipynb"), r"in .* are cells.ipynb, link.*, r.ipynb and 2 more$"),
        (WholeNotebook("jupyter/x.ipynb"), "jupyter has no notebooks: give the path of one, such"),
        (WholeNotebook("closed"), "is a directory"),
        (WholeNotebook("text.ipynb"), "is not a notebook"),
        (WholeNotebook("list.ipynb"), "is not a notebook"),
        (WholeNotebook("cells.ipynb"), "is not a notebook"),
        (WholeNotebook("lost.ipynb"), "'no-such-kernel', which is not installed.*: ir, python3"),
        (WholeNotebook("r.ipynb", {"a": 1}), "is in R.*leave out -p"),
        (WholeNotebook("report.ipynb", output="closed"), "is a directory"),
        (WholeNotebook("report.ipynb", output="report.ipynb"), "never written"),
        (WholeNotebook("report.ipynb", output="link.ipynb"), "never written"),
        (WholeNotebook("report.ipynb", output="no/out.ipynb"), "does not exist"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_to_do(
    folder: Path, asked: WholeNotebook, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        whole_notebooks.run_of(asked)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write there")
def test_a_folder_that_cannot_be_written_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="nothing can be written"):
        whole_notebooks.run_of(WholeNotebook("report.ipynb", output="closed/out.ipynb"))


def test_a_notebook_in_another_language_runs_without_parameters(folder: Path) -> None:
    run = whole_notebooks.run_of(WholeNotebook("r.ipynb"))
    assert (run.kernel, run.is_python) == ("ir", False)
    assert run.saved_as("ab12cd34-7") == folder / "r-ab12cd34-7.ipynb"


def test_without_nbclient_it_is_said_how_to_install_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is installed wherever the tests run.
    monkeypatch.setattr(whole_notebooks, "find_spec", lambda _name: None)
    with pytest.raises(InvalidRequest, match=r"pip install 'ipytaskpersist\[notebooks\]'"):
        whole_notebooks.run_of(WholeNotebook("report.ipynb"))


def test_the_source_of_the_task_gives_the_parameters_as_they_are() -> None:
    asked = WholeNotebook("a b.ipynb", {"day": "2026-11-28", "five": "5", "n": 5}, "out.ipynb")
    source = whole_notebooks.source_of(asked, "")
    assert source == (
        "%background --notebook 'a b.ipynb' -p day=2026-11-28 -p 'five=\"5\"' -p n=5 -o out.ipynb"
    )
    with pytest.raises(InvalidRequest, match="no code goes with it"):
        whole_notebooks.source_of(asked, "print(1)")
