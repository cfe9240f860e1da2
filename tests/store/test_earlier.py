"""What the version before the package moved into wings has written is still read.

`earlier` holds its files: a store with pickled values, and an export.
"""

from __future__ import annotations

import importlib
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel
from programs import run_command

from ipytaskpersist.values.pickling import MOVED, Unpickler

EARLIER = Path(__file__).parent / "earlier"
NOTEBOOK = "/home/ada/before.ipynb"
MakeKernel = Callable[..., NotebookKernel]


@pytest.fixture
def earlier(state_dir: Path) -> Path:
    """A copy of the store, as private as the original was."""
    shutil.copytree(EARLIER / "state", state_dir)
    for path in (state_dir, *state_dir.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return state_dir


def test_a_notebook_finds_the_tasks_values_and_variables(
    earlier: Path, make_kernel: MakeKernel
) -> None:
    kernel = make_kernel(notebook=NOTEBOOK)
    assert kernel.run("%bg_output made").text == "printed\n42"
    assert "ZeroDivisionError" in kernel.run("%bg_show failed").text
    kernel.run("%bg_load made")
    assert kernel.run("point.x").text == "42"
    kernel.run("import ipytaskpersist as bg\nseven, double, state = bg.task('threaded').result()")
    assert kernel.run("seven, double(4), state is bg.TaskState.RUNNING").text == "(7, 8, True)"


def test_an_export_is_taken_in(state_dir: Path) -> None:
    assert run_command(state_dir, "import", str(EARLIER / "export.jsonl")).returncode == 0
    shown = run_command(state_dir, "list", "--all").stdout
    assert [name for name in ("made", "threaded", "failed") if name not in shown] == []


@pytest.mark.parametrize("former", MOVED)
def test_a_pickle_may_name_a_module_by_its_former_name(former: str) -> None:
    module = importlib.import_module(f"ipytaskpersist.{MOVED[former]}")
    name, value = next(
        (name, value)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and callable(value)
    )
    written = b"\x80\x04" + b"".join(
        b"\x8c" + bytes([len(text)]) + text.encode() for text in (f"ipytaskpersist.{former}", name)
    )
    assert load(written + b"\x93.") is value


def load(pickled: bytes) -> Any:
    return Unpickler(io.BytesIO(pickled), {}).load()


def test_an_unknown_name_is_an_error_as_before() -> None:
    with pytest.raises(ModuleNotFoundError):
        load(pickle.PROTO + b"\x04\x8c\x16ipytaskpersist.nowhere\x8c\x01x\x93.")
