"""Python cells and functions of real kernels that run at a place: an ssh server on loopback."""

from __future__ import annotations

import json
import time
import venv
from pathlib import Path

from kernels import NotebookKernel, until
from places_in_use import Far

from ipytaskpersist.base.records import TaskState

NOTEBOOK = """\
import ipytaskpersist as bg
import numpy as np
factor = 3
values = np.arange(200_000)
items = alias = [1]

def times(x):
    return factor * x
"""
CALCULATE = """\
%%background --on far calculate
import os, matplotlib.pyplot as plt
items.append(os.getpid())
total = int(times(values).sum())
large = values * 2
plt.plot([1, 2])
plt.show()
print("calculated")
total
"""


def value(kernel: NotebookKernel, expression: str) -> str:
    """What an expression is in a notebook. It is a cell, before which variables come back."""
    return kernel.run(f"print({expression})").stream("stdout").splitlines()[-1]


def test_variables_are_there_and_back_once_the_place_is_trusted(
    far: Far, kernel: NotebookKernel
) -> None:
    kernel.run(NOTEBOOK)
    assert kernel.run(CALCULATE).stream("stderr") == ""  # the versions do not differ
    task = far.ended()
    assert (task.state, task.reason) == (TaskState.COMPLETED, None)
    assert "calculated" in far.text()
    assert '"image/png"' in far.text()
    # What came back runs no code here before the person says so.
    said = kernel.run("print(items)")
    assert said.stream("stdout") == "[1]\n"
    assert "items are not (loading what comes from far could run its code here" in said.stream(
        "stderr"
    )
    assert "%bg_places --trust far" in said.stream("stderr")
    refused = kernel.run("bg.task(1).result()", check=False).error
    assert refused is not None
    assert "PlaceNotTrusted" in refused[0]
    assert "its text form: 59999700000" in refused[1]
    kernel.run("%bg_places --trust far")
    (shown,) = json.loads(kernel.run("%bg_places far --json").text)["places"]
    assert shown["trusted"]
    kernel.run("%bg_load 1")
    assert value(kernel, "total, large[-1], len(items), alias is items") == (
        "59999700000 399998 2 True"
    )
    assert value(kernel, "bg.task(1).result()") == "59999700000"
    # An array that has been there is not sent again.
    until(lambda: not far.left(), message="the removal of what it has left")
    shared = far.shared()
    assert len(shared) == 1
    kernel.run("%%background --on far again\ntotal = values.sum()")
    assert far.ended(2).state is TaskState.COMPLETED
    assert far.shared() == shared
    # Without trust in it, nothing more is loaded.
    kernel.run("%bg_places --distrust far")
    assert "could run its code here" in kernel.run("%bg_load 1", check=False).text
    until(lambda: not far.left(), message="the removal of what it has left")


def test_a_function_is_called_there_and_its_error_is_shown_here(
    far: Far, kernel: NotebookKernel
) -> None:
    kernel.run(f"{NOTEBOOK}\n%bg_places --trust far")
    kernel.run("first = bg.submit(times, 14, on='far')\nsecond = bg.submit(times, None, on='far')")
    assert value(kernel, "first.result(60)") == "42"
    task = far.ended(2)
    assert task.state is TaskState.FAILED
    assert (task.reason or "").startswith("TypeError: ")
    assert "return factor * x" in kernel.run("%bg_show 2").text
    kernel.run("%bg_rerun 1")
    assert far.ended(3).place == "far"
    assert value(kernel, "bg.task(3).result()") == "42"


GATED = """\
%%background --on far gated
import os, time
with open({starts!r}, "a") as starts:
    print(os.getpid(), file=starts)
values += 1
for number in range(10_000):
    if os.path.exists({stop!r}):
        break
    print("line", number)
    time.sleep(0.01)
print("done")
"""


def test_its_variables_are_back_once_though_supervisor_and_connection_are_cut(
    far: Far, kernel: NotebookKernel
) -> None:
    starts = far.folder / "starts"
    kernel.run(
        f"{NOTEBOOK}\n%bg_places --trust far\nvalues = np.zeros(8_000_000)  # 64 MB both ways"
    )
    kernel.run(GATED.format(starts=str(starts), stop=str(far.stop)))
    # While it is given its array, while it runs, and while that comes back.
    for pause_s in (0.2, 0.6):
        time.sleep(pause_s)
        far.kill_supervisor()
        kernel.run("%bg_list")
        until(far.store.supervisors.unfinished, message="another supervisor")
    far.counts()
    far.kill_supervisor()
    kernel.run("%bg_list")
    far.counts()
    far.server.cut()
    far.counts()
    far.stop.touch()
    until(far.has_arrivals, message="what it has left on its way")
    far.kill_supervisor()
    kernel.run("%bg_list")
    assert far.ended().state is TaskState.COMPLETED
    assert far.is_whole()
    assert len(starts.read_text().splitlines()) == 1
    assert value(kernel, "values.min(), values.max()") == "1.0 1.0"
    until(lambda: not far.left(), message="the removal of what it has left")


