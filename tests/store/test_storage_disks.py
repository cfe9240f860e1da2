"""A disk without inodes, one that can only be read, a limit on the size of files: each is named."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import disks
import psutil
import pytest
from histories import add_task, begin_session
from kernels import Cell, NotebookKernel, command_of, processes_of, until
from layout import SHAPES
from programs import environment, run_command
from promises import assert_said

from ipytaskpersist.base import disk_errors as words
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.doctor import report
from ipytaskpersist.errors import StoreFull
from ipytaskpersist.store.file.sqlite_errors import PATH_BYTES
from ipytaskpersist.store.task_store import TaskStore

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the disks are mounts of Linux"),
    pytest.mark.timeout(300),
]
needs_mounts = pytest.mark.skipif(bool(disks.why_not()), reason=disks.why_not())
needs_ext4 = pytest.mark.skipif(bool(disks.why_not("ext4")), reason=disks.why_not("ext4"))
MakeKernel = Callable[..., NotebookKernel]
RAW = ("disk I/O error", "Errno", "OSError", "Traceback", "No space left")
"""What only a reader of SQLite's source knows what to do about."""

PRINTING = {
    "thread": """%%background thread
import os, time
print("begun")
while not os.path.exists("go"):
    time.sleep(0.05)
for number in range(3000):
    print(number, os.urandom(200).hex())""",
    "shell": """%%background --shell shell
echo begun
while [ ! -e go ]; do sleep 0.05; done
od -v -w200 -N 600000 -Ad -x /dev/urandom""",
}
WRITES = {
    "a launch": "%%background\n1",
    "a shell launch": "%%background --shell\ntrue",
    "a process launch": "%%background --process\nlarge",
    "a backup": "%bg_backup",
    "an archiving": "%bg_archive before",
    "an export": "%bg_export --all --output {state}/all.jsonl",
    "a saved output": "%bg_output before --save {state}/output.txt",
    "an import": "%bg_import {file}",
    "a tag": "%bg_tag before x",
    "a deletion": "%bg_delete before --yes",
}


def begun(kernel: NotebookKernel, *hows: str) -> None:
    """One task that has ended, and one of each kind that waits for `go`, then prints a lot."""
    kernel.run("large = bytes(3_000_000)")
    kernel.run("%%background before\nprint('from before')")
    kernel.run("%bg_wait before --check")
    for how in hows:
        kernel.run(PRINTING[how])
        until(lambda how=how: "begun" in kernel.run(f"%bg_output {how}").text)


def go(kernel: NotebookKernel) -> None:
    (kernel.cwd / "go").touch()


def refused(kernel: NotebookKernel, state_dir: Path, *whats: str) -> dict[str, str]:
    """What these of `WRITES` say; each is refused in one line with words of its own."""
    said = {}
    for what in whats:
        cell = run_write(kernel, state_dir, what)
        assert cell.error is not None, f"{what}: {cell.text}"
        assert cell.error[0] == "UsageError", (what, cell.error)
        said[what] = cell.error[1]
        assert_in_words(said[what])
    return said


def run_write(kernel: NotebookKernel, state_dir: Path, what: str) -> Cell:
    export = SHAPES / "tasks.json"
    return kernel.run(WRITES[what].format(state=state_dir, file=export), check=False)


def assert_in_words(said: str) -> None:
    assert not [raw for raw in RAW if raw in said], said


def said_by(kernel: NotebookKernel, words: str) -> str:
    """What a kernel has said below its cells, once these words are among it."""

    def shown() -> str:
        kernel.run("0")
        text = "\n".join(cell.text for cell in kernel._cells.values())
        return text if words in text else ""

    return until(shown, 60, f"the words {words!r}")


def examined(kernel: NotebookKernel, state_dir: Path) -> str:
    found = disks.run_beside(kernel.pid, state_dir, "doctor")
    assert found.returncode == 2, found.stdout
    return on_one_line(found.stdout)


def on_one_line(said: str) -> str:
    """What the doctor says, with its advice where other messages have it."""
    return said.replace("\n   ", ";")


