"""The interpreters that the package starts: which program, from where they import, how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kernels import NotebookKernel
from programs import TIMEOUT_S, environment

from ipytaskpersist.base.detached import interpreter
from ipytaskpersist.errors import InvalidRequest

NAMED_LIKE_MODULES = (
    *("zmq", "random", "typing", "IPython", "ipykernel", "cloudpickle", "stack_data", "pygments"),
    *("click", "rich", "traitlets", "platformdirs", "pysqlite3"),
)


def fill(folder: Path) -> Path:
    """Put files there that have the names of modules. Returns what they make when imported."""
    mark = folder / "imported"
    for name in NAMED_LIKE_MODULES:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name + ' '!r})\n")
    return mark


def last_of(kernel: NotebookKernel) -> tuple[str, int]:
    kernel.run("%bg_wait", check=False)
    (task,) = json.loads(kernel.run("%bg_list --json --limit 1").text)["tasks"]
    return task["state"], task["exit_code"]


def test_a_process_imports_what_it_needs_before_the_notebooks_folder_is_on_its_path(
    kernel: NotebookKernel,
) -> None:
    kernel.run("%%background --process\n1")
    assert last_of(kernel) == ("completed", 0)
    mark = fill(kernel.cwd)
    kernel.run("%%background --process\nkept = [1]\nkept")
    assert last_of(kernel) == ("completed", 0)
    kernel.run("%%background --process\n1 / 0")
    assert last_of(kernel) == ("failed", 1)
    assert not mark.exists(), mark.read_text()
    kernel.run("%%background --process\nimport rich\nprint(rich.__file__)")
    assert last_of(kernel) == ("completed", 0)
    assert str(kernel.cwd / "rich.py") in kernel.run("%bg_output").text


def test_a_command_imports_nothing_from_the_current_folder(state_dir: Path, tmp_path: Path) -> None:
    mark = fill(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "ipytaskpersist", "list", "--json"], env=environment(state_dir),
        cwd=tmp_path, timeout=TIMEOUT_S, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, json.loads(ended.stdout)["count"]) == (0, 0), ended.stderr
    assert not mark.exists(), mark.read_text()


def test_pythoninspect_changes_no_exit_code(kernel: NotebookKernel) -> None:
    """It is there in the cell, as in the notebook, and for what a command starts."""
    kernel.run("import os\nos.environ['PYTHONINSPECT'] = '1'")
    kernel.run("%%background --process\nimport os\nprint(os.environ['PYTHONINSPECT'])")
    assert last_of(kernel) == ("completed", 0)
    assert kernel.run("%bg_output").text == "1\n"
    kernel.run("%%background --process\nimport sys\nsys.exit(3)")
    assert last_of(kernel) == ("failed", 3)
    kernel.run("%%background --shell\necho $PYTHONINSPECT$IPYTASKPERSIST_INSPECT")
    assert last_of(kernel) == ("completed", 0)
    assert kernel.run("%bg_output").text == "1\n"


@pytest.mark.parametrize("unknown", ["", None])
def test_a_python_that_does_not_know_its_program_finds_one(
    kernel: NotebookKernel, unknown: str | None
) -> None:
    kernel.run(f"import sys\nsys.executable = {unknown!r}")
    kernel.run("%%background --process\nprint('in a process')")
    assert last_of(kernel) == ("completed", 0)
    kernel.run("%%background --shell\nexit 3")
    assert last_of(kernel) == ("failed", 3)


def test_where_there_is_no_such_program_the_launch_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    with pytest.raises(InvalidRequest, match=r"sys.executable is empty.*--thread"):
        interpreter()
