"""What a task prints and displays comes back exactly, whole or in part."""

from __future__ import annotations

import copy
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.errors import StoreError
from ipytaskpersist.output import replay
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import CHUNK_BYTES, Recording
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask
from ipytaskpersist.store.transfer import remove_tasks

STDOUT, STDERR, DISPLAY, UPDATE, CLEAR, RESULT, ERROR = OutputKind

unhurried = settings(deadline=None)
"""A machine that does something else at the same time is no error."""

Document = dict[str, Any]
Event = tuple[OutputKind | None, Any]
"""A kind and what was printed, or the content of the message; no kind for a pause in which the
writer commits what it has."""
PAUSE: Event = (None, None)


def do_nothing(*_arguments: Any) -> None:
    """What the recorder may call."""


class Desk:
    """A store and the recorder that writes to it."""

    def __init__(self, directory: Path) -> None:
        self.warnings: list[str] = []
        self.store = TaskStore(StateDirectory(directory)).open()
        self.session = self.store.sessions.begin(session_identity(None))
        self.recorder = Recorder(
            self.store, warn=self.warnings.append, heartbeat=do_nothing, watch=do_nothing
        )
        self.recorder.start()

    def new_task(self) -> TaskRecord:
        return self.store.tasks.insert(
            NewTask(self.session.notebook_key, self.session.id, "", "python", "thread", "")
        )

    def commit(self) -> None:
        """Return when everything recorded so far is in the store."""
        assert self.recorder.change(do_nothing, 30), self.warnings

    def record(self, events: Sequence[Event]) -> int:
        """Record the events as those of a new task, and return its key."""
        task = self.new_task()
        recording = Recording(self.recorder, task.key)
        for kind, content in events:
            if kind is None:
                self.commit()
            elif kind in (STDOUT, STDERR):
                recording.write(kind, content)
            else:
                recording.add(kind, content)
        self.commit()
        return task.key

    def resolved(self, key: int, **cut: Any) -> list[Document]:
        pieces = replay.of_task(self.store, key, replay.Cut(**cut))
        return replay.merge_streams(copy.deepcopy(list(pieces)))

    def written(self, key: int, *kinds: OutputKind) -> bytes:
        cut = replay.Cut(kinds or (STDOUT, STDERR))
        return b"".join(replay.stream_bytes(self.store, key, cut))

    def close(self) -> None:
        self.recorder.stop(10)
        self.store.close()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with closing(Desk(tmp_path_factory.mktemp("outputs") / "state")) as desk:
        yield desk


# What to expect.


def as_written(piece: str | bytes) -> bytes:
    """UTF-8; bytes that Python had smuggled into a text as they were; else an escape."""
    if isinstance(piece, bytes):
        return piece
    for errors in ("strict", "surrogateescape", "backslashreplace"):
        try:
            return piece.encode("utf-8", errors)
        except UnicodeEncodeError:
            continue
    raise AssertionError("backslashreplace takes everything")


@dataclass
class FrontEnd:
    """What a notebook shows of a cell, in as few words as possible."""

    shown: list[Document] = field(default_factory=list)
    clear_before_next: bool = False

    def see(self, kind: OutputKind, content: Any) -> None:
        if kind is CLEAR:
            self.clear_before_next = content["wait"]
            if not content["wait"]:
                self.shown = []
        elif kind is UPDATE:
            for output in self.shown:
                if output.get("transient") == content["transient"]:
                    output |= {"data": content["data"], "metadata": content["metadata"]}
        elif kind not in (STDOUT, STDERR):
            self.add({"output_type": kind.value, **copy.deepcopy(content)})
        elif content:
            text = as_written(content).decode()
            self.add({"output_type": "stream", "name": kind.value, "text": text})

    def add(self, output: Document) -> None:
        if self.clear_before_next:
            self.shown, self.clear_before_next = [], False
        if self.shown and output.get("name", "") == self.shown[-1].get("name"):
            self.shown[-1]["text"] += output["text"]
        else:
            self.shown.append(output)