@needs_mounts
def test_a_disk_without_inodes(make_kernel: MakeKernel, state_dir: Path, tmp_path: Path) -> None:
    """What needs a new file is refused in words; the store that is there goes on."""
    mount = disks.small(state_dir, "size=30m,nr_inodes=60")
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", run_by=mount)
    begun(kernel, "thread")
    folder = disks.seen_by(kernel.pid, state_dir)
    filler = fill(folder)
    go(kernel)
    kernel.run("%bg_wait thread --check")
    assert kernel.run("%bg_output thread --tail 1").text.startswith("2999 ")
    whats = {*WRITES} - {"a launch", "a shell launch", "a tag"}
    said = refused(kernel, state_dir, *whats, "a shell launch")
    for each in said.values():
        assert_said("no-inodes", each)
    assert_said("no-inodes", examined(kernel, state_dir))
    assert "from before" in disks.run_beside(kernel.pid, state_dir, "list", "--all").stdout
    for file in filler:
        file.unlink()
    kernel.run("%%background --process after\nlarge")
    kernel.run("%bg_wait after --check")
    kernel.run("%bg_backup")


def fill(folder: Path) -> list[Path]:
    """Make files until the disk has no inodes for another."""
    made = [folder / f".{number}.part" for number in range(os.statvfs(folder).f_favail)]
    for file in made:
        file.touch()
    return made


@needs_mounts
def test_a_supervisor_on_a_full_disk_loses_nothing(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """Its log is on that disk, too, and takes nothing of what it has to say."""
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", run_by=disks.small(state_dir, "size=4m"))
    begun(kernel, "shell")
    filler = disks.seen_by(kernel.pid, state_dir) / ".filler.part"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    go(kernel)
    until(lambda: not tasks_of(state_dir), 30, "the end of what the task has started")
    kernel.run("%bg_list")
    filler.unlink()
    kernel.run("%bg_wait shell --check --timeout 60")
    assert_whole(kernel, "shell", 200)


def tasks_of(state_dir: Path) -> list[psutil.Process]:
    """The processes of tasks."""
    found = []
    for process in processes_of(state_dir):
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK):
                found.append(process)
    return found


def assert_whole(kernel: NotebookKernel, how: str, step: int = 1) -> None:
    """All that a task has printed is stored: its lines are numbered."""
    lines = kernel.run(f"%bg_output {how} --stdout").text.splitlines()
    numbers = [int(line.split()[0]) for line in lines[1:3001]]
    assert numbers == [*range(0, 3000 * step, step)], how


@needs_mounts
def test_the_first_launch_on_a_disk_without_inodes(
    make_kernel: MakeKernel, state_dir: Path
) -> None:
    kernel = make_kernel(load=False, run_by=disks.small(state_dir, "nr_inodes=4"))
    fill(disks.seen_by(kernel.pid, state_dir))
    kernel.run("%load_ext ipytaskpersist\nlarge = 1")
    for what in ("a launch", "a process launch"):
        assert_said("no-inodes", refused(kernel, state_dir, what)[what])


