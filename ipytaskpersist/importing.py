"""Take tasks from a file into the store: whole, once, and without believing the file.

The file may come from another machine, another program or a stranger. A record that is wrong is
reported, and the others are taken. Nothing that a file says is run, and no path in it is used.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ipytaskpersist import fieldformats
from ipytaskpersist.documents import (
    FORMAT,
    LINE_BYTES,
    VERSION,
    Document,
    Fields,
    InvalidRecord,
    PortableResult,
    output_of,
    parsed,
    result_of,
    session_of,
    task_of,
)
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.payload import Payloads, Prepared
from ipytaskpersist.recording import Stream
from ipytaskpersist.records import STREAM_KINDS, ResultRecord, TaskState
from ipytaskpersist.store import NewOutput, TaskStore
from ipytaskpersist.store.importing import Importer, Placed
from ipytaskpersist.store.portable import (
    PortableEvent,
    PortableOutput,
    PortableSession,
    PortableTask,
)

DOCUMENT_BYTES = 256 * 1024 * 1024
"""How large a file may be that has to be read as a whole. Lines of JSON have no such limit."""
SESSIONS_AT_MOST = 100_000
LIVE_REASON = "was running when it was exported"


@dataclass(frozen=True, slots=True)
class Part:
    """Some of what a task has left."""

    outputs: list[PortableOutput]
    results: list[PortableResult]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A task of a file. Its parts are read when they are asked for."""

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


@dataclass(slots=True)
class Report:
    """What an import has done."""

    ids: list[str] = field(default_factory=list)
    """The ids in this store of the tasks that were imported."""
    skipped: int = 0
    """How many tasks were there already."""
    invalid: list[Invalid] = field(default_factory=list)
    notebooks: set[str] = field(default_factory=set)
    """Of which notebooks the imported tasks are."""

    def as_json(self) -> Document:
        """The report as ``import --json`` gives it."""
        return {
            "imported": len(self.ids),
            "skipped": self.skipped,
            "invalid": [
                {"position": each.position, "reason": each.reason} for each in self.invalid
            ],
            "tasks": self.ids,
        }


Complain = Callable[[Invalid], None]


def import_file(
    path: Path,
    store: TaskStore,
    archives: Callable[[], list[TaskStore]],
    payloads: Payloads,
    *,
    dry_run: bool = False,
    complain: Complain = lambda _invalid: None,
) -> Report:
    """Import the tasks of a file, and say what became of them.

    `complain` is called with each invalid record as it is found. Raises `InvalidRequest` for a
    file that holds no tasks in any form that is known.
    """
    report = Report()

    def note(invalid: Invalid) -> None:
        report.invalid.append(invalid)
        complain(invalid)

    taker = _Taker(store, archives, payloads, report, note, dry_run=dry_run)
    try:
        with open(path, "rb", opener=_ordinary) as file:
            for incoming in read(file, path, note):
                taker.take(incoming)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    except MemoryError:
        raise InvalidRequest(
            f"{path} needs more memory than there is; {len(report.ids)} of its tasks were imported"
        ) from None
    finally:
        taker.close()
    return report


def _ordinary(path: str, flags: int) -> int:
    """Open a file, but neither wait for the other end of a pipe nor read a device for ever."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not an ordinary file")
    return descriptor


# Reading.


def read(file: BinaryIO, path: Path, complain: Complain) -> Iterator[Incoming]:
    """The tasks of an open file, in whatever form that is known."""
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
    """The first line of a file of lines, else None."""
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
    """A file of lines: a header, then sessions and tasks, each task in one line or several."""

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
        """The tasks in their order."""
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
                self._complain(_invalid(line.position, error))
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
        """What a task has left: in its own line, and in those that follow while there are more."""
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
    """Go to the next line. Returns whether the line was cut by the limit, not by the file's end."""
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


def _invalid(position: str, error: InvalidRecord) -> Invalid:
    """Where in the file, and why: of a line its number, of a document the path of the member."""
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
            complain(_invalid(position, error))
    for position, value in known.each("tasks"):
        try:
            task = task_of(value)
            if task.session not in sessions:
                raise InvalidRecord("session", "is not a session of the file")
        except InvalidRecord as error:
            complain(_invalid(position, error))
        else:
            yield Incoming(position, sessions[task.session], task, map(_part, [value]))


def _of_older_shape(document: Any, path: Path, complain: Complain) -> Iterator[Incoming]:
    groups = fieldformats.recognised(document, path)
    if not groups:
        raise _no_such_file(path, "it is JSON, but not of tasks")
    for group in groups:
        for position, value in group.entries:
            try:
                old = fieldformats.task_of(value, group)
            except InvalidRecord as error:
                complain(_invalid(position, error))
            else:
                part = Part(old.outputs, old.results)
                yield Incoming(position, group.session, old.task, iter([part]))


# Taking.


