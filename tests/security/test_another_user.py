"""Another user of the machine can do nothing with what is stored, nor with what runs."""

# The system's calls themselves are meant.
# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH116, PTH208, PTH211

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel, end_processes_of, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.errors import StoreError
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.values.payloads import Payloads

if sys.platform == "win32" or os.getuid() != 0:
    pytest.skip("only an administrator can become another user", allow_module_level=True)

import fcntl

OTHER = 12345
PTRACE_ATTACH = 16


def as_other(attack: Callable[[], Any]) -> Any:
    """What an attack gives when another user runs it.

    In a fork, because an interpreter in this user's home could not even be started.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            answer = json.dumps(attack())
        except BaseException:
            answer = json.dumps({"failed": traceback.format_exc()})
        finally:
            with suppress(OSError):
                os.write(write, answer.encode())
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(pid, 0)
    found = json.loads(answer)
    assert not (isinstance(found, dict) and "failed" in found), found["failed"]
    return found


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder to which all may write, as ``/tmp`` is one. Pytest's own others cannot enter."""
    folder = Path(tempfile.mkdtemp(prefix="shared-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    end_processes_of(folder / "state")
    shutil.rmtree(folder)


def test_the_attacker_is_another(shared: Path) -> None:
    """Else the tests below would prove nothing: it can do what is allowed."""

    def look() -> list[Any]:
        (shared / "theirs").write_text("x")
        return [os.getuid(), os.listdir(shared), os.getgroups()]

    assert as_other(look) == [OTHER, ["theirs"], []]
    assert (shared / "theirs").stat().st_uid == OTHER


def make_store(root: Path) -> list[str]:
    """A store with a task and its value; returns all that is in the directory."""
    with closing(TaskStore(StateDirectory(root)).open()) as store:
        task = add_task(store, begin_session(store))
        store.results.save(task.key, Payloads(store.directory).save(task.id, "", [1], "[1]"))
        store.back_up()
    return [str(path) for path in (root, *root.rglob("*"))]


def tries(path: str) -> dict[str, Callable[[], Any]]:
    """What can be tried with a file or folder."""
    away = f"{path}.away"
    return {
        "list": lambda: os.listdir(path),
        "stat inside": lambda: os.stat(f"{path}/tasks.db"),
        "read": lambda: os.open(path, os.O_RDONLY),
        "write": lambda: os.open(path, os.O_WRONLY),
        "append": lambda: os.open(path, os.O_WRONLY | os.O_APPEND),
        "truncate": lambda: os.truncate(path, 0),
        "lock": lambda: fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB),
        "unlink": lambda: os.unlink(path),
        "rmdir": lambda: os.rmdir(path),
        "rename": lambda: os.rename(path, away),
        "chmod": lambda: os.chmod(path, 0o777),
        "chown": lambda: os.chown(path, OTHER, OTHER),
        "touch": lambda: os.utime(path),
        "link": lambda: os.link(path, f"/tmp/{os.getpid()}.link"),
        "plant a link": lambda: os.symlink("/etc/passwd", f"{path}/planted"),
        "plant a file": lambda: os.open(f"{path}/planted", os.O_WRONLY | os.O_CREAT),
        "put in its place": lambda: os.symlink("/etc/passwd", path),
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(path),
        "watch": lambda: watch(path),
    }


def watch(path: str) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_CLOEXEC)
    if library.inotify_add_watch(descriptor, os.fsencode(path), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def done(attempts: dict[str, Callable[[], Any]]) -> list[str]:
    """Which of them the system has not refused."""
    found = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        found.append(name)
    return found


def test_nothing_that_is_stored_can_be_touched(shared: Path) -> None:
    paths = make_store(shared / "state")
    before = {path: os.lstat(path).st_mtime_ns for path in paths}
    assert len(paths) > 6

    def attack() -> dict[str, list[str]]:
        return {path: ways for path in paths if (ways := done(tries(path)))}

    assert as_other(attack) == {}
    assert {path: os.lstat(path).st_mtime_ns for path in paths} == before


def test_nothing_that_runs_can_be_touched(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path
) -> None:
    """Neither the supervisor, nor a task, nor its output: no signal, no memory, no descriptor."""
    kernel = make_kernel(env={"A_TOKEN": "hunter2"})
    kernel.run(
        "%%background --process one\nimport time\nprint('begun', flush=True)\ntime.sleep(60)"
    )
    until(lambda: "begun" in kernel.run("%bg_output one").text)
    found = {
        int(folder.name): (folder / "cmdline").read_bytes()
        for folder in Path("/proc").glob("[0-9]*")
        if str(state_dir).encode() in readable(folder / "environ")
    }
    pids = [pid for pid in found if pid != os.getpid()]
    assert any(b"supervisor" in command for command in found.values())
    assert any(b"runners.child" in command for command in found.values())
    sent = [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1, 0]

    def attack() -> dict[int, list[str]]:
        library = ctypes.CDLL(None, use_errno=True)

        def attach(pid: int) -> None:
            if library.ptrace(PTRACE_ATTACH, pid, None, None) < 0:
                raise OSError(ctypes.get_errno(), "refused")

        def ways(pid: int) -> dict[str, Callable[[], Any]]:
            own = {f"signal {each}": lambda each=each: os.kill(pid, each) for each in sent}  # type: ignore[misc]
            files = {
                name: lambda name=name: Path(f"/proc/{pid}/{name}").read_bytes()  # type: ignore[misc]
                for name in ("environ", "mem", "maps", "io", "auxv")
            }
            listed = {"fd": lambda: os.listdir(f"/proc/{pid}/fd")}
            streams = {
                f"fd {n}": lambda n=n: os.open(f"/proc/{pid}/fd/{n}", os.O_WRONLY)  # type: ignore[misc]
                for n in range(12)
            }
            moved = {"cwd": lambda: os.listdir(f"/proc/{pid}/cwd/.")}
            return {**own, **files, **listed, **streams, **moved, "ptrace": lambda: attach(pid)}

        return {pid: done_ways for pid in pids if (done_ways := done(ways(pid)))}

    assert as_other(attack) == {}
    assert "begun" in kernel.run("%bg_output one").text
    kernel.run("%bg_cancel one")
    kernel.run("%bg_wait one")


def readable(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("kind", ["folder", "link", "link to theirs", "file", "pipe", "socket"])
def test_what_was_put_there_before_is_refused(shared: Path, kind: str) -> None:
    """In a folder that all write to, before this user's first task."""
    state, mine = shared / "state", shared / "mine"
    mine.mkdir(mode=0o755)

    def plant() -> None:
        if kind == "folder":
            state.mkdir(mode=0o777)
            (state / "tasks.db").touch(mode=0o666)
        elif kind == "link":
            state.symlink_to(mine)
        elif kind == "link to theirs":
            (shared / "theirs").mkdir(mode=0o777)
            state.symlink_to(shared / "theirs")
        elif kind == "file":
            state.touch(mode=0o666)
        elif kind == "pipe":
            os.mkfifo(state, 0o666)
        else:
            socket.socket(socket.AF_UNIX).bind(str(state))

    as_other(plant)
    with pytest.raises(StoreError) as refused:
        TaskStore(StateDirectory(state)).open()
    assert "\n" not in str(refused.value)
    assert "IPYTASKPERSIST_DIR" in str(refused.value)
    assert list(mine.iterdir()) == []
    assert stat.S_IMODE(mine.stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["tasks.db", "signing.key", "payloads", "tasks.db.lock"])
def test_what_was_put_into_it_while_it_was_open_to_all_is_not_used(shared: Path, name: str) -> None:
    """By a careless `chmod 777`: it is closed at the next use, and what is another's is refused."""
    state = shared / "state"
    state.mkdir()
    state.chmod(0o777)
    there = state / name

    def plant() -> None:
        if name == "payloads":
            there.mkdir(mode=0o777)
        else:
            there.write_bytes(b"k" * 32)
            there.chmod(0o666)

    as_other(plant)
    directory = StateDirectory(state)
    with suppress(StoreError), closing(TaskStore(directory).open()) as store:
        add_task(store, begin_session(store), state=TaskState.COMPLETED)
    kept = None
    with suppress(StoreError):
        kept = Payloads(directory).save("a1b2c3d4-1", "", 1, "1")
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    used = name in ("tasks.db", "tasks.db.lock")
    assert used or kept is None or kept.path is None, "a value was signed with their key"
    assert there.stat().st_uid == OTHER
    assert name == "payloads" or there.read_bytes() == b"k" * 32, "nothing was written to theirs"


def test_it_can_open_a_store_of_its_own_beside_this_one(shared: Path) -> None:
    """Two users in one folder do not disturb each other."""
    make_store(shared / "state")

    def theirs() -> int:
        with closing(TaskStore(StateDirectory(shared / "theirs")).open()) as store:
            add_task(store, begin_session(store))
            with suppress(StoreError):
                TaskStore(StateDirectory(shared / "state")).open()
                return -1
            return len(store.tasks.select(Selection()))

    assert as_other(theirs) == 1


# Settings.

SETTINGS = "[tool.ipytaskpersist]\nrunner = 'process'\nshell_path = '/tmp/evil'\n"


def settings_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of the settings found in a folder, which change nothing."""
    monkeypatch.chdir(folder)
    manager = BackgroundTasks()
    assert (manager.runner, manager.shell_path) == ("thread", "")
    return manager.setting_problems


def test_its_settings_above_a_private_folder_are_not_found(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``/tmp``, to which everybody writes: it is no part of any project."""
    private = shared / "private"
    private.mkdir(mode=0o700)
    as_other(lambda: (shared / "pyproject.toml").write_text(SETTINGS))
    assert settings_in(private, monkeypatch) == []


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "folder"])
def test_its_repository_around_a_private_folder_is_not_believed(
    shared: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It can make ``.git`` there, and so have its own folder taken for the root."""
    private, there = shared / "private", shared / "pyproject.toml"
    private.mkdir(mode=0o700)

    def plant() -> None:
        (shared / ".git").mkdir()
        if kind == "file":
            there.write_text(SETTINGS)
        elif kind == "pipe":
            os.mkfifo(there, 0o666)
        elif kind == "link":
            (shared / "theirs").write_text(SETTINGS)
            there.symlink_to(shared / "theirs")
        else:
            there.mkdir()

    as_other(plant)
    expected = [] if kind == "folder" else [
        f"{there} is not believed, so it sets nothing: others can write to the folder {shared}"
    ]  # fmt: skip
    assert settings_in(private, monkeypatch) == expected


@pytest.mark.parametrize("way", ["file", "link"])
def test_its_file_in_a_folder_of_yours_is_not_believed(
    shared: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Unpacked by root, or linked to by yourself."""
    private, theirs = shared / "private", shared / "theirs"
    private.mkdir(mode=0o755)
    as_other(lambda: theirs.write_text(SETTINGS))
    there = private / "pyproject.toml"
    if way == "file":
        theirs.rename(there)
    else:
        there.symlink_to(theirs)
    (problem,) = settings_in(private, monkeypatch)
    assert problem.startswith(f"{there} is not believed, so it sets nothing: ")
    assert problem.endswith("it belongs to another user" if way == "file" else f"folder {shared}")


def test_your_file_in_a_folder_of_another_is_not_believed(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner can exchange it whenever it likes."""
    theirs = shared / "theirs"
    as_other(lambda: theirs.mkdir(mode=0o755))
    (theirs / "pyproject.toml").write_text(SETTINGS)
    (problem,) = settings_in(theirs, monkeypatch)
    assert problem.endswith(f"the folder {theirs} belongs to another user")


def test_its_profile_is_not_run(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where root was given its home, as by ``sudo -E``."""
    home, mark = shared / "home", shared / "mark"
    profile = home / ".ipython" / "profile_default" / "ipython_config.py"

    def plant() -> None:
        profile.parent.mkdir(parents=True)
        profile.write_text(f"c.BackgroundTasks.keep = open({str(mark)!r}, 'w').name\n")

    as_other(plant)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    (problem,) = settings_in(shared, monkeypatch)
    assert problem == (f"{profile} is not believed, so it sets nothing: it belongs to another user")
    assert not mark.exists()
