"""Which pending tasks a process may start now: their lanes, their order, and what they wait for.

Tasks wait in lanes: those of one session and one runner in one group, which one process starts. Of
all lanes, the task of the highest priority is next, then the one that was launched first. A task
that asks for a part of the machine (`store.booking`) also waits until that is free.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.store.booking import (
    Asking,
    Decision,
    Lack,
    Machine,
    Room,
    asking_of,
    bookings_on,
    decide,
    is_anything_asked,
)
from ipytaskpersist.store.file.migrations import (
    DEMANDING,
    DEMANDS_SOMETHING,
    IN_SLOT,
    READY,
    SUBMITTED,
)

SILENT_S = 60.0
"""Time without a sign of life after which an owner's tasks no longer keep others waiting."""
RUNNERS = ("process", "thread")
LOOKED_AT = 50
"""How many tasks of a lane are looked at in a group without a width, if some need resources."""
ORDER = "priority DESC, coalesce(place, key)"
PLAIN = f"{READY} AND cpus IS NULL AND memory_bytes IS NULL AND gpus IS NULL"
"""SQL for a task that waits for room in its group and asks for nothing else."""
ROOM = f"""SELECT paused_at IS NOT NULL, width - iif(width IS NULL, 0,
    (SELECT count(*) FROM tasks INDEXED BY tasks_slots WHERE group_name = ?1 AND {IN_SLOT})
    + (SELECT count(*) FROM tasks INDEXED BY tasks_submitted
        WHERE group_name = ?1 AND {SUBMITTED}))
    FROM groups WHERE name = ?1"""
"""Whether a group is paused, and what its width leaves."""

Lane = tuple[str, str, str]
"""Group, session and runner."""


def starts_at_once(connection: Any, key: int) -> bool:
    """Return whether a new task waits for nothing, not even for room or for the machine."""
    group, waits = connection.execute(
        f"SELECT group_name, waits_for OR {DEMANDS_SOMETHING} FROM tasks WHERE key = ?", (key,)
    ).fetchone()
    return not waits and _room(connection, group) is None


@dataclass(frozen=True, slots=True)
class Ready:
    """The tasks of a session and runner that may start now."""

    keys: list[int]
    """In their order."""
    gpu_ids: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """The GPUs of those that get some."""
    lacks: Mapping[int, Lack] = field(default_factory=dict)
    """What keeps others of the session from starting, where the store does not say so yet."""


def ready(
    connection: Any, session_id: str, runner: str, at_most: int, machine: Machine | None = None
) -> Ready:
    """Return which tasks of a session and runner may start now."""
    if runner == "process" and is_anything_asked(connection, session_id):
        return _ready_by_machine(connection, session_id, at_most, machine)
    found: list[int] = []
    for group in _groups(connection):
        lane, room = (group, session_id, runner), _room(connection, group)
        left = at_most - len(found)
        if room is None:
            found += [key for *_order, key in _first(connection, lane, left)]
        elif room > 0:
            next_of_all = _next(connection, lane, room, left)
            found += [key for key, each in next_of_all if each == lane]
        if len(found) >= at_most:
            break
    return Ready(found)


def _ready_by_machine(
    connection: Any, session_id: str, at_most: int, machine: Machine | None
) -> Ready:
    """Return which process tasks of a session may start, some of which ask for the machine."""
    waiting: list[tuple[int, Lane]] = []
    for group in _groups(connection):
        lane, room = (group, session_id, "process"), _room(connection, group)
        if room is None:
            waiting += _first_of_all(connection, lane)
        elif room > 0:
            waiting += _next(connection, lane, room)
    asking = asking_of(connection, [key for key, _lane in waiting])
    own = [key for key, (_group, *lane) in waiting if lane == [session_id, "process"]]
    decision = Decision()
    if machine is not None:
        at = time.time()
        rivals = _rivals(asking, own, machine, at)
        decision = decide(rivals, Room(machine, bookings_on(connection, machine.host), at), at)
    starts = decision.starts
    keys = [key for key in own if key not in asking or key in starts][:at_most]
    is_new = {key: lack for key, lack in decision.lacks.items() if lack.words != asking[key].lacks}
    return Ready(
        keys,
        gpu_ids={key: starts[key] for key in keys if key in starts},
        lacks={key: lack for key, lack in is_new.items() if key in own},
    )


def _rivals(
    asking: Mapping[int, Asking], own: Sequence[int], machine: Machine, at: float
) -> list[Asking]:
    """Return the session's own tasks that ask for something, and those that may come first.

    Others are left to their own supervisor, which may see another part of the machine.
    """
    groups = {asking[key].group for key in own if key in asking}
    return [
        each
        for key, each in asking.items()
        if (each.demands.gpus is None or machine.gpus is not None)
        and (
            key in own
            or (each.host == machine.host and (each.group in groups or each.is_impatient(at)))
        )
    ]


