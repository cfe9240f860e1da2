"""What a worker prints belongs to whoever submitted the work, whoever started the worker."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from kernels import Cell, NotebookKernel, end_processes_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
TESTS = Path(__file__).parent
IN_PROCESSES = {make.__name__ for make in jobs.PROCESSES} if sys.platform == "linux" else set()
BY_QUEUES = {make.__name__ for make in jobs.QUEUES}
NAMES = {make.__name__ for make in jobs.THREADS} | IN_PROCESSES
WORDS = re.compile(r"(?:prints|warns|echoes) (\S+)")


MAKE = "{name: make() for name, make in jobs.MAKERS.items()}"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    """One kernel, in which workers were made before the first task, by it, and by one that ended."""
    state_dir = tmp_path_factory.mktemp("workers") / "state"
    env = {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    with NotebookKernel(state_dir, env=env) as kernel:
        kernel.run("%load_ext ipytaskpersist\nimport jobs, time, threading")
        kernel.run(f"of_cell = {MAKE}", 120)
        kernel.run(f"%%background\nof_task = {MAKE}\nlive = threading.Event()\nlive.wait()")
        kernel.run("while 'live' not in globals(): time.sleep(0.01)", 120)
        kernel.run(f"%%background\nof_ended = {MAKE}")
        assert "completed" in kernel.run("%bg_wait", 120).text
        yield kernel
    end_processes_of(state_dir)


def words_of(text: str) -> set[str]:
    """The words that were said, however often."""
    return set(WORDS.findall(text))


def streams_of(cell: Cell) -> str:
    """What a cell has printed: the card of a task in it shows the task's last line."""
    return "".join(each.text for each in cell.outputs if each.output_type == "stream")


def code(maker: str, names: set[str], word: str) -> str:
    """Have each kind of worker say a word with its own name in it."""
    return f"for name in {sorted(names)}: {maker}[name](f'{word}-{{name}}')"


def expected(names: set[str], word: str) -> set[str]:
    return {f"{word}-{name}" for name in names}


def in_cell(kernel: NotebookKernel, maker: str, names: set[str], word: str) -> None:
    """Have the words said in a foreground cell, and see them there, and no others."""
    cell, said = kernel.run(code(maker, names, word), 120), expected(names, word)
    kernel.take_until(lambda: words_of(streams_of(cell)) >= said, 30, f"{word}, said in a cell")
    assert words_of(streams_of(cell)) == said


def in_task(kernel: NotebookKernel, maker: str, names: set[str], word: str) -> None:
    """Have the words said in a task, and see them there, and no others."""
    launched = kernel.run(f"%%background\n{code(maker, names, word)}")
    assert "completed" in kernel.run("%bg_wait", 120).text
    assert words_of(kernel.run("%bg_output").text) == expected(names, word)
    assert words_of(streams_of(launched)) == set()


@pytest.mark.parametrize("maker", ["of_cell", "of_task", "of_ended"])
def test_each_line_belongs_to_whoever_submitted_the_work(
    notebook: NotebookKernel, maker: str
) -> None:
    """Foreground and tasks in turn use workers that a cell, a running or an ended task has made."""
    names = NAMES if maker == "of_task" else NAMES | BY_QUEUES
    in_cell(notebook, maker, names, "one")
    in_task(notebook, maker, names, "two")
    in_task(notebook, maker, names, "three")
    in_cell(notebook, maker, names, "four")


def test_a_running_tasks_own_thread_works_for_it_also_on_what_others_put(
    notebook: NotebookKernel,
) -> None:
    cell = notebook.run(code("of_task", BY_QUEUES, "given"))
    assert words_of(streams_of(cell)) == set()
    assert words_of(notebook.run("%bg_output 1").text) == expected(BY_QUEUES, "given")