@needs_mounts
def test_a_limit_on_the_size_of_files(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """Kernel and supervisor say it and keep what is printed; when it is lifted, all is stored."""
    limited = ["prlimit", "--fsize=1000000:unlimited"]
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", run_by=limited)
    begun(kernel, "thread", "shell")
    go(kernel)
    said = said_by(kernel, "a file may have no more than")
    assert_said("file-size", said)
    assert_said("kept-in-memory", said)
    problems = state_dir / "problems.jsonl"
    until(lambda: "supervisor: cannot write" in problems.read_text(), 30, "its supervisor's word")
    assert_in_words(problems.read_text())
    assert_said("file-size", *refused(kernel, state_dir, "a process launch").values())
    for what in WRITES:  # what is small may still fit into the log
        cell = run_write(kernel, state_dir, what)
        assert_in_words(cell.text)
    assert_said("file-size-doctor", kernel.run("%bg_doctor", check=False).text)
    limited_by = [line for line in problems.open() if "--pid " in line]
    for pid in {int(line.split("--pid ")[1].split()[0]) for line in limited_by}:
        subprocess.run(["prlimit", "--pid", str(pid), "--fsize=unlimited"], check=True)
    kernel.run("%bg_wait thread shell --check --timeout 60")
    assert_whole(kernel, "thread")
    assert_whole(kernel, "shell", 200)


@needs_ext4
def test_a_disk_on_which_the_system_has_met_errors(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """It says that it can be written, and takes nothing. Commands that read go on all the same."""
    mount = disks.breakable(state_dir, tmp_path / "image")
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", run_by=mount)
    begun(kernel, "thread", "shell")
    disks.break_disk(kernel.pid, state_dir)
    assert os.access(disks.seen_by(kernel.pid, state_dir), os.W_OK)
    go(kernel)
    said = said_by(kernel, "can only be read")
    assert_said("disk-read-only", said)
    assert_said("kept-in-memory", said)
    for each in refused(kernel, state_dir, *WRITES).values():
        assert_said("disk-read-only", each)
    assert_said("disk-read-only", examined(kernel, state_dir))
    assert "from before" in kernel.run("%bg_list").text
    kernel.kill()
    found = [each for each in processes_of(state_dir) if "supervisor" in command_of(each)]
    for command in (["list", "--all"], ["stats"]):
        read = disks.run_beside(found[0].pid, state_dir, *command)
        assert read.returncode == 0, read.stderr
        assert_said("not-recorded", read.stderr)


@needs_mounts
def test_a_place_that_can_only_be_read_is_no_traceback(state_dir: Path, tmp_path: Path) -> None:
    """Where a backup and an export were to go."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        task = add_task(store, begin_session(store))
        store.tasks.start(task.key, 1.7e9)
        store.tasks.end(task.key, TaskState.COMPLETED, None, 0, 1.7e9)
    target = tmp_path / "medium"
    command = [*disks.read_only(target), sys.executable, "-m", "ipytaskpersist"]
    for verb in (["backup"], ["export", "--all", "--output"]):
        ended = subprocess.run(
            [*command, *verb, str(target / "copy")], env=environment(state_dir),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        assert_said("disk-read-only", ended.stderr)
        assert len(ended.stderr.splitlines()) == 1, ended.stderr


@needs_mounts
def test_a_state_directory_that_cannot_be_made_is_found(state_dir: Path, tmp_path: Path) -> None:
    """Before the first task is lost to it."""
    plain, link = tmp_path / "file", tmp_path / "link"
    plain.touch()
    link.symlink_to(tmp_path / "nothing")
    for place in (Path("/proc/tasks"), plain / "state", plain, link, link / "state"):
        found = finding(StateDirectory(place))
        assert found.level == report.BROKEN, place
        assert found.advice.startswith("set IPYTASKPERSIST_DIR"), (place, found)
        assert "cannot be made" in found.message or place in (plain, link), (place, found)
    target = tmp_path / "medium"
    ended = subprocess.run(
        [*disks.read_only(target), sys.executable, "-m", "ipytaskpersist", "doctor"],
        env=environment(target / "state"), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"{target}/state cannot be made in {target}: its disk can only be read" in ended.stdout


def finding(directory: StateDirectory) -> report.Finding:
    (found,) = [each for each in report.examine(directory) if each.check == "state directory"]
    return found


def of_length(folder: Path, length: int) -> Path:
    """A path of so many bytes."""
    while (left := length - len(str(folder)) - 1) > 200:
        folder /= "d" * 150
    return folder / ("e" * left)


def test_a_path_that_sqlite_does_not_take(tmp_path: Path, make_kernel: MakeKernel) -> None:
    """It is said at the launch and by the doctor; one that is almost as long has a warning."""
    least = len("/tasks.db")
    long = of_length(tmp_path, PATH_BYTES - least + 1)
    long.mkdir(parents=True, mode=0o700)
    refused = run_command(long, "import", str(SHAPES / "tasks.json"))
    assert_said("long-path", refused.stderr)
    assert_said("long-path", on_one_line(run_command(long, "doctor").stdout))
    almost = of_length(tmp_path / "other", PATH_BYTES - least)
    TaskStore(StateDirectory(almost)).open().close()
    assert finding(StateDirectory(almost)).level == report.WARNING
    assert finding(StateDirectory(of_length(tmp_path / "x", 5000))).level == report.BROKEN


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EDQUOT, "your quota on its disk is used up; make room there, 'quota -s' says"),
        (errno.EIO, "its disk reports errors; 'dmesg' says which"),
        (errno.ENAMETOOLONG, "File name too long; do that"),
    ],
)
def test_what_no_disk_here_can_be_made_to_say_has_words_too(
    tmp_path: Path, number: int, said: str
) -> None:
    """A quota needs a tool to set it, an error a disk that has them."""
    assert said in words.in_words(OSError(number, os.strerror(number)), tmp_path, "do that")
    refusal = words.refused("it", OSError(number, ""), tmp_path)
    assert isinstance(refusal, StoreFull) == (number == errno.EDQUOT)
