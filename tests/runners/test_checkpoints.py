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
