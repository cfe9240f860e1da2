"""A value comes back as it was kept, and nothing that was not signed is ever unpickled."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from programs import run_python, run_together
from traps import Trap, guarded

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import ResultRecord, TaskRecord, TaskState
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.signatures import KEY_BYTES


def a_task(number: int = 1) -> TaskRecord:
    now = datetime.now(UTC)
    return TaskRecord(
        key=number, id=f"a1b2c3d4-{number}", number=number, name="train", notebook_key=1,
        notebook="/a.ipynb", session="a1b2c3d4-x", kind="python", runner="thread",
        state=TaskState.COMPLETED, reason=None, exit_code=0, source="", cell_id=None,
        execution_count=None, created_at=now, started_at=now, ended_at=now,
        cancel_requested_at=None, cleared_at=None, rerun_of=None, is_call=False,
    )  # fmt: skip


TASK = a_task()


@pytest.fixture
def payloads(state_dir: Path) -> Payloads:
    return Payloads(StateDirectory(state_dir))


def save(payloads: Payloads, value: Any, text: str = "its text") -> ResultRecord:
    kept = payloads.save(TASK.id, "", value, text)
    assert kept.problem is None
    return kept


def file_of(state_dir: Path, kept: ResultRecord) -> Path:
    assert kept.path is not None
    return state_dir / kept.path


@pytest.mark.parametrize(
    "value",
    [
        0, "text", None, b"\0bytes", [1, {2: (3, {4})}], float("inf"), 10**100, Path("a"),
        datetime(2026, 11, 1, tzinfo=UTC), "x" * 5_000_000,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_comes_back(payloads: Payloads, value: Any) -> None:
    assert payloads.load(TASK, save(payloads, value)) == value


IN_A_NOTEBOOK = """
import sys
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.values.payloads import Payloads

factor = 3
def times(number):
    return number * factor
class Point:
    def __init__(self, x): self.x = x
    def scaled(self): return times(self.x)
