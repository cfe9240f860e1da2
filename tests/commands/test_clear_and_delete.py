"""`clear` hides tasks, `delete` removes them."""

from __future__ import annotations

from collections.abc import Callable

from typed import Notebook, Run


def test_clear_cancels_what_this_session_runs(make_notebook: Callable[..., Notebook]) -> None:
    own = make_notebook()
    own.finish("1")
    with own.running("live") as live:
        answer = own.underscored("clear")
        assert answer.stdout.startswith("cancelled 1, took 2 off the list")
        assert own.show(live["id"])["state"] == "cancelled"
    assert own.underscored("list", "--json").json()["count"] == 0


def test_a_live_task_is_not_deleted(notebook: Notebook, run: Run) -> None:
    with notebook.running("alive") as task:
        answer = run("delete", "alive", "--yes")
        assert answer.failed
        assert f"task {task['number']} (alive) is running; cancel it first: " in answer.stderr
        assert notebook.show("alive")["state"] == "running"


def test_delete_deletes_all_or_none(notebook: Notebook) -> None:
    task = notebook.finish("1")
    with notebook.running() as live:
        assert notebook.underscored("delete", task["id"], live["id"], "--yes").failed
    assert notebook.show(task["id"])["id"] == task["id"]
    assert notebook.underscored("delete", task["id"], "no such", "--yes").failed
    assert notebook.show(task["id"])["id"] == task["id"]


def test_the_number_of_a_deleted_task_is_not_used_again(notebook: Notebook) -> None:
    task = notebook.finish("1")
    notebook.underscored("delete", str(task["number"]), "--yes")
    assert notebook.launch("1")["number"] == task["number"] + 1
