"""What a task sets in context variables holds in the foreground from its next cell on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernels import NotebookKernel

SETUP = """
%load_ext ipytaskpersist
import asyncio, contextvars, decimal, threading
import numpy as np
setting = contextvars.ContextVar("setting", default="default")
go = threading.Event()
"""


@pytest.fixture(scope="module")
def a_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    with NotebookKernel(tmp_path_factory.mktemp("contexts")) as kernel:
        yield kernel


@pytest.fixture
def kernel(a_kernel: NotebookKernel) -> NotebookKernel:
    a_kernel.run(SETUP)
    return a_kernel


def in_background(kernel: NotebookKernel, source: str) -> None:
    kernel.run(f"%%background\n{source}")
    assert "completed" in kernel.run("%bg_wait").text


@pytest.mark.parametrize(
    ("background", "foreground", "shown"),
    [
        ("setting.set('a task')", "setting.get()", "'a task'"),
        ("np.set_printoptions(precision=3)", "np.array([1 / 3])", "array([0.333])"),
        ("np.seterr(divide='raise')", "np.geterr()['divide']", "'raise'"),
        ("decimal.setcontext(decimal.Context(prec=4))", "decimal.Decimal(1) / 3", "0.3333"),
        ("async def f(): setting.set('awaited')\nawait f()", "setting.get()", "'awaited'"),
    ],
)
def test_what_a_task_sets_is_set_before_the_next_cell(
    kernel: NotebookKernel, background: str, foreground: str, shown: str
) -> None:
    in_background(kernel, background)
    # The first cell awaits, and so has a context of its own.
    awaited = kernel.run(f"await asyncio.sleep(0)\n{foreground}")
    assert shown in awaited.text
    assert shown in kernel.run(foreground).text
    assert shown in kernel.run(foreground).text


def test_what_the_foreground_has_set_since_stays(kernel: NotebookKernel) -> None:
    kernel.run("setting.set('first')")
    kernel.run("%%background\ngo.wait()\nsetting.set('a task')")
    kernel.run("setting.set('the foreground')")
    kernel.run("go.set()\n%bg_wait")
    assert kernel.run("setting.get()").text == "'the foreground'"


def test_what_the_foreground_sets_back_stays_so(kernel: NotebookKernel) -> None:
    kernel.run("before = setting.get()")
    in_background(kernel, "setting.set('a task')")
    kernel.run("setting.set(before)")
    assert kernel.run("setting.get() is before").text == "True"
    in_background(kernel, "assert setting.get() is before")


def test_nothing_changes_in_the_middle_of_a_cell(kernel: NotebookKernel) -> None:
    kernel.run("setting.set('before')")
    ran = kernel.run("%background setting.set('a task')\n%bg_wait\nprint(setting.get())")
    assert ran.stream("stdout").endswith("before\n")
    assert kernel.run("setting.get()").text == "'a task'"


def test_of_two_tasks_that_run_at_once_the_last_one_to_end_counts(kernel: NotebookKernel) -> None:
    kernel.run("again = threading.Event()")
    kernel.run("%%background one\ngo.wait()\nsetting.set('one')")
    kernel.run("%%background two\nagain.wait()\nsetting.set('two')")
    kernel.run("go.set()\n%bg_wait one")
    assert kernel.run("setting.get()").text == "'one'"
    kernel.run("again.set()\n%bg_wait two")
    assert kernel.run("setting.get()").text == "'two'"


def test_a_task_without_a_setting_of_its_own_changes_nothing(kernel: NotebookKernel) -> None:
    kernel.run("setting.set('the foreground')")
    in_background(
        kernel,
        "with np.errstate(divide='ignore'):\n"
        "    token = setting.set('inside')\n"
        "    setting.reset(token)",
    )
    assert kernel.run("setting.get()").text == "'the foreground'"
