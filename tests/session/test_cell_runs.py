"""A cell whose task still runs is not silently run a second time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from kernels import NotebookKernel, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import LIVE_STATES, TaskRecord
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

LOOP = "import time\nprint('trial', 12)\nwhile True:\n    time.sleep(.01)"
PROCESS = f"%%background --process sweep\n{LOOP}"


def live(store: TaskStore) -> list[TaskRecord]:
    return store.tasks.select(Selection(states=LIVE_STATES))


def numbers(store: TaskStore) -> list[int]:
    return [task.number for task in live(store)]


def test_a_cell_that_runs_twice_says_so_attaches_or_replaces(
    make_kernel: Callable[..., NotebookKernel], tmp_path: Path, state_dir: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    store = TaskStore(StateDirectory(state_dir)).open()
    kernel.run(PROCESS, cell_id="one")
    until(lambda: live(store)[0].last_line == "trial 12")
    kernel.kill()
    kernel.revive()
    kernel.run("%load_ext ipytaskpersist")
    missed = kernel.run("print(time)", check=False)
    assert missed.stream("stderr") == (
        "task 1 (sweep) assigns time and still runs: %bg_wait 1, then %bg_load 1 time\n"
    )

    # Another cell with the same text is another cell, and so is each launch of one loop.
    other = kernel.run("%%background\n1", cell_id="two")
    loop = kernel.run(
        "for each in range(2):\n    get_ipython().run_line_magic('background', '1')",
        cell_id="three",
    )
    again = kernel.run(PROCESS.replace("12", "11"), cell_id="one")
    assert "runs twice" not in other.text + loop.text
    first, second = live(store)
    assert re.search(
        r"this cell now runs twice: task 1 \(sweep\) has run since \d\d:\d\d UTC "
        rf"and is at “trial 12”; %bg_cancel 1 ends it, %bg_cancel {second.number} ends this one",
        again.text,
    )
    (card,) = [output.data["text/html"] for output in again.outputs if "data" in output]
    since = first.started_at
    assert since is not None
    assert f"Task <bdi>1 (sweep)</bdi> has run since {since:%H:%M:%S} UTC" in card
    assert f"<code>%bg_cancel {first.id}</code> ends it" in card

    # What is attached runs the text that it was launched with.
    attached = kernel.run(PROCESS.replace("sweep", "--if-running attach"), cell_id="one")
    assert numbers(store) == [1, second.number]
    assert (
        f"nothing was started: task {second.number} (sweep) of this cell has run" in attached.text
    )
    assert "with an earlier text of the cell; --if-running replace runs this one" in attached.text
    kernel.run("%bg_cancel 1")
    kernel.take_until(lambda: "runs twice" not in attached.text, 30, "the strip to go")

    # A cell that cannot be launched replaces nothing.
    kernel.run("%config BackgroundTasks.if_running = 'replace'")
    assert kernel.run("%%background --process\n1 +", cell_id="one", check=False).error
    assert numbers(store) == [second.number]
    replaced = kernel.run(f"%%background\n{LOOP}", cell_id="one")
    assert f"task {second.number} (sweep) of this cell: cancelled, to be replaced" in replaced.text
    (third,) = numbers(store)

    # Without the ids of cells, the text and the name say which cell it is.
    kernel.run("%config BackgroundTasks.if_running = 'attach'")
    kernel.run(f"import ipytaskpersist\nsource = {LOOP + chr(10)!r}")
    same = kernel.run("ipytaskpersist.background(source).number")
    assert same.text == str(third)
    new = kernel.run("ipytaskpersist.background(source, if_running='new').number")
    assert int(new.text) > third
    wrong = kernel.run("ipytaskpersist.background('1', if_running='never')", check=False)
    assert wrong.error is not None
    assert wrong.error[:2] == (
        "InvalidRequest", "if_running is one of ask, attach, replace, new, not 'never'"
    )  # fmt: skip
    assert kernel.run("%bg_cancel --all").text.count("cancelled") == 2
    assert live(store) == []
    store.close()
