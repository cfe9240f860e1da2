"""Tasks as files: lines of JSON, one JSON document, a notebook.

Everything is made piece by piece, so that a gigabyte of output does not have to fit into memory.
A web page is made by `pages`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ipytaskpersist import outputs, views
from ipytaskpersist.documents import (
    FORMAT,
    VERSION,
    Document,
    encoded,
    output_document,
    result_document,
    session_document,
    task_document,
)
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.payload import INPUTS, SETTINGS
from ipytaskpersist.records import ResultRecord, TaskRecord
from ipytaskpersist.revivedwidgets import is_state
from ipytaskpersist.store import TaskStore, exporting
from ipytaskpersist.store.portable import PortableSession, PortableTask
from ipytaskpersist.widgetmarks import STATE, VIEW, model_of

LINE_OUTPUT_BYTES = 1024 * 1024
"""After how much output a task goes on in another line."""
PICKLE_BYTES = 64 * 1024 * 1024
"""The largest pickle that is exported: it has to fit into one line."""


@dataclass(frozen=True, slots=True)
class Found:
    """A task with the store that has it now."""

    store: TaskStore
    record: TaskRecord
    task: PortableTask

    def outputs(self) -> Iterator[Document]:
        """What it printed and displayed."""
        return map(output_document, exporting.outputs(self.store.database, self.record.key))


class Export:
    """Some tasks on their way out."""

    def __init__(self, manager: BackgroundTasks, tasks: Sequence[TaskRecord]) -> None:
        self._manager = manager
        # Whatever the rows of the store are: two stores with the same tasks give the same file.
        self._tasks = sorted(tasks, key=lambda task: (task.created_at, task.number, task.id))
        self._sessions = {task.session: task for task in self._tasks}
        self.count = 0
        """How many tasks have been given."""

    @property
    def notebooks(self) -> int:
        """To how many notebooks the tasks belong."""
        return len({session.notebook.uid for session in self.sessions()})

    def sessions(self) -> list[PortableSession]:
        """The sessions that launched the tasks, oldest first."""
        found = [
            exporting.session(self._manager.store_of(task).database, session_id)
            for session_id, task in self._sessions.items()
        ]
        return sorted(found, key=lambda session: (session.started_at, session.id))

    def tasks(self) -> Iterator[Found]:
        """The tasks, oldest first, each read when its turn has come."""
        for record in self._tasks:
            found = self._read(record)
            if found is not None:
                self.count += 1
                yield found

    def _read(self, record: TaskRecord) -> Found | None:
        """The task where it is now: it may have moved since it was selected, or be gone."""
        own = self._manager.store
        for store in (own, *self._manager.archives.all()):
            current = store.tasks.by_id(record.id)
            task = None if current is None else exporting.task(store.database, current.key)
            if current is not None and task is not None:
                return Found(store, current, task)
        return None

    # Lines.

    def lines(self) -> Iterator[bytes]:
        """The tasks as lines of JSON."""
        yield _line({"type": "header", "format": FORMAT, "version": VERSION})
        sessions = self.sessions()
        yield from (_line(session_document(session)) for session in sessions)
        for found in self.tasks():
            yield from self._lines_of(found)
        yield _line({"type": "end", "sessions": len(sessions), "tasks": self.count})

    def _lines_of(self, found: Found) -> Iterator[bytes]:
        document = task_document(found.task)
        for part, is_last in _with_last(self._parts(found)):
            yield _line({**document, **part, "more": not is_last})
            document = {"type": "more", "task": found.task.id}

    def _parts(self, found: Found) -> Iterator[Document]:
        """What a task has left, in parts that each make a line."""
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

    def _entries(self, found: Found) -> Iterator[tuple[str, Document]]:
        yield from (("outputs", each) for each in found.outputs())
        yield from (("results", each) for each in self._results(found))

    def _results(self, found: Found) -> Iterator[Document]:
        """Its value and its variables. Not what it was given, which has the text of other cells."""
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
        self, found: Found, result: ResultRecord, file_bytes: int, in_file_of: str
    ) -> Document:
        """A value. The file of several is there with the first of them."""
        if result.path is None:
            return result_document(result, None, result.problem)
        if file_bytes > PICKLE_BYTES:
            problem = f"its pickle of {file_bytes:,} bytes was too large to be exported"
            return result_document(result, None, problem)
        try:
            pickled = self._manager.payloads.read(found.record, result)
        except ResultUnavailable:
            problem = "its pickle was gone or changed when it was exported"
            return result_document(result, None, problem)
        if in_file_of != result.name:
            return result_document(result, in_file_of, None)
        return result_document(result, pickled, None)

    # One document.

    def document(self) -> Iterator[bytes]:
        """The tasks as one JSON document."""
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
        """The tasks as a notebook: for each a heading and a cell with what it left."""
        states: Document = {}
        yield b'{"nbformat":4,"nbformat_minor":5,\n"cells":[\n'
        for place, found in enumerate(self.tasks()):
            yield b",\n" if place else b""
            yield encoded(_heading(place, found.record)) + b",\n"
            cell = _code_cell(place, found.record)
            yield encoded(cell)[:-1] + b',"outputs":['
            known = None if found.record.is_imported else states
            yield from _outputs(
                _with_widgets(outputs.of_task(found.store, found.record.key), known)
            )
            yield b"]}"
        yield b'\n],\n"metadata":' + encoded(_notebook_metadata(states)) + b"}\n"


def _notebook_metadata(states: Document) -> Document:
    metadata: Document = {"language_info": {"name": "python"}}
    if states:
        kept = {"version_major": 2, "version_minor": 0, "state": states}
        metadata["widgets"] = {STATE: kept}
    return metadata


def _with_widgets(
    pieces: Iterable[outputs.Output], states: Document | None
) -> Iterator[outputs.Output]:
    """The outputs with the views of widgets whose state goes into the notebook's.

    What is inside of these is in their state. Without `states` no view is left: a stranger's
    widgets may be code.
    """
    for piece in pieces if states is not None else outputs.beside(pieces):
        model = model_of(piece.get("data", {}))
        kept = piece.get("metadata", {}).get(STATE)
        if states is not None and kept and is_state(kept):
            states |= kept["state"]
        if model is None or (states is not None and model in states):
            if "inside" not in piece:
                yield piece
        else:
            data = {mime: value for mime, value in piece["data"].items() if mime != VIEW}
            yield {**piece, "data": data}


def _line(document: Document) -> bytes:
    return encoded(document) + b"\n"


def _size_of(entry: Document) -> int:
    """About how many bytes an entry takes."""
    content = encoded(entry["content"]) if "content" in entry else b""
    texts = (entry.get(name, "") for name in ("text", "base64", "pickle"))
    return 1 + len(content) + sum(map(len, texts))


def _with_last(parts: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Each part, with whether it is the last."""
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
    """What a task is called in a file for people, and the facts below that."""
    look = views.LOOKS[task.state]
    facts = [
        f"{look.glyph} {task.state.value}",
        views.ending(task),
        f"created {task.created_at:%Y-%m-%d %H:%M:%S} UTC",
        f"started {task.started_at:%Y-%m-%d %H:%M:%S} UTC" if task.started_at else "",
        f"ended {task.ended_at:%Y-%m-%d %H:%M:%S} UTC" if task.ended_at else "",
        f"took {views.duration(task.elapsed_s(views.utc_now()))}" if task.ended_at else "",
        views.place(task),
        task.id,
        views.notebook_name(task.notebook),
        ", ".join(task.tags),
    ]
    about = " · ".join(views.shorten(fact, 300) for fact in facts if fact)
    return views.printable(task.label), views.printable(about)


MARKDOWN = str.maketrans({each: f"\\{each}" for each in "\\`*_{}[]()#+-.!|<>&$~"})


def _heading(place: int, task: TaskRecord) -> Document:
    name, facts = heading(task)
    title = views.shorten(name, 200).translate(MARKDOWN)
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
    """The source as a cell would run it in the foreground."""
    if task.kind == "shell" and not task.source.lstrip().startswith(("%", "!")):
        return f"%%sh\n{task.source}"
    return task.source


def _outputs(pieces: Iterable[outputs.Output]) -> Iterator[bytes]:
    """Outputs as a notebook file has them. The pieces of a stream are the lines of one output."""
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
            [shown] = outputs.as_nbformat([_standard(piece)])
            shown.get("metadata", {}).pop(STATE, None)
            yield encoded(shown)
    yield b"]}" if stream else b""


def _standard(piece: outputs.Output) -> outputs.Output:
    """The output without NaN and infinity, which JSON has not: null stands for them."""
    if "execution_count" not in piece and piece["output_type"] == "execute_result":
        piece = {**piece, "execution_count": None}
    try:
        json.dumps(piece, allow_nan=False)
    except ValueError:
        return dict(json.loads(json.dumps(piece), parse_constant=lambda _name: None))
    return piece
