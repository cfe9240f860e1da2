"""The package is upgraded or removed while kernels and tasks of it run: what runs ends as ever."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels import NotebookKernel, until

import ipytaskpersist
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]
GONE = "raise ImportError('this version was removed')\n"
WATCHED = """
import atexit, os, sys
_before = frozenset(sys.modules)
def _show_new_modules():
    os.write(1, f"new modules: {sorted(set(sys.modules) - _before)}".encode())
atexit.register(_show_new_modules)
def twice(x):
    return 2 * x
kept = [twice(21)]
"""


class Package:
    """A private copy of the package, which can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._package = folder / "ipytaskpersist"
        source = Path(ipytaskpersist.__file__).parent
        shutil.copytree(source, self._package, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def remove(self) -> None:
        """Take it away. Neither this copy nor another one can be imported from then on."""
        self._package.rename(self.folder / "removed")
        self._package.mkdir()
        (self._package / "__init__.py").write_text(GONE)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path / "packages")


def by_name(store: TaskStore) -> dict[str, TaskRecord]:
    return {task.name: task for task in store.tasks.select(Selection())}


def waiting(go: Path, rest: str = "") -> str:
    """A cell that waits for a file. It imports nothing later."""
    return (
        f"import os, time\nprint('begun', flush=True)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n{rest}"
    )


def test_tasks_whose_package_is_removed_end_with_all_that_they_leave(
    make_kernel: MakeKernel, store: TaskStore, package: Package, tmp_path: Path
) -> None:
    """Values, variables, tracebacks, exit codes; and the kernel records its own end."""
    go, notebook = tmp_path / "go", tmp_path / "a.ipynb"
    kernel = make_kernel(env=package.env, notebook=notebook)
    kernel.run(f"import ipytaskpersist\nassert {str(package.folder)!r} in ipytaskpersist.__file__")
    value = "kept = {'answer': 42}\ndef twice(x):\n    return 2 * x\nprint('last')\n[twice(21)]"
    kernel.run("%%background --process value\n" + waiting(go, value))
    kernel.run("%%background --process fails\n" + waiting(go, "kept = 1\nkept / 0"))
    kernel.run(f"%%background --shell command\nwhile ! test -e {go}; do sleep 0.02; done; exit 3")
    kernel.run("%%background thread\n" + waiting(go, "[twice_here(21)]"))
    kernel.run("%%background thread fails\n" + waiting(go, "kept = 1\nkept / 0"))
    kernel.run("def twice_here(x):\n    return 2 * x")
    kernel.run("%%background endless\nimport time\ntime.sleep(600)")

    def have_begun() -> bool:
        tasks = by_name(store)
        printed = (
            store.outputs.last_sequence(tasks[name].key) for name in ("value", "fails", "thread")
        )
        return all(printed) and tasks["command"].state is TaskState.RUNNING

    until(have_begun, message="the beginning of all tasks")
    package.remove()
    go.touch()
    names = ("value", "fails", "command", "thread", "thread fails")
    until(lambda: all(by_name(store)[name].state.is_final for name in names), message="their ends")
    tasks = by_name(store)
    assert [(tasks[name].state.value, tasks[name].exit_code) for name in names] == [
        ("completed", 0), ("failed", 1), ("failed", 3), ("completed", 0), ("failed", 1),
    ]  # fmt: skip
    assert tasks["fails"].reason == "ZeroDivisionError: division by zero"
    assert store.tasks.post_mortem(tasks["fails"].key)
    kernel.shutdown()
    tasks = by_name(store)
    assert (tasks["endless"].state.value, tasks["endless"].reason) == (
        "interrupted", "kernel shut down",
    )  # fmt: skip
    later = make_kernel(notebook=notebook)
    assert later.run("%bg_load value\nkept, twice(4)").text.count("{'answer': 42}, 8") == 1
    assert "[42]" in later.run("%bg_result value").text
    assert "[42]" in later.run("%bg_result thread").text
    assert later.run("%bg_load fails\nkept").text.rstrip().endswith("1")
    for name in ("fails", "thread fails"):
        assert '"traceback": [' in later.run(f"%bg_output '{name}' --json").text


@pytest.mark.parametrize("rest", ["kept", "kept / 0", "sys.exit(3)"])
def test_nothing_is_imported_after_a_process_cell_has_begun(
    kernel: NotebookKernel, rest: str
) -> None:
    """Neither of the package, nor of what it needs to keep values and to show an error."""
    kernel.run("%%background --process\n" + WATCHED + rest)
    kernel.run("%bg_wait", check=False)
    assert kernel.run("%bg_output").text.rpartition("new modules: ")[2].strip() == "[]"
