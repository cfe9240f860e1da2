"""A damaged store is set aside, and what can be read of it is saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import run_python

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.errors import StoreBusy, StoreDamaged
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

TASKS = 200
PAGE = 4096


@pytest.fixture
def directory(state_dir: Path) -> StateDirectory:
    """A store of ended tasks, each with output, closed."""
    directory = StateDirectory(state_dir)
    store = TaskStore(directory).open()
    session = store.sessions.begin(session_identity(None))
    for number in range(TASKS):
        new = NewTask(session.notebook_key, session.id, "", "python", "thread", "pass")
        key = store.tasks.insert(new).key
        store.tasks.start(key, time.time())
        data = f"{number}".encode() + os.urandom(2000)
        output = NewOutput(key, OutputKind.STDOUT, time.time(), data)
        store.outputs.append([output.as_row()])
        store.tasks.end(key, TaskState.COMPLETED, None, 0, time.time())
    store.close()
    return directory


def damage(directory: StateDirectory, change: Callable[[bytearray], bytearray]) -> None:
    directory.store.write_bytes(change(bytearray(directory.store.read_bytes())))


def assert_works(store: TaskStore) -> None:
    assert store.database.row("PRAGMA integrity_check")[0] == "ok"
    session = store.sessions.begin(session_identity(None))
    new = NewTask(session.notebook_key, session.id, "", "python", "thread", "pass")
    task = store.tasks.insert(new)
    assert store.tasks.history(task.key)[0].state is TaskState.PENDING


def test_garbage_in_the_place_of_the_store_is_set_aside(directory: StateDirectory) -> None:
    """An empty store is begun, the garbage is kept under a dated name, and both are said."""
    damage(directory, lambda _: bytearray(os.urandom(5000)))
    store = TaskStore(directory).open()
    (aside,) = directory.root.glob("tasks-damaged-*.db")
    assert str(aside) in store.notice
    assert "nothing, it cannot be read" in store.notice
    assert store.tasks.count(Selection()) == 0
    assert_works(store)
    store.close()


def test_a_store_cut_in_half_gives_what_is_left(directory: StateDirectory) -> None:
    """Whole tasks with whole outputs come over, and the person is told how many."""
    damage(directory, lambda content: content[: len(content) // 2])
    store = TaskStore(directory).open()
    tasks = store.tasks.select(Selection())
    assert 0 < len(tasks) < TASKS
    assert f"{len(tasks)} tasks" in store.notice
    assert {task.state for task in tasks} == {TaskState.COMPLETED}
    assert_works(store)
    store.close()


def test_damage_found_later_is_repaired_at_the_next_opening(directory: StateDirectory) -> None:
    """The error says what to do, and doing it saves every task that can be read."""

    def overwrite_index(content: bytearray) -> bytearray:
        content[PAGE : 3 * PAGE] = os.urandom(2 * PAGE)
        return content

    damage(directory, overwrite_index)
    store = TaskStore(directory).open()
    with pytest.raises(StoreDamaged, match="the next command, %bg_list, sets it aside"):
        assert_works(store)
    store.close()
    again = TaskStore(directory).open()
    assert f"{TASKS} tasks" in again.notice
    assert again.tasks.count(Selection()) == TASKS
    assert_works(again)
    again.close()


def test_the_newest_whole_backup_takes_the_place(directory: StateDirectory) -> None:
    """With a backup nothing that it holds is lost, even if nothing else can be read."""
    store = TaskStore(directory).open()
    store.back_up()
    store.close()
    damage(directory, lambda _: bytearray(os.urandom(5000)))
    restored = TaskStore(directory).open()
    assert f"{TASKS} rows more from the backup tasks-" in restored.notice
    assert restored.tasks.count(Selection()) == TASKS
    assert_works(restored)
    restored.close()


CUT_OFF = """
import os, signal
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.file import repair
from ipytaskpersist.store.task_store import TaskStore
repair.{place} = lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)
TaskStore(StateDirectory(default_directory())).open()
"""


@pytest.mark.parametrize("place", ["newest_whole_backup", "salvage", "without_triggers"])
def test_a_repair_that_was_killed_is_begun_again_with_the_same_file(
    directory: StateDirectory, place: str
) -> None:
    """Otherwise what was not saved yet would stay in the file that was set aside."""
    damage(directory, lambda content: content[:PAGE] + os.urandom(PAGE) + content[2 * PAGE :])
    directory.damage_mark.touch()
    for _attempt in range(2):
        killed = run_python(CUT_OFF.format(place=place), directory.root)
        assert killed.returncode == -signal.SIGKILL
    store = TaskStore(directory).open()
    (aside,) = directory.root.glob("tasks-damaged-*.db")
    assert str(aside) in store.notice
    assert store.tasks.count(Selection()) == TASKS
    assert not directory.damage_mark.exists()
    assert_works(store)
    store.close()


NO_ROOM = """
import resource, sys
from pathlib import Path
from ipytaskpersist.errors import StoreUnwritable
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.file import repair
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

moment, root = sys.argv[1], Path(sys.argv[2])
_soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
salvage = repair.salvage

def limited(*arguments):
    if moment == "before":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    salvage(*arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))

repair.salvage = limited
for attempt in range(2):
    try:
        TaskStore(StateDirectory(root)).open()
    except StoreUnwritable as error:
        print("refused", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(*(each.name for each in root.iterdir() if ".part" in each.name or "damaged-" in each.name))
repair.salvage = salvage
store = TaskStore(StateDirectory(root)).open()
print(store.tasks.count(Selection()), store.notice)
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no limit on the size of files")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_repair_without_room_leaves_the_damaged_store_and_no_other_file(
    directory: StateDirectory, moment: str
) -> None:
    """Whether what is saved cannot be written, or its log not be copied into the file."""
    damage(directory, lambda data: data[:36] + (1000).to_bytes(4, "big") + data[40:])
    directory.damage_mark.touch()
    ended = run_python(NO_ROOM, directory.root, moment, str(directory.root))
    assert ended.returncode == 0, ended.stderr[-2000:]
    *refused, left, repaired = ended.stdout.splitlines()
    assert [line.split()[0] for line in refused] == ["refused", "refused"]
    assert left == ""
    assert repaired.startswith(f"{TASKS} the store was damaged")


def test_an_error_in_a_file_that_was_just_repaired_is_no_damage(directory: StateDirectory) -> None:
    """A second mark would have the repaired store replaced once more."""
    store = TaskStore(directory).open()
    repaired = directory.root / "repaired.db"
    repaired.write_bytes(directory.store.read_bytes())
    repaired.replace(directory.store)
    with pytest.raises(StoreBusy, match="just being replaced; try again"), store.database.errors():
        raise sqlite3.DatabaseError("database disk image is malformed")
    assert not directory.damage_mark.exists()
    assert store.tasks.count(Selection()) == TASKS
    store.close()
