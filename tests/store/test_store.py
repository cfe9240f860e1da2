"""The store keeps its promises by itself, whoever writes to it and however many at once."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from layout import HELPERS, SCHEMAS
from programs import run_command, run_python, run_together

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import (
    OutputKind,
    ResultRecord,
    SessionRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.errors import StoreError
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.file.file_systems import file_system_of, journal_mode_for
from ipytaskpersist.store.file.migrations import STEPS, migrate
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
from ipytaskpersist.store.transfer import remove_tasks

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, INTERRUPTED = TaskState
ENDED = (COMPLETED, FAILED, CANCELLED, INTERRUPTED)

LEGAL = {
    *((PENDING, state) for state in (RUNNING, FAILED, CANCELLED, INTERRUPTED)),
    *((RUNNING, state) for state in ENDED),
}
ILLEGAL = sorted(set(itertools.product(TaskState, TaskState)) - LEGAL)

SET_STATE = "UPDATE tasks SET state = ?, started_at = ?, ended_at = ?, exit_code = ? WHERE key = ?"


def open_store(directory: Path, **options: str) -> TaskStore:
    return TaskStore(StateDirectory(directory), **options).open()


_count = itertools.count()


def an_identity(
    kernel_uuid: str | None = None, path: str = "/a.ipynb", *, has_path: bool = True
) -> SessionIdentity:
    return SessionIdentity(
        id=f"{next(_count):08}-session",
        front_end="kernel",
        path=path,
        has_path=has_path,
        kernel_uuid=kernel_uuid,
        process=ProcessIdentity.own(),
    )


def begin(store: TaskStore, *identity: Any, **options: Any) -> SessionRecord:
    return store.sessions.begin(an_identity(*identity, **options))


def insert(store: TaskStore, session: SessionRecord, **fields: Any) -> TaskRecord:
    known = {"name": "", "kind": "python", "runner": "thread", "source": "1", **fields}
    return store.tasks.insert(NewTask(session.notebook_key, session.id, **known))


@pytest.fixture
def session(store: TaskStore) -> SessionRecord:
    return begin(store)


def insert_in_state(store: TaskStore, session: SessionRecord, state: TaskState) -> TaskRecord:
    """A task that has come into this state in the shortest legal way."""
    task = insert(store, session)
    if state is not PENDING:
        store.tasks.start(task.key, time.time())
    if state.is_final:
        store.tasks.end(task.key, state, None, 0 if state is COMPLETED else None, time.time())
    return get(store, task)


def get(store: TaskStore, task: TaskRecord) -> TaskRecord:
    found = store.tasks.get(task.key)
    assert found is not None
    return found


def columns_for(state: TaskState) -> tuple[str, float | None, float | None, int | None]:
    """Values with which a row in this state satisfies every check of the table."""
    return (
        state.value,
        None if state is PENDING else 1.0,
        2.0 if state.is_final else None,
        0 if state is COMPLETED else None,
    )


def states_in_history(store: TaskStore, task: TaskRecord) -> list[TaskState]:
    return [event.state for event in store.tasks.history(task.key)]


# States.


@pytest.mark.parametrize(("old", "new"), ILLEGAL)
def test_the_database_refuses_every_illegal_transition(
    store: TaskStore, session: SessionRecord, old: TaskState, new: TaskState
) -> None:
    task = insert_in_state(store, session, old)
    history = store.tasks.history(task.key)
    with pytest.raises(store.database.integrity_error, match="illegal transition"):
        store.database.execute(SET_STATE, (*columns_for(new), task.key))
    assert get(store, task) == task
    assert store.tasks.history(task.key) == history


@pytest.mark.parametrize(("old", "new"), sorted(LEGAL))
def test_the_database_makes_every_legal_transition_and_adds_it_to_the_history(
    store: TaskStore, session: SessionRecord, old: TaskState, new: TaskState
) -> None:
    task = insert_in_state(store, session, old)
    before = states_in_history(store, task)
    store.database.execute(SET_STATE, (*columns_for(new), task.key))
    assert get(store, task).state is new
    assert states_in_history(store, task) == [*before, new]


@pytest.mark.parametrize("state", [RUNNING, *ENDED])
def test_a_task_begins_as_pending_and_as_nothing_else(
    store: TaskStore, session: SessionRecord, state: TaskState
) -> None:
    with pytest.raises(store.database.integrity_error, match="begins as pending"):
        store.database.execute(
            """INSERT INTO tasks (id, notebook_key, number, session_id, name, kind, runner, state,
                created_at, started_at, ended_at, exit_code, source)
            VALUES ('x', ?, 99, ?, '', 'python', 'thread', ?, 1, ?, ?, ?, '')""",
            (session.notebook_key, session.id, *columns_for(state)),
        )


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (PENDING, "state = 'finished'"),
        (PENDING, "state = 'running'"),
        (PENDING, "started_at = 1"),
        (PENDING, "state = 'failed'"),
        (PENDING, "number = 0"),
        (PENDING, "kind = 'ruby'"),
        (RUNNING, "ended_at = 1"),
        (RUNNING, "exit_code = 0"),
        (RUNNING, "state = 'completed', ended_at = 1"),
        (RUNNING, "state = 'completed', ended_at = 1, exit_code = 3"),
        (RUNNING, "state = 'interrupted', ended_at = 1, exit_code = 1"),
        (COMPLETED, "ended_at = NULL"),
        (COMPLETED, "started_at = NULL"),
        (COMPLETED, "exit_code = 1"),
    ],
)
def test_the_database_refuses_what_contradicts_a_tasks_state(
    store: TaskStore, session: SessionRecord, state: TaskState, change: str
) -> None:
    task = insert_in_state(store, session, state)
    with pytest.raises(store.database.integrity_error):
        store.database.execute(f"UPDATE tasks SET {change} WHERE key = ?", (task.key,))
    assert get(store, task) == task


@pytest.mark.parametrize("state", [RUNNING, *ENDED])
def test_a_task_starts_once(store: TaskStore, session: SessionRecord, state: TaskState) -> None:
    task = insert_in_state(store, session, state)
    assert not store.tasks.start(task.key, time.time())
    assert get(store, task) == task


@pytest.mark.parametrize("state", ENDED)
def test_the_first_end_stands(store: TaskStore, session: SessionRecord, state: TaskState) -> None:
    task = insert_in_state(store, session, state)
    assert not store.tasks.end(task.key, FAILED, "too late", 1, time.time())
    assert not store.tasks.request_cancel(task.key)
    assert store.tasks.interrupt_session(session.id, "thread", "too late", time.time()) == 0
    assert get(store, task) == task


def test_a_transition_and_its_history_are_one_transaction(
    state_dir: Path, store: TaskStore, session: SessionRecord
) -> None:
    task = insert(store, session)
    with closing(open_store(state_dir)) as other:

        def give_up_half_way() -> None:
            with store.database.transaction():
                store.tasks.start(task.key, time.time())
                assert states_in_history(store, task) == [PENDING, RUNNING]
                assert states_in_history(other, task) == [PENDING]
                raise InterruptedError

        with pytest.raises(InterruptedError):
            give_up_half_way()
        for each in (store, other):
            assert states_in_history(each, task) == [PENDING]
            assert get(each, task).state is PENDING


def test_the_history_says_when_and_why(store: TaskStore, session: SessionRecord) -> None:
    task = insert(store, session)
    store.tasks.start(task.key, task.created_at.timestamp() + 1)
    store.tasks.end(task.key, FAILED, "exit status 3", 3, task.created_at.timestamp() + 2)
    ended = get(store, task)
    assert [(event.state, event.reason, event.at) for event in store.tasks.history(task.key)] == [
        (PENDING, None, task.created_at),
        (RUNNING, None, ended.started_at),
        (FAILED, "exit status 3", ended.ended_at),
    ]


def test_a_task_never_ends_before_it_began(store: TaskStore, session: SessionRecord) -> None:
    """A clock that was set back, or a last heartbeat before the task, must not show as negative."""
    task = insert(store, session)
    started = time.time() + 60
    store.tasks.start(task.key, started)
    store.tasks.interrupt_session(session.id, "thread", "kernel died", started - 30)
    ended = get(store, task)
    assert ended.ended_at == ended.started_at


def test_interrupting_a_session_reaches_its_live_tasks_on_that_runner_alone(
    store: TaskStore, session: SessionRecord
) -> None:
    mine = [insert(store, session), insert_in_state(store, session, RUNNING)]
    others = [
        insert_in_state(store, session, COMPLETED),
        insert(store, session, runner="process"),
        insert(store, begin(store)),
    ]
    assert store.tasks.interrupt_session(session.id, "thread", "kernel died", time.time()) == 2
    assert [(get(store, task).state, get(store, task).reason) for task in mine] == [
        (INTERRUPTED, "kernel died")
    ] * 2
    assert [get(store, task) for task in others] == others


# Numbers and ids.


def test_numbers_count_from_one_in_each_notebook(store: TaskStore) -> None:
    first, second = begin(store, None, "/a.ipynb"), begin(store, None, "/b.ipynb")
    assert [insert(store, each).number for each in (first, second, first, first, second)] == [
        1, 1, 2, 3, 2,
    ]  # fmt: skip


def test_a_number_is_never_used_again(store: TaskStore, session: SessionRecord) -> None:
    for task in [insert(store, session) for _ in range(3)][1:]:
        remove_tasks(store.database, [task.id])
    later = begin(store)
    assert insert(store, later).number == 4


def test_the_database_refuses_a_number_twice_in_a_notebook(
    store: TaskStore, session: SessionRecord
) -> None:
    task, second = insert(store, session), insert(store, session)
    with pytest.raises(store.database.integrity_error):
        store.database.execute(
            "UPDATE tasks SET number = ? WHERE key = ?", (task.number, second.key)
        )


def test_an_id_is_the_session_and_the_number(store: TaskStore, session: SessionRecord) -> None:
    task = insert(store, session, name="train")
    assert task.id == f"{session.id[:8]}-1"
    assert store.tasks.by_id(task.id) == task


def test_a_task_comes_back_as_it_was_recorded(store: TaskStore, session: SessionRecord) -> None:
    task = insert(
        store, session, name="é <b>", source="print('\0')\n", cell_id="c1", execution_count=7
    )
    assert get(store, task) == task
    assert (task.notebook, task.state, task.cleared_at) == ("/a.ipynb", PENDING, None)


def test_a_selection_narrows_by_all_that_it_names(store: TaskStore) -> None:
    first, second = begin(store, None, "/a.ipynb"), begin(store, None, "/b.ipynb")
    done = insert_in_state(store, first, COMPLETED)
    live = [insert(store, first), insert(store, first)]
    elsewhere = insert(store, second)

    def selected(*fields: Any, **named: Any) -> list[int]:
        selection = Selection(*fields, **named)
        found = [task.key for task in store.tasks.select(selection)]
        if selection.limit is None:
            assert store.tasks.count(selection) == len(found)
        return found

    in_order = [done.key, *(task.key for task in live), elsewhere.key]
    assert selected() == in_order
    assert selected(first.notebook_key) == in_order[:3]
    assert selected(first.notebook_key, [PENDING]) == in_order[1:3]
    assert selected(limit=2) == in_order[2:]
    assert selected(session_prefix=second.id[:8]) == in_order[3:]
    assert store.tasks.clear(first.notebook_key) == 1
    assert selected(cleared=False) == in_order[1:]
    assert selected() == in_order


# Notebooks.

# What a kernel knows of itself (the uuid in its connection file, JPY_SESSION_NAME), session after
# session, and which notebook each one belongs to.
SERVER_KERNELS = {
    "restart": [("u1", "/a", 1), ("u1", "/a", 1)],
    "server restart": [("u1", "/a", 1), ("u2", "/a", 1)],
    "rename, then restart": [("u1", "/a", 1), ("u1", "/b", 1)],
    "rename, restart, server restart": [("u1", "/a", 1), ("u1", "/b", 1), ("u2", "/b", 1)],
    "two notebooks": [("u1", "/a", 1), ("u2", "/b", 2), ("u1", "/a", 1), ("u3", "/b", 2)],
    "renamed to the name of another": [("u1", "/a", 1), ("u2", "/b", 2), ("u1", "/b", 1)],
    "the newest of a path": [("u1", "/a", 1), ("u2", "/b", 2), ("u2", "/a", 2), ("u3", "/a", 2)],
    "terminals": [(None, "/a", 1), (None, "/b", 2), (None, "/a", 1), (None, "/b", 2)],
}


@pytest.mark.parametrize("sessions", SERVER_KERNELS.values(), ids=SERVER_KERNELS)
def test_a_session_joins_the_notebook_that_shares_its_kernel_uuid_or_its_path(
    store: TaskStore, sessions: list[tuple[str | None, str, int]]
) -> None:
    keys: list[int] = []
    for kernel_uuid, path, _notebook in sessions:
        known = store.sessions.find_notebook(an_identity(kernel_uuid, path))
        keys.append(begin(store, kernel_uuid, path).notebook_key)
        assert known is None or known.key == keys[-1]
    notebooks = list(dict.fromkeys(keys))
    assert [notebooks.index(key) + 1 for key in keys] == [notebook for *_, notebook in sessions]


def test_kernels_without_a_path_are_not_joined_by_their_folder(store: TaskStore) -> None:
    """nbclient gives no path: there the path is the folder, which all notebooks in it share."""
    first, again, other = (
        begin(store, kernel_uuid, "/folder", has_path=False) for kernel_uuid in ("u1", "u1", "u2")
    )
    in_terminal = begin(store, None, "/folder")
    assert first.notebook_key == again.notebook_key
    assert len({first.notebook_key, other.notebook_key, in_terminal.notebook_key}) == 3


def test_a_renamed_notebook_shows_its_new_path(store: TaskStore) -> None:
    task = insert(store, begin(store, "u1", "/old.ipynb"))
    begin(store, "u1", "/new.ipynb")
    assert get(store, task).notebook == "/new.ipynb"


def test_a_session_that_begins_again_goes_on(store: TaskStore) -> None:
    """Unloading and loading the extension in one kernel is one session."""
    identity = an_identity("u1")
    first = store.sessions.begin(identity)
    store.sessions.end(first.id, "extension unloaded")
    assert store.sessions.get(first.id) != first
    assert store.sessions.begin(identity) == first
    assert [each.id for each in store.sessions.select(None)] == [first.id]


def test_the_first_end_of_a_session_stands(store: TaskStore, session: SessionRecord) -> None:
    store.sessions.end(session.id, "kernel restarted")
    ended = store.sessions.get(session.id)
    store.sessions.end(session.id, "kernel died")
    assert ended is not None
    assert ended.end_reason == "kernel restarted"
    assert store.sessions.get(session.id) == ended


# Outputs and results of tasks that go away.


def an_output(task: TaskRecord, text: str = "text\n") -> tuple[Any, ...]:
    return NewOutput(task.key, OutputKind.STDOUT, time.time(), text.encode()).as_row()


def row_counts(store: TaskStore) -> dict[str, int]:
    return {
        table: store.database.row(f"SELECT count(*) FROM {table}")[0]
        for table in ("tasks", "events", "outputs", "results")
    }


def test_deleting_a_task_deletes_all_that_was_stored_of_it_and_nothing_else(
    store: TaskStore, session: SessionRecord
) -> None:
    result = ResultRecord("", None, None, None, None, "1", "could not be pickled")
    kept, deleted = (insert_in_state(store, session, RUNNING) for _ in range(2))
    for task in (kept, deleted):
        store.outputs.append([an_output(task), an_output(task)])
        store.results.save(task.key, result)
        store.tasks.end(task.key, COMPLETED, None, 0, time.time())
    remove_tasks(store.database, [deleted.id])
    assert row_counts(store) == {"tasks": 1, "events": 3, "outputs": 2, "results": 1}
    assert store.tasks.get(kept.key)
    assert len(list(store.outputs.of(kept.key))) == 2
    assert store.results.get(kept.key) == result


@pytest.mark.parametrize("neighbours", [0, 1, 3])
def test_output_of_a_deleted_task_is_dropped_and_its_neighbours_are_kept(
    store: TaskStore, session: SessionRecord, neighbours: int
) -> None:
    deleted = insert_in_state(store, session, RUNNING)
    others = [insert(store, session) for _ in range(neighbours)]
    remove_tasks(store.database, [deleted.id])
    store.outputs.append([an_output(task) for task in (deleted, *others)])
    assert row_counts(store)["outputs"] == neighbours
    assert all(len(list(store.outputs.of(task.key))) == 1 for task in others)


@pytest.mark.parametrize("state", ENDED)
def test_the_output_of_an_ended_task_never_changes(
    store: TaskStore, session: SessionRecord, state: TaskState
) -> None:
    ended, running = (insert_in_state(store, session, RUNNING) for _ in range(2))
    store.outputs.append([an_output(ended)])
    store.tasks.end(ended.key, state, None, 0 if state is COMPLETED else None, time.time())
    store.outputs.append([an_output(ended)])
    store.outputs.append([an_output(ended), an_output(running)])
    assert [len(list(store.outputs.of(task.key))) for task in (ended, running)] == [1, 1]


def test_what_a_task_prints_that_was_declared_dead_by_mistake_is_kept(
    store: TaskStore, session: SessionRecord
) -> None:
    task = insert_in_state(store, session, RUNNING)
    store.tasks.interrupt_session(session.id, "thread", "kernel died", 1.0, "presumed")
    store.outputs.append([an_output(task)])
    assert len(list(store.outputs.of(task.key))) == 1


def test_foreign_keys_hold_in_every_thread(store: TaskStore) -> None:
    refused: list[bool] = []

    def try_to_orphan() -> None:
        with pytest.raises(store.database.integrity_error):
            store.database.execute(
                "INSERT INTO events (task_key, state, at) VALUES (12345, 'pending', 1)"
            )
        refused.append(True)

    thread = threading.Thread(target=try_to_orphan)
    thread.start()
    thread.join(30)
    try_to_orphan()
    assert refused == [True, True]


# Files.


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Nothing is taken from the modes that a program asks for."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.usefixtures("no_umask")
def test_only_the_owner_can_enter_the_directory_and_read_its_files(state_dir: Path) -> None:
    with closing(open_store(state_dir)) as store:
        insert(store, begin(store))
        backup = Path(store.back_up())
        files = [path for path in state_dir.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"tasks.db", "tasks.db-wal", "tasks.db-shm"}
        assert backup in files
        assert {path.name: oct(mode_of(path)) for path in files if mode_of(path) != 0o600} == {}
        assert (mode_of(state_dir), mode_of(backup.parent)) == (0o700, 0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_directory_that_others_could_read_is_closed_to_them(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o755)
    open_store(state_dir).close()
    assert mode_of(state_dir) == 0o700


def test_asking_whether_there_is_a_store_makes_none(state_dir: Path) -> None:
    assert not TaskStore(StateDirectory(state_dir)).exists
    assert not state_dir.exists()


def test_a_directory_that_cannot_be_made_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="set IPYTASKPERSIST_DIR to a folder that you can write"):
        open_store(tmp_path / "file" / "state")


# Versions.


AS_NOBODY = """
import os, sys
from pathlib import Path
from ipytaskpersist.errors import StoreError
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.task_store import TaskStore
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    TaskStore(StateDirectory(Path(sys.argv[1]))).exists
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be somebody else"
)
def test_a_directory_that_cannot_be_looked_into_is_an_error_with_the_next_step(
    store: TaskStore, state_dir: Path
) -> None:
    ended = run_python(AS_NOBODY, state_dir, str(state_dir), cwd=Path("/"))
    assert ended.stdout == (
        f"cannot look into the state directory {state_dir} (Permission denied); "
        "set IPYTASKPERSIST_DIR to a folder of your own\n"
    )


