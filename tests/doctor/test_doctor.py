"""The doctor finds what is wrong, says what to do, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from kernels import NotebookKernel, until
from locks import ALONE, WRITING, held
from programs import TIMEOUT_S, environment, run_command, run_python
from shells import is_alive, own_session, process_of, shell, supervisor

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.doctor import report
from ipytaskpersist.doctor.report import BROKEN, OK, WARNING, Finding
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

DAY_S = 86400
PAGE = 4096

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX's files and signals")


@pytest.fixture
def directory(state_dir: Path) -> StateDirectory:
    return StateDirectory(state_dir)


@pytest.fixture
def stored(directory: StateDirectory) -> StateDirectory:
    """A store with twenty ended tasks, closed."""
    store = TaskStore(directory).open()
    add_tasks(store, 20)
    store.close()
    return directory


def add_tasks(store: TaskStore, count: int, source: str = "pass") -> None:
    session = store.sessions.begin(session_identity(None))
    for _ in range(count):
        new = NewTask(session.notebook_key, session.id, "", "python", "thread", source)
        key = store.tasks.insert(new).key
        store.tasks.start(key, time.time())
        store.tasks.end(key, TaskState.COMPLETED, None, 0, time.time())
    store.sessions.end(session.id, "program ended")


def about(check: str, findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def one(check: str, findings: list[Finding]) -> Finding:
    found = about(check, findings)
    assert len(found) == 1, found
    return found[0]


def wrong(findings: list[Finding]) -> list[Finding]:
    """What is not well, but for the SQLite of this machine."""
    return [each for each in findings if each.level != OK and each.check != "sqlite"]


def content(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder: its mode, when it was changed, and what it holds."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [root, *root.rglob("*")]
    }


@contextmanager
def changing_nothing(root: Path) -> Iterator[None]:
    before = content(root)
    yield
    assert content(root) == before


# A store that is well.


def test_all_is_well_where_nothing_is_stored(directory: StateDirectory) -> None:
    """And the state directory is not made by looking."""
    findings = report.examine(directory)
    assert wrong(findings) == []
    assert "does not exist yet" in one("state directory", findings).message
    assert one("store", findings).message == "nothing is stored yet"
    assert not directory.root.exists()


def test_all_is_well_with_a_store(stored: StateDirectory) -> None:
    with changing_nothing(stored.root):
        findings = report.examine(stored)
    assert wrong(findings) == []
    checks = {finding.check for finding in findings}
    assert {"content", "journal", "sessions", "permissions", "backups", "versions"} <= checks


def test_looking_changes_nothing_beside_an_open_store(stored: StateDirectory) -> None:
    """Not even the log of one that somebody writes, and that was left by who was killed."""
    killed = run_python(
        "import os, signal\n"
        "from ipytaskpersist.session.manager import current\n"
        "current().session.record()\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        stored.root,
    )
    assert killed.returncode == -9
    log = stored.store.with_name("tasks.db-wal").read_bytes()
    assert log
    before = stored.store.read_bytes()
    findings = report.examine(stored)
    assert stored.store.read_bytes() == before
    assert stored.store.with_name("tasks.db-wal").read_bytes() == log
    assert one("sessions", findings).message == "1 session ended without saying so"
    assert wrong(findings) == []


def test_the_commands_show_the_findings(stored: StateDirectory) -> None:
    shown = run_command(stored.root, "doctor")
    assert "✓ content: SQLite finds nothing wrong\n" in shown.stdout
    told = run_command(stored.root, "doctor", "--json")
    document = json.loads(told.stdout)
    assert told.returncode == shown.returncode == report.LEVELS.index(document["status"])
    assert list(document["findings"][0]) == ["check", "level", "message", "advice"]


def test_a_notebook_shows_them_too(kernel: NotebookKernel) -> None:
    """Its own store is open then, its session alive and its tasks running."""
    kernel.run("%%background sleeper\nimport time\ntime.sleep(1000)")
    shown = kernel.run("%bg_doctor").text
    assert "✓ sessions: every one that has not ended is alive\n" in shown
    assert "✓ content" in shown
    assert "✓ lock" in shown
    assert "✕" not in shown


def test_a_check_that_fails_is_a_finding(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are made all the same."""

    def check_unlucky(_examined: report.Examined) -> Iterator[Finding]:
        raise ZeroDivisionError("no luck")
        yield

    monkeypatch.setattr(report, "CHECKS", [check_unlucky, *report.CHECKS])
    findings = report.examine(directory)
    assert findings[0].check == "unlucky"
    assert findings[0].message == "could not be checked (ZeroDivisionError: no luck)"
    assert one("store", findings).level == OK


