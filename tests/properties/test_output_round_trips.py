"""What a task prints comes out of the store as it went in: all of it, its parts, and its text."""

from __future__ import annotations

import codecs
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import nbformat
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, OutputRecord
from ipytaskpersist.output import replay
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import CUT, LIMITED, Recording
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.compression import WORTH_COMPRESSING_BYTES, pack, unpack
from ipytaskpersist.store.outputs import LINE_BYTES
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask
from ipytaskpersist.text.encoding import encode, encode_content
from ipytaskpersist.text.sanitized_html import harmless_output
from properties.profiles import tried
from properties.texts import any_bytes, any_text, cut_bytes, json_values, places
from properties.world import folder

STDOUT, STDERR, DISPLAY, UPDATE, CLEAR, RESULT, ERROR = OutputKind
FLUSH = None
Event = tuple[OutputKind, Any] | None
"""A kind with what is written or displayed; None where the writer commits what it has."""


@dataclass
class Desk:
    """A store with a writer, and a task for each example."""

    store: TaskStore
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._session = self.store.sessions.begin(session_identity(None))
        # Nobody is killed here, so no print need wait for its commit.
        self._recorder = Recorder(
            self.store, warn=self.warnings.append, heartbeat=lambda: None, quiet_wait_s=0
        )
        self._recorder.start()

    def record(
        self,
        events: list[Event],
        *,
        at_most: int | None = None,
        at_flush: Callable[[int], object] = lambda _key: None,
    ) -> tuple[int, Recording]:
        """Let a task print, and return its key when all is committed."""
        session = self._session
        new = NewTask(session.notebook_key, session.id, "", "python", "thread", "pass")
        key = self.store.tasks.insert(new).key
        recording = Recording(self._recorder, key, at_most)
        for event in events:
            if event is FLUSH:
                self.flush()
                at_flush(key)
            elif event[0] in STREAM_KINDS:
                recording.write(*event)
            else:
                recording.add(*event)
        self.flush()
        self._recorder.discard(recording)
        assert self.warnings == []
        return key, recording

    def flush(self) -> None:
        assert self._recorder.change(lambda _store: None, 60)

    def stop(self) -> None:
        self._recorder.stop(60)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    with folder() as root, closing(TaskStore(StateDirectory(root)).open()) as store:
        desk = Desk(store)
        yield desk
        desk.stop()


# What tasks print.

UNIT = WORTH_COMPRESSING_BYTES


