"""What it would cost if the store itself sealed sources, outputs and payloads.

The package does not do that; `docs/encryption.md` says why. `Sealing` is a trial of it: an
authenticated cipher where rows and files are written and read. What is sealed is bound to its
task and its place, and says with which key. Names, tags, times, sizes, states, reasons and the
search index stay open, because the store finds things by them; exports, archives and what a
supervisor is given are not part of the trial.

Everything is counted in processor time, in turns with the store as it is.
"""

from __future__ import annotations

import base64
import importlib
import os
import resource
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import inside, searching, stores
from benchmarks.bench import BACKGROUND, LOAD, Bench
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row
from ipytaskpersist.base.records import (
    OutputKind,
    OutputRecord,
    TaskRecord,
    TaskState,
    from_timestamp,
)
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.search_query import Scope, parse
from ipytaskpersist.history.text_search import search
from ipytaskpersist.output.replay import Cut, stream_bytes
from ipytaskpersist.store import outputs as stored
from ipytaskpersist.store.compression import unpack
from ipytaskpersist.store.outputs import LINE_BYTES, Outputs
from ipytaskpersist.store.search_index import Passage, SearchIndex, task_of
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection, Tasks
from ipytaskpersist.values import pickle_files
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.signed_files import LoadedFiles, SignedFiles

AEAD = "cryptography.hazmat.primitives.ciphers.aead"
CIPHERS = ("AESGCM", "AESGCMSIV", "ChaCha20Poly1305")
KEY_BYTES = 32
NONCE_BYTES = 12
SEGMENT_BYTES = 1 << 20
"""A file is sealed in pieces: the library takes 2 GB at once, and all in memory."""
OVERHEAD_BYTES = 1 + NONCE_BYTES + 16
"""The key's number, the nonce, and the cipher's own tag."""
COLUMNS = f"""{stored.COLUMNS}, first_byte,
    (SELECT id FROM tasks WHERE tasks.key = outputs.task_key)"""
SOURCE, LAST_LINE, ID = 12, 29, 1
"""Where they are in a task's row."""
PAST_PART = 5
"""The tasks of the past print so much less than the long log: they are indexed twice."""
PAYLOAD_BYTES = 100_000_000
PIECE_BYTES = 16 * 1024
IMPORTS = 15
PRINTS = """\
%%background printing
for i in range({prints}):
    print(i)
"""


