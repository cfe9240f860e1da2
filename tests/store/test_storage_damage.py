"""A damaged store is set aside, what can be read is saved, and nothing false is shown as true."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from programs import run_command
from promises import assert_said, is_said

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.errors import StoreDamaged, StoreError
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.file.repair import is_whole
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

TASKS = 24
PAGE = 4096
FLIPS = int(os.environ.get("IPYTASKPERSIST_FLIPS", "100"))
"""How many damaged stores are opened; 1,000 take some minutes."""


def long_output(number: int) -> bytes:
    """Compressed when it is stored, into more than a page."""
    chance = random.Random(number)
    return "".join(f"{number} {chance.random()}\n" for _ in range(120)).encode()


def fill(store: TaskStore) -> None:
    """Ended tasks, each with a short and a long piece of output."""
    session = store.sessions.begin(session_identity(None))
    for number in range(1, TASKS + 1):
        new = NewTask(session.notebook_key, session.id, f"n{number}", "python", "thread", "pass")
        key = store.tasks.insert(new).key
        store.tasks.start(key, 1.7e9)
        for data in (b"short %d\n" % number, long_output(number)):
            store.outputs.append([NewOutput(key, OutputKind.STDOUT, 1.7e9, data).as_row()])
        store.tasks.end(key, TaskState.COMPLETED, None, 0, 1.7e9)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store's file."""
    directory = tmp_path_factory.mktemp("original")
    with closing(TaskStore(StateDirectory(directory)).open()) as store:
        fill(store)
    return directory / "tasks.db"


def put(original: Path, state_dir: Path, content: bytes) -> StateDirectory:
    """A state directory whose store has this content."""
    shutil.rmtree(state_dir, ignore_errors=True)
    state_dir.mkdir(mode=0o700)
    (state_dir / "tasks.db").write_bytes(content)
    return StateDirectory(state_dir)


def read_all(store: TaskStore) -> Iterator[tuple[TaskRecord, bytes]]:
    """Every task with what it has printed."""
    for task in store.tasks.select(Selection()):
        store.tasks.history(task.key)
        yield task, b"".join(output.data for output in store.outputs.of(task.key))


def look(directory: StateDirectory) -> tuple[dict[int, bytes], str]:
    """All that a damaged store gives, and what is said of it, by the third trial at the latest."""
    said = ""
    for _trial in range(3):
        with closing(TaskStore(directory)) as store:
            store.say = lambda _said: None
            try:
                found = {task.number: data for task, data in read_all(store.open())}
                for session in store.sessions.select(None):
                    assert session.id
            except StoreDamaged as error:
                said += str(error)
            else:
                return found, said + store.notice
    raise AssertionError(f"still damaged: {said}")


LONG_LINES = {
    line for number in range(1, TASKS + 1) for line in long_output(number).splitlines(keepends=True)
}


def lost_from(found: dict[int, bytes]) -> int:
    """How many tasks are missing. Fails where something is shown that was not printed.

    Whose output it is, and what a short line says, no checksum guards.
    """
    for number, data in found.items():
        for line in data.splitlines(keepends=True):
            is_marked = b"bytes that were stored here are damaged]" in line or not line.strip()
            is_short = line.startswith(b"short") or len(line) < 16
            assert line in LONG_LINES or is_marked or is_short, (number, line)
    return TASKS - len(found)


