"""A whole notebook runs as a task: it outlives its kernel, and goes on where it failed."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import psutil
from kernels import NotebookKernel, command_of, until
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from programs import run_command, run_python

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.output.replay import stream_bytes
from ipytaskpersist.session.whole_notebooks import asked_of
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

PARAMETERS = "day = 'none'\nrows = 1"
REPORT = (
    "import pathlib\nfrom IPython.display import HTML, clear_output, display",
    "numbers = [1, 2, 3]\nprint('numbers of', day, rows, end='')",
    "other = 'not needed by any later cell'\nprint('only once')",
    "display(HTML('<b>first</b>'))\nclear_output(wait=True)\ndisplay(HTML('<b>later</b>'))",
    "while not pathlib.Path('gate').exists(): pass\nprint('through', __import__('os').getcwd())",
    "sum(numbers) / 0",
    "'the end', day",
)
WAITS = (
    "import os, pathlib, time\npathlib.Path(name).write_text(str(os.getpid()))",
    "print('waiting', flush=True)\nwhile True: time.sleep(0.05)",
)


def write(path: Path, cells: Sequence[str], parameters: str = "") -> bytes:
    """Write a notebook, and return its bytes."""
    code = [new_code_cell(source) for source in cells]
    if parameters:
        code.insert(0, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_markdown_cell("# A title"), *code]
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
    return path.read_bytes()


def saved_cells(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook, which must be a valid one."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


class Reader:
    """What a kernel's commands say about tasks."""

    def __init__(self, kernel: NotebookKernel) -> None:
        self.kernel = kernel

    def say(self, line: str) -> str:
        return self.kernel.run(line, check=False).text

    def show(self, reference: str) -> dict[str, Any]:
        return dict(json.loads(self.say(f"%bg_show {reference} --json")))


def test_a_notebook_outlives_the_kernel_is_saved_and_goes_on_where_it_failed(
    make_kernel: Callable[..., NotebookKernel], tmp_path: Path
) -> None:
    path = tmp_path / "report.ipynb"
    original = write(path, REPORT, PARAMETERS)
    reader = Reader(make_kernel(notebook=tmp_path / "a.ipynb"))
    reader.say(f"%background --notebook {path} -p day=2026-11-28 -p rows=100 --name report")
    until(lambda: "[7]" in reader.say("%bg_output report"), 60, "the cell that waits")
    progress = {"done": 6, "total": 9, "text": ""}
    until(lambda: reader.show("report")["progress"] == progress, 30, "the progress of six cells")
    shown = reader.show("report")
    saved = Path(shown["whole_notebook"]["saved_as"])
    assert saved == tmp_path / f"report-{shown['id']}.ipynb"
    assert [cell.execution_count for cell in saved_cells(saved)][:6] == [1, 2, 3, 4, 5, 6]

    reader.kernel.kill()
    (tmp_path / "gate").touch()
    reader.kernel.revive()
    reader.kernel.run("%load_ext ipytaskpersist")
    reader.say("%bg_wait report")
    shown = reader.show("report")
    assert shown["state"] == "failed"
    assert shown["reason"] == "cell [8]: ZeroDivisionError: division by zero"
    assert shown["whole_notebook"]["parameters"] == {"day": "2026-11-28", "rows": 100}
    assert "ZeroDivisionError" in shown["error"]["evalue"] + shown["error"]["ename"]
    printed = reader.say("%bg_output report --stdout")
    assert "[4] numbers = [1, 2, 3]\nnumbers of 2026-11-28 100\n[5] other" in printed
    assert f"through {tmp_path}" in printed
    assert path.read_bytes() == original
    cells = saved_cells(saved)
    assert cells[1].metadata.tags == ["injected-parameters"]
    assert cells[1].source == "# Parameters\nday = '2026-11-28'\nrows = 100"
    assert [cell.metadata.get("ipytaskpersist", {}).get("state") for cell in cells] == [
        *["completed"] * 7, "failed", None,
    ]  # fmt: skip
    assert [out.data["text/html"] for out in cells[5].outputs] == ["<b>later</b>"]
    assert cells[7].outputs[0].ename == "ZeroDivisionError"
    assert cells[8].outputs == []
    _goes_on_where_it_failed(reader, path, saved)


def _goes_on_where_it_failed(reader: Reader, path: Path, saved: Path) -> None:
    write(path, [source.replace("/ 0", "/ 2") for source in REPORT], PARAMETERS)
    reader.say("%bg_resume report")
    reader.say("%bg_wait report")
    shown, printed = reader.show("report"), reader.say("%bg_output report --stdout")
    assert shown["state"] == "completed"
    assert shown["whole_notebook"]["resumes"] == str(saved)
    assert "runs again [1] [2] [4], which make day, rows, numbers; " in printed
    assert "goes on at [8]\n[1] day = 'none'" in printed
    assert "only once" not in printed
    cells = saved_cells(Path(shown["whole_notebook"]["saved_as"]))
    assert [cell.execution_count for cell in cells] == [*range(1, 10)]
    assert [cell.metadata.ipytaskpersist.state for cell in cells] == ["completed"] * 9
    assert cells[4].outputs[0].text == "only once\n", "what did not run again keeps its outputs"
    assert cells[7].outputs[0].data["text/plain"] == "3.0"
    assert cells[8].outputs[0].data["text/plain"] == "('the end', '2026-11-28')"
    assert "has been run again already" in reader.say("%bg_resume 1")
    reader.say("%bg_rerun 1")
    assert reader.show("report")["whole_notebook"]["resumes"] is None
    reader.say("%bg_cancel report")


