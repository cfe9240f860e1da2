"""The tasks of a supervisor that run at places: handed over, followed, told things, forgotten.

For each place there is one link. One request at a time asks for what all of its tasks have sent;
the answer comes as soon as one of them has sent something.
"""

from __future__ import annotations

import json
import selectors
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, ResultRecord, TaskState
from ipytaskpersist.base.retries import LOST_AT
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.output.recording import WAITING_CHARACTERS
from ipytaskpersist.places.messages import SpoolDamaged
from ipytaskpersist.runners.bringing import Bringing
from ipytaskpersist.runners.fetching import Fetching
from ipytaskpersist.runners.link import Json, Link, Take
from ipytaskpersist.runners.placed import NOT_STARTED, Placed
from ipytaskpersist.runners.sending import Sending
from ipytaskpersist.runners.sent_files import has_own_folder
from ipytaskpersist.values.travelling import FileToSend

WAIT_S = 0.1
"""How long the far end waits for news before it answers."""
AT_MOST_BYTES = 4 * 1024 * 1024
AGAIN_S = 1.0
"""Time before a place is asked again that did not answer, or has no room."""
LOOK_S = 1.0
"""How often the tasks are looked at that have not begun."""
UNUSED_S = 3600.0
"""How long a place keeps an array for the next task that is given it."""
FORGET_S = 10.0
"""For how long a supervisor that has nothing left to do tries to remove what is left over there."""


GivenFiles = Callable[[], Sequence[FileToSend]]


class Writer(Protocol):
    """What is used of the recorder."""

    backlog: Any

    def post(self, change: Callable[[Any], object]) -> None:
        """Change a state after everything that was printed."""


