"""The disk is full, the store is locked, or it may only be read: the user's code goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from kernels import NotebookKernel, until
from layout import SCHEMAS
from locks import ALONE, held
from programs import environment, run_command, run_python
from promises import assert_said, is_said

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.file.database import WAIT_MS
from ipytaskpersist.store.file.migrations import STEPS
from ipytaskpersist.store.file.repair import is_whole
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection


def ended_task(directory: StateDirectory) -> str:
    """A store with one ended task; returns its id."""
    with closing(TaskStore(directory).open()) as store:
        session = store.sessions.begin(session_identity(None))
        new = NewTask(session.notebook_key, session.id, "kept", "shell", "process", "true")
        task = store.tasks.insert(new)
        store.tasks.start(task.key, 1.7e9)
        store.tasks.end(task.key, TaskState.COMPLETED, None, 0, 1.7e9)
        return task.id


def problems_of(state_dir: Path) -> str:
    file = state_dir / "problems.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return "\n".join(json.loads(line)["message"] for line in lines)


# No room.


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """Something mounted on a folder. Skips where this user may not mount anything."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this user cannot mount a file system: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="a small file system is a tmpfs of Linux")
def test_the_disk_is_full_while_a_kernel_prints_and_returns_a_value(
    state_dir: Path, tmp_path: Path
) -> None:
    """All of it is stored when there is room again, and a backup leaves nothing half-written."""
    with mounted(state_dir, "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs"):
        with NotebookKernel(state_dir, notebook=tmp_path / "a.ipynb") as kernel:
            kernel.run("%load_ext ipytaskpersist")
            kernel.run("%%background before\nprint('from before')")
            kernel.run("%bg_wait before --check")
            kernel.run("""%%background printing
import time, random
for number in range(4000):
    print(number, random.randbytes(1000).hex())
print("the end")
done = True
"x" * 5_000_000""")
            until(lambda: "True" in kernel.run("print(globals().get('done'))").text, 60)
            said = until(lambda: shown(kernel, "no room"), 60, "a word about the disk")
            assert_said("full", said)
            assert_said("kept-in-memory", said)
            full = run_command(state_dir, "backup")
            assert_said("full-backup", full.stderr)
            assert not list((state_dir / "backups").glob("*"))
            assert_nothing_goes_out(kernel, state_dir)
            subprocess.run(["mount", "-o", "remount,size=30m", str(state_dir)], check=True)
            kernel.run("%bg_wait printing --check --timeout 60")
            kernel.run(f"%bg_output printing --stdout --save {tmp_path}/printed")
            lines = (tmp_path / "printed").read_text().splitlines()
            assert [line.split()[0] for line in lines[:4000]] == [str(n) for n in range(4000)]
            assert "the end" in lines
            assert_said("back", until(lambda: shown(kernel, "written again"), 60, "a word"))
            assert kernel.run("%bg_output before").text == "from before\n"
        assert is_whole(state_dir / "tasks.db")


def assert_nothing_goes_out(kernel: NotebookKernel, state_dir: Path) -> None:
    """On a full disk a process task, an export and an archiving are refused, and leave nothing."""
    before = {file for file in state_dir.rglob("*") if file.is_file()}
    kernel.run("import random; large = random.randbytes(3_000_000)")
    assert_said("full-inputs", kernel.run("%%background --process\nlarge", check=False).text)
    exported = run_command(state_dir, "export", "--all", "--output", str(state_dir / "all.jsonl"))
    assert_said("full-export", exported.stderr.replace("jupyter bg ", "%bg_"))
    assert_said("full-archive", kernel.run("%bg_archive before", check=False).text)
    assert kernel.run("%bg_list --archived").text.strip() == "no archived tasks"
    assert kernel.run("%bg_output before").text == "from before\n"
    left = {file for file in state_dir.rglob("*") if file.is_file()} - before
    for file in left:
        assert file.suffix == ".lock" or file.name == "problems.jsonl", file


def shown(kernel: NotebookKernel, words: str) -> str:
    """All that the cells of a kernel show, once these words are among it."""
    kernel.run("0")
    text = "\n".join(cell.text for cell in kernel._cells.values())
    return text if words in text else ""


