"""The outputs of tasks as pages have them, and what each page lacks.

A page says by a position which outputs it has. The server keeps the last few lists of outputs of
each task that is followed, so that it can send the difference; for a position that it does not know
any more, it sends all of them again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.filling.entries import Edit, Entry, SaveLink, edits
from ipytaskpersist.filling.filled_cell import FilledCell
from ipytaskpersist.history.documents import encoded
from ipytaskpersist.server.task_document import Describer
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text import formatting

MESSAGE_BYTES = 256 * 1024
"""Size up to which a message is added to. One output is never divided."""
EARLIER_KEPT = 16
MESSAGES_KEPT = 4
LATEST_KEPT = 32
NOTHING = "0"
"""Position of a page that has no outputs of a task."""

Entries = tuple[Entry, ...]


def stamp(task: TaskRecord, sequence: int) -> str:
    """Return a text that changes whenever an ended task shows anything else."""
    known = (task.state, task.reason, task.exit_code, task.ended_at, task.name, task.progress)
    return f"{sequence}-{hashlib.sha1(repr(known).encode(), usedforsecurity=False).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Held:
    """The outputs of a task that a page has."""

    position: str = NOTHING
    entries: Entries = ()


@dataclass(frozen=True, slots=True)
class Message:
    """What a page is sent about one task, and what it has then."""

    line: bytes
    held: Held


class Document:
    """The outputs of one task that pages follow. Several threads may use it."""

    def __init__(
        self,
        manager: BackgroundTasks,
        task: TaskRecord,
        describer: Describer,
        save_link: SaveLink,
    ) -> None:
        self.task = task
        self._describer = describer
        self.about: dict[str, Any] = {}
        """The task as pages receive it."""
        self.now = Held()
        """What a page has that lacks nothing."""
        self._lock = threading.Lock()
        self._store = manager.tasks.store_of(task)
        self._cell = FilledCell(manager, task, save_link)
        self._nonce, self._numbers = uuid4().hex[:12], count(1)
        self._earlier: OrderedDict[str, Held] = OrderedDict()
        """What pages have been sent lately, by position."""
        self._messages: OrderedDict[str, Message] = OrderedDict()
        """The next message to the pages at a position."""

    def update(self, task: TaskRecord) -> bool:
        """Read what is new. Return whether pages lack anything."""
        with self._lock:
            self._cell.update(task, formatting.utc_now())
            about = self._describer.document(task)
            if self.now.entries == self._cell.entries and about == self.about:
                return False
            self.task, self.about = task, about
            self._messages = OrderedDict()
            is_final = task.state.is_final
            position = stamp(task, self._cell.sequence) if is_final else self._new_position()
            before, self.now = self.now, Held(position, self._cell.entries)
            self._remember(self.now)
            if before.entries:
                # Most pages are there.
                self._messages[before.position] = self._made(before)
            return True

    def _new_position(self) -> str:
        return f"{self._nonce}-{next(self._numbers)}"

    def _remember(self, held: Held) -> None:
        self._earlier[held.position] = held
        while len(self._earlier) > EARLIER_KEPT:
            self._earlier.popitem(last=False)

    def at(self, position: str) -> Held:
        """Return what a page at a position has; nothing if that is not known any more."""
        with self._lock:
            return self._earlier.get(position, Held())

    def first(self, room_bytes: int) -> tuple[Held, int]:
        """Return the first outputs that fit, at least the card, and the room that is left."""
        with self._lock:
            chosen: list[Entry] = []
            for entry in self.now.entries:
                size = size_of(entry.output)
                if chosen and size > room_bytes:
                    break
                chosen.append(entry)
                room_bytes -= size
            if len(chosen) == len(self.now.entries):
                return self.now, room_bytes
            part = Held(self._new_position(), tuple(chosen))
            self._remember(part)
            return part, 0

    def ready(self, held: Held) -> Message | None:
        """Return the next message if it costs nothing, because another page needed it, too."""
        return self._messages.get(held.position)

    def next(self, held: Held) -> Message | None:
        """Return the next message to a page; None if it lacks nothing."""
        with self._lock:
            if held.position == self.now.position:
                return None
            if held.position not in self._messages:
                self._messages[held.position] = self._made(held)
                if len(self._messages) > MESSAGES_KEPT:
                    self._messages.popitem(last=False)
            return self._messages[held.position]

    def _made(self, held: Held) -> Message:
        few: list[Edit] = []
        size, has = 0, list(held.entries)
        for edit in edits(held.entries, self.now.entries):
            size += size_of(edit.output) if edit.output else len(edit.text)
            if few and size > MESSAGE_BYTES:
                held = Held(self._new_position(), tuple(has))
                self._remember(held)
                break
            few.append(edit)
            has[edit.at : edit.at + 1] = [self.now.entries[edit.at]]
        else:
            held = self.now
        document = {
            "task": self.about,
            "position": held.position,
            "complete": held is self.now,
            "count": len(held.entries),
            "edits": [edit.as_json() for edit in few],
        }
        return Message(encoded(document) + b"\n", held)


def size_of(output: dict[str, Any]) -> int:
    """Return about how many bytes an output takes."""
    if output["output_type"] == "stream":
        return len(output["text"])
    if output["output_type"] == "error":
        return sum(map(len, output["traceback"]))
    return sum(len(str(value)) for value in output["data"].values())


class Documents:
    """The documents of the tasks that pages follow, and of those asked for lately."""

    def __init__(self, manager: BackgroundTasks, describer: Describer, save_link: SaveLink) -> None:
        self._manager = manager
        self._describer = describer
        self._save_link = save_link
        self._lock = threading.Lock()
        self._all: WeakValueDictionary[str, Document] = WeakValueDictionary()
        self._latest: OrderedDict[str, Document] = OrderedDict()

    def of(self, task: TaskRecord) -> Document:
        """Return a task's document with all that the store has now."""
        with self._lock:
            document = self._all.get(task.id)
            if document is None:
                document = self._all[task.id] = Document(
                    self._manager, task, self._describer, self._save_link
                )
            self._latest[task.id] = document
            self._latest.move_to_end(task.id)
            while len(self._latest) > LATEST_KEPT:
                self._latest.popitem(last=False)
        document.update(task)
        return document

    def forget(self) -> None:
        """Forget all documents: the store's file is another one."""
        with self._lock:
            self._all.clear()
            self._latest.clear()