def test_a_store_of_a_newer_version_is_read_and_never_written(state_dir: Path) -> None:
    with closing(open_store(state_dir)) as store:
        task = insert(store, begin(store), name="train")
        store.database.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    with closing(open_store(state_dir)) as newer:
        assert newer.read_only
        assert newer.tasks.get(task.key) == task
        with pytest.raises(StoreError, match=r"newer version of ipytaskpersist.*pip install -U"):
            newer.require_writable()
        with pytest.raises(StoreError, match="cannot be written"):
            newer.tasks.start(task.key, time.time())
        assert newer.tasks.get(task.key) == task
        assert newer.database.row("PRAGMA user_version") == (len(STEPS) + 1,)


def test_the_commands_read_a_store_of_a_newer_version_and_refuse_to_change_it(
    state_dir: Path,
) -> None:
    with closing(open_store(state_dir)) as store:
        task = insert(store, begin(store), name="train")
        store.database.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    listed = run_command(state_dir, "list", "--all")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "train" in listed.stdout
    refused = run_command(state_dir, "cancel", task.id, "--yes")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "newer version" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_an_older_store_is_backed_up_and_brought_up_to_date(state_dir: Path) -> None:
    from sqlite_utils import Database, Migrations

    state_dir.mkdir()
    old = sqlite3.connect(state_dir / "tasks.db", isolation_level=None)
    migrations = Migrations("ipytaskpersist")
    migrations(name=STEPS[0].__name__)(STEPS[0])
    migrations.apply(Database(old, execute_plugins=False))
    old.execute("PRAGMA user_version = 1")
    old.execute("INSERT INTO notebooks (path, created_at) VALUES ('/a.ipynb', 1)")
    old.close()
    with closing(open_store(state_dir)) as store:
        assert store.database.row("PRAGMA user_version") == (len(STEPS),)
        assert store.database.rows("SELECT path FROM notebooks") == [("/a.ipynb",)]
        insert(store, begin(store))
    (backup,) = (state_dir / "backups").iterdir()
    copy = sqlite3.connect(backup)
    assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    assert copy.execute("SELECT path FROM notebooks").fetchall() == [("/a.ipynb",)]
    copy.close()


