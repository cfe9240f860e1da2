"""The search index: the words in each task's name, source and output.

A file beside the store, which printing never touches. It is updated from the store, a little at a
time, and can be deleted at any moment: it is rebuilt.

A document is up to a megabyte of one task's output, and a task's first one has its name and source,
too. Only the distinct words of a document are stored, with their columns. That makes the index a
third as large and twice as fast to build as one with positions. The positions are found in the text
itself when it is shown.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import LIVE_STATES, STREAM_KINDS, OutputKind, OutputRecord
from ipytaskpersist.errors import StoreDamaged
from ipytaskpersist.store.file.database import SQLITE_VERSION, Database
from ipytaskpersist.store.file.locks import exclusive
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.search_words import as_shown, distinct_words

DOCUMENT_BYTES = 1 << 20
"""Output size at which a document is full."""
NUMBER_BITS = 20
"""Bits of a document's key for its number; the others are its task's key."""
TURN_BYTES = 16 << 20
TURN_S = 1.0
"""Limits of what is indexed in one transaction."""
REMOVED_AT_ONCE = 200
PAUSE_S = 0.015
"""Time for others to take a turn."""
CROSSED_OUT = "PRAGMA application_id"
"""Header field with the number of removals from the index since words were last erased."""
MOST_TIMES = 1 << 30
ERASED_PAGES = 1_000
"""Number of index pages rewritten in one transaction."""
MEMORY_BYTES = 32 << 20
"""Memory that FTS5 fills before it writes."""
COLUMNS = ("name", "source", "stdout", "stderr", "display")
CAN_DELETE = tuple(map(int, SQLITE_VERSION.split(".")[:2])) >= (3, 43)
"""Whether this SQLite can delete a document. Otherwise its words stay, and lead nowhere."""
VERSION = 4 if CAN_DELETE else 3
"""Version of the index format. An index of another version is rebuilt."""
TOKENIZER = "\"unicode61 remove_diacritics 2 tokenchars '.'\""
SCHEMA = (
    """
    CREATE TABLE tasks (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        is_complete INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE INDEX tasks_incomplete ON tasks (key) WHERE NOT is_complete",
    """
    CREATE TABLE documents (
        key INTEGER PRIMARY KEY,
        after_sequence INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL
    ) STRICT
    """,
    f"""
    CREATE VIRTUAL TABLE words USING fts5 ({", ".join(COLUMNS)}, content='', detail=column,
        tokenize={TOKENIZER}{", contentless_delete=1" if CAN_DELETE else ""})
    """,
    f"INSERT INTO words (words, rank) VALUES ('hashsize', {MEMORY_BYTES})",
    # Fewer merges during large updates; a query reads twice as many pieces, which is fast.
    "INSERT INTO words (words, rank) VALUES ('automerge', 8)",
    f"PRAGMA user_version = {VERSION}",
)
ARE_THERE = "" if CAN_DELETE else "AND rowid IN (SELECT key FROM documents)"
INSERT = f"""INSERT INTO words (rowid, {", ".join(COLUMNS)})
    VALUES (?, {", ".join("?" * len(COLUMNS))})"""
EXTENT = "SELECT count(*), max(key), (SELECT id FROM tasks ORDER BY key DESC LIMIT 1) FROM tasks"


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of searched text, as a terminal would show it."""

    column: str
    """Its origin: one of `COLUMNS`."""
    text: str
    first_line: int
    """Number of lines before it."""


@dataclass
class _Turn:
    """What one transaction has done so far."""

    size_bytes: int = 0
    begun_at: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return self.size_bytes >= TURN_BYTES or time.monotonic() - self.begun_at > TURN_S


def task_of(document: int) -> int:
    """Return the key of the task to which a document belongs."""
    return document >> NUMBER_BITS


def documents_of(task_key: int) -> tuple[int, int]:
    """Return the first and the last possible key of a task's documents."""
    return task_key << NUMBER_BITS, ((task_key + 1) << NUMBER_BITS) - 1


