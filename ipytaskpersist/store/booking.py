"""Which of the tasks that ask for CPUs, memory or GPUs the machine has room for.

A booking lasts as long as its task runs. What counts as free is what the machine really has free
now, less what running tasks have booked and do not use yet. So the processes of others count, and
what a task uses of its booking counts once.

Nothing here looks at the machine: the process that claims tasks does, and passes what it has seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.demands import COLUMNS, Demands
from ipytaskpersist.store.file.migrations import BOOKED, DEMANDING
from ipytaskpersist.text.formatting import counted, is_or_are, share, short_size

PATIENCE_S = 600.0
"""Time for which later tasks may start before one that waits for the machine."""
FREE_SHARE = 0.8
"""Share of a GPU's memory that must be free for it to be lent whole: a desktop may use a little."""
ALLOCATES_S = 30.0
"""Time within which a task has allocated the memory of its GPU. Before, its booking is not part of
what the driver says is in use."""
DEMANDS = ", ".join(f"tasks.{name}" for name in COLUMNS)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver describes it."""

    uuid: str
    index: int
    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Use:
    """What the processes of a task really use."""

    cpus: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, or the part of it that its processes may use, as it was a moment ago."""

    host: str
    cpus: float
    busy_cpus: float
    """How many of them were busy, on average."""
    memory_bytes: int
    free_memory_bytes: int
    gpus: Sequence[Gpu] | None = None
    """None if they were not looked at, because no task had asked for one."""
    used: Mapping[int, Use] = field(default_factory=dict)
    """What the tasks with a booking use of that, by their keys."""


