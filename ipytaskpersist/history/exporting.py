"""Export tasks as files: lines of JSON, one JSON document, or a notebook.

Everything is written piece by piece, so that a gigabyte of output does not have to fit into memory.
`export_page` makes a web page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import INPUTS, ResultRecord, TaskRecord
from ipytaskpersist.base.widget_marks import STATE
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.documents import (
    FORMAT,
    VERSION,
    encoded,
    output_document,
    result_document,
    session_document,
    task_document,
)
from ipytaskpersist.history.fields import Document
from ipytaskpersist.output import replay
from ipytaskpersist.output.notebook_form import as_saved, with_widget_states
from ipytaskpersist.store import exporting
from ipytaskpersist.store.portable import PortableSession, PortableTask
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text import formatting
from ipytaskpersist.values.payloads import SETTINGS, Payloads

LINE_OUTPUT_BYTES = 1024 * 1024
"""Amount of output after which a task continues on another line."""
PICKLE_BYTES = 64 * 1024 * 1024
"""Size of the largest exported pickle, which has to fit on one line."""


@dataclass(frozen=True, slots=True)
class ExportedTask:
    """A task with its current store."""

    store: TaskStore
    record: TaskRecord
    task: PortableTask

    def outputs(self) -> Iterator[Document]:
        """Return what it printed and displayed."""
        return map(output_document, exporting.outputs(self.store.database, self.record.key))


class Export:
    """The tasks of one export."""

    def __init__(self, archives: Archives, payloads: Payloads, tasks: Sequence[TaskRecord]) -> None:
        self._archives = archives
        self._payloads = payloads
        # Independent of the store's rows: two stores with the same tasks give the same file.
        self._tasks = sorted(tasks, key=lambda task: (task.created_at, task.number, task.id))
        self._sessions = {task.session: task for task in self._tasks}
        self.count = 0
        """Number of tasks yielded so far."""

    @property
    def notebooks(self) -> int:
        """Number of notebooks to which the tasks belong."""
        return len({session.notebook.uid for session in self.sessions()})

    def sessions(self) -> list[PortableSession]:
        """Return the sessions that launched the tasks, oldest first."""
        found = [
            exporting.session(self._archives.store_of(task).database, session_id)
            for session_id, task in self._sessions.items()
        ]
        return sorted(found, key=lambda session: (session.started_at, session.id))

    def tasks(self) -> Iterator[ExportedTask]:
        """Yield the tasks, oldest first, each read only when needed."""
        for record in self._tasks:
            found = self._read(record)
            if found is not None:
                self.count += 1
                yield found

    def _read(self, record: TaskRecord) -> ExportedTask | None:
        """Return the task at its current place; None if it has been deleted since the selection."""
        for store in self._archives.with_own():
            current = store.tasks.by_id(record.id)
            task = None if current is None else exporting.task(store.database, current.key)
            if current is not None and task is not None:
                return ExportedTask(store, current, task)
        return None

    # Lines.

    def lines(self) -> Iterator[bytes]:
        """Yield the tasks as lines of JSON."""
        yield _line({"type": "header", "format": FORMAT, "version": VERSION})
        sessions = self.sessions()
        yield from (_line(session_document(session)) for session in sessions)
        for found in self.tasks():
            yield from self._lines_of(found)
        yield _line({"type": "end", "sessions": len(sessions), "tasks": self.count})

    def _lines_of(self, found: ExportedTask) -> Iterator[bytes]:
        document = task_document(found.task)
        for part, is_last in _with_last(self._parts(found)):
            yield _line({**document, **part, "more": not is_last})
            document = {"type": "more", "task": found.task.id}

    def _parts(self, found: ExportedTask) -> Iterator[Document]:
        """Yield what a task has left, in parts that each make one line."""
        part: Document = {"outputs": [], "results": []}
        size, is_first = 0, True
        for name, entry in self._entries(found):
            part[name].append(entry)
            size += _size_of(entry)
            if size >= LINE_OUTPUT_BYTES:
                yield part
                part, size, is_first = {"outputs": [], "results": []}, 0, False
        if size or is_first:
            yield part

    def _entries(self, found: ExportedTask) -> Iterator[tuple[str, Document]]:
        yield from (("outputs", each) for each in found.outputs())
        yield from (("results", each) for each in self._results(found))

    def _results(self, found: ExportedTask) -> Iterator[Document]:
        """Yield its value and its variables, but not its inputs: they hold text of other cells."""
        kept = [
            result
            for result in exporting.results(found.store.database, found.record.key)
            if result.name not in (INPUTS, SETTINGS)
        ]
        files, first = Counter[str | None](), dict[str | None, str]()
        for result in kept:
            files[result.digest] += result.size_bytes or 0
        for result in kept:
            in_file_of = first.setdefault(result.digest, result.name)
            yield self._result(found, result, files[result.digest], in_file_of)

    def _result(
        self, found: ExportedTask, result: ResultRecord, file_bytes: int, in_file_of: str
    ) -> Document:
        """Return a value. A file with several values goes with the first of them."""
        if result.path is None:
            return result_document(result, None, result.problem)
        if file_bytes > PICKLE_BYTES:
            return _too_large(result, file_bytes)
        try:
            pickled = self._payloads.read(found.record, result)
            # A file that the task had already adds nothing to the size of its value.
            whole = len(pickled) + self._payloads.buffers_size(found.record, pickled)
            if whole > PICKLE_BYTES:
                return _too_large(result, whole)
            if in_file_of != result.name:
                return result_document(result, in_file_of, None)
            buffers = self._payloads.read_buffers(found.record, pickled)
        except ResultUnavailable:
            problem = "its pickle was gone or changed when it was exported"
            return result_document(result, None, problem)
        return result_document(result, pickled, None, buffers)

    # One document.

    def document(self) -> Iterator[bytes]:
        """Yield the tasks as one JSON document."""
        head = encoded({"format": FORMAT, "version": VERSION, "sessions": []})
        yield head[:-2] + b"\n"
        yield from _separated(encoded(session_document(each)) for each in self.sessions())
        yield b'],"tasks":[\n'
        for place, found in enumerate(self.tasks()):
            yield b",\n" if place else b""
            yield encoded(task_document(found.task))[:-1] + b',"outputs":[\n'
            yield from _separated(map(encoded, found.outputs()))
            yield b'],"results":[\n'
            yield from _separated(map(encoded, self._results(found)))
            yield b"]}"
        yield b"\n]}\n"

    # A notebook.

    def notebook(self) -> Iterator[bytes]:
        """Yield the tasks as a notebook: a heading and a cell with its outputs for each."""
        states: Document = {}
        yield b'{"nbformat":4,"nbformat_minor":5,\n"cells":[\n'
        for place, found in enumerate(self.tasks()):
            yield b",\n" if place else b""
            yield encoded(_heading(place, found.record)) + b",\n"
            cell = _code_cell(place, found.record)
            yield encoded(cell)[:-1] + b',"outputs":['
            known = None if found.record.is_imported else states
            pieces = replay.of_task(found.store, found.record.key)
            yield from _outputs(with_widget_states(pieces, known))
            yield b"]}"
        yield b'\n],\n"metadata":' + encoded(_notebook_metadata(states)) + b"}\n"


def _notebook_metadata(states: Document) -> Document:
    metadata: Document = {"language_info": {"name": "python"}}
    if states:
        kept = {"version_major": 2, "version_minor": 0, "state": states}
        metadata["widgets"] = {STATE: kept}
    return metadata


def _line(document: Document) -> bytes:
    return encoded(document) + b"\n"


def _size_of(entry: Document) -> int:
    """Return the approximate size of an entry in bytes."""
    content = encoded(entry["content"]) if "content" in entry else b""
    texts = (entry.get(name, "") for name in ("text", "base64", "pickle"))
    buffers = entry.get("buffers", {}).values()
    return 1 + len(content) + sum(map(len, texts)) + sum(map(len, buffers))


def _with_last(parts: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield each part with whether it is the last."""
    iterator = iter(parts)
    part = next(iterator)
    for following in iterator:
        yield part, False
        part = following
    yield part, True


