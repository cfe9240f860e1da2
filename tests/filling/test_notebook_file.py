"""`jupyter bg fill`: a notebook's file shows what its tasks have left, and nothing else changes."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel
from programs import run_command

from ipytaskpersist.base import output_marks
from ipytaskpersist.store.task_store import TaskStore

CELLS = {
    "thread": (
        "%%background thread\nfrom IPython.display import HTML\nprint('from a thread')\n"
        "handle = display(HTML('<b>first</b>'), display_id=True)\n"
        "handle.update(HTML('<b>then</b>'))\n6 * 7"
    ),
    "process": "%%background --process process\nprint('from a process')\n1 / 0",
    "shell": "%%background --shell shell\nprintf '10%%\\r20%%\\n'; echo 'to stderr' >&2; exit 3",
    "line": "%background print('on one line')",
    "widget": (
        "%%background widget\nimport ipywidgets\nslider = ipywidgets.IntSlider(value=7)\n"
        "display(slider)"
    ),
    "plain": "print('in the foreground')",
}


def a_notebook(cells: list[Any], path: Path, **known: Any) -> Path:
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"own": {"kept": True}})
    path.write_text(json.dumps({**notebook, **known}), encoding="utf-8")
    return path


def a_cell(name: str, **known: Any) -> Any:
    return nbformat.v4.new_code_cell(CELLS[name], metadata={"name": name}, **known)


def outputs_of(path: Path) -> dict[str, list[Any]]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return {cell.metadata.get("name", cell.id): cell.outputs for cell in notebook.cells}


def described(output: Any) -> tuple[str, str]:
    """What a person sees of an output."""
    if output.output_type == "stream":
        return output.name, output.text
    if output.output_type == "error":
        return "error", output.ename
    return output.output_type, output.data.get("text/html", output.data.get("text/plain", ""))


def test_a_file_shows_what_an_open_page_would_have_shown(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """Of a notebook that was closed at once, and of one that was saved with early cards."""
    path = tmp_path / "a.ipynb"
    kernel = make_kernel(notebook=path)
    early, cells = [], {}
    for name, source in CELLS.items():
        cells[name] = kernel.run(source)
        early.append(
            nbformat.v4.new_code_cell(source, outputs=cells[name].outputs, metadata={"name": name})
        )
    early[0].outputs = nbformat.from_dict(json.loads(json.dumps(early[0].outputs)))
    saved = json.dumps(early)
    kernel.run("%bg_wait thread process shell widget -1")
    kernel.shutdown()

    empty = [
        nbformat.v4.new_code_cell(source, metadata={"name": name}) for name, source in CELLS.items()
    ]
    a_notebook(empty, path)
    path.chmod(0o640)
    ended = run_command(state_dir, "fill", str(path))
    assert ended.stdout == f"{path}: filled with 5 tasks\n", ended.stderr
    found = outputs_of(path)
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [*map(described, found["thread"][1:])] == [
        ("stdout", "from a thread\n"),
        ("display_data", "<b>then</b>"),
        ("execute_result", "42"),
    ]
    assert [*map(described, found["process"][1:])] == [
        ("stdout", "from a process\n"),
        ("error", "ZeroDivisionError"),
    ]
    assert {*map(described, found["shell"][1:])} == {
        ("stdout", "10%\r20%\n"),
        ("stderr", "to stderr\n"),
    }
    assert described(found["line"][1]) == ("stdout", "on one line\n")
    assert found["plain"] == []
    assert "completed" in found["thread"][0].data["text/html"]
    assert output_marks.task_of(found["thread"][0], "card")

    # The state of the widget is in the notebook, so that its view can be shown.
    notebook = json.loads(path.read_text())
    (view,) = [
        out
        for out in found["widget"]
        if "application/vnd.jupyter.widget-view+json" in out.get("data", {})
    ]
    model = view.data["application/vnd.jupyter.widget-view+json"]["model_id"]
    states = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert states[model]["state"]["value"] == 7
    assert notebook["metadata"]["own"] == {"kept": True}

    before = path.read_bytes(), path.stat().st_mtime_ns
    ended = run_command(state_dir, "fill", str(path))
    assert ended.stdout == f"{path}: shows its 5 tasks already\n"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before

    # The same from the early cards of the page, in whatever file.
    copy = a_notebook(
        [nbformat.from_dict(cell) for cell in json.loads(saved)], tmp_path / "copy.ipynb"
    )
    assert outputs_of(copy)["plain"], "what the page has shown by then"
    assert run_command(state_dir, "fill", str(copy)).returncode == 0
    again = outputs_of(copy)
    for name in ("thread", "process", "line"):
        assert [*map(described, again[name])] == [*map(described, found[name])]
    assert [*map(described, again["plain"])] == [("stdout", "in the foreground\n")]


def test_what_is_not_of_a_task_stays_where_it_is(
    store: TaskStore, state_dir: Path, tmp_path: Path
) -> None:
    """Also two cards in one cell stay two, each with its own outputs; cleared ones stay away."""
    path = tmp_path / "a.ipynb"
    session = begin_session(store, str(path))
    tasks = [add_task(store, session, printed=f"of {n}\n".encode()) for n in range(2)]
    cleared = add_task(store, session, cell_id="cleared")
    own = [nbformat.v4.new_output("stream", name="stderr", text=f"own {n}\n") for n in range(3)]
    cards = [
        nbformat.v4.new_output(
            "display_data", {"text/plain": "old"}, metadata=output_marks.mark(task.id, "card")
        )
        for task in tasks
    ]
    old = nbformat.v4.new_output(
        "display_data", {"text/plain": "● running · 1 · as of 2026   %bg_output 1 · %bg_cancel 1"}
    )
    stale = nbformat.v4.new_output("stream", name="stdout", text="stale\n")
    cells = [
        nbformat.v4.new_code_cell(
            "%background f()\n%background g()", outputs=[own[0], cards[0], own[1], cards[1], own[2]]
        ),
        nbformat.v4.new_code_cell("%%background\nprint(1)", outputs=[own[1], old]),
        nbformat.v4.new_code_cell("%%background\nedited", outputs=[cards[0], stale, stale]),
        nbformat.v4.new_code_cell(
            "%%background\nf()", id="cleared",
            metadata={"ipytaskpersist": {"cleared": cleared.id}},
        ),
        nbformat.v4.new_markdown_cell("*text*"),
    ]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    link = tmp_path / "link.ipynb"
    link.symlink_to(path)
    for said in ("filled with 4 tasks", "shows its 4 tasks already"):
        ended = run_command(state_dir, "fill", str(link))
        assert ended.stdout == f"{link}: {said}\n"
    assert link.is_symlink()
    two, unmarked, whole, left, _markdown = nbformat.read(path, as_version=4).cells
    first, second = (task.id for task in tasks)
    marks = [output_marks.task_of(out) for out in two.outputs]
    assert marks == [None, first, None, first, None, second, None, second, None]
    texts = [out.text for out in two.outputs if out.output_type == "stream"]
    assert texts == ["own 0\n", "of 0\n", "own 1\n", "of 1\n", "own 2\n"]
    assert described(unmarked.outputs[0])[1] == "own 1\n"
    assert output_marks.task_of(unmarked.outputs[1], "card")
    assert len(unmarked.outputs) == 3
    assert [out.get("text") for out in whole.outputs] == [None, "of 0\n"]
    assert left.outputs == []


def test_trust_is_kept_and_not_given(
    store: TaskStore, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    from nbformat.sign import NotebookNotary

    session = begin_session(store, str(tmp_path / "a.ipynb"))
    add_task(store, session)
    for is_trusted in (True, False):
        path = a_notebook(
            [nbformat.v4.new_code_cell(f"%%background {is_trusted}\nprint(1)")],
            tmp_path / "a.ipynb",
        )
        notary = NotebookNotary()
        if is_trusted:
            notary.sign(nbformat.read(path, 4))
        assert run_command(state_dir, "fill", str(path)).returncode == 0
        assert notary.check_signature(nbformat.read(path, 4)) == is_trusted
        notary.store.close()


V3 = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": []}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        ("not json", "is not a notebook: it is not JSON"),
        ("[1, 2]", "is not a notebook: it does not say its format"),
        (json.dumps(V3), "is a notebook of format 3, and only one of format 4 can be filled"),
        ('{"nbformat": 4, "nbformat_minor": 5, "cells": 3}', "is not a valid notebook"),
        (json.dumps(nbformat.v4.new_notebook()), "no cell of"),
    ],
)
def test_what_cannot_be_filled_is_left_as_it_is(
    state_dir: Path, tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "a.ipynb"
    if content is not None:
        path.write_text(content)
    ended = run_command(state_dir, "fill", str(path))
    assert ended.returncode == 1
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert content is None or path.read_text() == content
    assert not state_dir.exists(), "no store is made for it"