FLAKY = (
    "import os, pathlib, time\nseen = pathlib.Path('seen')\nnumbers = [1, 2, 3]",
    "print('only once')",
    "tries = len(seen.read_text().split()) if seen.exists() else 0\n"
    "seen.write_text(f'{seen.read_text() if tries else str()} {os.getpid()}')",
    "print('try', tries + 1, flush=True)\nif tries == 0:\n    sum(numbers) / 0\n"
    "while tries == 1:\n    time.sleep(0.05)\nsum(numbers) / tries",
)


def test_each_try_of_a_notebook_goes_on_at_the_cell_in_which_the_one_before_has_ended(
    store: TaskStore, state_dir: Path, tmp_path: Path
) -> None:
    """After a cell that failed, and after its process was killed in the middle of it."""
    path, seen = tmp_path / "flaky.ipynb", tmp_path / "seen"
    write(path, FLAKY)

    def tasks() -> list[TaskRecord]:
        return store.tasks.select(Selection())

    def printed(task: TaskRecord) -> str:
        return b"".join(stream_bytes(store, task.key)).decode()

    assert run_command(state_dir, "run", str(path), "--retries", "3").returncode == 0
    until(lambda: len(tasks()) == 2 and "try 2" in printed(tasks()[1]), 90, "the second try")
    runner = psutil.Process(int(seen.read_text().split()[1])).parent()
    assert runner is not None
    os.kill(runner.pid, signal.SIGKILL)
    until(lambda: len(tasks()) == 3 and tasks()[2].state.is_final, 60, "the third try")
    assert [(task.state.value, task.reason) for task in tasks()] == [
        ("failed", "cell [4]: ZeroDivisionError: division by zero; task 2 tries again"),
        ("failed", "killed by SIGKILL; task 3 tries again"),
        ("completed", None),
    ]
    for task in tasks()[1:]:
        assert re.match(r"runs again \[1\] \[3\], .*; goes on at \[4\]\n", printed(task))
        assert "only once" not in printed(task)
    second, third = (tmp_path / f"flaky-{task.id}.ipynb" for task in tasks()[1:])
    cells = saved_cells(third)
    assert cells[1].outputs[0].text == "only once\n"
    assert cells[3].outputs[-1].data["text/plain"] == "3.0"
    shown = json.loads(run_command(state_dir, "show", "3", "--json").stdout)
    assert shown["whole_notebook"]["resumes"] == str(second)
    assert run_command(state_dir, "rerun", "3").returncode == 0
    process = store.processes.get(tasks()[3].key)
    assert process is not None
    assert asked_of(process).goes_on_from == ""
    run_command(state_dir, "cancel", "4", "--yes")


THREE = """
import sys
import ipytaskpersist
for name in sys.argv[2:]:
    ipytaskpersist.run_notebook(sys.argv[1], name, parameters={"name": name})
"""


def test_nothing_of_a_notebook_is_left_when_it_is_cancelled_or_a_process_of_it_dies(
    state_dir: Path, tmp_path: Path
) -> None:
    path, names = tmp_path / "waits.ipynb", ("cancelled", "runner", "kernel")
    write(path, WAITS, "name = 'none'")
    assert run_python(THREE, state_dir, str(path), *names).returncode == 0
    kernels = [_process_in(tmp_path / name) for name in names]
    assert run_command(state_dir, "cancel", "cancelled", "--yes").returncode == 0
    runner = kernels[1].parent()
    assert runner is not None
    os.kill(runner.pid, signal.SIGKILL)
    os.kill(kernels[2].pid, signal.SIGKILL)
    run_command(state_dir, "wait", *names)
    assert [command_of(kernel) for kernel in kernels] == ["", "", ""], "no kernel is left"
    listed = json.loads(run_command(state_dir, "list", "--json").stdout)["tasks"]
    assert {task["name"]: (task["state"], task["reason"]) for task in listed} == {
        "cancelled": ("cancelled", "cancelled"),
        "runner": ("failed", "killed by SIGKILL"),
        "kernel": ("failed", "cell [4]: its kernel died (killed by SIGKILL)"),
    }
    (cancelled,) = [task["id"] for task in listed if task["name"] == "cancelled"]
    saved = saved_cells(tmp_path / f"waits-{cancelled}.ipynb")
    assert [cell.metadata.ipytaskpersist.state for cell in saved] == [
        *["completed"] * 3, "interrupted",
    ]  # fmt: skip
    assert saved[3].outputs[0].text == "waiting\n", "what was cut off keeps its outputs"


def _process_in(path: Path) -> psutil.Process:
    """The process that writes its pid into a file."""
    until(lambda: path.exists() and path.read_text(), 60, f"a pid in {path}")
    return psutil.Process(int(path.read_text()))
