"""A process is not mistaken for another, nor a dead session for one that is alive."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocks import Clock, begin
from kernels import NotebookKernel, until
from programs import run_command, run_python

from ipytaskpersist.base.process_identity import (
    ProcessIdentity,
    boot_id,
    process_start,
)
from ipytaskpersist.base.records import SessionRecord, TaskState
from ipytaskpersist.runners.liveness import SILENCE_S, Watch, find_dead, find_dead_supervisors
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

OWN = ProcessIdentity.own()


@contextmanager
def a_child(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until the block is left, unless it is ended before."""
    arguments = command or (sys.executable, "-c", "input()")
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def identity_of(child: subprocess.Popen[bytes]) -> ProcessIdentity:
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    return identity


def of_an_ended_process() -> ProcessIdentity:
    with a_child() as child:
        return identity_of(child)


# Processes.


def test_this_process_is_alive() -> None:
    assert OWN.is_alive
    assert OWN.is_local
    assert ProcessIdentity.of(OWN.pid) == OWN


def test_a_child_is_alive_until_it_ends() -> None:
    with a_child() as child:
        identity = identity_of(child)
        assert identity.is_alive
        assert identity != OWN
        child.kill()
        child.wait(30)
        assert not identity.is_alive
        assert ProcessIdentity.of(child.pid) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
def test_a_stopped_process_is_alive() -> None:
    """A kernel that was suspended goes on some day."""
    with a_child() as child:
        identity = identity_of(child)
        child.send_signal(signal.SIGSTOP)
        assert identity.is_alive


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_zombie_is_not_alive() -> None:
    """It has ended; only its parent has not asked yet."""
    with a_child() as child:
        identity = identity_of(child)
        child.kill()
        stat = Path(f"/proc/{child.pid}/stat")
        until(lambda: b") Z " in stat.read_bytes(), message="the child is a zombie")
        assert not identity.is_alive
        assert ProcessIdentity.of(child.pid) is None


def test_a_later_process_with_the_same_pid_is_another() -> None:
    assert not replace(OWN, start="1").is_alive
    assert replace(OWN, start="").may_be_alive, "nothing tells it from another"


def test_a_process_of_another_boot_is_not_alive() -> None:
    assert not replace(OWN, boot_id="00000000-0000-0000-0000-000000000000").is_alive


def test_a_pid_that_nobody_has_is_nobody() -> None:
    assert process_start(2**30) is None
    assert ProcessIdentity.of(2**30) is None


LOOK = """
import sys
from ipytaskpersist.base.process_identity import boot_id, process_start
print(process_start(int(sys.argv[1])), boot_id())
"""


