"""Files of arrays beside their tasks: cut, changed, made durable, and without room."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import disks
import pytest
from kernels import NotebookKernel, until
from processcells import UNTIL_GO

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import StoreError
from ipytaskpersist.runners.durability import Flushes
from ipytaskpersist.store.task_store import TaskStore

MakeKernel = Callable[..., NotebookKernel]
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, or mounts")
needs_mounts = pytest.mark.skipif(bool(disks.why_not()), reason=disks.why_not())


@pytest.fixture
def notebook(make_kernel: MakeKernel, tmp_path: Path) -> NotebookKernel:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run("import numpy as np\narray = np.arange(1_000_000)")
    return kernel


def begin(kernel: NotebookKernel, state_dir: Path, name: str, then: str) -> Path:
    """Begin a task that is given the array and waits for `go`. Returns the file of the array."""
    kernel.run(UNTIL_GO)
    kernel.run(f"%%background --process {name}\nimport os\nprint('begun')\nuntil_go()\n{then}")
    until(lambda: "begun" in kernel.run(f"%bg_output {name}").text)
    (path,) = (state_dir / "payloads").glob("*-1/*.buffers")
    path.chmod(0o600)
    return path


def ended(kernel: NotebookKernel, name: str) -> dict[str, Any]:
    (kernel.cwd / "go").touch()
    kernel.run(f"%bg_wait {name}")
    (task,) = json.loads(kernel.run("%bg_list --json --limit 1").text)["tasks"]
    return dict(task)


def write_other(path: Path) -> None:
    """Change the beginning of a file, as a program does that opens the wrong one."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"other")


@linux
def test_a_task_whose_file_is_cut_says_what_killed_it(
    notebook: NotebookKernel, state_dir: Path
) -> None:
    path = begin(notebook, state_dir, "cut", "print(array.sum())")
    os.truncate(path, 4096)
    task = ended(notebook, "cut")
    reason = f"killed by SIGBUS: {path}, which it was given, was cut while it ran"
    assert (task["state"], task["reason"], task["exit_code"]) == ("failed", reason, -7)


@linux
def test_another_bus_error_is_not_said_to_be_of_a_file(
    notebook: NotebookKernel, state_dir: Path
) -> None:
    begin(notebook, state_dir, "bus", "import signal\nos.kill(os.getpid(), signal.SIGBUS), array")
    assert ended(notebook, "bus")["reason"] == "killed by SIGBUS"


@pytest.mark.parametrize("then", ["total = array.sum()", "array[7] = total = 0\ndel array"])
def test_a_task_whose_file_is_changed_does_not_complete(
    notebook: NotebookKernel, state_dir: Path, then: str
) -> None:
    """Nor does it leave anything in the notebook: there may be wrong numbers in it."""
    path = begin(notebook, state_dir, "changed", then)
    write_other(path)
    task = ended(notebook, "changed")
    reason = (
        f"{path} was changed on the disk while this task ran: arrays that it was given may be wrong"
    )
    assert (task["state"], task["reason"], task["exit_code"]) == ("failed", reason, 1)
    assert notebook.run("%bg_output changed --stderr").text == f"{reason}\n"
    cell = notebook.run("print(array.sum(), 'total' in globals())")
    assert cell.stream("stdout") == "499999500000 False\n"
    said = cell.stream("stderr").splitlines()[-1]
    assert said.startswith("task 1 (changed), which failed: ")
    assert said.endswith(f"total is not ({reason})")


def test_an_error_of_the_cell_stays_its_reason(notebook: NotebookKernel, state_dir: Path) -> None:
    path = begin(notebook, state_dir, "error", "array\n1 / 0")
    write_other(path)
    assert ended(notebook, "error")["reason"] == "ZeroDivisionError: division by zero"
    assert f"{path} was changed on the disk" in notebook.run("%bg_output error --stderr").text


def test_the_notebook_says_once_that_a_file_was_changed(
    notebook: NotebookKernel, state_dir: Path, make_kernel: MakeKernel, tmp_path: Path
) -> None:
    """Also one from which a later kernel has loaded."""
    notebook.run("%%background --process make\nmade = np.ones(100_000)")
    notebook.run("%bg_wait make --check")
    assert notebook.run("0").text == "task 1 (make): made is in the notebook\n0"
    notebook.restart()
    notebook.run("%load_ext ipytaskpersist\n%bg_load make")
    (path,) = (state_dir / "payloads").glob("*-1/*.buffers")
    write_other(path)
    said = (
        f"{path} was changed on the disk: arrays that were loaded from it may be wrong; "
        f"%bg_rerun {path.parent.name} computes them again\n"
    )
    assert notebook.run("%bg_list").stream("stderr") == ""
    assert notebook.run("0").stream("stderr") == said
    assert notebook.run("0").stream("stderr") == ""
    assert "has been changed" in notebook.run("%bg_load make").text


# Durability.

CUSTOMIZED = """
import os
_fsync = os.fsync
def fsync(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    _fsync(descriptor)
    with open(os.environ["FLUSHED"], "a") as file:
        file.write(f"{os.getpid()} {path}\\n")
os.fsync = fsync
"""


