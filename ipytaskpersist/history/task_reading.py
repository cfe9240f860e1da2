"""Sessions and tasks out of JSON documents, each member checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.records import Progress, TaskState
from ipytaskpersist.base.redaction import without_values
from ipytaskpersist.base.retries import CAUSES, Retries
from ipytaskpersist.base.schedules import MISSED, Schedule
from ipytaskpersist.history.fields import (
    LARGEST,
    LINE_CHARACTERS,
    TEXT_CHARACTERS,
    Document,
    Fields,
)
from ipytaskpersist.store.portable import (
    PortableEvent,
    PortableNotebook,
    PortableProcess,
    PortableSession,
    PortableTask,
)

NUMBERS_AT_MOST = 10**9
PATH_CHARACTERS = 4_096
SOURCE_CHARACTERS = 16_000_000
PROVENANCE_CHARACTERS = 64_000
POST_MORTEM_CHARACTERS = 64_000
PROGRESS_AT_MOST = 1e18
TEXTS = ("directory", "python", "executable", "host", "rerun_of", "try_of", "original_id")
"""What must be a text in a provenance."""
SESSION_ID = r"[A-Za-z0-9_.:@+-]{1,200}"


def session_of(document: Any, place: str = "") -> PortableSession:
    """The session that a document describes."""
    known = Fields.of(document, place)
    notebook = known.inside("notebook")
    ended_at = known.maybe(known.number, "ended_at")
    heartbeat_at = known.number("heartbeat_at")
    # A session that was active has ended as far as this store can ever know.
    reason = known.text("end_reason") if ended_at is not None else "was active when it was exported"
    return PortableSession(
        id=known.text("id", LINE_CHARACTERS, SESSION_ID),
        notebook=PortableNotebook(
            uid=notebook.text("uid", 64, r"[A-Za-z0-9-]{8,64}"),
            path=notebook.text("path", PATH_CHARACTERS),
            last_number=notebook.whole("last_number", 0, NUMBERS_AT_MOST),
            created_at=notebook.number("created_at"),
        ),
        path=known.text("path", PATH_CHARACTERS),
        has_path=known.flag("has_path"),
        kernel_uuid=known.maybe(known.text, "kernel_uuid"),
        front_end=known.choice("front_end", ("kernel", "terminal", "program")),
        host=known.text("host"),
        pid=known.whole("pid"),
        process_start=known.text("process_start"),
        boot_id=known.text("boot_id"),
        started_at=known.number("started_at"),
        heartbeat_at=heartbeat_at,
        ended_at=heartbeat_at if ended_at is None else ended_at,
        end_reason=reason,
        pid_namespace=known.maybe(known.whole, "pid_namespace"),
    )


def task_of(document: Any, place: str = "") -> PortableTask:
    """The task that a document describes, without its outputs and results."""
    known = Fields.of(document, place)
    task = PortableTask(
        id=known.printable("id"),
        number=known.whole("number", 1, NUMBERS_AT_MOST),
        session=known.text("session"),
        name=known.text("name"),
        kind=known.choice("kind", ("python", "shell")),
        runner=known.choice("runner", ("thread", "process")),
        state=TaskState(known.choice("state", [*TaskState])),
        reason=known.maybe(known.text, "reason", TEXT_CHARACTERS),
        exit_code=known.maybe(known.whole, "exit_code", -LARGEST),
        created_at=known.number("created_at"),
        started_at=known.maybe(known.number, "started_at"),
        ended_at=known.maybe(known.number, "ended_at"),
        cancel_requested_at=known.maybe(known.number, "cancel_requested_at"),
        cleared_at=known.maybe(known.number, "cleared_at"),
        cell_id=known.maybe(known.text, "cell_id"),
        execution_count=known.maybe(known.whole, "execution_count"),
        source=known.text("source", SOURCE_CHARACTERS),
        is_call=known.flag("is_call"),
        max_output_bytes=known.maybe(known.whole, "max_output_bytes"),
        dropped_bytes=known.whole("dropped_bytes"),
        provenance=_provenance(known),
        progress=known.maybe(lambda name: _progress(known.inside(name)), "progress"),
        post_mortem=known.maybe(lambda name: _post_mortem(known.inside(name)), "post_mortem"),
        tags=_tags(known),
        history=_history(known),
        process=known.maybe(lambda name: _process(known.inside(name)), "process"),
        **_queue(known),
    )
    check_states(task, known)
    return task


def _queue(known: Fields) -> Document:
    """What a file of an earlier version lacks: group, demands, tries and schedule."""
    read: dict[str, Callable[[str], Any]] = {
        "group": known.printable,
        "priority": lambda name: known.whole(name, -LARGEST),
        "paused_s": known.number,
        "gpu_ids": known.texts,
        "try_number": lambda name: known.whole(name, 1, NUMBERS_AT_MOST),
        "demands": lambda name: _demands(known.inside(name)),
        "retries": lambda name: _retries(known.inside(name)),
        "schedule": lambda name: _schedule(known.inside(name)),
    }
    return {name: value(name) for name, value in read.items() if known.has(name)}


def _demands(known: Fields) -> Demands:
    return Demands(
        cpus=known.maybe(known.number, "cpus", NUMBERS_AT_MOST),
        memory_bytes=known.maybe(known.whole, "memory_bytes"),
        gpus=known.maybe(known.whole, "gpus"),
        gpu_memory_bytes=known.maybe(known.whole, "gpu_memory_bytes"),
    )


def _retries(known: Fields) -> Retries:
    causes = known.texts("causes")
    if not {*causes} <= {*CAUSES}:
        raise known.refuse("causes", f"are not all of {', '.join(CAUSES)}")
    return Retries(
        count=known.whole("count", 0, NUMBERS_AT_MOST),
        causes=causes,
        delay_s=known.number("delay_s"),
        max_delay_s=known.number("max_delay_s"),
        memory_factor=known.maybe(known.number, "memory_factor"),
        most_memory_bytes=known.maybe(known.whole, "most_memory_bytes"),
    )


def _schedule(known: Fields) -> Schedule:
    every_s = known.maybe(known.number, "every_s")
    cron = known.maybe(known.text, "cron")
    if (every_s is None) == (cron is None):
        raise known.refuse("cron", "and every_s exclude each other, and one is needed")
    return Schedule(
        every_s=every_s,
        cron=cron,
        zone=known.text("zone"),
        missed=known.choice("missed", MISSED),
        first_at=known.number("first_at"),
        due_at=known.number("due_at"),
        first_task=known.maybe(known.printable, "first_task"),
    )


def check_states(task: PortableTask, known: Fields) -> None:
    """Raise `InvalidRecord` where times, exit code and history do not go with the state."""
    if task.state.is_final != (task.ended_at is not None):
        raise known.refuse("ended_at", f"does not go with the state {task.state.value}")
    began = task.state in (TaskState.RUNNING, TaskState.COMPLETED)
    if task.started_at is None if began else task.state is TaskState.PENDING and task.started_at:
        raise known.refuse("started_at", f"does not go with the state {task.state.value}")
    with_code = (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)
    if task.exit_code is not None and task.state not in with_code:
        raise known.refuse("exit_code", f"does not go with the state {task.state.value}")
    if task.state is TaskState.COMPLETED and task.exit_code != 0:
        raise known.refuse("exit_code", "is not 0, though the task has completed")
    # What a damaged store has lost may be missing, but nothing may be there that never happens.
    if not all(_may_follow(*pair) for pair in pairwise(event.state for event in task.history)):
        raise known.refuse("history", "is not a course that a task's states can take")
    last = task.history[-1].state if task.history else task.state
    if last.is_final and last is not task.state:
        raise known.refuse("history", f"does not end with {task.state.value}")


def _may_follow(before: TaskState, after: TaskState) -> bool:
    """Whether a state can come after another, be it not at once."""
    if before is TaskState.INTERRUPTED:
        return after is TaskState.RUNNING  # another process took its owner for dead
    return not before.is_final and after is not before and after is not TaskState.PENDING


def _history(known: Fields) -> tuple[PortableEvent, ...]:
    found = []
    for place, entry in known.each("history"):
        event = Fields.of(entry, place)
        state = TaskState(event.choice("state", [*TaskState]))
        reason = event.maybe(event.text, "reason", TEXT_CHARACTERS)
        found.append(PortableEvent(state, reason, event.number("at")))
    return tuple(found)


def _tags(known: Fields) -> tuple[str, ...]:
    tags = known.texts("tags", 200)
    for place, tag in enumerate(tags):
        if not tag or not tag.isprintable():
            raise known.refuse(f"tags[{place}]", "is empty or not printable")
    return tuple(sorted(set(tags)))


def _progress(known: Fields) -> Progress:
    return Progress(
        done=known.number("done", PROGRESS_AT_MOST),
        total=known.maybe(known.number, "total", PROGRESS_AT_MOST),
        text=known.text("text"),
    )


def _post_mortem(known: Fields) -> Document:
    """The frames of an error with their variables, all of them texts."""
    frames = []
    for place, frame in known.each("frames"):
        inner = Fields.of(frame, place)
        variables = [
            {name: Fields.of(each, at).text(name) for name in ("name", "type", "text")}
            for at, each in inner.each("variables")
        ]
        texts = {name: inner.text(name) for name in ("place", "function", "code")}
        frames.append({**texts, "variables": variables, "left_out": inner.whole("left_out")})
    if len(json.dumps(frames)) > POST_MORTEM_CHARACTERS:
        raise known.refuse("frames", f"is longer than {POST_MORTEM_CHARACTERS:,} characters")
    return {"frames": frames, "left_out": known.whole("left_out")}


def _provenance(known: Fields) -> Document:
    """Texts, numbers and flags by their names, at most one object deep."""
    provenance = known.inside("provenance").members
    for name, value in provenance.items():
        inner = value.values() if isinstance(value, dict) else [value]
        is_simple = all(_is_simple(each) for each in inner)
        if not is_simple or (name in TEXTS and not isinstance(value, str)):
            raise known.refuse(f"provenance.{name[:40]}", "is not what a provenance may hold")
    if len(json.dumps(provenance)) > PROVENANCE_CHARACTERS:
        raise known.refuse("provenance", f"is longer than {PROVENANCE_CHARACTERS:,} characters")
    if known.inside("provenance").has("git"):
        git = known.inside("provenance").inside("git")
        for name in ("root", "commit", "branch"):
            git.maybe(git.text, name, PATH_CHARACTERS)
    return provenance


def _is_simple(value: Any) -> bool:
    """Whether it is a text, a number or a flag. 1e999 is infinity, which no JSON can have."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int | None)


