"""Tasks' output and results as rows of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ipytaskpersist.base.records import (
    STREAM_KINDS,
    OutputKind,
    OutputRecord,
    ResultRecord,
    StreamSize,
    from_timestamp,
)
from ipytaskpersist.base.widget_marks import PREFIX
from ipytaskpersist.store.compression import Unreadable, beginning, pack, unpack
from ipytaskpersist.store.file.database import Database, storable
from ipytaskpersist.store.file.migrations import output_bytes_of

COLUMNS = "sequence, kind, at, compression, first_line, data, size_bytes, lines"
COPIED = (
    *("kind", "at", "first_byte", "size_bytes", "first_line", "lines", "last_line"),
    *("compression", "data"),
)
"""Columns of `NewOutput.as_row` after the task's row."""
INSERT = f"""INSERT INTO outputs (task_key, {", ".join(COPIED)})
    SELECT key, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 FROM tasks, pragma_user_version
    WHERE key = ?1 AND user_version = coalesce(?11, user_version)
    AND (state IN ('pending', 'running') OR declared_dead IS NOT NULL)"""
"""The output of an ended task never changes.

A task that another process declared dead, and that prints, has not ended.
"""
OUTPUT_BYTES = output_bytes_of("?1")
COME_TO = "UPDATE processes SET spool_offset = ? WHERE task_key = ?"
LOST = "[{:,} bytes that were stored here are damaged]"
READ_AT_ONCE = 64
LAST_SEQUENCE = 2**62
LINE_BYTES = 4096
"""Maximum length searched of an unfinished line."""
BEGINNING_BYTES = 64 * 1024
"""Amount of a display that is read to find out what it is."""


@dataclass(frozen=True, slots=True)
class NewOutput:
    """A piece of a task's output on its way into the store."""

    task_key: int
    kind: OutputKind
    at: float
    data: bytes
    first_byte: int = 0
    """Number of bytes in its stream before it."""
    first_line: int = 0
    """Number of line feeds in its stream before it."""
    lines: int = 0
    """Number of line feeds in it."""
    last_line: str | None = None
    """The task's last visible line after it."""

    def as_row(self) -> tuple[Any, ...]:
        """Return the row to insert, compressed."""
        compression, packed = pack(self.data)
        return (
            self.task_key,
            self.kind.value,
            self.at,
            self.first_byte,
            len(self.data),
            self.first_line,
            self.lines,
            storable(self.last_line),
            compression,
            packed,
        )


def _record(row: Any) -> OutputRecord:
    sequence, kind, at, compression, first_line, data, size_bytes, lines = row
    when = from_timestamp(at)
    assert when is not None
    try:
        content = unpack(compression, data)
    except Unreadable:
        return _lost(sequence, OutputKind(kind), when, first_line, size_bytes, lines)
    return OutputRecord(sequence, OutputKind(kind), when, content, first_line)


def _lost(
    sequence: int, kind: OutputKind, when: datetime, first_line: int, size_bytes: int, lines: int
) -> OutputRecord:
    """Return a substitute for a damaged piece, of the same size so that offsets stay valid."""
    note = LOST.format(size_bytes).encode()
    if kind not in STREAM_KINDS:
        return OutputRecord(sequence, OutputKind.STDERR, when, note + b"\n", first_line)
    room = max(0, size_bytes - lines)
    return OutputRecord(sequence, kind, when, note[:room].ljust(room) + b"\n" * lines, first_line)