def test_two_processes_say_the_same_of_a_third(state_dir: Path) -> None:
    with a_child() as child:
        mine = f"{process_start(child.pid)} {boot_id()}\n"
        assert run_python(LOOK, state_dir, str(child.pid)).stdout == mine


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_name_of_a_program_cannot_pass_for_its_state(tmp_path: Path) -> None:
    """The line in /proc has the name in the middle, in parentheses, whatever is in it."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    named = tmp_path / "x) Z 1 2 (y"
    named.symlink_to(sleep)
    with a_child(str(named), "60") as child:
        with a_child(sleep, "60") as neighbour:
            start = until(lambda: process_start(child.pid))
            assert int(start) <= int(process_start(neighbour.pid) or 0)
        assert identity_of(child).is_alive


# Sessions.


def silent_for(store: TaskStore, session: SessionRecord, seconds: float) -> None:
    store.database.execute(
        "UPDATE sessions SET heartbeat_at = ? WHERE id = ?", (time.time() - seconds, session.id)
    )


def dead(store: TaskStore, except_session: str = "", watch: Watch | None = None) -> dict[str, str]:
    found = find_dead(store, except_session=except_session, watch=watch)
    return {death.owner.id: death.reason for death in found}


def test_a_session_whose_process_runs_is_alive(store: TaskStore) -> None:
    session = begin(store, OWN)
    silent_for(store, session, 10 * SILENCE_S)
    assert dead(store) == {}


@pytest.mark.parametrize(
    ("front_end", "reason"),
    [("kernel", "kernel died"), ("terminal", "IPython died"), ("program", "process died")],
)
@pytest.mark.parametrize("tasks", [0, 2])
def test_a_session_whose_process_has_ended_is_dead(
    store: TaskStore, front_end: str, reason: str, tasks: int
) -> None:
    session = begin(store, of_an_ended_process(), front_end, tasks)
    assert dead(store) == {session.id: reason}


def test_a_session_of_another_boot_ended_with_it(store: TaskStore) -> None:
    session = begin(store, replace(OWN, boot_id="00000000-0000-0000-0000-000000000000"))
    assert dead(store) == {session.id: "machine rebooted"}


ELSEWHERE = {
    "another host": replace(OWN, host="other", boot_id="of-other", pid=1),
    "another host from before namespaces were recorded": replace(
        OWN, host="other", boot_id="of-other", pid=1, namespace=None
    ),
    "another container": replace(OWN, namespace=4242, pid=1),
    "another container with another name": replace(OWN, host="other", namespace=4242, pid=1),
}


@pytest.mark.parametrize("process", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_session_that_cannot_be_seen_is_judged_by_whether_its_heartbeat_changes(
    store: TaskStore, process: ProcessIdentity
) -> None:
    """Whatever runs here under its pid, and whatever its clock says."""
    clock = Clock()
    watch = clock.watch()
    lively, silent = begin(store, process), begin(store, process)
    for behind_s in (10 * SILENCE_S, -150):
        silent_for(store, lively, behind_s)
        silent_for(store, silent, behind_s)
        assert dead(store, watch=watch) == {}, "a first look declares nobody dead"
        clock.now += SILENCE_S - 1
        assert dead(store, watch=watch) == {}
    clock.now += 1
    store.sessions.heartbeat(lively.id)
    found = dead(store, watch=watch)
    assert found.keys() == {silent.id}
    assert found[silent.id].startswith(f"no sign of life from {process.host} since ")
    assert dead(store) == {}, "who has not watched knows nothing"


def test_a_session_that_was_silent_while_it_had_no_task_is_not_dead_when_it_begins_one(
    store: TaskStore,
) -> None:
    clock = Clock()
    watch = clock.watch()
    session = begin(store, ELSEWHERE["another container"], tasks=1)
    assert dead(store, watch=watch) == {}
    clock.now += 10 * SILENCE_S
    store.tasks.insert(NewTask(session.notebook_key, session.id, "", "python", "thread", "1"))
    assert dead(store, watch=watch) == {}


def test_a_supervisor_without_tasks_may_be_silent(store: TaskStore) -> None:
    clock = Clock()
    watch = clock.watch()
    session = begin(store, ELSEWHERE["another container"], tasks=0)
    store.supervisors.begin(session.id, ELSEWHERE["another container"])
    for _look in range(3):
        assert find_dead_supervisors(store, watch) == []
        clock.now += 10 * SILENCE_S


def test_a_session_in_a_container_of_this_name_from_before_the_last_boot_is_gone(
    store: TaskStore,
) -> None:
    process = replace(OWN, boot_id="00000000-0000-0000-0000-000000000000", namespace=4242)
    session = begin(store, process)
    assert dead(store) == {session.id: "machine rebooted"}


def test_a_machine_that_was_given_another_name_is_the_same(store: TaskStore) -> None:
    begin(store, replace(OWN, host="its-name-before"))
    gone = begin(store, replace(of_an_ended_process(), host="its-name-before"))
    assert dead(store) == {gone.id: "kernel died"}


def test_a_session_on_another_host_without_tasks_may_be_silent(store: TaskStore) -> None:
    """Only a session that runs tasks sends heartbeats."""
    session = begin(store, replace(OWN, host="other", namespace=4242), tasks=0)
    silent_for(store, session, 10 * SILENCE_S)
    assert dead(store) == {}


def test_a_session_does_not_judge_itself(store: TaskStore) -> None:
    session = begin(store, of_an_ended_process())
    assert dead(store, except_session=session.id) == {}


def test_what_a_session_said_of_its_end_is_believed(store: TaskStore) -> None:
    """It ended in order, and had no time to say so of its tasks."""
    session = begin(store, OWN)
    store.sessions.end(session.id, "kernel restarted")
    finished = begin(store, OWN, tasks=0)
    store.sessions.end(finished.id, "kernel shut down")
    assert dead(store) == {session.id: "kernel restarted"}


def test_asking_from_any_process_says_what_became_of_dead_sessions(
    store: TaskStore, state_dir: Path
) -> None:
    gone, alive = begin(store, of_an_ended_process()), begin(store, OWN)
    answer = run_command(state_dir, "list", "--all", "--json")
    states = {
        task["session"]: (task["state"], task["reason"])
        for task in json.loads(answer.stdout)["tasks"]
    }
    assert states == {gone.id: ("interrupted", "kernel died"), alive.id: ("running", None)}
    ended = store.sessions.get(gone.id)
    assert ended is not None
    assert ended.end_reason == "kernel died"
    assert ended.ended_at == ended.heartbeat_at
    still = store.sessions.get(alive.id)
    assert still is not None
    assert still.ended_at is None


# Kernels.

TELL = """
import json
from ipytaskpersist.session.notebook_identity import session_identity
identity = session_identity(get_ipython())
print(json.dumps([identity.id, identity.front_end, identity.path, identity.has_path,
                  identity.kernel_uuid, identity.process.pid]))