OWN_SQLITE = """
import sys
sys.modules["pysqlite3"] = None
sys.path.insert(0, sys.argv[2])
from contextlib import closing
from pathlib import Path
from histories import add_task, begin_session, open_store
from ipytaskpersist.store.file.database import sqlite3
assert sqlite3.__name__.startswith("sqlite3")
with closing(open_store(Path(sys.argv[1]))) as store:
    print(add_task(store, begin_session(store), printed=b"printed").label)
"""


def test_the_sqlite_of_python_itself_keeps_tasks(state_dir: Path) -> None:
    """It serves where there is no wheel of pysqlite3, and may be years older."""
    ran = run_python(OWN_SQLITE, state_dir, str(state_dir), str(HELPERS))
    assert ran.stdout.strip() == "1", ran.stderr


def test_the_sqlite_of_python_itself_goes_on_in_a_store_that_a_newer_one_has_made(
    state_dir: Path,
) -> None:
    state_dir.mkdir(mode=0o700)
    store = state_dir / "tasks.db"
    shutil.copy(SCHEMAS / "schema-7.db", store)
    store.chmod(0o600)
    ran = run_python(OWN_SQLITE, state_dir, str(state_dir), str(HELPERS))
    assert ran.stdout.strip().isdigit(), ran.stderr