FILE_LIMIT = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
from ipytaskpersist.errors import StoreError
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.task_store import TaskStore
store = TaskStore(StateDirectory(Path(sys.argv[1])))
if sys.argv[2] != "migration":
    store.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    store.open()
    store.back_up()
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["backup", "migration"])
def test_a_backup_and_a_migration_that_have_no_room_leave_all_as_it_was(
    state_dir: Path, what: str
) -> None:
    """Nothing half-written stays, and what is there can be used."""
    directory = StateDirectory(state_dir)
    state_dir.mkdir(mode=0o700)
    directory.store.write_bytes((SCHEMAS / "schema-3.db").read_bytes())
    if what == "backup":
        TaskStore(directory).open().close()
        for backup in directory.backups.iterdir():
            backup.unlink()
    tried = run_python(FILE_LIMIT, state_dir, str(state_dir), what)
    assert tried.returncode == 0, tried.stderr
    assert is_said("full-backup", tried.stdout) or "cannot be used" in tried.stdout, tried
    assert not list(directory.root.rglob("*.part*"))
    assert not list(directory.backups.glob("*"))
    assert is_whole(directory.store)
    with closing(TaskStore(directory).open()) as store:
        assert store.tasks.count(Selection()) == 6


# Locked.

PRINTED_BYTES = 200_000_000


@pytest.mark.timeout(300)
def test_memory_stays_bounded_while_the_store_is_locked(
    kernel: NotebookKernel, state_dir: Path
) -> None:
    """200 MB are printed meanwhile: the task goes on, and what was dropped is counted and marked.

    Commands that read go on.
    """
    kernel.run("%%background first\n1")
    kernel.run("%bg_wait --check")
    kernel.run("""%%background much
import time
while not globals().get("locked"):
    time.sleep(0.001)
line = "x" * 99_994
for number in range(2000):
    print(f"{number:5}" + line)
printed = True""")
    with held(state_dir, ALONE):
        process = psutil.Process(kernel.pid)
        before = process.memory_info().rss
        kernel.run("locked = True")
        highest = 0

        def has_printed() -> bool:
            nonlocal highest
            highest = max(highest, process.memory_info().rss)
            return "True" in kernel.run("print(globals().get('printed'))").text

        until(has_printed, 120, "the end of the printing")
        assert "much" in run_command(state_dir, "list", "--all").stdout
    kernel.run("%bg_wait much --check --timeout 120")
    grown = highest - before
    print(f"printed {PRINTED_BYTES:,} bytes, the kernel has grown by {grown:,}")
    assert grown < 150_000_000
    said = problems_of(state_dir)
    assert_said("locked", said)
    assert_said("back-with-loss", said)
    lost = kernel.run("%bg_output much --stderr").text
    assert_said("loss-in-output", lost)
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        task = store.tasks.select(Selection())[-1]
        kept = sum(
            len(output.data) for output in store.outputs.of(task.key)
            if output.kind.value == "stdout"
        )  # fmt: skip
    count = sum(int(word.replace(",", "")) for line in lost.splitlines() if "lost" in line
                for word in line.strip("[").split()[:1])  # fmt: skip
    assert kept + count == PRINTED_BYTES


LOCKED_S = float(os.environ.get("IPYTASKPERSIST_LOCKED_S", "7"))
"""Longer than it takes until it is said."""
COUNTING = {
    "thread": """%%background thread
import os, time
number = 0
with open({witness!r}, "w", buffering=1) as witness:
    while not os.path.exists({stop!r}):
        print(number, file=witness)
        print(number)
        number += 1
        time.sleep(0.05)""",
    "shell": """%%background --shell shell
number=0
while [ ! -e {stop} ]; do
    echo $number >> {witness}; echo $number; number=$((number + 1)); sleep 0.05
done""",
}


@pytest.mark.timeout(300)
def test_tasks_of_a_kernel_and_of_a_supervisor_outlast_a_lock(
    kernel: NotebookKernel, state_dir: Path, tmp_path: Path
) -> None:
    """Not a line is lost, the foreground goes on, and commands that read answer."""
    stop = tmp_path / "stop"
    for name, cell in COUNTING.items():
        kernel.run(cell.format(witness=str(tmp_path / name), stop=str(stop)))
    until(lambda: all((tmp_path / name).exists() for name in COUNTING))
    with held(state_dir, ALONE):
        unlocked_at = time.monotonic() + LOCKED_S
        looks = 0
        while time.monotonic() < unlocked_at:
            looks += 1
            assert kernel.run(f"print({looks})").text == f"{looks}\n"
            assert "shell" in run_command(state_dir, "list", "--all").stdout
    stop.touch()
    kernel.run("%bg_wait thread shell --check --timeout 60")
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        for task in store.tasks.select(Selection()):
            stored = b"".join(output.data for output in store.outputs.of(task.key))
            assert stored == (tmp_path / task.name).read_bytes(), task.name
    said = problems_of(state_dir)
    assert_said("locked", said)
    assert_said("back", said)


