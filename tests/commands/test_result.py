"""`result` gives the value, also after a restart."""

from __future__ import annotations

from collections.abc import Callable

from kernels import until
from typed import Notebook, Run


def test_everything_is_there_after_a_restart(make_notebook: Callable[..., Notebook]) -> None:
    own = make_notebook()
    done = own.finish("print('printed')\n[1, 'two', {3.0}]", "done")
    live = own.launch("print('begun')\nimport time\nwhile True: time.sleep(0.01)", "live")
    until(lambda: own.show("live")["last_line"] == "begun")
    own.kernel.restart()
    greeting = own.type("%load_ext ipytaskpersist")
    assert greeting.text == (
        "While you were away: 1 task was interrupted.\n"
        "  ◐ interrupted 2 (live) · kernel restarted · 1 line is kept   "
        "%bg_output 2 · %bg_resume 2"
    )
    for before in (done, live):
        assert own.show(before["name"])["id"] == before["id"]
    assert own.underscored("output", "done", "--stdout").stdout == "printed\n"
    assert own.underscored("output", "live").stdout == "begun\n"
    assert own.underscored("result", "done").text == "[1, 'two', {3.0}]"
    interrupted = own.show("live")
    assert interrupted["state"] == "interrupted"
    assert interrupted["reason"] == "kernel restarted"
    assert interrupted["exit_code"] is None
    assert own.launch("1")["number"] == 3
    sessions = own.underscored("sessions", "--json").json()["sessions"]
    assert [each["end_reason"] for each in sessions] == [None, "kernel restarted"]


def test_a_value_that_cannot_be_kept_leaves_its_text(
    make_notebook: Callable[..., Notebook],
) -> None:
    own = make_notebook()
    own.finish("import threading\nclass Guard:\n    lock = 1\n(x for x in 'abc')", "lazy")
    assert "generator object" in own.underscored("result", "lazy").text
    own.kernel.restart()
    own.type("%load_ext ipytaskpersist")
    answer = own.underscored("result", "lazy")
    assert answer.failed
    assert answer.stderr.startswith(
        "UsageError: the value of task 1 (lazy) could not be kept (TypeError: cannot pickle"
    )
    assert "its text form: <generator object" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_long_text_form_does_not_make_an_error_of_many_lines(
    make_notebook: Callable[..., Notebook],
) -> None:
    own = make_notebook()
    own.finish("gen = (x for x in 'abc')\n[gen] + ['x' * 50] * 500", "long")
    own.kernel.restart()
    own.type("%load_ext ipytaskpersist")
    answer = own.underscored("result", "long")
    assert answer.failed
    assert answer.stderr.count("\n") == 1


def test_a_task_without_a_value_has_the_result_none(notebook: Notebook, run: Run) -> None:
    notebook.finish("x = 1", "valueless")
    answer = run("result", "valueless")
    assert (answer.text, answer.failed) == ("", False)


def test_result_of_a_running_task_says_what_to_wait_for(notebook: Notebook, run: Run) -> None:
    with notebook.running("busy") as task:
        answer = run("result", "busy")
    assert answer.failed
    assert f"task {task['number']} (busy) is running, so it has no result yet" in answer.stderr
    assert "waits for it" in answer.stderr


def test_a_result_is_the_value_of_the_cell_that_asks_for_it(notebook: Notebook) -> None:
    notebook.finish("shared = [1]\nshared", "object")
    answer = notebook.type("value = %bg_result object\nprint(value is shared)")
    assert answer.stdout == "True\n"
