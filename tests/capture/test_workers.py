"""What a worker prints belongs to the work's submitter, wherever the worker was started."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator

import jobs
import pytest
from kernels import Cell, NotebookKernel, end_processes_of, until
from layout import HELPERS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
IN_PROCESSES = {make.__name__ for make in jobs.PROCESSES} if sys.platform == "linux" else set()
SLOW = {"spawn_pool", "forkserver_executor"}
BY_QUEUES = {make.__name__ for make in jobs.QUEUES}
LISTENERS = {"queue_listener", "simple_queue_listener"}  # these only warn
NAMES = {make.__name__ for make in jobs.THREADS} | IN_PROCESSES
WORDS = re.compile(r"(?:prints|warns|echoes) (\S+)")


MAKE = "{name: make() for name, make in jobs.MAKERS.items()}"
MAKE_QUICK = f"{MAKE[:-1]} if name not in {SLOW}}}"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    """One kernel, with workers made before the first task, by it, and by one that has ended."""
    state_dir = tmp_path_factory.mktemp("workers") / "state"
    env = {"PYTHONPATH": os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])}
    with NotebookKernel(state_dir, env=env) as kernel:
        kernel.run("%load_ext ipytaskpersist\nimport jobs, os, time, threading")
        kernel.run(f"of_cell = {MAKE}", 120)
        kernel.run(f"%%background\nof_task = {MAKE}\nlive = threading.Event()\nlive.wait()")
        kernel.run("while 'live' not in globals(): time.sleep(0.01)", 120)
        kernel.run(f"%%background\nof_ended = {MAKE_QUICK}")
        assert "completed" in kernel.run("%bg_wait", 120).text
        yield kernel
    end_processes_of(state_dir)


def words_of(text: str) -> set[str]:
    """The words that were said, however often."""
    return set(WORDS.findall(text))


def streams_of(cell: Cell) -> str:
    """What a cell has printed: the card of a task in it shows the task's last line."""
    texts = {"stdout": "", "stderr": ""}
    for each in cell.outputs:
        if each.output_type == "stream":
            texts[each.name] += each.text  # a kernel may cut a line in two
    return "\n".join(texts.values())


def code(maker: str, names: set[str], word: str) -> str:
    """Have each kind of worker say a word with its own name in it."""
    return f"for name in {sorted(names)}: {maker}[name](f'{word}-{{name}}')"


def expected(names: set[str], word: str) -> set[str]:
    return {f"{word}-{name}" for name in names}


def all_lines(words: set[str]) -> set[str]:
    """Every line of words that are said in all three ways."""
    return {f"{way} {word}" for way in ("prints", "warns", "echoes") for word in words}


def take_lines(kernel: NotebookKernel, cell: Cell, lines: set[str], timeout: float = 30) -> None:
    """Wait until a cell shows all of these lines: one that is late is shown in the next cell."""
    try:
        kernel.take_until(lambda: lines <= set(streams_of(cell).splitlines()), timeout, "the lines")
    except AssertionError as error:
        raise AssertionError(f"{error}: {lines} in {streams_of(cell)!r}") from None


def in_cell(kernel: NotebookKernel, maker: str, names: set[str], word: str) -> None:
    """Have the words said in a foreground cell, and see them there, and no others."""
    cell, said = kernel.run(code(maker, names, word), 120), expected(names, word)
    take_lines(kernel, cell, all_lines(expected(names - LISTENERS, word)))
    kernel.take_until(lambda: words_of(streams_of(cell)) >= said, 30, f"{word}, logged in a cell")
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
    names = {
        "of_cell": NAMES | BY_QUEUES,
        "of_task": NAMES,
        "of_ended": NAMES - SLOW | BY_QUEUES,
    }[maker]
    in_cell(notebook, maker, names, "one")
    in_task(notebook, maker, names, "two")
    in_task(notebook, maker, names, "three")
    in_cell(notebook, maker, names, "four")


def test_a_running_tasks_own_thread_works_for_it_also_on_what_others_put(
    notebook: NotebookKernel,
) -> None:
    cell, said = notebook.run(code("of_task", BY_QUEUES, "given")), expected(BY_QUEUES, "given")
    # The task runs on, so what it has printed is in the store a moment later.
    until(lambda: words_of(notebook.run("%bg_output 1").text) >= said, message="what was given")
    assert words_of(notebook.run("%bg_output 1").text) == said
    assert words_of(streams_of(cell)) == set()


