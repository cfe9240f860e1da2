"""A backup holds all that was committed, a restore is whole or has not happened, and a store of any
earlier schema opens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from histories import (
    add_task,
    add_tasks,
    begin_session,
    everything,
    kill_in_the_middle,
    open_store,
)
from kernels import until
from layout import HELPERS, SCHEMAS
from programs import environment, run_command

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.file import repair
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.file.migrations import STEPS
from ipytaskpersist.store.restoring import Restored, restore
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

NOTEBOOK = "/home/ada/a.ipynb"


def ids(state_dir: Path) -> set[str]:
    return set(everything(state_dir))


WRITER = """
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore
import sys
sys.path.insert(0, sys.argv[1])
from histories import add_task, begin_session
store = TaskStore(StateDirectory(default_directory())).open()
session = begin_session(store)
for _ in range(100_000):
    print(add_task(store, session).id, flush=True)
"""


@contextmanager
def writing(state_dir: Path) -> Iterator[Callable[[], str]]:
    """Another process that writes one task after the other; a call gives the next one's id."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(HELPERS)],
        env=environment(state_dir), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with writer:
        try:
            assert writer.stdout is not None
            yield lambda: writer.stdout.readline().strip()  # type: ignore[union-attr]
        finally:
            writer.kill()


def test_a_backup_has_all_that_was_committed_while_another_process_writes(
    store: TaskStore, tmp_path: Path, state_dir: Path
) -> None:
    add_tasks(store, begin_session(store), 50)
    before = everything(state_dir)
    with writing(state_dir) as writer:
        committed = {writer() for _ in range(20)}
        copied = tmp_path / "elsewhere" / "tasks.db"
        copied.parent.mkdir()
        assert store.back_up(copied) == copied
    found = everything(copied.parent)
    assert {key: found[key] for key in before} == before
    assert committed <= found.keys()


def test_a_restore_brings_back_what_was_and_sets_aside_what_is(
    store: TaskStore, state_dir: Path
) -> None:
    session = begin_session(store)
    add_tasks(store, session, 5)
    before = everything(state_dir)
    backup = store.back_up()
    deleted = store.tasks.select(Selection())[:2]
    with closing(Archives(store)) as archives:
        archives.delete(deleted)
    later = add_task(store, session)
    now = everything(state_dir)
    done = restore(store, backup)
    assert done.tasks == 5
    assert everything(state_dir) == before
    assert add_task(store, session).number == later.number + 1  # no number is given twice
    restore(store, done.set_aside)
    assert everything(state_dir) == now


def test_a_restore_knows_the_numbers_that_archives_hold(store: TaskStore) -> None:
    session = begin_session(store)
    backup = store.back_up()
    with closing(Archives(store)) as archives:
        archives.archive(add_tasks(store, session, 3))
    restore(store, backup)
    assert add_task(store, session).number == 4


@pytest.mark.parametrize("way", ["restore", "archive"])
def test_each_notebook_goes_on_counting_by_itself(store: TaskStore, way: str) -> None:
    """Whichever of them was there first, and whatever the others have counted to."""
    first, second = (begin_session(store, f"/home/ada/{name}.ipynb") for name in "ab")
    tasks = add_tasks(store, first, 5) + add_tasks(store, second, 2)
    if way == "restore":
        restore(store, store.back_up())
    else:
        with closing(Archives(store)) as archives:
            archives.archive(tasks)
            archives.unarchive(archives.select(Selection()))
    assert {task.notebook: task.number for task in store.tasks.select(Selection())} == {
        "/home/ada/a.ipynb": 5,
        "/home/ada/b.ipynb": 2,
    }
    assert [add_task(store, session).number for session in (first, second)] == [6, 3]


def test_what_ran_when_the_backup_was_made_is_interrupted(store: TaskStore) -> None:
    task = add_task(store, begin_session(store), state=TaskState.RUNNING)
    backup = store.back_up()
    store.tasks.end(task.key, TaskState.COMPLETED, None, 0, task.created_at.timestamp() + 9)
    restore(store, backup)
    found = store.tasks.by_id(task.id)
    assert found is not None
    assert found.state is TaskState.INTERRUPTED
    assert found.reason == "was running when the backup was made"
    assert [event.state.value for event in store.tasks.history(found.key)][-1] == "interrupted"


def test_what_others_write_meanwhile_is_in_the_store_or_set_aside(
    store: TaskStore, state_dir: Path
) -> None:
    backup = store.back_up()
    with writing(state_dir) as writer:
        committed = {writer() for _ in range(20)}
        done = until(lambda: restored(store, backup))
        committed |= {writer() for _ in range(20)}
    aside = TaskStore(StateDirectory(done.set_aside.parent, done.set_aside.name))
    with closing(aside.open()):
        before = {task.id for task in aside.tasks.select(Selection())}
    assert committed <= before | ids(state_dir)


