"""Tasks that wait when their kernel and its supervisor are killed, or the machine is rebooted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from programs import run_command

from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

SAYS = "echo {name} begins $WAITING_TEST >> {file}; sleep 0.3; echo {name} ends >> {file}"
SAYS_IN_PYTHON = """import os, time
with open({file!r}, "a") as file:
    print("python begins", os.environ["WAITING_TEST"], rows, file=file, flush=True)
    time.sleep(0.3)
    print("python ends", file=file, flush=True)
rows"""
SECRET = "a value of the kernel's alone"
OF_OTHER_BOOT = "UPDATE {} SET boot_id = 'of an earlier boot'"


class Left:
    """The tasks of a kernel that is lost, together with its supervisor."""

    def __init__(self, kernel: NotebookKernel, store: TaskStore, state_dir: Path) -> None:
        self.kernel = kernel
        self.store = store
        self.state_dir = state_dir

    def tasks(self) -> dict[str, TaskRecord]:
        return {task.name: task for task in self.store.tasks.select(Selection())}

    def await_state(self, name: str, state: TaskState) -> TaskRecord:
        return until(lambda: (task := self.tasks()[name]).state is state and task, 60, name)

    def lose(self, *, with_machine: bool) -> None:
        """Kill the kernel and its supervisor. A reboot also changes the boot, and ends the rest."""
        (supervisor,) = self.store.supervisors.unfinished()
        processes = self.store.processes.live_of(supervisor.key)
        self.kernel.kill()
        os.kill(supervisor.pid, signal.SIGKILL)
        until(lambda: ProcessIdentity.of(supervisor.pid) is None, 30, "the supervisor's death")
        if with_machine:
            for process in processes:
                assert process.pid is not None
                os.killpg(process.pid, signal.SIGKILL)
            # Nobody reboots a machine for a test: the boot that the store remembers is another one.
            for table in ("supervisors", "sessions"):
                self.store.database.execute(OF_OTHER_BOOT.format(table))

    def look(self) -> str:
        """What a command says that is typed afterwards, in a terminal without the kernel's env."""
        return run_command(self.state_dir, "list", "--all", "--cleared").stdout

    def kept(self) -> list[Path]:
        return [*self.store.directory.environments.iterdir()]


@pytest.fixture
def left(
    make_kernel: Callable[..., NotebookKernel], store: TaskStore, state_dir: Path, tmp_path: Path
) -> Left:
    env = {"WAITING_TEST": SECRET}
    return Left(make_kernel(notebook=tmp_path / "a.ipynb", env=env), store, state_dir)


@pytest.mark.parametrize("with_machine", [False, True], ids=["processes", "machine"])
def test_what_waited_starts_in_order_when_a_command_looks(
    left: Left, tmp_path: Path, *, with_machine: bool
) -> None:
    file, say = tmp_path / "order", left.kernel.run
    say("%bg_group one --width 1\nrows = [1, 2]")
    say("%%background --shell --group one holds\nexec sleep 600")
    left.await_state("holds", TaskState.RUNNING)
    until(lambda: left.store.processes.live_of(1)[0].pid, 30, "its process is recorded")
    say(f"%%background --shell --group one second\n{SAYS.format(name='second', file=file)}")
    say(f"%%background --process --group one\n{SAYS_IN_PYTHON.format(file=str(file))}")
    say(
        "%%background --shell --group one --priority 5 first\n"
        f"{SAYS.format(name='first', file=file)}"
    )
    say("%%background --shell --after second after\necho in the end")
    say("%%background --shell --in 1s late\necho later")
    say("%%background --shell --cpus 1 --group one share\ntrue")
    say("%%background --shell --after holds lost\ntrue")
    say("%%background --thread --group one thread\n1")
    assert {left.tasks()[name].state for name in ("second", "after", "lost", "thread")} == {
        TaskState.PENDING
    }
    assert left.kept()
    for part in left.state_dir.glob("tasks.db*"):
        assert SECRET.encode() not in part.read_bytes()

    left.lose(with_machine=with_machine)
    left.look()
    for name in ("share", "after", "late"):
        left.await_state(name, TaskState.COMPLETED)
    tasks = left.tasks()
    assert file.read_text().splitlines() == [
        *(f"first begins {SECRET}", "first ends", f"second begins {SECRET}", "second ends"),
        *(f"python begins {SECRET} [1, 2]", "python ends"),
    ]
    assert tasks["holds"].state is TaskState.INTERRUPTED
    assert tasks["thread"].state is TaskState.INTERRUPTED
    assert tasks["thread"].reason == ("machine rebooted" if with_machine else "kernel died")
    assert tasks["lost"].state is TaskState.CANCELLED
    assert tasks["lost"].reason == "task 1 (holds) was interrupted"
    python = tasks[""]
    result = left.store.results.get(python.key)
    assert result is not None
    assert result.text == "[1, 2]"
    assert SECRET not in run_command(left.state_dir, "show", python.id, "--json").stdout
    until(lambda: not left.kept(), 30, "no environment is left")


def test_what_was_about_to_start_is_interrupted(left: Left) -> None:
    left.kernel.run("%%background --shell runs\nexec sleep 600")
    left.await_state("runs", TaskState.RUNNING)
    (supervisor,) = left.store.supervisors.unfinished()
    os.kill(supervisor.pid, signal.SIGSTOP)  # or it would start the next one
    left.kernel.run("%%background --shell soon\ntrue")
    left.kernel.run("%%background --shell --after soon then\ntrue")
    left.lose(with_machine=False)
    assert "interrupted" in left.look()
    soon = left.await_state("soon", TaskState.INTERRUPTED)
    assert soon.reason == "kernel died"
    assert left.await_state("then", TaskState.CANCELLED).reason == "task 2 (soon) was interrupted"
    until(lambda: not left.kept(), 30, "no environment is left")


def test_a_waiting_task_without_its_kernel_is_cancelled_by_name(left: Left) -> None:
    left.kernel.run("%%background --shell --in 1h later\ntrue")
    assert left.kept()
    left.lose(with_machine=True)
    left.look()
    (later,) = left.tasks().values()
    assert later.state is TaskState.PENDING
    run_command(left.state_dir, "cancel", later.id, "--yes")
    assert left.await_state("later", TaskState.CANCELLED).reason == "cancelled"
    until(lambda: not left.kept(), 30, "no environment is left")
