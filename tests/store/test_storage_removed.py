"""The store is removed, renamed or replaced under a running kernel: its tasks go on in another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from programs import environment, run_command
from promises import assert_said

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.store.file.repair import is_whole
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

ENDLESS = """%%background counting
import time
number = 0
while not globals().get("enough"):
    print("line", number)
    number += 1
    time.sleep(0.01)"""
SHELL = """%%background shell --shell
n=0
while [ ! -e {end} ]; do echo $n; n=$((n+1)); sleep 0.05; done"""


def begin(kernel: NotebookKernel, end: Path, state_dir: Path) -> None:
    """A task that has ended, one in a thread and one in a process, both printing."""
    kernel.run("%%background before\nprint('from before')")
    kernel.run("%bg_wait before --check")
    kernel.run(ENDLESS)
    kernel.run(SHELL.format(end=end))
    directory = StateDirectory(state_dir)
    with closing(TaskStore(directory).open()) as store:
        until(lambda: min(printed(store).get(number, 0) for number in (2, 3)) > 3, 60, "lines")


def printed(store: TaskStore) -> dict[int, int]:
    """How many lines each task has printed."""
    return {
        task.number: store.outputs.stream_size(task.key, OutputKind.STDOUT).lines
        for task in store.tasks.select(Selection())
    }


def finish(kernel: NotebookKernel, end: Path) -> str:
    """Let both end, and return what was said in the meantime."""
    end.touch()
    said = kernel.run("enough = True").text
    said += kernel.run("%bg_wait counting shell --check --timeout 60").text
    return said


def assert_all_is_there(kernel: NotebookKernel, state_dir: Path) -> None:
    """Every line, once and in its order, of both tasks."""
    count = int(kernel.run("print(number)").text)
    assert kernel.run("%bg_output counting").text == "".join(f"line {n}\n" for n in range(count))
    lines = kernel.run("%bg_output shell").text.split()
    assert lines == [str(n) for n in range(len(lines))]
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        assert store.database.row("PRAGMA integrity_check") == ("ok",)
        assert store.database.rows("PRAGMA foreign_key_check") == []
        for task in store.tasks.select(Selection()):
            states = [event.state.value for event in store.tasks.history(task.key)]
            assert states == ["pending", "running", "completed"]


def problems_of(state_dir: Path) -> str:
    file = state_dir / "problems.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return "\n".join(json.loads(line)["message"] for line in lines)


@pytest.mark.timeout(300)
def test_the_state_directory_is_removed_while_a_kernel_prints(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """A new store is begun within a second; what ran loses nothing, the rest is saved."""
    kernel, end = make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path / "end"
    begin(kernel, end, state_dir)
    shutil.rmtree(state_dir)
    until(lambda: problems_of(state_dir), 60, "a word about it")
    finish(kernel, end)
    assert_said("removed", problems_of(state_dir))
    assert_all_is_there(kernel, state_dir)
    numbers = [task["number"] for task in json.loads(kernel.run("%bg_list --json").text)["tasks"]]
    # One that has just ended may have ended after the removal.
    assert numbers in ([1, 2, 3], [2, 3])
    kernel.run("%%background later\n1")
    assert "4 (later)" in kernel.run("%bg_wait later --check").text, "no number is given again"
    (saved,) = (state_dir / "backups").glob("*-removed-*.db")
    assert is_whole(saved)
    kernel.shutdown()
    restored = run_command(state_dir, "restore", str(saved), "--yes")
    assert restored.returncode == 0, restored.stderr
    assert "before" in run_command(state_dir, "list", "--all").stdout


@pytest.mark.timeout(300)
def test_the_store_is_renamed_while_a_kernel_prints(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """What was written until then is whole under the new name, its log included."""
    kernel, end = make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path / "end"
    begin(kernel, end, state_dir)
    renamed = state_dir / "renamed.db"
    (state_dir / "tasks.db").rename(renamed)
    until(lambda: problems_of(state_dir), 60, "a word about it")
    finish(kernel, end)
    assert_said("replaced", problems_of(state_dir))
    assert_all_is_there(kernel, state_dir)
    assert is_whole(renamed)
    with closing(TaskStore(StateDirectory(state_dir, "renamed.db")).open()) as old:
        assert [task.name for task in old.tasks.select(Selection())][:2] == ["before", "counting"]
        assert printed(old)[2] > 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("suffixes", [["-wal"], ["-shm"], ["-wal", "-shm"]], ids="+".join)
def test_what_is_beside_the_store_is_removed_while_a_kernel_prints(
    make_kernel: Callable[..., NotebookKernel],
    state_dir: Path,
    tmp_path: Path,
    suffixes: list[str],
) -> None:
    """Only who has it open still knows what is there, and puts all of it into a new store."""
    kernel, end = make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path / "end"
    begin(kernel, end, state_dir)
    for suffix in suffixes:
        (state_dir / f"tasks.db{suffix}").unlink()
    until(lambda: problems_of(state_dir), 60, "a word about it")
    finish(kernel, end)
    assert_said("log-removed", problems_of(state_dir))
    assert_all_is_there(kernel, state_dir)
    tasks = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    assert [task["number"] for task in tasks] == [1, 2, 3]
    assert kernel.run("%bg_output before").text == "from before\n"
    kernel.shutdown()
    assert is_whole(state_dir / "tasks.db")
    assert "before" in run_command(state_dir, "list", "--all").stdout
    assert not (state_dir / "tasks.db.damaged").exists()


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_what_is_beside_the_store_is_missed_from_the_moment_on_in_which_it_was_opened(
    state_dir: Path, suffix: str, is_new: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only once somebody had the time to look at it."""
    if not is_new:
        TaskStore(StateDirectory(state_dir)).open().close()
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        assert store.upkeep.claim("a row in the log", 0)
        (state_dir / f"tasks.db{suffix}").unlink()
        until(lambda: store.tasks.count(Selection()) == 0 and store.replacements, 60, "a new store")
        assert store.database.row("SELECT count(*) FROM upkeep") == (1,)
    assert "was removed while this session used it" in capsys.readouterr().err