# The machine.


def test_a_sqlite_with_the_bug_is_named(state_dir: Path) -> None:
    if sqlite3.sqlite_version_info >= (3, 51, 3):
        pytest.skip("this Python's own SQLite does not have it")
    ended = run_python(
        "import sys; sys.modules['pysqlite3'] = None; sys.argv = ['bg', 'doctor', '--json']\n"
        "from ipytaskpersist.__main__ import main\nmain()",
        state_dir,
    )
    found = {each["check"]: each for each in json.loads(ended.stdout)["findings"]}
    assert found["sqlite"]["level"] == WARNING
    assert sqlite3.sqlite_version in found["sqlite"]["message"]
    assert "pip install pysqlite3" in found["sqlite"]["advice"]
    assert ended.returncode == 1


def test_wrong_settings_are_findings(state_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.ipytaskpersist]\nruner = 'process'")
    ended = run_command(state_dir, "doctor", "--json", notebook=tmp_path / "n.ipynb")
    (found,) = [
        each for each in json.loads(ended.stdout)["findings"] if each["check"] == "settings"
    ]
    assert found["level"] == WARNING
    assert "has no setting 'runer'; did you mean 'runner'?" in found["message"]
    assert ended.returncode == 1


# The state directory.


def test_what_others_can_read_is_named(stored: StateDirectory) -> None:
    stored.root.chmod(0o755)
    stored.store.chmod(0o644)
    with changing_nothing(stored.root):
        found = one("permissions", report.examine(stored))
    assert (found.level, found.message) == (
        WARNING, f"others may enter or read {stored.root.name}, tasks.db"
    )  # fmt: skip
    subprocess.run(found.advice, shell=True, check=True)
    assert wrong(report.examine(stored)) == []


def test_a_file_in_the_place_of_the_directory_is_named(directory: StateDirectory) -> None:
    directory.root.write_text("not a directory")
    ended = run_command(directory.root, "doctor")
    assert f"✕ state directory: {directory.root} is not a directory\n" in ended.stdout
    assert ended.returncode == 2


NOBODY = 65534

# The interpreter itself may be where only root can read, so everything is imported first.
AS_NOBODY = """
import json, os, sys
from pathlib import Path
from ipytaskpersist.doctor import report as doctor
from ipytaskpersist.base.paths import StateDirectory
doctor.examine(StateDirectory(Path("/nowhere")))
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
print(json.dumps(doctor.as_document(doctor.examine(StateDirectory(Path(sys.argv[1]))))))
"""