def what_is_shown(events: Sequence[Event]) -> list[Document]:
    front_end = FrontEnd()
    for kind, content in events:
        if kind is not None:
            front_end.see(kind, content)
    return front_end.shown


def lines_of(shown: Sequence[Document]) -> list[list[Any]]:
    """The lines of what is shown: each a list of characters with their stream, or of displays.

    A line ends after a line feed or a display, whichever stream it is in.
    """
    lines: list[list[Any]] = [[]]
    for output in shown:
        is_stream = output["output_type"] == "stream"
        for piece in [(output["name"], c) for c in output["text"]] if is_stream else [output]:
            lines[-1].append(piece)
            if not is_stream or piece[1] == "\n":
                lines.append([])
    return lines[:-1] if not lines[-1] else lines


def flat(lines: Sequence[Sequence[Any]]) -> list[Any]:
    return [piece for line in lines for piece in line]


# What to record.

characters = st.sampled_from("abc \n\r\0é€😀\ud800")
texts = st.text(characters, max_size=20) | st.text(max_size=20)
stream_kinds = st.sampled_from([STDOUT, STDERR])
writes = st.tuples(stream_kinds, texts)
plain_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
mime_bundles = st.dictionaries(
    st.sampled_from(["text/plain", "text/html", "image/png"]), plain_texts, min_size=1
)
displays = st.builds(
    lambda data: (DISPLAY, {"data": data, "metadata": {}, "transient": {}}), mime_bundles
)
named = st.sampled_from("xyz").map(lambda name: {"display_id": name})
named_displays = st.builds(
    lambda data, name: (DISPLAY, {"data": data, "metadata": {}, "transient": name}),
    mime_bundles, named,
)  # fmt: skip
updates = st.builds(
    lambda data, name: (UPDATE, {"data": data, "metadata": {"new": 1}, "transient": name}),
    mime_bundles, named,
)  # fmt: skip
clears = st.booleans().map(lambda wait: (CLEAR, {"wait": wait}))
results = st.builds(
    lambda data: (RESULT, {"data": data, "metadata": {}, "execution_count": 7}), mime_bundles
)
errors = st.builds(
    lambda name, lines: (ERROR, {"ename": name, "evalue": "", "traceback": lines}),
    plain_texts, st.lists(plain_texts, max_size=3),
)  # fmt: skip
pauses = st.just(PAUSE)
whole_streams = st.lists(
    st.one_of(st.tuples(stream_kinds, texts | st.binary(max_size=20)), pauses), max_size=30
)
all_events = st.lists(
    st.one_of(writes, displays, named_displays, updates, clears, results, errors, pauses),
    max_size=25,
)
events_in_lines = st.lists(
    st.one_of(st.tuples(stream_kinds, st.text("ab\né", max_size=12)), displays, pauses),
    max_size=25,
)


# Whole.


@unhurried
@given(events=whole_streams)
@example(events=[(STDOUT, "\ud800"), (STDOUT, "\udc80")])
@example(events=[PAUSE, (STDOUT, "x\n"), (STDOUT, "\ud800"), (STDOUT, "\udc80\n")])
@example(events=[(STDERR, b"\xe2\x82"), (STDOUT, "between"), (STDERR, b"\xac")])
def test_streams_come_back_byte_for_byte(desk: Desk, events: list[Event]) -> None:
    key = desk.record(events)
    for kind in (STDOUT, STDERR):
        written = b"".join(as_written(piece) for each, piece in events if each is kind)
        assert desk.written(key, kind) == written
        size = desk.store.outputs.stream_size(key, kind)
        assert (size.size_bytes, size.lines) == (len(written), written.count(b"\n"))
    in_order = b"".join(as_written(piece) for kind, piece in events if kind is not None)
    assert desk.written(key) == in_order


@unhurried
@given(events=all_events)
def test_outputs_come_back_as_a_notebook_would_show_them(desk: Desk, events: list[Event]) -> None:
    key = desk.record(events)
    assert replay.resolve(desk.store.outputs.of(key)) == what_is_shown(events)
    assert desk.resolved(key) == what_is_shown(events)