class Flushed:
    """What the processes of a kernel flush, each by a `sitecustomize` in its interpreter."""

    def __init__(self, make_kernel: MakeKernel, folder: Path, synchronous: str) -> None:
        self._log = folder / "flushed"
        (folder / "custom").mkdir()
        (folder / "custom" / "sitecustomize.py").write_text(CUSTOMIZED)
        path = os.pathsep.join([str(folder / "custom"), os.environ.get("PYTHONPATH", "")])
        env = {"PYTHONPATH": path, "FLUSHED": str(self._log)}
        self.kernel = make_kernel(load=False, notebook=folder / "a.ipynb", env=env)
        self.kernel.run(
            f"get_ipython().config.BackgroundTasks.synchronous = {synchronous!r}\n"
            "%load_ext ipytaskpersist\nimport numpy as np\narray = np.arange(100_000)"
        )

    def by(self, pid: int) -> list[Path]:
        """What a process has flushed."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [Path(path) for by, path in map(str.split, lines) if int(by) == pid]


@linux
def test_a_supervisor_makes_durable_what_a_task_is_given_and_leaves(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    flushed = Flushed(make_kernel, tmp_path, "normal")
    kernel = flushed.kernel
    begin(kernel, state_dir, "flushed", "made = array * 2")
    store = TaskStore(StateDirectory(state_dir)).open()
    (supervisor,) = store.supervisors.unfinished()
    store.close()
    (folder,) = (state_dir / "payloads").iterdir()

    def is_flushed() -> bool:
        wanted = {*folder.iterdir(), folder, folder.parent}
        return wanted <= set(flushed.by(supervisor.process.pid))

    until(is_flushed, message="the flush of what it was given")
    assert len([*folder.iterdir()]) == 2
    ended(kernel, "flushed")
    assert len([*folder.iterdir()]) == 4
    until(is_flushed, message="the flush of what it has left")
    assert not [path for path in flushed.by(kernel.pid) if "payloads" in path.parts]


@linux
def test_full_durability_waits_for_the_disk(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """The launch for what the task is given, the task itself for what it leaves."""
    flushed = Flushed(make_kernel, tmp_path, "full")
    kernel = flushed.kernel
    kernel.run("%%background --process whole\nimport os\npid = os.getpid()\nmade = array * 2")
    (folder,) = (state_dir / "payloads").glob("*-1")
    of_launch = flushed.by(kernel.pid)
    kernel.run("%bg_wait whole --check")
    of_task = flushed.by(int(kernel.run("print(end=str(pid) + ' ')").stream("stdout").split()[-1]))
    for flushes in (of_launch, of_task):
        in_payloads = [path.suffix for path in flushes if path.parent == folder.parent]
        assert in_payloads.count(".part") >= 2, "a pickle, and a file of arrays"
        assert {folder, folder.parent} <= set(flushes)


def test_a_disk_that_does_not_confirm_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    """No disk that fails a flush is to be had for a test: the names of two folders are too long."""
    said: list[str] = []
    flushes = Flushes(tmp_path, said.append)
    long = "x" * 300
    for task_id in (long, "gone", long):
        flushes.add(task_id)
    flushes.stop(10)
    assert said == [
        f"what task {long} has in {tmp_path / long} may not survive a power loss: the disk has not "
        "confirmed it (File name too long)"
    ]


# No room.


def values_in(folder: Path) -> list[str]:
    """The files of values in a state directory, finished or not."""
    found = []
    for place in ("payloads", "buffers", "environments"):
        with suppress(FileNotFoundError):
            found += [str(path) for path in sorted((folder / place).rglob("*"))]
    return found


@linux
@needs_mounts
@pytest.mark.timeout(120)
def test_a_full_disk_refuses_arrays_in_words(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", run_by=disks.small(state_dir, "size=6m"))
    kernel.run("import numpy as np\narray = np.arange(1_000_000)")
    cell = kernel.run("%%background --process large\narray", check=False)
    assert cell.error is not None
    assert cell.error[:2] == (
        "UsageError",
        f"cannot write the arrays of a value in {state_dir}/payloads: no room is left on its disk; "
        "make room there, or %bg_delete tasks",
    )
    folder = disks.seen_by(kernel.pid, state_dir)
    assert values_in(folder) == []
    assert json.loads(kernel.run("%bg_list --json").text)["tasks"] == []
    kernel.run("%%background --process leaves\nmade, small = np.arange(1_000_000), 7")
    kernel.run("%bg_wait leaves")
    said = kernel.run("0").text
    assert "made, small are not (cannot write the arrays of a value in" in said
    assert not [path for path in values_in(folder) if path.endswith((".part", ".buffers"))]


def test_a_limit_on_the_size_of_files_refuses_arrays_in_words(
    notebook: NotebookKernel, state_dir: Path
) -> None:
    notebook.run("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, -1))")
    cell = notebook.run("%%background --process large\narray", check=False)
    assert cell.error is not None
    assert "the arrays of a value in" in cell.error[1]
    assert "a file may have no more than 4,000,000 bytes (ulimit -f)" in cell.error[1]
    assert values_in(state_dir) == []


def test_nothing_is_left_of_a_launch_that_the_store_refuses(
    notebook: NotebookKernel, state_dir: Path
) -> None:
    """Its files already had their final names."""
    notebook.run("%%background first\n1")
    notebook.run("%bg_wait first --check")
    store = TaskStore(StateDirectory(state_dir)).open()
    store.database.execute(
        "CREATE TRIGGER refusing BEFORE INSERT ON results BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    before = values_in(state_dir)
    assert notebook.run("%%background --process refused\narray", check=False).error is not None
    assert values_in(state_dir) == before
    with suppress(StoreError):
        store.database.execute("DROP TRIGGER refusing")
    store.close()
