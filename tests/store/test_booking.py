"""Which tasks the machine has room for: what is booked, what is free, and whose turn it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

import pytest

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.process_identity import ProcessIdentity, host_name
from ipytaskpersist.base.records import Options, ProcessRecord, TaskState
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.booking import (
    ALLOCATES_S,
    PATIENCE_S,
    Asking,
    Booking,
    Gpu,
    Machine,
    Room,
    Use,
    decide,
)
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.queue import Admission
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

GB = 10**9
AT = 1_000_000.0
MACHINE = Machine(host_name(), 8.0, 0.0, 64 * GB, 60 * GB)
Session = tuple[str, int, int]


def gpu(index: int, free: int, total: int = 24) -> Gpu:
    return Gpu(f"GPU-{index}", index, "A GPU", total * GB, free * GB)


def lacks(machine: Machine, demands: Demands, *bookings: Booking) -> str:
    return Room(machine, bookings, AT).lacks(demands)


# Pure.


def test_what_strangers_use_counts_and_what_a_booking_covers_counts_once() -> None:
    memory = Demands(memory_bytes=40 * GB)
    assert lacks(MACHINE, memory) == ""
    busy = replace(MACHINE, free_memory_bytes=12 * GB)
    assert lacks(busy, memory) == "needs 40 GB, 12 GB are free"
    booked = Booking(1, Demands(memory_bytes=30 * GB))
    assert lacks(MACHINE, memory, booked) == "needs 40 GB, 30 GB are free"
    # The task has taken 25 of its 30 GB from what is free.
    using = replace(MACHINE, free_memory_bytes=35 * GB, used={1: Use(0, 25 * GB)})
    assert lacks(using, memory, booked) == "needs 40 GB, 30 GB are free"
    # One that uses more than it has booked counts with what it uses.
    beyond = replace(MACHINE, free_memory_bytes=20 * GB, used={1: Use(0, 40 * GB)})
    assert lacks(beyond, memory, booked) == "needs 40 GB, 20 GB are free"


def test_cpus_that_others_keep_busy_are_not_free() -> None:
    four = Demands(cpus=4)
    booked = Booking(1, Demands(cpus=2))
    assert lacks(replace(MACHINE, busy_cpus=4.4), four) == ""
    assert lacks(replace(MACHINE, busy_cpus=6.2), four) == "needs 4 of 8 CPUs, 2 are free"
    assert lacks(replace(MACHINE, busy_cpus=2, used={1: Use(2.0)}), four, booked) == ""
    idle = replace(MACHINE, busy_cpus=5)
    assert lacks(idle, four, booked) == "needs 4 of 8 CPUs, 1 is free"
    assert lacks(replace(MACHINE, busy_cpus=0.3), Demands(cpus=8)) == ""
    room = Room(MACHINE, (), AT)
    room.take(Demands(cpus=6.5, memory_bytes=50 * GB))
    assert room.lacks(four) == "needs 4 of 8 CPUs, 1.5 are free"
    assert room.lacks(Demands(memory_bytes=11 * GB)) == "needs 11 GB, 10 GB are free"
    assert lacks(replace(MACHINE, cpus=1.5), Demands(cpus=2)) == "needs 2 of 1.5 CPUs, 1.5 are free"


def test_gpus_are_lent_whole_or_shared_by_their_memory() -> None:
    whole, shared = Demands(gpus=1), Demands(gpus=1, gpu_memory_bytes=20 * GB)
    both = replace(MACHINE, gpus=(gpu(0, 23), gpu(1, 9)))
    room = Room(both, (), AT)
    assert room.take(whole) == ("GPU-0",)
    assert room.lacks(whole) == "GPU 1 has 9 of 24 GB free"
    assert room.lacks(shared) == "GPU 1 has 9 of 20 GB free"
    assert room.take(Demands(gpus=1, gpu_memory_bytes=8 * GB)) == ("GPU-1",)
    assert room.lacks(Demands(gpus=2)) == "needs 2 of 2 GPUs, none is free"
    # Small ones are put together, so that a whole one stays whole.
    assert Room(both, (), AT).take(Demands(gpus=1, gpu_memory_bytes=8 * GB)) == ("GPU-1",)
    old = AT - ALLOCATES_S - 1
    lent = Booking(1, Demands(gpus=1, gpu_memory_bytes=10 * GB), ("GPU-0",), old)
    # It has allocated what it booked, so the driver's figure has it; a new one has not yet.
    one = replace(MACHINE, gpus=(gpu(0, 12),))
    assert lacks(one, Demands(gpus=1, gpu_memory_bytes=12 * GB), lent) == ""
    new = replace(lent, started_at=AT - 1)
    assert lacks(one, Demands(gpus=1, gpu_memory_bytes=12 * GB), new) == "GPU 0 has 2 of 12 GB free"
    assert lacks(one, whole, lent) == "needs 1 of 1 GPUs, none is free"
    assert "the driver shows none" in lacks(replace(MACHINE, gpus=()), whole)


def test_a_task_that_waits_blocks_its_group_alone_until_its_patience_ends() -> None:
    def asking(key: int, group: str, size: int, since: float | None = None) -> Asking:
        return Asking(key, group, MACHINE.host, Demands(memory_bytes=size * GB), None, since)

    machine = replace(MACHINE, free_memory_bytes=20 * GB)

    def started(*waiting: Asking) -> list[int]:
        return [*decide(waiting, Room(machine, (), AT), AT).starts]

    large, small = asking(1, "a", 40), asking(2, "a", 5)
    other, last = asking(3, "b", 5), asking(4, "b", 18)
    assert started(large, small, other, last) == [3]
    decision = decide([large, small], Room(machine, (), AT), AT)
    assert decision.lacks[1].words == "needs 40 GB, 20 GB are free"
    assert "behind another of its group" in decision.lacks[2].words
    assert started(replace(large, lacks_since=AT - PATIENCE_S + 1), small, other) == [3]
    impatient = replace(large, lacks_since=AT - PATIENCE_S)
    assert started(impatient, small, other) == []
    # What was launched before it may start, and it comes first as soon as it fits.
    assert started(asking(9, "b", 40, AT - PATIENCE_S), other) == [3]
    assert started(other, last, asking(5, "c", 18, AT - PATIENCE_S)) == [5]


# In the store.


@pytest.fixture
def sessions(store: TaskStore) -> list[Session]:
    """Two notebooks: their sessions, the keys of their notebooks, and of their supervisors."""
    begun = [
        store.sessions.begin(replace(session_identity(None), id=str(uuid4()))) for _ in range(2)
    ]
    return [
        (each.id, each.notebook_key, store.supervisors.begin(each.id, ProcessIdentity.own()).key)
        for each in begun
    ]


def add(store: TaskStore, session: Session, group: str = "default", **needs: float) -> int:
    admission = Admission(group, demands=Demands(**needs))  # type: ignore[arg-type]
    new = NewTask(session[1], session[0], "", "shell", "process", "true", admission=admission)
    process = NewProcess(["true"], "/", 1.0, Options())
    return store.tasks.insert(new, lambda connection, key, _id: process.insert(connection, key)).key


def claim(
    store: TaskStore, session: Session, machine: Machine | None = MACHINE
) -> list[ProcessRecord]:
    at = time.time()
    may = store.queue.may_claim(session[0], "process", at, machine)
    claimed = store.processes.claim(session[0], session[2], at, 50, machine)
    assert may or not claimed
    return claimed


def keys(claimed: Sequence[ProcessRecord]) -> list[int]:
    return [each.task_key for each in claimed]


def waits(store: TaskStore, key: int) -> str | None:
    task = store.tasks.get(key)
    assert task is not None
    return task.waiting.lacks if task.waiting else None


def test_bookings_hold_over_notebooks_until_their_tasks_end(
    store: TaskStore, sessions: list[Session]
) -> None:
    one, two = sessions
    first = add(store, one, cpus=5, memory_bytes=30 * GB)
    second, plain = add(store, two, cpus=5), add(store, two)
    assert store.queue.asks_for_gpus(one[0]) is False
    assert keys(claim(store, one)) == [first]
    assert keys(claim(store, two)) == [plain]
    assert waits(store, second) == "needs 5 of 8 CPUs, 3 are free"
    assert not store.queue.may_claim(two[0], "process", time.time(), MACHINE), "nothing is new"
    (booking,) = store.queue.bookings_on(host_name())
    assert booking.demands == Demands(5, 30 * GB)
    assert store.queue.bookings_on("another machine") == []
    store.tasks.end(first, TaskState.COMPLETED, None, 0, time.time())
    assert keys(claim(store, two, None)) == [], "nothing was seen of the machine"
    assert keys(claim(store, two)) == [second]
    assert store.queue.asks_for_gpus(two[0]) is None


def test_a_task_that_waits_for_the_machine_holds_its_place_in_a_width(
    store: TaskStore, sessions: list[Session]
) -> None:
    one, two = sessions
    store.queue.set_width("few", 2)
    large = add(store, one, "few", cpus=9)
    small, plain = add(store, two, "few", cpus=1), add(store, two, "few")
    free = add(store, two, "default", cpus=1)
    assert keys(claim(store, two)) == [free]
    assert "behind another" in (waits(store, small) or "")
    assert keys(claim(store, one)) == []
    assert waits(store, large) == "needs 9 of 8 CPUs, 7 are free"
    with store.database.transaction() as connection:
        connection.execute("UPDATE tasks SET cancel_requested_at = 1 WHERE key = ?", (large,))
    assert keys(claim(store, two)) == [small, plain]


def test_a_task_without_patience_keeps_later_ones_of_all_groups_from_starting(
    store: TaskStore, sessions: list[Session]
) -> None:
    one, two = sessions
    large = add(store, one, memory_bytes=63 * GB)
    assert keys(claim(store, one)) == []
    store.database.write(
        "UPDATE tasks SET lacks_since = ? WHERE key = ?", (time.time() - PATIENCE_S - 1, large)
    )
    store.queue.set_width("other", 5)
    later, plain = add(store, two, "other", cpus=1), add(store, two, "other")
    assert keys(claim(store, two)) == [plain]
    assert "has waited long" in (waits(store, later) or "")
    emptied = replace(MACHINE, free_memory_bytes=64 * GB)
    assert keys(claim(store, one, emptied)) == [large]
    assert keys(claim(store, two, emptied)) == [later]


def test_a_lent_gpu_is_kept_with_the_task(store: TaskStore, sessions: list[Session]) -> None:
    machine = replace(MACHINE, gpus=(gpu(0, 24), gpu(1, 24)))
    first, second = add(store, sessions[0], gpus=1), add(store, sessions[0], gpus=2)
    third = add(store, sessions[1], "default", gpus=1)
    assert store.queue.asks_for_gpus(sessions[0][0]) is True
    assert claim(store, sessions[0]) == [], "no GPU was looked at"
    assert waits(store, first) is None
    (process,) = claim(store, sessions[0], machine)
    assert (process.task_key, process.gpu_ids) == (first, ("GPU-0",))
    assert waits(store, second) == "needs 2 of 2 GPUs, 1 is free"
    assert keys(claim(store, sessions[1], machine)) == []
    assert "behind another" in (waits(store, third) or "")
    store.tasks.end(first, TaskState.COMPLETED, None, 0, time.time())
    (process,) = claim(store, sessions[0], machine)
    assert process.gpu_ids == ("GPU-0", "GPU-1")
    task = store.tasks.get(second)
    assert task is not None
    assert task.gpu_ids == ("GPU-0", "GPU-1")
    assert task.demands == Demands(gpus=2)


def test_a_claim_of_a_session_that_asks_for_nothing_looks_at_no_booking(
    store: TaskStore, sessions: list[Session]
) -> None:
    add(store, sessions[0])
    add(store, sessions[1], cpus=1)
    statements: list[str] = []
    connection = store.database.connection
    connection.set_trace_callback(statements.append)
    try:
        assert len(claim(store, sessions[0])) == 1
    finally:
        connection.set_trace_callback(None)
    asking = [each for each in statements if "tasks_demanding" in each or "tasks_booked" in each]
    assert len(asking) == 2, "one question of each, may_claim and claim"
    plan = store.database.rows(f"EXPLAIN QUERY PLAN {asking[0]}")
    assert "USING INDEX tasks_demanding" in str(plan)