@dataclass(frozen=True, slots=True)
class Booking:
    """What a running task has booked."""

    key: int
    demands: Demands
    gpu_ids: Sequence[str] = ()
    started_at: float = 0.0
    pid: int | None = None
    process_start: str | None = None
    pid_namespace: int | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """A task that waits for the machine alone."""

    key: int
    group: str
    host: str
    """The machine on which it will run."""
    demands: Demands
    lacks: str | None = None
    """What the store says that the machine lacks for it."""
    lacks_since: float | None = None
    """When that was first so."""

    def is_impatient(self, at: float) -> bool:
        """Return whether no later task may start before it any more."""
        return self.lacks_since is not None and at - self.lacks_since >= PATIENCE_S


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a task does not start, in words."""

    words: str
    is_of_machine: bool = True
    """Whether the machine has no room for it, not only for one before it."""


BEHIND = Lack("waits behind another of its group", False)
PASSED = Lack("waits behind one that has waited long", False)


@dataclass(slots=True)
class Decision:
    """Which tasks start, with their GPUs, and what keeps the others from starting."""

    starts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    lacks: dict[int, Lack] = field(default_factory=dict)


def decide(asking: Iterable[Asking], room: Room, at: float) -> Decision:
    """Go through tasks in the order of their groups, and take room for those that fit.

    A task that does not fit blocks those behind it in its group. Once it has waited for
    `PATIENCE_S`, it comes first, and blocks every later one.
    """
    decision, blocked, barrier = Decision(), set(), None
    for each in sorted(asking, key=lambda each: each.key if each.is_impatient(at) else _LAST):
        if barrier is not None and each.key > barrier:
            decision.lacks[each.key] = PASSED
        elif each.group in blocked:
            decision.lacks[each.key] = BEHIND
        elif words := room.lacks(each.demands):
            decision.lacks[each.key] = Lack(words)
            if each.is_impatient(at):
                barrier = each.key
            else:
                blocked.add(each.group)
        else:
            decision.starts[each.key] = room.take(each.demands)
    return decision


_LAST = float("inf")


class Room:
    """What the machine has left, while a claim goes through the tasks that ask for it."""

    def __init__(self, machine: Machine, bookings: Sequence[Booking], at: float) -> None:
        self._machine = machine
        others_cpus = machine.busy_cpus
        others_bytes = machine.memory_bytes - machine.free_memory_bytes
        self._cpus, self._memory_bytes = machine.cpus, machine.memory_bytes
        for each in bookings:
            cpus, size_bytes = each.demands.cpus or 0.0, each.demands.memory_bytes or 0
            use = machine.used.get(each.key, Use())
            others_cpus -= min(cpus, use.cpus)
            others_bytes -= min(size_bytes, use.memory_bytes)
            self._cpus -= cpus
            self._memory_bytes -= size_bytes
        # Rounded, or the least thing that goes on would keep a task from having all CPUs.
        self._cpus -= max(0, int(others_cpus + 0.5))
        self._memory_bytes -= max(0, others_bytes)
        self._gpus = [_gpu_room(gpu, bookings, at) for gpu in machine.gpus or ()]

    def lacks(self, demands: Demands) -> str:
        """Return what is missing for a task, in words; empty if it fits."""
        cpus, size_bytes = demands.cpus, demands.memory_bytes
        if cpus is not None and cpus > self._cpus + 1e-9:
            total, left = f"{self._machine.cpus:g}", max(0.0, self._cpus)
            return f"needs {cpus:g} of {total} CPUs, {is_or_are(left)} free"
        if size_bytes is not None and size_bytes > self._memory_bytes:
            left_bytes = max(0, self._memory_bytes)
            return f"needs {short_size(size_bytes)}, {short_size(left_bytes)} are free"
        if demands.gpus is not None:
            return self._lacks_gpus(demands.gpus, demands.gpu_memory_bytes)
        return ""

    def _lacks_gpus(self, count: int, size_bytes: int | None) -> str:
        if len(self._gpus) < count:
            needed = counted(count, "GPU")
            return f"needs {needed}, and the driver shows {len(self._gpus) or 'none'}"
        fitting = self._fitting(size_bytes)
        if len(fitting) >= count:
            return ""
        said = f"needs {count} of {len(self._gpus)} GPUs, {is_or_are(len(fitting))} free"
        others = [each for each in self._gpus if each not in fitting]
        if size_bytes is None:
            others = [each for each in others if not each.is_lent]
        # The one that is closest to fitting says most.
        best = max(others, key=lambda each: each.left_bytes, default=None)
        if best is None or not best.left_bytes:
            return said
        of_bytes = best.gpu.memory_bytes if size_bytes is None else size_bytes
        return f"GPU {best.gpu.index} has {share(best.left_bytes, of_bytes)} free"

    def _fitting(self, size_bytes: int | None) -> list[_GpuRoom]:
        return [each for each in self._gpus if each.fits(size_bytes)]

    def take(self, demands: Demands) -> tuple[str, ...]:
        """Take what a task needs, which fits. Return the ids of its GPUs."""
        self._cpus -= demands.cpus or 0.0
        self._memory_bytes -= demands.memory_bytes or 0
        if demands.gpus is None:
            return ()
        size_bytes = demands.gpu_memory_bytes
        # Those with the least room, so that whole ones stay whole.
        fullest_first = sorted(self._fitting(size_bytes), key=lambda each: each.left_bytes)
        chosen = fullest_first[: demands.gpus]
        for each in chosen:
            each.is_lent = True
            each.left_bytes = 0 if size_bytes is None else each.left_bytes - size_bytes
        return tuple(each.gpu.uuid for each in sorted(chosen, key=lambda each: each.gpu.index))


@dataclass(slots=True)
class _GpuRoom:
    """What a GPU has left."""

    gpu: Gpu
    left_bytes: int
    is_lent: bool
    """Whether a task has it, or a part of it."""

    def fits(self, size_bytes: int | None) -> bool:
        """Return whether a task that needs so much, or all of it, could have it."""
        if size_bytes is not None:
            return self.left_bytes >= size_bytes
        return not self.is_lent and self.left_bytes >= FREE_SHARE * self.gpu.memory_bytes


def _gpu_room(gpu: Gpu, bookings: Sequence[Booking], at: float) -> _GpuRoom:
    """Return what a GPU has left beside the tasks that it is lent to.

    What each process uses of it is not known: in a container the driver's process ids mean nothing.
    """
    booked_bytes, free_bytes, is_lent = 0, gpu.free_bytes, False
    for each in bookings:
        if gpu.uuid in each.gpu_ids:
            size_bytes = each.demands.gpu_memory_bytes
            is_lent = True
            booked_bytes += gpu.memory_bytes if size_bytes is None else size_bytes
            if at - each.started_at < ALLOCATES_S:
                free_bytes -= size_bytes or 0
    left_bytes = min(free_bytes, gpu.memory_bytes - booked_bytes)
    return _GpuRoom(gpu, max(0, left_bytes), is_lent)


# What the store knows.


def is_anything_asked(connection: Any, session_id: str) -> bool:
    """Return whether a task of a session that might start asks anything of the machine."""
    query = f"""SELECT 1 FROM tasks INDEXED BY tasks_demanding
        WHERE {DEMANDING} AND session_id = ? LIMIT 1"""
    return connection.execute(query, (session_id,)).fetchone() is not None


def bookings_on(connection: Any, host: str) -> list[Booking]:
    """Return what the running tasks of a machine have booked."""
    rows = connection.execute(
        f"""SELECT tasks.key, gpu_ids, tasks.started_at, processes.pid, processes.process_start,
            processes.pid_namespace, {DEMANDS}
        FROM tasks INDEXED BY tasks_booked JOIN processes ON task_key = tasks.key
        JOIN supervisors ON supervisors.key = supervisor_key
        WHERE {BOOKED} AND supervisors.host = ?""",
        (host,),
    )
    return [_booking(row) for row in rows]


def _booking(row: Sequence[Any]) -> Booking:
    key, gpu_ids, started_at, pid, process_start, namespace, *demands = row
    ids = gpu_ids_of(gpu_ids)
    return Booking(key, Demands(*demands), ids, started_at, pid, process_start, namespace)


def gpu_ids_of(kept: str | None) -> tuple[str, ...]:
    """Return the GPUs of a task from its column."""
    return () if kept is None else tuple(json.loads(kept))


def asking_of(connection: Any, keys: Iterable[int]) -> dict[int, Asking]:
    """Return those of these tasks that ask for something, by their keys."""
    rows = connection.execute(
        f"""SELECT key, group_name, lacks, lacks_since,
            (SELECT host FROM sessions WHERE sessions.id = session_id), {DEMANDS} FROM tasks
        WHERE key IN (SELECT value FROM json_each(?)) AND {DEMANDING}""",
        (json.dumps([*keys]),),
    )
    return {
        key: Asking(key, group, host, Demands(*demands), lacks, lacks_since)
        for key, group, lacks, lacks_since, host, *demands in rows
    }


def note_lacks(connection: Any, lacks: Mapping[int, Lack], at: float) -> None:
    """Record what tasks wait for, and since when the machine has no room for them."""
    for key, lack in lacks.items():
        since = at if lack.is_of_machine else None
        connection.execute(
            """UPDATE tasks SET lacks = ?, lacks_since = coalesce(lacks_since, ?)
            WHERE key = ? AND (lacks IS NOT ? OR lacks_since IS NULL)""",
            (lack.words, since, key, lack.words),
        )


def lend(connection: Any, key: int, gpu_ids: Sequence[str]) -> None:
    """Record which GPUs a task has."""
    if gpu_ids:
        values = (json.dumps([*gpu_ids]), key)
        connection.execute("UPDATE tasks SET gpu_ids = ? WHERE key = ?", values)
