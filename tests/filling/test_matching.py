"""A cell shows its own task: by mark, by cell id, by source; through renames and copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from histories import add_task, begin_session

from ipytaskpersist.base.records import SessionRecord, TaskRecord, TaskState
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.filling.matching import Cell, Matching, Place
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

SOURCE = "%%background train\nprint(1)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.ipynb"
    path.touch()
    return path


@pytest.fixture
def session(store: TaskStore, path: Path) -> SessionRecord:
    return begin_session(store, str(path))


@pytest.fixture
def matching(store: TaskStore, archives: Archives) -> Matching:
    return Matching(store, archives)


def shown(matching: Matching, path: Path, *cells: Cell) -> Sequence[str | None]:
    """The ids of the tasks that these cells of a notebook show."""
    return [task and task.id for task in matching.tasks(Place(path), cells)]


def test_a_mark_comes_before_all_but_a_later_run_of_the_same_cell(
    store: TaskStore, session: SessionRecord, matching: Matching, path: Path
) -> None:
    first = add_task(store, session, cell_id="c")
    other = add_task(store, session, cell_id="d")
    assert shown(matching, path, Cell("c", SOURCE, first.id)) == [first.id]
    assert shown(matching, path, Cell("elsewhere", "edited", other.id)) == [other.id]
    later = add_task(store, session, cell_id="c")
    assert shown(matching, path, Cell("c", SOURCE, first.id)) == [later.id]
    assert shown(matching, path, Cell("c", SOURCE, "deleted-1")) == [later.id]
    assert shown(matching, path, Cell("e", SOURCE, "deleted-1")) == [None]


def test_a_mark_of_a_task_that_was_tried_again_shows_its_latest_try(
    store: TaskStore, session: SessionRecord, matching: Matching, path: Path
) -> None:
    first = add_task(store, session, state=TaskState.FAILED, retries=Retries(2))
    second = store.tasks.last_try(first)
    assert (first.was_tried_again, second.try_number) == (True, 2)
    assert shown(matching, path, Cell("elsewhere", "edited", first.id)) == [second.id]
    assert shown(matching, path, Cell("elsewhere", "edited", second.id)) == [second.id]
    assert matching.task(first.id) == first
    other = add_task(store, session)
    for marked, earlier in ((first, first.id), (second, None), (other, None)):
        assert matching.earlier_try(Cell("", "", marked.id), second) == earlier


@pytest.mark.parametrize(
    ("source", "launches"),
    [
        (SOURCE, True),
        ("\n%%background --shell\nmake", True),
        ("x = 1\n  %background long(x)", True),
        ("%bg_rerun 3", True),
        ("%bg resume", True),
        ("print(1)", False),
        ("# %%background was here\nprint(1)", False),
        ("%bg_wait 3", False),
    ],
)
def test_without_a_mark_only_a_cell_that_launches_shows_a_task(
    store: TaskStore, session: SessionRecord, matching: Matching, path: Path,
    source: str, launches: bool,
) -> None:  # fmt: skip
    """One that was changed, and run by hand, shows what that left."""
    task = add_task(store, session, cell_id="c")
    assert shown(matching, path, Cell("c", source)) == [task.id if launches else None]


def test_without_cell_ids_the_source_tells_unless_two_cells_have_the_same(
    store: TaskStore, session: SessionRecord, matching: Matching, path: Path
) -> None:
    task = add_task(store, session)
    assert shown(matching, path, Cell("", SOURCE + "\n")) == [task.id]
    assert shown(matching, path, Cell("", "x\n%background print(1)")) == [task.id]
    assert shown(matching, path, Cell("", SOURCE), Cell("", SOURCE)) == [None, None]
    add_task(store, session, cell_id="another")
    assert shown(matching, path, Cell("", SOURCE)) == [task.id]


def test_a_renamed_notebook_keeps_its_tasks_and_a_copy_has_none_but_by_marks(
    store: TaskStore, session: SessionRecord, matching: Matching, path: Path
) -> None:
    task = add_task(store, session, cell_id="c")
    there = path.with_name("b.ipynb")
    cells = (Cell("c", SOURCE), Cell("d", SOURCE, task.id))
    there.touch()
    assert shown(matching, there, *cells) == [None, task.id]
    later = add_task(store, session, cell_id="c")
    assert shown(matching, there, *cells) == [None, task.id]
    path.unlink()
    assert shown(matching, there, *cells) == [later.id, task.id]


def test_a_running_kernel_says_which_notebook_it_is(
    store: TaskStore, session: SessionRecord, matching: Matching, path: Path
) -> None:
    add_task(store, session, cell_id="c")
    store.database.execute("UPDATE sessions SET kernel_uuid = 'a-kernel'")
    there = path.with_name("renamed.ipynb")
    (task,) = matching.tasks(Place(there, "a-kernel"), [Cell("c", SOURCE)])
    assert task is not None


def test_archived_tasks_are_found(
    store: TaskStore, archives: Archives, session: SessionRecord, matching: Matching, path: Path
) -> None:
    by_mark, by_id = add_task(store, session), add_task(store, session, cell_id="c")
    by_source = add_task(store, session)
    archives.archive([by_mark, by_id, by_source])
    cells = (Cell("x", "", by_mark.id), Cell("c", SOURCE), Cell("", "%%background\nprint(1)\n"))
    found = matching.tasks(Place(path), cells)
    assert [task and task.id for task in found[:2]] == [by_mark.id, by_id.id]
    assert all(task and task.archive for task in found[:2])


def test_links_to_a_notebook_lead_to_the_same_tasks(
    store: TaskStore, session: SessionRecord, matching: Matching, path: Path
) -> None:
    task: TaskRecord = store.tasks.insert(
        NewTask(session.notebook_key, session.id, "", "python", "thread", "print(1)", cell_id="c")
    )
    link = path.with_name("link.ipynb")
    link.symlink_to(path)
    assert shown(matching, link, Cell("c", SOURCE)) == [task.id]
