"""A task is named by its number, name, id, or counted back."""

from __future__ import annotations

from pathlib import Path

import pytest
from typed import Notebook, Run, record

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import AmbiguousReference, InvalidRequest, TaskNotFound
from ipytaskpersist.session import finding
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection


def found(store: TaskStore, task: TaskRecord, reference: str | int | None) -> int:
    return finding.find(store, task.notebook_key, reference).number


def test_a_reference_is_a_number_a_name_an_id_or_counted_back(store: TaskStore) -> None:
    tasks = record(store, "build", "train", "", "train", "")
    for reference, number in {
        1: 1, "1": 1, " 3 ": 3, "build": 1, "train": 4, "a1b2c3d4-2": 2, None: 5, -1: 5, "-1": 5,
        "-2": 4, "-5": 1, "a1b2c3d4-": None,
    }.items():  # fmt: skip
        if number is not None:
            assert found(store, tasks[0], reference) == number, reference


@pytest.mark.parametrize(
    "reference", ["0", "6", "-6", "-0", "nope", "", "a1b2c3d4-6", "１", "1.0", "\udcff"]
)
def test_what_names_no_task_is_an_error_that_names_the_latest(
    store: TaskStore, reference: str
) -> None:
    tasks = record(store, "build", "train", "", "", "test")
    with pytest.raises(TaskNotFound, match=r"no task '.*' in this notebook; .* 5 test, 4, 3, 2 tr"):
        finding.find(store, tasks[0].notebook_key, reference)


def test_bytes_that_are_no_text_name_no_tag_and_no_session(store: TaskStore) -> None:
    """A terminal hands them over as halves of surrogate pairs, which no store has."""
    record(store, "build")
    assert store.tasks.select(Selection(tags=["\udcff"], session_prefix="\udcff")) == []
    with pytest.raises(InvalidRequest, match="no session"):
        finding.find_session(store, "\udcff")
    assert store.sessions.beginning("\udcff", 5) == []


@pytest.mark.parametrize("prefix", ["b", "b1b2", "b1b2c3d4", "b1b2c3d4-"])
def test_the_beginning_of_an_id_is_enough_where_it_is_unique(store: TaskStore, prefix: str) -> None:
    record(store, "", "")
    (wanted,) = record(store, "", session="b1b2c3d4-x")
    assert found(store, wanted, prefix) == 3


def test_the_beginning_of_an_id_may_be_digits_where_no_number_is_in_its_way(
    store: TaskStore,
) -> None:
    """Of 44 sessions one has an id that begins with eight digits."""
    (wanted,) = record(store, "", session="12345678-x")
    assert found(store, wanted, "12345678") == 1


def test_an_ambiguous_beginning_is_an_error_that_names_the_candidates(store: TaskStore) -> None:
    tasks = record(store, "", "")
    with pytest.raises(AmbiguousReference, match=r"a1b2c3d4-1, a1b2c3d4-2.*type more of it"):
        finding.find(store, tasks[0].notebook_key, "a1b2")


def test_an_ambiguous_beginning_is_one_line(notebook: Notebook, run: Run) -> None:
    ids = [notebook.finish(source)["id"] for source in ("1", "2")]
    answer = run("output", ids[0].partition("-")[0] + "-")
    assert answer.failed
    assert ids[1] in answer.stderr
    assert "type more of it" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_number_goes_before_a_name_and_a_name_before_an_id(store: TaskStore) -> None:
    tasks = record(store, "", "1", "a1b2", "7")
    assert found(store, tasks[0], "1") == 1
    assert found(store, tasks[0], "7") == 4
    assert found(store, tasks[0], "a1b2") == 3


def test_only_a_full_id_reaches_another_notebook(store: TaskStore) -> None:
    (mine,) = record(store, "mine")
    theirs = record(store, "first", "theirs", path="/b.ipynb", session="b1b2c3d4-x")[1]
    for reference in ("2", "theirs", "-2", "b1b2c3d4", "b1b2c3d4-"):
        with pytest.raises(TaskNotFound):
            finding.find(store, mine.notebook_key, reference)
    assert finding.find(store, mine.notebook_key, theirs.id) == theirs
    assert finding.find(store, None, theirs.id) == theirs