HOLDER = """
import sys
from pathlib import Path
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
store = TaskStore(StateDirectory(Path(sys.argv[1]))).open()
store.tasks.count(Selection())
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["its end", "closing"])
def test_who_has_a_replaced_store_open_leaves_the_log_of_the_new_one_alone(
    store: TaskStore, state_dir: Path, how: str
) -> None:
    """SQLite removes a log by its name, when the last of its users goes: not that of another."""
    code = HOLDER + ("\nstore.close()" if how == "closing" else "")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(state_dir)],
        env=environment(state_dir), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        store.close()
        for file in state_dir.glob("tasks.db*"):
            file.rename(state_dir / file.name.replace("tasks", "old"))
        with closing(TaskStore(StateDirectory(state_dir)).open()) as other:
            other.upkeep.claim("a row in the log", 0)
            log = state_dir / "tasks.db-wal"
            size = log.stat().st_size
            assert size > 0
            holder.communicate(timeout=60)
            assert holder.returncode == 0
            assert log.stat().st_size == size
    assert is_whole(state_dir / "old.db")


def test_a_log_whose_store_is_gone_is_not_taken_for_that_of_a_new_one(state_dir: Path) -> None:
    """It is kept under another name; the new store begins with nothing of it."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        store.upkeep.claim("x", 0)
        kept = {file.name: file.read_bytes() for file in state_dir.glob("tasks.db-*")}
    (state_dir / "tasks.db").unlink()
    for name, content in kept.items():
        (state_dir / name).write_bytes(content)
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        assert store.database.row("SELECT count(*) FROM upkeep") == (0,)
    assert list(state_dir.glob("tasks-left-*.db-wal"))
    assert is_whole(state_dir / "tasks.db")


def test_a_store_that_is_moved_away_and_back_is_the_same_again(
    store: TaskStore, state_dir: Path
) -> None:
    said: list[str] = []
    store.say = said.append
    (state_dir / "tasks.db").rename(state_dir / "away.db")
    assert not store.exists
    (state_dir / "away.db").rename(state_dir / "tasks.db")
    assert store.open().tasks.count(Selection(states=[TaskState.RUNNING])) == 0
    assert said == []


@pytest.mark.parametrize("kept", [0.0, 0.5], ids=["all of it", "half of it"])
def test_a_log_that_was_cut_is_said_to_be_lost(
    kept: float, make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """No message says that nothing is missing; what runs goes on, and ended tasks have ended."""
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    for number in range(3):
        kernel.run(f"%%background\nprint({number})")
    kernel.run("%bg_wait 1 2 3")
    log = state_dir / "tasks.db-wal"
    os.truncate(log, int(log.stat().st_size * kept))
    kernel.run("%%background\n4", check=False)
    said = kernel.run("%bg_wait", check=False).text + problems_of(state_dir)
    assert_said("log-cut", said)
    assert "Nothing is missing" not in said
    assert "nothing was lost" not in said
    for flag in ("", "--process", "--shell"):
        kernel.run(f"%%background {flag} again\n{'echo 5' if 'shell' in flag else 'print(5)'}")
        assert "5" in kernel.run("%bg_wait again --timeout 60\n%bg_output again").text
    states = {task["state"] for task in json.loads(kernel.run("%bg_list --json").text)["tasks"]}
    assert states <= {"completed", "interrupted"}
    kernel.shutdown()
    assert is_whole(state_dir / "tasks.db")


def test_a_busy_log_that_was_cut_is_missed(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """While tasks print, their kernel goes on in a store that works, and says what is lost."""
    kernel, end = make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path / "end"
    begin(kernel, end, state_dir)
    os.truncate(state_dir / "tasks.db-wal", 0)
    until(lambda: "is lost" in problems_of(state_dir), 60, "a word about it")
    end.touch()
    kernel.run("enough = True")
    assert "Nothing is missing" not in problems_of(state_dir)
    kernel.run("%%background after\nprint('still here')")
    kernel.run("%bg_wait after --timeout 60")
    assert kernel.run("%bg_output after").text == "still here\n"
    kernel.shutdown()
    assert is_whole(state_dir / "tasks.db")
