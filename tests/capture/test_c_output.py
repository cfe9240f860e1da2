"""What C code writes past Python belongs to the cell or the task that was running."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import NotebookKernel, until

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
    kernel.run("begun = threading.Event()")
    kernel.run(f"%%background\nbegun.set()\n{task}")
    kernel.run("begun.wait()")  # beside no task, the kernel may show it after the cell's end
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


def assert_writes(kernel: NotebookKernel, text: str) -> None:
    """Beside no task, the kernel may show it after the end of the cell."""
    cell = kernel.run(f"os.write(1, {text.encode()!r})")
    kernel.take_until(lambda: cell.stream("stdout") == text, 30, f"{text} in its cell")


def test_following_the_kernels_threads_shows_nothing(kernel: NotebookKernel) -> None:
    assert kernel.run("%background 1\n%bg_wait").error is None
    assert "\0" not in kernel.log
    assert_writes(kernel, "after")
    kernel.run("%unload_ext ipytaskpersist")
    assert_writes(kernel, "unloaded")
    assert_writes(kernel, "again")
    assert kernel.log.count("after") == kernel.log.count("again") == 1


def taken(terminal: int) -> str:
    """What has arrived there within a moment."""
    select.select([terminal], [], [], 0.2)
    with contextlib.suppress(BlockingIOError):
        return os.read(terminal, 100_000).decode()
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="sets the size of a pipe")
def test_where_the_kernels_own_output_is_not_taken_cells_go_on(tmp_path: Path) -> None:
    """A terminal may take nothing for hours. What it took again afterwards is waited for again."""
    behind = tmp_path / "behind"
    os.mkfifo(behind)
    terminal = os.open(behind, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(terminal, fcntl.F_SETPIPE_SZ, 4096)
    run_by = ["sh", "-c", f'exec "$0" "$@" > {behind} 2>&1']
    try:
        with NotebookKernel(tmp_path / "state", run_by=run_by) as kernel:
            kernel.run("%load_ext ipytaskpersist\nimport os")
            kernel.run("%background 1\n%bg_wait")
            kernel.run("os.write(1, b'x' * 20_000)")
            for _ in range(3):
                assert kernel.run("print('goes on')").text == "goes on\n"
            until(lambda: "x" not in taken(terminal))
            assert kernel.run("os.write(1, b'taken');").text.endswith("taken")
    finally:
        os.close(terminal)