def test_the_error_in_an_empty_notebook_says_how_to_begin(state_dir: Path) -> None:
    with pytest.raises(TaskNotFound, match=r"put %%background above a cell"):
        finding.find(TaskStore(StateDirectory(state_dir)), None, None)


def test_references_are_typed_alike_everywhere(notebook: Notebook, run: Run) -> None:
    older = notebook.finish("1", "older one")
    newer = notebook.finish("2", "newer")
    for reference, task in (
        (["older one"], older), (["older", "one"], older), (["newer"], newer), ([], newer),
        (["-1"], newer), (["-2"], older), ([str(older["number"])], older), ([newer["id"]], newer),
    ):  # fmt: skip
        assert run("show", *reference, "--json").json()["id"] == task["id"], reference


def test_a_name_of_several_words_stands_among_other_references(
    notebook: Notebook, run: Run
) -> None:
    wide = notebook.finish("1", "wide net")
    narrow = notebook.finish("2", "narrow")
    exported = run("export", "--format", "json", "narrow", "wide", "net", "-1").json()
    assert {task["id"] for task in exported["tasks"]} == {wide["id"], narrow["id"]}
    tagged = run("tag", "wide", "net", "good", "best")
    assert tagged.stdout.endswith("(wide net): best, good\n"), tagged
    both = notebook.finish("3", f"wide {narrow['number']}")
    wider = notebook.finish("4", "wide")
    meant = run("keep", "wide", str(narrow["number"]))
    assert "is the name of a task, and wide, " in meant.stderr, meant
    assert "put the name in quotes" in meant.stderr
    assert not any(notebook.show(task["id"])["tags"] for task in (narrow, both, wider))


def test_what_is_counted_back_may_stand_after_the_end_of_the_options(notebook: Notebook) -> None:
    task = notebook.finish("1")
    answer = notebook.type("%bg_show --json -- -1")
    assert answer.json()["id"] == task["id"]


def test_the_latest_of_several_tasks_with_one_name_is_meant(notebook: Notebook) -> None:
    for number in (1, 2, 3):
        notebook.finish(f"print('run {number}')", "same")
    assert notebook.underscored("output", "same").stdout == "run 3\n"


def test_a_name_means_the_live_task_where_only_a_live_one_makes_sense(notebook: Notebook) -> None:
    with notebook.running("twin", before="print('begun')") as first:
        later = notebook.finish("print('the later')", "twin")
        assert notebook.underscored("output", "twin").stdout == "the later\n"
        waited = notebook.underscored("wait", "twin", "--timeout", "0")
        assert f"{first['number']} (twin)" in waited.text
        assert f"{later['number']} (twin)" not in waited.text
        with notebook.running("twin") as second:
            cancelled = notebook.underscored("cancel", "twin")
            assert cancelled.stdout == f"task {second['number']} (twin): cancelled\n"
            assert cancelled.stderr == (
                f"2 tasks named 'twin' are live: the latest, {second['number']}, is meant, "
                f"and {first['number']} is meant by number\n"
            )
        follower = notebook.kernel.start("%bg_output twin --follow")
        notebook.kernel.take_until(lambda: follower.stream("stdout"), 30, "the output")
        first["gate"].touch()
        assert follower.wait().stream("stdout") == "begun\n"


def test_a_name_may_be_any_text(notebook: Notebook, run: Run) -> None:
    for name in ("Größe 日本 🚀", "two words", "100%", "$HOME {x}", "a/b\\c"):
        notebook.kernel.run(f"name = {name!r}")
        task = notebook.launch("1", name)
        assert task["name"] == name
        assert run("show", name, "--json").json()["id"] == task["id"]
