"""Other notebooks' tasks are found only on purpose."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from typed import Notebook, Run, record

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.store.task_store import TaskStore


def test_another_notebooks_task_is_listed_and_found_only_on_purpose(
    notebook: Notebook, elsewhere: TaskRecord, run: Run
) -> None:
    def listed(*options: str) -> bool:
        tasks = run("list", "--json", *options).json()["tasks"]
        return elsewhere.id in [task["id"] for task in tasks]

    assert not listed()
    assert listed("--all")
    for reference in (str(elsewhere.number), elsewhere.name, elsewhere.id[:-1]):
        assert run("show", reference).failed
    assert run("show", elsewhere.id, "--json").json()["id"] == elsewhere.id


def test_another_notebooks_task_is_cancelled_only_on_purpose(
    notebook: Notebook, elsewhere: TaskRecord, run: Run
) -> None:
    refused = run("cancel", elsewhere.id)
    assert refused.failed
    assert f"nothing was changed: {elsewhere.id} belongs to another notebook" in refused.stderr
    assert "--yes" in refused.stderr
    with closing(TaskStore(StateDirectory(notebook.state_dir)).open()) as store:
        untouched = store.tasks.get(elsewhere.key)
        assert untouched == elsewhere
        assert not run("cancel", elsewhere.id, "--yes").failed
        asked = store.tasks.get(elsewhere.key)
        assert asked is not None
        assert asked.cancel_requested_at is not None


def test_cancel_all_leaves_other_notebooks_alone(
    make_notebook: Callable[..., Notebook], store: TaskStore
) -> None:
    (theirs,) = record(store, "theirs")
    own = make_notebook()
    with own.running("one") as one, own.running("two") as two:
        answer = own.underscored("cancel", "--all")
        assert answer.stdout.count(": cancelled\n") == 2
        assert {own.ended(task)["state"] for task in (one, two)} == {"cancelled"}
    assert store.tasks.get(theirs.key) == theirs


def test_delete_needs_a_yes(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("1", "kept")
    refused = run("delete", "kept")
    assert refused.failed
    assert f"add --yes to delete {task['number']} (kept) for good" in refused.stderr
    assert run("show", task["id"], "--json").json()["id"] == task["id"]