@unhurried
@given(events=all_events)
def test_outputs_are_what_a_notebook_file_may_hold(desk: Desk, events: list[Event]) -> None:
    for output in replay.as_nbformat(desk.resolved(desk.record(events))):
        nbformat.validate(output, ref="output", version=4, version_minor=5)


@unhurried
@given(text=st.text(st.sampled_from("aé€😀\n"), max_size=200), data=st.data())
def test_a_text_whose_bytes_come_in_pieces_is_not_broken(
    desk: Desk, text: str, data: st.DataObject
) -> None:
    """What a child process prints is read as it comes, in the middle of a character as well."""
    encoded = text.encode()
    places = data.draw(st.lists(st.integers(0, len(encoded)), max_size=10))
    edges = [0, *sorted(places), len(encoded)]
    pieces = [encoded[start:end] for start, end in itertools.pairwise(edges)]
    key = desk.record([event for piece in pieces for event in ((STDOUT, piece), PAUSE)])
    assert "".join(output["text"] for output in desk.resolved(key)) == text
    last = desk.store.tasks.get(key)
    assert last is not None
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    assert last.last_line == (lines[-1] if lines else None)


def test_a_stream_that_ends_inside_a_character_shows_that(desk: Desk) -> None:
    """The bytes are there; what is shown says that there was something."""
    key = desk.record([(STDOUT, b"abc\xe2\x82")])
    assert desk.written(key) == b"abc\xe2\x82"
    assert "".join(output["text"] for output in desk.resolved(key)) == "abc\ufffd"


# In part.


@unhurried
@given(events=events_in_lines | all_events, count=st.integers(0, 12))
def test_head_and_tail_are_the_first_and_the_last_lines_of_what_is_shown(
    desk: Desk, events: list[Event], count: int
) -> None:
    key = desk.record(events)
    lines = lines_of(what_is_shown(events))
    assert flat(lines_of(desk.resolved(key, head=count))) == flat(lines[:count])
    last = lines[-count:] if count else []
    assert flat(lines_of(desk.resolved(key, tail=count))) == flat(last)


@unhurried
@given(events=events_in_lines, kind=stream_kinds, count=st.integers(0, 12))
def test_head_and_tail_of_one_stream_are_its_own_lines(
    desk: Desk, events: list[Event], kind: OutputKind, count: int
) -> None:
    key = desk.record(events)
    text = "".join(piece for each, piece in events if each is kind)
    lines = text.splitlines(keepends=True)
    for cut, kept in (
        (replay.Cut((kind,), head=count), lines[:count]),
        (replay.Cut((kind,), tail=count), lines[-count:] if count else []),
    ):
        assert b"".join(replay.stream_bytes(desk.store, key, cut)).decode() == "".join(kept)


@unhurried
@given(events=all_events, kinds=st.sampled_from([(STDOUT,), (STDERR,), (STDOUT, STDERR)]))
def test_some_kinds_alone_come_in_their_order(
    desk: Desk, events: list[Event], kinds: tuple[OutputKind, ...]
) -> None:
    key = desk.record(events)
    found = list(desk.store.outputs.of(key, kinds=kinds))
    assert {record.kind for record in found} <= set(kinds)
    written = [as_written(piece) for kind, piece in events if kind in kinds]
    assert b"".join(record.data for record in found) == b"".join(written)
    assert list(desk.store.outputs.backwards(key, kinds=kinds)) == found[::-1]
    for record in found:
        after = [each for each in found if each.sequence > record.sequence]
        assert list(desk.store.outputs.of(key, kinds=kinds, after=record.sequence)) == after


# Large.

LINE = "é" * 49 + "\n"
BIG = LINE * 12_000


def big_streams() -> dict[str, list[Event]]:
    return {
        "in one piece": [(STDOUT, BIG)],
        "line by line": [(STDOUT, LINE)] * 12_000,
        "as bytes": [(STDOUT, BIG.encode())],
        "without a line feed": [(STDOUT, "é" * 600_000)],
        "that does not compress": [(STDOUT, os.urandom(600_000).hex())],
    }