def test_opening_waits_for_a_program_that_has_the_store_to_itself(state_dir: Path) -> None:
    """As the last one that leaves it has, while it copies the log into it."""
    directory = StateDirectory(state_dir)
    task_id = ended_task(directory)

    def ids() -> list[str]:
        with closing(TaskStore(directory).open()) as store:
            return [task.id for task in store.tasks.select(Selection())]

    with ThreadPoolExecutor(1) as pool:
        with held(state_dir, "PRAGMA locking_mode = EXCLUSIVE", ALONE):
            read = pool.submit(ids)
            with pytest.raises(TimeoutError):
                read.result(4 * WAIT_MS / 1000)
        assert read.result(LOCKED_S) == [task_id]


# Only to be read.


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A folder that this user cannot write to: root by mounting it so, others by its mode."""
    if os.getuid() == 0:
        with mounted(folder, "--bind", str(folder)):
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield
        return
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)


def assert_refused(said: str) -> None:
    """It says why: for root it is the disk that can only be read."""
    if os.getuid() == 0:
        assert_said("disk-read-only", said)
    else:
        assert_said("read-only", said)


UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv(1)")
def test_a_store_that_its_owner_may_not_write_to_says_so(state_dir: Path) -> None:
    """An administrator, too, where nothing is allowed that others are not."""
    ended_task(StateDirectory(state_dir))
    state_dir.chmod(0o500)
    done = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-m", "ipytaskpersist", "tag", "1", "x"],
        env=environment(state_dir), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    state_dir.chmod(0o700)
    assert_said("read-only", done.stderr.replace("jupyter bg ", "%bg_"))


def test_a_store_that_can_only_be_read_is_read_by_every_command_that_reads(
    state_dir: Path,
) -> None:
    """Nothing is left beside it; what would change it says why it cannot."""
    task = ended_task(StateDirectory(state_dir))
    before = sorted(state_dir.iterdir())
    with unwritable(state_dir):
        for words in (
            *(["list", "--all"], ["show", task], ["stats"], ["sessions"], ["export", "--all"]),
            *(["output", task], ["config"]),
        ):
            read = run_command(state_dir, *words)
            assert read.returncode == 0, (words, read.stderr)
        for words in (["tag", task, "x"], ["delete", task, "--yes"], ["cancel", task]):
            assert_refused(run_command(state_dir, *words).stderr.replace("jupyter bg ", "%bg_"))
        assert sorted(state_dir.iterdir()) == before


@pytest.mark.timeout(120)
def test_a_kernel_whose_store_can_only_be_read_says_so_and_runs_its_cells(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path
) -> None:
    ended_task(StateDirectory(state_dir))
    with unwritable(state_dir):
        kernel = make_kernel(load=False)
        assert_refused(kernel.run("%load_ext ipytaskpersist").text)
        assert "kept" in kernel.run("%bg_list --all").text
        refused = kernel.run("%%background\n1", check=False)
        assert refused.error is not None
        assert_refused(refused.error[1])
        assert kernel.run("print(1 + 1)").text == "2\n"
        kernel.shutdown()


def test_an_old_store_that_can_only_be_read_says_what_to_do(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o700)
    (state_dir / "tasks.db").write_bytes((SCHEMAS / "schema-3.db").read_bytes())
    with unwritable(state_dir):
        assert_said("read-only-and-old", run_command(state_dir, "list", "--all").stderr)


def test_a_newer_store_says_so(state_dir: Path) -> None:
    task = ended_task(StateDirectory(state_dir))
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        store.database.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    assert "kept" in run_command(state_dir, "list", "--all").stdout
    assert_said("newer", run_command(state_dir, "tag", task, "x").stderr)


def test_a_backup_is_looked_at_without_leaving_anything_beside_it(
    state_dir: Path, tmp_path: Path
) -> None:
    """Also on a medium that cannot be written."""
    directory = StateDirectory(state_dir)
    ended_task(directory)
    with closing(TaskStore(directory).open()) as store:
        (tmp_path / "medium").mkdir()
        backup = store.back_up(tmp_path / "medium" / "backup.db")
    with unwritable(backup.parent):
        assert is_whole(backup)
        restored = run_command(state_dir, "restore", str(backup), "--yes")
        assert restored.returncode == 0, restored.stderr
        assert list(backup.parent.iterdir()) == [backup]