def _groups(connection: Any) -> Iterator[str]:
    """Yield the groups with a task that waits for room alone."""
    query = f"""SELECT group_name FROM tasks INDEXED BY tasks_queue
        WHERE {READY} AND group_name > ? ORDER BY group_name LIMIT 1"""
    group = ""
    while (row := connection.execute(query, (group,)).fetchone()) is not None:
        (group,) = row
        yield group


def _room(connection: Any, group: str) -> int | None:
    """Return how many more tasks of a group may start; None for any number."""
    is_paused, left = _paused_and_left(connection, group)
    return 0 if is_paused else left


def width_left(connection: Any, group: str) -> int | None:
    """Return how many more tasks a group's width allows; None for any number."""
    return _paused_and_left(connection, group)[1]


def _paused_and_left(connection: Any, group: str) -> tuple[bool, int | None]:
    """Return whether a group is paused, and what its width leaves to those that do not run yet.

    Those at places and on the way there take part of it, too.
    """
    is_paused, left = connection.execute(ROOM, (group,)).fetchone() or (False, None)
    return bool(is_paused), None if left is None else max(0, int(left))


def _next(
    connection: Any, lane: Lane, room: int, own_at_most: int | None = None
) -> list[tuple[int, Lane]]:
    """Return the next tasks of the group of a lane, each with its own lane.

    Of the lane itself no more than `own_at_most`. Tasks of an owner that gives no sign of life are
    passed over: no process would start them.
    """
    waiting = []
    for each in _lanes(connection, lane[0]):
        if each == lane or _is_served(connection, each):
            at_most = room if each != lane or own_at_most is None else min(room, own_at_most)
            waiting += [(*order, each) for order in _first(connection, each, at_most)]
    return [(key, each) for _priority, _place, key, each in sorted(waiting)[:room]]


def _first_of_all(connection: Any, lane: Lane) -> list[tuple[int, Lane]]:
    """Return the first tasks of a lane, and the first of its group that ask for the machine.

    For a group without a width, whose tasks have an order only if they ask for something.
    """
    waiting = [(*order, lane) for order in _first(connection, lane, LOOKED_AT, PLAIN)]
    for session in _sessions_asking(connection, lane[0]):
        each = (lane[0], session, "process")
        if each == lane or _is_served(connection, each):
            waiting += [(*order, each) for order in _first_asking(connection, each)]
    return [(key, each) for _priority, _place, key, each in sorted(waiting)]


def _sessions_asking(connection: Any, group: str) -> list[str]:
    rows = connection.execute(
        f"""SELECT DISTINCT session_id FROM tasks INDEXED BY tasks_demanding
        WHERE {DEMANDING} AND group_name = ?""",
        (group,),
    )
    return [session for (session,) in rows]


def _lanes(connection: Any, group: str) -> Iterator[Lane]:
    query = f"""SELECT session_id FROM tasks INDEXED BY tasks_queue
        WHERE {READY} AND group_name = ? AND session_id > ? ORDER BY session_id LIMIT 1"""
    session = ""
    while (row := connection.execute(query, (group, session)).fetchone()) is not None:
        (session,) = row
        for runner in RUNNERS:
            yield group, session, runner


Order = tuple[int, float, int]
"""What the tasks of a group are sorted by; the last is the key."""


def _first(connection: Any, lane: Lane, at_most: int, condition: str = READY) -> list[Order]:
    """Return the first tasks of a lane."""
    rows = connection.execute(
        f"""SELECT -priority, coalesce(place, key), key FROM tasks INDEXED BY tasks_queue
        WHERE {condition} AND group_name = ? AND session_id = ? AND runner = ?
        ORDER BY {ORDER} LIMIT ?""",
        (*lane, at_most),
    )
    return [(priority, place, key) for priority, place, key in rows]


def _first_asking(connection: Any, lane: Lane) -> list[Order]:
    """Return the first tasks of a lane that ask for a part of the machine."""
    group, session, _runner = lane
    rows = connection.execute(
        f"""SELECT -priority, coalesce(place, key), key FROM tasks INDEXED BY tasks_demanding
        WHERE {DEMANDING} AND session_id = ? AND group_name = ? ORDER BY {ORDER} LIMIT ?""",
        (session, group, LOOKED_AT),
    )
    return [(priority, place, key) for priority, place, key in rows]


def _is_served(connection: Any, lane: Lane) -> bool:
    """Return whether the process that starts a lane's tasks has shown that it is alive."""
    _group, session_id, runner = lane
    query = (
        """SELECT 1 FROM supervisors INDEXED BY supervisors_unfinished WHERE session_id = ?
        AND ended_at IS NULL AND heartbeat_at > ? LIMIT 1"""
        if runner == "process"
        else """SELECT 1 FROM sessions WHERE id = ?
        AND ended_at IS NULL AND heartbeat_at > ?"""
    )
    return connection.execute(query, (session_id, time.time() - SILENT_S)).fetchone() is not None
