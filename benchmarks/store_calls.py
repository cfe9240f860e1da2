"""What single calls to the store cost, without a kernel."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import Bench, Scale
from benchmarks.results import Row
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection


def store(bench: Bench) -> list[Row]:
    """Single calls to the store, in this process."""
    state = bench.new_state()
    bench.say(f"storing {bench.scale.tasks:,} tasks and {bench.scale.sessions:,} sessions")
    stores.fill(state, bench.scale.tasks)
    with stores.opened(state) as opened:
        changes = change_ms(opened, state, bench.scale.store_calls)
        reads = read_ms(opened, bench.scale)
    state = bench.new_state()
    stores.fill_sessions(state, bench.scale.sessions)
    opens = [open_ms(state) for _ in range(bench.scale.tails)]
    held = f"{bench.scale.tasks:,} tasks in the store"
    opening = f"opening a store of {bench.scale.sessions:,} sessions, beginning another"
    return [
        Row("store", f"saving a state change, {held}", "ms", tuple(changes)).at_most(1),
        Row("store", f"reading a task, {held}", "ms", tuple(reads)).at_most(1),
        Row("store", opening, "ms", tuple(opens)).at_most(50),
    ]


def change_ms(opened: TaskStore, state: Path, calls: int) -> list[float]:
    """How long each of a task's two changes of state takes, committed."""
    session = opened.sessions.begin(stores.past_session(state))
    samples = []
    for index in range(calls // 2):
        key = opened.tasks.insert(stores.new_task(session, f"change-{index}")).key
        now = time.time()
        samples.append(milliseconds(opened.tasks.start, key, now))
        end = (TaskState.COMPLETED, None, 0)
        samples.append(milliseconds(opened.tasks.end, key, *end, now))
    return samples


def read_ms(opened: TaskStore, scale: Scale) -> list[float]:
    """How long it takes to read one task by its number."""
    (last,) = opened.tasks.select(Selection(limit=1))
    chance = random.Random(1)
    numbers = [chance.randint(1, scale.tasks) for _ in range(scale.store_calls)]
    by_number = opened.tasks.by_number
    return [milliseconds(by_number, last.notebook_key, number) for number in numbers]


def open_ms(state: Path) -> float:
    """How long a new session's start takes: open the store, find the notebook, record it."""
    identity = stores.past_session(state)

    def begin() -> None:
        with stores.opened(state) as opened:
            opened.sessions.begin(identity)

    return milliseconds(begin)


def milliseconds(call: Callable[..., object], *arguments: object) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - begun) * 1e3
