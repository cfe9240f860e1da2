"""A clock that jumps, and a file system on which SQLite keeps a rollback journal."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from programs import TIMEOUT_S, environment, run_command, run_together
from promises import assert_said

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.store.file.repair import is_whole
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

DAY_S = 86_400

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_FILE"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (id == CLOCK_REALTIME) at->tv_sec += shift();
    return result;
}
time_t time(time_t *out) {
    struct timespec at; clock_gettime(CLOCK_REALTIME, &at);
    if (out) *out = at.tv_sec;
    return at.tv_sec;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec; at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gives a program another time of day, as long as a file says so."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a clock of a program's own needs a C compiler and Linux")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"], cwd=folder, check=True
    )
    return folder / "clock.so"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("jump_s", [-DAY_S, 3 * DAY_S])
def test_a_clock_that_jumps_ends_nothing_and_turns_no_order_round(
    make_kernel: Callable[..., NotebookKernel],
    clock_library: Path,
    state_dir: Path,
    tmp_path: Path,
    jump_s: int,
) -> None:
    """No session is taken for dead, no duration is negative, the list keeps its order."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    shifted = {"LD_PRELOAD": str(clock_library), "CLOCK_FILE": str(clock)}
    notebook = tmp_path / "a.ipynb"
    kernel = make_kernel(notebook=notebook, env=shifted)
    kernel.run("%%background first\nprint(1)")
    kernel.run("%bg_wait first --check")
    kernel.run("%%background over\nimport time\nwhile not globals().get('enough'): time.sleep(.01)")
    end = tmp_path / "end"
    kernel.run(f"%%background shell --shell\nwhile [ ! -e {end} ]; do echo on; sleep 0.1; done")
    clock.write_text(str(jump_s))
    kernel.run("%%background later\nprint(2)")
    kernel.run("%bg_wait later --check")

    def listed() -> list[dict[str, object]]:
        return list(json.loads(kernel.run("%bg_list --json").text)["tasks"])

    until(lambda: listed()[2]["state"] == "running", 60, "the shell task's beginning")
    assert [task["state"] for task in listed()] == ["completed", "running", "running", "completed"]
    other = run_command(state_dir, "list", "--json", "--all", notebook=notebook)
    states = {task["name"]: task["state"] for task in json.loads(other.stdout)["tasks"]}
    assert states["over"] == states["shell"] == "running"
    kernel.run("enough = True")
    end.touch()
    kernel.run("%bg_wait over shell --check --timeout 60")
    tasks = listed()
    assert [task["name"] for task in tasks] == ["first", "over", "shell", "later"]
    assert not re.search(r"-\d+:\d\d", kernel.run("%bg_list").text), "no task took less than none"
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        for task in store.tasks.select(Selection()):
            assert task.started_at is not None
            assert task.ended_at is not None
            assert task.ended_at >= task.started_at
    kernel.restart()
    greeting = kernel.run("%load_ext ipytaskpersist").text
    assert "interrupted" not in greeting


# The rollback journal.

ON_NETWORK = """
import ipytaskpersist.store.file.file_systems as filesystems
filesystems.file_system_of = lambda folder: "nfs4"
import sys, time
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
store = TaskStore(StateDirectory(default_directory()))
"""

WRITE = (
    ON_NETWORK
    + """
start_together()
store.open()
session = store.sessions.begin(session_identity(None))
new = NewTask(session.notebook_key, session.id, "n" + sys.argv[1], "python", "thread", "pass")
for turn in range(3):
    task = store.tasks.insert(new)
    store.tasks.start(task.key, time.time())
    for number in range(20):
        data = b"%d\\n" % number
        store.outputs.append([NewOutput(task.key, OutputKind.STDOUT, time.time(), data).as_row()])
    store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
print(store.notice, store.database.row("PRAGMA journal_mode")[0])
store.close()
"""
)

INTERRUPTED = (
    ON_NETWORK
    + """
store.open()
connection = store.database.connection
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE tasks SET name = 'not committed'")
connection.execute("CREATE TABLE much AS SELECT randomblob(4000) FROM outputs")
print("in the middle", flush=True)
sys.stdin.read()
"""
)


def test_processes_share_a_store_with_a_rollback_journal_and_one_is_killed_in_the_middle(
    state_dir: Path,
) -> None:
    """What is committed is there, what is not is rolled back by whoever comes next."""
    ended = run_together(WRITE, state_dir, 3)
    assert all(each.returncode == 0 for each in ended), [each.stderr for each in ended]
    assert {each.stdout.split()[-1] for each in ended} == {"truncate"}
    assert_said("network", "".join(each.stdout for each in ended))
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], env=environment(state_dir), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == "in the middle\n"
        assert (state_dir / "tasks.db-journal").stat().st_size > 0
        program.send_signal(signal.SIGKILL)
        program.wait(TIMEOUT_S)
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        tasks = store.tasks.select(Selection())
        assert sorted(task.name for task in tasks) == sorted(["n0", "n1", "n2"] * 3)
        assert all(store.outputs.count(task.key, [OutputKind.STDOUT]) == 20 for task in tasks)
    assert is_whole(state_dir / "tasks.db")


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_log_that_is_removed_while_nobody_has_the_store_open_damages_nothing(
    state_dir: Path, suffix: str
) -> None:
    """A killed process leaves both; without the log what was only there is lost, and no more."""
    program = (
        ON_NETWORK.replace('"nfs4"', '"ext4"')
        + """
store.open()
session = store.sessions.begin(session_identity(None))
new = NewTask(session.notebook_key, session.id, "a", "python", "thread", "pass")
store.tasks.insert(new)
store.database.checkpoint()
store.tasks.insert(new)
import os
os.kill(os.getpid(), 9)
"""
    )
    subprocess.run([sys.executable, "-c", program], env=environment(state_dir), check=False)
    (state_dir / f"tasks.db{suffix}").unlink()
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        assert store.notice == ""
        assert store.tasks.count(Selection()) == (1 if suffix == "-wal" else 2)
        assert store.database.row("PRAGMA integrity_check") == ("ok",)
