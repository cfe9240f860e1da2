"""Cancelling a task ends every process of it, and no other process on the machine."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from kernels import until
from programs import run_command, run_python
from shells import (
    ended,
    finish,
    is_alive,
    kill,
    own_session,
    pieces,
    process_of,
    read_pid,
    row,
    shell,
    store,
    stream,
    supervisor,
    with_argument,
)

from ipytaskpersist.api import Task
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.runners import process, starting
from ipytaskpersist.runners.liveness import SILENCE_S, Watch
from ipytaskpersist.runners.reconciling import reconcile
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import NewTask

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="process tasks need fork()")

WAIT = "while :; do sleep 0.05; done"
"""What a shell does while it waits for a signal: a trap is run when a command has ended."""
PROMPTLY_S = 4
"""Less than the default grace, so that only SIGTERM can have done it."""


@pytest.fixture
def session(state_dir: Path) -> Iterator[BackgroundTasks]:
    """A session of the test's own."""
    with own_session(state_dir) as own:
        yield own


@pytest.fixture
def unattended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session does not notice by itself that its supervisor has died."""
    monkeypatch.setattr(process, "REPLACED_AT_MOST", 0)


def running(source: str, **options: object) -> Task:
    """Launch a command that prints "ready" first, and wait until it has."""
    task = shell(source, **options)
    # Only the first piece: what comes after it may be more than fits into memory.
    until(
        lambda: next(iter(pieces(task, OutputKind.STDOUT)), b"").startswith(b"ready\n"),
        message=f"the beginning of: {source}",
    )
    return task


def cancelled(task: Task, timeout: float = PROMPTLY_S) -> Task:
    """Cancel a task and wait for its end."""
    assert task.cancel()
    return ended(task, timeout)


def assert_cancelled(task: Task, exit_code: int) -> None:
    assert (task.state, task.reason) == (TaskState.CANCELLED, "cancelled")
    assert task.exit_code == exit_code


# SIGTERM, and SIGKILL after the grace.


def test_a_cancelled_task_gets_sigterm(session: BackgroundTasks) -> None:
    assert_cancelled(cancelled(running("echo ready; exec sleep 60")), -signal.SIGTERM)


def test_sigterm_reaches_the_whole_process_group(session: BackgroundTasks, tmp_path: Path) -> None:
    task = running(
        f"""
        trap 'echo parent; exit' TERM
        for name in one two; do
            sh -c 'trap "echo '$name'; exit" TERM; echo >> began; {WAIT}' &
        done
        touch began
        while [ $(wc -l < began) -lt 2 ]; do sleep 0.02; done
        echo ready
        {WAIT}
        """,
        cwd=tmp_path,
    )
    cancelled(task)
    assert sorted(stream(task).split()) == [b"one", b"parent", b"ready", b"two"]


def test_sigterm_reaches_the_children_of_a_process_that_has_ended(
    session: BackgroundTasks, tmp_path: Path
) -> None:
    """As it reaches the whole pipeline of a shell that was not told to wait for it."""
    began = tmp_path / "began"
    task = running(
        f"sh -c 'trap \"echo told; exit\" TERM; touch {began}; {WAIT}' & echo ready; exit 3"
    )
    until(began.exists)
    until(lambda: ProcessIdentity.of(process_of(task).pid or 0) is None)
    assert_cancelled(cancelled(task), 3)
    assert task.stdout == "ready\ntold\n"


def test_a_task_may_clean_up_within_the_grace(session: BackgroundTasks) -> None:
    task = running(f"trap 'sleep 0.3; echo cleaned up; exit 3' TERM; echo ready; {WAIT}")
    assert_cancelled(cancelled(task), 3)
    assert task.stdout == "ready\ncleaned up\n"


def test_a_task_that_ignores_sigterm_is_killed_after_the_grace(session: BackgroundTasks) -> None:
    session.cancel_grace_s = 0.5
    task = running(f"trap '' TERM; echo ready; {WAIT}")
    began = time.monotonic()
    assert_cancelled(cancelled(task), -signal.SIGKILL)
    assert time.monotonic() - began >= 0.5


def test_the_grace_of_a_task_is_that_of_its_launch(session: BackgroundTasks) -> None:
    session.cancel_grace_s = 0
    task = running(f"trap '' TERM; echo ready; {WAIT}")
    session.cancel_grace_s = 60
    assert_cancelled(cancelled(task), -signal.SIGKILL)


def test_a_child_that_ignores_sigterm_is_killed_when_its_parent_has_ended(
    session: BackgroundTasks,
) -> None:
    session.cancel_grace_s = 0.5
    child = session.directory.root / "child"
    task = running(f"(trap '' TERM; sh -c 'echo $$ > \"{child}\"; {WAIT}') & echo ready; wait")
    process = read_pid(child)
    assert_cancelled(cancelled(task), -signal.SIGTERM)
    assert not is_alive(process)


def test_a_stopped_task_is_killed_after_the_grace(session: BackgroundTasks) -> None:
    session.cancel_grace_s = 0.3
    task = running("echo ready; kill -STOP $$; echo never")
    leader = psutil.Process(process_of(task).pid)
    until(lambda: leader.status() == psutil.STATUS_STOPPED)
    cancelled(task)
    assert task.state is TaskState.CANCELLED
    assert task.exit_code in {-signal.SIGTERM, -signal.SIGKILL}
    assert task.stdout == "ready\n"


def test_a_task_with_a_terminal_is_cancelled_like_any_other(session: BackgroundTasks) -> None:
    task = shell("echo ready; sleep 60 & sleep 60", pty=True)
    until(lambda: stream(task) == b"ready\r\n")
    assert_cancelled(cancelled(task), -signal.SIGTERM)


# Whole trees.

CHILDREN, GRANDCHILDREN = 10, 20
TREE = f"""
import os, signal, sys