def restored(store: TaskStore, backup: Path) -> Restored | None:
    """Restore, unless a task happens to run at this moment."""
    try:
        return restore(store, backup)
    except InvalidRequest:
        return None


def test_nothing_is_restored_while_a_task_runs(store: TaskStore, state_dir: Path) -> None:
    session = begin_session(store)
    backup = store.back_up()
    live = add_task(store, session, state=TaskState.RUNNING)
    with pytest.raises(InvalidRequest, match=f"because {live.id} still runs"):
        restore(store, backup)
    assert ids(state_dir) == {live.id}


@pytest.mark.parametrize("bad", ["missing", "garbage", "empty", "other", "newer", "cut off"])
def test_a_file_that_is_no_backup_changes_nothing(
    store: TaskStore, state_dir: Path, tmp_path: Path, bad: str
) -> None:
    add_tasks(store, begin_session(store), 5)
    before, file = everything(state_dir), tmp_path / "file"
    if bad in ("newer", "cut off"):
        store.back_up(file)
    if bad == "garbage":
        file.write_bytes(b"no database" * 1000)
    elif bad == "empty":
        file.touch()
    elif bad == "cut off":
        file.write_bytes(file.read_bytes()[:20_000])
    elif bad != "missing":
        with closing(sqlite3.connect(file)) as connection:
            change = "CREATE TABLE x (y)" if bad == "other" else "PRAGMA user_version = 99"
            connection.execute(change)
            connection.commit()
    with pytest.raises(StoreError):
        restore(store, file)
    answer = run_command(state_dir, "restore", str(file), "--yes", notebook=NOTEBOOK)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert str(file) in answer.stderr
    assert everything(state_dir) == before


def test_a_kill_in_a_restore_leaves_all_of_the_one_or_all_of_the_other(
    store: TaskStore, state_dir: Path
) -> None:
    session = begin_session(store)
    first = add_tasks(store, session, 150)
    one = everything(state_dir)
    backup = store.back_up()
    with closing(Archives(store)) as archives:
        archives.delete(first)
    add_tasks(store, session, 150)
    other, aside = everything(state_dir), store.back_up()

    def again() -> None:
        restore(store, aside)

    def check() -> None:
        assert everything(state_dir) in (one, other)
        for part in state_dir.glob(".restore-*"):
            part.unlink()
        for file in repair.backups(StateDirectory(state_dir)):
            assert repair.is_whole(file)

    before = "from pathlib import Path\nfrom ipytaskpersist.store.restoring import restore"
    work = f"restore(store.open(), Path({str(backup)!r}))"
    kill_in_the_middle(before, work, state_dir, check, prepare=again)


# Earlier schemas.


def put(state_dir: Path, schema: str) -> StateDirectory:
    """A store of an earlier schema, made by the version of that time, as the only one."""
    shutil.rmtree(state_dir, ignore_errors=True)
    state_dir.mkdir(mode=0o700)
    shutil.copy(SCHEMAS / f"{schema}.db", state_dir / "tasks.db")
    return StateDirectory(state_dir)


@pytest.mark.parametrize("schema", sorted(file.stem for file in SCHEMAS.glob("*.db")))
def test_a_store_of_every_schema_opens_with_all_that_was_in_it(
    state_dir: Path, schema: str
) -> None:
    put(state_dir, schema)
    tasks = everything(state_dir)
    found = {task[1]: task for task in tasks.values()}
    assert found["train"][6] is TaskState.COMPLETED
    assert found["broken"][6] is TaskState.FAILED
    assert found["long"][6] is TaskState.INTERRUPTED
    printed = [output[2] for output in found["train"][17] if output[0].value == "stdout"]
    lines = "".join(f"epoch {n} loss={1 / (n + 1):.4f}\n" for n in range(5))
    assert b"".join(printed) == lines.encode()
    listed = run_command(state_dir, "list", "--json", notebook="/home/ada/analysis.ipynb")
    shown = json.loads(listed.stdout)["tasks"]
    assert {each["id"] for each in shown} == tasks.keys()
    assert shown[0]["last_line"] == "epoch 4 loss=0.2000"
    assert run_command(
        state_dir, "archive", "train", notebook="/home/ada/analysis.ipynb"
    ).stdout.startswith("moved 1 task to")