# Several at once.

WRITER = """
import time
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

import sqlite_utils  # the slow import of the first migration, which would spread the starts
place = sys.argv[1]
store = TaskStore(StateDirectory(default_directory()))
identity = SessionIdentity(
    f"{place:>08}-x", "kernel", "/a.ipynb", True, f"u{place}", ProcessIdentity.own())
start_together()
session = store.open().sessions.begin(identity)
for turn in range(100):
    task = store.tasks.insert(
        NewTask(session.notebook_key, session.id, f"{place}/{turn}", "python", "thread", "1"))
    store.tasks.start(task.key, time.time())
    output = NewOutput(task.key, OutputKind.STDOUT, time.time(), task.name.encode())
    store.outputs.append([output.as_row()])
store.close()
"""


STARTER = """
import time
from pathlib import Path
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore

import sqlite_utils
root, place = default_directory(), sys.argv[1]
start_together()
for turn in range(20):
    here = root / str(turn)
    here.mkdir(parents=True, exist_ok=True)
    (here / place).touch()
    while len(list(here.iterdir())) < 4:
        time.sleep(0.0005)
    try:
        TaskStore(StateDirectory(root / f"store-{turn}")).open().close()
    except Exception as error:
        print(error)
"""


def test_a_store_is_made_by_whoever_comes_first_and_the_others_wait(state_dir: Path) -> None:
    """Twenty times, because they meet at the wrong moment only now and then."""
    ended = run_together(STARTER, state_dir, 4)
    assert [each.stdout + each.stderr for each in ended] == [""] * 4


