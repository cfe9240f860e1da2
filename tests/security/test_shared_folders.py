"""A folder that others use stays theirs: only what is ours has its mode changed."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kernels import NotebookKernel
from programs import run_command

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_private
from ipytaskpersist.doctor import report
from ipytaskpersist.errors import StoreError
from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore

if sys.platform == "win32":
    pytest.skip("Windows has no such modes", allow_module_level=True)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def shared(folder: Path, mode: int, *names: str) -> Path:
    """A folder with files of these names and this mode."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("of the team")
    folder.chmod(mode)
    return folder


def test_a_shared_folder_is_refused_in_words_and_stays_as_it_is(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path
) -> None:
    """By a kernel, by commands, and by whatever would leave a note there."""
    shared(state_dir, 0o755, "report.csv")
    kernel = make_kernel(notebook=state_dir.parent / "a.ipynb")
    for flags in ("", "--process", "--shell"):
        refused = kernel.run(f"%%background {flags}\ntrue = 1", check=False)
        assert refused.error is not None
        assert refused.error[0] == "UsageError"
        assert_refused(refused.error[1], state_dir, "'report.csv'")
    kernel.run("%bg_list")
    kernel.shutdown()
    for words in (["list", "--all"], ["backup"], ["stats"], ["search", "x"], ["config"]):
        run_command(state_dir, *words)
    problems.record(StateDirectory(state_dir), "a note")
    said = run_command(state_dir, "doctor")
    assert said.returncode == 2, said.stdout
    assert_refused(said.stdout, state_dir, "'report.csv'")
    assert "chmod -R" not in said.stdout
    assert mode_of(state_dir) == 0o755
    assert [path.name for path in state_dir.iterdir()] == ["report.csv"]


def assert_refused(said: str, folder: Path, why: str) -> None:
    assert f"the folder {folder} is open to other users" in said
    assert why in said
    assert f"set IPYTASKPERSIST_DIR to a folder of its own, such as {folder}/ipytaskpersist" in said


@pytest.mark.parametrize(
    ("mode", "names", "why"),
    [
        (0o555, ["kernel", "devices"], "'devices'"),  # like /sys
        (0o1777, [], "all users"),  # like an empty /tmp
        (0o1777, ["x"], "all users"),
        (0o750, ["tasks.db", "notes\x1b[2J.txt"], r"'notes\x1b[2J.txt'"),
        (0o2770, ["tasks.db", "tasks.db-wal", "logs.tar"], "'logs.tar'"),
    ],
)
def test_what_is_not_ours_is_not_closed(
    tmp_path: Path, mode: int, names: list[str], why: str
) -> None:
    folder = shared(tmp_path / "shared", mode, *names)
    for use in (lambda: TaskStore(StateDirectory(folder)).open(), lambda: make_private(folder)):
        with pytest.raises(StoreError) as refused:
            use()
        assert_refused(str(refused.value), folder, why)
    assert mode_of(folder) == mode
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert report.worst(report.examine(StateDirectory(folder))) == report.BROKEN


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o2770])
def test_an_empty_folder_and_one_that_was_made_here_are_closed(tmp_path: Path, mode: int) -> None:
    """With all that a store, its archives and its backups leave there."""
    state = shared(tmp_path / "state", mode)
    directory = StateDirectory(state)
    for _turn in range(2):
        with closing(TaskStore(directory).open()) as store:
            store.back_up()
            TaskStore(directory.archive("2024-01")).open().close()
            problems.record(directory, "a note")
        folders = [state, *(path for path in state.iterdir() if path.is_dir())]
        assert {path.name for path in folders} == {"state", "archive", "backups"}
        assert {mode_of(path) for path in folders} == {0o700}
        (state / ".nfs000000012").touch()
        for folder in folders:
            folder.chmod(mode)


def test_a_private_folder_with_other_things_is_used_as_it_is(tmp_path: Path) -> None:
    """Such as a home; a folder in it that is open and has other things is not closed."""
    home = shared(tmp_path / "home", 0o700, "notes.txt")
    backups = shared(home / "backups", 0o755, "photos.tar")
    store = TaskStore(StateDirectory(home)).open()
    with closing(store), pytest.raises(StoreError, match=r"photos\.tar"):
        store.back_up()
    assert mode_of(backups) == 0o755
