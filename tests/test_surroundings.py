"""What a process finds around itself, and nobody has promised: signals, /proc, a home, names."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from kernels import NotebookKernel, until

from ipytaskpersist.records import TaskRecord, TaskState
from ipytaskpersist.store import Selection, TaskStore

MakeKernel = Callable[..., NotebookKernel]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def all_ended(store: TaskStore) -> list[TaskRecord]:
    """All tasks, once they have ended."""
    tasks = store.tasks.select(Selection())
    return tasks if tasks and all(task.state.is_final for task in tasks) else []


def said(store: TaskStore, task: TaskRecord) -> str:
    """All that a task has printed and displayed."""
    return b"".join(output.data for output in store.outputs.of(task.key)).decode()


# Signals.

INHERIT = """\
import os, signal, sys
how, *command = sys.argv[1:]
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execvp(command[0], command)
"""
MASK = "grep SigBlk /proc/self/status"


@LINUX
@pytest.mark.parametrize("how", ["blocked", "ignored"])
def test_a_task_has_ended_though_its_kernel_was_started_deaf(
    how: str, make_kernel: MakeKernel, store: TaskStore
) -> None:
    """Signals with which the kernel was started blocked, or SIGCHLD ignored, reach its tasks."""
    kernel = make_kernel(run_by=[sys.executable, "-c", INHERIT, how])
    kernel.run(f"%%background --shell\n{MASK}\nsleep 0.2 & wait\nexit 3")
    kernel.run("%%background --process\nimport subprocess\nsubprocess.run('exit 4', shell=True)")
    kernel.run("%%background --shell\nexec sleep 60")
    kernel.run("%bg_cancel 3")
    shell, python, cancelled = until(lambda: all_ended(store), message="the end of all three")
    assert (shell.state, shell.exit_code) == (TaskState.FAILED, 3)
    assert int(said(store, shell).split()[1], 16) == 0, "its program has signals blocked"
    assert python.state is TaskState.COMPLETED
    assert "returncode=4" in said(store, python)
    assert cancelled.state is TaskState.CANCELLED
