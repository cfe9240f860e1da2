"""Whatever a value does while it is pickled, shown, compared or loaded, its task has an end.

The value that failed is named with why, and nothing else is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, end_processes_of, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import ResultRecord
from ipytaskpersist.store.task_store import TaskStore

NAMELESS = """
class Meta(type):
    @property
    def __name__(self): raise SystemExit('its name')
class Nameless(BaseException, metaclass=Meta):
    def __bool__(self): raise SystemExit('its truth')
"""
DEFINITIONS = """
import time
from asyncio import CancelledError
from pathlib import Path
from ipytaskpersist.errors import TaskCancelled

class Own(BaseException): pass
class Mute(BaseException):
    def __str__(self): raise self
class Text(str):
    def encode(self, *_given): raise SystemExit('its bytes')
    def splitlines(self, *_given): raise SystemExit('its lines')
    __len__ = encode
class Wordy(Exception):
    def __str__(self): return Text('first')

def errors():
    return [SystemExit(3), SystemExit(), KeyboardInterrupt('mine'), GeneratorExit('over'),
            TaskCancelled('not asked for'), CancelledError(), Own('own'), Mute(),
            Wordy(), OSError(28, 'no room')]

class Unpicklable:
    def __init__(self, error): self.error = error
    def __reduce__(self): raise self.error
class Endless:
    def __reduce__(self): return Endless.__reduce__(self)
class Unshowable:
    def __init__(self, error): self.error = error
    def __repr__(self): raise self.error
class Unloadable:
    def __init__(self, number): self.number = number
    def __setstate__(self, state):
        raise errors()[state['number']]
class Exits:
    def __init__(self, code): self.code = code
    def __reduce__(self):
        import os
        os._exit(self.code)
class Sleeps:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self):
        Path(self.mark).touch()
        time.sleep(600)
class Equal:
    def __eq__(self, other): raise SystemExit('never equal')
    __hash__ = None
    def __del__(self): raise SystemExit('never gone')