def _process(known: Fields) -> PortableProcess:
    script = known.maybe(known.text, "script", SOURCE_CHARACTERS)
    return PortableProcess(
        command=known.texts("command", SOURCE_CHARACTERS),
        script=script,
        script_as=None if script is None else known.choice("script_as", ("stdin", "file")),
        directory=known.text("directory", PATH_CHARACTERS),
        pty=known.flag("pty"),
        timeout_s=known.maybe(known.number, "timeout_s"),
        grace_s=known.number("grace_s"),
        options=_options(known.inside("options")),
        pid=known.maybe(known.whole, "pid"),
        process_start=known.maybe(known.text, "process_start"),
        cpu_s=known.maybe(known.number, "cpu_s"),
        peak_memory_bytes=known.maybe(known.whole, "peak_memory_bytes"),
        pid_namespace=known.maybe(known.whole, "pid_namespace"),
        interpreter=known.maybe(known.text, "interpreter"),
    )


def _options(known: Fields) -> Document:
    """What `Options.from_json` takes."""
    env = known.inside("env") if known.has("env") else Fields({})
    read: dict[str, Any] = {
        "cwd": known.maybe(known.text, "cwd", PATH_CHARACTERS),
        "env": without_values(
            {name: env.maybe(env.text, name, TEXT_CHARACTERS) for name in env.members}
        ),
        "timeout_s": known.maybe(known.number, "timeout_s"),
        "pty": known.maybe(known.flag, "pty"),
        "shell_path": known.maybe(known.text, "shell_path", PATH_CHARACTERS),
        "inputs": known.maybe(known.texts, "inputs"),
        "outputs": known.maybe(known.texts, "outputs"),
    }
    # Only those that were given, in the order and with the values that they have in the file.
    return {name: read[name] for name in known.members if read.get(name) is not None}