def test_a_backup_from_before_a_migration_is_restored_into_its_notebook(state_dir: Path) -> None:
    put(state_dir, "schema-3")
    before = everything(state_dir)
    (backup,) = (state_dir / "backups").glob("*-before-migration-from-3.db")
    with closing(open_store(state_dir)) as store:
        restore(store, backup)
        assert store.database.row("SELECT count(*) FROM notebooks") == (1,)
    assert everything(state_dir) == before
    listed = run_command(state_dir, "list", "--json", notebook="/home/ada/analysis.ipynb")
    assert json.loads(listed.stdout)["count"] == len(before)


def test_an_archive_that_cannot_be_read_stops_a_restore_and_nothing_else(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    archives.archive([add_task(store, begin_session(store))])
    backup = store.back_up()
    (file,) = (state_dir / "archive").glob("*.db")
    archives.close()
    file.write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"archive .* cannot be read .*; %bg_doctor says more"):
        restore(store, backup)
    assert not (state_dir / "tasks.db.damaged").exists()


def test_there_is_a_store_of_the_present_schema() -> None:
    """So that the next schema will be tested with one."""
    assert (SCHEMAS / f"schema-{len(STEPS)}.db").exists()


def test_a_kill_in_a_migration_leaves_the_old_store_or_the_new_one(state_dir: Path) -> None:
    put(state_dir, "schema-2")
    whole = everything(state_dir)

    def check() -> None:
        assert everything(state_dir) == whole
        for file in repair.backups(StateDirectory(state_dir)):
            assert repair.is_whole(file)

    kill_in_the_middle(
        "import sqlite_utils, ipytaskpersist.store.file.repair", "store.open()", state_dir, check,
        prepare=lambda: put(state_dir, "schema-2") and None,
    )  # fmt: skip


def test_only_so_many_automatic_backups_are_kept_and_all_of_those_asked_for(
    state_dir: Path,
) -> None:
    directory = put(state_dir, "schema-3")
    asked = TaskStore(directory, backups_kept=2).open()
    mine = asked.back_up()
    asked.close()
    for _ in range(4):
        shutil.copy(SCHEMAS / "schema-3.db", state_dir / "tasks.db")
        for suffix in ("-wal", "-shm"):
            (state_dir / f"tasks.db{suffix}").unlink(missing_ok=True)
        TaskStore(directory, backups_kept=2).open().close()
    names = [file.name for file in repair.backups(directory)]
    assert sum("before-migration-from-3" in name for name in names) == 2
    assert mine.name in names


# As it is typed.


def test_backup_and_restore_as_they_are_typed(store: TaskStore, state_dir: Path) -> None:
    add_task(store, begin_session(store, NOTEBOOK), name="first")
    file = state_dir.parent / "copy.db"
    done = run_command(state_dir, "backup", str(file), notebook=NOTEBOOK)
    assert done.stdout == f"backed up 1 task to {file}\n"
    homeless = run_command(state_dir, "backup", "~nobody-has-this-name/a.db", notebook=NOTEBOOK)
    assert "there is no folder" in homeless.stderr
    piped = run_command(state_dir, "backup", "-", notebook=NOTEBOOK)
    assert "a backup cannot go through a pipe" in piped.stderr
    refused = run_command(state_dir, "backup", str(file), notebook=NOTEBOOK)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"jupyter bg: {file} exists already; nothing was written. Give another name\n"
    )
    nowhere = run_command(state_dir, "backup", "/nowhere/copy.db", notebook=NOTEBOOK)
    assert nowhere.returncode == 1
    assert "there is no folder /nowhere" in nowhere.stderr
    add_task(store, begin_session(store, NOTEBOOK), name="second")
    asked = run_command(state_dir, "restore", str(file), notebook=NOTEBOOK)
    assert asked.returncode == 1
    assert "add --yes to replace the 2 tasks in the store" in asked.stderr
    done = run_command(state_dir, "restore", str(file), "--yes", notebook=NOTEBOOK)
    assert done.stdout.startswith(f"restored 1 task from {file}\nthe store as it was is ")
    names = {task[1] for task in everything(state_dir).values()}
    assert names == {"first"}


def test_a_backup_of_nothing_is_refused(state_dir: Path) -> None:
    ended = run_command(state_dir, "backup")
    assert ended.returncode == 1
    assert ended.stderr == "jupyter bg: there is nothing to back up yet: no task has been stored\n"
    assert not state_dir.exists()


def test_a_backup_goes_to_its_folder_and_nobody_else_can_read_it(
    store: TaskStore, state_dir: Path
) -> None:
    add_task(store, begin_session(store))
    assert run_command(state_dir, "backup").returncode == 0
    (file,) = until(lambda: list((state_dir / "backups").iterdir()))
    assert file.stat().st_mode & 0o077 == 0
    assert repair.is_whole(file)