def _separated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for place, piece in enumerate(pieces):
        yield (b",\n" if place else b"") + piece


def heading(task: TaskRecord) -> tuple[str, str]:
    """Return a task's heading in a file for people, and the facts below it."""
    look = formatting.STATE_STYLES[task.state]
    facts = [
        f"{look.glyph} {task.state.value}",
        formatting.ending(task),
        f"created {task.created_at:%Y-%m-%d %H:%M:%S} UTC",
        f"started {task.started_at:%Y-%m-%d %H:%M:%S} UTC" if task.started_at else "",
        f"ended {task.ended_at:%Y-%m-%d %H:%M:%S} UTC" if task.ended_at else "",
        f"took {formatting.duration(task.elapsed_s(formatting.utc_now()))}"
        if task.ended_at
        else "",
        formatting.which_try(task),
        formatting.demands(task.demands),
        formatting.place(task),
        task.id,
        formatting.notebook_name(task.notebook),
        ", ".join(task.tags),
    ]
    about = " · ".join(formatting.shorten(fact, 300) for fact in facts if fact)
    return legible(task.label), legible(about)


MARKDOWN = str.maketrans({each: f"\\{each}" for each in "\\`*_{}[]()#+-.!|<>&$~"})


def _heading(place: int, task: TaskRecord) -> Document:
    name, facts = heading(task)
    title = formatting.shorten(name, 200).translate(MARKDOWN)
    text = f"## {title}\n\n{facts.translate(MARKDOWN)}"
    return {"cell_type": "markdown", "id": f"about-{place}", "metadata": {}, "source": text}


def _code_cell(place: int, task: TaskRecord) -> Document:
    return {
        "cell_type": "code",
        "id": f"task-{place}",
        "metadata": {},
        "execution_count": task.execution_count,
        "source": _runnable(task),
    }


def _runnable(task: TaskRecord) -> str:
    """Return the source as a foreground cell would run it."""
    if task.kind == "shell" and not task.source.lstrip().startswith(("%", "!")):
        return f"%%sh\n{task.source}"
    return task.source


def _outputs(pieces: Iterable[replay.Output]) -> Iterator[bytes]:
    """Yield outputs as in a notebook file. The pieces of a stream are the lines of one output."""
    stream = None
    is_first = True
    for piece in pieces:
        if piece["output_type"] == "stream" and piece["name"] == stream:
            yield b"," + encoded(piece["text"])
            continue
        yield (b"]}" if stream else b"") + (b"\n" if is_first else b",\n")
        is_first, stream = False, None
        if piece["output_type"] == "stream":
            stream = piece["name"]
            head = {"output_type": "stream", "name": stream, "text": []}
            yield encoded(head)[:-2] + encoded(piece["text"])
        else:
            yield encoded(as_saved(piece))
    yield b"]}" if stream else b""


def _too_large(result: ResultRecord, size_bytes: int) -> Document:
    problem = f"its pickle of {size_bytes:,} bytes was too large to be exported"
    return result_document(result, None, problem)
