"""Shell tasks that this very process launches, as any Python program does."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import psutil
import pytest
from kernels import end_processes_of, until

import ipytaskpersist as bg
from ipytaskpersist.api import Task
from ipytaskpersist.base import process_identity
from ipytaskpersist.base.records import OutputKind, ProcessRecord, SupervisorRecord, TaskState
from ipytaskpersist.cells.shell_commands import usual_shell
from ipytaskpersist.output import replay
from ipytaskpersist.session import manager
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore


@dataclass(frozen=True)
class Ran:
    """What a command has left: its bytes on each stream, and its exit code."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None


@contextmanager
def own_session(state_dir: Path) -> Iterator[BackgroundTasks]:
    """Let this process launch tasks that are kept in `state_dir`, in a session of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTASKPERSIST_DIR", str(state_dir))
        patch.setenv("IPYTHONDIR", str(state_dir.parent / "ipython"))
        patch.setenv("IPYTASKPERSIST_NOTEBOOK", str(state_dir / "program.ipynb"))
        patch.setattr(process_identity, "_ipytaskpersist_session", str(uuid.uuid4()), raising=False)
        own = BackgroundTasks()
        patch.setattr(manager, "_current", own)
        try:
            yield own
        finally:
            own.close()
            end_processes_of(state_dir)


def shell(source: str, **options: object) -> Task:
    """Launch a shell command."""
    return bg.background(source, shell=True, **options)  # type: ignore[arg-type]


def finish(source: str, **options: object) -> Task:
    """Launch a shell command and wait for its end."""
    return ended(shell(source, **options))


def ended(task: Task, timeout: float = 30) -> Task:
    """Wait for a task's end."""
    assert task.wait(timeout), f"task {task.id} is {task.state} after {timeout:g} s: {task.source}"
    return task


def directly(command: str, **options: object) -> Ran:
    """What a command leaves that Python runs without this package."""
    done = subprocess.run(
        command, shell=True, executable=usual_shell(), stdin=subprocess.DEVNULL,
        capture_output=True, check=False, timeout=60, **options,
    )  # type: ignore[call-overload]  # fmt: skip
    return Ran(done.stdout, done.stderr, done.returncode)


def what_it_left(task: Task) -> Ran:
    """What a task has left at its end."""
    exit_code = ended(task).exit_code
    return Ran(stream(task, OutputKind.STDOUT), stream(task, OutputKind.STDERR), exit_code)


def pieces(task: Task, kind: OutputKind) -> Iterator[bytes]:
    """The bytes of one of a task's streams, piece by piece."""
    return replay.stream_bytes(store(), row(task), replay.Cut((kind,)))


def stream(task: Task, kind: OutputKind = OutputKind.STDOUT) -> bytes:
    """The bytes of one of a task's streams."""
    return b"".join(pieces(task, kind))


def expected_end(exit_code: int | None) -> tuple[TaskState, str | None]:
    """State and reason of a task that ended by itself with this exit code."""
    if not exit_code:
        return TaskState.COMPLETED, None
    if exit_code > 0:
        return TaskState.FAILED, f"exit status {exit_code}"
    try:
        return TaskState.FAILED, f"killed by {Signals(-exit_code).name}"
    except ValueError:
        return TaskState.FAILED, f"killed by signal {-exit_code}"


# What the store knows.


def store() -> TaskStore:
    """The store of the tasks that this process launches."""
    return manager.current().store.open()


def row(task: Task) -> int:
    """The key of a task's row."""
    record = store().tasks.by_id(task.id)
    assert record is not None
    return record.key


def process_of(task: Task) -> ProcessRecord:
    """The process of a task, once it runs and the store knows which it is."""

    def known() -> ProcessRecord | None:
        record = store().processes.get(row(task))
        return record if record is not None and record.pid is not None else None

    found = until(known, message=f"the process of task {task.id}")
    assert found is not None
    return found


def supervisor() -> SupervisorRecord:
    """The supervisor of this process's tasks."""
    (found,) = store().supervisors.unfinished()
    return found


# Processes.


def read_pid(path: Path) -> psutil.Process:
    """The process that writes its pid and a line feed into a file, as soon as it has."""
    text = until(
        lambda: path.exists() and (text := path.read_text()).endswith("\n") and text,
        message=f"a pid in {path.name}",
    )
    return psutil.Process(int(str(text)))


def is_alive(process: psutil.Process) -> bool:
    """Whether this very process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def with_argument(marker: str) -> list[psutil.Process]:
    """Every process that was given this argument."""
    found = []
    for process in psutil.process_iter():
        try:
            if marker in process.cmdline():
                found.append(process)
        except (psutil.Error, OSError):  # It has ended.
            continue
    return found


def kill(process: psutil.Process) -> None:
    """End a process that may have ended already."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
