"""A task is not run again into a NameError: what it will miss is named, and who makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kernels import NotebookKernel, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.task_store import TaskStore


def test_resume_and_rerun_name_what_the_task_will_miss(
    make_kernel: Callable[..., NotebookKernel], tmp_path: Path, state_dir: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run("import time as clock\ndef plot(): pass")
    kernel.run("clock = clock\nother = 1")
    kernel.run("%%background train\nplot()\nwhile True:\n    clock.sleep(.01)\n    mine = other")
    kernel.run("%%background\nimport time\nready = True\nwhile True: time.sleep(.01)")
    until(lambda: kernel.run("'ready' in globals()").text == "True")
    kernel.run("%%background user\nready, 1")
    kernel.run("%%background lonely\nprint(n)", check=False)
    kernel.run("%bg_wait user lonely")
    kernel.kill()
    kernel.revive()
    kernel.run("%load_ext ipytaskpersist")

    refused = kernel.run("%bg_resume train", check=False).stream("stderr")
    assert refused == (
        "UsageError: run the cells that make plot in [2] and clock and other in [3] first, which "
        "task 1 (train) uses, and this kernel does not have; "
        "%bg_resume 1 --anyway runs it all the same\n"
    )
    # The other one needs nothing, and is resumed.
    every = kernel.run("%bg_resume --all", check=False)
    assert "%bg_resume 1 --anyway" in every.stream("stderr")
    assert "running" in every.text
    kernel.run("def plot(): pass")
    kernel.run("import time as clock")
    assert "run cell [3] first: it makes other, which task 1" in kernel.run(
        "%bg_resume 1", check=False
    ).stream("stderr")
    kernel.run("%bg_cancel -1")

    # The sources of tasks say it, too, and what nothing has made is named.
    kernel.run("del ready", check=False)
    assert "it makes ready, which task 3 (user)" in kernel.run(
        "%bg_rerun user", check=False
    ).stream("stderr")
    assert (
        "run what makes n first, which task 4 (lonely) uses"
        in kernel.run(
            "import ipytaskpersist\nipytaskpersist.task('lonely').rerun()", check=False
        ).error[1]
    )
    with_store = TaskStore(StateDirectory(state_dir)).open()
    last = with_store.tasks.latest_key()
    kernel.run("%bg_rerun lonely --anyway\n%bg_wait")
    again = with_store.tasks.get(last + 1)
    assert again is not None
    assert again.reason == "NameError: name 'n' is not defined"
    kernel.run("other = 2\n%bg_resume 1")
    with_store.close()
