"""The last two checkpoints of a task are whole, whatever happens to the third."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from programs import run_python
from test_stored_payloads import TASK

from ipytaskpersist.base import checkpoint_folders
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import InvalidRequest, ResultUnavailable
from ipytaskpersist.values import checkpoints
from ipytaskpersist.values.checkpoints import Checkpoints

TASK_THAT_GOES_ON = replace(TASK, id="a1b2c3d4-2", number=2, checkpoint_place=TASK.id)


@pytest.fixture
def directory(state_dir: Path) -> StateDirectory:
    return StateDirectory(state_dir)


def folder_of(directory: StateDirectory) -> Path:
    return checkpoint_folders.folder_of(directory, TASK.id)


def test_the_last_two_are_kept_and_the_newest_is_for_the_task_that_goes_on(
    directory: StateDirectory,
) -> None:
    kept = Checkpoints(directory, TASK)
    with pytest.raises(LookupError):
        kept.newest()
    big, same = numpy.zeros(100_000), numpy.ones(100_000)
    for step in range(5):
        big += 1
        kept.keep({"step": step, "big": big, "same": same})
    assert folder_of(directory).stat().st_mode & 0o777 == 0o700
    pickles = sorted(folder_of(directory).glob("*.pickle"))
    arrays = sorted(folder_of(directory).glob("*.buffers"))
    assert (len(pickles), len(arrays)) == (2, 2)
    assert {each.name for each in directory.buffers.iterdir()} == {each.name for each in arrays}
    value, problem = Checkpoints(directory, TASK_THAT_GOES_ON).newest()
    assert (value["step"], value["big"].sum(), problem) == (4, 500_000.0, "")
    latest = checkpoint_folders.latest(directory, TASK.id, "python")
    assert latest is not None
    assert latest.size_bytes > 1_600_000
    # What was loaded and not changed is linked, not written again.
    Checkpoints(directory, TASK_THAT_GOES_ON).keep({"step": 5, "same": value})
    (left,) = folder_of(directory).glob("*.buffers")
    assert left in arrays
    checkpoints.delete(directory, [TASK.id, "..", ""])
    assert not folder_of(directory).exists()
    assert [*directory.buffers.iterdir()] == []
    assert directory.root.exists()


def test_a_damaged_or_foreign_one_is_never_loaded_and_the_one_before_is(
    directory: StateDirectory,
) -> None:
    kept = Checkpoints(directory, TASK)
    kept.keep("first")
    kept.keep("second")
    newest = checkpoint_folders.checkpoints_in(folder_of(directory))[0]
    file = folder_of(directory) / newest.files[0]
    file.write_bytes(file.read_bytes().replace(b"second", b"SECOND"))
    value, problem = kept.newest()
    assert value == "first"
    assert "does not carry your signature, so it may have been changed" in problem
    # One that was moved here from another task is not this task's.
    other = replace(TASK, id="a1b2c3d4-9", number=9)
    folder_of(directory).rename(checkpoint_folders.folder_of(directory, other.id))
    with pytest.raises(ResultUnavailable, match="checkpoint for task 9"):
        Checkpoints(directory, other).newest()


KILLED = """
import os, sys
from ipytaskpersist.base.paths import default_directory, StateDirectory
from ipytaskpersist.values import checkpoints
sys.path[:0] = {path!r}
from test_stored_payloads import TASK
kept = checkpoints.Checkpoints(StateDirectory(default_directory()), TASK)
kept.keep("first")
def dies(*_given, **_named):
    os._exit(9)
if {at!r} == "pickle":
    class Dies:
        def __reduce__(self): dies()
    kept.keep(["second", Dies()])
checkpoints.write_index = dies
kept.keep("second")
"""


@pytest.mark.parametrize("at", ["pickle", "index"])
def test_a_kill_in_the_middle_leaves_the_one_before_whole(
    directory: StateDirectory, at: str
) -> None:
    ended = run_python(KILLED.format(path=sys.path, at=at), directory.root)
    assert ended.returncode == 9, ended.stderr
    kept = Checkpoints(directory, TASK)
    assert kept.newest() == ("first", "")
    kept.keep("third")
    assert kept.newest() == ("third", "")
    assert len([*folder_of(directory).glob("*.pickle")]) == 2


class Model:
    def __init__(self) -> None:
        self.callbacks: list[Any] = [len, {"lock": threading.Lock()}]


def test_a_value_that_cannot_be_pickled_is_refused_by_the_name_of_the_part(
    directory: StateDirectory,
) -> None:
    kept = Checkpoints(directory, TASK)
    kept.keep("before")
    with pytest.raises(
        InvalidRequest, match=r"value\['model'\]\.callbacks\[1\]\['lock'\] \(lock\)"
    ):
        kept.keep({"model": Model()})
    assert kept.newest() == ("before", "")