"""


class Notebook:
    """A kernel with hostile classes, and what its tasks have left in the store."""

    def __init__(self, kernel: NotebookKernel, store: TaskStore) -> None:
        self.kernel = kernel
        self.store = store
        kernel.run("import ipytaskpersist\n%load_ext ipytaskpersist")
        kernel.run(DEFINITIONS)

    def task(self, source: str, flags: str = "") -> dict[str, Any]:
        """Run a task to its end. Returns what `list --json` says of it."""
        launched = self.kernel.run(f"%%background {flags}\n{source}", check=False)
        assert not launched.stream("stderr"), launched.text
        return self.ended()

    def ended(self) -> dict[str, Any]:
        self.kernel.run("%bg_wait --timeout 30", check=False)
        listed = json.loads(self.kernel.run("%bg_list --json --limit 1").text)
        task: dict[str, Any] = listed["tasks"][0]
        assert task["state"] in ("completed", "failed", "cancelled"), task
        return task

    def value_of(self, task: dict[str, Any]) -> ResultRecord:
        kept = self.store.results.get(self._key(task))
        assert kept is not None
        return kept

    def variables_of(self, task: dict[str, Any]) -> dict[str, str | None]:
        """What a task has left, each with why it could not be kept."""
        return {each.name: each.problem for each in self.store.results.variables(self._key(task))}

    def _key(self, task: dict[str, Any]) -> int:
        found = self.store.tasks.by_id(task["id"])
        assert found is not None
        return found.key


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("hostile")
    with NotebookKernel(folder / "state", notebook=folder / "one.ipynb") as kernel:
        store = TaskStore(StateDirectory(folder / "state")).open()
        try:
            yield Notebook(kernel, store)
        finally:
            store.close()
            end_processes_of(folder / "state")


REASONS = [
    "SystemExit: 3", "SystemExit", "KeyboardInterrupt: mine", "GeneratorExit: over",
    "TaskCancelled: not asked for", "CancelledError", "Own: own", "Mute",
    "Wordy: first", "OSError: [Errno 28] no room",
]  # fmt: skip


def test_a_task_ends_whatever_its_value_does_while_it_is_pickled(notebook: Notebook) -> None:
    for number, reason in enumerate(REASONS):
        task = notebook.task(f"Unpicklable(errors()[{number}])")
        assert (task["state"], task["exit_code"]) == ("completed", 0), reason
        assert notebook.value_of(task).problem == reason
    liar = "class Liar:\n    __class__ = property(lambda self: 1 / 0)\nLiar();"
    assert notebook.task(liar)["state"] == "completed"
    task = notebook.task("Endless()")
    assert "recursion" in str(notebook.value_of(task).problem)


def test_a_task_ends_whatever_its_value_does_when_it_is_shown(notebook: Notebook) -> None:
    for number in range(len(REASONS)):
        for quiet in ("", ";"):
            notebook.task(f"Unshowable(errors()[{number}]){quiet}")
    notebook.kernel.run("ipytaskpersist.submit(Unshowable, errors()[0])")
    task = notebook.ended()
    assert task["state"] == "completed"
    assert notebook.value_of(task).text == "<Unshowable whose repr raised SystemExit>"


def test_a_task_ends_whatever_its_error_does_when_it_is_shown(notebook: Notebook) -> None:
    for runner in ("--thread", "--process"):
        source = "def fails(error):\n    raise error\nfails({})"
        task = notebook.task(source.format("Mute()"), runner)
        assert (task["state"], task["reason"]) == ("failed", "Mute")
        task = notebook.task(NAMELESS + source.format("Nameless()"), runner)
        assert (task["state"], task["reason"]) == ("failed", "Nameless")
        task = notebook.task(source.format("Wordy()"), runner)
        assert (task["state"], task["reason"]) == ("failed", "Wordy: first")
        shown = notebook.kernel.run("%bg_output").text
        assert "Wordy" in notebook.kernel.run("%bg_show").text, shown


def test_a_text_of_a_class_of_its_own_is_printed_as_the_text_that_it_is(notebook: Notebook) -> None:
    notebook.task("print(Text('spoken'), end='')\nimport sys\nsys.stderr.write(Text('aloud'));")
    assert notebook.kernel.run("%bg_output").text == "spokenaloud"
    assert notebook.task("print('still')")["state"] == "completed"


def test_a_cancellation_ends_a_task_whose_value_takes_for_ever(
    notebook: Notebook, tmp_path: Path
) -> None:
    for runner in ("--thread", "--process"):
        mark = tmp_path / runner
        notebook.kernel.run(f"%%background {runner}\nSleeps({str(mark)!r})")
        until(mark.exists, message="its value is being pickled")
        notebook.kernel.run("%bg_cancel")
        assert notebook.ended()["state"] == "cancelled"


def test_a_process_names_what_it_could_not_keep_and_keeps_the_rest(notebook: Notebook) -> None:
    lines = [f"bad_{number} = Unpicklable(errors()[{number}])" for number in range(len(REASONS))]
    exits = ["leaves_0, leaves_3 = Exits(0), Exits(3)", "globals()[7] = 'a number'"]
    shown = ["unshown = Unshowable(SystemExit(4))", "kept, same = 'yes', [Equal()]"]
    task = notebook.task("\n".join([*lines, *exits, *shown, "Exits(5)"]), "--process")
    assert (task["state"], task["exit_code"]) == ("completed", 0)
    assert notebook.value_of(task).problem == "SystemExit: os._exit(5) was called"
    assert notebook.variables_of(task) == {
        **{f"bad_{number}": reason for number, reason in enumerate(REASONS)},
        "leaves_0": "SystemExit: os._exit(0) was called",
        "leaves_3": "SystemExit: os._exit(3) was called",
        "unshown": None,
        "kept": None,
        "same": None,
    }
    cell = notebook.kernel.run("print(kept)")
    assert "SystemExit: os._exit(0) was called" in cell.stream("stderr")
    assert cell.stream("stdout").endswith("yes\n")


def test_what_cannot_be_loaded_is_named_and_the_rest_is_there(notebook: Notebook) -> None:
    lines = [f"bad_{number} = Unloadable({number})" for number in range(len(REASONS))]
    notebook.task("\n".join([*lines, "late = 'there'", "Unloadable(0)"]), "--process named")
    cell = notebook.kernel.run("print(late)")
    assert cell.stream("stdout").endswith("there\n")
    said = cell.stream("stderr")
    for number, reason in enumerate(REASONS):
        assert f"bad_{number} is not (" in said
        assert f"({reason})" in said
    refused = notebook.kernel.run("ipytaskpersist.task('named').result()", check=False)
    assert refused.error is not None
    assert refused.error[0] == "ResultUnavailable"
    assert "cannot be unpickled here (SystemExit: 3)" in refused.error[1]


def test_a_launch_names_what_cannot_be_handed_over(notebook: Notebook) -> None:
    notebook.kernel.run("good, bad = 1, Unpicklable(SystemExit(3))")
    refused = notebook.kernel.run("%%background --process\nprint(good, bad)", check=False)
    assert "bad (Unpicklable): SystemExit: 3" in refused.stream("stderr")
    assert "--in good" in refused.stream("stderr")


def test_a_process_that_cannot_load_what_it_is_given_fails_and_says_so(notebook: Notebook) -> None:
    notebook.kernel.run("given = Unloadable(1)")
    task = notebook.task("print(given)", "--process")
    assert (task["state"], task["exit_code"]) == ("failed", 1)
    assert task["reason"] == "given, which it was given, cannot be unpickled (SystemExit)"


def test_a_task_that_was_hostile_leaves_the_kernel_well(notebook: Notebook) -> None:
    assert notebook.task("print('fine')\n6 * 7")["state"] == "completed"
    assert notebook.kernel.run("ipytaskpersist.task().result()").text == "42"