def seen_by_nobody(stored: StateDirectory, mode: int, owner: int) -> dict[str, dict[str, str]]:
    """What the doctor says to somebody who is no administrator, of a copy with this mode."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy = Path(folder) / "state"
        shutil.copytree(stored.root, copy)
        for path in [*copy.rglob("*"), copy]:
            os.chown(path, owner, owner)
        copy.chmod(mode)
        with changing_nothing(copy):
            ended = run_python(AS_NOBODY, copy, str(copy), str(NOBODY), cwd=Path("/"))
        assert ended.returncode == 0, ended.stderr
        return {each["check"]: each for each in json.loads(ended.stdout)["findings"]}


needs_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be somebody else"
)


@needs_root
def test_a_directory_that_cannot_be_written_is_named(stored: StateDirectory) -> None:
    """What is in it can be read nevertheless."""
    found = seen_by_nobody(stored, 0o500, NOBODY)
    assert found["state directory"]["level"] == BROKEN
    assert found["state directory"]["message"].endswith("cannot be read and written")
    assert found["state directory"]["advice"].startswith("chmod 700 ")
    assert found["content"]["level"] == OK


@needs_root
def test_a_directory_that_cannot_be_entered_is_named(stored: StateDirectory) -> None:
    found = seen_by_nobody(stored, 0o000, NOBODY)
    assert found["state directory"]["message"].endswith("cannot be read and written")
    assert found["store"]["level"] == BROKEN


@needs_root
def test_a_directory_of_another_user_is_named(stored: StateDirectory) -> None:
    found = seen_by_nobody(stored, 0o755, 0)
    assert found["state directory"]["message"].endswith("belongs to another user")
    assert found["state directory"]["advice"].startswith("set IPYTASKPERSIST_DIR")


def test_files_that_were_never_finished_are_named(stored: StateDirectory) -> None:
    stored.backups.mkdir(mode=0o700)
    old, new = stored.backups / ".tasks.db.12ab.part", stored.backups / ".tasks.db.34cd.part"
    for file in (old, new):
        file.write_bytes(b"x" * 1500)
        file.chmod(0o600)
    os.utime(old, (time.time() - DAY_S,) * 2)
    (found,) = wrong(report.examine(stored))
    assert found.message == f"1 unfinished file, 1.5 kB: {old.name}"
    assert found.advice == f"rm {old}"


# The store's file.


def damage(directory: StateDirectory, change: Callable[[bytearray], bytearray]) -> None:
    directory.store.write_bytes(change(bytearray(directory.store.read_bytes())))


def test_garbage_in_the_place_of_the_store_is_broken(stored: StateDirectory) -> None:
    """It is neither marked nor repaired by looking at it."""
    damage(stored, lambda _: bytearray(b"This is no database. " * 300))
    with changing_nothing(stored.root):
        ended = run_command(stored.root, "doctor", "--json")
    document = json.loads(ended.stdout)
    (found,) = [each for each in document["findings"] if each["check"] == "store"]
    assert (document["status"], found["level"], ended.returncode) == (BROKEN, BROKEN, 2)
    assert "file is not a database" in found["message"]
    assert str(stored.damage_mark) in found["advice"]


def test_damaged_pages_are_broken_and_the_advice_repairs_them(stored: StateDirectory) -> None:
    def overwrite(pages: bytearray) -> bytearray:
        pages[PAGE : 3 * PAGE] = os.urandom(2 * PAGE)
        return pages

    damage(stored, overwrite)
    with changing_nothing(stored.root):
        found = one("content", report.examine(stored))
    assert found.level == BROKEN
    assert f"'touch {stored.damage_mark}'" in found.advice
    stored.damage_mark.touch(mode=0o600)
    assert (
        "SQLite has found the store damaged" in one("store", wrong(report.examine(stored))).message
    )
    store = TaskStore(stored).open()
    assert store.tasks.count(Selection()) == 20
    store.close()
    after = report.examine(stored)
    assert [each.check for each in wrong(after)] == ["problems"]
    assert "the store was damaged and has been set aside" in one("problems", after).message
    assert "a damaged store that was set aside" in one("leftover files", after).message


def test_a_store_of_a_newer_version_is_a_warning(stored: StateDirectory) -> None:
    store = TaskStore(stored)
    store.database.execute("PRAGMA user_version = 999")
    store.close()
    with changing_nothing(stored.root):
        (found,) = wrong(report.examine(stored))
    assert (found.check, found.level) == ("store", WARNING)
    assert "schema 999" in found.message
    assert found.advice == "pip install -U ipytaskpersist"


def test_a_store_of_an_older_version_is_not_brought_up_to_date(stored: StateDirectory) -> None:
    store = TaskStore(stored)
    store.database.execute("PRAGMA user_version = 2")
    store.close()
    with changing_nothing(stored.root):
        findings = report.examine(stored)
    assert wrong(findings) == []
    assert "schema 2: the next use brings it to" in one("store", findings).message


@pytest.mark.parametrize("where", ["archive", "backup"])
def test_copies_are_looked_at_too(stored: StateDirectory, where: str) -> None:
    store = TaskStore(stored).open()
    store.back_up()
    archives = Archives(store)
    archives.archive(store.tasks.select(Selection(limit=5)))
    archives.close()
    store.close()
    with changing_nothing(stored.root):
        findings = report.examine(stored)
    assert wrong(findings) == []
    assert one("archives", findings).message.startswith("1 month, ")
    assert ", just now, " in one("backups", findings).message
    folder = stored.archives if where == "archive" else stored.backups
    (file,) = folder.glob("*.db")
    file.write_bytes(os.urandom(9000))
    with changing_nothing(stored.root):
        (found,) = wrong(report.examine(stored))
    assert found.check == f"{where}s"
    assert file.name in found.message
    assert "damaged" in found.message


def test_a_journal_that_is_not_the_right_one_is_named(stored: StateDirectory) -> None:
    store = TaskStore(stored)
    store.database.execute("PRAGMA journal_mode = DELETE")
    store.close()
    (found,) = wrong(report.examine(stored))
    assert found.message == "journal mode DELETE, where WAL is right for this file system"


# Other programs.


def test_a_store_that_another_program_writes_for_long_is_named(stored: StateDirectory) -> None:
    with held(stored.root, WRITING) as pid:
        (found,) = wrong(report.examine(stored))
    assert (found.check, found.level) == ("lock", WARNING)
    if sys.platform == "linux":
        assert f"(process {pid})" in found.message
    assert wrong(report.examine(stored)) == []


def test_a_store_that_cannot_even_be_read_for_a_lock_is_named(stored: StateDirectory) -> None:
    with held(stored.root, "PRAGMA locking_mode = EXCLUSIVE", ALONE, "DELETE FROM tags"):
        begun = time.monotonic()
        ended = run_command(stored.root, "doctor")
        assert time.monotonic() - begun < 15, "it does not wait as long as one who has to write"
    assert "! store: " in ended.stdout
    assert "is locked by another program" in ended.stdout
    assert ended.returncode == 1


WRITE_AT_ONCE = """
from ipytaskpersist.base.paths import default_directory, StateDirectory
from ipytaskpersist.store.task_store import TaskStore
store = TaskStore(StateDirectory(default_directory()))
store.database.be_impatient(0)
store.database.execute("BEGIN IMMEDIATE")
"""


def test_looking_does_not_drop_the_locks_of_the_same_process(stored: StateDirectory) -> None:
    """Closing a file drops every lock that the process has on it, unless SQLite closes it."""
    store = TaskStore(stored).open()
    with store.database.transaction():
        report.examine(stored)
        other = run_python(WRITE_AT_ONCE, stored.root)
        assert "is locked by another program" in other.stderr
    store.close()


def test_tasks_of_a_killed_process_are_named_and_left_as_they_are(state_dir: Path) -> None:
    killed = run_python(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "import os, signal, time, ipytaskpersist as bg\n"
        "InteractiveShell.instance().extension_manager.load_extension('ipytaskpersist')\n"
        "task = bg.submit(time.sleep, 1000)\n"
        "while task.state.value != 'running': time.sleep(0.001)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        state_dir,
    )
    assert killed.returncode == -9, killed.stderr
    found = about("sessions", wrong(report.examine(StateDirectory(state_dir))))
    assert len(found) == 1
    assert (
        "is gone (IPython died) and left 1 task that the store has as running" in found[0].message
    )
    store = TaskStore(StateDirectory(state_dir)).open()
    assert store.tasks.count(Selection(states=[TaskState.RUNNING])) == 1
    store.close()


@pytest.fixture
def running(state_dir: Path) -> Iterator[psutil.Process]:
    """The supervisor of a shell task that runs."""
    with own_session(state_dir):
        task = shell("sleep 1000")
        process_of(task)
        until(lambda: task.state == "running", message="the supervisor's word that it runs")
        yield psutil.Process(supervisor().pid)


def test_a_supervisor_that_works_is_well(
    running: psutil.Process, directory: StateDirectory
) -> None:
    findings = report.examine(directory)
    assert wrong(findings) == []
    message = one("supervisors", findings).message
    assert message.endswith(f"(process {running.pid}) is alive, with 1 task")


def test_a_killed_supervisor_is_named_and_its_tasks_are_left(
    running: psutil.Process, directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This process is the session's, and would replace it while the doctor looks.
    monkeypatch.setattr("ipytaskpersist.runners.process.REPLACED_AT_MOST", 0)
    running.kill()
    until(lambda: not is_alive(running), message="the death of the supervisor")
    (found,) = wrong(report.examine(directory))
    assert found.check == "supervisors"
    assert "is gone (supervisor died) and left 1 task" in found.message
    store = TaskStore(directory).open()
    assert store.tasks.count(Selection(states=[TaskState.RUNNING])) == 1
    store.close()


def test_a_supervisor_that_is_stuck_is_named(
    running: psutil.Process, directory: StateDirectory
) -> None:
    """Its last sign of life is set back, because a minute is long for a test."""
    running.suspend()
    try:
        until(lambda: running.status() == psutil.STATUS_STOPPED, message="the stop")
        store = TaskStore(directory).open()
        past = time.time() - 300
        store.database.execute("UPDATE supervisors SET heartbeat_at = ?", (past,))
        store.close()
        (found,) = wrong(report.examine(directory))
    finally:
        running.resume()
    assert "gave its last sign of life 5 minutes ago; it is stopped" in found.message
    assert f"'kill -CONT {running.pid}'" in found.advice


# Problems on record.

FULL = """
import resource, time
from pathlib import Path
get_ipython().run_cell_magic("background", "first", "1")
%bg_wait
log = Path({root!r}, "tasks.db-wal")
room = (log.stat().st_size + 200_000, resource.RLIM_INFINITY)
resource.setrlimit(resource.RLIMIT_FSIZE, room)
get_ipython().run_cell_magic("background", "second", "import os\\nprint(os.urandom(600_000).hex())")
record = Path({root!r}, "problems.jsonl")
until = time.monotonic() + 30
while not record.exists() and time.monotonic() < until: time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
%bg_wait second
%bg_doctor
"""


def test_a_store_that_could_not_be_written_is_on_record(state_dir: Path, tmp_path: Path) -> None:
    """It is said when it happens, and the doctor still knows afterwards."""
    script = tmp_path / "full.ipy"
    script.write_text("%load_ext ipytaskpersist" + FULL.format(root=str(state_dir)))
    ended = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", str(script)], cwd=tmp_path,
        env=environment(state_dir), stdin=subprocess.DEVNULL, timeout=TIMEOUT_S,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    recorded = [problem.message for problem in problems.recorded(StateDirectory(state_dir))]
    assert len(recorded) == 2, ended
    assert "Background tasks go on" in recorded[0]
    assert recorded[1] == "the store can be written again; nothing printed meanwhile was lost."
    assert "! problems: 2 problems on record, the last just now: the store can be" in ended.stdout
    assert (state_dir / "problems.jsonl").stat().st_mode & 0o077 == 0


def test_old_problems_are_no_warning(stored: StateDirectory) -> None:
    entry = {"at": time.time() - 3 * DAY_S, "pid": 1, "message": "no room"}
    stored.problems.write_text("half a li\n" + json.dumps(entry) + "\n")
    stored.problems.chmod(0o600)
    findings = report.examine(stored)
    assert wrong(findings) == []
    expected = "1 problem on record, the last 3 days ago: no room"
    assert one("problems", findings).message == expected


def test_the_record_does_not_grow_without_end(stored: StateDirectory) -> None:
    for number in range(1500):
        problems.record(stored, f"{number} " + "é" * 1000)
    assert stored.problems.stat().st_size <= problems.FILE_BYTES
    messages = [problem.message.split()[0] for problem in problems.recorded(stored)]
    assert messages[-1] == "1499"
    assert len(messages) >= problems.LEFT


def test_a_problem_that_cannot_be_recorded_makes_no_other(tmp_path: Path) -> None:
    problems.record(StateDirectory(tmp_path / "nowhere"), "no room")
    assert not (tmp_path / "nowhere").exists()
