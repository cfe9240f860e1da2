"""Containers that share a store: none takes the other's living tasks for dead, or signals them.

They are PID namespaces, side by side, or within that of the tests.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import containers
import psutil
import pytest
from clocks import Clock, begin
from kernels import NotebookKernel, until
from layout import HELPERS
from programs import environment, run_command

from ipytaskpersist.base.process_identity import ProcessIdentity, pid_namespace
from ipytaskpersist.base.records import Options, TaskRecord, TaskState
from ipytaskpersist.runners.liveness import SILENCE_S, Watch
from ipytaskpersist.runners.reconciling import reconcile
from ipytaskpersist.store import problems
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

pytestmark = pytest.mark.skipif(
    bool(containers.why_not()), reason=f"no namespace can be made: {containers.why_not()}"
)

MakeKernel = Callable[..., NotebookKernel]
NOTEBOOK = "/shared/analysis.ipynb"
RENAMED = "another-host"


def contained(make_kernel: MakeKernel, hostname: str = "", **options: Any) -> NotebookKernel:
    """A kernel in a container, of the shared notebook."""
    return make_kernel(run_by=containers.command(hostname=hostname), notebook=NOTEBOOK, **options)


def launch(kernel: NotebookKernel) -> Path:
    """Launch a task in a thread and one in a process, which end when the file is there."""
    gate = kernel.cwd / "gate"
    kernel.run(
        f"%%background thread\nimport pathlib, time\nprint('begun', flush=True)\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.05)\n"
        "print('after')\n40 + 2"
    )
    kernel.run(
        f"%%background --shell process\necho begun; "
        f"until [ -e {gate} ]; do sleep 0.1; done; echo after; exit 3"
    )
    until(lambda: "begun" in kernel.run("%bg_output process").text)
    until(lambda: "begun" in kernel.run("%bg_output thread").text)
    return gate


def tasks(store: TaskStore) -> dict[str, TaskRecord]:
    """All tasks, by their names."""
    return {task.name: task for task in every_task(store)}


def states(store: TaskStore) -> dict[str, TaskState]:
    return {name: task.state for name, task in tasks(store).items()}


def histories(store: TaskStore) -> dict[str, list[str]]:
    return {
        name: [event.state.value for event in store.tasks.history(task.key)]
        for name, task in tasks(store).items()
    }


RUNNING = {"thread": TaskState.RUNNING, "process": TaskState.RUNNING}


def assert_outcomes(kernel: NotebookKernel, store: TaskStore) -> None:
    """Both tasks have ended as they do alone, with their values, and all that they printed."""
    kernel.run("%bg_wait thread process --timeout 30", check=False)
    assert states(store)["thread"] is TaskState.COMPLETED
    until(lambda: states(store)["process"] is TaskState.FAILED)
    found = tasks(store)
    assert (found["thread"].exit_code, found["process"].exit_code) == (0, 3)
    assert found["process"].reason == "exit status 3"
    assert kernel.run("%bg_result thread").text.strip() == "42"
    for name in RUNNING:
        assert kernel.run(f"%bg_output {name}").stream("stdout") == "begun\nafter\n"


READING = (
    "list --all", "list --json", "sessions --all", "stats", "doctor", "search begun",
    "show {thread}", "show {process}", "output {thread}", "output {process}",
    "wait {thread} {process} --timeout 0.5", "resume --all",
)  # fmt: skip
TYPED = ("list --all", "doctor", "resume --all")
"""Those that are given in a terminal as well: the verbs are the same on each surface."""


@pytest.mark.parametrize(
    ("owned_by", "readers"),
    [("", ["sibling", "sibling of another name", "host"]), (RENAMED, ["host"])],
    ids=["of one name", "renamed"],
)
def test_what_one_container_runs_no_other_takes_for_dead(
    make_kernel: MakeKernel, store: TaskStore, state_dir: Path, owned_by: str, readers: list[str]
) -> None:
    """With every verb that reads, and those that run again what is dead."""
    owner = contained(make_kernel, owned_by)
    gate = launch(owner)
    ids = {name: task.id for name, task in tasks(store).items()}
    for reader in readers:
        if reader == "host":
            other = make_kernel(load=False, notebook=NOTEBOOK)
        else:
            other = contained(make_kernel, RENAMED if "name" in reader else "", load=False)
        other.run(
            "get_ipython().config.BackgroundTasks.auto_resume = True\n%load_ext ipytaskpersist"
        )
        for verb in READING:
            other.run(f"%bg_{verb.format(**ids)}", check=False)
        for verb in TYPED if reader == "host" else ():
            run_command(state_dir, *verb.split(), notebook=NOTEBOOK)
        assert len(store.tasks.keys(Selection())) == 2, f"a {reader} ran none again"
        assert states(store) == RUNNING
        assert set(map(tuple, histories(store).values())) == {("pending", "running")}
    gate.touch()
    assert_outcomes(owner, store)


def test_what_survives_what_is_the_same_in_containers_that_share_a_store(
    store: TaskStore, state_dir: Path
) -> None:
    """Two side by side go through it at once, one of them within another, and the host looks on."""
    program = HELPERS / "survival_in_container.py"
    nested = containers.command(hostname="outer") + containers.command()
    with ExitStack() as ended:
        scenarios = []
        for name, prefix in (("first", containers.command()), ("second", nested)):
            scenario = subprocess.Popen(
                [*prefix, sys.executable, str(program), str(state_dir), name],
                env=environment(state_dir), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            ended.callback(scenario.kill)
            scenarios.append(scenario)
        watch = Watch()
        while any(each.poll() is None for each in scenarios):
            reconcile(store, "", watch)
            run_command(state_dir, "list", "--all")
        for scenario in scenarios:
            out, errors = scenario.communicate(timeout=60)
            assert out == "all as promised\n", errors[-5000:]
    assert not (state_dir / "problems.jsonl").exists()
    declared = [task.name for task in every_task(store) if task.declared_dead is not None]
    assert declared == [], "none was taken for dead by another"


def every_task(store: TaskStore) -> list[TaskRecord]:
    keys = [
        key for each in store.sessions.notebooks() for key in store.tasks.keys(Selection(each.key))
    ]
    return store.tasks.of_keys(keys)


def test_a_container_sees_by_their_pids_which_of_its_own_are_dead(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = contained(make_kernel)
    kernel.run("%%background --shell orphan\necho ready; exec sleep 100")
    until(lambda: "ready" in kernel.run("%bg_output orphan").text)
    (process,) = store.supervisors.unfinished()
    task = store.processes.get(tasks(store)["orphan"].key)
    assert task is not None
    assert task.pid_namespace == process.pid_namespace != pid_namespace()
    kernel.run(f"!kill -9 {process.pid}")
    until(lambda: kernel.run("%bg_list") and states(store)["orphan"] is not TaskState.RUNNING)
    orphan = tasks(store)["orphan"]
    assert (orphan.state, orphan.reason) == (TaskState.INTERRUPTED, "supervisor died")
    assert orphan.declared_dead == "proven"
    assert "No such process" in kernel.run(f"!kill -0 {task.pid}").text


def test_no_process_is_ended_that_has_the_pid_of_another_containers(store: TaskStore) -> None:
    """Nor any that was started for a task of it, though both are in sight of the host."""
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as bystander:
        try:
            found = ProcessIdentity.of(bystander.pid)
            assert found is not None
            session = begin(store, replace(found, namespace=4242), tasks=0)
            supervisor = store.supervisors.begin(session.id, replace(found, namespace=4242))
            for _round in range(2):
                store.tasks.insert(
                    NewTask(session.notebook_key, session.id, "", "shell", "process", "sleep"),
                    lambda connection, key, _id: NewProcess(["sleep"], "/", 1.0, Options()).insert(
                        connection, key
                    ),
                )
            for process in store.processes.claim(session.id, supervisor.key, 1.0, 9):
                store.database.execute(
                    "UPDATE processes SET pid = ?, process_start = ?, pid_namespace = 4242",
                    (bystander.pid, found.start),
                )
                assert process.pid is None
            clock = Clock()
            watch = clock.watch()
            for _look in range(3):
                reconcile(store, "", watch)
                clock.now += SILENCE_S
            assert set(states(store).values()) == {TaskState.INTERRUPTED}
            assert bystander.poll() is None
            # The supervisor was of this very namespace and is dead: then the processes are asked.
            store.database.execute(
                "UPDATE supervisors SET pid = 0, pid_namespace = ?, ended_at = NULL, "
                "end_reason = NULL",
                (pid_namespace(),),
            )
            store.database.execute(
                "UPDATE tasks SET state = 'running', ended_at = NULL, declared_dead = NULL"
            )
            reconcile(store, "", watch)
            assert {task.reason for task in tasks(store).values()} == {"supervisor died"}
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_container_that_was_killed_is_found_dead_when_it_has_been_silent_for_long_enough(
    make_kernel: MakeKernel, store: TaskStore, state_dir: Path
) -> None:
    owner = contained(make_kernel)
    launch(owner)
    clock = Clock()
    watch = clock.watch()
    reconcile(store, "", watch)
    owner.kill()
    reconcile(store, "", watch)
    clock.now += SILENCE_S - 1
    reconcile(store, "", watch)
    assert states(store) == RUNNING
    clock.now += 1
    reconcile(store, "", watch)
    assert set(states(store).values()) == {TaskState.INTERRUPTED}
    for task in tasks(store).values():
        assert str(task.reason).startswith(f"no sign of life from {socket.gethostname()} since ")
        assert task.declared_dead == "presumed"

    # It is dead, but nobody has seen that: it runs again when it is named, and not by itself.
    said = run_command(state_dir, "doctor").stdout
    assert "not certain" not in said
    kernel = make_kernel(load=False, notebook=NOTEBOOK)
    kernel.run("get_ipython().config.BackgroundTasks.auto_resume = True\n%load_ext ipytaskpersist")
    said = kernel.run("%bg_resume --all").text
    assert "left out" in said
    assert "%bg_resume 1 2" in said
    assert len(tasks(store)) == 2
    kernel.run("%bg_resume process")
    assert len(store.tasks.keys(Selection())) == 3


def test_one_look_says_that_it_is_not_certain(
    make_kernel: MakeKernel, store: TaskStore, state_dir: Path
) -> None:
    launch(contained(make_kernel))
    said = run_command(state_dir, "doctor").stdout
    assert said.count("it is not certain whether it is alive") == 2


def bury(store: TaskStore) -> None:
    """Have the living be taken for dead: by one whose clock runs ahead of their heartbeats."""

    def are_buried() -> bool:
        clock = Clock()
        watch = clock.watch()
        reconcile(store, "", watch)
        clock.now += SILENCE_S
        reconcile(store, "", watch)
        return any("interrupted" in history for history in histories(store).values())

    until(are_buried)


def test_a_false_death_is_repaired_by_the_owner(
    make_kernel: MakeKernel, store: TaskStore, state_dir: Path
) -> None:
    owner = contained(make_kernel)
    gate = launch(owner)
    owner.run("%%background --shell cancelled\nsleep 100 & echo ready; wait")
    until(lambda: states(store).get("cancelled") is TaskState.RUNNING)
    bury(store)
    until(lambda: set(states(store).values()) == {TaskState.RUNNING})
    assert {tuple(history) for history in histories(store).values()} == {
        ("pending", "running", "interrupted", "running")
    }
    assert all(each.ended_at is None for each in store.supervisors.unfinished())
    assert [each.ended_at for each in store.sessions.select(None)] == [None]
    messages = [each.message for each in problems.recorded(store.directory)]
    assert any("by another process, which had seen no sign of life" in each for each in messages)
    assert any("supervisor: " in each for each in messages)

    id_ = tasks(store)["cancelled"].id
    run_command(state_dir, "cancel", id_, "--yes", notebook=NOTEBOOK)
    until(lambda: states(store)["cancelled"] is TaskState.CANCELLED)
    gate.touch()
    assert_outcomes(owner, store)
    for name in RUNNING:
        (back,) = [
            event
            for event in store.tasks.history(tasks(store)[name].key)
            if event.reason and event.state is TaskState.RUNNING
        ]
        assert back.reason == "its owner was alive all the same"


def test_an_outcome_that_comes_before_the_false_death_was_noticed_is_kept(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """The owner looks only when its tasks end: it was stopped while it was taken for dead."""
    owner = contained(make_kernel)
    gate = launch(owner)
    family = psutil.Process(owner.pid).children(recursive=True)
    members = [each for each in family if each.name().startswith(("python", "ipython"))]
    for each in members:
        each.suspend()
    try:
        bury(store)
        assert set(states(store).values()) == {TaskState.INTERRUPTED}
        gate.touch()
    finally:
        for each in members:
            each.resume()
    assert_outcomes(owner, store)


HELD_S, BOUND_S = 8, 3


def test_a_call_that_holds_the_interpreter_for_too_long_loses_nothing(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    owner = contained(make_kernel)
    owner.run("import ipytaskpersist.output.recorder as recorder; recorder.HEARTBEAT_S = 0.2")
    owner.start(
        "%%background holder\nimport ctypes, time\nprint('before')\ntime.sleep(2)\n"
        f"ctypes.PyDLL(None).sleep({HELD_S})\nprint('after')\n40 + 2"
    )
    until(lambda: states(store).get("holder") is TaskState.RUNNING)
    watch = Watch(silence_s=BOUND_S)

    def is_buried() -> bool:
        reconcile(store, "", watch)
        return states(store)["holder"] is TaskState.INTERRUPTED

    until(is_buried)
    owner.run("%bg_wait holder --timeout 30", check=False)
    until(lambda: states(store)["holder"] is TaskState.COMPLETED)
    assert histories(store)["holder"] == [
        "pending", "running", "interrupted", "running", "completed",
    ]  # fmt: skip
    assert owner.run("%bg_result holder").text.strip() == "42"
    assert owner.run("%bg_output holder").stream("stdout") == "before\nafter\n"


def test_another_clock_does_not_matter(make_kernel: MakeKernel, store: TaskStore) -> None:
    """That of the container is 150 s, and an hour, behind ours, which is the same as ours ahead."""
    owner = contained(make_kernel, RENAMED)
    for behind_s in (150, 3600):
        owner.run(f"import time; real = time.time; time.time = lambda: real() - {behind_s}")
        owner.run("%%background late\nimport time\nwhile True: time.sleep(0.05)")
        until(lambda: states(store).get("late") is TaskState.RUNNING)
        for _look in range(3):
            reconcile(store, "", Watch())
        assert states(store)["late"] is TaskState.RUNNING
        owner.run(
            "time.time = real\n%bg_cancel late --yes\n%bg_wait late\n%bg_delete late --yes",
            check=False,
        )


def test_where_proc_is_that_of_the_host_a_task_is_cancelled_and_nobody_else(
    state_dir: Path, store: TaskStore
) -> None:
    """What /proc shows of a pid is then another process than the one that a signal would reach."""
    program = (
        "import ipytaskpersist as bg, time\n"
        "task = bg.background('echo ready; trap \"\" TERM; sleep 100', shell=True, name='doomed')\n"
        "while 'ready' not in task.stdout: time.sleep(0.05)\n"
        "task.cancel()\n"
        "print(task.wait(30), task.state, task.reason)\n"
    )
    with subprocess.Popen(["sleep", "100"]) as bystander:
        try:
            done = subprocess.run(
                [*containers.command(mount_proc=False), sys.executable, "-c", program],
                env=environment(state_dir), capture_output=True, text=True, timeout=90, check=False,
            )  # fmt: skip
            assert bystander.poll() is None
        finally:
            bystander.kill()
    assert done.stdout.split() == ["True", "cancelled", "cancelled"], done.stderr