class _Place:
    """One place with its tasks."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.tasks: dict[int, Placed] = {}
        self.is_reading = False
        self.look_at = 0.0
        """When to look again at the tasks that have not begun, by the monotonic clock."""
        self.left: set[str] = set()
        """Folders of ended tasks that are still there."""
        self.is_forgetting = False
        self.unreachable_since: float | None = None
        self.unreachable_why: str | None = None
        """Since when it does not answer, in seconds since the epoch."""
        self.again_at = 0.0


class Placements:
    """All places of one supervisor."""

    def __init__(
        self,
        directory: StateDirectory,
        selector: selectors.BaseSelector,
        recorder: Writer,
        on_end: Callable[[Placed], None],
    ) -> None:
        """`on_end` is called with a task that has ended, after all that it has sent."""
        self._directory = directory
        self._selector = selector
        self._recorder = recorder
        self._on_end = on_end
        self._places: dict[str, _Place] = {}
        self._leaving_at: float | None = None

    def add(
        self, task: Placed, environment: Mapping[str, str | None], given: GivenFiles | None
    ) -> None:
        """Hand a task to its place, or follow one that it may have already.

        `given` returns the files that it is given; None for a task that is given none.
        """
        place = self._place_of(task)
        place.tasks[task.record.task_key] = task
        if task.may_run and task.record.far:
            task.is_there = task.has_begun = True
        elif given is None:
            self._start(place, task, _brief(task, environment))
        else:
            self._send(place, task, _brief(task, environment), given)

    def _send(self, place: _Place, task: Placed, brief: Json, given: GivenFiles) -> None:
        """Send what a task in Python is given, then ask for its start."""
        task.is_asked = task.has_files_there = True
        again = partial(self._send, place, task, brief, given)

        def refuse(answer: Json) -> None:
            task.is_asked = False
            self._has_started(place, task, again, answer)

        try:
            files = given()
        except (BackgroundError, OSError) as error:
            self._fail(place, task, TaskState.FAILED, f"{NOT_STARTED}{error}")
            return
        Sending(
            partial(self._ask, place),
            task.folder,
            files,
            then=partial(self._start, place, task, brief, again),
            on_refusal=refuse,
            is_wanted=lambda: not task.has_ended,
            say=partial(self._waits, task),
        ).begin()

    @staticmethod
    def _ask(place: _Place, request: Json, take: Take, data: bytes) -> None:
        place.link.ask(request, take, data)

    def _place_of(self, task: Placed) -> _Place:
        known = json.dumps(task.record.place, sort_keys=True)
        if known not in self._places:
            assert task.record.place is not None
            link = Link(task.record.place, self._directory, self._selector)
            self._places[known] = _Place(link)
        return self._places[known]

    @property
    def pids(self) -> list[int]:
        """The pids of the programs that carry the messages."""
        return [pid for each in self._places.values() if (pid := each.link.pid) is not None]

    @property
    def next_at(self) -> float:
        """When something is due, by the monotonic clock."""
        places = self._places.values()
        times = [place.again_at for place in places if place.tasks or place.left]
        return min(times, default=float("inf"))

    @property
    def has_tasks(self) -> bool:
        """Whether a place has tasks whose end is not recorded, or that are not forgotten there."""
        return any(place.tasks or place.left for place in self._places.values())

    # What is due.

    def turn(self, now: float) -> None:
        """Ask the places for what is due."""
        for place in self._places.values():
            if (place.tasks or place.left) and now >= place.again_at:
                place.again_at = now + AGAIN_S
                self._tell(place)
                self._forget(place)
                self._bring_more(place)
                self._look(place, now)
                self._read(place)

    def soon(self, task: Placed) -> None:
        """Tell a task's place what it is to be told without delay."""
        self._place_of(task).again_at = 0.0

    def _start(
        self, place: _Place, task: Placed, brief: Json, again: Callable[[], None] | None = None
    ) -> None:
        """Ask a place to start a task. It does so once, however often it is asked.

        `again` asks for it once more, with what has to come before.
        """
        again = again or partial(self._start, place, task, brief)
        may_run_before = task.may_run
        task.is_asked = task.may_run = True
        request = {"verb": "start", "folder": task.folder, "brief": brief, "detach": True}

        def take(answer: Json, _data: bytes) -> None:
            task.is_asked = False
            if answer.get("pending") or answer.get("unsent"):
                task.may_run = may_run_before
            self._has_started(place, task, again, answer)

        place.link.ask(request, take)

    def _has_started(
        self, place: _Place, task: Placed, again: Callable[[], None], answer: Json
    ) -> None:
        is_unreachable = self._is_unreachable(place, answer)
        if task.ending is not None and not task.may_run:
            self._fail(place, task, task.ending.end_state, task.ending.reason)
        elif is_unreachable or answer.get("again"):
            task.again = again
        elif answer.get("pending"):
            task.again = again
            self._waits(task, str(answer.get("why") or ""))
        elif "error" in answer:
            self._fail(place, task, TaskState.FAILED, f"{NOT_STARTED}{answer['error']}")
        else:
            task.is_there = True
            task.far = {**task.far, **_facts(answer)}
            if "job" not in answer:
                self._begin(task)
            place.again_at = 0.0

    def _tell(self, place: _Place) -> None:
        for task in [*place.tasks.values()]:
            if task.again is not None and not task.is_asked:
                again, task.again = task.again, None
                if task.ending is None:
                    again()
                else:
                    self._look_for(place, task, again)
            elif task.is_there and task.signals:
                for what in task.signals:
                    request = {"verb": "signal", "folder": task.folder, "what": what}
                    place.link.ask(request, partial(self._was_told, place, task, what))
                task.signals = []

    def _look_for(self, place: _Place, task: Placed, again: Callable[[], None]) -> None:
        """Find out whether a place has a task that was cancelled before that was known."""
        task.is_asked = True

        def take(answer: Json, _data: bytes) -> None:
            task.is_asked = False
            if self._is_unreachable(place, answer):
                task.again = again
                return
            look = (answer.get("looks") or [{}])[0]
            if look.get("state") == "absent" and task.ending is not None:
                self._fail(place, task, task.ending.end_state, task.ending.reason)
            else:
                task.is_there = True

        place.link.ask({"verb": "look", "folders": [task.folder]}, take)

    def _was_told(self, place: _Place, task: Placed, what: str, answer: Json, _data: bytes) -> None:
        if self._is_unreachable(place, answer) or "error" in answer:
            task.signals.append(what)  # a cancellation must not be lost

    # What they have sent.

    def _read(self, place: _Place) -> None:
        there = [each for each in place.tasks.values() if each.is_there and not each.has_ended]
        has_room = self._recorder.backlog.characters < WAITING_CHARACTERS
        if place.is_reading or not there:
            return
        if not has_room:
            place.again_at = time.monotonic() + WAIT_S
            return
        place.is_reading = True
        request = {
            "verb": "read",
            "tasks": [[task.folder, task.offset] for task in there],
            "at_most": AT_MOST_BYTES,
            "wait_s": WAIT_S,
        }
        place.link.ask(request, partial(self._has_read, place, there))

    def _has_read(self, place: _Place, tasks: list[Placed], answer: Json, data: bytes) -> None:
        place.is_reading = False
        # A place that cannot say what its tasks have sent is out of reach, whatever the reason.
        if self._is_unreachable(place, {**answer, "unreachable": "error" in answer}):
            return
        position = 0
        for task, (count, look) in zip(tasks, answer.get("tasks", ()), strict=False):
            piece = data[position : position + count]
            position += count
            if not task.has_ended:
                self._take(place, task, piece, look or {})
        place.again_at = 0.0

    def _take(self, place: _Place, task: Placed, piece: bytes, look: Json) -> None:
        state = look.get("state")
        task.far = {**task.far, **_facts(look)}
        if state in ("running", "ended") and not task.has_begun:
            self._begin(task)
        elif state == "pending":
            self._waits(task, str(look.get("why") or ""))
        try:
            if piece:
                task.take(piece)
        except SpoolDamaged as error:
            self._fail(place, task, TaskState.FAILED, f"{error}; what came before is kept")
            return
        if task.has_ended:
            self._bring(place, task)
        elif state == "ended" and not piece:
            reason = f"its spool at {task.name} was cut; what came before is kept"
            self._fail(place, task, TaskState.FAILED, reason)
        elif state in ("lost", "absent") and not piece:
            why = str(look.get("why") or "its keeper is gone")
            # What it has left over there would run unseen.
            request = {"verb": "signal", "folder": task.folder, "what": "kill"}
            place.link.ask(request, lambda _answer, _data: None)
            self._fail(place, task, TaskState.INTERRUPTED, f"{LOST_AT}{task.name}: {why}")

    def _look(self, place: _Place, now: float) -> None:
        """Look at the tasks that have not begun: they send nothing, and may wait in a queue."""
        there = [each for each in place.tasks.values() if each.is_there and not each.has_begun]
        waiting = [each for each in there if not each.has_ended]
        if not waiting or now < place.look_at:
            return
        place.look_at = now + LOOK_S
        request = {"verb": "look", "folders": [task.folder for task in waiting]}
        place.link.ask(request, partial(self._has_looked, place, waiting))

    def _has_looked(self, place: _Place, tasks: list[Placed], answer: Json, _data: bytes) -> None:
        if self._is_unreachable(place, answer):
            return
        for task, look in zip(tasks, answer.get("looks", ()), strict=False):
            if not task.has_ended and look.get("state") in ("running", "pending"):
                self._take(place, task, b"", look)

    def _bring(self, place: _Place, task: Placed) -> None:
        """Bring back what an ended task has left, and record its end then."""

        def has_come(results: list[ResultRecord]) -> None:
            task.results = results
            self._fetch(place, task)

        task.bringing = Bringing(
            partial(self._ask, place),
            self._directory,
            task.record.task_id,
            task.folder,
            task.results,
            then=has_come,
            is_unreachable=partial(self._is_unreachable, place),
        )
        task.bringing.go_on()

    def _fetch(self, place: _Place, task: Placed) -> None:
        """Fetch the files that the user wants back from an ended task."""
        options = task.record.options
        if not options.fetch or not task.has_begun:
            self._has_fetched(task, [])
            return
        task.bringing = Fetching(
            partial(self._ask, place),
            task.folder,
            options.fetch,
            Path(options.here or "/"),
            then=partial(self._has_fetched, task),
            is_unreachable=partial(self._is_unreachable, place),
            say=task.recording.progress,
        )
        task.bringing.go_on()

    def _has_fetched(self, task: Placed, problems: list[str]) -> None:
        for problem in problems:
            task.recording.write(OutputKind.STDERR, f"{legible(problem)}\n")
        task.bringing = None
        self._on_end(task)

    @staticmethod
    def _bring_more(place: _Place) -> None:
        """Go on with what a place that did not answer was asked for."""
        for task in [*place.tasks.values()]:
            if task.bringing is not None and task.bringing.is_silent:
                task.bringing.go_on()

    def _begin(self, task: Placed) -> None:
        task.has_begun = True
        key, far, at = task.record.task_key, dict(task.far), time.time()
        self._recorder.post(lambda store: store.elsewhere.began(key, far, at))

    def _waits(self, task: Placed, why: str) -> None:
        key, words = task.record.task_key, f"waits for {task.name}: {why}" if why else None
        self._recorder.post(lambda store: store.elsewhere.waits(key, words))

    def _fail(self, place: _Place, task: Placed, state: TaskState, reason: str) -> None:
        task.fail(state, reason)
        self._bring(place, task)

    # Whether they answer.

    def _is_unreachable(self, place: _Place, answer: Json) -> bool:
        """Note whether a place answers. Returns whether it does not."""
        is_lost = bool(answer.get("unreachable"))
        if is_lost:
            place.again_at = time.monotonic() + AGAIN_S
        why = str(answer["error"]) if is_lost else None
        if is_lost and why != place.unreachable_why:
            place.unreachable_since = place.unreachable_since or time.time()
            place.unreachable_why = why
            self._say_reach(place.tasks.values(), place.unreachable_since, why)
        elif not is_lost and place.unreachable_since is not None:
            place.unreachable_since = place.unreachable_why = None
            self._say_reach(place.tasks.values(), None, None)
        return is_lost

    def _say_reach(self, tasks: Iterable[Placed], since: float | None, why: str | None) -> None:
        keys = [task.record.task_key for task in tasks]
        self._recorder.post(lambda store: store.elsewhere.unreachable(keys, since, why))
        for task in tasks:
            if not task.has_begun:
                self._waits(task, why or "")

    # What is left there.

    def _forget(self, place: _Place) -> None:
        """Remove what ended tasks have left over there, once all of it is recorded here."""
        done = [task for task in place.tasks.values() if task.is_committed]
        place.left.update(task.folder for task in done if task.is_there or task.has_files_there)
        for task in done:
            del place.tasks[task.record.task_key]
        if place.left and not place.is_forgetting:
            place.is_forgetting = True
            request = {"verb": "forget", "folders": sorted(place.left), "unused_s": UNUSED_S}
            place.link.ask(request, partial(self._has_forgotten, place, {*place.left}))

    def _has_forgotten(self, place: _Place, folders: set[str], answer: Json, _data: bytes) -> None:
        place.is_forgetting = False
        if not self._is_unreachable(place, answer) and "error" not in answer:
            # A keeper may be there for a moment after the last that its task has sent.
            place.left -= folders - {*(answer.get("kept") or ())}

    def may_leave(self) -> bool:
        """Return whether nothing is to be done at places, or it was tried long enough."""
        if not self.has_tasks:
            return True
        now = time.monotonic()
        self._leaving_at = self._leaving_at or now + FORGET_S
        return now >= self._leaving_at

    def end(self) -> None:
        """End the programs that carry the messages. The tasks go on."""
        for place in self._places.values():
            place.link.end()


def _brief(task: Placed, environment: Mapping[str, str | None]) -> Json:
    """Return what an agent is to know of a task. Its own Python runs one in Python."""
    record = task.record
    return {
        "task_id": record.task_id,
        "command": list(record.command),
        "script": record.script,
        "script_as": record.script_as,
        "pty": record.pty,
        "directory": record.directory,
        "own_directory": has_own_folder(record.options),
        "environment": dict(environment),
        "timeout_s": record.timeout_s,
        "memory_bytes": record.memory_bytes,
        "grace_s": record.grace_s,
        "python": task.is_python,
        "channel": task.is_python,
    }


FACTS = ("host", "pid", "worker", "job", "node", "started_at")


def _facts(answer: Json) -> Json:
    """Return what an answer says of where a task runs."""
    return {name: answer[name] for name in FACTS if isinstance(answer.get(name), str | int | float)}