LIFE_S = 120
READ, WRITE = os.pipe()

def stay():
    signal.alarm(LIFE_S)
    if "STUBBORN" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(WRITE, b".")
    while True:
        signal.pause()

def fork_and(work, *arguments):
    if not os.fork():
        try:
            work(*arguments)
        finally:
            os._exit(1)

def of_own_session():
    os.setsid()
    stay()

def of_own_group():
    os.setpgid(0, 0)
    stay()

def forked_twice():
    os.setsid()
    fork_and(stay)

WAYS = [of_own_session, stay, stay, of_own_group, stay, stay, forked_twice, stay, stay]

def child():
    for place in range({GRANDCHILDREN}):
        fork_and(WAYS[place % len(WAYS)])
    stay()

if "ALONE" in os.environ:
    stay()
for _ in range({CHILDREN}):
    fork_and(child)
for _ in range({CHILDREN} * ({GRANDCHILDREN} + 1)):
    os.read(READ, 1)
print("ready", flush=True)
stay()
"""


@contextmanager
def bystander(*arguments: str) -> Iterator[psutil.Process]:
    """A process with this command line that belongs to no task."""
    with subprocess.Popen(arguments, env={**os.environ, "ALONE": "1"}) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


@pytest.fixture
def tree(tmp_path: Path) -> list[str]:
    """A command that starts 210 processes, a third of which leave their process group."""
    program = tmp_path / "tree.py"
    program.write_text(TREE)
    return [sys.executable, str(program), f"marker-{uuid.uuid4().hex}"]


def assert_ends_alone(
    task: Task, tree: list[str], end: Callable[[], object], timeout: float = 20
) -> None:
    """The whole tree of a task ends, and neither another task nor another process does."""
    marker = tree[-1]
    other = running("echo ready; exec sleep 60")
    with bystander(*tree) as outsider:
        until(lambda: stream(task) == b"ready\n")
        until(lambda: len(with_argument(marker)) > CHILDREN * (GRANDCHILDREN + 1) + 1)
        end()
        ended(task, timeout)
        assert with_argument(marker) == [outsider]
        assert is_alive(outsider)
    assert other.state is TaskState.RUNNING


def test_a_whole_tree_of_processes_is_cancelled(session: BackgroundTasks, tree: list[str]) -> None:
    task = shell(f"exec {shlex.join(tree)}")
    assert_ends_alone(task, tree, task.cancel, PROMPTLY_S)
    assert_cancelled(task, -signal.SIGTERM)


def test_a_whole_tree_that_ignores_sigterm_is_killed(
    session: BackgroundTasks, tree: list[str]
) -> None:
    session.cancel_grace_s = 0.5
    task = shell(f"exec {shlex.join(tree)}", env={"STUBBORN": "1"})
    assert_ends_alone(task, tree, task.cancel)
    assert_cancelled(task, -signal.SIGKILL)


def test_a_whole_tree_is_cancelled_by_another_process(
    session: BackgroundTasks, tree: list[str]
) -> None:
    task = shell(f"exec {shlex.join(tree)}")
    root = session.directory.root
    assert_ends_alone(task, tree, lambda: run_command(root, "cancel", task.id, "--yes"))
    assert_cancelled(task, -signal.SIGTERM)


def test_a_whole_tree_ends_when_the_time_of_its_task_is_over(
    session: BackgroundTasks, tree: list[str]
) -> None:
    task = shell(f"exec {shlex.join(tree)}", timeout=4)
    assert_ends_alone(task, tree, lambda: None)
    assert (task.state, task.reason) == (TaskState.FAILED, "timed out after 4 s")
    assert task.exit_code == -signal.SIGTERM


def test_a_tree_whose_first_process_has_ended_is_cancelled(
    session: BackgroundTasks, tree: list[str]
) -> None:
    task = shell(f"{shlex.join(tree)} &")
    assert_ends_alone(task, tree, task.cancel, PROMPTLY_S)
    assert_cancelled(task, 0)


def test_what_a_task_starts_while_it_is_cancelled_ends_too(
    session: BackgroundTasks, tmp_path: Path
) -> None:
    """Each starts a process in a session of its own at SIGTERM, and ends at the same moment."""
    session.cancel_grace_s = 0.5
    files = [tmp_path / f"last-{number}" for number in range(40)]
    tasks = [
        running(
            f"""
            begin() {{
                setsid sh -c 'trap "" TERM; echo $$ > "{file}"; exec sleep 60' &
                exit 0
            }}
            trap begin TERM
            echo ready
            {WAIT}
            """
        )
        for file in files
    ]
    for task in tasks:
        task.cancel()
    for task in tasks:
        assert_cancelled(ended(task), 0)
    for file in files:
        with suppress(psutil.NoSuchProcess):  # it has gone before it could be looked at
            assert not file.exists() or not is_alive(read_pid(file))


@pytest.mark.parametrize(
    "way",
    [
        "env -i sh -c '{child}' & echo ready; wait",
        "env -i setsid sh -c '{child}' & echo ready; wait",
        "env -i sh -c '{child}' & echo ready",
        "(env -i sh -c '{child}' &); echo ready; exec sleep 60",
        "(setsid sh -c '{child}' &); echo ready; exec sleep 60",
        "(setsid sh -c '{child}' &); echo ready",
    ],
)
def test_a_child_without_the_environment_of_its_task_is_cancelled(
    session: BackgroundTasks, way: str
) -> None:
    """It is known by its parent, by its session or by its environment, whichever it has kept."""
    file = session.directory.root / "child"
    task = running(way.format(child=f"echo $$ > {file}; exec sleep 60"))
    child = read_pid(file)
    try:
        assert task.state is TaskState.RUNNING
        cancelled(task)
        assert task.state is TaskState.CANCELLED
        assert not is_alive(child)
    finally:
        kill(child)


def test_children_are_cancelled_in_the_moment_in_which_their_parent_ends(
    session: BackgroundTasks, tmp_path: Path
) -> None:
    """They are known by their session alone, and its leader has just ended."""
    gates = [tmp_path / f"gate-{number}" for number in range(20)]
    for gate in gates:
        os.mkfifo(gate)
    tasks = [
        running(
            f"""
            env -i sh -c 'echo $$ > "{gate}.pid"; exec sleep 60' &
            echo ready
            read line < "{gate}"
            """
        )
        for gate in gates
    ]
    children = [read_pid(Path(f"{gate}.pid")) for gate in gates]
    for task, gate in zip(tasks, gates, strict=True):
        gate.write_text("end\n")
        task.cancel()
    for task in tasks:
        ended(task, 15)
    left = [child for child in children if is_alive(child)]
    for child in left:
        kill(child)
    assert left == []


def test_a_process_that_nobody_can_find_does_not_hold_up_the_others(
    session: BackgroundTasks,
) -> None:
    """It has left the session, its parent and its environment, and prints without an end."""
    file = session.directory.root / "lost"
    flood = f"ulimit -t 30; echo $$ > {file}; exec yes"
    task = running(f"echo ready; (env -i setsid sh -c '{flood}' &); exec sleep 60")
    lost = read_pid(file)
    try:
        cancelled(task)
        assert ended(shell("echo after"), 5).stdout == "after\n"
    finally:
        kill(lost)


def test_a_supervisor_with_hundreds_of_tasks_ends_one_of_them(session: BackgroundTasks) -> None:
    """A descriptor above 1023 is nothing special."""
    file = session.directory.root / "lost"
    tasks = [shell("exec sleep 100") for _ in range(520)]
    flood = f"ulimit -t 30; echo $$ > {file}; while :; do seq 100; sleep 0.001; done"
    task = running(f"echo ready; (env -i setsid sh -c '{flood}' &); exec sleep 60")
    lost = read_pid(file)
    try:
        cancelled(task, 10)
        assert finish("echo after").stdout == "after\n"
        assert {each.state for each in tasks} == {TaskState.RUNNING}
    finally:
        kill(lost)
    for each in tasks:
        each.cancel()
    assert {ended(each).reason for each in tasks} == {"cancelled"}


# When it is cancelled, and by whom.


def test_another_process_can_cancel_a_task(session: BackgroundTasks) -> None:
    task = running("echo ready; exec sleep 60")
    said = run_command(session.directory.root, "cancel", task.id, "--yes")
    assert (said.returncode, said.stdout) == (0, f"task {task.number}: cancelled\n")
    assert_cancelled(task, -signal.SIGTERM)


def test_another_process_is_told_that_a_task_has_yet_to_end(session: BackgroundTasks) -> None:
    session.cancel_grace_s = 3
    task = running(f"trap '' TERM; echo ready; {WAIT}")
    said = run_command(session.directory.root, "cancel", task.id, "--yes")
    assert "was told to end" in said.stdout
    assert_cancelled(ended(task), -signal.SIGKILL)


def test_a_task_that_has_ended_cannot_be_cancelled(session: BackgroundTasks) -> None:
    task = finish("exit 3")
    assert not task.cancel()
    said = run_command(session.directory.root, "cancel", task.id, "--yes")
    assert said.stdout == f"task {task.number} had ended: failed\n"
    assert (task.state, task.reason) == (TaskState.FAILED, "exit status 3")


def test_a_task_can_be_cancelled_before_it_has_begun(session: BackgroundTasks) -> None:
    finish("true")
    with suspended_supervisor():
        never, after = shell("echo never"), shell("echo after")
        assert never.state is TaskState.PENDING
        assert never.cancel()
    assert (ended(never).state, never.reason) == (TaskState.CANCELLED, "cancelled")
    assert (never.started_at, never.exit_code, never.stdout) == (None, None, "")
    assert [event.state for event in never.history] == [TaskState.PENDING, TaskState.CANCELLED]
    assert ended(after).stdout == "after\n"


def test_a_task_that_waits_begins_in_another_supervisor_when_its_own_dies(
    session: BackgroundTasks,
) -> None:
    """Though nobody types: the store is read here, and the session is not asked."""
    finish("true")
    with suspended_supervisor():
        waiting = shell("echo begun")
        before = supervisor()
        kill_supervisor()
    until(lambda: state_of(waiting).is_final, message="the end of the task")
    assert (waiting.state, waiting.stdout) == (TaskState.COMPLETED, "begun\n")
    assert supervisor().pid != before.pid


def test_supervisors_that_die_again_and_again_are_not_replaced_for_ever(
    session: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def short_lived(module: str) -> list[str]:
        started.append([sys.executable, "-c", "import time; time.sleep(0.2)", module])
        return started[-1]

    monkeypatch.setattr(starting, "python_command", short_lived)
    task = shell("echo never")
    until(lambda: len(started) == 1 + process.REPLACED_AT_MOST, message="the last replacement")
    until(lambda: "ipytaskpersist-supervisor" not in {each.name for each in threading.enumerate()})
    assert len(started) == 1 + process.REPLACED_AT_MOST
    assert state_of(task) is TaskState.PENDING
    monkeypatch.undo()
    assert ended(shell("echo after")).stdout == "after\n"
    assert ended(task).stdout == "never\n"


def state_of(task: Task) -> TaskState:
    """What the store says, without looking for sessions and supervisors that are gone."""
    record = store().tasks.by_id(task.id)
    assert record is not None
    return record.state


@pytest.mark.usefixtures("unattended")
def test_a_task_whose_supervisor_has_died_before_it_began_can_be_cancelled_from_elsewhere(
    session: BackgroundTasks,
) -> None:
    finish("true")
    with suspended_supervisor():
        never = shell("echo never")
        kill_supervisor()
    assert run_command(session.directory.root, "cancel", never.id, "--yes").returncode == 0
    assert run_command(session.directory.root, "list", "--all").returncode == 0
    assert (never.state, never.reason, never.stdout) == (TaskState.CANCELLED, "cancelled", "")


@contextmanager
def suspended_supervisor() -> Iterator[None]:
    """A time in which the supervisor of this session does nothing."""
    process = psutil.Process(supervisor().pid)
    process.suspend()
    until(lambda: process.status() == psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def test_a_task_that_is_cancelled_twice_is_cancelled_once(session: BackgroundTasks) -> None:
    task = running(f"trap 'echo told; sleep 0.5; exit 1' TERM; echo ready; {WAIT}")
    assert task.cancel()
    until(lambda: stream(task) == b"ready\ntold\n")
    assert task.cancel()
    assert_cancelled(ended(task), 1)
    assert task.stdout == "ready\ntold\n"
    states = [event.state for event in task.history]
    assert states == [TaskState.PENDING, TaskState.RUNNING, TaskState.CANCELLED]


def test_a_task_that_is_cancelled_while_its_time_runs_out_stays_cancelled(
    session: BackgroundTasks,
) -> None:
    task = running(f"trap 'sleep 1.5; exit 1' TERM; echo ready; {WAIT}", timeout=1)
    task.cancel()
    assert ended(task).state in {TaskState.CANCELLED, TaskState.FAILED}
    assert task.reason in {"cancelled", "timed out after 1 s"}
    assert len(task.history) == 3


# Output.


def test_a_task_that_floods_its_output_is_cancelled_promptly(session: BackgroundTasks) -> None:
    task = shell("ulimit -t 60; exec seq 1000000000")
    until(lambda: size(task) > 2_000_000)
    assert ended(shell("echo beside"), 5).stdout == "beside\n"
    assert_cancelled(cancelled(task), -signal.SIGTERM)
    assert digest(task) == digest_of_sequence(size(task))


def size(task: Task) -> int:
    """How many bytes of a task's standard output are stored."""
    return store().outputs.stream_size(row(task), OutputKind.STDOUT).size_bytes