@pytest.mark.parametrize("how", big_streams())
def test_a_large_stream_is_kept_in_pieces_of_a_bounded_size(desk: Desk, how: str) -> None:
    events = big_streams()[how]
    written = b"".join(as_written(piece) for _kind, piece in events)
    key = desk.record(events)
    pieces = [record.data for record in desk.store.outputs.of(key)]
    assert b"".join(pieces) == written
    assert len(pieces) >= len(written) // CHUNK_BYTES
    assert max(map(len, pieces)) <= CHUNK_BYTES
    (output,) = desk.resolved(key)
    assert output["text"] == written.decode()


@pytest.mark.parametrize("lines", [1, 7, 3000, 11_999, 12_000, 12_001])
def test_head_and_tail_of_a_large_stream_are_exact(desk: Desk, lines: int) -> None:
    numbered = "".join(f"{number:049}\n" for number in range(12_000))
    key = desk.record([(STDOUT, numbered)])
    every = numbered.splitlines(keepends=True)
    (head,), (tail,) = desk.resolved(key, head=lines), desk.resolved(key, tail=lines)
    assert head["text"] == "".join(every[:lines])
    assert tail["text"] == "".join(every[-lines:])


def test_the_tail_of_a_large_stream_does_not_read_the_rest(desk: Desk) -> None:
    key = desk.record([(STDOUT, BIG)])
    read = []

    def counted() -> Iterator[Any]:
        for record in desk.store.outputs.backwards(key):
            read.append(record)
            yield record

    assert len(replay.tail(counted(), 10)) == 1
    assert len(read) == 1
    assert len(list(desk.store.outputs.of(key))) > 3


def test_repeated_text_takes_little_room(desk: Desk) -> None:
    """A million lines of a log are kept in a few percent of their size."""
    key = desk.record([(STDOUT, BIG)])
    (stored,) = desk.store.database.row(
        "SELECT sum(length(data)) FROM outputs WHERE task_key = ?", (key,)
    )
    assert stored < len(BIG.encode()) / 20


def test_a_display_of_any_size_comes_back(desk: Desk) -> None:
    data = {"text/plain": "x" * (3 * CHUNK_BYTES), "image/png": os.urandom(10_000).hex()}
    key = desk.record([(DISPLAY, {"data": data, "metadata": {}, "transient": {}})])
    (output,) = desk.resolved(key)
    assert output["data"] == data


# The recorder.


def test_each_task_gets_its_own_output_and_nothing_else(desk: Desk) -> None:
    keys = [desk.new_task().key for _ in range(5)]
    recordings = [Recording(desk.recorder, key) for key in keys]
    for number in range(500):
        for place, recording in enumerate(recordings):
            recording.write(STDOUT, f"{place}:{number}\n")
    desk.commit()
    for place, key in enumerate(keys):
        expected = "".join(f"{place}:{number}\n" for number in range(500))
        assert desk.written(key) == expected.encode()


def test_a_change_is_made_after_what_was_printed_before_it(desk: Desk) -> None:
    """Who sees that a task has ended also sees all of its output."""
    task = desk.new_task()
    recording = Recording(desk.recorder, task.key)
    seen: list[int] = []

    def look(store: TaskStore) -> None:
        seen.append(store.outputs.stream_size(task.key, STDOUT).lines)

    for number in range(1, 200):
        recording.write(STDOUT, "x\n" * 50)
        if number % 20 == 0:
            assert desk.recorder.change(look, 30)
    assert seen == [50 * number for number in range(20, 200, 20)]


def fail(_store: TaskStore) -> None:
    raise ArithmeticError("a change that cannot be made")


