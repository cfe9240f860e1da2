"""A process that forks with the extension loaded: the copy does nothing in its parent's name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kernels import NotebookKernel, end_processes_of, until
from programs import environment, run_command, run_python
from shells import is_alive, read_pid

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

SHELL = """
import atexit, os, sys, time, threading
from IPython.core.interactiveshell import InteractiveShell
import ipytaskpersist as bg
from ipytaskpersist.session.manager import current

shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")

def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def ended(*tasks):
    assert all(task.wait(60) for task in tasks), tasks
    return tasks
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    """One kernel for many cells."""
    state_dir = tmp_path_factory.mktemp("forks") / "state"
    with NotebookKernel(state_dir, env={"IPYTASKPERSIST_NOTEBOOK": "forks.ipynb"}) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        yield kernel
    assert_whole(state_dir)
    end_processes_of(state_dir)


def output_of(kernel: NotebookKernel, cell: str) -> str:
    """What a background cell prints, which completes."""
    kernel.run(cell)
    assert "completed" in kernel.run("%bg_wait").text
    text = kernel.run("%bg_output").text
    kernel.run("pass")  # what it has assigned comes back here, and says so
    return text


def program(code: str, state_dir: Path) -> list[str]:
    """The lines that a program with an IPython of its own prints."""
    done = run_python(SHELL + code, state_dir)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def tasks_in(state_dir: Path) -> list[TaskRecord]:
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        return store.tasks.select(Selection())


def assert_whole(state_dir: Path) -> None:
    """SQLite finds nothing wrong with the store, and nobody has said that it is damaged."""
    assert not StateDirectory(state_dir).damage_mark.exists()
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        assert store.database.row("PRAGMA integrity_check")[0] == "ok"


# How a forked child ends, in a task.

ENDS = {
    "os._exit": ("os._exit(3)", 3, []),
    "sys.exit": ("sys.exit(3)", 3, []),
    "the end of a thread": ("threading.Thread(target=print, args=('thread',)).start(); sys.exit()",
                            0, ["thread"]),
    "an exit handler": ("atexit.register(print, 'handler'); sys.exit(4)", 4, ["handler"]),
    "an exception": ("raise OSError('of the child')", 1, ["OSError: of the child"]),
    "a display": ("display({'shown': 1}); sys.exit()", 0, ["{'shown': 1}"]),
    "the end of the cell": ("pass", 0, ["rest"]),
}  # fmt: skip

COLOUR = re.compile("\x1b\\[[0-9;]*m")
FORKING = """\
%%background {runner}
import atexit, os, sys, threading
print("before")
child = os.fork()
if not child:
    print("child")
    {end}
else:
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("rest")
"""


@pytest.mark.parametrize(
    ("way", "runner"),
    [
        *((way, "--thread") for way in ENDS),
        *((way, "--process") for way in ("an exit handler", "an exception", "the end of the cell")),
    ],
)
def test_a_child_that_a_task_forks_prints_to_it_and_ends_alone(
    notebook: NotebookKernel, way: str, runner: str
) -> None:
    end, status, printed = ENDS[way]
    text = output_of(notebook, FORKING.format(runner=runner, end=end))
    lines = COLOUR.sub("", text).splitlines()
    expected = ["before", "child", *printed, f"status {status}", "rest"]
    known = {"before", "child", "status", "rest", *expected, "thread", "handler"}
    assert [line for line in lines if line in known] == expected, lines


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("runner", ["--thread", "--process"])
def test_what_multiprocessing_starts_prints_to_its_task_once(
    notebook: NotebookKernel, runner: str, way: str
) -> None:
    lines = output_of(
        notebook,
        f"%%background {runner}\n"
        "import multiprocessing, concurrent.futures, functools\n"
        "whole = functools.partial(print, end='')\n"  # in one piece, as -u has print write two
        f"context = multiprocessing.get_context({way!r})\n"
        "child = context.Process(target=print, args=('child',))\n"
        "child.start(); child.join()\n"
        "with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:\n"
        "    list(pool.map(whole, ['pool 1\\n', 'pool 2\\n']))\n"
        "print(child.exitcode)\n",
    ).splitlines()
    assert sorted(lines) == ["0", "child", "pool 1", "pool 2"]


def test_a_child_in_a_session_of_its_own_ends_with_the_cancelled_task(
    notebook: NotebookKernel, tmp_path: Path
) -> None:
    """Neither is refused the session, although each leads a group that its kernel has given it."""
    stay = (
        "import os, time, pathlib\n"
        "def stay(file):\n"
        "    os.setsid()\n"
        "    pathlib.Path(file).write_text(f'{os.getpid()}\\n')\n"
        "    time.sleep(1000)\n"
    )
    (Path(notebook.cwd) / "staying.py").write_text(stay)
    notebook.run(
        f"%%background\nimport multiprocessing, subprocess\n{stay}"
        "subprocess.run(['true'], preexec_fn=os.setsid, check=True)\n"
        f"if not os.fork():\n    stay({str(tmp_path / 'forked')!r})\n"
        "from staying import stay\n"
        f"args = [{str(tmp_path / 'spawned')!r}]\n"
        "multiprocessing.get_context('spawn').Process(target=stay, args=args).start()\n"
        "time.sleep(1000)"
    )
    children = [read_pid(tmp_path / name) for name in ("forked", "spawned")]
    assert [os.getsid(each.pid) for each in children] == [each.pid for each in children]
    notebook.run("%bg_cancel")
    for child in children:
        until(lambda child=child: not is_alive(child))


