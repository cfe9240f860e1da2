"""Another version of the package has migrated the store while this one has it open."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from histories import begin_session
from kernels import until
from programs import run_together
from promises import assert_said

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, SessionRecord, TaskRecord, TaskState
from ipytaskpersist.doctor import report
from ipytaskpersist.errors import StoreNewer
from ipytaskpersist.history import upkeep
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.store import problems
from ipytaskpersist.store.aside import Aside, take_in
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.file.migrations import STEPS, declaration, may_write
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

OUT = OutputKind.STDOUT


def running(store: TaskStore, session: SessionRecord, name: str = "task") -> TaskRecord:
    new = NewTask(
        notebook_key=session.notebook_key, session_id=session.id, name=name, kind="python",
        runner="thread", source="pass",
    )  # fmt: skip
    task = store.tasks.insert(new)
    store.tasks.start(task.key, time.time())
    return task


def migrate_it(directory: StateDirectory, *statements: str) -> None:
    """What a newer version does to the store, which does not let this one write it."""
    with closing(sqlite3.connect(directory.store)) as newer:
        for statement in statements:
            newer.execute(statement)
        newer.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
        newer.commit()


def content(directory: StateDirectory) -> dict[str, list[object]]:
    with closing(sqlite3.connect(directory.store)) as other:
        tables = other.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: other.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables}


def test_a_version_says_of_its_store_which_may_write_it() -> None:
    own = len(STEPS)
    assert may_write(own, declaration())
    assert may_write(own + 2, own + 2 << 16 | own)
    assert not may_write(own + 2, own + 2 << 16 | own + 1)
    assert not may_write(own + 2, own + 1 << 16 | own), "that was said of another version"
    assert not may_write(own + 1, 0)


def test_once_it_may_not_be_written_nothing_is_and_what_cannot_be_read_is_no_damage(
    store: TaskStore,
) -> None:
    task = running(store, session := begin_session(store))
    migrate_it(store.directory, "ALTER TABLE tasks RENAME COLUMN name TO title")
    before = content(store.directory)
    row = NewOutput(task.key, OUT, time.time(), b"printed").as_row()
    for write in (
        lambda: store.outputs.append([row]),
        lambda: store.outputs.append([row, row]),
        lambda: store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time()),
        lambda: store.tasks.tag(task.key, ["tag"]),
        lambda: store.sessions.end(session.id, "ended"),
        lambda: store.upkeep.claim("upkeep", 1.0),
        lambda: running(store, session),
    ):
        with pytest.raises(StoreNewer):
            write()
    assert store.open().read_only
    with pytest.raises(StoreNewer, match="no such column"):
        store.tasks.get(task.key)
    assert not store.directory.damage_mark.exists()
    assert content(store.directory) == before


def test_what_may_be_written_goes_on_and_whole_tasks_are_left_to_the_newer_version(
    store: TaskStore,
) -> None:
    task = running(store, begin_session(store))
    version = len(STEPS) + 1
    declared = f"PRAGMA application_id = {version << 16 | len(STEPS)}"
    migrate_it(store.directory, declared, "ALTER TABLE tasks ADD COLUMN colour TEXT")
    store.outputs.append([NewOutput(task.key, OUT, time.time(), b"printed").as_row()])
    assert store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
    assert not store.open().read_only
    with pytest.raises(StoreNewer) as refused:
        store.require_own_version()
    assert_said("newer-additive", str(refused.value))


def test_a_recorder_says_it_once_and_keeps_all_for_the_newer_version(
    store: TaskStore, state_dir: Path
) -> None:
    session = begin_session(store)
    store.session_id = session.id
    task = running(store, session)
    said: list[str] = []
    recorder = Recorder(store, warn=said.append, heartbeat=lambda: None)
    recording = Recording(recorder, task.key)
    recorder.start()
    recording.write(OUT, "before\n")
    recorder.change(lambda _store: None)
    migrate_it(store.directory)
    for number in range(200):
        recording.write(OUT, f"{number} é\n")
        recording.add(OutputKind.DISPLAY_DATA, {"data": {"text/plain": "the same"}, "metadata": {}})
    recorder.change(
        lambda store: store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
    )
    recorder.stop(10)
    assert len(said) == 1
    assert_said("newer-aside", said[0])
    assert store.tasks.get(task.key).state is TaskState.RUNNING  # type: ignore[union-attr]
    _as_newer(state_dir, "list")
    after = store.tasks.get(task.key)
    assert after is not None
    assert after.state is TaskState.COMPLETED
    records = list(store.outputs.of(task.key))
    printed = b"".join(record.data for record in records if record.kind is OUT)
    assert printed.decode() == "before\n" + "".join(f"{number} é\n" for number in range(200))
    assert sum(record.kind is OutputKind.DISPLAY_DATA for record in records) == 200


AS_NEWER = f"""
import sys
from ipytaskpersist.store.file import migrations
while len(migrations.STEPS) < {len(STEPS) + 1}:
    migrations.step(lambda db: None)
