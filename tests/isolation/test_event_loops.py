"""A background cell that awaits goes on when the foreground does what it waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
from kernels import NotebookKernel, until

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.isolation.event_loops import new_loop
from ipytaskpersist.store.task_store import TaskStore

WIDGET = """
import asyncio, ipywidgets
slider = ipywidgets.IntSlider(value=3)
def wait_for_change(widget):
    future = asyncio.Future()
    def changed(change):
        future.set_result(change.new)
        widget.unobserve(changed, "value")
    widget.observe(changed, "value")
    return future
"""


def wait_for_line(store: TaskStore, line: str) -> None:
    def has_printed() -> bool:
        return any(line.encode() in record.data for record in store.outputs.of(1))

    until(has_printed, message=f"the task's line {line!r}")


def wait_for_end(store: TaskStore) -> str:
    """The text form of the task's value, once it has completed."""

    def has_ended() -> bool:
        task = store.tasks.get(1)
        return task is not None and task.state.is_final

    until(has_ended, message="the end of the task")
    task, result = store.tasks.get(1), store.results.get(1)
    assert task is not None
    assert result is not None
    assert task.state is TaskState.COMPLETED, task.reason
    return result.text


@pytest.mark.parametrize(
    ("setup", "waiting", "foreground", "value"),
    [
        (WIDGET, "await wait_for_change(slider)", "slider.value = 7", "7"),
        ("import asyncio\nevent = asyncio.Event()", "await event.wait()", "event.set()", "True"),
        ("import asyncio\nq = asyncio.Queue()", "await q.get()", "q.put_nowait('x')", "'x'"),
    ],
    ids=["widget", "event", "queue"],
)
def test_what_the_foreground_sets_wakes_a_cell_that_awaits_it(
    kernel: NotebookKernel, store: TaskStore, setup: str, waiting: str, foreground: str, value: str
) -> None:
    kernel.run(setup)
    kernel.run(f"%%background\nasyncio.get_running_loop().call_soon(print, 'waits')\n{waiting}")
    wait_for_line(store, "waits")
    kernel.run(foreground)
    assert wait_for_end(store) == value


def test_a_coroutine_function_that_runs_as_a_task_is_woken_too(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    kernel.run(
        "import asyncio, ipytaskpersist\n"
        "event = asyncio.Event()\n"
        "async def wait():\n"
        "    asyncio.get_running_loop().call_soon(print, 'waits')\n"
        "    return await event.wait()\n"
        "task = ipytaskpersist.submit(wait)"
    )
    wait_for_line(store, "waits")
    kernel.run("event.set()")
    assert wait_for_end(store) == "True"


# The loop by itself, which has nothing to do and waits in a thread of its own.


@pytest.fixture(params=[False, True], ids=["", "debug"])
def waiting_loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loops: list[asyncio.AbstractEventLoop] = []
    waits = threading.Event()

    def run() -> None:
        loop = new_loop()
        loops.append(loop)
        loop.set_debug(request.param)
        loop.call_soon(waits.set)
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert waits.wait(30)
    yield loops[0]
    thread.join(30)
    assert not thread.is_alive(), "the loop was not woken"
    loops[0].close()


def test_what_another_thread_schedules_is_called_and_what_it_cancels_is_not(
    waiting_loop: asyncio.AbstractEventLoop,
) -> None:
    called: list[str] = []
    waiting_loop.call_soon(called.append, "soon")
    waiting_loop.call_later(0.01, called.append, "cancelled").cancel()
    timer = waiting_loop.call_later(0.02, called.append, "later")
    assert timer.when() == pytest.approx(waiting_loop.time(), abs=5)
    waiting_loop.call_later(0.04, waiting_loop.stop)
    until(lambda: not waiting_loop.is_running())
    assert called == ["soon", "later"]


def test_a_handle_that_another_thread_got_can_be_cancelled(
    waiting_loop: asyncio.AbstractEventLoop,
) -> None:
    called: list[str] = []
    begun, go = threading.Event(), threading.Event()
    waiting_loop.call_soon(lambda: (begun.set(), go.wait(30)))
    assert begun.wait(30)
    waiting_loop.call_soon(called.append, "cancelled").cancel()
    waiting_loop.call_soon(waiting_loop.stop)
    go.set()
    until(lambda: not waiting_loop.is_running())
    assert called == []


def test_a_task_that_another_thread_creates_runs_in_a_context_of_its_own(
    waiting_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("the caller's")

    async def stop() -> None:
        seen.append(variable.get("none"))
        waiting_loop.stop()

    # Kept, as asyncio wants it, until the loop has run it.
    task = waiting_loop.create_task(stop())
    until(lambda: not waiting_loop.is_running())
    assert task.done()
    assert seen == ["the caller's"]
