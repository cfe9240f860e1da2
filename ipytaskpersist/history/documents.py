"""Sessions, tasks and outputs as JSON, and back. Nothing that comes back is believed unchecked.

docs/export-format.md tells what the members mean.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from ipytaskpersist.base import widget_marks
from ipytaskpersist.base.buffer_names import NAME
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, Progress, ResultRecord, TaskState
from ipytaskpersist.base.redaction import without_values
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.store.portable import (
    PortableEvent,
    PortableNotebook,
    PortableOutput,
    PortableProcess,
    PortableSession,
    PortableTask,
)
from ipytaskpersist.text.encoding import encode_content

Document = dict[str, Any]

FORMAT = "ipytaskpersist"
VERSION = 1
LINE_BYTES = 128 * 1024 * 1024
"""How long one line of a file may be that is imported."""
VALUES_AT_MOST = 10_000_000
"""How many values one line may hold: in memory each takes many times the room of its text."""
LATEST_S = 253402214400.0
"""The end of the year 9999: a `datetime` holds nothing later."""
LARGEST = 2**53
"""The largest number that every reader of JSON holds exactly."""
NUMBERS_AT_MOST = 10**9
LINE_CHARACTERS = 1_000
PATH_CHARACTERS = 4_096
TEXT_CHARACTERS = 1_000_000
SOURCE_CHARACTERS = 16_000_000
PROVENANCE_CHARACTERS = 64_000
POST_MORTEM_CHARACTERS = 64_000
PROGRESS_AT_MOST = 1e18
ENTRIES_AT_MOST = 10_000
DEPTH_AT_MOST = 200


RESERVED = frozenset(("output_type", "name", "text"))
"""What an output has beside the content of its message."""


class InvalidRecord(BackgroundError):
    """A record of a file that cannot be imported: where in it, and why."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place} {reason}" if place else reason)
        self.place = place
        self.reason = reason


# Out.


def session_document(session: PortableSession) -> Document:
    """A session as JSON."""
    return {"type": "session", **asdict(session)}


def task_document(task: PortableTask) -> Document:
    """A task as JSON, without its outputs and results, and without values of secrets."""
    document = {"type": "task", **asdict(task)}
    options = (document["process"] or {}).get("options", {})
    if "env" in options:
        options["env"] = without_values(options["env"])
    return document


def output_document(output: PortableOutput) -> Document:
    """One entry of a task's outputs as JSON."""
    known: Document = {"kind": output.kind.value, "at": output.at}
    if output.kind not in STREAM_KINDS:
        content = json.loads(output.data)
        if _is_standard(content):
            return {**known, "content": content}
    try:
        return {**known, "text": output.data.decode()}
    except UnicodeDecodeError:
        return {**known, "base64": base64.b64encode(output.data).decode()}


def _is_standard(content: Any) -> bool:
    """Whether other readers of JSON than Python's take it: it has no NaN and no infinity."""
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        return False
    return True


def result_document(
    result: ResultRecord,
    pickled: bytes | str | None,
    problem: str | None,
    buffers: Mapping[str, bytes] | None = None,
) -> Document:
    """What is known of a value as JSON: with its signed pickle, or with why there is none.

    Instead of a pickle that several values share it has the name of the first of them. `buffers`
    are the files that the pickle refers to, by name.
    """
    known: Document = {"name": result.name, "text": result.text}
    if pickled is None:
        return {**known, "problem": problem}
    known["signature"] = result.signature
    if isinstance(pickled, str):
        return {**known, "bytes": result.size_bytes, "pickle_of": pickled}
    data = base64.b64encode(pickled).decode()
    if result.size_bytes != len(pickled):
        known["bytes"] = result.size_bytes
    if buffers:
        known["buffers"] = {name: base64.b64encode(each).decode() for name, each in buffers.items()}
    return {**known, "pickle": data}