def test_a_child_on_a_terminal_of_its_own_prints_there(notebook: NotebookKernel) -> None:
    text = output_of(
        notebook,
        "%%background\nimport os, pty\nchild, terminal = pty.fork()\n"
        "if not child:\n    print('to the terminal'); os._exit(0)\n"
        "text = os.read(terminal, 100).decode()\n"
        "os.waitpid(child, 0); print('read', text.split())\n",
    )
    assert text == "read ['to', 'the', 'terminal']\n"


def test_the_foreground_forks_while_tasks_print(notebook: NotebookKernel) -> None:
    notebook.run(
        "%%background printing\nimport time\nfor number in range(20_000):\n    print(number)\n"
        "    if number % 100 == 0: time.sleep(0.001)"
    )
    text = notebook.run(
        "import concurrent.futures, multiprocessing, os\n"
        "statuses = []\n"
        "for _ in range(20):\n"
        "    child = os.fork()\n"
        "    if not child: os._exit(7)\n"
        "    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "fork = multiprocessing.get_context('fork')\n"
        "with concurrent.futures.ProcessPoolExecutor(2, mp_context=fork) as pool:\n"
        "    print(set(statuses), sum(pool.map(abs, range(100))))\n"
    ).text
    assert text == "{7} 4950\n"
    notebook.run("%bg_wait printing")
    numbers = notebook.run("%bg_output printing").text.split()
    assert numbers == [str(number) for number in range(20_000)]


def test_a_library_that_forks_in_a_task_while_the_writer_is_busy_loses_and_doubles_nothing(
    state_dir: Path,
) -> None:
    lines = program(
        """
busy = bg.background("for number in range(30_000): print(number)")
forking = bg.background('''
import concurrent.futures, multiprocessing, os, sys
context = multiprocessing.get_context("fork")
with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
    list(pool.map(print, [f"pooled {number}" for number in range(50)]))
for number in range(30):
    child = os.fork()
    if not child:
        print("forked", number)
        sys.exit()
    os.waitpid(child, 0)
''')
ended(busy, forking)
print(busy.state, forking.state)
print(busy.stdout.split() == [str(number) for number in range(30_000)])
print(sorted(forking.stdout.splitlines()) == sorted(
    [f"pooled {n}" for n in range(50)] + [f"forked {n}" for n in range(30)]))
""",
        state_dir,
    )
    assert lines == ["completed completed", "True", "True"]
    assert_whole(state_dir)


# What a forked child must not do.


def test_a_child_that_exits_ends_neither_the_session_nor_its_tasks(state_dir: Path) -> None:
    lines = program(
        """
task = bg.background("import time\\nfor _ in range(1000):\\n    time.sleep(0.01)")
child = os.fork()
if not child:
    sys.exit(5)
print(status_of(child), task.state)
print(current().store.sessions.unfinished()[0].ended_at, task.cancel())
""",
        state_dir,
    )
    assert lines == ["5 running", "None True"]


def test_a_child_of_a_program_ends_neither_the_session_nor_its_tasks(state_dir: Path) -> None:
    code = """
import os, sys, time
import ipytaskpersist as bg
from ipytaskpersist.session.manager import current
task = bg.background("sleep 60", shell=True)
child = os.fork()
if not child:
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), task.done())
print(len(current().store.sessions.unfinished()), task.cancel())
task.wait(60)
"""
    done = run_python(code, state_dir)
    assert done.stdout.splitlines() == ["5 False", "1 True"], done.stderr


def test_a_child_says_in_one_line_that_it_cannot_use_the_store(state_dir: Path) -> None:
    lines = program(
        """
from ipytaskpersist.errors import StoreError
bg.background("print(1)").wait(60)
sys.stdout.flush()
child = os.fork()
if not child:
    for work in (bg.tasks, lambda: bg.background("print(2)"), lambda: bg.task(1),
                 lambda: bg.background("echo 3", shell=True)):
        try:
            print("worked", work())
        except StoreError as error:
            print(error)
    try:
        shell.run_line_magic("bg_list", "")
    except Exception as error:
        print(error)
    sys.exit()
assert status_of(child) == 0
print(len(bg.tasks()))
""",
        state_dir,
    )
    said = set(lines[:-1])
    assert len(said) == 1, lines
    assert said.pop().startswith("this process was forked from one that uses the store")
    assert lines[-1] == "1"
    assert_whole(state_dir)