def filled(size: int, seed: int) -> bytes:
    """So many bytes, which compress well or not at all."""
    if seed % 2:
        return random.Random(seed).randbytes(size)
    return (b"line %d\n" % seed * (size // 6 + 1))[:size]


sizes = st.one_of(
    st.integers(0, 20),
    st.sampled_from([UNIT - 1, UNIT, UNIT + 1, LINE_BYTES - 1, LINE_BYTES, 3 * LINE_BYTES]),
)
texts = any_text | st.text("ab\né", max_size=9)
written = st.one_of(any_bytes, texts, st.builds(filled, sizes, st.integers(0, 9)))
stream_events = st.tuples(st.sampled_from(STREAM_KINDS), written)
pauses = st.just(FLUSH)
stream_histories = st.lists(stream_events | pauses, max_size=14)

bundles = st.fixed_dictionaries(
    {"text/plain": any_text},
    optional={
        "text/html": any_text,
        "image/png": st.text("ABCD=", max_size=8),
        "application/json": json_values,
    },
)
ids = st.sampled_from(["a", "b"])


def display(kind: OutputKind) -> st.SearchStrategy[Event]:
    transient = st.fixed_dictionaries({"display_id": ids})
    content = {
        "data": bundles,
        "metadata": st.dictionaries(st.text(max_size=3), json_values, max_size=1),
    }
    if kind is UPDATE:
        content["transient"] = transient
    optional = {"transient": transient} if kind is DISPLAY else {}
    if kind is RESULT:
        content["execution_count"] = st.none() | st.integers(0, 10**6)
    return st.tuples(st.just(kind), st.fixed_dictionaries(content, optional=optional))


errors = st.tuples(
    st.just(ERROR),
    st.fixed_dictionaries(
        {
            "ename": st.text(max_size=5),
            "evalue": any_text,
            "traceback": st.lists(any_text, max_size=3),
        }
    ),
)
clears = st.tuples(st.just(CLEAR), st.fixed_dictionaries({"wait": st.booleans()}))
histories = st.lists(
    st.one_of(
        stream_events, pauses, display(DISPLAY), display(UPDATE), display(RESULT), errors, clears
    ),
    max_size=14,
)


def as_bytes(kind: OutputKind, piece: Any) -> bytes:
    return encode(piece) if kind in STREAM_KINDS else encode_content(piece)


def in_order(events: list[Event]) -> list[tuple[OutputKind, bytes]]:
    """What must be in the store: pieces of one stream that follow one another joined."""
    done: list[tuple[OutputKind, bytes]] = []
    for event in events:
        if event is None:
            continue
        kind, data = event[0], as_bytes(*event)
        if not data:
            continue
        if kind in STREAM_KINDS and done and done[-1][0] is kind:
            done[-1] = (kind, done[-1][1] + data)
        else:
            done.append((kind, data))
    return done


def joined(records: Iterator[OutputRecord]) -> list[tuple[OutputKind, bytes]]:
    return in_order([(record.kind, record.data) for record in records])  # type: ignore[misc]


# All of it.


@tried(50)
@given(data=st.one_of(any_bytes, st.builds(filled, st.integers(0, 3 * UNIT), st.integers(0, 9))))
def test_bytes_that_are_packed_come_out_as_they_were(data: bytes) -> None:
    compression, packed = pack(data)
    assert unpack(compression, packed) == data
    assert len(packed) <= len(data)
    assert compression is None or len(data) >= UNIT


@tried(50)
@given(events=stream_histories)
def test_streams_come_back_byte_for_byte_and_in_order(desk: Desk, events: list[Event]) -> None:
    key, _recording = desk.record(events)
    written = in_order(events)
    # Encoded bytes of halves of surrogates join; what is written is what each piece was.
    assert joined(desk.store.outputs.of(key)) == written
    backwards = [*desk.store.outputs.backwards(key)]
    assert backwards[::-1] == [*desk.store.outputs.of(key)]
    assert b"".join(replay.stream_bytes(desk.store, key)) == b"".join(
        data for _kind, data in written
    )
    for kind in STREAM_KINDS:
        whole = b"".join(data for each, data in written if each is kind)
        size = desk.store.outputs.stream_size(key, kind)
        assert (size.size_bytes, size.lines) == (len(whole), whole.count(b"\n"))
        line = 0
        for record in desk.store.outputs.of(key, kinds=(kind,)):
            assert record.first_line == line
            line += record.data.count(b"\n")
    last = desk.store.outputs.last_sequence(key)
    assert last == (backwards[0].sequence if backwards else 0)


@tried(40)
@given(events=stream_histories, after=st.integers(0, 20), until=st.integers(0, 20))
def test_a_range_is_that_part_of_the_whole(
    desk: Desk, events: list[Event], after: int, until: int
) -> None:
    key, _recording = desk.record(events)
    whole = [*desk.store.outputs.of(key)]
    edges = [0, *(record.sequence for record in whole), 2**62]
    low, high = edges[after % len(edges)], edges[until % len(edges)]
    part = [record for record in whole if low < record.sequence <= high]
    assert [*desk.store.outputs.of(key, after=low, until=high)] == part
    for kind in STREAM_KINDS:
        earlier = b"".join(
            record.data for record in whole if record.kind is kind and record.sequence < high
        )
        begun = desk.store.outputs.begun_line(key, kind, before=high)
        assert earlier[earlier.rfind(b"\n") + 1 :].endswith(begun)
        pieces = [each for each in whole if each.kind is kind and each.sequence < high]
        if len(pieces) <= 8 and len(earlier) - earlier.rfind(b"\n") <= LINE_BYTES:
            assert begun == earlier[earlier.rfind(b"\n") + 1 :]


@tried(40)
@given(
    events=st.lists(stream_events | display(DISPLAY) | errors | pauses, max_size=12),
    at_most=st.integers(1, 300),
)
def test_a_limit_keeps_a_prefix_counts_the_rest_and_says_so(
    desk: Desk, events: list[Event], at_most: int
) -> None:
    key, recording = desk.record(events, at_most=at_most)
    room, dropped, expected = at_most, 0, []
    for kind, data in _pieces(events):
        if kind not in LIMITED:
            expected.append((kind, data))
            continue
        kept = data[:room] if kind in STREAM_KINDS or len(data) <= room else b""
        room -= len(kept)
        expected += [(kind, kept)] if kept else []
        if len(kept) < len(data):
            expected += [] if dropped else [(STDERR, CUT.format(at_most).encode())]
            dropped, room = dropped + len(data) - len(kept), 0
    assert joined(desk.store.outputs.of(key)) == in_order(expected)  # type: ignore[arg-type]
    assert recording.dropped_bytes == dropped


def _pieces(events: list[Event]) -> Iterator[tuple[OutputKind, bytes]]:
    """A display that is cut off is left out whole, so what is not joined is as it was written."""
    for event in events:
        if event is not None and (data := as_bytes(*event)):
            yield event[0], data


# Parts of it.


def _by_feeds(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


plain = st.lists(
    st.tuples(st.sampled_from(STREAM_KINDS), st.lists(
        st.sampled_from([b"\n", b"a\n", b"bc", b"\xc3\xa9\n", b"\xc3", b"\xa9", b"\r", b"x" * 600]),
        min_size=1, max_size=4).map(b"".join)) | pauses,
    max_size=12,
)  # fmt: skip


@tried(50)
@given(events=plain, count=st.integers(0, 12))
@example(events=[(STDOUT, b"a\nb"), (STDERR, b"c\n")], count=1)
def test_head_and_tail_of_all_streams_are_parts_of_the_whole(
    desk: Desk, events: list[Event], count: int
) -> None:
    """The first lines end with the n-th line feed; the last begin after the n-th from the end."""
    key, _recording = desk.record(events)
    whole = b"".join(data for _kind, data in in_order(events))
    lines = _by_feeds(whole)
    store = desk.store
    head = b"".join(replay.stream_bytes(store, key, replay.Cut(STREAM_KINDS, head=count)))
    tail = b"".join(replay.stream_bytes(store, key, replay.Cut(STREAM_KINDS, tail=count)))
    assert head == b"".join(lines[:count])
    assert tail == b"".join(lines[-count:] if count else [])
    for kind in STREAM_KINDS:
        own = _by_feeds(b"".join(data for each, data in in_order(events) if each is kind))
        for which, kept in (("head", own[:count]), ("tail", own[-count:] if count else [])):
            one = replay.Cut((kind,), **{which: count})
            assert b"".join(replay.stream_bytes(store, key, one)) == b"".join(kept)


@tried(40)
@given(events=histories, count=st.integers(0, 30))
def test_head_and_tail_of_what_is_shown_are_parts_of_it(
    desk: Desk, events: list[Event], count: int
) -> None:
    key, _recording = desk.record(events)
    whole = _entries(replay.of_task(desk.store, key))
    head = _entries(replay.of_task(desk.store, key, replay.Cut(head=count)))
    tail = _entries(replay.of_task(desk.store, key, replay.Cut(tail=count)))
    assert _flat(head) == _flat(whole)[: len(_flat(head))]
    assert _flat(tail) == _flat(whole)[len(_flat(whole)) - len(_flat(tail)) :] or _cut_character(
        events
    )
    everything = 10_000
    all_of_it = _entries(replay.of_task(desk.store, key, replay.Cut(head=everything)))
    assert _flat(all_of_it) == _flat(whole)
    all_of_it = _entries(replay.of_task(desk.store, key, replay.Cut(tail=everything)))
    assert _flat(all_of_it) == _flat(whole)


def _cut_character(events: list[Event]) -> bool:
    """Whether a stream begins in the middle of a character where the tail begins."""
    return any(
        event is not None
        and event[0] in STREAM_KINDS
        and isinstance(event[1], bytes)
        and not _is_utf_8(event[1])
        for event in events
    )


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _entries(found: Any) -> list[dict[str, Any]]:
    return replay.merge_streams(found)


def _flat(found: list[dict[str, Any]]) -> list[Any]:
    """Characters, and displays: what can be cut."""
    flat: list[Any] = []
    for output in found:
        if output["output_type"] == "stream":
            flat += [(output["name"], character) for character in output["text"]]
        else:
            flat.append(repr(sorted(output.items(), key=str)))
    return flat


@tried(50)
@given(events=histories)
def test_what_is_followed_is_what_was_printed(desk: Desk, events: list[Event]) -> None:
    """Whoever looks now and then sees every piece once, in order, and text that is not broken."""
    follower, seen, after = replay.Follower(), [], 0

    def look(key: int) -> None:
        nonlocal after
        for record in desk.store.outputs.of(key, after=after):
            seen.append((record.kind, follower.output(record)))
            after = record.sequence

    key, _recording = desk.record(events, at_flush=look)
    look(key)
    rest = [(OutputKind(each["name"]), each) for each in follower.finish()]
    for kind in STREAM_KINDS:
        text = "".join(each["text"] for one, each in [*seen, *rest] if one is kind)
        data = b"".join(data for each, data in in_order(events) if each is kind)
        assert text == data.decode("utf-8", "replace")
    kinds = [kind for kind, _group in itertools.groupby(seen, key=lambda each: each[0])]
    assert kinds == [
        kind for kind, _group in itertools.groupby(in_order(events), key=lambda each: each[0])
    ]


@tried(40)
@given(events=histories)
def test_the_last_lines_are_visible_lines(desk: Desk, events: list[Event]) -> None:
    key, _recording = desk.record(events)
    for count in (1, 3, 50):
        lines = replay.last_lines(desk.store, key, count)
        assert len(lines) <= count
        assert all(line.strip() and "\n" not in line and "\x1b" not in line for line in lines)


# Text of bytes.


@tried(40)
@given(any_bytes, places)
def test_bytes_cut_anywhere_are_the_same_text(data: bytes, at: list[int]) -> None:
    resolver, follower, texts = replay.Resolver(), replay.Follower(), []
    for place, piece in enumerate(cut_bytes(data, at)):
        record = OutputRecord(place, STDOUT, replay.NO_TIME, piece, 0)
        resolver.add(record)
        texts.append(follower.output(record)["text"])
    texts += [output["text"] for output in follower.finish()]
    whole = codecs.decode(data, "utf-8", "replace")
    assert "".join(texts) == whole
    assert "".join(output["text"] for output in resolver.finish()) == whole


# Notebooks.


@tried(50)
@given(events=histories)
def test_any_output_is_valid_in_a_notebook(desk: Desk, events: list[Event]) -> None:
    key, _recording = desk.record(events)
    for found in (
        replay.of_task(desk.store, key),
        replay.resolve(desk.store.outputs.of(key)),
        map(harmless_output, replay.of_task(desk.store, key)),
    ):
        for output in replay.as_nbformat(replay.merge_streams(found)):
            nbformat.validate(output, ref="output", version=4, version_minor=5)