def encoded(document: Any) -> bytes:
    """A document in one line. Half of a surrogate pair is written as JSON's own escape of it."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


# In.


def parsed(data: bytes) -> Any:
    """The value of a piece of JSON. Raises `InvalidRecord` for anything else."""
    if sum(map(data.count, (b",", b"[", b"{"))) > VALUES_AT_MOST:
        raise InvalidRecord("", f"has more than {VALUES_AT_MOST:,} values")
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise InvalidRecord("", "is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRecord("", f"is not JSON ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise InvalidRecord("", "is nested too deeply") from None
    except MemoryError:
        raise InvalidRecord("", "needs more memory than there is") from None
    except ValueError as error:
        raise InvalidRecord("", f"is not JSON ({str(error).splitlines()[0]})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


@dataclass(frozen=True, slots=True)
class Fields:
    """The members of a JSON object, each checked when it is asked for."""

    members: Document
    place: str = ""

    @classmethod
    def of(cls, value: Any, place: str = "") -> Fields:
        """The members of a value, which must be an object."""
        if not isinstance(value, dict):
            raise InvalidRecord(place, "is not an object")
        return cls(value, place)

    def at(self, name: str) -> str:
        """How a message names a member."""
        return f"{self.place}.{name}" if self.place else name

    def has(self, name: str) -> bool:
        """Whether there is such a member, and not null."""
        return self.members.get(name) is not None

    def refuse(self, name: str, reason: str) -> InvalidRecord:
        """The error for a member."""
        return InvalidRecord(self.at(name), reason)

    def text(self, name: str, characters: int = LINE_CHARACTERS, pattern: str | None = None) -> str:
        """A text."""
        value = self.members.get(name)
        if not isinstance(value, str):
            raise self.refuse(name, "is not a text" if name in self.members else "is missing")
        if len(value) > characters:
            raise self.refuse(name, f"is longer than {characters:,} characters")
        if pattern is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise self.refuse(name, f"is not of the form {pattern}")
        return value

    def printable(self, name: str) -> str:
        """A text that can stand in a message, a file and a signature."""
        value = self.text(name)
        if not value.isprintable():
            raise self.refuse(name, "is not printable")
        return value

    def choice(self, name: str, values: Collection[str]) -> str:
        """One of a few texts."""
        value = self.text(name)
        if value not in values:
            raise self.refuse(name, f"is {value[:40]!r}, and must be one of {', '.join(values)}")
        return value

    def whole(self, name: str, low: int = 0, high: int = LARGEST) -> int:
        """A whole number."""
        value = self.members.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(name, "is not a whole number")
        if not low <= value <= high:
            raise self.refuse(name, f"is not between {low} and {high}")
        return value

    def number(self, name: str, high: float = LATEST_S) -> float:
        """A number that is not negative."""
        value = self.members.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, "is not a number")
        if not 0 <= value <= high or not math.isfinite(value):
            raise self.refuse(name, f"is not between 0 and {high:.0f}")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.members.get(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "is neither true nor false")
        return value

    def maybe(self, read: Callable[..., Any], name: str, *more: Any) -> Any:
        """What `read` makes of a member, or None where there is none."""
        return read(name, *more) if self.has(name) else None

    def each(self, name: str) -> Iterator[tuple[str, Any]]:
        """The entries of a list, with how messages name them."""
        value = self.members.get(name, [])
        if not isinstance(value, list):
            raise self.refuse(name, "is not a list")
        return ((f"{self.at(name)}[{place}]", entry) for place, entry in enumerate(value))

    def texts(self, name: str, characters: int = LINE_CHARACTERS) -> tuple[str, ...]:
        """A list of texts."""
        found = []
        for place, entry in self.each(name):
            if not isinstance(entry, str) or len(entry) > characters:
                raise InvalidRecord(place, f"is not a text of up to {characters:,} characters")
            found.append(entry)
        return tuple(found)

    def inside(self, name: str) -> Fields:
        """The members of an object in it."""
        return Fields.of(self.members.get(name), self.at(name))


TEXTS = ("directory", "python", "executable", "host", "rerun_of", "original_id")
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
    )
    check_states(task, known)
    return task


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


def output_of(document: Any, place: str) -> PortableOutput:
    """The entry of a task's outputs that a document describes."""
    known = Fields.of(document, place)
    kind, at = OutputKind(known.choice("kind", [*OutputKind])), known.number("at")
    if kind not in STREAM_KINDS and known.has("content"):
        content = known.inside("content")
        _check_content(kind, content)
        return PortableOutput(kind, at, encode_content(content.members))
    data = base64_of(known, "base64") if known.has("base64") else _utf_8(known)
    if kind not in STREAM_KINDS:
        _check_content(kind, Fields.of(_loosely_parsed(data, known.at("text")), place))
    return PortableOutput(kind, at, data)