DAMAGE_FINDER = """
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

import sqlite_utils
from ipytaskpersist.store.file import repair
store = TaskStore(StateDirectory(default_directory()))
start_together()
print(store.open().tasks.count(Selection()))
"""


def test_processes_that_find_damage_at_once_repair_it_once(
    state_dir: Path, store: TaskStore, session: SessionRecord
) -> None:
    """A second repair would set the first one's work aside."""
    for _ in range(100):
        insert(store, session, source="x" * 500)
    store.close()
    content = bytearray((state_dir / "tasks.db").read_bytes())
    # The last page of the file belongs to the tasks; the first ones say where everything is.
    content[-4096:-3000] = b"\xff" * 1096
    (state_dir / "tasks.db").write_bytes(content)
    store.directory.damage_mark.touch()
    ended = run_together(DAMAGE_FINDER, state_dir, 4)
    assert [(each.returncode, each.stderr[-500:]) for each in ended] == [(0, "")] * 4
    saved = {each.stdout for each in ended}
    assert len(saved) == 1
    assert int(saved.pop()) > 50
    assert len(list(state_dir.glob("tasks-damaged-*.db"))) == 1


def schema(store: TaskStore) -> list[Any]:
    return store.database.rows("SELECT type, name, sql FROM sqlite_schema ORDER BY name")


