"""Tasks that have left large arrays are moved, archived, counted and deleted with their files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import add_task, begin_session
from stores import command, of_same_user, opened

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import SessionRecord, TaskRecord
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.history import exporting, upkeep
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.upkeep import Limits, enforce
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.values.payloads import Payloads

LENGTH = 100_000
SIZE = LENGTH * 8


def add_with_arrays(store: TaskStore, session: SessionRecord, begin: int = 0) -> TaskRecord:
    """A task that has left an array, and a number in the same pickle."""
    task = add_task(store, session, age_days=1)
    values = {"array": np.arange(begin, begin + LENGTH), "number": 7}
    texts = {name: name for name in values}
    for kept in Payloads(store.directory).save_together(task.id, values, texts, {}):
        assert kept.problem is None
        store.results.save(task.key, kept)
    return task


def load(store: TaskStore, task: TaskRecord, name: str) -> Any:
    kept = store.results.get(task.key, name)
    assert kept is not None
    return Payloads(store.directory).load(task, kept)


def task_of(store: TaskStore, task_id: str) -> TaskRecord:
    found = store.tasks.by_id(task_id)
    assert found is not None
    return found


def files(state_dir: Path) -> list[str]:
    return sorted(path.name for path in state_dir.rglob("*.buffers"))


@pytest.fixture
def task(store: TaskStore) -> TaskRecord:
    return add_with_arrays(store, begin_session(store))


@pytest.fixture
def exported(task: TaskRecord, state_dir: Path, tmp_path: Path) -> Path:
    command(state_dir, "export", "--all", "--output", tmp_path / "all.jsonl")
    return tmp_path / "all.jsonl"


def test_an_imported_array_is_loaded_with_its_users_key_alone(
    task: TaskRecord, state_dir: Path, exported: Path, tmp_path: Path
) -> None:
    own = of_same_user(state_dir, tmp_path / "own")
    other = tmp_path / "other"
    for directory in (own, other):
        command(directory, "import", exported)
    with opened(own) as store:
        np.testing.assert_array_equal(load(store, task_of(store, task.id), "array"), range(LENGTH))
        assert load(store, task_of(store, task.id), "number") == 7
    with (
        opened(other) as store,
        pytest.raises(ResultUnavailable, match="does not carry your signature"),
    ):
        load(store, task_of(store, task.id), "array")
    assert files(other) == files(own) == [*{*files(state_dir)}]


@pytest.mark.parametrize("name", ["../../escaped.buffers", f"{SIZE}-{'0' * 31}/.buffers", "x"])
def test_a_wrong_name_of_a_file_of_arrays_is_refused(
    state_dir: Path, exported: Path, tmp_path: Path, name: str
) -> None:
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    (found,) = [each for line in lines for each in line.get("results", []) if "buffers" in each]
    found["buffers"] = dict.fromkeys([name], *found["buffers"].values())
    exported.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    other = of_same_user(state_dir, tmp_path / "other")
    refused = command(other, "import", exported, status=1)
    assert "is no name of a file of buffers" in refused.stdout + refused.stderr
    assert files(other) == []
    assert not list(tmp_path.rglob("escaped*"))


def test_a_changed_content_is_an_error_when_it_is_loaded(
    task: TaskRecord, state_dir: Path, exported: Path, tmp_path: Path
) -> None:
    """The signature is that of the pickle, in which the digest of the array is."""
    text = exported.read_text()
    begin = text.index("AAAAAAAAAA")
    exported.write_text(text[:begin] + "B" + text[begin + 1 :])
    own = of_same_user(state_dir, tmp_path / "own")
    command(own, "import", exported)
    with opened(own) as store:
        with pytest.raises(ResultUnavailable, match="has been changed"):
            load(store, task_of(store, task.id), "array")
        assert load(store, task_of(store, task.id), "number") == 7


def test_an_array_that_is_too_large_is_not_exported_even_if_it_was_given(
    store: TaskStore, archives: Archives, task: TaskRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a task has already, as one of its inputs, adds nothing to its value's size."""
    monkeypatch.setattr(exporting, "PICKLE_BYTES", SIZE - 1)
    payloads = Payloads(store.directory)
    again = payloads.save(task.id, "array", [load(store, task, "array"), 8], "again")
    assert (again.size_bytes or 0) < 1000
    store.results.save(task.key, again)
    text = b"".join(exporting.Export(archives, payloads, [task]).lines()).decode()
    assert text.count("was too large to be exported") == 2
    assert '"buffers"' not in text


def test_arrays_are_exported_on_lines_of_their_own(
    store: TaskStore, archives: Archives, task: TaskRecord
) -> None:
    """An import takes a line of so many bytes, and one array is far below that."""
    payloads = Payloads(store.directory)
    for begin in (1, 2):
        kept = payloads.save(task.id, f"array_{begin}", np.arange(begin, begin + LENGTH), "")
        store.results.save(task.key, kept)
    lines = [*exporting.Export(archives, payloads, [task]).lines()]
    assert [line.count(b'"buffers"') for line in lines if b'"results"' in line][:3] == [1, 1, 1]


def test_archived_arrays_are_loaded_and_come_back(
    store: TaskStore, archives: Archives, task: TaskRecord, state_dir: Path
) -> None:
    before = files(state_dir)
    archives.archive([task])
    (archived,) = archives.select(Selection())
    assert load(archives.store_of(archived), archived, "array")[9] == 9
    archives.unarchive([archived])
    assert load(store, task_of(store, task.id), "array")[9] == 9
    assert files(state_dir) == before


@pytest.mark.parametrize("archived", [False, True])
def test_a_deleted_task_takes_its_arrays_along_but_no_other_tasks(
    store: TaskStore, archives: Archives, task: TaskRecord, state_dir: Path, archived: bool
) -> None:
    same = add_with_arrays(store, begin_session(store))
    if archived:
        archives.archive([task])
    command(state_dir, "delete", task.id, "--yes")
    assert load(store, same, "array")[9] == 9
    assert len(files(state_dir)) == 2
    command(state_dir, "delete", same.id, "--yes")
    assert files(state_dir) == []


def test_the_limit_on_the_store_counts_an_array_of_many_tasks_once(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    session = begin_session(store)
    tasks = [add_with_arrays(store, session) for _ in range(5)]
    other = add_with_arrays(store, session, begin=1)
    alone = store.upkeep.used_bytes()
    assert alone > 6 * SIZE
    limits = Limits(None, alone - 4 * SIZE + 10_000, "keep")
    assert enforce(store, archives, limits) == []
    deleted = enforce(store, archives, Limits(None, 1, "keep"))
    assert set(deleted) == {each.id for each in [*tasks, other]}
    assert files(state_dir) == []


def test_upkeep_removes_what_a_killed_writer_has_left(store: TaskStore, state_dir: Path) -> None:
    """A shared name that no task has, and an unfinished file of some days ago."""
    add_with_arrays(store, begin_session(store))
    before = files(state_dir)
    prepared = Payloads(store.directory).prepare_inputs({}, {"array": np.zeros(LENGTH)}, {})
    for file in prepared.linked:
        file.path.unlink()
    assert len(files(state_dir)) == len(before) + 1
    assert prepared.path.exists()
    os.utime(prepared.path, (0, 0))
    limits = Limits(None, None, "keep")
    assert upkeep.start(StateDirectory(state_dir), limits).wait(30) == 0
    assert files(state_dir) == before
    assert not prepared.path.exists()