def _utf_8(known: Fields) -> bytes:
    try:
        return known.text("text", LINE_BYTES).encode()
    except UnicodeEncodeError:
        raise known.refuse("text", "has half of a surrogate pair") from None


def _loosely_parsed(data: bytes, place: str) -> Any:
    """JSON with NaN and infinity, which displays may have though JSON does not."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidRecord(place, "is not JSON") from None


def base64_of(known: Fields, name: str) -> bytes:
    """The bytes that a member holds as base64."""
    try:
        return base64.b64decode(known.text(name, LINE_BYTES), validate=True)
    except (binascii.Error, ValueError):
        raise known.refuse(name, "is not base64") from None


def _check_content(kind: OutputKind, content: Fields) -> None:
    """Raise `InvalidRecord` for what no front end could show."""
    for name in RESERVED & content.members.keys():
        raise content.refuse(name, "has no place in the content of a message")
    for name in ("widget", "model"):
        if kind in widget_marks.KINDS and name in content.members:
            content.text(name)
    if kind is OutputKind.CLEAR_OUTPUT:
        content.flag("wait")
    elif kind is OutputKind.ERROR:
        content.text("ename", TEXT_CHARACTERS)
        content.text("evalue", LINE_BYTES)
        content.texts("traceback", LINE_BYTES)
        if "traceback" not in content.members:
            raise content.refuse("traceback", "is missing")
    else:
        _check_bundle(content.inside("data"))
        content.inside("metadata")
        if "transient" in content.members or kind is OutputKind.UPDATE_DISPLAY_DATA:
            content.inside("transient").maybe(content.inside("transient").text, "display_id")
        if kind is OutputKind.UPDATE_DISPLAY_DATA and "widget" in content.members:
            content.flag("inside")
        if kind is OutputKind.EXECUTE_RESULT:
            content.maybe(content.whole, "execution_count")
    _check_depth(content)


def _check_bundle(data: Fields) -> None:
    for mime, value in data.members.items():
        is_text = isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(line, str) for line in value)
        )
        if not is_text and not mime.endswith("json"):
            raise data.refuse(mime[:100], "is not a text")


def _check_depth(content: Fields) -> None:
    """What is read in one place is written in others, each of which follows every level."""
    level: Sequence[Any] = [content.members]
    for _ in range(DEPTH_AT_MOST):
        inside = (each for each in level if isinstance(each, dict | list))
        level = [
            value
            for each in inside
            for value in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise InvalidRecord(content.place, f"is nested more than {DEPTH_AT_MOST} levels deep")


@dataclass(frozen=True, slots=True)
class PortableResult:
    """What a file says of a value."""

    name: str
    text: str
    problem: str | None
    signature: str = ""
    pickled: bytes | None = None
    """Its pickle, which is nothing to rely on before its signature is verified."""
    pickle_of: str | None = None
    """The name of an earlier value of the task in whose pickle it is, too."""
    size_bytes: int | None = None
    """How much of its pickle is its own, where that has other values, too."""
    buffers: Mapping[str, bytes] = field(default_factory=dict)
    """The files that its pickle refers to, by name."""


def result_of(document: Any, place: str) -> PortableResult:
    """The value that a document describes."""
    known = Fields.of(document, place)
    return PortableResult(
        name=known.printable("name"),
        text=known.text("text", TEXT_CHARACTERS),
        problem=known.maybe(known.text, "problem", TEXT_CHARACTERS),
        signature=known.maybe(known.text, "signature", 64, "[0-9a-f]{64}") or "",
        pickled=known.maybe(lambda name: base64_of(known, name), "pickle"),
        pickle_of=known.maybe(known.printable, "pickle_of"),
        size_bytes=known.maybe(known.whole, "bytes"),
        buffers=known.maybe(lambda name: _buffers_of(known, name), "buffers") or {},
    )


def _buffers_of(known: Fields, name: str) -> Mapping[str, bytes]:
    files = Fields.of(known.members[name], known.at(name))
    for file in files.members:
        if NAME.fullmatch(file) is None:
            raise files.refuse(file[:40], "is no name of a file of buffers")
    return {file: base64_of(files, file) for file in files.members}