def test_eight_processes_that_make_the_store_at_once_lose_nothing(
    state_dir: Path, tmp_path: Path
) -> None:
    ended = run_together(WRITER, state_dir, 8)
    assert [(each.returncode, each.stderr) for each in ended] == [(0, "")] * 8
    with closing(open_store(state_dir)) as store, closing(open_store(tmp_path / "other")) as other:
        tasks = store.tasks.select(Selection())
        assert {task.name for task in tasks} == {
            f"{place}/{turn}" for place in range(8) for turn in range(100)
        }
        assert sorted(task.number for task in tasks) == list(range(1, 801))
        assert len({task.id for task in tasks}) == len({task.notebook_key for task in tasks}) + 799
        printed = [[output.data for output in store.outputs.of(task.key)] for task in tasks]
        assert printed == [[task.name.encode()] for task in tasks]
        assert all(states_in_history(store, task) == [PENDING, RUNNING] for task in tasks)
        assert schema(store) == schema(other)
        assert store.database.row("PRAGMA integrity_check") == ("ok",)
        assert store.database.rows("PRAGMA foreign_key_check") == []


def test_each_thread_has_a_connection_of_its_own(store: TaskStore) -> None:
    connections: list[Any] = []

    def look() -> None:
        connections.append(store.database.connection)
        connections.append(store.database.connection)

    for _ in range(2):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(30)
    first, first_again, second, second_again = connections
    assert first is first_again
    assert second is second_again
    assert len({id(first), id(second), id(store.database.connection)}) == 3