"""


def _as_newer(state_dir: Path, *arguments: str) -> None:
    code = AS_NEWER + "from ipytaskpersist.__main__ import main; main()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


TAKE_IN = """
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.aside import take_in
store = TaskStore(StateDirectory(default_directory())).open()
start_together()
take_in(store)
"""


def test_what_was_kept_is_taken_in_once_for_its_own_tasks_and_as_far_as_it_is_whole(
    store: TaskStore, state_dir: Path
) -> None:
    session, other = begin_session(store), begin_session(store, "/home/ada/b.ipynb")
    task, alien = running(store, session), running(store, other)
    aside = Aside(store.directory, session.id)
    calls = vars(aside)
    for number in range(50):
        row = NewOutput(task.key, OUT, 1.0, b"%d\n" % number, first_byte=10 * number).as_row()
        calls["outputs"].append([row])
    calls["outputs"].append([NewOutput(alien.key, OUT, 1.0, b"alien").as_row()])
    calls["tasks"].end(alien.key, TaskState.FAILED, "alien", 1, time.time())
    assert calls["tasks"].to_notify(task.key) == []
    with aside.path.open("ab") as file:
        file.write(b'{"call": "tasks.fu')
    assert all(each.returncode == 0 for each in run_together(TAKE_IN, state_dir, 3))
    assert b"".join(record.data for record in store.outputs.of(task.key)).count(b"\n") == 50
    assert store.tasks.get(alien.key).state is TaskState.RUNNING  # type: ignore[union-attr]

    # Its owner, which is this process, has completed the line, and was taken for dead meanwhile.
    with aside.path.open("ab") as file:
        file.write(b'ture", "given": [1], "named": {}}\n')
    store.tasks.interrupt_session(session.id, "thread", "no sign of life", 2.0, "presumed")
    calls["tasks"].end(task.key, TaskState.COMPLETED, None, 0, time.time())
    take_in(store)
    ended = store.tasks.get(task.key)
    assert ended is not None
    assert (ended.state, ended.exit_code) == (TaskState.COMPLETED, 0)
    assert aside.path.exists()
    assert store.outputs.count(task.key, [OUT]) == 50


def test_upkeep_that_a_newer_version_overtakes_leaves_it_to_that(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says that its store is a newer version's; the upkeep has nothing to add."""

    def overtaken(own: TaskStore, _limits: upkeep.Limits) -> None:
        migrate_it(own.directory)
        own.upkeep.forget("what is not there")

    monkeypatch.setattr(upkeep, "run", overtaken)  # the moment in its work
    monkeypatch.setattr(upkeep, "NICENESS", 0)
    arguments = json.dumps(asdict(upkeep.Limits(None, None, "keep")))
    monkeypatch.setattr(sys, "argv", ["upkeep", str(store.directory.root), arguments])
    upkeep.main()
    assert problems.recorded(store.directory) == []


def test_the_file_of_another_host_or_container_is_removed_there_alone(store: TaskStore) -> None:
    """Its process cannot be seen from here, and may go on with the file."""
    session = begin_session(store)
    task, aside = running(store, session), Aside(store.directory, session.id)
    aside.begin()
    first = json.loads(aside.path.read_text())
    own = first["process"]
    elsewhere = [
        {"host": "elsewhere", "boot_id": "0f7a5a1e-1c1d-4d8e-9d5f-000000000000"},
        {"host": "elsewhere"} if own["namespace"] is None else {"namespace": own["namespace"] + 1},
    ]
    for number, other in enumerate(elsewhere):
        aside.path.write_text(json.dumps({**first, "process": {**own, **other}}) + "\n")
        take_in(store)
        row = NewOutput(task.key, OUT, 1.0, b"later\n", first_byte=10 * number).as_row()
        vars(aside)["outputs"].append([row])
        take_in(store)
        assert store.outputs.count(task.key, [OUT]) == number + 1
        (named,) = [each.message for each in report.examine(store.directory)
                    if str(aside.path) in each.message]  # fmt: skip
        assert f"process {own['pid']} of {other.get('host', own['host'])}" in named
        store.upkeep.forget(aside.path.name)
    gone = {**own, "start": "1"}
    aside.path.write_text(json.dumps({**first, "process": gone}) + "\n")
    take_in(store)
    assert not aside.path.exists()


def test_the_file_of_a_process_that_has_ended_is_removed(store: TaskStore, state_dir: Path) -> None:
    session = begin_session(store)
    task = running(store, session)
    code = f"""
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.aside import Aside
aside = Aside(StateDirectory(default_directory()), {session.id!r})
aside.tasks.end({task.key}, "failed", "exit status 3", 3, 1e9)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (file,) = store.directory.aside.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    until(lambda: take_in(store) or not file.exists(), message="the end of the file")
    ended = store.tasks.get(task.key)
    assert ended is not None
    assert (ended.state, ended.reason) == (TaskState.FAILED, "exit status 3")
