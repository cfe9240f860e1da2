"""What C code writes past Python belongs to the cell or the task that was running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import NotebookKernel

ROUNDS = 15
BUSY = """
import os, threading, time
go_on = True
def compute():
    n = 0
    while go_on:
        n += 1
    return n
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[NotebookKernel]:
    with NotebookKernel(tmp_path / "state") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        kernel.run(BUSY)
        yield kernel


def stored(kernel: NotebookKernel, reference: str) -> str:
    return kernel.run(f"%bg_output {reference} --raw").text


@pytest.mark.parametrize(
    "cell",
    [
        "os.write(1, b'foreground\\n')",
        "os.system('echo foreground')",
        "for _ in range(300): os.write(1, b'foreground ' * 30)",
        "os.write(2, b'foreground\\n')",
    ],
)
@pytest.mark.parametrize("task", ["compute()", "while go_on: time.sleep(0.001)"])
def test_what_a_foreground_cell_writes_is_its_own_beside_a_task(
    kernel: NotebookKernel, cell: str, task: str
) -> None:
    kernel.run(f"%%background\n{task}")
    expected = kernel.run(f"{cell};\npass").text
    for _ in range(ROUNDS):
        assert kernel.run(f"{cell};\npass").text == expected
    kernel.run("go_on = False\n%bg_wait")
    assert "foreground" not in stored(kernel, "1")


def test_what_a_task_writes_is_its_own_until_a_foreground_cell_begins(
    kernel: NotebookKernel,
) -> None:
    """Written while nothing else runs, it is read in time, however busy Python is."""
    kernel.run("written, go = threading.Event(), threading.Event()")
    kernel.run("%%background spinning\nos.write(1, b'task ' * 500); written.set()\ncompute()")
    kernel.run("%bg_wait spinning --timeout 0.2", check=False)
    shown = "".join(kernel.run("1 + 1").text for _ in range(5))
    kernel.run("go_on = False\n%bg_wait")
    assert "task" not in shown
    assert stored(kernel, "1").count("task ") == 500


def test_following_the_kernels_threads_shows_nothing(kernel: NotebookKernel) -> None:
    assert kernel.run("%background 1\n%bg_wait").error is None
    assert "\0" not in kernel.log
    assert kernel.run("os.write(1, b'after')").stream("stdout") == "after"
    kernel.run("%unload_ext ipytaskpersist")
    assert kernel.run("os.write(1, b'unloaded')").stream("stdout") == "unloaded"
    assert kernel.run("os.write(1, b'again')").stream("stdout") == "again"
    assert kernel.log.count("after") == kernel.log.count("again") == 1