def test_the_connection_of_a_thread_that_ended_is_closed(store: TaskStore) -> None:
    """Every open connection keeps a file descriptor, and a notebook starts many threads."""
    connections: list[Any] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: connections.append(store.database.connection))
        thread.start()
        thread.join(30)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connections[0].execute("SELECT 1")


FORK = """
import os, sys, time
from ipytaskpersist.errors import ForkedProcess
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

store = TaskStore(StateDirectory(default_directory())).open()
session = store.sessions.begin(
    SessionIdentity("0" * 8, "program", "/a", True, None, ProcessIdentity.own()))
def insert(name):
    store.tasks.insert(NewTask(session.notebook_key, session.id, name, "python", "thread", ""))
insert("parent before")
inherited = store.database.connection
child = os.fork()
if child == 0:
    status = 1
    try:
        insert("child")
    except ForkedProcess:
        store.close()
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
assert store.database.connection is inherited, "the parent lost its connection"
insert("parent after")
print(*(task.name for task in store.tasks.select(Selection())), sep=", ")
print(store.database.row("PRAGMA integrity_check")[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_keeps_off_a_store_that_its_parent_has_open(state_dir: Path) -> None:
    """It would share no lock with anybody: SQLite believes to have those that its parent has."""
    forked = run_python(FORK, state_dir)
    assert forked.stdout == "parent before, parent after\nok\n", forked.stderr


def test_what_others_commit_is_noticed_and_what_one_commits_oneself_is_not(
    state_dir: Path, store: TaskStore, session: SessionRecord
) -> None:
    before = store.database.data_version
    insert(store, session)
    assert store.database.data_version == before
    with closing(open_store(state_dir)) as other:
        insert(other, session)
    assert store.database.data_version != before


@pytest.mark.parametrize(("option", "level"), [("normal", 1), ("full", 2)])
def test_the_store_waits_for_the_disk_when_it_is_told_to(
    state_dir: Path, option: str, level: int
) -> None:
    with closing(open_store(state_dir, synchronous=option)) as store:
        assert store.database.row("PRAGMA synchronous") == (level,)
        assert store.database.row("PRAGMA journal_mode") == ("wal",)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_file_system_decides_the_journal(tmp_path: Path) -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert journal_mode_for(tmp_path) == "WAL"


CLOSED_IN_USE = """
import threading
from ipytaskpersist.errors import StoreError
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore

