"""What a task is called, prints and raises is shown as text."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
from typed import Notebook, Run


def test_a_card_is_updated_in_place_to_the_end_of_its_task(notebook: Notebook) -> None:
    with notebook.running("carded", after="print('the end')") as task:
        number = task["number"]
    cell = notebook.kernel.start("%%background quick\n1")
    cell.wait()
    notebook.kernel.take_until(lambda: "completed" in cell.text, 30, "the end on the card")
    (card,) = cell.outputs
    assert "quick" in card.data["text/html"]
    assert f"{number + 1} (quick)" in card.data["text/plain"]
    assert "took 0:0" in card.data["text/html"]


WILD = "<script>alert('x')</script>"


def test_nothing_that_a_task_is_called_or_says_becomes_html(
    make_notebook: Callable[..., Notebook],
) -> None:
    own = make_notebook("<i>notebook.ipynb")
    with own.running(WILD, before=f"print({WILD!r})"):
        shown = [own.type("%bg_wait --timeout 0.05"), own.type("%bg_list")]
    own.finish(f"print('<u>said</u>')\nraise ValueError({WILD!r})", WILD)
    launched = own.type(f"%%background {shlex.quote(WILD)}\n1")
    shown += [launched, own.type("%bg_wait"), own.type("%bg_wait -2")]
    shown += [own.type("%bg_list"), own.type("%bg_list --all")]
    for answer in shown:
        assert answer.cell is not None
        html = "".join(output.data["text/html"] for output in answer.cell.outputs)
        assert "&lt;script&gt;" in html
        for tag in ("<script", "<u>", "<i>"):
            assert tag not in html


def test_the_text_of_a_failed_task_names_the_error_and_the_next_step(notebook: Notebook) -> None:
    task = notebook.finish("undefined_name", "typo")
    assert (task["state"], task["exit_code"]) == ("failed", 1)
    assert task["reason"] == "NameError: name 'undefined_name' is not defined"
    answer = notebook.underscored("result", "typo")
    assert answer.stderr == (
        f"UsageError: task {task['number']} (typo) failed (NameError: name 'undefined_name' is not "
        f"defined); %bg_output {task['number']} shows the rest\n"
    )


@pytest.mark.parametrize(
    ("source", "reason", "exit_code"),
    [
        ("raise ValueError", "ValueError", 1),
        ("raise ValueError('a\\nb')", "ValueError: a", 1),
        ("raise ValueError('\\udc80')", "ValueError: ", 1),
        ("raise SystemExit(2**70)", "exit status 255", 255),
        ("raise SystemExit(True)", "exit status 1", 1),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", 1),
        ("raise GeneratorExit", "GeneratorExit", 1),
        ("%time raise ValueError", "ValueError", 1),
    ],
)
def test_whatever_a_cell_raises_its_task_has_failed_and_says_why(
    notebook: Notebook, source: str, reason: str, exit_code: int
) -> None:
    task = notebook.finish(source)
    assert (task["state"], task["exit_code"]) == ("failed", exit_code)
    assert task["reason"].startswith(reason)
    assert "\n" not in task["reason"]
    assert notebook.finish("1")["state"] == "completed"


def test_what_utf_8_cannot_hold_can_be_shown(notebook: Notebook, run: Run) -> None:
    """A lone half of a surrogate pair, as file names and broken texts have them."""
    task = notebook.finish(
        "display({'text/plain': '\\ud800'}, raw=True)\nprint('\\ud800')\n"
        "class Broken:\n    def __repr__(self): return '\\udfff'\nBroken()"
    )
    assert task["state"] == "completed"
    for options in ([], ["--json"]):
        answer = run("output", task["id"], *options)
        assert not answer.failed, answer.stderr
        assert answer.stderr == ""
        assert "\\ud800" in answer.text