kept = Payloads(StateDirectory(default_directory())).save("a1b2c3d4-1", "", (times, Point(14)), "")
assert kept.problem is None, kept.problem
print(repr(kept))
"""


def test_functions_and_classes_of_a_notebook_come_back_in_another_process(
    state_dir: Path, payloads: Payloads
) -> None:
    """They belong to no module that could be imported, so they are kept by value."""
    saved = run_python(IN_A_NOTEBOOK, state_dir)
    assert saved.stderr == ""
    kept = eval(saved.stdout, {"ResultRecord": ResultRecord})
    times, point = payloads.load(TASK, kept)
    assert times(2) == 6
    assert point.scaled() == 42


def test_what_is_known_of_a_value_is_recorded(state_dir: Path, payloads: Payloads) -> None:
    kept = save(payloads, [1, 2, 3], "[1, 2, 3]")
    assert kept.text == "[1, 2, 3]"
    assert kept.size_bytes == file_of(state_dir, kept).stat().st_size
    assert payloads.save(TASK.id, "", 1, "x" * 100_000).text == "x" * 4000 + " …"


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    with guarded(tmp_path) as path:
        yield path


def refuse(payloads: Payloads, task: TaskRecord, kept: ResultRecord) -> str:
    """The message with which the value is refused: one line that names task and text form."""
    with pytest.raises(ResultUnavailable) as refused:
        payloads.load(task, kept)
    message = str(refused.value)
    assert task.label in message
    assert kept.text in message
    assert "\n" not in message
    return message


def test_the_trap_works(payloads: Payloads, tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    payloads.load(TASK, save(payloads, Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def test_a_file_put_in_the_place_of_another_is_not_unpickled(
    state_dir: Path, payloads: Payloads, mark: Path
) -> None:
    kept = save(payloads, "value")
    file_of(state_dir, kept).write_bytes(pickle.dumps(Trap(mark)))
    assert "does not carry your signature" in refuse(payloads, TASK, kept)


def test_a_record_that_was_made_to_fit_is_not_believed(
    state_dir: Path, payloads: Payloads, mark: Path
) -> None:
    """Who can write to the store but cannot read the key cannot have anything unpickled."""
    data = pickle.dumps(Trap(mark))
    folder = state_dir / "payloads" / TASK.id
    folder.mkdir(parents=True)
    (folder / "made.pickle").write_bytes(data)
    for signature in ("", "0" * 64, hashlib.sha256(data).hexdigest(), None):
        made = ResultRecord(
            "", f"payloads/{TASK.id}/made.pickle", len(data), hashlib.sha256(data).hexdigest(),
            signature, "its text", None,
        )  # fmt: skip
        refuse(payloads, TASK, made)


@pytest.mark.parametrize("change", ["first byte", "last byte", "truncated", "longer", "empty"])
def test_a_file_that_was_changed_is_not_unpickled(
    state_dir: Path, payloads: Payloads, mark: Path, change: str
) -> None:
    kept = save(payloads, Trap(mark))
    file = file_of(state_dir, kept)
    data = file.read_bytes()
    file.write_bytes(
        {
            "first byte": bytes([data[0] ^ 1]) + data[1:],
            "last byte": data[:-1] + bytes([data[-1] ^ 1]),
            "truncated": data[:-1],
            "longer": data + b".",
            "empty": b"",
        }[change]
    )
    assert "may have been changed" in refuse(payloads, TASK, kept)


def test_a_value_of_another_task_is_not_unpickled(
    state_dir: Path, payloads: Payloads, mark: Path
) -> None:
    """A signature binds a value to its task: an old one cannot be passed off as the new."""
    kept = save(payloads, Trap(mark))
    other = a_task(2)
    refuse(payloads, other, kept)
    shutil.copytree(state_dir / "payloads" / TASK.id, state_dir / "payloads" / other.id)
    assert kept.path is not None
    refuse(payloads, other, replace(kept, path=kept.path.replace(TASK.id, other.id)))


def test_a_value_under_another_name_is_not_unpickled(payloads: Payloads, mark: Path) -> None:
    refuse(payloads, TASK, replace(save(payloads, Trap(mark)), name="model"))


def test_a_value_signed_with_another_users_key_is_not_unpickled(
    tmp_path: Path, payloads: Payloads, mark: Path
) -> None:
    other = Payloads(StateDirectory(tmp_path / "other"))
    kept = other.save(TASK.id, "", Trap(mark), "its text")
    save(payloads, "makes this user's key")
    shutil.copytree(
        tmp_path / "other" / "payloads", tmp_path / "state" / "payloads", dirs_exist_ok=True
    )
    assert "does not carry your signature" in refuse(payloads, TASK, kept)


def test_a_value_is_not_unpickled_after_its_key_was_lost(
    state_dir: Path, payloads: Payloads, mark: Path
) -> None:
    kept = save(payloads, Trap(mark))
    (state_dir / "signing.key").unlink()
    refuse(payloads, TASK, kept)


def test_an_empty_key_signs_nothing(state_dir: Path, payloads: Payloads, mark: Path) -> None:
    """Everybody could sign with it."""
    state_dir.mkdir(mode=0o700)
    (state_dir / "signing.key").touch(mode=0o600)
    kept = payloads.save(TASK.id, "", Trap(mark), "its text")
    if kept.path is not None:
        refuse(payloads, TASK, kept)
    assert kept.text == "its text"


def test_a_file_that_is_gone_is_said(state_dir: Path, payloads: Payloads) -> None:
    kept = save(payloads, 1)
    file_of(state_dir, kept).unlink()
    assert "cannot be read (No such file or directory" in refuse(payloads, TASK, kept)


def test_a_path_that_leads_out_of_the_state_directory_is_refused(
    tmp_path: Path, payloads: Payloads, mark: Path
) -> None:
    kept = save(payloads, 1)
    (tmp_path / "elsewhere.pickle").write_bytes(pickle.dumps(Trap(mark)))
    refuse(payloads, TASK, replace(kept, path="../elsewhere.pickle"))


class Shy:
    def __reduce__(self) -> Any:
        raise RuntimeError("not\nme")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (threading.Lock(), "TypeError: cannot pickle '_thread.lock' object"),
        ((number for number in range(3)), "TypeError: cannot pickle 'generator' object"),
        (Shy(), "RuntimeError: not"),
    ],
    ids=["lock", "generator", "error"],
)
def test_a_value_that_cannot_be_pickled_keeps_the_reason_and_its_text(
    state_dir: Path, payloads: Payloads, value: Any, problem: str
) -> None:
    kept = payloads.save(TASK.id, "", value, "its text")
    assert kept.problem == problem
    assert (kept.path, kept.size_bytes, kept.digest, kept.signature) == (None,) * 4
    assert f"could not be kept ({problem})" in refuse(payloads, TASK, kept)
    assert [path for path in state_dir.rglob("*") if path.suffix == ".part"] == []


def test_a_value_that_cannot_be_unpickled_here_is_said(
    state_dir: Path, payloads: Payloads, tmp_path: Path
) -> None:
    """It was made by a module that this process does not have."""
    (tmp_path / "vanishing.py").write_text("class Thing: pass\n")
    saved = run_python(
        "import vanishing\n" + IN_A_NOTEBOOK.replace("(times, Point(14))", "vanishing.Thing()"),
        state_dir,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert saved.stderr == ""
    kept = eval(saved.stdout, {"ResultRecord": ResultRecord})
    assert "cannot be unpickled here (ModuleNotFoundError" in refuse(payloads, TASK, kept)


def test_deleting_a_task_removes_its_values_and_no_other(
    state_dir: Path, payloads: Payloads
) -> None:
    save(payloads, 1)
    payloads.save(TASK.id, "model", 2, "")
    other = payloads.save(a_task(2).id, "", 3, "")
    payloads.delete(TASK.id)
    payloads.delete(TASK.id)
    assert [path.name for path in (state_dir / "payloads").iterdir()] == [a_task(2).id]
    assert payloads.load(a_task(2), other) == 3


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.usefixtures("no_umask")
def test_only_the_owner_can_read_the_key_and_the_values(
    state_dir: Path, payloads: Payloads
) -> None:
    save(payloads, "secret")
    modes = {
        str(path.relative_to(state_dir)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in (state_dir, *state_dir.rglob("*"))
        if stat.S_IMODE(path.stat().st_mode) != (0o700 if path.is_dir() else 0o600)
    }
    assert modes == {}
    assert (state_dir / "signing.key").stat().st_size == KEY_BYTES


KEY_MAKER = """
import hashlib
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.values.payloads import Payloads
import cloudpickle

place = sys.argv[1]
payloads = Payloads(StateDirectory(default_directory()))
start_together()
print(repr(payloads.save(f"a1b2c3d4-{place}", "", int(place), place)))
"""


def test_eight_processes_that_sign_first_use_one_key(state_dir: Path, payloads: Payloads) -> None:
    ended = run_together(KEY_MAKER, state_dir, 8)
    assert [each.stderr for each in ended] == [""] * 8
    for place, each in enumerate(ended):
        kept = eval(each.stdout, {"ResultRecord": ResultRecord})
        assert payloads.load(a_task(place), kept) == place
    assert sorted(path.name for path in state_dir.iterdir()) == ["payloads", "signing.key"]