def test_a_child_of_a_process_that_has_not_used_the_store_has_a_session_of_its_own(
    state_dir: Path,
) -> None:
    code = """
import os, sys
import ipytaskpersist as bg
children = []
for number in range(2):
    child = os.fork()
    if not child:
        sys.exit(not bg.background(f"echo {number}", shell=True).wait(60))
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
    done = run_python(code, state_dir)
    assert done.stdout == "[0, 0]\n", done.stderr
    assert len({task.session for task in tasks_in(state_dir)}) == 2


OUTLIVING = """
import os, sys, time
from pathlib import Path
import ipytaskpersist as bg
from ipytaskpersist.session.manager import current
folder = Path(sys.argv[1])
bg.background("true", shell=True).wait(60)
if not os.fork():
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    (folder / "child").write_text(f"{os.getpid()}\\n")
    while not (folder / "go").exists():
        time.sleep(0.01)
    try:
        # It must not work; should it, it shows what then becomes of the others' store.
        for number in range(300):
            bg.background("child" * 1000, shell=True)
    except Exception as error:
        (folder / "said").write_text(str(error))
    sys.exit()
os._exit(0)  # as when it is killed: the child has the connections
"""


def test_a_child_that_outlives_its_parent_leaves_the_store_whole(
    state_dir: Path, tmp_path: Path
) -> None:
    """Also at its end, when the interpreter lets go of everything: not of those connections."""
    started = run_python(OUTLIVING, state_dir, str(tmp_path))
    assert started.returncode == 0, started.stderr
    child = read_pid(tmp_path / "child")
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        # Until here the log is that of the parent; the last one to close it removes it.
        assert store.database.log.exists()
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        store.upkeep.claim("first", 0)
        log = store.database.log.stat().st_ino
        (tmp_path / "go").touch()
        until(lambda: not is_alive(child))
        assert store.database.log.stat().st_ino == log, "the child has removed the log"
        store.upkeep.claim("second", 0)
    assert (tmp_path / "said").read_text().startswith("this process was forked")
    assert_whole(state_dir)


def test_a_fork_in_the_middle_of_a_transaction_ends_it_for_nobody(state_dir: Path) -> None:
    lines = program(
        """
store = current().store.open()
current().session.record()
begun, forked = threading.Event(), threading.Event()
def write():
    with store.database.transaction() as connection:
        connection.execute("CREATE TABLE kept (value)")
        begun.set()
        forked.wait(60)
        connection.execute("INSERT INTO kept VALUES (1)")
writer = threading.Thread(target=write)
writer.start()
begun.wait(60)
child = os.fork()
if not child:
    sys.exit(9)
print(status_of(child))
forked.set()
writer.join(60)
print(store.database.row("SELECT value FROM kept"))
""",
        state_dir,
    )
    assert lines == ["9", "(1,)"]
    assert_whole(state_dir)


def test_a_child_of_a_task_goes_on_when_its_kernel_is_killed(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """It has detached itself. What it prints then is kept by nobody, but does not end it."""
    kernel = make_kernel(notebook="/n.ipynb")
    kernel.run(
        "%%background\nimport os, sys, time\nfrom pathlib import Path\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "if not os.fork():\n"
        "    os.setsid()\n"  # or the kernel's guard would end it
        "    print('child')\n"
        "    (folder / 'pid').write_text(f'{os.getpid()}\\n')\n"
        "    while not (folder / 'go').exists(): time.sleep(0.01)\n"
        "    print('nobody reads this'); print('nor this', file=sys.stderr)\n"
        "    (folder / 'done').touch()\n"
        "else:\n    time.sleep(1000)"
    )
    child = read_pid(tmp_path / "pid")
    until(lambda: "child" in kernel.run("%bg_output").text)
    kernel.kill()
    (tmp_path / "go").touch()
    until(lambda: not is_alive(child))
    assert (tmp_path / "done").exists()
    said = run_command(state_dir, "output", "1", notebook="/n.ipynb").stdout
    (task,) = tasks_in(state_dir)
    assert (task.state, task.reason, said) == (TaskState.INTERRUPTED, "kernel died", "child\n")
    assert_whole(state_dir)


def test_a_spawned_process_has_a_session_of_its_own(state_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("""
import multiprocessing
import ipytaskpersist as bg
def work():
    bg.background("echo child", shell=True).wait(60)
if __name__ == "__main__":
    bg.background("echo parent", shell=True).wait(60)
    for way in ("spawn", "forkserver"):
        child = multiprocessing.get_context(way).Process(target=work)
        child.start(); child.join(); print(child.exitcode)
""")
    done = subprocess.run(
        [sys.executable, str(file)], env=environment(state_dir), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "0\n0\n", done.stderr
    tasks = tasks_in(state_dir)
    assert {task.state for task in tasks} == {TaskState.COMPLETED}
    assert len({task.session for task in tasks}) == 3
