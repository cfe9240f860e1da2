"""Tasks are cancelled, and told to have ended, where the system has no descriptors of processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import seccomp
from kernels import NotebookKernel, until
from shells import is_alive, read_pid

from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore

pytestmark = pytest.mark.skipif(
    not seccomp.IS_POSSIBLE, reason="the filter is written for Linux on x86_64"
)

MakeKernel = Callable[..., NotebookKernel]
NO_GRACE = "%config BackgroundTasks.cancel_grace_s = 0.2"


def listed(kernel: NotebookKernel) -> dict[str, dict[str, Any]]:
    tasks = json.loads(kernel.run("%bg_list --json").stream("stdout"))["tasks"]
    return {task["name"]: task for task in tasks}


def supervisors(store: TaskStore) -> list[psutil.Process]:
    """The supervisors that have not ended, as far as the store knows."""
    return [psutil.Process(each.pid) for each in store.supervisors.unfinished()]


def with_a_child_elsewhere(kernel: NotebookKernel, name: str) -> psutil.Process:
    """Launch a task whose child has left its process group and session. Returns the child."""
    file = kernel.cwd / f"{name}.pid"
    kernel.run(
        f"%%background --shell {name}\n"
        f"setsid sh -c 'echo $$ > {file}; exec sleep 100' &\necho ready\nwait"
    )
    return read_pid(file)


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM", "EINVAL", "EMFILE"])
def test_a_cancelled_task_ends_with_all_its_processes_and_no_other_does(
    make_kernel: MakeKernel, store: TaskStore, error: str
) -> None:
    kernel = make_kernel(run_by=seccomp.command(error))
    kernel.run("%%background --shell other\nexec sleep 100")
    child = with_a_child_elsewhere(kernel, "doomed")
    (supervisor,) = supervisors(store)
    kernel.run("%bg_cancel doomed --yes")
    kernel.run("%bg_wait doomed --timeout 20")
    tasks = listed(kernel)
    assert (tasks["doomed"]["state"], tasks["doomed"]["reason"]) == ("cancelled", "cancelled")
    assert tasks["other"]["state"] == "running"
    assert not is_alive(child)
    assert supervisors(store) == [supervisor]
    assert problems.recorded(store.directory) == []


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_what_a_dead_supervisor_has_left_is_ended(
    make_kernel: MakeKernel, store: TaskStore, error: str
) -> None:
    kernel = make_kernel(run_by=seccomp.command(error))
    child = with_a_child_elsewhere(kernel, "orphan")
    (supervisor,) = supervisors(store)
    supervisor.kill()
    until(lambda: not is_alive(supervisor))
    task = until(lambda: (found := listed(kernel)["orphan"])["state"] != "running" and found)
    assert (task["state"], task["reason"]) == ("interrupted", "supervisor died")
    assert not is_alive(child)


def test_a_task_is_not_said_to_be_cancelled_while_a_process_of_it_runs_on(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """It may be another user's, by way of a program that is set to run as that one."""
    kernel = make_kernel(run_by=seccomp.command("EPERM", kill=True))
    kernel.run(NO_GRACE)
    kernel.run("%%background --shell other\nexec sleep 100")
    child = with_a_child_elsewhere(kernel, "stubborn")
    (supervisor,) = supervisors(store)
    kernel.run("%bg_cancel stubborn --yes")
    message = until(lambda: [each.message for each in problems.recorded(store.directory)])
    assert f"process {child.pid} (Operation not permitted)" in message[0]
    assert "counts as running until it has" in message[0]
    assert {name: task["state"] for name, task in listed(kernel).items()} == {
        "other": "running",
        "stubborn": "running",
    }
    child.kill()
    until(lambda: listed(kernel)["stubborn"]["state"] == "cancelled")
    assert listed(kernel)["other"]["state"] == "running"
    assert supervisors(store) == [supervisor]


def test_a_task_is_not_said_to_be_interrupted_while_a_process_of_it_runs_on(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = make_kernel(run_by=seccomp.command("EPERM", kill=True))
    child = with_a_child_elsewhere(kernel, "orphan")
    (supervisor,) = supervisors(store)
    supervisor.kill()
    until(lambda: not is_alive(supervisor))
    message = until(lambda: [each.message for each in problems.recorded(store.directory)])
    assert f"process {child.pid} (Operation not permitted)" in " ".join(message)
    assert listed(kernel)["orphan"]["state"] == "running"
    child.kill()
    until(lambda: listed(kernel)["orphan"]["state"] == "interrupted", timeout=60)


JUNK = """
import os, stat, struct
for descriptor in range(3, 64):
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        is_pipe and os.write(descriptor, struct.pack("<cI", b"?", 1) + b"x")
    except OSError:
        pass
"""


def test_a_task_that_sends_nonsense_does_not_end_its_supervisor(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    kernel.run("%%background --shell other\nexec sleep 100")
    (supervisor,) = until(lambda: supervisors(store))
    kernel.run(f"%%background --process nonsense\n{JUNK}")
    kernel.run("%bg_wait nonsense --timeout 30", check=False)
    tasks = listed(kernel)
    assert tasks["nonsense"]["state"] == "failed"
    assert tasks["other"]["state"] == "running"
    assert supervisors(store) == [supervisor]
    messages = [each.message for each in problems.recorded(store.directory)]
    assert any(f"task {tasks['nonsense']['id']}" in message for message in messages)
