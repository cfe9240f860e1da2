"""What the user says about the queue: what a task waits for, the groups, and the order."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import DEFAULT_GROUP, TaskRecord, TaskState
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.demanding import demanded, require_possible
from ipytaskpersist.session.estimates import starts_in
from ipytaskpersist.session.requests import THREAD, PlaceInQueue, Request
from ipytaskpersist.store.queue import (
    ANY,
    CONDITIONS,
    FAILED,
    OK,
    Admission,
    Dependency,
    GroupRecord,
)
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.durations import parse_age, parse_moment
from ipytaskpersist.text.formatting import duration, utc_now

if TYPE_CHECKING:
    from ipytaskpersist.session.finding import TaskFinder
    from ipytaskpersist.session.task_settings import TaskSettings

SHOWN_AT_MOST = 30
EXPECTED_S = 5.0
"""For how long it is kept when the tasks of a group will probably start."""


@dataclass(frozen=True, slots=True)
class GroupOverview:
    """A group, and the tasks that wait in it."""

    group: GroupRecord
    tasks: Sequence[TaskRecord]
    """The next of its waiting tasks, in the order in which they start."""
    starts_in: Mapping[int, float] = field(default_factory=dict)
    """In how many seconds they probably start, by row; of tasks without an estimate nothing."""

    def start_of(self, task: TaskRecord) -> str:
        """Return ``in about 12:30`` for a waiting task; empty without an estimate."""
        seconds = self.starts_in.get(task.key)
        if seconds is None:
            return ""
        return "any moment" if seconds < 1 else f"in about {duration(seconds)}"


NEEDED = {OK: "completes", FAILED: "fails"}


class Queueing:
    """The queue as this process asks for it."""

    def __init__(self, settings: TaskSettings, store: TaskStore, tasks: TaskFinder) -> None:
        self._settings = settings
        self._store = store
        self._tasks = tasks
        self._expected: dict[str, tuple[float, Mapping[int, str]]] = {}
        """When and as what it was found by group when its waiting tasks start, in words by row."""

    # Launches.

    def admission(self, request: Request, notebook_key: int) -> Admission:
        """Return what a new task waits for. Raise `InvalidRequest` for what can never be."""
        place = request.place
        demands = demanded(
            place, lambda: self._store.processes.last_peak(notebook_key, request.name)
        )
        self._apply_width_of_settings()
        group = self._group_of(place.group)
        after = [*dict.fromkeys(map(self._dependency, place.after))]
        if len({dependency.key for dependency in after}) < len(after):
            raise InvalidRequest("--after names a task twice, with different conditions")
        return Admission(group, place.priority, after, _due_at(place), demands)

    def again(self, task: TaskRecord) -> Admission:
        """Return what a task that is run again waits for: room in the same group, if it is there.

        It needs as much of the machine as before. What else it waited for has happened.
        """
        require_possible(task.demands)
        names = {group.name for group in self.groups()}
        group = task.group if task.group in names else DEFAULT_GROUP
        return Admission(self._said_if_paused(group), demands=task.demands)

    def _apply_width_of_settings(self) -> None:
        width = self._settings.max_running
        if width is None:
            return
        known = self._store.queue.width(DEFAULT_GROUP)
        if known != width:
            self._store.queue.set_width(DEFAULT_GROUP, width)

    def _group_of(self, name: str) -> str:
        if name and name != DEFAULT_GROUP:
            self.group(name)  # there must be one
        return self._said_if_paused(name or DEFAULT_GROUP)

    def _said_if_paused(self, name: str) -> str:
        """Return a group's name. Say so if it is paused: the task that is launched waits."""
        if self._store.open().queue.is_paused(name):
            print(
                f"group {legible(name)} is paused, so the task waits; "
                f"%bg_group {legible(name)} --continue lets it start",
                file=sys.stderr,
            )
        return name

    def _dependency(self, given: str) -> Dependency:
        """Return the task that ``any:3`` refers to, and how it has to end."""
        condition, colon, reference = given.partition(":")
        if not colon or condition not in CONDITIONS:
            condition, reference = OK, given
        if not reference.strip():
            raise InvalidRequest(f"--after {given} names no task; --after {condition}:3 does")
        task = self._tasks.find(reference)
        if task.archive:
            raise InvalidRequest(
                f"task {task.label} is in the archive, where nothing ends any more; launch this "
                "task without --after, and with the value of that one instead of the task"
            )
        is_ok = task.exit_code == 0
        if task.state.is_final and condition not in (ANY, OK if is_ok else FAILED):
            raise InvalidRequest(
                f"task {task.label} has ended ({task.state.value}), so it never "
                f"{NEEDED[condition]}; --after any:{task.number} waits for its end alone, however "
                "that was"
            )
        return Dependency(task.key, condition)

    # Groups.

    def groups(self) -> list[GroupRecord]:
        """Return all groups, by name."""
        return self._store.queue.groups() if self._store.exists else []

    def group(self, name: str) -> GroupRecord:
        """Return a group. Raise `InvalidRequest` if there is none, and say which there are."""
        known = {group.name: group for group in self.groups()}
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; '{near[0]}' is one" if near else ""
        raise InvalidRequest(
            f"there is no group '{legible(name)}'{meant}; "
            f"%bg_group {legible(name)} --width 2 makes it"
        )

    def overview(self, groups: Sequence[GroupRecord]) -> list[GroupOverview]:
        """Return groups with the next of their waiting tasks."""
        found = []
        for group in groups:
            keys = self._store.queue.next_keys(group.name, SHOWN_AT_MOST)
            tasks = self._store.tasks.of_keys(keys)
            tasks.sort(key=lambda task: keys.index(task.key))
            found.append(GroupOverview(group, tasks, starts_in(self._store, group, tasks)))
        return found

    def place_of(self, task: TaskRecord) -> tuple[int, str]:
        """Return how many tasks of its group start before a waiting one, and when it starts."""
        (overview,) = self.overview([self.group(task.group)])
        return self._store.queue.ahead(task.key), overview.start_of(task)

    def expected(self, tasks: Sequence[TaskRecord]) -> dict[int, str]:
        """Return when those of these tasks that wait for their group will probably start, by row.

        Each in words: ``in about 12:30``. Many cards ask for it, so it is kept for some seconds.
        """
        waiting = [task for task in tasks if task.state is TaskState.PENDING and not task.archive]
        names = {task.group for task in waiting if task.waiting and task.waiting.width is not None}
        now = time.monotonic()
        for name in names:
            known = self._expected.get(name)
            if known is None or now - known[0] >= EXPECTED_S:
                (found,) = self.overview([self.group(name)])
                starts = {
                    task.key: start for task in found.tasks if (start := found.start_of(task))
                }
                self._expected[name] = (now, starts)
        starts_of = {name: self._expected[name][1] for name in names}
        return {
            task.key: starts_of[task.group][task.key]
            for task in waiting
            if task.key in starts_of.get(task.group, {})
        }

    def change_group(
        self, name: str, width: int | None, *, unlimited: bool, paused: bool | None
    ) -> GroupRecord:
        """Set a group's width, or pause it; a width makes a new one. Return the group."""
        self._store.open().require_writable()
        if width is not None or unlimited:
            self._store.queue.set_width(name, width)
        if paused is not None:
            self.group(name)
            self._store.queue.pause_group(name, time.time() if paused else None)
        return self.group(name)

    # Pauses.

    def pause(self, task: TaskRecord, *, keep_slot: bool) -> bool:
        """Have a task paused. Return whether it runs. Raise `InvalidRequest` in a thread."""
        if task.runner == THREAD:
            raise InvalidRequest(
                f"task {task.label} runs in a thread of its kernel, which cannot be paused; tasks "
                "launched with --process or --shell can"
            )
        if task.state is TaskState.PENDING:
            raise InvalidRequest(
                f"task {task.label} has not started yet; %bg_group {legible(task.group)} --pause "
                "keeps the tasks of its group from starting"
            )
        self._store.require_writable()
        return self._store.queue.request_pause(task.key, keep_slot=keep_slot)

    def go_on(self, task: TaskRecord) -> bool:
        """Have a paused task continued as soon as its group has room. Return whether it runs."""
        self._store.require_writable()
        return self._store.queue.request_continue(task.key)

    # The order.

    def move(self, tasks: Sequence[TaskRecord], *, first: bool) -> None:
        """Move pending tasks before all others of their groups, or behind them, in this order."""
        for task in reversed(tasks) if first else tasks:
            if not self._store.queue.move_to_end(task.key, first=first):
                raise _not_waiting(task)

    def move_before(self, task: TaskRecord, other: TaskRecord) -> None:
        """Move a pending task to just before another one of its group."""
        if task.id == other.id:
            raise InvalidRequest(f"task {task.label} cannot be moved before itself")
        for each in (task, other):
            if each.state is not TaskState.PENDING:
                raise _not_waiting(each)
        if task.group != other.group:
            raise InvalidRequest(
                f"task {task.label} is in group {legible(task.group)} and task {other.label} in "
                f"group {legible(other.group)}; only tasks of one group have an order"
            )
        if not self._store.queue.move_before(task.key, other.key):
            raise _not_waiting(self._tasks.refresh(task))


def _due_at(place: PlaceInQueue) -> float | None:
    """Return the time before which a task does not start, in seconds since the epoch."""
    if place.at and place.delay:
        raise InvalidRequest("--at and a delay (--in 2h) exclude each other; give one of them")
    if place.delay:
        return time.time() + parse_age(place.delay)
    return parse_moment(place.at, utc_now().astimezone()).timestamp() if place.at else None


def _not_waiting(task: TaskRecord) -> InvalidRequest:
    return InvalidRequest(
        f"task {task.label} is {task.state.value}; only a task that waits can be moved"
    )
