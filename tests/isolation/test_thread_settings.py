"""What a task sets for its thread alone is not lost, and does not undo what the foreground sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernels import NotebookKernel

SETTINGS = """
import threading
import ipytaskpersist as bg
go_on, begun = threading.Event(), threading.Event()
def now(name="working_memory"): return sklearn.get_config()[name]
"""
WAITING = """%%background
import sklearn
begun.set()
assert go_on.wait(30)
sklearn.set_config(working_memory={})
"""


@pytest.fixture(scope="module")
def a_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    with NotebookKernel(tmp_path_factory.mktemp("settings")) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        kernel.run("import sklearn; defaults = sklearn.get_config()")
        yield kernel


@pytest.fixture
def settings(a_kernel: NotebookKernel) -> NotebookKernel:
    """A kernel that has imported scikit-learn, and set nothing."""
    a_kernel.run(SETTINGS + "\nsklearn.set_config(**defaults)")
    return a_kernel


def printed(kernel: NotebookKernel, source: str) -> str:
    return kernel.run(source).stream("stdout").strip()


def test_what_the_foreground_sets_meanwhile_stays(settings: NotebookKernel) -> None:
    settings.run(WAITING.format(7))
    settings.run("assert begun.wait(30); sklearn.set_config(working_memory=8, display='text')")
    settings.run("go_on.set()\n%bg_wait")
    assert printed(settings, "print(now())") == "8"


def test_a_setting_that_the_foreground_leaves_alone_is_the_tasks(settings: NotebookKernel) -> None:
    settings.run(WAITING.format(7))
    settings.run("assert begun.wait(30); sklearn.set_config(display='text')")
    settings.run("go_on.set()\n%bg_wait")
    assert printed(settings, "print(now(), now('display'))") == "7 text"


def test_of_two_tasks_the_one_that_ends_last_has_set_it(settings: NotebookKernel) -> None:
    settings.run(WAITING.format(7))
    settings.run("assert begun.wait(30)")
    settings.run("%%background\nsklearn.set_config(working_memory=9)")
    settings.run("%bg_wait")
    assert printed(settings, "print(now())") == "9"
    settings.run("go_on.set()\n%bg_wait 1")
    assert printed(settings, "print(now())") == "7"


def test_a_setting_comes_between_cells_but_the_next_task_has_it_at_once(
    settings: NotebookKernel,
) -> None:
    settings.run("bg.background('sklearn').wait()")
    said = printed(
        settings,
        "bg.background('sklearn.set_config(working_memory=7)').wait()\n"
        "print(now(), bg.submit(now).result(30))\nget_ipython().run_cell('print(now())')",
    )
    assert said == "1024 7\n1024"
    assert printed(settings, "print(now())") == "7"


def test_a_task_that_is_the_first_to_import_the_library(kernel: NotebookKernel) -> None:
    kernel.run(SETTINGS)
    kernel.run(WAITING.format(7))
    kernel.run("assert begun.wait(30); import sklearn; sklearn.set_config(display='text')")
    kernel.run("go_on.set()\n%bg_wait")
    assert printed(kernel, "print(now(), now('display'))") == "7 text"


def test_a_task_has_nothing_of_the_task_before_it_in_its_thread(settings: NotebookKernel) -> None:
    settings.run("%%background\nsklearn.set_config(working_memory=7)")
    settings.run("%bg_wait")
    settings.run("sklearn.set_config(working_memory=1024)")
    settings.run("%%background\nprint(now())")
    settings.run("%bg_wait")
    assert printed(settings, "%bg_output") == "1024"
