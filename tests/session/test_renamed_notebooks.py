"""A notebook that was renamed while no kernel ran can have its tasks back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from kernels import NotebookKernel
from programs import run_command
from typed import record

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

LOOP = "import time\nwhile True: time.sleep(.01)"


def write(path: Path, *cell_ids: str) -> Path:
    cells = [{"cell_type": "code", "id": each, "source": ""} for each in cell_ids]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_a_renamed_notebook_takes_over_its_tasks_and_a_copy_does_not(
    make_kernel: Callable[..., NotebookKernel], tmp_path: Path, state_dir: Path
) -> None:
    old = write(tmp_path / "close.ipynb", "one", "two", "three")
    first = make_kernel(notebook=old, folder=tmp_path / "first")
    first.run("%%background printed\nprint('kept')", cell_id="one")
    first.run("%bg_wait\n%bg_archive printed")
    first.run(f"%%background --process live\n{LOOP}", cell_id="two")
    first.run("%background 1")  # a front end that sends no ids
    first.run("%bg_wait -1")
    first.shutdown()

    copy = tmp_path / "copy.ipynb"
    shutil.copy(old, copy)
    refused = run_command(state_dir, "adopt", notebook=copy)
    assert refused.returncode == 1
    assert "the cells of close.ipynb, which still exists, have the same ids" in refused.stderr
    elsewhere = run_command(state_dir, "adopt", notebook=write(tmp_path / "other.ipynb", "four"))
    assert "no notebook that is gone has tasks of the cells of other.ipynb" in elsewhere.stderr

    new = old.rename(tmp_path / "renamed.ipynb")
    second = make_kernel(load=False, notebook=new)
    assert second.run("%load_ext ipytaskpersist").text == (
        "1 task of close.ipynb, which is gone, belongs to these cells: %bg_adopt takes it over\n"
    )
    second.run("%background 2", cell_id="three")
    assert second.run("%bg_adopt").text == (
        "took over 2 tasks of close.ipynb; %bg_list shows them\nwhat was task 1 here is now 4\n"
    )
    listed = json.loads(second.run("%bg_list --json").text)["tasks"]
    assert [(task["number"], task["name"]) for task in listed] == [
        (2, "live"), (3, None), (4, None)
    ]  # fmt: skip
    assert {task["notebook"] for task in listed} == {str(new)}
    assert second.run("%bg_output printed").text == "kept\n"  # from the archive
    assert "cancelled" in second.run("%bg_cancel live").text
    assert second.run("%background 3\n%bg_show --json", cell_id="three").text.count('"number": 5')
    again = second.run("%bg_adopt", check=False).stream("stderr")
    assert "no notebook that is gone has tasks" in again

    # A new notebook of the old name is another one.
    with_store = TaskStore(StateDirectory(state_dir)).open()
    identity = SessionIdentity("x" * 32, "kernel", str(old), True, None, ProcessIdentity.own())
    found = with_store.sessions.find_notebook(identity)
    assert found is not None
    assert with_store.tasks.live(found.key) == set()
    assert found.path != str(new)
    with_store.close()


def test_what_was_launched_meanwhile_gets_the_numbers_after_what_is_taken_over(
    store: TaskStore,
) -> None:
    """Also where the old and the new numbers of the same tasks overlap."""
    (old,) = record(store, "old", path="/old.ipynb")
    new = record(store, "a", "b", "c", path="/new.ipynb", session="b1b2c3d4-x")
    renumbered = store.sessions.adopt(new[0].notebook_key, old.notebook_key)
    assert renumbered == [(1, 2), (2, 3), (3, 4)]
    tasks = store.tasks.select(Selection(new[0].notebook_key))
    assert [(task.number, task.id) for task in tasks] == [
        (1, old.id), *((task.number + 1, task.id) for task in new)
    ]  # fmt: skip
    (last,) = record(store, "d", path="/new.ipynb", session="b1b2c3d4-x")
    assert last.number == 5