REFUSED = {
    "%%background --on far --thread\n1": "--thread is a thread of this kernel",
    "%%background --on far --fresh\n1": "--fresh is about this machine",
    "%%background --on far --pty\n1": "--pty is for shell commands",
    "%background --on far --notebook x.ipynb": "a whole notebook runs on this machine",
    "bg.submit(times, bg.submit(times, 1), on='far')": "cannot be arguments of a task at a place",
    "%%background --send x\n1": "--send is for a task at a place: add --on NAME",
    "%%background --on far --send nothing\n1": "--send: there is no file or folder nothing",
    "%%background --on far --fetch ../x\n1": "--fetch ../x is not in the task's folder",
    "%%background --on far --fetch x --cwd /\n1": "runs in a folder of its own over there",
    "%bg_places --trust": "--trust needs the name of a place",
    "%bg_places --trust fra": "did you mean 'far'?",
}


def test_what_cannot_be_is_said(far: Far, kernel: NotebookKernel, tmp_path: Path) -> None:
    kernel.run(NOTEBOOK)
    for cell, words in REFUSED.items():
        said = kernel.run(cell, check=False)
        assert words in f"{said.stream('stderr')}{said.error}", cell
    kernel.run("%%background --on far keeps\nbg.checkpoint(1)")
    assert "a task at a place keeps no checkpoints" in (far.ended(2).reason or "")
    kernel.run("%bg_places --trust far\nlarge = np.zeros(10)")
    kernel.run("%%background --on far ends\nimport os\nos.kill(os.getpid(), 9)")
    assert far.ended(3).reason == "killed by SIGKILL at far"
    venv.create(tmp_path / "bare", with_pip=False)
    far.spec["python"] = str(tmp_path / "bare" / "bin" / "python")
    far.use(kernel)
    said = kernel.run("%%background --on far\n1", check=False).stream("stderr")
    assert "has no ipytaskpersist; install version" in said
    # A place that has not answered in time is not waited for. Then the task says it there.
    kernel.run("from ipytaskpersist.session import far_versions\nfar_versions.ANSWER_S = 0")
    kernel.run("%%background --on far\n1")
    reason = far.ended(4).reason or ""
    assert reason.startswith("could not be started: it needs ipytaskpersist ")
    assert reason.endswith("there has none")


RESULTS = """\
#!/bin/sh
mkdir -p results/.hidden
cp data/more/x.txt results
echo a > results/a.csv; echo b > results/.hidden/b.csv
"""


def test_files_go_there_and_come_back(far: Far, kernel: NotebookKernel) -> None:
    (kernel.cwd / "data" / "more").mkdir(parents=True)
    (kernel.cwd / "data" / "more" / "x.txt").write_text("x" * 5_000_000)
    (kernel.cwd / "run.sh").write_text(RESULTS)
    (kernel.cwd / "run.sh").chmod(0o755)
    (kernel.cwd / "helping.py").write_text("def answer():\n    return 42\n")
    kernel.run(
        "%%background --shell --on far --send data --send run.sh --fetch results/ --fetch no*\n"
        f"./run.sh; while [ ! -e {far.stop} ]; do sleep 0.05; done"
    )
    until(lambda: far.task().state is TaskState.RUNNING, message="its beginning")
    far.stop.touch()
    for _death in range(2):  # perhaps while they come back, perhaps when all is done
        far.kill_supervisor()
        kernel.run("%bg_list")
        if not until(lambda: far.store.supervisors.unfinished() or far.task().state.is_final):
            break
    assert far.ended().state is TaskState.COMPLETED
    assert far.text() == "nothing was there for --fetch no*\n"
    results = kernel.cwd / "results"
    assert sorted(each.name for each in results.iterdir()) == ["a.csv", "x.txt"]
    assert (results / "x.txt").stat().st_size == 5_000_000
    # A Python task has its own modules with it.
    kernel.run(
        "%%background --on far --send helping.py --fetch out.txt\n"
        "import helping, pathlib\n_ = pathlib.Path('out.txt').write_text(str(helping.answer()))"
    )
    assert far.ended(2).state is TaskState.COMPLETED, far.text(2)
    assert (kernel.cwd / "out.txt").read_text() == "42"
    until(lambda: not far.left(), message="the removal of what it has left")