class _Taker:
    """Takes tasks into the store, one after the other."""

    def __init__(
        self,
        store: TaskStore,
        archives: Callable[[], list[TaskStore]],
        payloads: Payloads,
        report: Report,
        complain: Complain,
        *,
        dry_run: bool,
    ) -> None:
        # To find out what would be imported makes no store where there is none.
        missing = dry_run and not store.exists
        self._importer = None if missing else Importer(store.open(), archives)
        self._is_writing = not dry_run
        if self._is_writing:
            store.require_own_version()
        self._payloads = payloads
        self._report = report
        self._complain = complain
        self._renamed: dict[str, str] = {}
        """The ids that tasks have here and had elsewhere."""

    def close(self) -> None:
        """Let go of the store."""
        if self._importer is not None:
            self._importer.close()

    def take(self, incoming: Incoming) -> None:
        """Import a task, or report why not."""
        try:
            placed = self._placed(incoming)
        except InvalidRecord as error:
            self._complain(_invalid(incoming.position, error))
        except (ValueError, OverflowError, RecursionError) as error:
            self._complain(Invalid(incoming.position, str(error).splitlines()[0]))
        else:
            self._note(incoming.task, placed)

    def _note(self, task: PortableTask, placed: Placed) -> None:
        if task.id and placed.id != task.id:
            self._renamed[task.id] = placed.id
        if placed.is_new:
            self._report.ids.append(placed.id)
            self._report.notebooks.add(placed.notebook)
        else:
            self._report.skipped += 1

    def _placed(self, incoming: Incoming) -> Placed:
        task = self._with_new_ids(incoming.task)
        found = None if self._importer is None else self._importer.find(task)
        if found is not None:
            return found
        if self._importer is None or not self._is_writing:
            for _part in incoming.parts:
                pass  # only to find out whether they are valid
            return Placed(task.id, incoming.session.notebook.uid or "", is_new=True)
        return self._insert(self._importer, replace(incoming, task=task))

    def _insert(self, importer: Importer, incoming: Incoming) -> Placed:
        taken = _Taken(self._payloads, incoming.task)
        importer.forget_outputs()
        try:
            for part in incoming.parts:
                importer.add_outputs(taken.rows(part))
                taken.add_results(part)
            return importer.insert(incoming.session, taken.ended(), time.time(), taken.results)
        finally:
            taken.discard()
            importer.forget_outputs()

    def _with_new_ids(self, task: PortableTask) -> PortableTask:
        """The task, naming others by the ids that they have here."""
        earlier = self._renamed.get(str(task.provenance.get("rerun_of")))
        if earlier is None:
            return task
        return replace(task, provenance={**task.provenance, "rerun_of": earlier})


class _Taken:
    """What has been read of one task."""

    def __init__(self, payloads: Payloads, task: PortableTask) -> None:
        self._payloads = payloads
        self._task = task
        self._streams = {kind: Stream() for kind in STREAM_KINDS}
        self._last_at = 0.0
        self._results: list[tuple[PortableResult, Prepared | None]] = []

    def rows(self, part: Part) -> list[NewOutput]:
        """The outputs of a part as the store keeps them."""
        return [self._row(output) for output in part.outputs]

    def _row(self, output: PortableOutput) -> NewOutput:
        self._last_at = max(self._last_at, output.at)
        stream = self._streams.get(output.kind)
        if stream is None:
            return NewOutput(0, output.kind, output.at, output.data)
        before = (stream.size_bytes, stream.lines)
        lines = output.data.count(b"\n")
        stream.size_bytes += len(output.data)
        stream.lines += lines
        last = stream.last_line.feed(stream.decode_end(output.data)) or None
        return NewOutput(0, output.kind, output.at, output.data, *before, lines, last)

    def add_results(self, part: Part) -> None:
        """Keep the results of a part, with their signatures where those are another's."""
        for result in part.results:
            prepared, signature = self._prepared(result), result.signature
            if prepared is not None and self._payloads.is_signed(
                self._task.id, result.name, prepared.digest, signature
            ):
                signature = ""  # signed anew, for the id that the task has here
            kept = replace(result, pickled=None, signature=signature)
            self._results.append((kept, prepared))

    def _prepared(self, result: PortableResult) -> Prepared | None:
        """The file of a value: its own, or that of an earlier one, in which it is, too."""
        if not result.signature:
            return None
        if result.pickled is not None:
            return self._payloads.write(result.pickled)
        for earlier, prepared in self._results:
            if earlier.name == result.pickle_of and prepared is not None:
                return self._payloads.once_more(prepared)
        return None

    def results(self, task_id: str) -> list[ResultRecord]:
        """The results as the store keeps them, their files under their final names."""
        return [self._kept(task_id, result, prepared) for result, prepared in self._results]

    def _kept(
        self, task_id: str, result: PortableResult, prepared: Prepared | None
    ) -> ResultRecord:
        if prepared is None:
            why = _why_none(result)
            return ResultRecord(result.name, None, None, None, None, result.text, why)
        kept = self._payloads.adopt(task_id, result.name, prepared, result.text, result.signature)
        return kept if result.size_bytes is None else replace(kept, size_bytes=result.size_bytes)

    def discard(self) -> None:
        """Remove the files that no task has taken."""
        for _result, prepared in self._results:
            if prepared is not None:
                prepared.discard()

    def ended(self) -> PortableTask:
        """The task as one that has ended: whatever ran elsewhere, it does not run here."""
        task = self._task
        if task.state.is_final:
            return task
        known = (task.created_at, task.started_at or 0.0, *(event.at for event in task.history))
        at = max(self._last_at, *known)
        event = PortableEvent(TaskState.INTERRUPTED, LIVE_REASON, at)
        return replace(
            task,
            state=TaskState.INTERRUPTED,
            reason=LIVE_REASON,
            ended_at=at,
            history=(*task.history, event) if task.history else (),
        )


def _why_none(result: PortableResult) -> str:
    return result.problem or "its pickle is not in the imported file, or is not signed"
