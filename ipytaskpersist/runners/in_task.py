"""What a task's own code calls about its checkpoints and about its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.running.running_task import RunningTask, active_task
from ipytaskpersist.running.sinks import Checkpoints


def checkpoint(value: Any) -> None:
    """Keep a value from which the task goes on when it is run again.

    It is pickled and signed as a result is; the one before it is kept, too, and all earlier ones
    are removed. It is on the disk when this returns, safe from a power loss; a task that is killed
    meanwhile has the one before. Raise `InvalidRequest` for a
    value that cannot be pickled, and in code that is in no task; `StoreError` when the disk takes
    no more.
    """
    task, checkpoints = _own("checkpoint")
    task.recording.checkpointed(checkpoints.keep(value))


def checkpointed(default: Any = None) -> Any:
    """Return the last value that `checkpoint` has kept, in this task or one that it goes on from.

    A task goes on from an earlier one when ``%bg_resume`` runs that again, or ``%bg_rerun``, unless
    it completed. Return `default` if there is none. Raise `ResultUnavailable` if none can be loaded
    any more, and `InvalidRequest` in code that is in no task.
    """
    task, checkpoints = _own("checkpointed")
    try:
        value, problem = checkpoints.newest()
    except LookupError:
        return default
    if problem:
        task.write(OutputKind.STDERR, f"the one before is taken: {problem}\n")
    return value


def ending_soon() -> bool:
    """Return whether the task will be ended in a moment: it is cancelled, or its time is over.

    A task that has asked is given the time of the setting `cancel_grace_s` to end by itself. Raise
    `InvalidRequest` in code that is in no task.
    """
    return _own("ending_soon")[0].ending.look()


async def ending() -> None:
    """Wait until the task will be ended in a moment, as `ending_soon` says it.

    Raise `InvalidRequest` in code that is in no task.
    """
    task, _checkpoints = _own("ending")
    task.ending.look()
    loop, has_come = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(has_come.set)

    task.ending.call(tell)
    await has_come.wait()


def on_ending_soon(function: Callable[[], Any]) -> None:
    """Have a function called before the task is ended, in a thread of its own.

    The task goes on meanwhile, and is ended once all such functions have returned, at the latest
    after the time of the setting `cancel_grace_s`. A task that also calls `ending_soon` has all of
    that time. Raise `InvalidRequest` in code that is in no task.
    """
    _own("on_ending_soon")[0].ending.call(function)


def _own(name: str) -> tuple[RunningTask, Checkpoints]:
    """Return the calling code's task. Raise `InvalidRequest` if it is in none."""
    task = active_task.get()
    if task is None:
        raise InvalidRequest(
            f"{name}() belongs in a background task, below %%background or in a function for "
            "submit(); here is none that runs"
        )
    if task.checkpoints is None or task.is_forked:
        raise InvalidRequest(
            f"{name}() belongs in the process of task {task.record.label} itself; this is one "
            "that it has started, or the pickling of a value"
        )
    return task, task.checkpoints
