"""A cancelled thread task ends, wherever it is, and nothing else is touched by that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from layout import HELPERS
from programs import environment

COUNT = int(os.environ.get("IPYTASKPERSIST_CANCELS", "30"))
"""How often the first test cancels. `make stress` has 1,000."""
SEED = os.environ.get("IPYTASKPERSIST_SEED", "first")


def test_cells_of_all_kinds_are_cancelled_at_random_moments(state_dir: Path) -> None:
    program = HELPERS / "cancels.py"
    ended = subprocess.run(
        [sys.executable, str(program), str(COUNT), SEED], env=environment(state_dir),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120 + 5 * COUNT,
        check=False,
    )  # fmt: skip
    print(ended.stdout[-500:])
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-8000:]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> NotebookKernel:
    folder = tmp_path_factory.mktemp("cancellations")
    with NotebookKernel(folder / "state") as kernel:
        kernel.run("%load_ext ipytaskpersist\nfrom pathlib import Path\nimport os, sys")
        kernel.run(f"sys.path.insert(0, {str(folder)!r})\nfolder = Path({str(folder)!r})")
        kernel.run(
            "import ipytaskpersist as bg\n"
            "from ipytaskpersist.running.running_task import active_task"
        )
        yield kernel


def launch(kernel: NotebookKernel, source: str) -> None:
    kernel.run(f"task = bg.background({source!r})")


def until_printed(kernel: NotebookKernel, text: str) -> None:
    until(lambda: text in kernel.run("print(task.stdout)").text, message=f"the line {text}")


def cancelled(kernel: NotebookKernel, timeout: float = 10) -> str:
    """Cancel the task, wait for its end, and return its state and all that it printed."""
    lines = f"print(task.cancel(), task.wait({timeout}), task.state, task.stdout.split())"
    return kernel.run(lines).text.strip()


WAITS = {
    "an event": "threading.Event().wait()",
    "a queue": "queue.Queue().get()",
    "a full queue": "full = queue.Queue(1); full.put(1); full.put(2)",
    "a semaphore": "threading.Semaphore(0).acquire()",
    "a future": "concurrent.futures.Future().result()",
    "a thread": "stuck = threading.Thread(target=go.wait)\nstuck.start()\nstuck.join()",
    "a process": "child = fork.Process(target=time.sleep, args=(60,))\nchild.start()\nchild.join()",
    "a pool": "fork.Pool(2).map(time.sleep, [60, 60])",
    "a command": "import subprocess; subprocess.run(['sleep', '60'])",
    "an asyncio task": "await asyncio.Event().wait()",
    "a sleep": "time.sleep(60)",
    "a sleep in a thread pool": "with concurrent.futures.ThreadPoolExecutor(1) as pool:\n"
    "    pool.submit(go.wait).result()",
}


def test_whatever_a_cell_waits_for_it_ends_and_runs_nothing_more(notebook: NotebookKernel) -> None:
    notebook.run(
        "import asyncio, concurrent.futures, multiprocessing, queue, threading, time\n"
        "fork = multiprocessing.get_context('fork')"
    )
    for name, waiting in WAITS.items():
        # The pool of threads waits for its thread at the end of its block, cancelled or not.
        notebook.run("go = threading.Event()")
        launch(notebook, f"print('waiting')\n{waiting}\nprint('ran on')")
        until_printed(notebook, "waiting")
        notebook.run("threading.Timer(0.5, go.set).start()")
        assert cancelled(notebook) == "True True cancelled ['waiting']", name


def test_a_thread_that_is_just_starting_starts(notebook: NotebookKernel) -> None:
    """On Python 3.11 an exception for the starting thread would be raised in the started one."""
    launch(
        notebook,
        "import threading, _thread\n"
        "plain = threading._start_new_thread\n"
        "def start_new_thread(*arguments):\n"
        "    threading._start_new_thread = plain\n"
        "    cancellation = active_task.get().cancellation\n"
        "    asked = _thread.allocate_lock()\n"
        "    asked.acquire()\n"
        "    plain(lambda: (cancellation.ask(), asked.release()), ())\n"
        "    asked.acquire()\n"
        "    return plain(*arguments)\n"
        "threading._start_new_thread = start_new_thread\n"
        "threading.Thread(target=print, args=('started',)).start()\n"
        "print('ran on')\n",
    )
    done = notebook.run("print(task.wait(10), task.state, task.stdout.split())").text.strip()
    assert done == "True cancelled ['started']"


def test_who_waits_for_another_task_s_import_leaves_no_lock_behind(
    notebook: NotebookKernel,
) -> None:
    notebook.run(
        "(folder / 'slowly.py').write_text('''\n"
        "import time\n"
        "from pathlib import Path\n"
        "while not Path(__file__).with_name('go').exists():\n"
        "    time.sleep(0.01)\n"
        "''')\n"
        "first = bg.background('import slowly')"
    )
    until(lambda: "True" in notebook.run("print('slowly' in sys.modules)").text)
    launch(notebook, "print('waiting')\nimport slowly\nprint('ran on')")
    until_printed(notebook, "waiting")
    notebook.run("task.cancel()\n(folder / 'go').touch()")
    done = notebook.run("print(first.wait(10), first.state, task.wait(10), task.state)").text
    assert done.split() == ["True", "completed", "True", "cancelled"]
    notebook.run("import importlib\nimportlib.reload(slowly := __import__('slowly'))")


LOST = {
    "__del__": "class Dropped:\n"
    "    def __del__(self):\n"
    "        {work}\n"
    "while True:\n"
    "    Dropped()\n",
    "a weak reference": "import weakref\n"
    "class Watched:\n"
    "    pass\n"
    "def ended(_reference):\n"
    "    {work}\n"
    "while True:\n"
    "    watched = Watched()\n"
    "    reference = weakref.ref(watched, ended)\n"
    "    del watched\n",
    "a hook of fork": "def before():\n"
    "    if active_task.get() is not None:\n"
    "        {work}\n"
    "os.register_at_fork(before=before)\n"
    "while True:\n"
    "    pid = os.fork()\n"
    "    if not pid:\n"
    "        os._exit(0)\n"
    "    os.waitpid(pid, 0)\n",
}


@pytest.mark.parametrize("name", LOST)
def test_a_cancellation_that_was_ignored_is_raised_again(
    notebook: NotebookKernel, name: str
) -> None:
    launch(notebook, "print('begun')\n" + LOST[name].format(work="sum(range(200_000))"))
    until_printed(notebook, "begun")
    assert cancelled(notebook) == "True True cancelled ['begun']"


def test_a_cell_that_catches_it_gets_it_again_but_not_while_it_cleans_up(
    notebook: NotebookKernel,
) -> None:
    notebook.run(
        "from ipytaskpersist.running import cancellation\n"
        "cancellation.REPEAT_S = cancellation.PERSIST_S = 0.2"
    )
    launch(
        notebook,
        "import time\n"
        "def work():\n"
        "    try:\n"
        "        while True:\n"
        "            sum(range(1000))\n"
        "    finally:\n"
        "        began = time.monotonic()\n"
        "        while time.monotonic() < began + 1:\n"
        "            sum(range(1000))\n"
        "        print('cleaned')\n"
        "print('begun')\n"
        "try:\n"
        "    work()\n"
        "except BaseException:\n"
        "    print('caught')\n"
        "while True:\n"
        "    try:\n"
        "        while True:\n"
        "            sum(range(1000))\n"
        "    except BaseException:\n"
        "        pass\n",
    )
    until_printed(notebook, "begun")
    assert cancelled(notebook) == "True True cancelled ['begun', 'cleaned', 'caught']"
    notebook.run("cancellation.REPEAT_S, cancellation.PERSIST_S = 5.0, 15.0")


def test_a_pool_that_a_cancelled_cell_leaves_open_ends_with_its_workers(
    notebook: NotebookKernel,
) -> None:
    launch(
        notebook,
        "import multiprocessing, time\n"
        "left_open = multiprocessing.get_context('fork').Pool(2)\n"
        "print('begun')\n"
        "while True:\n"
        "    left_open.map(abs, range(50))\n",
    )
    until_printed(notebook, "begun")
    assert cancelled(notebook) == "True True cancelled ['begun']"
    alive = "print([worker.is_alive() for worker in left_open._pool])"
    until(lambda: "True" not in notebook.run(alive).text, message="the end of the workers")
    assert notebook.run("left_open.terminate()\nprint('ended')").text.strip() == "ended"


def test_a_call_that_never_returns_is_named(notebook: NotebookKernel) -> None:
    notebook.run("import _thread\nlock = _thread.allocate_lock()\nlock.acquire()")
    launch(notebook, "print('begun')\nlock.acquire()\nprint('ran on')")
    until_printed(notebook, "begun")
    said = notebook.run("%bg_cancel $task.id").text
    assert "runs on until the call that it is in returns" in said
    assert "cancellation requested" in notebook.run("%bg_list").text
    notebook.run("lock.release()")
    done = notebook.run("print(task.wait(10), task.state, task.stdout.split())").text.strip()
    assert done == "True cancelled ['begun']"
