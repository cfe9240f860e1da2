"""Many tasks at once in one session, and what the limits of the machine make of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from programs import environment, run_command

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
from ipytaskpersist.manager import current

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
key = current().find(task.id).key
current().threads.cancel(key)
until(Path("cleaning").exists)
current().threads.cancel(key)
Path("go").touch()
until(task.done)
print(task.stdout.split(), task.state)
"""
    assert ran(code, state_dir, tmp_path, 1) == ["['begun', 'cleaned'] cancelled"]