LATE = """
go_on = threading.Event()
shown = display("shown", display_id=True)
def speak(word):
    print("before", flush=True)
    go_on.wait()
    jobs.say(word)
thread = threading.Thread(target=speak, args=("late-thread",))
thread.start()
pool = multiprocessing.pool.ThreadPool(1)
pending = pool.apply_async(speak, ("late-pool",))
fork = multiprocessing.get_context("fork")
process = fork.Process(target=jobs.say_when, args=(pipe[0], "late-fork"))
process.start()
reader = subprocess.Popen("read line; echo echoes late-command", shell=True, stdin=pipe[0])
"""


def test_what_a_task_leaves_behind_prints_in_the_foreground(notebook: NotebookKernel) -> None:
    """Nothing changes what an ended task has printed and displayed."""
    notebook.run("import multiprocessing.pool, subprocess\npipe = os.pipe()")
    notebook.run(f"%%background late\n{LATE}")
    assert "completed" in notebook.run("%bg_wait late").text
    before = notebook.run("%bg_output late").text
    cell = notebook.run(
        "go_on.set(); os.write(pipe[1], b'\\n\\n'); shown.update('changed')\n"
        # Once this cell has ended, what commands print is taken to be the running task's.
        "thread.join(); pending.wait(); process.join(); reader.wait()"
    )
    late = all_lines({"late-thread", "late-pool", "late-fork"})
    take_lines(notebook, cell, late | {"echoes late-command"})
    assert notebook.run("%bg_output late").text == before
    assert words_of(before) == set()


def test_what_a_cell_leaves_working_is_the_foregrounds_though_a_task_runs_alone(
    notebook: NotebookKernel,
) -> None:
    """Also from processes, which write to descriptors that no line of it says whose it is."""
    cell = notebook.run(
        "import concurrent.futures, multiprocessing.pool\n"
        "for kind in ('fork', 'spawn'):\n"
        "    pool = multiprocessing.get_context(kind).Pool(1)\n"
        "    pool.apply_async(jobs.say_once, ('now.txt', kind))\n"
        "    globals()[f'{kind}_pool'] = pool"
    )
    (notebook.cwd / "now.txt").touch()
    take_lines(notebook, cell, all_lines({"fork", "spawn"}), 60)
    assert not words_of(notebook.run("%bg_output 1").text) & {"fork", "spawn"}


def test_workers_of_tasks_print_on_once_the_extension_is_unloaded(
    make_kernel: Callable[..., NotebookKernel],
) -> None:
    """More than a pipe holds: it must be read meanwhile."""
    kernel = make_kernel()
    kernel.run(
        "%%background\nimport multiprocessing\npool = multiprocessing.Pool(1)\npool.apply(id, (1,))"
    )
    assert "completed" in kernel.run("%bg_wait").text
    cell = kernel.run("%unload_ext ipytaskpersist\npool.apply(print, ('x' * 300_000,))")
    kernel.take_until(lambda: streams_of(cell).count("x") == 300_000, 30, "all that was printed")


def test_a_worker_that_prints_to_a_file_of_its_own_is_left_alone(notebook: NotebookKernel) -> None:
    notebook.run(
        "import concurrent.futures, multiprocessing\n"
        "own = concurrent.futures.ProcessPoolExecutor(\n"
        "    1, multiprocessing.get_context('spawn'), jobs.print_to, ('own.txt',))\n"
        "own.submit(jobs.say, 'first').result()"
    )
    notebook.run("%%background\nown.submit(jobs.say, 'second').result()")
    assert "completed" in notebook.run("%bg_wait").text
    notebook.run("own.shutdown()")
    text = (notebook.cwd / "own.txt").read_text()
    assert set(text.split()) >= {"first", "second"}


def test_an_error_in_a_worker_has_no_frame_of_this_package(notebook: NotebookKernel) -> None:
    """Nor do values change on their way: a worker gets the very arguments."""
    cell = notebook.run(
        "import traceback, concurrent.futures\n"
        "thing = object()\n"
        "with concurrent.futures.ThreadPoolExecutor(1) as executor, "
        "multiprocessing.pool.ThreadPool(1) as pool:\n"
        "    assert executor.submit(id, thing).result() == pool.apply(id, (thing,)) == id(thing)\n"
        "    errors = [executor.submit(jobs.fail, 'x').exception()]\n"
        "    for call in (pool.apply, pool.map):\n"
        "        try: call(jobs.fail, 'x')\n"
        "        except ValueError as error: errors.append(error)\n"
        "texts = map(traceback.format_tb, [each.__traceback__ for each in errors])\n"
        "print(len(errors), 'ipytaskpersist/' in str(list(texts)))"
    )
    assert cell.text == "3 False\n"
