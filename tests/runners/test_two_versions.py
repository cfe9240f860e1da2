"""Two versions of the package use one store: a newer one has migrated it under a running kernel."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernels import NotebookKernel, until
from programs import Finished, run_python

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.store import problems
from ipytaskpersist.store.file.migrations import STEPS
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]
NEWER = """
import sys
from ipytaskpersist.store.file import migrations

def m900_colours(db):
    db.conn.execute("ALTER TABLE tasks ADD COLUMN colour TEXT")
    db.conn.execute('''CREATE TABLE colours (
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE, colour TEXT)''')
    db.conn.execute('''CREATE TRIGGER coloured AFTER UPDATE OF state ON tasks
        BEGIN INSERT INTO colours VALUES (NEW.key, NEW.state); END''')

migrations.{step}(m900_colours)
sys.argv[0] = "bg"
from ipytaskpersist.__main__ import main
main()
"""


class World:
    """A kernel of this version, and commands of a newer one, in one notebook."""

    def __init__(self, kernel: NotebookKernel, store: TaskStore, notebook: Path, step: str) -> None:
        self.kernel = kernel
        self.store = store
        self.directory: StateDirectory = store.directory
        self._notebook = notebook
        self._step = step

    def newer(self, *arguments: str) -> Finished:
        """A command of the newer version, which must succeed."""
        env = {"IPYTASKPERSIST_NOTEBOOK": str(self._notebook)}
        code = NEWER.format(step=self._step)
        ended = run_python(code, self.directory.root, *arguments, env=env)
        assert ended.returncode == 0, ended.stderr
        return ended

    def shown(self) -> dict[str, dict[str, Any]]:
        """The tasks by their names, as the newer version lists them."""
        listed = json.loads(self.newer("list", "--json").stdout)["tasks"]
        return {task["name"]: task for task in listed}

    def tasks(self) -> dict[str, TaskRecord]:
        """The tasks by their names, as they are in the store."""
        return {task.name: task for task in self.store.tasks.select(Selection())}

    def state(self, name: str) -> TaskState:
        return self.tasks()[name].state

    def printed(self, name: str) -> str:
        records = self.store.outputs.of(self.tasks()[name].key, kinds=[OutputKind.STDOUT])
        return b"".join(record.data for record in records).decode()

    def supervisor(self) -> int:
        (supervisor,) = self.store.supervisors.unfinished()
        return supervisor.pid

    def told(self) -> list[str]:
        """What was said of versions."""
        found = problems.recorded(self.directory)
        return [each.message for each in found if "version" in each.message]


def launch(world: World, go: Path) -> None:
    """Tasks of every kind that wait for a file, and one that does not end."""
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.02)"
    cell = f"import os, time\nprint('begun', flush=True)\n{wait}\nkept = 'kept'\nprint('last')\n"
    run = world.kernel.run
    run(f"%%background thread\n{cell}[1]")
    run(f"%%background --process process\n{cell}[2]")
    run(f"%%background --process fails\n{cell}1 / 0")
    run(f"%%background --shell command\necho begun\nwhile ! test -e {go}; do sleep 0.02; done\n"
        "echo last; exit 3")  # fmt: skip
    run("%%background --shell endless\necho begun; sleep 600")
    run("%%background endless thread\nimport time\nprint('begun')\nwhile True: time.sleep(0.02)")

    def have_printed() -> bool:
        tasks = world.tasks().values()
        return all(world.store.outputs.last_sequence(task.key) for task in tasks)

    until(have_printed, message="the beginning of all tasks")


ENDS = {
    "thread": ("completed", 0), "process": ("completed", 0), "fails": ("failed", 1),
    "command": ("failed", 3), "endless": ("cancelled", None), "endless thread": ("cancelled", None),
}  # fmt: skip


def test_after_an_additive_migration_all_goes_on(
    make_kernel: MakeKernel, store: TaskStore, tmp_path: Path
) -> None:
    go, notebook = tmp_path / "go", tmp_path / "a.ipynb"
    world = World(make_kernel(notebook=notebook), store, notebook, "additive_step")
    launch(world, go)
    assert world.shown()["process"]["state"] == "running"
    assert store.database.row("PRAGMA user_version") == (len(STEPS) + 1,)
    world.newer("cancel", "endless", "--yes")
    world.kernel.run("%bg_cancel 'endless thread'")
    world.kernel.run("%%background --process launched later\n[3]")
    go.touch()
    world.kernel.run("%bg_wait thread process fails command endless 'endless thread'")
    world.kernel.run("%bg_wait 'launched later'")
    tasks = world.shown()
    assert tasks["launched later"]["state"] == "completed"
    for name, (state, code) in ENDS.items():
        assert tasks[name]["state"] == state
        assert code is None or tasks[name]["exit_code"] == code
        assert "begun\n" in world.printed(name)
    ends = store.database.rows("SELECT colour FROM colours WHERE colour = 'completed'")
    assert len(ends) == 3, "the newer version's triggers are there as well"
    refused = world.kernel.run("%bg_delete thread --yes", check=False)
    assert "newer version" in refused.stream("stderr")
    assert world.shown()["thread"]["state"] == "completed"
    assert world.told() == []


def test_after_a_breaking_migration_nothing_is_written_and_nothing_is_lost(
    make_kernel: MakeKernel, store: TaskStore, tmp_path: Path
) -> None:
    go, notebook = tmp_path / "go", tmp_path / "a.ipynb"
    world = World(make_kernel(notebook=notebook), store, notebook, "step")
    launch(world, go)
    supervisor = world.supervisor()
    os.kill(supervisor, signal.SIGSTOP)  # or it would have the next task at once
    world.kernel.run("%%background --process waiting\n1")
    world.kernel.run("%%background --shell --in 1s later\necho later")
    world.newer("list")
    version = store.database.row("PRAGMA user_version")
    os.kill(supervisor, signal.SIGCONT)
    assert version == (len(STEPS) + 1,)

    # What is asked for is obeyed, or refused in words.
    for name in ("endless", "endless thread"):
        world.newer("cancel", name, "--yes")
    until(lambda: len(list(world.directory.aside.iterdir())) == 2, message="both say what they do")
    until(lambda: world.shown()["endless"]["state"] == "cancelled", message="the cancellation")
    until(lambda: world.shown()["endless thread"]["state"] == "cancelled", message="the other one")
    waiting = world.shown()["waiting"]
    assert waiting["state"] == "interrupted"
    assert "newer version" in waiting["reason"]
    # A supervisor of the newer version would start it after the kernel has ended; here is none.
    assert world.shown()["later"]["state"] == "pending"
    world.newer("cancel", "later", "--yes")
    for flags in ("", "--process", "--shell"):
        refused = world.kernel.run(f"%%background {flags} refused\ntrue", check=False)
        assert "newer version" in refused.text + str(refused.error)
    assert "refused" not in world.tasks()
    waited = world.kernel.run("%bg_wait process", check=False)
    assert "newer version" in waited.stream("stderr")

    # What runs ends; the store has none of it until the newer version looks.
    go.touch()
    until(lambda: not _is_there(supervisor), message="the end of the supervisor")
    assert world.state("command") is TaskState.RUNNING
    until(lambda: world.shown()["thread"]["state"] == "completed", message="the thread's end")
    tasks = world.shown()
    for name, (state, code) in ENDS.items():
        assert (tasks[name]["state"], name) == (state, name)
        assert code is None or tasks[name]["exit_code"] == code
    for name in ("thread", "process", "fails", "command"):
        assert world.printed(name).startswith("begun\nlast\n")
    assert "[2]" in world.newer("result", "process").stdout
    assert "[1]" in world.newer("result", "thread").stdout
    kept = {result.name: result for result in store.results.variables(world.tasks()["process"].key)}
    assert kept["kept"].path
    assert store.tasks.post_mortem(world.tasks()["fails"].key)

    # It was said once by each, and no file is left.
    world.kernel.shutdown()
    world.newer("list")
    assert list(world.directory.aside.iterdir()) == []
    assert len(world.told()) == 2, world.told()
    (session,) = store.sessions.select(None)[-1:]
    assert session.end_reason == "kernel shut down"
    assert world.shown()["later"]["state"] == "cancelled"
    log = world.directory.supervisor_log(session.id)
    assert log.stat().st_size < 1000, log.read_text()[:3000]


def _is_there(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
