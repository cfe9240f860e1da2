"""Tasks that run again and again: without their kernel, and after the death of their supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from programs import environment

from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection


@pytest.fixture
def command(state_dir: Path) -> Callable[..., str]:
    """Call a command as a terminal does, and return what it prints."""

    def call(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "ipytaskpersist", *words],
            env=environment(state_dir), capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    return call


def runs(store: TaskStore, name: str) -> list[TaskRecord]:
    """The runs of a task, the first one first."""
    return [task for task in store.tasks.select(Selection()) if task.name == name]


def test_what_is_said_about_a_schedule(
    make_kernel: Callable[..., NotebookKernel], store: TaskStore, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", env={"TZ": "Europe/Berlin"})

    def say(line: str) -> str:
        return kernel.run(line, check=False).text

    assert "--every needs a process" in say("%%background --thread --every 1d\n1")
    assert "--cron needs a process" in say("%%background --cron '0 22 * * *'\n1")
    assert "never comes" in say("%%background --shell --cron '0 22 30 2 *'\ntrue")
    assert store.tasks.select(Selection()) == []

    shown = say("%%background --shell --cron '0 22 * * *' nightly\ntrue")
    assert "cron 0 22 * * * (Europe/Berlin), next at" in shown
    assert "(Europe/Berlin), next at" in say("%bg_list")
    (nightly,) = runs(store, "nightly")
    known = json.loads(say("%bg_show nightly --json"))["schedule"]
    assert (known["cron"], known["zone"], known["missed"]) == ("0 22 * * *", "Europe/Berlin", "run")
    said = say("%bg_cancel nightly")
    assert f"task {nightly.label}: cancelled, and so its schedule ends (cron 0 22" in said

    # A Python task is given the same each time, and --at says when it is first.
    say("rows = [1, 2]")
    say("%%background --process --every 1d --at '2099-01-01T06:00' later\nrows")
    assert "every 1d, next at 1 Jan 2099, 05:00:00 UTC" in say("%bg_list")
    count = tmp_path / "count"
    say(
        "%%background --process --every 1s --missed skip adds\n"
        f"rows.append(len(rows)); open({str(count)!r}, 'a').write(str(rows)); input_ = rows"
    )
    until(lambda: len(runs(store, "adds")) >= 3, 30, "the third run waits")
    assert "every 1s, without what was missed" in say("%bg_show adds")
    say("rows = 'changed'")
    until(lambda: count.read_text().startswith("[1, 2, 2]" * 3), 30, "three runs")
    first, second, *_rest = runs(store, "adds")
    assert "due by the same schedule; cancel that first: %bg_cancel" in say(
        f"%bg_delete {first.number} --yes"
    )
    assert "deleted" in say(f"%bg_delete {second.number} --yes")
    again = say(f"%bg_rerun {first.number}")
    assert "every" not in again
    pending = Selection(states=[TaskState.PENDING])
    until(lambda: say("%bg_cancel --all") and not store.tasks.select(pending), 30, "no run waits")

    # The cancellation of one run leaves the others.
    kernel.run(
        "import ipytaskpersist as bg\n"
        "slow = bg.background('exec sleep 600', 'slow', shell=True, every='1h')"
    )
    until(lambda: len(runs(store, "slow")) == 2, 30, "the next run waits")
    said = say("%bg_cancel slow")
    running, waiting = runs(store, "slow")
    assert said.startswith(f"task {running.label}: ")
    assert f"task {waiting.label} is still due at" in said
    assert f"%bg_cancel {waiting.number} ends the schedule" in said
    assert f"task {waiting.label}: cancelled, and so its schedule ends" in say("%bg_cancel slow")
    until(lambda: not [*store.directory.environments.iterdir()], 30, "no environment is left")


def test_runs_go_on_without_kernel_and_after_a_kill_of_the_supervisor_each_once(
    make_kernel: Callable[..., NotebookKernel],
    store: TaskStore,
    command: Callable[..., str],
    tmp_path: Path,
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", env={"NIGHT": "from the kernel"})
    file = tmp_path / "runs"
    kernel.run(f"%%background --shell --every 1s tick\necho ${MARK} $NIGHT >> {file}")
    kernel.kill()

    def lines() -> list[str]:
        return file.read_text().splitlines() if file.exists() else []

    seen = len(lines())
    until(lambda: len(lines()) >= seen + 2, 30, "two runs without the kernel")
    (supervisor,) = store.supervisors.unfinished()
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: ProcessIdentity.of(supervisor.pid) is None, 30, "the death of the supervisor")
    seen = len(lines())
    assert "every 1s" in command("list", "--all")
    until(lambda: len(lines()) >= seen + 2, 30, "two runs with another supervisor")
    (other,) = store.supervisors.unfinished()
    assert other.session == supervisor.session

    def has_been_cancelled() -> bool:
        """Whether no run waits. One may begin just before it is cancelled, and leaves another."""
        waiting = store.tasks.select(Selection(states=[TaskState.PENDING]))
        for task in waiting:
            command("cancel", task.id, "--yes")
        return not waiting

    until(has_been_cancelled, 60, "the end of the schedule")
    until(lambda: all(task.state.is_final for task in runs(store, "tick")), 30, "the end")
    ticks = runs(store, "tick")
    assert [task.number for task in ticks] == [*range(1, len(ticks) + 1)]
    assert ticks[-1].state is TaskState.CANCELLED
    begun = [task for task in ticks if task.started_at is not None]
    ran = [line for line in lines() if line.endswith(" from the kernel")]
    # The one that was killed with its supervisor may have been too early to say so.
    assert {*ran} <= {f"{task.id} from the kernel" for task in begun}
    assert len(ran) == len({*ran}) == len(lines()) >= len(begun) - 1
    due = [task.schedule.due_at for task in ticks if task.schedule is not None]
    assert len(due) == len({*due}) == len(ticks)
    until(lambda: not [*store.directory.environments.iterdir()], 30, "no environment is left")