class Sealing:
    """A store's keys, and the seals that they make: the newest key seals, each can open."""

    def __init__(self, keys: Sequence[bytes], cipher: str = "AESGCM") -> None:
        self._ciphers = [cipher_of(cipher)(key) for key in keys]
        self._newest = len(keys) - 1
        self._ids: dict[tuple[Path, int], str] = {}

    def seal(self, data: bytes, *place: object) -> bytes:
        """The data under the newest key, to be opened in this place alone."""
        nonce = os.urandom(NONCE_BYTES)
        sealed: bytes = self._ciphers[self._newest].encrypt(nonce, data, associated(place))
        return bytes([self._newest]) + nonce + sealed

    def open(self, sealed: bytes, *place: object) -> bytes:
        """What was sealed for this place; it raises the cipher's own error for anything else."""
        nonce, rest = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        opened: bytes = self._ciphers[sealed[0]].decrypt(nonce, rest, associated(place))
        return opened

    def seal_text(self, text: str, *place: object) -> str:
        """The same for a column that holds text."""
        return base64.b64encode(self.seal(text.encode(), *place)).decode()

    def open_text(self, sealed: str, *place: object) -> str:
        """What was sealed as text."""
        return self.open(base64.b64decode(sealed), *place).decode()

    def id_of(self, outputs: Any, key: int) -> str:
        """A task's id: an archive has the same task in another row."""
        database = outputs._database
        known = (database.path, key)
        if known not in self._ids:
            (self._ids[known],) = database.row("SELECT id FROM tasks WHERE key = ?", (key,))
        return self._ids[known]

    def row(self, outputs: Any, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row of output as it is stored."""
        key, kind, at, first_byte, *middle, last_line, compression, data = row
        task = self.id_of(outputs, key)
        if last_line is not None:
            last_line = self.seal_text(last_line, task, "last line")
        data = self.seal(data, task, kind, first_byte)
        return (key, kind, at, first_byte, *middle, last_line, compression, data)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The store and the payloads are sealed by all that this process does meanwhile."""
        with ExitStack() as stack:
            for owner, name, replacement in (
                *sealed_outputs(self),
                *sealed_tasks(self),
                *sealed_search(self),
                *sealed_payloads(self),
            ):
                stack.enter_context(patch.object(owner, name, replacement))
            yield


def cipher_of(name: str) -> Any:
    """One of the library's authenticated ciphers."""
    try:
        return getattr(importlib.import_module(AEAD), name)
    except ImportError as error:
        raise BenchmarkError(
            "cryptography is not installed; it comes with the extra bench"
        ) from error


def associated(place: Sequence[object]) -> bytes:
    """The place as the cipher takes it."""
    return "\0".join(map(str, place)).encode()


BEGUN = ExitStack()
"""What lasts until the kernel ends."""


def begin_sealing(key: str) -> None:
    """Seal from now on, in a kernel that is measured."""
    BEGUN.enter_context(Sealing([bytes.fromhex(key)]).used())


Replacement = tuple[Any, str, Any]


def sealed_outputs(sealing: Sealing) -> list[Replacement]:
    """Rows of output are sealed when they are inserted, and opened when they are read."""
    append = Outputs.append

    def append_sealed(self: Any, rows: Sequence[tuple[Any, ...]]) -> None:
        append(self, [sealing.row(self, row) for row in rows])

    def record(row: Any) -> OutputRecord:
        sequence, kind, at, compression, first_line, data, first_byte, task = row
        when = from_timestamp(at)
        assert when is not None
        opened = unpack(compression, sealing.open(data, task, kind, first_byte))
        return OutputRecord(sequence, OutputKind(kind), when, opened, first_line)

    def begun_line(self: Any, task_key: int, kind: OutputKind, *, before: int) -> bytes:
        line = b""
        for found in self.backwards(task_key, kinds=(kind,)):
            if found.sequence < before:
                line = found.data[-LINE_BYTES:] + line
                if b"\n" in line or len(line) >= LINE_BYTES:
                    break
        return line[line.rfind(b"\n") + 1 :]

    return [
        (Outputs, "append", append_sealed),
        (Outputs, "begun_line", begun_line),
        (stored, "_record", record),
        (stored, "COLUMNS", COLUMNS),
    ]


def sealed_tasks(sealing: Sealing) -> list[Replacement]:
    """The source is sealed as soon as the task has an id, in the same transaction."""
    insert, record = Tasks.insert, Tasks._record

    def insert_sealed(self: Any, new: NewTask, complete: Any = None) -> TaskRecord:
        def seal_source(connection: Any, key: int, task: str) -> None:
            sealed = sealing.seal_text(new.source, task, "source")
            connection.execute("UPDATE tasks SET source = ? WHERE key = ?", (sealed, key))
            if complete is not None:
                complete(connection, key, task)

        made = insert(self, replace(new, source=""), seal_source)
        return replace(made, source=new.source)

    def opened_record(self: Any, row: Any) -> TaskRecord:
        fields = list(row)
        fields[SOURCE] = sealing.open_text(fields[SOURCE], fields[ID], "source")
        if len(fields) > LAST_LINE and fields[LAST_LINE] is not None:
            fields[LAST_LINE] = sealing.open_text(fields[LAST_LINE], fields[ID], "last line")
        return record(self, fields)

    return [(Tasks, "insert", insert_sealed), (Tasks, "_record", opened_record)]


def sealed_search(sealing: Sealing) -> list[Replacement]:
    """The index reads the sources by itself. Its words stay open."""
    drafts, passages = SearchIndex._drafts, SearchIndex.passages

    def opened_drafts(
        self: Any, key: int, after: int, name: str, source: str, *, first: int
    ) -> Any:
        if after == 0:
            source = sealing.open_text(source, sealing.id_of(self._store.outputs, key), "source")
        return drafts(self, key, after, name, source, first=first)

    def opened_passages(self: Any, document: int, columns: Sequence[str]) -> Iterator[Passage]:
        for passage in passages(self, document, columns):
            if passage.column == "source":
                task = sealing.id_of(self._store.outputs, task_of(document))
                yield replace(passage, text=sealing.open_text(passage.text, task, "source"))
            else:
                yield passage

    return [(SearchIndex, "_drafts", opened_drafts), (SearchIndex, "passages", opened_passages)]


def sealed_payloads(sealing: Sealing) -> list[Replacement]:
    """Files are sealed a megabyte at a time, and signed as before.

    A file is written before its task has an id, so only the signature binds it to one.
    """
    hashing, trusted, loaded = pickle_files.Hashing, SignedFiles.trusted, LoadedFiles._loaded

    class SealedFile(hashing):  # type: ignore[misc, valid-type]
        def __init__(self, path: Path, *, is_durable: bool) -> None:
            super().__init__(path, is_durable=is_durable)
            self._name, self._place, self._waiting = secrets.token_hex(8), 0, bytearray()
            super().write(self._name.encode())

        def write(self, data: Any) -> int:
            self._waiting += data
            while len(self._waiting) > SEGMENT_BYTES:
                self._seal(bytes(self._waiting[:SEGMENT_BYTES]), is_last=False)
                del self._waiting[:SEGMENT_BYTES]
            return memoryview(data).nbytes

        def __exit__(self, *exception: object) -> None:
            self._seal(bytes(self._waiting), is_last=True)
            super().__exit__(*exception)

        def _seal(self, data: bytes, *, is_last: bool) -> None:
            super().write(sealing.seal(data, self._name, self._place, is_last))
            self._place += 1

    def opened(sealed: bytes) -> bytes:
        data = memoryview(sealed)
        name, step = bytes(data[:16]).decode(), SEGMENT_BYTES + OVERHEAD_BYTES
        starts = range(16, len(data), step)
        return b"".join(
            sealing.open(bytes(data[at : at + step]), name, place, place == len(starts) - 1)
            for place, at in enumerate(starts)
        )

    def opened_trusted(self: Any, task: TaskRecord, result: Any) -> bytes:
        return opened(trusted(self, task, result))

    def opened_loaded(self: Any, name: str, digest: str, data: bytes) -> Any:
        return loaded(self, name, digest, opened(data))

    return [
        (SignedFiles, "trusted", opened_trusted),
        (LoadedFiles, "_loaded", opened_loaded),
        (pickle_files, "Hashing", SealedFile),
    ]


# Measuring.


def encryption(bench: Bench) -> list[Row]:
    """What sealing adds to everything that reads or writes the store, in processor time."""
    cipher_of(CIPHERS[0])
    key = secrets.token_bytes(KEY_BYTES)
    return [
        *ciphers(),
        *importing(),
        *in_kernels(bench, key),
        *over_a_past(bench, Sealing([key])),
        *over_a_log(bench, Sealing([key])),
        *over_a_payload(bench, Sealing([key])),
    ]


def cpu_ms(call: Callable[..., object], *arguments: object) -> float:
    """How much processor time a call takes, in all threads of this process."""
    begun = time.process_time()
    call(*arguments)
    return (time.process_time() - begun) * 1e3


def pair(what: str, unit: str, plain: Sequence[float], sealed: Sequence[float]) -> list[Row]:
    """The two rows of what was measured in turns."""
    return [
        Row("encryption", f"{what}, as it is", unit, tuple(plain)),
        Row("encryption", f"{what}, sealed", unit, tuple(sealed)),
    ]


def ciphers() -> list[Row]:
    """What each cipher takes for a line and for a full piece of output."""
    rows = []
    for name in CIPHERS:
        sealing = Sealing([bytes(KEY_BYTES)], name)
        for size, count in ((100, 5_000), (256 * 1024, 200)):
            took = [cpu_ms(seal_often, sealing, bytes(size), count) for _ in range(5)]
            samples = tuple(each / count * 1e3 for each in took)
            rows.append(Row("encryption", f"{name} seals {size:,} bytes", "µs", samples))
    return rows


def seal_often(sealing: Sealing, data: bytes, count: int) -> None:
    """Seal the same for so many places."""
    for place in range(count):
        sealing.seal(data, "task", "stdout", place)


def importing() -> list[Row]:
    """What a process pays for the library before it seals or opens its first row."""
    without, with_it = [], []
    for _ in range(IMPORTS):
        without.append(process_ms("import sqlite3"))
        with_it.append(process_ms(f"import sqlite3, {AEAD}"))
    more = tuple(each - less for each, less in zip(with_it, without, strict=True))
    grown = tuple(resident_mb(f"import {AEAD}") - resident_mb("pass") for _ in range(3))
    return [
        Row("encryption", "importing the library, in each process", "ms", more),
        Row("encryption", "memory of the library, in each process", "MB", grown),
    ]


def process_ms(code: str) -> float:
    """The processor time of an interpreter that runs this."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    begun = used()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (used() - begun) * 1e3


def resident_mb(code: str) -> float:
    """The memory of an interpreter that has run this."""
    tell = "import psutil; print(psutil.Process().memory_info().rss)"
    command = [sys.executable, "-c", f"{code}\n{tell}"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(ran.stdout) / 1e6


# In a kernel.


def in_kernels(bench: Bench, key: bytes) -> list[Row]:
    """Launching and printing, in two kernels that take turns."""
    bench.say("launching and printing in a kernel that seals, and in one that does not")
    launches: list[list[float]] = [[], []]
    prints: list[list[float]] = [[], []]
    states = (bench.new_state(), bench.new_state())
    with bench.kernel(states[0]) as plain, bench.kernel(states[1]) as sealed:
        for kernel in (plain, sealed):
            kernel.run("from time import process_time")
        sealed.run(f"from benchmarks.encryption import begin_sealing\nbegin_sealing({key.hex()!r})")
        for kernel in (plain, sealed):
            kernel.run(LOAD)
            kernel_ms(kernel, BACKGROUND)
        for turn in range(bench.scale.launches):
            for kernel, samples in in_turn(turn, (plain, sealed), launches):
                samples.append(kernel_ms(kernel, BACKGROUND))
        loop = PRINTS.format(prints=bench.scale.prints)
        for turn in range(2 * bench.scale.print_loops):
            for kernel, samples in in_turn(turn, (plain, sealed), prints):
                samples.append(kernel_ms(kernel, loop) / bench.scale.prints * 1e3)
        check_sealed(*states, "print(i)")
    return [
        *pair("a launch and its end, in the kernel", "ms", *launches),
        *pair("a `print(i)` until it is stored", "µs", *prints),
    ]


def check_sealed(plain: Path, sealed: Path, source: str) -> None:
    """Raise `BenchmarkError` unless this can be read in sources of the one store alone."""
    for state, is_sealed in ((plain, False), (sealed, True)):
        with stores.opened(state) as store:
            query = "SELECT count(*) FROM tasks WHERE instr(source, ?)"
            (count,) = store.database.row(query, (source,))
        if bool(count) is is_sealed:
            raise BenchmarkError(f"{count} sources can be read in {state}")


def in_turn(turn: int, things: Sequence[Any], samples: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each thing with its samples; who is first changes."""
    pairs = list(zip(things, samples, strict=True))
    return pairs if turn % 2 else pairs[::-1]


def kernel_ms(kernel: Kernel, cell: str) -> float:
    """The kernel's processor time from a launch until the task has ended."""
    kernel.settle()
    kernel.run("begun = process_time()")
    kernel.run(cell)
    kernel.run("%bg_wait")
    return float(kernel.value("process_time() - begun")) * 1e3


# In this process.


@contextmanager
def two_stores(bench: Bench) -> Iterator[tuple[TaskStore, TaskStore]]:
    """Two empty stores, which are removed again."""
    states = (bench.new_state(), bench.new_state())
    with ExitStack() as stack:
        plain, sealed = (stack.enter_context(stores.opened(state)) for state in states)
        yield plain, sealed
    for state in states:
        shutil.rmtree(state)


class Turns:
    """Measures a call on both stores, the one sealed, and keeps the samples of each."""

    def __init__(self, plain: TaskStore, sealed: TaskStore, sealing: Sealing) -> None:
        self.plain, self.sealed, self.sealing = plain, sealed, sealing

    def measure(
        self,
        times: int,
        call: Callable[[TaskStore, int], object],
        prepare: Callable[[int], object] = lambda turn: None,
    ) -> list[list[float]]:
        """Milliseconds of both, in turns. What `prepare` does before a turn is not counted."""
        samples: list[list[float]] = [[], []]
        for turn in range(times):
            prepare(turn)
            for store, taken in in_turn(turn, (self.plain, self.sealed), samples):
                with self.sealing.used() if store is self.sealed else ExitStack():
                    taken.append(cpu_ms(call, store, turn))
        return samples

    def size_mb(self) -> list[list[float]]:
        """How large the two files are, with nothing left in the log."""
        for store in (self.plain, self.sealed):
            store.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return [[store.database.path.stat().st_size / 1e6] for store in (self.plain, self.sealed)]


def over_a_past(bench: Bench, sealing: Sealing) -> list[Row]:
    """Writing, listing, indexing and searching a long past, and giving it another key."""
    scale = bench.scale
    size = scale.log_bytes // PAST_PART
    past = f"{scale.tasks:,} tasks and {size / 1e6:g} MB of output"
    bench.say(f"storing {past} twice")
    texts = searching.Texts()
    lines = size // scale.tasks // texts.line_bytes
    few = stores.TASKS_A_SESSION

    written: list[bytes] = []

    def write(turn: int) -> None:
        written[:] = [texts.output(turn * few + index, lines) for index in range(few)]

    def fill(store: TaskStore, turn: int) -> None:
        session = store.sessions.begin(stores.past_session(store.directory.root))
        for index, text in enumerate(written, turn * few):
            searching.store_task(store, session, index, text)
        store.sessions.end(session.id, "kernel restarted")

    with two_stores(bench) as (plain, sealed):
        turns = Turns(plain, sealed, sealing)
        filled = turns.measure(scale.tasks // few, fill, write)
        sizes = turns.size_mb()
        check_sealed(plain.directory.root, sealed.directory.root, stores.SOURCE)
        bench.say("listing, indexing and searching both")
        listed = turns.measure(scale.tails // 4, lambda store, _: all_of(store, scale.tasks))
        indexed = turns.measure(1, lambda store, _: SearchIndex(store).catch_up())
        found = turns.measure(scale.tails // 4, lambda store, _: found_in(store, texts.words[0]))
        bench.say("giving one of them another key")
        rotated = rotation(sealed, sealing)
    return [
        *pair("storing a hundred tasks of the past", "ms", *filled),
        *pair(f"the store of {past}", "MB", *sizes),
        *pair(f"listing {scale.tasks:,} tasks", "ms", *listed),
        *pair("indexing them", "ms", *indexed),
        *pair("a search for a word that every task has", "ms", *found),
        Row("encryption", "another key for all output", "ms", (rotated,)),
    ]


def all_of(store: TaskStore, count: int) -> None:
    """Read what a list of all tasks shows."""
    found = store.tasks.select(Selection())
    if len(found) != count or found[-1].source != stores.SOURCE:
        raise BenchmarkError(f"{len(found)} of {count} tasks were listed")


def found_in(store: TaskStore, word: str) -> None:
    """Search for a word, down to the lines that are shown."""
    found = search(store, Archives(store), parse([word]), Scope(), lambda done, total: None)
    if len(found.hits) != Scope().limit or not all(hit.snippets for hit in found.hits):
        raise BenchmarkError(f"{word} was found in {len(found.hits)} tasks")


def rotation(store: TaskStore, sealing: Sealing) -> float:
    """Open all output with its key and seal it with another, a few rows in each transaction."""
    both = Sealing([secrets.token_bytes(KEY_BYTES)])
    key_of = "SELECT sequence, task_key, kind, first_byte, data FROM outputs WHERE sequence > ?"

    def rotate() -> None:
        after = 0
        while rows := store.database.rows(f"{key_of} ORDER BY sequence LIMIT 64", (after,)):
            with store.database.transaction() as connection:
                for sequence, key, kind, first_byte, data in rows:
                    place = (sealing.id_of(store.outputs, key), kind, first_byte)
                    anew = both.seal(sealing.open(data, *place), *place)
                    change = "UPDATE outputs SET data = ? WHERE sequence = ?"
                    connection.execute(change, (anew, sequence))
            after = rows[-1][0]

    return cpu_ms(rotate)


def over_a_log(bench: Bench, sealing: Sealing) -> list[Row]:
    """The end of a long log, and all of it."""
    bench.say(f"storing {bench.log_size} of one task twice, reading its end and all of it")
    times = bench.scale.tails
    with two_stores(bench) as (plain, sealed):
        turns = Turns(plain, sealed, sealing)
        turns.measure(1, lambda store, _: store_log(store, bench.scale.log_bytes))
        tails = turns.measure(times, lambda store, _: read(store, Cut(tail=20)))
        alls = turns.measure(max(1, times // 10), lambda store, _: read(store, Cut()))
    return [
        *pair(f"the last 20 lines of {bench.log_size}", "ms", *tails),
        *pair(f"all of {bench.log_size}", "ms", *alls),
    ]


def store_log(store: TaskStore, size_bytes: int) -> None:
    """Store one task that has printed the long log."""
    session = store.sessions.begin(stores.past_session(store.directory.root))
    task = store.tasks.insert(stores.new_task(session, "log"))
    store.tasks.start(task.key, time.time())
    first = 0
    for text in inside.long_log(size_bytes):
        for piece in searching.pieces(task.key, text.encode(), time.time()):
            new = replace(piece, first_byte=first, last_line=text[-inside.LINE_BYTES : -1])
            store.outputs.append([new.as_row()])
        first += len(text)
    store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())


def read(store: TaskStore, cut: Cut) -> None:
    """Read the streams of the only task."""
    (task,) = store.tasks.select(Selection())
    size = sum(len(piece) for piece in stream_bytes(store, task.key, cut))
    if size == 0:
        raise BenchmarkError("nothing was read")


def over_a_payload(bench: Bench, sealing: Sealing) -> list[Row]:
    """Keeping and loading a large value."""
    bench.say("keeping and loading a value of 100 MB")
    # In pieces that are small enough for the pickle itself.
    value = [os.urandom(PIECE_BYTES) for _piece in range(PAYLOAD_BYTES // PIECE_BYTES)]
    with two_stores(bench) as (plain, sealed):
        turns = Turns(plain, sealed, sealing)
        kept = {}

        def keep(store: TaskStore, turn: int) -> None:
            kept[store] = Payloads(store.directory).save("task-1", "value", value, "a value")

        def load(store: TaskStore, turn: int) -> None:
            if Payloads(store.directory).load(tasks[store], kept[store]) != value:
                raise BenchmarkError("another value came back")

        tasks = {store: a_task(store) for store in (plain, sealed)}
        saved = turns.measure(3, keep)
        loaded = turns.measure(3, load)
    return [
        *pair("keeping a value of 100 MB", "ms", *saved),
        *pair("loading a value of 100 MB", "ms", *loaded),
    ]


def a_task(store: TaskStore) -> TaskRecord:
    """Some task, which is called as the values are signed."""
    session = store.sessions.begin(stores.past_session(store.directory.root))
    return replace(store.tasks.insert(stores.new_task(session, "value")), id="task-1")