def digest(task: Task) -> str:
    """The SHA-256 of a task's standard output."""
    total = hashlib.sha256()
    for piece in pieces(task, OutputKind.STDOUT):
        total.update(piece)
    return total.hexdigest()


def digest_of_sequence(size_bytes: int) -> str:
    """The SHA-256 of so many bytes of what ``seq`` prints."""
    command = f"seq 1000000000 | head -c {size_bytes} | sha256sum"
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, check=True
    ).stdout.split()[0]  # fmt: skip


def test_a_task_that_has_closed_its_streams_goes_on_until_it_ends(
    session: BackgroundTasks, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    wait = f"while ! test -e '{gate}'; do sleep 0.02; done; exit 3"
    tasks = [running(f"echo ready; exec {how}; {wait}") for how in (">&-", ">&- 2>&-")]
    finish("true")
    assert [task.state for task in tasks] == [TaskState.RUNNING] * 2
    gate.touch()
    assert [ended(task).reason for task in tasks] == ["exit status 3"] * 2


def test_a_task_that_has_closed_its_streams_can_be_cancelled(session: BackgroundTasks) -> None:
    task = running("echo ready; exec >&- 2>&-; exec sleep 60")
    assert_cancelled(cancelled(task), -signal.SIGTERM)


# Nobody else.


def change(statement: str, *values: object) -> None:
    """Change the store behind the package's back."""
    store().database.execute(statement, values)


def record_process(task: Task, pid: int, start: str) -> None:
    """Make the store believe that this is a task's process."""
    change(
        "UPDATE processes SET pid = ?, process_start = ? WHERE task_key = ?", pid, start, row(task)
    )


def start_of(process: psutil.Process) -> str:
    """When a process started, as the store keeps it."""
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    return identity.start


def kill_supervisor() -> None:
    """Kill the supervisor of this session, and nothing else."""
    process = psutil.Process(supervisor().pid)
    process.kill()
    until(lambda: not is_alive(process))


SLEEPER = ("sleep", "60")


def test_a_process_of_a_dead_supervisor_is_ended_when_it_is_the_one_that_was_recorded(
    session: BackgroundTasks,
) -> None:
    task = running("echo ready; exec sleep 60")
    process = psutil.Process(process_of(task).pid)
    kill_supervisor()
    session.runners.reconcile()
    assert (task.state, task.reason) == (TaskState.INTERRUPTED, "supervisor died")
    until(lambda: not is_alive(process))


def test_a_process_that_has_the_pid_of_a_task_by_now_is_left_alone(
    session: BackgroundTasks,
) -> None:
    task = running("echo ready; exec sleep 60")
    process_of(task)
    with bystander(*SLEEPER) as outsider:
        a_moment_before = str(int(start_of(outsider)) - 1)
        record_process(task, outsider.pid, a_moment_before)
        kill_supervisor()
        session.runners.reconcile()
        assert (task.state, task.reason) == (TaskState.INTERRUPTED, "supervisor died")
        said = run_command(session.directory.root, "cancel", task.id, "--yes")
        assert said.stdout == f"task {task.number} had ended: interrupted\n"
        assert is_alive(outsider)


@pytest.mark.usefixtures("unattended")
def test_a_process_that_has_the_pid_of_a_supervisor_by_now_is_left_alone(
    session: BackgroundTasks,
) -> None:
    task = running("echo ready; exec sleep 60")
    with bystander(*SLEEPER) as outsider:
        kill_supervisor()
        change("UPDATE supervisors SET pid = ?", outsider.pid)
        session.runners.reconcile()
        assert (task.state, task.reason) == (TaskState.INTERRUPTED, "supervisor died")
        assert is_alive(outsider)


@pytest.mark.usefixtures("unattended")
def test_a_process_of_this_boot_is_none_of_a_task_of_another_boot(
    session: BackgroundTasks,
) -> None:
    task = running("echo ready; exec sleep 60")
    process_of(task)
    with bystander(*SLEEPER) as outsider:
        record_process(task, outsider.pid, start_of(outsider))
        kill_supervisor()
        change("UPDATE supervisors SET boot_id = 'another'")
        session.runners.reconcile()
        assert (task.state, task.reason) == (TaskState.INTERRUPTED, "machine rebooted")
        assert is_alive(outsider)


@pytest.mark.usefixtures("unattended")
def test_a_process_of_another_host_is_judged_by_its_heartbeat_and_left_alone(
    session: BackgroundTasks,
) -> None:
    task = running("echo ready; exec sleep 60")
    process_of(task)
    with bystander(*SLEEPER) as outsider:
        record_process(task, outsider.pid, start_of(outsider))
        kill_supervisor()
        change("UPDATE supervisors SET host = 'elsewhere', boot_id = 'another'")
        now = 0.0
        watch = Watch(clock=lambda: now)
        reconcile(store(), "another", watch)
        assert task.state is TaskState.RUNNING
        now = SILENCE_S
        reconcile(store(), "another", watch)
        assert task.state is TaskState.INTERRUPTED
        assert str(task.reason).startswith("no sign of life from elsewhere since")
        assert is_alive(outsider)


@pytest.mark.usefixtures("unattended")
@pytest.mark.parametrize("pid", [0, -1, 1, 2**63 - 1])
def test_a_store_that_names_what_no_task_can_be_ends_nothing(
    session: BackgroundTasks, pid: int
) -> None:
    """A pid of zero or below stands for many processes at once, and 1 for the system's own."""
    task = running("echo ready; exec sleep 60")
    leader = psutil.Process(process_of(task).pid)
    with bystander(*SLEEPER) as outsider:
        start = ProcessIdentity.of(1).start if pid == 1 else start_of(outsider)
        record_process(task, pid, start)
        kill_supervisor()
        change("UPDATE supervisors SET pid = ?, process_start = '1'", pid)
        session.runners.reconcile()
        assert (task.state, task.reason) == (TaskState.INTERRUPTED, "supervisor died")
        assert not task.cancel()
        examined = run_command(session.directory.root, "doctor")
        assert "Traceback" not in examined.stderr
        assert is_alive(outsider)
    until(lambda: not is_alive(leader))  # the mark in its environment says whose it is


@pytest.mark.parametrize("pid", [0, -1, 1, 2**63 - 1])
def test_a_session_that_names_what_no_kernel_can_be_has_died(
    session: BackgroundTasks, pid: int
) -> None:
    record = session.session.record()
    new = NewTask(record.notebook_key, record.id, "left", "python", "thread", "pass")
    key = store().tasks.insert(new).key
    change("UPDATE sessions SET pid = ?, process_start = '1'", pid)
    reconcile(store(), "another")
    found = store().tasks.get(key)
    assert found is not None
    assert (found.state, found.reason) == (TaskState.INTERRUPTED, "process died")


@pytest.mark.usefixtures("unattended")
def test_the_session_of_a_task_that_is_gone_may_be_that_of_others_by_now(
    session: BackgroundTasks,
) -> None:
    """Its number was free, and has become that of a session, and a group, of somebody else."""
    task = running("echo ready; exec sleep 60")
    process_of(task)
    leads = "import os, subprocess; subprocess.Popen(['sleep', '60']).wait()"
    with bystander(sys.executable, "-c", leads) as outsider:
        child = until(outsider.children)[0]
        record_process(task, outsider.pid, str(int(start_of(outsider)) - 1))
        kill_supervisor()
        session.runners.reconcile()
        assert (task.state, task.reason) == (TaskState.INTERRUPTED, "supervisor died")
        assert is_alive(outsider)
        assert is_alive(child)
        kill(child)


def test_a_supervisor_ends_its_own_processes_whatever_the_store_says(
    session: BackgroundTasks,
) -> None:
    task = running("echo ready; exec sleep 60")
    process = psutil.Process(process_of(task).pid)
    with bystander(*SLEEPER) as outsider:
        record_process(task, outsider.pid, start_of(outsider))
        assert_cancelled(cancelled(task), -signal.SIGTERM)
        assert is_alive(outsider)
    assert not is_alive(process)


def test_the_tasks_of_a_task_are_not_its_own(session: BackgroundTasks, tmp_path: Path) -> None:
    """A program that is a task launches one, which has a supervisor and an end of its own."""
    file, program = tmp_path / "inner", tmp_path / "outer.py"
    program.write_text(
        "import ipytaskpersist as bg, time\n"
        f"bg.background('echo $$ > {file}; exec sleep 60', shell=True)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    task = running(f"exec {shlex.join([sys.executable, str(program)])}")
    inner = read_pid(file)
    assert_cancelled(cancelled(task), -signal.SIGTERM)
    assert is_alive(inner)


def test_a_task_whose_row_no_version_has_written_runs_when_it_is_mended(
    session: BackgroundTasks,
) -> None:
    finish("true")
    with suspended_supervisor():
        task = shell("echo after all")
        change("UPDATE processes SET options = 'damaged' WHERE task_key = ?", row(task))
    assert ended(task).stdout == "after all\n"


def test_what_a_supervisor_dies_of_is_said(session: BackgroundTasks) -> None:
    """Into its log, which is its standard error."""
    (session.directory.root / "tasks.db").mkdir(parents=True)
    code = "from ipytaskpersist.runners.supervisor import main; main()"
    died = run_python(code, session.directory.root, str(session.directory.root), "none", "normal")
    assert died.returncode == 1
    assert "there is a directory in the place of the store" in died.stderr
