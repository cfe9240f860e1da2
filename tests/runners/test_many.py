"""Many tasks at once in one session, and what the limits of the machine make of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from programs import environment, run_command

from ipytaskpersist.errors import NoThread

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="process tasks need fork()"),
    pytest.mark.timeout(600),
]

COUNT = int(os.environ.get("IPYTASKPERSIST_TASKS", "100"))
"""How many at once; `make stress` says 1000."""

SESSION = """
import json, os, sys, time
from IPython.core.interactiveshell import InteractiveShell
import ipytaskpersist as bg
from ipytaskpersist.session.manager import current

count = int(sys.argv[1])
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")

def until(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, counted()
        time.sleep(0.02)

def counted():
    found = {}
    for task in bg.tasks():
        found[task.state.value] = found.get(task.state.value, 0) + 1
    return found

def timed(label, call):
    begun = time.perf_counter()
    result = call()
    figures[label] = round(time.perf_counter() - begun, 3)
    return result

figures = {}
"""

THREADS = """
cell = "import time\\nprint('begun')\\nwhile True:\\n    time.sleep(60)"
timed("launch_s", lambda: [bg.background(cell) for _ in range(count)])
timed("running_s", lambda: until(lambda: counted() == {"running": count}))
timed("printed_s", lambda: until(lambda: all(task.stdout for task in bg.tasks())))
timed("list_s", lambda: shell.run_line_magic("bg_list", "--limit 10"))
timed("cancel_s", lambda: shell.run_line_magic("bg_cancel", "--all --yes"))
timed("ended_s", lambda: until(lambda: counted() == {"cancelled": count}))
print("figures", json.dumps(figures))
"""

SHELLS = """
# What reads a pipe that nobody writes to waits without a process of its own.
os.mkfifo("gate")
command = "echo begun; read line < gate; echo through"
timed("launch_s", lambda: [bg.background(command, shell=True) for _ in range(count)])
timed("printed_s", lambda: until(lambda: sum(bool(task.stdout) for task in bg.tasks()) == count))
assert counted() == {"running": count}
timed("list_s", lambda: shell.run_line_magic("bg_list", "--limit 10"))
timed("cancel_s", lambda: shell.run_line_magic("bg_cancel", "--all --yes"))
timed("ended_s", lambda: until(lambda: counted() == {"cancelled": count}))
print("figures", json.dumps(figures))
"""

FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
os.mkfifo("gate")
command = "echo begun; read line < gate"
tasks = [bg.background(command, shell=True) for _ in range(count)]
problems = current().directory.problems
until(problems.exists)
assert counted()["pending"], counted()
tasks[0].cancel(), tasks[-1].cancel()
until(lambda: tasks[0].done() and tasks[-1].done())
gate = os.open("gate", os.O_RDWR)
for _ in tasks:
    os.write(gate, b"go\\n")
until(lambda: all(task.done() for task in tasks))
print(counted(), "open files" in problems.read_text())
"""


def ran(code: str, state_dir: Path, folder: Path, count: int) -> list[str]:
    """The lines that a session with many tasks prints; nothing of it is left."""
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run(
        [sys.executable, "-c", SESSION + code, str(count)], env=environment(state_dir), cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    left = [process for process in processes_of(folder) if process.pid not in before]
    assert left == []
    return done.stdout.splitlines()


def processes_of(folder: Path) -> list[psutil.Process]:
    """The tasks' processes, which all run in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # it has ended, or is somebody else's
            continue
    return found


@pytest.mark.parametrize("code", [THREADS, SHELLS], ids=["threads", "shells"])
def test_many_tasks_at_once_are_listed_and_cancelled_and_leave_nothing(
    state_dir: Path, tmp_path: Path, code: str
) -> None:
    lines = ran(code, state_dir, tmp_path, COUNT)
    figures = json.loads(lines[-1].removeprefix("figures "))
    print(COUNT, figures)
    listed = json.loads(run_command(state_dir, "list", "--all", "--json").stdout)
    assert sorted(task["number"] for task in listed["tasks"]) == [*range(1, COUNT + 1)]


def test_tasks_beyond_the_limit_on_open_files_wait_until_others_have_ended(
    state_dir: Path, tmp_path: Path
) -> None:
    """Also then a task can be cancelled: who signals its processes needs descriptors as well."""
    lines = ran(FEW_FILES, state_dir, tmp_path, 70)
    assert lines[-1] == "{'cancelled': 2, 'completed': 68} True"


def test_two_cancellations_in_short_order_interrupt_what_the_first_one_causes_no_more(
    state_dir: Path, tmp_path: Path
) -> None:
    code = """
from pathlib import Path
task = bg.background('''
import time
from pathlib import Path
try:
    print("begun")
    while True: time.sleep(0.01)
finally:
    Path("cleaning").touch()
    while not Path("go").exists(): time.sleep(0.01)
    print("cleaned")
''')
until(lambda: task.stdout)
key = current().tasks.find(task.id).key
current().runners.threads.cancel(key)
until(Path("cleaning").exists)
current().runners.threads.cancel(key)
Path("go").touch()
until(task.done)
print(task.stdout.split(), task.state)
"""
    assert ran(code, state_dir, tmp_path, 1) == ["['begun', 'cleaned'] cancelled"]


# A limit on processes.

LIMITED = """
import json, os, resource, sys, time
from pathlib import Path
import psutil
import ipytaskpersist as bg

def own_threads():
    return sum(
        process.num_threads() for process in psutil.process_iter(["uids"])
        if process.info["uids"] and process.info["uids"].real == os.getuid()
    )

gate = Path(os.environ["IPYTASKPERSIST_DIR"]).with_name("gate")
os.mkfifo(gate)
_soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (own_threads() + 12, hard))
tasks = [bg.background(f": < '{gate}'; echo through", shell=True) for _ in range(60)]
problems = Path(os.environ["IPYTASKPERSIST_DIR"]) / "problems.jsonl"
while not problems.exists():
    time.sleep(0.01)
waiting = sum(task.state == "pending" for task in tasks)
cancelled = tasks.pop()
assert cancelled.cancel() and cancelled.wait(30)
writer = os.open(gate, os.O_RDWR)  # lets all go on that wait for a writer
late = [(task.state, task.reason) for task in tasks if not task.wait(30)]
assert not late, (late, waiting, problems.read_text())
after = bg.background("exec echo after", shell=True)
assert after.wait(30)
print(json.dumps([[task.state, task.reason, task.stdout] for task in [*tasks, cancelled, after]]))
print(waiting, problems.read_text().count("the limit on the number of processes is reached"))
"""


def as_another_user(folder: Path) -> Sequence[str]:
    """A prefix that runs a command as a user whom limits hold, as they do not hold root.

    The user may read what root may, because the interpreter may be in root's own folder.
    """
    if os.getuid() != 0:
        return []
    user = str(1_000_000 + os.getpid())
    rights = "+dac_override,+dac_read_search"
    prefix = [
        "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
        f"--inh-caps={rights}", f"--ambient-caps={rights}",
    ]  # fmt: skip
    if not shutil.which("setpriv") or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("root is held by no limit on processes, and cannot become another user here")
    folder.mkdir()
    os.chown(folder, int(user), int(user))
    return prefix


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts threads on Linux")
def test_tasks_beyond_the_limit_on_processes_wait_until_others_have_ended(state_dir: Path) -> None:
    done = subprocess.run(
        [*as_another_user(state_dir), sys.executable, "-c", LIMITED], env=environment(state_dir),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, counts = done.stdout.splitlines()
    *tasks, cancelled, after = json.loads(said)
    assert after == ["completed", None, "after\n"]
    assert cancelled == ["cancelled", "cancelled", ""]
    assert tasks == [["completed", None, "through\n"]] * 59
    waiting, reported = map(int, counts.split())
    assert waiting > 0, "the limit was not reached"
    assert reported == 1


NO_THREADS = """
import resource
from ipytaskpersist.errors import NoThread

ended = bg.background("print('first')")
assert ended.wait(30)
mine = [
    each for each in psutil.process_iter(["uids"])
    if each.info["uids"] and each.info["uids"].real == os.getuid()
]
_soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (sum(each.num_threads() for each in mine), hard))
# In the thread of the first: more than is left in the store's log without a thread to copy it.
long = bg.background("for number in range(60): print(str(number) * 100_000)")
assert long.wait(60)
short = bg.background("print('last')\\nimport time\\nwhile True: time.sleep(0.01)")
until(lambda: short.stdout)
try:
    bg.background("print('never')")
except NoThread as error:
    print(error)
short.cancel()
assert short.wait(30)
resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
after = bg.background("print('after')")
assert after.wait(30)
print(len(long.stdout), [(task.number, task.stdout) for task in [ended, short, after]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts threads on Linux")
def test_a_session_that_can_start_no_thread_says_so_and_goes_on_storing(
    state_dir: Path, tmp_path: Path
) -> None:
    prefix = as_another_user(state_dir)
    done = subprocess.run(
        [*prefix, sys.executable, "-c", SESSION + "import psutil\n" + NO_THREADS, "1"],
        env=environment(state_dir, {"IPYTHONDIR": str(state_dir / "ipython")}), cwd=state_dir,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        str(NoThread()),
        f"{10 * 100_001 + 50 * 200_001} [(1, 'first\\n'), (3, 'last\\n'), (4, 'after\\n')]",
    ]
    assert "Exception in thread" not in done.stderr
