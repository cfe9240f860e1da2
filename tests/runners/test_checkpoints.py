"""A task that was cut off goes on from its last checkpoint; and it is told before it is ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, until


class Notebook:
    """A kernel whose tasks leave files in a folder when they have come to a point."""

    def __init__(self, kernel: NotebookKernel, folder: Path) -> None:
        self.kernel = kernel
        self.folder = folder

    def say(self, source: str) -> str:
        """What a cell shows, or why it is refused."""
        return self.kernel.run(source, check=False).text

    def there(self, *names: str) -> None:
        """Wait until tasks have left these files."""
        until(lambda: all((self.folder / name).exists() for name in names), 60, f"{names}")

    def show(self, ref: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.say(f"%bg_show {ref} --json"))
        return shown

    def await_end(self, ref: str) -> dict[str, Any]:
        """Wait until a task has ended, and return what is shown of it."""
        self.say(f"%bg_wait {ref} --timeout 60")
        shown = self.show(ref)
        assert shown["ended_at"], shown
        return shown


@pytest.fixture
def notebook(make_kernel: Callable[..., NotebookKernel], tmp_path: Path) -> Notebook:
    return Notebook(make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path)


LOOP = """%%background {flags} {name}
import ipytaskpersist as bg, numpy, pathlib, time
folder = pathlib.Path({folder!r})
state = bg.checkpointed({{"step": 0, "weights": numpy.zeros(50_000), "path": []}})
print("begins at", state["step"])
while state["step"] < 6:
    state["step"] += 1
    state["weights"] += 1
    state["path"].append(state["step"])
    bg.checkpoint(state)
    (folder / f"{name}-{{state['step']}}").touch()
    while state["step"] == 3 and not (folder / "go").exists():
        time.sleep(0.01)
int(state["weights"].sum()), state["path"]
"""


def test_a_task_of_a_killed_kernel_goes_on_where_it_was_in_the_next(notebook: Notebook) -> None:
    for name, flags in (("thread", "--thread"), ("process", "--process")):
        notebook.say(LOOP.format(flags=flags, name=name, folder=str(notebook.folder)))
    notebook.there("thread-3", "process-3")
    assert re.search(r"\ncheckpoint +just now, 40\d kB\n", notebook.say("%bg_show thread"))
    pid = notebook.show("process")["process"]["pid"]
    notebook.kernel.kill()
    notebook.kernel.revive()
    notebook.say("%load_ext ipytaskpersist")
    assert "goes on from the checkpoint kept just now" in notebook.say("%bg_resume thread")
    (notebook.folder / "go").touch()
    assert notebook.say("%bg_wait thread process") is not None
    assert notebook.say("%bg_output thread").splitlines()[:1] == ["begins at 3"]
    assert notebook.say("%bg_result thread") == "(300000, [1, 2, 3, 4, 5, 6])"
    assert pid == notebook.show("process")["process"]["pid"]


TOLD = """%%background --{runner} {runner}-looks
import ipytaskpersist as bg, pathlib, time
had = bg.checkpointed(0)
if had:
    print("goes on from", had)
bg.ending_soon()
pathlib.Path({folder!r}, "{runner}-looks").touch()
while not bg.ending_soon() and not had:
    time.sleep(0.01)
bg.checkpoint("what it had")
print("ends by itself")
"""
CALLED = """%%background --{runner} {runner}-called
import ipytaskpersist as bg, pathlib, time
state = {{"step": 7}}
def keep():
    bg.checkpoint(state)
    print("kept in time")
bg.on_ending_soon(lambda: 1 / 0)
bg.on_ending_soon(keep)
pathlib.Path({folder!r}, "{runner}-called").touch()
while True:
    time.sleep(0.01)
"""
AWAITS = """%%background --{runner} {runner}-awaits
import asyncio, ipytaskpersist as bg, pathlib
async def touch():
    pathlib.Path({folder!r}, "{runner}-awaits").touch()
told = asyncio.gather(bg.ending(), touch())
await told
print("was told")
"""
LATE = """%%background --process --timeout 8 late
import ipytaskpersist as bg, time
while not bg.ending_soon():
    time.sleep(0.01)