class SearchIndex:
    """The index of one store, or of one archive."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        directory = store.directory
        file = directory.search_index.relative_to(directory.root)
        self._directory = StateDirectory(directory.root, str(file))
        self._database = Database(self._directory)
        self._database.is_on_demand = True
        self._is_open = False

    def close(self) -> None:
        """Close the file."""
        self._database.close()
        self._is_open = False

    # Opening.

    def _open(self) -> None:
        if self._is_open and self._database.exists:
            return
        self.close()
        if not self._is_usable():
            with self._alone():
                if not self._is_usable():
                    self._make()
        self._database.execute("PRAGMA cache_size = -65536")
        self._is_open = True

    def _is_usable(self) -> bool:
        return (
            self._database.exists
            and not self.is_damaged
            and int(self._database.row("PRAGMA user_version")[0]) == VERSION
        )

    def _make(self) -> None:
        self._remove()
        self._database.create_file()
        with self._database.transaction() as connection:
            for statement in SCHEMA:
                connection.execute(statement)

    def _remove(self) -> None:
        self.close()
        for suffix in ("", "-journal"):
            path = self._database.path
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self._directory.damage_mark.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the index meanwhile."""
        busy = f"another process is making the search index {self._database.path}; try again soon"
        try:
            self._directory.create()
            with exclusive(self._directory.lock, busy):
                yield
        except OSError as error:
            what = f"the search index {self._database.path}"
            raise disk_errors.refused(what, error, self._database.path) from error

    @property
    def is_damaged(self) -> bool:
        """Whether SQLite has found it damaged. Opening it again rebuilds it."""
        return self._directory.damage_mark.exists()

    # Updating.

    def catch_up(
        self,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done_bytes, total_bytes: None,
    ) -> bool:
        """Update the index from the store, and return whether it is current.

        It may be stopped or killed at any moment, and resumes later; several processes take turns.
        `progress` is called with the bytes done and the total bytes.
        """
        if not self._store.exists:
            return True
        self._store.open()
        try:
            self._open()
            return self._catch_up(should_stop, progress)
        except StoreDamaged:
            if not self.is_damaged:
                raise  # it is the store that is damaged
        self.close()
        self._open()
        return self._catch_up(should_stop, progress)

    def _catch_up(
        self, should_stop: Callable[[], bool], progress: Callable[[int, int], None]
    ) -> bool:
        gone, missing = self._differences()
        for start in range(0, len(gone), REMOVED_AT_ONCE):
            if should_stop():
                return False
            self._forget(gone[start : start + REMOVED_AT_ONCE])
        queue, done, total = deque(missing), 0, sum(missing.values())
        while queue:
            if should_stop():
                return False
            if done:
                time.sleep(PAUSE_S)
            done += self._take_turn(queue, should_stop)
            progress(done, max(done, total))
        return True

    def _differences(self) -> tuple[list[int], dict[int, int]]:
        """Return the removed tasks, and those to look at with the size of their output."""
        incomplete = {
            key: 0 for (key,) in self._database.rows("SELECT key FROM tasks WHERE NOT is_complete")
        }
        stored = self._store.database
        if self._database.row(EXTENT) == stored.row(EXTENT):
            return [], incomplete
        known = dict(self._database.rows("SELECT key, id FROM tasks"))
        rows = stored.rows("SELECT key, id, coalesce(output_bytes, 0) FROM tasks ORDER BY key")
        there = {key: task_id for key, task_id, _size in rows}
        if any(there.get(key, task_id) != task_id for key, task_id in known.items()):
            # The index belongs to another store, which this one has replaced.
            with self._alone():
                self._make()
            known, incomplete = {}, {}
        new = {key: size for key, _id, size in rows if key not in known}
        return [key for key in known if key not in there], {**incomplete, **new}

    def _forget(self, keys: Sequence[int]) -> None:
        ranges = [documents_of(key) for key in keys]
        with self._alone(), self._database.transaction() as connection:
            if CAN_DELETE:
                connection.executemany("DELETE FROM words WHERE rowid BETWEEN ? AND ?", ranges)
            connection.executemany("DELETE FROM documents WHERE key BETWEEN ? AND ?", ranges)
            connection.executemany("DELETE FROM tasks WHERE key = ?", [(key,) for key in keys])
            (times,) = connection.execute(CROSSED_OUT).fetchone()
            times = int(times) % MOST_TIMES + 1
            connection.execute(f"{CROSSED_OUT} = {times}")

    def erase(self) -> None:
        """Erase the words of removed tasks from the file: so far they are only marked.

        For the whole index this takes up to a tenth of its build time, so it runs when there is
        time, in steps. A killed run starts over.
        """
        if not self._database.exists:
            return
        self._open()
        (times,) = self._database.row(CROSSED_OUT)
        if times and not CAN_DELETE:
            with self._alone():
                self._make()
        elif times:
            pages = -ERASED_PAGES  # the first time: everything, not only what is due
            while self._erase_some(pages, times):
                pages = ERASED_PAGES
                time.sleep(PAUSE_S)

    def _erase_some(self, pages: int, times: int) -> bool:
        """Rewrite this many pages of the index, and return whether there may be more."""
        with self._alone(), self._database.transaction() as connection:
            before = connection.total_changes
            connection.execute("INSERT INTO words (words, rank) VALUES ('merge', ?)", (pages,))
            # FTS5's sign that nothing was left to do.
            is_done = connection.total_changes - before < 2
            if is_done and connection.execute(CROSSED_OUT).fetchone() == (times,):
                connection.execute(f"{CROSSED_OUT} = 0")
        return not is_done

    def _take_turn(self, queue: deque[int], should_stop: Callable[[], bool]) -> int:
        """Index tasks for one transaction, and return how many bytes they had."""
        turn = _Turn()
        with self._alone(), self._database.transaction() as connection:
            while queue and not turn.is_over and not should_stop():
                if self._index(connection, queue[0], turn):
                    queue.popleft()
        return turn.size_bytes

    def _index(self, connection: Any, key: int, turn: _Turn) -> bool:
        """Index what is new in a task, and return whether that was all."""
        known = connection.execute("SELECT is_complete FROM tasks WHERE key = ?", (key,)).fetchone()
        # The state first: an ended task's output does not grow.
        task = self._store.database.row(
            "SELECT id, name, source, state FROM tasks WHERE key = ?", (key,)
        )
        if task is None or (known is not None and known[0]):
            return True
        task_id, name, source, state = task
        number, after = self._begin(connection, key)
        is_all = True
        for draft in self._drafts(key, after, name, source, first=number) if number >= 0 else ():
            draft.insert(connection)
            turn.size_bytes += draft.size_bytes
            if turn.is_over and not draft.is_last:
                is_all = False
                break
        connection.execute(
            "INSERT OR REPLACE INTO tasks (key, id, is_complete) VALUES (?, ?, ?)",
            (key, task_id, int(is_all and state not in LIVE_STATES)),
        )
        return is_all

    def _begin(self, connection: Any, key: int) -> tuple[int, int]:
        """Return the next document's number, -1 for none, and the sequence before its first."""
        last = connection.execute(
            """SELECT key, after_sequence, last_sequence, size_bytes FROM documents
            WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1""",
            documents_of(key),
        ).fetchone()
        if last is None:
            return 0, 0
        document, after, until, size = last
        number = document - documents_of(key)[0] + 1
        if self._store.outputs.last_sequence(key) <= until:
            return -1, until
        if size >= DOCUMENT_BYTES:
            return number, until
        # The last document is not full: it is replaced as a whole.
        if CAN_DELETE:
            connection.execute("DELETE FROM words WHERE rowid = ?", (document,))
        connection.execute("DELETE FROM documents WHERE key = ?", (document,))
        return number, after

    def _drafts(
        self, key: int, after: int, name: str, source: str, *, first: int
    ) -> Iterator[_Draft]:
        """Yield the documents for a task's output after a sequence."""
        begin = documents_of(key)[0] + first
        draft = self._draft(begin, after)
        if after == 0:
            draft.texts["name"].append(name)
            draft.texts["source"].append(source)
        for record in self._store.outputs.of(key, after=after):
            if draft.size_bytes >= DOCUMENT_BYTES:
                yield draft
                draft = self._draft(draft.key + 1, draft.last_sequence)
            draft.add(record)
        draft.is_last = True
        yield draft

    def _draft(self, key: int, after: int) -> _Draft:
        draft = _Draft(key, after, after)
        for kind in STREAM_KINDS if after else ():
            draft.streams[kind].append(
                self._store.outputs.begun_line(task_of(key), kind, before=after + 1)
            )
        return draft

    # Searching.

    def count(self) -> int:
        """Return the number of indexed tasks."""
        return int(self._database.row("SELECT count(*) FROM tasks")[0])

    def documents(
        self, words: Sequence[str], columns: Sequence[str], *, is_prefix: bool = False
    ) -> list[int]:
        """Return the documents with all of these words in these columns, in order.

        With `is_prefix` the last word is a prefix. The words are single words, folded.
        """
        quoted = [f'"{word}"' for word in words]
        if is_prefix:
            quoted[-1] += " *"
        place = f"{{{' '.join(columns)}}}"
        match = " AND ".join(f"{place} : {word}" for word in quoted)
        rows = self._database.rows(
            f"SELECT rowid FROM words WHERE words MATCH ? {ARE_THERE} ORDER BY rowid", (match,)
        )
        return [document for (document,) in rows]

    def passages(self, document: int, columns: Sequence[str]) -> Iterator[Passage]:
        """Yield a document's text in these columns, read from the store."""
        row = self._database.row(
            "SELECT after_sequence, last_sequence FROM documents WHERE key = ?", (document,)
        )
        if row is None:
            return
        after, last = row
        key = task_of(document)
        if after == 0:
            task = self._store.database.row("SELECT name, source FROM tasks WHERE key = ?", (key,))
            for column, text in zip(("name", "source"), task or ("", ""), strict=True):
                if column in columns:
                    yield Passage(column, text, 0)
        yield from self._printed(key, after, last, columns)

    def _printed(
        self, key: int, after: int, last: int, columns: Sequence[str]
    ) -> Iterator[Passage]:
        kinds = [kind for kind in OutputKind if _column_of(kind) in columns]
        draft = self._draft(documents_of(key)[0], after)
        first_lines: dict[OutputKind, int] = {}
        for record in self._store.outputs.of(key, kinds=kinds, after=after, until=last):
            first_lines.setdefault(record.kind, record.first_line)
            draft.add(record)
        for kind, first_line in first_lines.items():
            if kind in STREAM_KINDS:
                text = b"".join(draft.streams[kind]).decode("utf-8", "replace")
                yield Passage(kind.value, as_shown(text), first_line)
        for text in draft.texts["display"]:
            yield Passage("display", as_shown(text), 0)


