"""Read the tasks of an exported file, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.history import foreign_formats
from ipytaskpersist.history.documents import FORMAT, VERSION
from ipytaskpersist.history.fields import LINE_BYTES, Document, Fields, InvalidRecord, parsed
from ipytaskpersist.history.output_reading import PortableResult, output_of, result_of
from ipytaskpersist.history.task_reading import session_of, task_of
from ipytaskpersist.store.portable import (
    PortableOutput,
    PortableSession,
    PortableTask,
)

DOCUMENT_BYTES = 256 * 1024 * 1024
"""Maximum size of a file that is read as a whole. Lines of JSON have no such limit."""

SESSIONS_AT_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what a task has left."""

    outputs: list[PortableOutput]
    results: list[PortableResult]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A task of a file. Its parts are read on demand."""

    position: str
    session: PortableSession
    task: PortableTask
    parts: Iterator[Part]


@dataclass(frozen=True, slots=True)
class Invalid:
    """A record that was not imported."""

    position: str
    """``line 12`` or ``tasks[3].status``."""
    reason: str


Complain = Callable[[Invalid], None]


def read(file: BinaryIO, path: Path, complain: Complain) -> Iterator[Incoming]:
    """Yield the tasks of an open file, in any known format."""
    header = _header(file, path)
    file.seek(0)
    if header is not None:
        return _Lines(file, complain).tasks()
    document = _document(file, path)
    if isinstance(document, dict) and document.get("format") == FORMAT:
        _check_version(document, path)
        return _of_document(document, complain)
    return _of_older_shape(document, path, complain)


def _no_such_file(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} holds no tasks in any form that import knows ({why}); nothing was imported"
    )


def _header(file: BinaryIO, path: Path) -> Document | None:
    """Return the header of a file of lines; None for any other file."""
    with suppress(InvalidRecord):
        first = parsed(file.readline(LINE_BYTES))
        known = first if isinstance(first, dict) else {}
        if (known.get("type"), known.get("format")) == ("header", FORMAT):
            _check_version(known, path)
            return known
    return None


def _check_version(document: Document, path: Path) -> None:
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise InvalidRequest(
            f"{path} has version {str(version)[:20]} of the export format, and this ipytaskpersist "
            f"reads version {VERSION}; upgrade with 'pip install -U ipytaskpersist'"
        )


def _document(file: BinaryIO, path: Path) -> Any:
    data = file.read(DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        raise InvalidRequest(
            f"{path} is larger than {DOCUMENT_BYTES:,} bytes, and only lines of JSON may be; "
            "export with --format jsonl"
        )
    try:
        return parsed(data.removeprefix(b"\xef\xbb\xbf"))
    except InvalidRecord as error:
        raise _no_such_file(path, f"it {error.reason}") from None


@dataclass(frozen=True, slots=True)
class _Line:
    position: str
    known: Document


class _Lines:
    """A file of lines: a header, then sessions and tasks, each task on one line or several."""

    def __init__(self, file: BinaryIO, complain: Complain) -> None:
        self._complain = complain
        self._lines = self._read(file)
        self._sessions: dict[str, PortableSession] = {}
        self._unread: list[_Line] = []
        self._is_whole = False

    def _read(self, file: BinaryIO) -> Iterator[_Line]:
        number = 0
        while line := file.readline(LINE_BYTES):
            number += 1
            try:
                if not line.endswith(b"\n") and _skip_rest(file, len(line)):
                    raise InvalidRecord("", f"is longer than {LINE_BYTES:,} bytes")
                if line.strip():
                    yield _Line(f"line {number}", Fields.of(parsed(line)).members)
            except InvalidRecord as error:
                self._complain(Invalid(f"line {number}", error.reason))

    def tasks(self) -> Iterator[Incoming]:
        """Yield the tasks in order."""
        for line in self._next_lines():
            kind = line.known.get("type")
            try:
                if kind == "session":
                    self._add_session(line)
                elif kind == "task":
                    yield from self._task(line)
                elif kind == "end":
                    self._is_whole = True
                elif kind not in ("header", "more"):
                    raise InvalidRecord("type", "is none of header, session, task, more and end")
            except InvalidRecord as error:
                self._complain(invalid(line.position, error))
        if not self._is_whole:
            self._complain(Invalid("the end of the file", "is missing: the file was cut off"))

    def _next_lines(self) -> Iterator[_Line]:
        while True:
            line = self._unread.pop() if self._unread else next(self._lines, None)
            if line is None:
                return
            yield line

    def _add_session(self, line: _Line) -> None:
        if len(self._sessions) >= SESSIONS_AT_MOST:
            raise InvalidRecord("", f"is a session beyond the {SESSIONS_AT_MOST:,} that are read")
        session = session_of(line.known)
        self._sessions[session.id] = session

    def _task(self, line: _Line) -> Iterator[Incoming]:
        task = task_of(line.known)
        session = self._sessions.get(task.session)
        if session is None:
            raise InvalidRecord("session", "is not a session that the file describes before it")
        yield Incoming(line.position, session, task, self._parts(line))

    def _parts(self, line: _Line) -> Iterator[Part]:
        """Yield what a task has left: on its own line, and on the continuation lines."""
        yield _part(line.known)
        task_id = line.known["id"]
        while line.known.get("more") is True:
            following = next(self._lines, None)
            if following is None:
                raise InvalidRecord("", "is not whole: the file ends before the task does")
            if following.known.get("type") != "more" or following.known.get("task") != task_id:
                self._unread.append(following)
                raise InvalidRecord("", "is not whole: a line that belongs to it is missing")
            line = following
            try:
                yield _part(line.known)
            except InvalidRecord as error:
                raise InvalidRecord("", f"goes on in {line.position}, where {error}") from None


def _skip_rest(file: BinaryIO, length: int) -> bool:
    """Skip to the next line. Return whether the limit cut the line, not the end of the file."""
    cut = length >= LINE_BYTES
    while cut and (rest := file.readline(1024 * 1024)):
        if rest.endswith(b"\n"):
            break
    return cut


def _part(known: Document) -> Part:
    fields = Fields(known)
    return Part(
        [output_of(each, at) for at, each in fields.each("outputs")],
        [result_of(each, at) for at, each in fields.each("results")],
    )


def invalid(position: str, error: InvalidRecord) -> Invalid:
    """Return the reason with its position: a line number, or a path within a document."""
    if position.startswith("line ") or not error.place:
        return Invalid(position, str(error))
    dot = "" if error.place.startswith("[") else "."
    return Invalid(f"{position}{dot}{error.place}", error.reason)


def _of_document(document: Document, complain: Complain) -> Iterator[Incoming]:
    known = Fields(document)
    sessions: dict[str, PortableSession] = {}
    for position, value in known.each("sessions"):
        try:
            session = session_of(value)
            sessions[session.id] = session
        except InvalidRecord as error:
            complain(invalid(position, error))
    for position, value in known.each("tasks"):
        try:
            task = task_of(value)
            if task.session not in sessions:
                raise InvalidRecord("session", "is not a session of the file")
        except InvalidRecord as error:
            complain(invalid(position, error))
        else:
            yield Incoming(position, sessions[task.session], task, map(_part, [value]))


def _of_older_shape(document: Any, path: Path, complain: Complain) -> Iterator[Incoming]:
    groups = foreign_formats.recognised(document, path)
    if not groups:
        raise _no_such_file(path, "it is JSON, but not of tasks")
    for group in groups:
        for position, value in group.entries:
            try:
                old = foreign_formats.task_of(value, group)
            except InvalidRecord as error:
                complain(invalid(position, error))
            else:
                part = Part(old.outputs, old.results)
                yield Incoming(position, group.session, old.task, iter([part]))