bg.checkpoint("before the limit")
"""


def test_a_task_is_told_before_it_is_ended_and_keeps_what_it_has(notebook: Notebook) -> None:
    """Only those that ask are given time: tests/runners/test_cancellations.py has the others."""
    notebook.say("%bg_config cancel_grace_s=20")  # shorter than a test, longer than it takes
    notebook.say(LATE)
    names = []
    for runner in ("thread", "process"):
        for source in (TOLD, CALLED, AWAITS):
            notebook.say(source.format(runner=runner, folder=str(notebook.folder)))
        names += [f"{runner}-{what}" for what in ("looks", "called", "awaits")]
    notebook.there(*names)
    for name in names:
        notebook.say(f"%bg_cancel {name}")
    shown = {name: notebook.await_end(name) for name in [*names, "late"]}
    assert {name: task["state"] for name, task in shown.items()} == {
        **dict.fromkeys(names, "cancelled"),
        "late": "failed",
    }
    assert shown["late"]["reason"] == "timed out after 8 s"
    assert all(shown[name]["elapsed_s"] < 15 for name in names)
    for runner in ("thread", "process"):
        assert "ends by itself" in notebook.say(f"%bg_output {runner}-looks")
        assert "was told" in notebook.say(f"%bg_output {runner}-awaits")
        called = notebook.say(f"%bg_output {runner}-called")
        assert "ZeroDivisionError" in called
        assert "kept in time" in called
    kept = {name for name, task in shown.items() if task["checkpoint"]}
    assert kept == {"late", *(name for name in names if not name.endswith("awaits"))}
    for name in ("thread-looks", "process-looks"):
        assert "goes on from the checkpoint kept just now" in notebook.say(f"%bg_rerun {name}")
        assert notebook.await_end(name)["state"] == "completed"
        assert "goes on from what it had" in notebook.say(f"%bg_output {name}")
        # It has completed, so there is nothing to go on with.
        assert "goes on" not in notebook.say(f"%bg_rerun {name}")
        notebook.say(f"%bg_cancel {name}")


SHELL = """%%background --shell {name}
cd "$IPYTASKPERSIST_CHECKPOINT" || exit 9
echo "found: $(cat step 2>/dev/null)"
echo "{name}" > step
exit {status}
"""
TWICE = """%%background --shell twice
cd "$IPYTASKPERSIST_CHECKPOINT"
[ -e was_here ] && exec sleep 60
touch was_here
exit 1
"""
POOL = """%%background --process pool
import ipytaskpersist as bg, multiprocessing
bg.ending_soon()
def work(number):
    try:
        bg.checkpoint(number)
    except Exception as error:
        return str(error)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(work, [1]))
"""


def test_a_command_has_a_folder_that_is_removed_with_the_last_task_that_needs_it(
    notebook: Notebook, state_dir: Path
) -> None:
    places = state_dir / "checkpoints"
    for name, status in (("fails", 3), ("silent", 0)):
        notebook.say(SHELL.format(name=name, status=status))
        assert notebook.await_end(name)["checkpoint"]["size_bytes"] == len(name) + 1
    assert notebook.say("%bg_output fails") == "found: \n"
    assert "goes on from the checkpoint" in notebook.say("%bg_rerun fails")
    assert notebook.await_end("fails")["number"] == 3
    assert notebook.say("%bg_output fails") == "found: fails\n"
    listed = json.loads(notebook.say("%bg_list --json"))["tasks"]
    assert [bool(task["checkpoint_at"]) for task in listed] == [True] * 3
    notebook.say("%%background --shell nothing\ntrue")
    assert notebook.await_end("nothing")["checkpoint"] is None
    assert len([*places.iterdir()]) == 2
    assert "checkpoints: of 2 tasks, 13 bytes" in notebook.say("%bg_doctor")
    notebook.say("%bg_delete 1 --yes")
    assert len([*places.iterdir()]) == 2, "task 3 goes on from it"
    notebook.say("%bg_delete 3 --yes")
    assert len([*places.iterdir()]) == 1
    notebook.say("%bg_archive 2")
    assert [*places.iterdir()] == []
    (places / "a1b2c3d4-1").mkdir(mode=0o700)
    assert "is that of no task any more" in notebook.say("%bg_doctor")
    # Two tasks that run at once do not share a folder.
    notebook.say(TWICE)
    number = notebook.await_end("twice")["number"]
    assert "goes on from the checkpoint" in notebook.say(f"%bg_rerun {number}")
    said = notebook.say(f"%bg_rerun {number}")
    assert f"task {number + 1} (twice) has gone on from the checkpoint of task {number}" in said
    assert notebook.await_end(str(number + 2))["state"] == "failed"
    notebook.say(f"%bg_cancel {number + 1}")
    assert notebook.await_end(str(number + 1))["state"] == "cancelled"
    # A forked worker does not keep what its parent would overwrite, and its pool can end it.
    notebook.say(POOL)
    assert notebook.await_end("pool")["state"] == "completed"
    assert "belongs in the process of task 8 (pool) itself" in notebook.say("%bg_output pool")
    assert notebook.show("pool")["variables"].keys() == {"bg", "multiprocessing", "pool", "work"}
    for call in ("checkpoint(1)", "checkpointed()", "ending_soon()", "on_ending_soon(print)"):
        refused = notebook.kernel.run(f"import ipytaskpersist as bg\nbg.{call}", check=False)
        assert refused.error is not None
        assert f"{call.partition('(')[0]}() belongs in a background task" in refused.error[1]