def test_a_change_that_fails_loses_nothing_else_and_is_said(tmp_path: Path) -> None:
    """The writer serves all tasks of the process: one that is broken must not end it."""
    with closing(Desk(tmp_path / "state")) as desk:
        first, second = desk.new_task(), desk.new_task()
        Recording(desk.recorder, first.key).write(STDOUT, "before")
        desk.recorder.post(fail)
        desk.recorder.post(lambda store: store.tasks.start(first.key, time.time()))
        Recording(desk.recorder, second.key).write(STDOUT, "after")
        assert desk.recorder.change(
            lambda store: store.tasks.end(first.key, TaskState.COMPLETED, None, 0, time.time()), 10
        )
        ended = desk.store.tasks.get(first.key)
        assert ended is not None
        assert ended.state is TaskState.COMPLETED
        assert desk.written(first.key) == b"before"
        assert desk.written(second.key) == b"after"
        assert "a change that cannot be made" in "\n".join(desk.warnings)


def test_output_of_a_task_that_was_deleted_meanwhile_harms_no_other(tmp_path: Path) -> None:
    with closing(Desk(tmp_path / "state")) as desk:
        deleted, kept = desk.new_task(), desk.new_task()
        recordings = [Recording(desk.recorder, task.key) for task in (deleted, kept)]
        remove_tasks(desk.store.database, [deleted.id])
        for _ in range(3):
            for recording in recordings:
                recording.write(STDOUT, "text")
                recording.add(DISPLAY, {"data": {}, "metadata": {}, "transient": {}})
        desk.commit()
        assert len(desk.resolved(kept.key)) == 6
        assert desk.resolved(deleted.key) == []
        assert desk.warnings == []


def test_what_is_printed_after_the_end_is_dropped_and_does_not_wait(tmp_path: Path) -> None:
    """A thread that outlives its kernel's session prints into nothing, and is not held up."""
    desk = Desk(tmp_path / "state")
    key = desk.record([(STDOUT, "before\n")])
    recording = Recording(desk.recorder, key)
    desk.recorder.stop(10)
    begun = time.monotonic()
    for _ in range(100):
        recording.write(STDOUT, "x" * 100_000 + "\n")
    assert not desk.recorder.change(do_nothing, 0.1)
    assert time.monotonic() - begun < 10
    assert desk.written(key) == b"before\n"
    desk.close()


def test_content_that_json_does_not_know_is_shown_as_its_text(desk: Desk) -> None:
    content = {"data": {"text/plain": "x", "application/json": {"where": Path("a")}}}
    key = desk.record([(DISPLAY, {**content, "metadata": {}, "transient": {}})])
    (output,) = desk.resolved(key)
    assert output["data"]["application/json"] == {"where": "a"}
    json.dumps(output)


def test_a_store_that_cannot_be_written_is_said_once_and_what_was_printed_is_kept(
    tmp_path: Path,
) -> None:
    with closing(Desk(tmp_path / "state")) as desk:
        task = desk.new_task()
        recording = Recording(desk.recorder, task.key)
        broken = True

        def change(_store: TaskStore) -> None:
            if broken:
                raise StoreError("no room left for the store")

        desk.recorder.post(change)
        for number in range(100):
            recording.write(STDOUT, f"{number}\n")
        assert not desk.recorder.change(do_nothing, 0.5)
        assert [warning.partition(".")[0] for warning in desk.warnings] == [
            "no room left for the store"
        ]
        broken = False
        desk.commit()
        expected = "".join(f"{number}\n" for number in range(100)).encode()
        assert desk.written(task.key) == expected
        assert desk.warnings[1:] == [
            "the store can be written again; nothing printed meanwhile was lost."
        ]


def test_a_print_from_many_threads_is_recorded_once(desk: Desk) -> None:
    task = desk.new_task()
    recording = Recording(desk.recorder, task.key)

    def write(place: int) -> Callable[[], None]:
        def run() -> None:
            for number in range(500):
                recording.write(STDOUT, f"{place}:{number}\n")

        return run

    threads = [threading.Thread(target=write(place)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    desk.commit()
    lines = desk.written(task.key).decode().splitlines()
    assert sorted(lines) == sorted(f"{place}:{n}" for place in range(8) for n in range(500))
    size = desk.store.outputs.stream_size(task.key, STDOUT)
    assert size.lines == 4000
