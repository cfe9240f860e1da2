"""What is stored can be read by its owner alone, whatever the umask and what was there before."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel, until
from programs import run_command

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import is_own, make_private, open_own, open_private
from ipytaskpersist.doctor import report
from ipytaskpersist.errors import StoreError
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store import problems
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.search_index import SearchIndex
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.payloads import Payloads

if sys.platform == "win32":
    pytest.skip("Windows has no such modes", allow_module_level=True)

OTHER = 12345
"""The number of another user, who need not exist."""
as_root = pytest.mark.skipif(
    os.getuid() != 0, reason="only an administrator can make files of another user"
)


@pytest.fixture(params=[0o000, 0o777], ids=["nothing masked", "everything masked"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield int(request.param)
    os.umask(before)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(root: Path) -> dict[str, str]:
    """What in a folder has another mode than 0700 and 0600, with that mode."""
    found = {}
    for path in (root, *root.rglob("*")):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # it was a temporary one
        wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        if stat.S_IMODE(status.st_mode) != wanted:
            found[str(path.relative_to(root))] = oct(stat.S_IMODE(status.st_mode))
    return found


@pytest.mark.usefixtures("no_umask")
def test_nothing_that_real_use_leaves_can_be_read_by_others(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """Every kind of task, and every verb that writes, under a umask that masks nothing."""
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run("%%background first\nprint('in a thread')\n[1, 2]")
    kernel.run("%%background --process second\nx = 1\nprint('in a process')\nx")
    long = "# " + "x" * 120_000
    kernel.run(f"%%background --shell third\necho 1; sleep 60\n{long}")
    until(lambda: "1" in kernel.run("%bg_output third").text)
    assert open_to_others(state_dir) == {}
    kernel.run("%bg_cancel third")
    kernel.run("%bg_wait 1 2 3")
    kernel.run("%bg_search process")
    kernel.run("%bg_archive 1")
    kernel.run("%bg_search thread --archived")
    kernel.run("%bg_backup")
    kernel.run(f"%bg_export --all --archived --output {tmp_path / 'out.jsonl'}")
    kernel.run("%bg_delete 2 --yes")
    kernel.run(f"%bg_import {tmp_path / 'out.jsonl'}")
    kernel.run(f"%bg_backup {tmp_path / 'copy.db'}")
    kernel.run(f"%bg_restore {tmp_path / 'copy.db'} --yes")
    problems.record(StateDirectory(state_dir), "something")
    names = {path.name.rpartition(".")[2] for path in state_dir.rglob("*")}
    assert {"db", "db-wal", "db-shm", "lock", "search", "key", "pickle", "jsonl"} <= names
    assert open_to_others(state_dir) == {}
    for file in (tmp_path / "out.jsonl", tmp_path / "copy.db"):
        assert oct(stat.S_IMODE(file.stat().st_mode)) == "0o600"


def test_every_file_has_its_mode_under_any_umask(umask: int, tmp_path: Path) -> None:
    """Also under one that takes away what the owner needs, and in folders that are missing."""
    root = tmp_path / "missing" / "too" / "state"
    directory = StateDirectory(root)
    with closing(TaskStore(directory).open()) as store, closing(Archives(store)) as archives:
        task = add_task(store, begin_session(store))
        Payloads(directory).save(task.id, "", [1], "[1]")
        store.back_up()
        with closing(SearchIndex(store)) as index:
            index.catch_up()
        archives.archive([task])
        problems.record(directory, "something")
        with pytest.raises(StoreError), store.database.errors():
            raise sqlite3.DatabaseError("as if the file were damaged")
        assert directory.damage_mark.exists()
    assert open_to_others(tmp_path / "missing") == {}, oct(umask)


def test_what_was_open_to_others_is_closed(state_dir: Path) -> None:
    TaskStore(StateDirectory(state_dir)).open().close()
    payloads = Payloads(StateDirectory(state_dir))
    payloads.save("a1b2c3d4-1", "", 1, "1")
    for path in (state_dir, state_dir / "payloads"):
        path.chmod(0o777)
    TaskStore(StateDirectory(state_dir)).open().close()
    payloads.save("a1b2c3d4-1", "x", 2, "2")
    assert open_to_others(state_dir) == {}


def test_a_key_that_others_could_read_signs_and_loads_nothing(state_dir: Path) -> None:
    payloads = Payloads(StateDirectory(state_dir))
    payloads.save("a1b2c3d4-1", "", 1, "1")
    (state_dir / "signing.key").chmod(0o644)
    kept = payloads.save("a1b2c3d4-1", "", 2, "2")
    assert kept.problem is not None
    assert "others could read" in kept.problem
    assert "chmod 600" in kept.problem


# What another user has put there.


def refused(state_dir: Path, *arguments: str) -> str:
    """The one line with which a command refuses."""
    ended = run_command(state_dir, *(arguments or ("list",)))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return line


def make_store(state_dir: Path) -> None:
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        add_task(store, begin_session(store))


@as_root
def test_a_directory_of_another_user_is_refused(state_dir: Path) -> None:
    make_store(state_dir)
    os.chown(state_dir, OTHER, OTHER)
    line = refused(state_dir)
    assert "belongs to another user" in line
    assert "IPYTASKPERSIST_DIR" in line


@as_root
def test_a_link_to_another_users_directory_is_refused(state_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", OTHER, OTHER)
    state_dir.symlink_to(tmp_path / "theirs")
    with pytest.raises(StoreError, match="belongs to another user"):
        TaskStore(StateDirectory(state_dir)).open()
    assert list((tmp_path / "theirs").iterdir()) == []


@as_root
def test_a_link_that_another_user_has_made_is_refused(state_dir: Path, tmp_path: Path) -> None:
    """In a folder that all write to: else it would choose which of my folders is used."""
    (tmp_path / "mine").mkdir(mode=0o755)
    state_dir.symlink_to(tmp_path / "mine")
    os.lchown(state_dir, OTHER, OTHER)
    with pytest.raises(StoreError, match="belongs to another user"):
        TaskStore(StateDirectory(state_dir)).open()
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o755


def test_a_link_to_a_directory_of_ones_own_is_followed(state_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    state_dir.symlink_to(tmp_path / "mine")
    make_store(state_dir)
    assert (tmp_path / "mine" / "tasks.db").is_file()
    assert open_to_others(tmp_path / "mine") == {}


@as_root
@pytest.mark.parametrize("name", ["tasks.db", "tasks.db-wal", "tasks.db-journal", "tasks.db-shm"])
def test_a_file_of_the_store_that_is_another_users_is_refused(state_dir: Path, name: str) -> None:
    """Somebody put it there before the folder was closed, and may still have it open."""
    make_store(state_dir)
    file = state_dir / name
    file.touch()
    os.chown(file, OTHER, OTHER)
    with pytest.raises(StoreError, match=name) as error:
        TaskStore(StateDirectory(state_dir)).open()
    assert f"mv '{file}'" in str(error.value)


@as_root
@pytest.mark.parametrize("name", ["tasks.db", "archive/2026-01.db", "payloads", "archive", "logs"])
def test_a_link_to_what_is_another_users_is_refused(
    state_dir: Path, tmp_path: Path, name: str
) -> None:
    make_private(state_dir)
    theirs = tmp_path / "theirs"
    theirs.mkdir() if "." not in name else theirs.touch()
    os.chown(theirs, OTHER, OTHER)
    link = state_dir / name
    make_private(link.parent)
    link.symlink_to(theirs)
    opening: dict[str, Callable[[], object]] = {
        "tasks.db": TaskStore(StateDirectory(state_dir)).open,
        "archive/2026-01.db": TaskStore(StateDirectory(state_dir).archive("2026-01")).open,
    }
    with pytest.raises(StoreError, match="belongs to another user"):
        opening.get(name, lambda: make_private(link))()


@as_root
def test_a_key_of_another_user_is_neither_read_nor_replaced(
    state_dir: Path, tmp_path: Path
) -> None:
    """Who knows the key can make what this user unpickles."""
    theirs = tmp_path / "their.key"
    theirs.write_bytes(b"k" * 32)
    os.chown(theirs, OTHER, OTHER)
    theirs.chmod(0o600)
    make_private(state_dir)
    for plant in (
        lambda: (state_dir / "signing.key").symlink_to(theirs),
        lambda: theirs.rename(state_dir / "signing.key"),
    ):
        plant()
        kept = Payloads(StateDirectory(state_dir)).save("a1b2c3d4-1", "", 1, "1")
        assert kept.path is None
        assert "signing.key" in str(kept.problem)
        if (state_dir / "signing.key").is_symlink():
            (state_dir / "signing.key").unlink()


def test_a_lock_or_a_log_that_is_a_link_is_not_written_through(
    state_dir: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    make_private(state_dir)
    (state_dir / "problems.jsonl").symlink_to(victim)
    problems.record(StateDirectory(state_dir), "something")
    with pytest.raises(OSError, match=r"problems\.jsonl"):
        open_private(state_dir / "problems.jsonl", os.O_WRONLY | os.O_TRUNC)
    assert victim.read_text() == "precious"


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to would keep whoever opens it waiting for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not an ordinary file"):
        open_own(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        open_private(tmp_path / "pipe", os.O_WRONLY)


@pytest.mark.parametrize(("mode", "warns"), [(0o777, True), (0o1777, False), (0o755, False)])
def test_the_doctor_sees_a_folder_above_that_others_can_write_to(
    state_dir: Path, tmp_path: Path, mode: int, warns: bool
) -> None:
    """There they could put another folder in the place of this one."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)
    found = [
        f for f in report.examine(StateDirectory(above / "state")) if f.check == "folders above"
    ]
    assert [finding.level for finding in found] == ["warning"] * warns
    assert all(str(above) in finding.message for finding in found)


@as_root
def test_what_is_whose_is_told_apart(tmp_path: Path) -> None:
    mine, theirs, link = tmp_path / "mine", tmp_path / "theirs", tmp_path / "link"
    for file in (mine, theirs):
        file.touch()
    os.chown(theirs, OTHER, OTHER)
    assert is_own(mine)
    assert is_own(tmp_path / "missing")
    assert not is_own(theirs)
    link.symlink_to(theirs)
    assert not is_own(link)
    link.unlink()
    link.symlink_to(mine)
    assert is_own(link)
    os.lchown(link, OTHER, OTHER)
    assert not is_own(link)