@pytest.mark.parametrize("many", [1, 40])
def test_flipped_bits_crash_nothing_and_lose_little(
    original: Path, state_dir: Path, many: int
) -> None:
    """Each opens; what is compressed is right or marked; most tasks are saved."""
    content = original.read_bytes()
    chance = random.Random(many)
    lost, untouched, repaired = 0, 0, 0
    rounds = FLIPS if many == 1 else max(10, FLIPS // 10)
    for _round in range(rounds):
        damaged = bytearray(content)
        for _flip in range(many):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        found, said = look(put(original, state_dir, bytes(damaged)))
        lost += lost_from(found)
        untouched += not said
        repaired += "set aside as" in said
        if said:
            assert is_said("repaired", said) or is_said("repaired-whole", said), said
    print(f"{rounds} stores with {many} flipped bits: {untouched} not noticed, {repaired} repaired,"
          f" {lost} of {rounds * TASKS} tasks lost")  # fmt: skip
    assert lost < rounds * TASKS * (0.02 if many == 1 else 0.5)


@pytest.mark.parametrize("damaged", [b"TABLE tasks", b"INTEGER PRIMARY", b"name TEXT"])
def test_a_damaged_definition_loses_nothing(
    original: Path, state_dir: Path, damaged: bytes
) -> None:
    """The definition of a table is the same in every store of its version."""
    content = bytearray(original.read_bytes())
    at = content.index(damaged, content.index(b"CREATE TABLE tasks"))
    content[at + len(damaged) - 1] ^= 1
    found, said = look(put(original, state_dir, bytes(content)))
    assert lost_from(found) == 0
    assert_said("repaired-whole", said)


def lengths() -> list[int]:
    chance = random.Random(7)
    fixed = [15, 16, 17, 99, 100, 101, 1023, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 10 * PAGE]
    return [*fixed, *(chance.randrange(200_000) for _ in range(7))]


@pytest.mark.parametrize("length", lengths())
def test_a_store_cut_anywhere_gives_what_is_left(
    original: Path, state_dir: Path, length: int
) -> None:
    content = original.read_bytes()
    length = min(length, len(content) - 1)
    found, said = look(put(original, state_dir, content[:length]))
    lost = lost_from(found)
    assert "set aside as" in said
    # The tasks' rows are at the front, among their outputs.
    assert lost <= TASKS * (1 - length / len(content)) + 20


def test_garbage_a_directory_and_an_empty_file_in_its_place(
    original: Path, state_dir: Path
) -> None:
    found, said = look(put(original, state_dir, os.urandom(5000)))
    assert found == {}
    assert_said("unreadable", said)
    directory = put(original, state_dir, b"")
    assert look(directory) == ({}, "")
    shutil.rmtree(state_dir)
    (state_dir / "tasks.db").mkdir(parents=True)
    state_dir.chmod(0o700)
    with pytest.raises(StoreError) as caught:
        TaskStore(directory).open()
    assert_said("directory", str(caught.value))
    assert_said("directory", run_command(state_dir, "list").stderr)


def cut_in_half(directory: StateDirectory) -> None:
    content = directory.store.read_bytes()
    directory.store.write_bytes(content[: len(content) // 2])


def test_what_cannot_be_read_comes_from_the_backup_and_the_deleted_stays_deleted(
    state_dir: Path,
) -> None:
    """A backup fills the gaps of what could not be read, and only those."""
    directory = StateDirectory(state_dir)
    with closing(TaskStore(directory).open()) as store:
        fill(store)
        store.back_up()
    whole = directory.store.read_bytes()
    cut_in_half(directory)
    found, said = look(directory)
    assert_said("repaired-from-backup", said)
    assert found == {n: b"short %d\n" % n + long_output(n) for n in range(1, TASKS + 1)}
    assert "tasks" in said
    directory.store.write_bytes(whole)
    with closing(TaskStore(directory).open()) as store:
        from ipytaskpersist.store.transfer import remove_tasks

        remove_tasks(store.database, [task.id for task in store.tasks.select(Selection())[:12]])
    overwrite_an_index(directory)
    with closing(TaskStore(directory).open()) as store, pytest.raises(StoreDamaged) as caught:
        store.database.rows("SELECT state FROM tasks INDEXED BY tasks_overview WHERE state = 'x'")
    assert_said("damaged", str(caught.value))
    found, said = look(directory)
    assert_said("repaired-whole", said)
    assert min(found) == 13


def overwrite_an_index(directory: StateDirectory) -> None:
    """Damage the pages of an index, from which every row can still be read without it."""
    with closing(TaskStore(directory).open()) as store:
        (page,) = store.database.row(
            "SELECT rootpage FROM sqlite_master WHERE name = 'tasks_overview'"
        )
        store.database.checkpoint()
    with directory.store.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(os.urandom(PAGE))


def test_no_number_and_no_key_is_given_again_after_a_repair(state_dir: Path) -> None:
    """Also those of tasks that were deleted before, or that could not be read."""
    directory = StateDirectory(state_dir)
    with closing(TaskStore(directory).open()) as store:
        fill(store)
        from ipytaskpersist.store.transfer import remove_tasks

        remove_tasks(store.database, [task.id for task in store.tasks.select(Selection())[20:]])
    overwrite_an_index(directory)
    directory.damage_mark.touch(mode=0o600)
    with closing(TaskStore(directory).open()) as store:
        session = store.sessions.begin(session_identity(None))
        new = NewTask(session.notebook_key, session.id, "", "python", "thread", "pass")
        task = store.tasks.insert(new)
        assert (task.number, task.key) == (TASKS + 1, TASKS + 1)
        store.outputs.append([NewOutput(task.key, OutputKind.STDOUT, 1.7e9, b"x").as_row()])
        assert store.outputs.last_sequence(task.key) == 2 * TASKS + 1


def test_keys_of_outputs_and_of_the_history_are_never_given_again(store: TaskStore) -> None:
    """Who follows the store would take the new for what it has seen."""
    fill(store)
    before = store.changes.now()
    from ipytaskpersist.store.transfer import remove_tasks

    remove_tasks(store.database, [task.id for task in store.tasks.select(Selection())])
    session = store.sessions.begin(session_identity(None))
    new = NewTask(session.notebook_key, session.id, "", "python", "thread", "pass")
    key = store.tasks.insert(new).key
    store.outputs.append([NewOutput(key, OutputKind.STDOUT, 1.7e9, b"x").as_row()])
    assert store.changes.since(before).outputs == {key}
    after = store.changes.now()
    assert (after.event, after.output) > (before.event, before.output)


def test_a_damaged_piece_is_marked_and_the_rest_is_shown(original: Path, state_dir: Path) -> None:
    directory = put(original, state_dir, original.read_bytes())
    with closing(TaskStore(directory).open()) as store:
        store.database.execute(
            """UPDATE outputs SET data = CAST(substr(data, 1, 200) || 'xyz' || substr(data, 204)
                AS BLOB) WHERE compression = 'zstd' AND task_key = 3"""
        )
        task = store.tasks.select(Selection())[2]
    shown = run_command(state_dir, "output", task.id)
    assert shown.returncode == 0, shown.stderr
    assert_said("damaged-piece", shown.stdout)
    assert shown.stdout.startswith("short 3\n")
    exported = run_command(state_dir, "export", "--all")
    assert_said("damaged-piece", exported.stdout)


def test_a_kill_between_two_steps_of_a_repair_loses_nothing(
    original: Path, state_dir: Path
) -> None:
    """The damaged file has its second name, and its log with it, but still the first."""
    directory = put(original, state_dir, original.read_bytes())
    aside = state_dir / "tasks-damaged-20260101-000000-1.db"
    with closing(TaskStore(directory).open()) as store:
        session = store.sessions.begin(session_identity(None))
        new = NewTask(session.notebook_key, session.id, "in the log", "python", "thread", "pass")
        store.tasks.insert(new)
        for suffix in ("-wal", "-shm"):
            shutil.copy(f"{directory.store}{suffix}", state_dir / f"kept{suffix}")
        content = directory.store.read_bytes()
    directory.store.write_bytes(content)
    aside.hardlink_to(directory.store)
    for suffix in ("-wal", "-shm"):
        (state_dir / f"kept{suffix}").rename(f"{aside}{suffix}")
    directory.damage_mark.touch(mode=0o600)
    with directory.store.open("r+b") as file:
        file.seek(3 * PAGE)
        file.write(os.urandom(PAGE))
    with closing(TaskStore(directory).open()) as store:
        assert "in the log" in {task.name for task in store.tasks.select(Selection())}
        assert store.database.row("PRAGMA integrity_check") == ("ok",)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["the kernel itself", "another process"])
def test_a_kernel_whose_store_is_damaged_goes_on_in_the_repaired_one(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path, who: str
) -> None:
    """Nobody restarts anything, and every line that is printed is in the repaired store."""
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run("%%background before\nprint('from before')")
    kernel.run("%bg_wait before --check")
    kernel.run("""%%background counting
import time
number = 0
while not globals().get("enough"):
    while globals().get("hold"):
        time.sleep(0.01)
    print("line", number)
    number += 1
    time.sleep(0.01)""")
    kernel.run("import time\nwhile globals().get('number', 0) < 20: time.sleep(0.01)\nhold = True")
    directory = StateDirectory(state_dir)
    if who == "another process":
        overwrite_an_index(directory)
        directory.damage_mark.touch(mode=0o600)
        listed = run_command(state_dir, "list", "--all")
        assert "before" in listed.stdout, listed.stderr
    else:
        with closing(TaskStore(directory).open()) as store:
            store.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            (root,) = store.database.row(
                "SELECT rootpage FROM sqlite_master WHERE name = 'outputs_task_order'"
            )
        with directory.store.open("r+b") as file:
            file.seek((root - 1) * PAGE)
            file.write(os.urandom(PAGE))
        with closing(TaskStore(directory).open()) as store:
            # The kernel has the page in its cache until another process commits something.
            store.database.write("INSERT INTO upkeep (name, at) VALUES ('another commit', 0)")
    kernel.run("hold = False")
    until(lambda: list(state_dir.glob("tasks-damaged-*.db")), 60, "the repair")
    until(lambda: not directory.damage_mark.exists(), 60, "the end of the repair")
    kernel.run("import time; begun = number\nwhile number < begun + 20: time.sleep(0.01)")
    kernel.run("enough = True")
    kernel.run("%bg_wait counting --check --timeout 60")
    count = int(kernel.run("print(number)").text)
    assert kernel.run("%bg_output counting").text == "".join(f"line {n}\n" for n in range(count))
    assert kernel.run("%bg_output before").text == "from before\n"
    said = directory.problems.read_text()
    assert "was damaged and has been set aside as" in said
    kernel.shutdown()
    assert is_whole(directory.store)
    with suppress(OSError):
        assert not list(state_dir.glob(".*.part*"))
