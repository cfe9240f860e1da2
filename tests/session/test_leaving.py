"""What still runs in a thread when its kernel ends is named, and waited for if that is asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import nbformat
import pytest
from kernels import private_environment
from nbformat.v4 import new_code_cell, new_notebook
from programs import TIMEOUT_S, environment, run_python

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

WAIT = "IPYTASKPERSIST_WAIT_AT_EXIT"


def executed(folder: Path, source: str, env: Mapping[str, str], *arguments: str) -> str:
    """What nbconvert says on stderr that executes a notebook."""
    cells = [new_code_cell("%load_ext ipytaskpersist"), new_code_cell(source)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "batch.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--output", "done",
         *arguments, str(folder / "batch.ipynb")],
        env={
            **private_environment(folder),
            **environment(folder / "state", {"IPYTASKPERSIST_NOTEBOOK": "batch.ipynb"}),
            **env,
        },
        cwd=folder, timeout=TIMEOUT_S, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def ends(state_dir: Path) -> list[tuple[str, str | None]]:
    """State and reason of all tasks."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        return [(task.state.value, task.reason) for task in store.tasks.select(Selection())]


def test_nbconvert_says_which_tasks_it_cuts_off_and_can_wait_for_them(tmp_path: Path) -> None:
    """Without the wait, or without nbconvert's patience, the second task would be killed."""
    named = executed(tmp_path, "%%background endless\nimport time\nwhile True: time.sleep(0.1)", {})
    assert (
        "ipytaskpersist: task 1 (endless) was cut off: kernel shut down. %bg_resume 1 runs it "
        f"again; {WAIT}=SECONDS waits for such tasks\n"
    ) in named
    longer = "%%background longer\nimport time\nfor n in range(30): time.sleep(0.1)"
    patience = "--KernelManager.shutdown_wait_time=100"
    waited = executed(tmp_path, longer, {WAIT: "50"}, patience)
    assert "waiting up to 50 s for task 2 (longer); KernelManager.shutdown_wait_time=100" in waited
    assert "cut off" not in waited
    assert ends(tmp_path / "state") == [("interrupted", "kernel shut down"), ("completed", None)]


@pytest.mark.parametrize("seconds", ["40", "0.5", "soon"])
def test_an_ipython_that_ends_waits_for_work_of_pools_too(state_dir: Path, seconds: str) -> None:
    """Executors take no work once the interpreter has begun to end."""
    source = (
        "import time, threading, concurrent.futures\n"
        "while not getattr(threading, '_SHUTTING_DOWN', True): time.sleep(0.01)\n"
        "with concurrent.futures.ThreadPoolExecutor() as pool: print(*pool.map(abs, [-1, -2]))\n"
        + ("" if seconds == "40" else "time.sleep(1000)\n")
    )
    program = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_line_magic('load_ext', 'ipytaskpersist')\n"
        f"shell.run_cell_magic('background', 'pool', {source!r})\n"
    )
    said = run_python(program, state_dir, env={WAIT: seconds}).stderr
    (end,) = ends(state_dir)
    assert end == (("completed", None) if seconds == "40" else ("interrupted", "IPython ended"))
    assert ("waiting up to" in said) is (seconds != "soon")
    assert ("task 1 (pool) was cut off: IPython ended" in said) is (seconds != "40")
    assert (f"{WAIT}=soon is not a number of seconds" in said) is (seconds == "soon")