class Outputs:
    """The rows of `outputs`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self, rows: Sequence[tuple[Any, ...]], offsets: Mapping[int, int] | None = None
    ) -> None:
        """Add rows made by `NewOutput.as_row`, all or none.

        `offsets` are those of the spools of tasks at places, by the task's row, with which these
        rows end. Rows of tasks that have ended or were deleted are dropped.
        """
        if len(rows) == 1 and not offsets and self._insert_alone(rows[0]):
            return
        if rows or offsets:
            with self._database.transaction() as connection:
                connection.executemany(INSERT, [(*row, None) for row in rows])
                for key, offset in (offsets or {}).items():
                    connection.execute(COME_TO, (offset, key))

    def _insert_alone(self, row: tuple[Any, ...]) -> bool:
        """Add a row, unless another process has migrated the schema.

        A single statement commits by itself, and acquires the GIL three fewer times.
        """
        cursor = self._database.execute(INSERT, (*row, self._database.version))
        return bool(cursor.rowcount)

    def of(
        self,
        task_key: int,
        *,
        kinds: Sequence[OutputKind] = (),
        after: int = 0,
        until: int = LAST_SEQUENCE,
        at_once: int = READ_AT_ONCE,
    ) -> Iterator[OutputRecord]:
        """Yield the task's outputs in order, after a sequence, up to another.

        They are read `at_once` at a time.
        """
        condition = f"AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        values = [kind.value for kind in kinds]
        while True:
            rows = self._database.rows(
                f"""SELECT {COLUMNS} FROM outputs INDEXED BY outputs_task_order
                WHERE task_key = ? AND sequence > ? AND sequence <= ? {condition}
                ORDER BY sequence LIMIT ?""",
                (task_key, after, until, *values, at_once),
            )
            yield from (self._database.record(_record, row) for row in rows)
            if len(rows) < at_once:
                return
            after = rows[-1][0]

    def backwards(
        self, task_key: int, *, kinds: Sequence[OutputKind] = ()
    ) -> Iterator[OutputRecord]:
        """Yield the task's outputs from the last to the first."""
        condition = f"AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        values = [kind.value for kind in kinds]
        before = LAST_SEQUENCE
        while True:
            rows = self._database.rows(
                f"""SELECT {COLUMNS} FROM outputs INDEXED BY outputs_task_order
                WHERE task_key = ? AND sequence < ? {condition} ORDER BY sequence DESC LIMIT 2""",
                (task_key, before, *values),
            )
            yield from (self._database.record(_record, row) for row in rows)
            if len(rows) < 2:
                return
            before = rows[-1][0]

    def stream_size(
        self, task_key: int, kind: OutputKind, *, before: int = LAST_SEQUENCE
    ) -> StreamSize:
        """Return how much the task has written to one of its streams, before a sequence."""
        row = self._database.row(
            """SELECT first_byte + size_bytes, first_line + lines FROM outputs
            WHERE task_key = ? AND kind = ? AND sequence < ? ORDER BY sequence DESC LIMIT 1""",
            (task_key, kind.value, before),
        )
        return StreamSize(*(row or (0, 0)))

    def kept_bytes(self, task_key: int) -> int:
        """Return how much a task has printed and displayed, as far as that is kept."""
        row = self._database.row(f"SELECT {OUTPUT_BYTES}", (task_key,))
        return int(row[0])

    def last_sequence(self, task_key: int) -> int:
        """Return the sequence of the task's last output; 0 when there is none."""
        row = self._database.row(
            "SELECT max(sequence) FROM outputs INDEXED BY outputs_task_order WHERE task_key = ?",
            (task_key,),
        )
        return int(row[0] or 0)

    def begun_line(self, task_key: int, kind: OutputKind, *, before: int) -> bytes:
        """Return the unfinished line of a stream before a sequence, its last few kilobytes."""
        rows = self._database.rows(
            """SELECT compression, data FROM outputs INDEXED BY outputs_task_order
            WHERE task_key = ? AND sequence < ? AND kind = ? ORDER BY sequence DESC LIMIT 8""",
            (task_key, before, kind.value),
        )
        line = b""
        for compression, data in rows:
            try:
                line = unpack(compression, data)[-LINE_BYTES:] + line
            except Unreadable:
                break
            if b"\n" in line or len(line) >= LINE_BYTES:
                break
        return line[line.rfind(b"\n") + 1 :]

    def beginnings(
        self, task_key: int, kinds: Sequence[OutputKind], *, after: int
    ) -> Iterator[tuple[int, OutputKind, bytes]]:
        """Yield sequence, kind and first bytes of the task's entries of these kinds."""
        marks = ", ".join("?" * len(kinds))
        while True:
            rows = self._database.rows(
                f"""SELECT sequence, kind, compression, data FROM outputs
                WHERE task_key = ? AND sequence > ? AND kind IN ({marks})
                ORDER BY sequence LIMIT ?""",
                (task_key, after, *[kind.value for kind in kinds], READ_AT_ONCE),
            )
            for sequence, kind, compression, data in rows:
                yield sequence, OutputKind(kind), beginning(compression, data, BEGINNING_BYTES)
            if len(rows) < READ_AT_ONCE:
                return
            after = rows[-1][0]

    def cleared_until(self, task_key: int) -> int:
        """Return the sequence of the last entry that clears what is inside no widget."""
        row = self._database.row(
            """SELECT max(sequence) FROM outputs WHERE task_key = ? AND kind = 'clear_output'
            AND substr(data, 1, ?) <> ?""",
            (task_key, len(PREFIX), PREFIX),
        )
        return int(row[0] or 0)

    def count(self, task_key: int, kinds: Sequence[OutputKind]) -> int:
        """Return the number of the task's entries of these kinds."""
        marks = ", ".join("?" * len(kinds))
        row = self._database.row(
            f"SELECT count(*) FROM outputs WHERE task_key = ? AND kind IN ({marks})",
            (task_key, *[kind.value for kind in kinds]),
        )
        return int(row[0])


class Results:
    """The rows of `results`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, task_key: int, result: ResultRecord) -> None:
        """Save the record of a task's value. Dropped if the task was deleted."""
        self._database.write(
            """INSERT OR REPLACE INTO results
                (task_key, name, path, size_bytes, digest, signature, text, problem)
            SELECT key, ?2, ?3, ?4, ?5, ?6, ?7, ?8 FROM tasks WHERE key = ?1""",
            (
                task_key,
                result.name,
                result.path,
                result.size_bytes,
                result.digest,
                result.signature,
                storable(result.text),
                storable(result.problem),
            ),
        )

    def variables(self, task_key: int) -> list[ResultRecord]:
        """Return the records of a task's variables, in the order in which they were saved."""
        rows = self._database.rows(
            """SELECT name, path, size_bytes, digest, signature, text, problem FROM results
            WHERE task_key = ? AND name <> '' AND name NOT LIKE '<%' ORDER BY key""",
            (task_key,),
        )
        return [ResultRecord(*row) for row in rows]

    def get(self, task_key: int, name: str = "") -> ResultRecord | None:
        """Return the record of a task's value, or None when it has none."""
        row = self._database.row(
            """SELECT name, path, size_bytes, digest, signature, text, problem FROM results
            WHERE task_key = ? AND name = ?""",
            (task_key, name),
        )
        return None if row is None else ResultRecord(*row)