store = TaskStore(StateDirectory(default_directory())).open()
over = threading.Event()

def write():
    while not over.is_set():
        try:
            store.upkeep.claim("again", 0)
        except StoreError:
            continue

threads = [threading.Thread(target=write) for _ in range(2)]
for thread in threads:
    thread.start()
for _turn in range(1000):
    store.database.close()
over.set()
for thread in threads:
    thread.join()
print("alive")
"""


def test_a_connection_that_another_thread_uses_is_not_closed_under_it(state_dir: Path) -> None:
    """SQLite would use what is freed, and the interpreter crash."""
    ran = run_python(CLOSED_IN_USE, state_dir)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), (ran.returncode, ran.stderr[-1000:])


def test_a_new_store_is_what_the_migrations_make(store: TaskStore) -> None:
    migrated = sqlite3.connect(":memory:", isolation_level=None)
    migrate(migrated)
    made = sqlite3.connect(store.database.path)
    for query in (
        "SELECT type, name, tbl_name, rtrim(sql) FROM sqlite_master ORDER BY type, name",
        "SELECT migration_set, name FROM _sqlite_migrations ORDER BY id",
        "SELECT name, seq FROM sqlite_sequence ORDER BY name",
        "PRAGMA user_version",
        "PRAGMA application_id",
    ):
        trimmed = [
            [[str(value).strip() for value in row] for row in connection.execute(query)]
            for connection in (migrated, made)
        ]
        assert trimmed[0] == trimmed[1], "`make docs` writes the schema of a new store anew"


def test_a_new_store_is_made_without_sqlite_utils_and_what_it_imports(state_dir: Path) -> None:
    """Both take a while to import, and the first background cell of a user would wait."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ipytaskpersist.base.paths import StateDirectory\n"
        "from ipytaskpersist.store.task_store import TaskStore\n"
        f"TaskStore(StateDirectory(Path({str(state_dir)!r}))).open().close()\n"
        "print({'sqlite_utils', 'pandas'} & set(sys.modules))\n"
    )
    assert run_python(program, state_dir).stdout == "set()\n"
