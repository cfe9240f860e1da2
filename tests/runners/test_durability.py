"""Nothing printed is lost when a kernel dies, and many kernels may write at once."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from locks import WRITING, held

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]

KILLS = int(os.environ.get("IPYTASKPERSIST_KILLS", "16"))
SHORT_BY_S = 1.0
"""How much may be lost on a machine that does much else. `benchmarks` measures how much it is."""

# Prints a number and writes the same number, with the time, to a file that no kernel buffers.
# What that file holds and the store does not is what the kill has cost.
NUMBERED_LINES = """\
%%background numbers
import os, time
witness = os.open({witness!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
number = 0
while True:
    print("line", number)
    os.write(witness, b"%d %.6f\\n" % (number, time.time()))
    number += 1
    if number % {burst} == 0:
        time.sleep({pause})
"""


def printed(store: TaskStore, key: int) -> str:
    return b"".join(output.data for output in store.outputs.of(key)).decode()


@pytest.mark.timeout(600)
def test_a_kernel_killed_at_any_moment_leaves_an_exact_prefix(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """So many kills: an exact prefix, not much short, interrupted, and the reason is told."""
    chance = random.Random(20)
    kernel = make_kernel(notebook=tmp_path / "killed.ipynb")
    store = TaskStore(StateDirectory(state_dir)).open()
    for round_number in range(KILLS):
        witness = tmp_path / f"witness-{round_number}"
        burst, pause = chance.choice([(1, 0.0), (1, 0.003), (7, 0.02), (1000, 0.001)])
        kernel.run(NUMBERED_LINES.format(witness=str(witness), burst=burst, pause=pause))
        until(lambda file=witness: file.exists() and file.stat().st_size, message="a first line")
        moment = time.monotonic() + chance.uniform(0, 0.3)
        until(lambda at=moment: time.monotonic() >= at, message="the moment to kill")
        kernel.kill()
        killed_at = time.time()
        kernel.revive()
        kernel.run("%load_ext ipytaskpersist")
        (task,) = store.tasks.select(Selection(limit=1))
        assert (task.state, task.reason) == (TaskState.INTERRUPTED, "kernel died")
        assert_is_prefix(printed(store, task.key), witness, killed_at)
    store.close()


def assert_is_prefix(text: str, witness: Path, killed_at: float) -> None:
    rows = [line.split() for line in witness.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 2]
    expected = "".join(f"line {number}\n" for number in range(len(rows) + 1))
    assert expected.startswith(text), "the stored output is not a prefix of what was printed"
    stored = text.count("\n")
    late = [float(at) for number, at in rows if int(number) >= stored]
    # The clock is read after the kernel is known to be dead, so the bound is on the safe side:
    # the witness's last line is the last moment at which it surely lived.
    if late:
        died_at = min(killed_at, float(rows[-1][1]))
        assert died_at - late[0] <= SHORT_BY_S, f"{len(late)} lines lost"


def test_a_task_ends_as_interrupted_when_its_kernel_is_restarted(
    make_kernel: MakeKernel, tmp_path: Path
) -> None:
    """Everything printed and displayed before the restart is there after it, with the reason."""
    kernel = make_kernel(notebook=tmp_path / "restarted.ipynb")
    kernel.run("""%%background long
import time
from IPython.display import HTML, display
display(HTML("<b>shown</b>"))
print("before the restart")
ready = True
time.sleep(600)""")
    until(lambda: "True" in kernel.run("print(globals().get('ready'))").text)
    kernel.restart()
    greeting = kernel.run("%load_ext ipytaskpersist").text
    assert "While you were away: 1 task was interrupted.\n" in greeting
    (task,) = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    assert (task["state"], task["reason"], task["exit_code"]) == (
        "interrupted",
        "kernel restarted",
        None,
    )
    shown, text = kernel.run("%bg_output long").outputs
    assert shown.data["text/html"] == "<b>shown</b>"
    assert text.text == "before the restart\n"


def test_a_task_runs_on_when_the_kernel_is_interrupted(kernel: NotebookKernel) -> None:
    """The stop button ends the foreground cell; the task and its child processes go on."""
    kernel.run("""%%background steady
import subprocess, time
child = subprocess.Popen(["sleep", "600"])
while not globals().get("enough"):
    time.sleep(0.01)
child.poll()""")
    until(lambda: "child" in kernel.run("print([n for n in dir() if n == 'child'])").text)
    busy = kernel.start("import time\nprint('busy')\nwhile True: time.sleep(0.01)")
    kernel.take_until(lambda: "busy" in busy.text, 30, "the busy cell")
    kernel.interrupt()
    busy.wait(check=False)
    assert busy.error is not None
    assert busy.error[0] == "KeyboardInterrupt"
    kernel.run("enough = True")
    kernel.run("%bg_wait steady --check --timeout 30")
    assert kernel.run("print(child.poll())").text == "None\n", "the stop button killed the child"
    kernel.run("child.kill(); child.wait()")


EIGHT = 8
LINES = 2000

WRITE = f"""
import ipytaskpersist
tasks = [ipytaskpersist.submit(lambda: [print(n) for n in range({LINES})] and None)
         for _ in range(4)]
for task in tasks:
    task.result(timeout=120)
print("written")
"""


@pytest.mark.timeout(300)
def test_eight_kernels_write_at_once_and_lose_nothing(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """No "database is locked", no lost row, in a store that all eight begin together."""
    kernels = [make_kernel(notebook=tmp_path / f"{n}.ipynb") for n in range(EIGHT)]
    cells = [kernel.start(WRITE) for kernel in kernels]
    for cell in cells:
        cell.wait(timeout=200)
        assert cell.text == "written\n", "something was said about the store"
    store = TaskStore(StateDirectory(state_dir)).open()
    tasks = store.tasks.select(Selection())
    assert len(tasks) == EIGHT * 4
    assert {task.state for task in tasks} == {TaskState.COMPLETED}
    assert len({task.id for task in tasks}) == EIGHT * 4
    expected = "".join(f"{number}\n" for number in range(LINES))
    assert all(printed(store, task.key) == expected for task in tasks)
    assert all(
        [event.state.value for event in store.tasks.history(task.key)]
        == ["pending", "running", "completed"]
        for task in tasks
    )
    assert store.database.row("PRAGMA integrity_check")[0] == "ok"
    store.close()


def test_output_beyond_a_chunk_is_kept_exactly(kernel: NotebookKernel, state_dir: Path) -> None:
    """Many megabytes, in short and in very long lines, come back byte for byte."""
    kernel.run("""%%background big
import sys
for number in range(100_000):
    print(number, "x" * (number % 97))
print("y" * 3_000_000)
print("é" * 1000, file=sys.stderr)""")
    kernel.run("%bg_wait --check --timeout 60")
    store = TaskStore(StateDirectory(state_dir)).open()
    (task,) = store.tasks.select(Selection())
    lines = [f"{number} {'x' * (number % 97)}\n" for number in range(100_000)]
    stdout = b"".join(
        output.data for output in store.outputs.of(task.key, kinds=(OutputKind.STDOUT,))
    )
    assert stdout.decode() == "".join(lines) + "y" * 3_000_000 + "\n"
    assert store.outputs.stream_size(task.key, OutputKind.STDERR).size_bytes == 2001
    tail = kernel.run("%bg_output big --stdout --tail 2").text
    assert tail == lines[-1] + "y" * 3_000_000 + "\n"
    store.close()


def test_another_program_may_hold_the_store_for_a_while(
    kernel: NotebookKernel, state_dir: Path
) -> None:
    """A print does not wait for a locked store, and what it printed is stored afterwards."""
    kernel.run("%%background first\n1")
    kernel.run("%bg_wait --check")
    kernel.run("""%%background second
import time
while not globals().get("locked"):
    time.sleep(0.001)
for number in range(1000):
    print(number)
printed = True""")
    with held(state_dir, WRITING):
        kernel.run("locked = True")
        until(lambda: "True" in kernel.run("print(globals().get('printed'))").text)
    kernel.run("%bg_wait second --check --timeout 60")
    assert kernel.run("%bg_output second").text == "".join(f"{n}\n" for n in range(1000))