@dataclass
class _Draft:
    """A document under construction."""

    key: int
    after_sequence: int
    last_sequence: int
    size_bytes: int = 0
    is_last: bool = False
    streams: defaultdict[OutputKind, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    texts: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: OutputRecord) -> None:
        self.last_sequence = record.sequence
        self.size_bytes += len(record.data)
        if record.kind in STREAM_KINDS:
            self.streams[record.kind].append(record.data)
        elif text := _text_of(record):
            self.texts["display"].append(text)

    def insert(self, connection: Any) -> None:
        streams = {kind.value: b"".join(self.streams[kind]) for kind in STREAM_KINDS}
        texts = {name: "\n".join(parts).encode() for name, parts in self.texts.items()}
        said = {**streams, **texts}
        found = (distinct_words(said.get(column, b"")) for column in COLUMNS)
        connection.execute(INSERT, (self.key, *found))
        connection.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?)",
            (self.key, self.after_sequence, self.last_sequence, self.size_bytes),
        )


def _column_of(kind: OutputKind) -> str:
    return kind.value if kind in STREAM_KINDS else "display"


def _text_of(record: OutputRecord) -> str:
    """Return the readable text of a display, a result or an error."""
    content = json.loads(record.data)
    if record.kind is OutputKind.ERROR:
        return "\n".join(map(str, content.get("traceback", ())))
    return str(content.get("data", {}).get("text/plain", ""))