"""

MakeKernel = Callable[..., NotebookKernel]


def told(kernel: NotebookKernel) -> dict[str, Any]:
    names = ("id", "front_end", "path", "has_path", "kernel_uuid", "pid")
    return dict(zip(names, json.loads(kernel.run(TELL).stream("stdout")), strict=True))


def uuid_in(kernel: NotebookKernel) -> str:
    return kernel.connection_file.stem.removeprefix("kernel-")


def test_a_kernel_of_a_server_knows_its_notebook_and_keeps_its_uuid_through_restarts(
    make_kernel: MakeKernel,
) -> None:
    kernel = make_kernel(load=False, env={"JPY_SESSION_NAME": "/home/me/a.ipynb"})
    before = told(kernel)
    assert before["front_end"] == "kernel"
    assert (before["path"], before["has_path"]) == ("/home/me/a.ipynb", True)
    assert before["kernel_uuid"] == uuid_in(kernel)
    assert before["pid"] == kernel.pid
    kernel.restart()
    after = told(kernel)
    assert after["kernel_uuid"] == before["kernel_uuid"]
    assert after["path"] == before["path"]
    assert after["pid"] == kernel.pid
    assert after["id"] != before["id"]


def test_a_kernel_without_a_path_stands_in_its_folder_for_itself_alone(
    make_kernel: MakeKernel,
) -> None:
    kernel = make_kernel(load=False)
    identity = told(kernel)
    assert (identity["path"], identity["has_path"]) == (str(kernel.cwd), False)
    assert identity["kernel_uuid"] == uuid_in(kernel)


VS_CODE = "__vsc_ipynb_file__ = '/code.ipynb'"
JUPYTER = {"JPY_SESSION_NAME": "/jupyter.ipynb"}
NAMED = {"IPYTASKPERSIST_NOTEBOOK": "/named.ipynb"}


@pytest.mark.parametrize(
    ("setup", "env", "path"),
    [
        (VS_CODE, {}, "/code.ipynb"),
        (VS_CODE, JUPYTER, "/code.ipynb"),
        (VS_CODE, JUPYTER | NAMED, "/named.ipynb"),
        ("get_ipython().config.BackgroundTasks.notebook = '/trait.ipynb'", NAMED, "/trait.ipynb"),
    ],
)
def test_the_most_deliberate_name_of_the_notebook_counts(
    make_kernel: MakeKernel, setup: str, env: dict[str, str], path: str
) -> None:
    """The trait, then the environment variable, then VS Code, then Jupyter."""
    kernel = make_kernel(load=False, env=env)
    kernel.run(f"{setup}\n%load_ext ipytaskpersist\n%background 1")
    listed = json.loads(kernel.run("%bg_list --json").stream("stdout"))
    assert [task["notebook"] for task in listed["tasks"]] == [path]


def test_tasks_of_a_killed_kernel_are_interrupted_and_their_output_is_there(
    make_kernel: MakeKernel,
) -> None:
    kernel = make_kernel()
    kernel.run("%%background doomed\nimport time\nprint('begun')\nwhile True: time.sleep(0.01)")
    until(lambda: "begun" in kernel.run("%bg_output").text)
    kernel.kill()
    kernel.revive()
    greeting = kernel.run("%load_ext ipytaskpersist").text
    assert "While you were away: 1 task was interrupted." in greeting
    (task,) = json.loads(kernel.run("%bg_list --json").stream("stdout"))["tasks"]
    assert (task["state"], task["reason"]) == (TaskState.INTERRUPTED, "kernel died")
    assert kernel.run("%bg_output doomed").text == "begun\n"


def test_sessions_that_begin_alike_are_told_apart_by_more_of_their_ids(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path
) -> None:
    """Their tasks have ids of their own, and what is shown of a session is enough to name it."""
    first, second = "c0ffee00-1aaa", "c0ffee00-1bbb"
    kernels = []
    for session_id in (first, second):
        kernel = make_kernel(notebook=tmp_path / f"{session_id}.ipynb", load=False)
        kernel.run(f"get_ipython().kernel.session.session = {session_id!r}")
        kernel.run("%load_ext ipytaskpersist")
        kernels.append(kernel)
        for flag in ("", "--process", "--shell"):
            kernel.run(f"%%background {flag}\n{'echo 7' if 'shell' in flag else 'print(7)'}")
        assert "7" in kernel.run("%bg_wait 1 2 3\n%bg_output 3").text
    listed = json.loads(run_command(state_dir, "list", "--all", "--json").stdout)["tasks"]
    beginnings = ("c0ffee00", "c0ffee00-1b")
    assert {task["id"] for task in listed} == {
        f"{each}-{n}" for each in beginnings for n in (1, 2, 3)
    }
    assert "thread of session c0ffee00-1b\n" in kernels[1].run("%bg_show 1").text
    assert "c0ffee00-1a " in kernels[0].run("%bg_sessions --all").text
    for verb in ("show", "list --session", "delete --yes --session"):
        told = kernels[0].run(f"%bg_{verb} c0ffee00", check=False).text
        assert "2 sessions' ids (c0ffee00-1a, c0ffee00-1b); type more of it" in told
        kernels[0].run(f"%bg_{verb} c0ffee00-1b")
    assert "no task 'c0ffee00-1b-1'" in kernels[0].run("%bg_show c0ffee00-1b-1", check=False).text
    assert "1, c0ffee00-1\n" in kernels[0].run("%bg_show c0ffee00-1").text
