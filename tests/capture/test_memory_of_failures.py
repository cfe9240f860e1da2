"""A task that did not complete keeps none of its functions' variables alive."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import NotebookKernel, until

DEFINITIONS = """
import asyncio, gc, threading, time, weakref
from pathlib import Path
import ipytaskpersist
class Big: pass
refs = []
def watched():
    big = Big()
    refs.append(weakref.ref(big))
    return big
def fails():
    big = watched()
    raise ValueError('wrong')
def with_cause():
    big = watched()
    try:
        fails()
    except ValueError as error:
        raise KeyError('outer') from error
def hidden_context():
    big = watched()
    try:
        fails()
    except ValueError:
        raise KeyError('outer') from None
def grouped():
    big, errors = watched(), []
    for call in (fails, with_cause):
        try:
            call()
        except Exception as error:
            errors.append(error)
    raise ExceptionGroup('both', errors)
def generating():
    big = watched()
    yield 1
    fails()
async def awaiting():
    big = watched()
    await asyncio.sleep(0)
    fails()
async def sleeping(mark):
    big = watched()
    Path(mark).touch()
    await asyncio.sleep(600)
def waiting(mark):
    big = watched()
    Path(mark).touch()
    time.sleep(600)
def computing(mark):
    big = watched()
    Path(mark).touch()
    while True: pass
def missing():
    watched().missing
"""
FORMATTED = """
import traceback
print(''.join(traceback.format_exception(ipytaskpersist.task().exception())))
"""
FAILING = {
    "fails()": "fails",
    "with_cause()": "with_cause",
    "hidden_context()": "hidden_context",
    "grouped()": "grouped",
    "list(generating())": "generating",
    "await awaiting()": "awaiting",
    "asyncio.gather(awaiting(), awaiting())\nawait asyncio.sleep(0.1)\nfails()": "fails",
    "[fails() for _ in range(3)]": "fails",
    "%%time\nfails()": "fails",
    "missing()": "missing",
}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    folder = tmp_path_factory.mktemp("memory")
    with NotebookKernel(folder / "state", notebook=folder / "one.ipynb") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        kernel.run(DEFINITIONS)
        yield kernel


def is_all_freed(kernel: NotebookKernel) -> bool:
    """Whether every object of the tasks is gone; looks at it anew each time."""
    text = kernel.run("print(len(refs), [ref() for ref in refs if ref() is not None])").text
    count, alive = text.split(maxsplit=1)
    assert int(count) > 0
    return alive.strip() == "[]"


def without_colours(traceback: list[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))


@pytest.mark.parametrize("mode", ["Context", "Verbose"])
def test_a_failed_task_frees_what_its_functions_had(notebook: NotebookKernel, mode: str) -> None:
    notebook.run(f"%xmode {mode}")
    for source, function in FAILING.items():
        notebook.run("refs.clear()")
        notebook.run(f"%%background\n{source}")
        notebook.run("%bg_wait")
        until(lambda: is_all_freed(notebook), 10, f"freed: {source}")
        error = notebook.run("%bg_output").outputs[-1]
        if error.output_type == "error":  # %%time prints after it
            assert f"{function}(" in without_colours(error.traceback), source
        shown = notebook.run("%bg_show").text
        assert "big" in shown or function == "missing", shown
        if not source.startswith("%%time"):  # it shows the error, and raises none
            raised = notebook.run("ipytaskpersist.task().result()", check=False).error
            assert raised is not None
            assert raised[0] in ("ValueError", "KeyError", "ExceptionGroup", "AttributeError")
            assert f"in {function}\n" in notebook.run(FORMATTED).text
    notebook.run("%xmode Context")


@pytest.mark.parametrize(
    "source", ["waiting({!r})", "computing({!r})", "await sleeping({!r})"], ids=lambda s: s[:9]
)
def test_a_cancelled_task_frees_what_its_functions_had(
    notebook: NotebookKernel, tmp_path: Path, source: str
) -> None:
    mark = tmp_path / "begun"
    notebook.run("refs.clear()")
    notebook.run(f"%%background\n{source.format(str(mark))}")
    until(mark.exists, message="it runs")
    notebook.run("%bg_cancel")
    notebook.run("%bg_wait", check=False)
    until(lambda: is_all_freed(notebook), 10, "freed")


GOES_ON = """
go_on, caught = threading.Event(), threading.Event()
errors, said = [], []
def catching():
    kept = 'still here'
    try:
        fails()
    except ValueError as error:
        errors.append(error)
        yield error
    yield kept
def catching_thread():
    kept = 'here too'
    try:
        fails()
    except ValueError as error:
        errors.append(error)
    caught.set()
    go_on.wait()
    said.append(kept)
async def catching_coroutine():
    kept = 'and here'
    try:
        fails()
    except ValueError as error:
        errors.append(error)
    await pause()
    said.append(kept)
class pause:
    def __await__(self): yield
"""


def test_what_goes_on_keeps_its_variables(notebook: NotebookKernel) -> None:
    """An error may have come through a function that caught it, and has not ended."""
    notebook.run(GOES_ON)
    notebook.run(
        "%%background\nsteps = catching(); next(steps)\n"
        "coroutine = catching_coroutine(); coroutine.send(None)\n"
        "thread = threading.Thread(target=catching_thread); thread.start(); caught.wait()\n"
        "raise ExceptionGroup('all', errors)"
    )
    notebook.run("%bg_wait")
    assert notebook.run("next(steps)").text == "'still here'"
    notebook.run(
        "go_on.set(); thread.join()\ntry: coroutine.send(None)\nexcept StopIteration: pass"
    )
    assert notebook.run("print(said)").text == "['here too', 'and here']\n"
