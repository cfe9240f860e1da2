"""A task's outputs as a notebook shows them: nbformat outputs, whole or their head or tail."""

from __future__ import annotations

import codecs
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, OutputRecord
from ipytaskpersist.base.widget_marks import STATE, Entered, is_about_widget, model_of
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.screen import Screen, beginning

Output = dict[str, Any]
"""One output in nbformat's form. An updatable display also has ``transient``, and the content of a
displayed ``ipywidgets.Output`` has the id of its model as ``inside``."""

NO_TIME = datetime.min.replace(tzinfo=UTC)
VISIBLE = (*STREAM_KINDS, OutputKind.EXECUTE_RESULT, OutputKind.CLEAR_OUTPUT)
TAIL_BYTES = 4096
TAIL_RECORDS = 64
"""Number of pieces of output that are searched for the last lines."""
CHANGES = (OutputKind.UPDATE_DISPLAY_DATA, OutputKind.CLEAR_OUTPUT)


@dataclass(slots=True, eq=False)
class Placed:
    """An output of a task in its present state."""

    output: Output
    """Empty once it was cleared."""
    widget: str | None
    """Id of the ``ipywidgets.Output`` that it is inside of; None for none."""
    text: list[str] = field(default_factory=list)
    """The pieces of a stream."""

    def whole(self) -> Output:
        """Return the output with all its text."""
        if len(self.text) > 1:
            self.text[:] = ["".join(self.text)]
        return {**self.output, "text": self.text[0]} if self.text else self.output


@dataclass(slots=True)
class Updated:
    """The displays of one id, and the last update of that id."""

    displays: list[Placed] = field(default_factory=list)
    count: int = 0
    """Number of displays that existed at the last update."""
    content: Output = field(default_factory=dict)


class Resolver:
    """Turns the records of one task, in order, into the outputs that they leave.

    Runs in time linear in their number: they may come from an untrusted source.
    """

    def __init__(self) -> None:
        self.placed: list[Placed] = []
        self._inside: defaultdict[str | None, list[Placed]] = defaultdict(list)
        """The same, by the widget that they are inside of."""
        self._updated: defaultdict[str, Updated] = defaultdict(Updated)
        """By display id."""
        self._decoders = {kind: decoder() for kind in STREAM_KINDS}
        self._kept: dict[str, Output] = {}
        """The last appearance of widgets, by the ids of their models."""
        self._widgets = Entered()
        self._clear_next: set[str | None] = set()
        """Widgets, or None for what is inside none, that are cleared by their next output."""

    def add(self, record: OutputRecord) -> None:
        """Process the next record."""
        if record.kind in STREAM_KINDS:
            text = self._decoders[record.kind].decode(record.data)
            if text:
                self.place({"output_type": "stream", "name": record.kind.value, "text": text})
            return
        content = json.loads(record.data)
        if record.kind is OutputKind.CLEAR_OUTPUT:
            self._clear(content.get("widget"), wait=bool(content["wait"]))
        elif record.kind is OutputKind.UPDATE_DISPLAY_DATA and "widget" in content:
            self._move(content["widget"], inside=content["inside"])
        elif record.kind is OutputKind.UPDATE_DISPLAY_DATA and "model" in content:
            self._kept[content["model"]] = content["data"]
        elif record.kind is OutputKind.UPDATE_DISPLAY_DATA:
            self._update(content)
        else:
            self.place({"output_type": record.kind.value, **content})

    def finish(self) -> list[Output]:
        """Return the final outputs. An incomplete character shows as a replacement."""
        for output in _unfinished(self._decoders):
            self.place(output)
        return [output for _placed, output in self.present()]

    def present(self) -> list[tuple[Placed, Output]]:
        """Return the outputs that the records so far leave. More records may follow."""
        for updated in self._updated.values():
            for placed in updated.displays[: updated.count]:
                if placed.output:
                    placed.output.update(updated.content)
        self.placed = [placed for placed in self.placed if placed.output]
        found = [(placed, self._with_kept(placed.whole())) for placed in self.placed]
        shown = _models_shown(output for _placed, output in found)
        return [
            (placed, {**output, "inside": placed.widget} if placed.widget in shown else output)
            for placed, output in found
        ]

    def _with_kept(self, output: Output) -> Output:
        """Return a widget's view with the text that the widget showed last, and its state."""
        model = model_of(output.get("data", {}))
        return with_kept(output, self._kept[model]) if model in self._kept else output

    def place(self, output: Output) -> None:
        """Put the next output where it belongs. A stream may be a piece."""
        widget = self._widgets.innermost
        if widget in self._clear_next:
            self._clear(widget, wait=False)
        last = self.placed[-1] if self.placed and self.placed[-1].widget == widget else None
        text = [output.pop("text")] if output["output_type"] == "stream" else []
        if text and last is not None and last.output.get("name") == output["name"]:
            last.text += text
            return
        placed = Placed(output, widget, text)
        self.placed.append(placed)
        self._inside[widget].append(placed)
        display_id = output.get("transient", {}).get("display_id")
        if display_id is not None:
            self._updated[str(display_id)].displays.append(placed)

    def _clear(self, widget: str | None, *, wait: bool) -> None:
        if widget is not None:
            self._must_be_inside(widget)
        if wait:
            self._clear_next.add(widget)
            return
        self._clear_next.discard(widget)
        for placed in self._inside.pop(widget, ()):
            placed.output = {}
        while self.placed and not self.placed[-1].output:
            self.placed.pop()

    def _move(self, widget: str, *, inside: bool) -> None:
        if inside:
            self._widgets.enter(widget)
        else:
            self._must_be_inside(widget)
            self._widgets.leave(widget)

    def _must_be_inside(self, widget: str) -> None:
        """Enter a widget that was entered before the first of the records."""
        if widget not in self._widgets:
            self._widgets.enter_before_all(widget)
            outside = self._inside.pop(None, [])
            for placed in outside:
                placed.widget = widget
            self._inside[widget] += outside

    def _update(self, content: Output) -> None:
        wanted = content["transient"].get("display_id")
        updated = self._updated[str(wanted)]
        updated.count = len(updated.displays)
        updated.content = {"data": content["data"], "metadata": content["metadata"]}


def _models_shown(outputs: Iterable[Output]) -> set[str]:
    """Return the ids of the models that the displayed widgets show, nested ones included."""
    return {
        model
        for output in outputs
        for model in output.get("metadata", {}).get(STATE, {}).get("state", ())
    }


def with_kept(output: Output, kept: Output) -> Output:
    """Return a widget's view with what was kept of it: the state is metadata."""
    shown = {mime: value for mime, value in kept.items() if mime != STATE}
    state = {STATE: kept[STATE]} if STATE in kept else {}
    return {
        **output,
        "data": {**output["data"], **shown},
        "metadata": {**output["metadata"], **state},
    }


def decoder() -> codecs.IncrementalDecoder:
    """Return a decoder of one stream, which may cut a character between two pieces."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _unfinished(decoders: dict[OutputKind, codecs.IncrementalDecoder]) -> Iterator[Output]:
    for kind, decoder in decoders.items():
        text = decoder.decode(b"", final=True)
        if text:
            yield {"output_type": "stream", "name": kind.value, "text": text}


def resolve(records: Iterable[OutputRecord]) -> list[Output]:
    """Return the outputs that these records leave, in order."""
    resolver = Resolver()
    for record in records:
        resolver.add(record)
    return resolver.finish()


def as_nbformat(outputs: Iterable[Output]) -> list[Output]:
    """Return the outputs as a notebook file keeps them."""
    return [
        {key: value for key, value in output.items() if key not in ("transient", "inside")}
        for output in outputs
    ]


def beside(outputs: Iterable[Output]) -> Iterator[Output]:
    """Yield the outputs for a place where the widgets that contain some of them are not shown."""
    for output in outputs:
        yield {key: value for key, value in output.items() if key != "inside"}


def merge_streams(outputs: Iterable[Output]) -> list[Output]:
    """Return the outputs with adjacent pieces of the same stream joined."""
    merged: list[Output] = []
    texts: list[str] = []

    def join() -> None:
        if texts:
            merged[-1]["text"] = "".join(texts)
            texts.clear()

    for output in beside(outputs):
        if output["output_type"] != "stream":
            join()
            merged.append(output)
        elif texts and merged[-1]["name"] == output["name"]:
            texts.append(output["text"])
        else:
            join()
            merged.append(output)
            texts.append(output["text"])
    join()
    return merged


def display_id(record: OutputRecord) -> str | None:
    """Return the id by which a display can be updated; None when there is none."""
    name = json.loads(record.data).get("transient", {}).get("display_id")
    return None if name is None else str(name)


class Follower:
    """Turns the records of one task into outputs one by one, in order."""

    def __init__(self) -> None:
        self._decoders = {kind: decoder() for kind in STREAM_KINDS}

    def output(self, record: OutputRecord) -> Output:
        """Return the record by itself. A character that it cuts comes with the next one."""
        if record.kind in STREAM_KINDS:
            text = self._decoders[record.kind].decode(record.data)
            return {"output_type": "stream", "name": record.kind.value, "text": text}
        return {"output_type": record.kind.value, **json.loads(record.data)}

    def finish(self) -> Iterator[Output]:
        """Return what is left at the end: an incomplete character shows as a replacement."""
        return _unfinished(self._decoders)


@dataclass(frozen=True, slots=True)
class Cut:
    """Part of a task's outputs."""

    kinds: Sequence[OutputKind] = ()
    """Only these; all when empty."""
    head: int | None = None
    """Only this many first lines. A display counts as one."""
    tail: int | None = None
    """Only this many last lines."""


EVERYTHING = Cut()
STREAMS = Cut(STREAM_KINDS)


def of_task(store: TaskStore, task_key: int, cut: Cut = EVERYTHING) -> Iterator[Output]:
    """Yield the task's outputs in order; a stream may come in several pieces.

    Without updates and clears they are passed on piece by piece, so that a gigabyte of text need
    not fit into memory.
    """
    if store.outputs.count(task_key, CHANGES):
        yield from _cut_outputs(resolve(store.outputs.of(task_key)), cut)
        return
    follower = Follower()
    for record in _records(store, task_key, cut):
        yield follower.output(record)
    yield from follower.finish()


def stream_bytes(store: TaskStore, task_key: int, cut: Cut = STREAMS) -> Iterator[bytes]:
    """Yield exactly what the task wrote to its streams, in order."""
    for record in _records(store, task_key, cut):
        yield record.data


def _records(store: TaskStore, task_key: int, cut: Cut) -> Iterable[OutputRecord]:
    if cut.tail is not None:
        return tail(store.outputs.backwards(task_key, kinds=cut.kinds), cut.tail)
    records = store.outputs.of(task_key, kinds=cut.kinds)
    return records if cut.head is None else head(records, cut.head)


def _cut_outputs(outputs: list[Output], cut: Cut) -> list[Output]:
    """Return the requested part of outputs that are already complete."""
    if cut == EVERYTHING:
        return outputs
    # A part may lack the widget that shows its content.
    outputs, kinds = [*beside(outputs)], {kind.value for kind in cut.kinds}
    wanted = [out for out in outputs if not kinds or out.get("name") in kinds]
    if cut.head is None and cut.tail is None:
        return wanted
    # As records again, so that lines are defined in one place.
    records = [_as_record(place, out) for place, out in enumerate(wanted)]
    if cut.tail is not None:
        kept: Iterable[OutputRecord] = tail(reversed(records), cut.tail)
    else:
        kept = head(records, cut.head or 0)
    return [
        {**wanted[record.sequence], "text": record.data.decode()}
        if record.kind in STREAM_KINDS
        else wanted[record.sequence]
        for record in kept
    ]


def _as_record(place: int, output: Output) -> OutputRecord:
    kind = OutputKind(str(output.get("name") or output["output_type"]))
    return OutputRecord(place, kind, NO_TIME, output.get("text", "").encode(), 0)


def last_lines(store: TaskStore, task_key: int, count: int) -> list[str]:
    """Return the last visible lines of the task's output, as a terminal shows them.

    Each stream has its own screen: a bar drawn on stderr stays one line, whatever is printed
    meanwhile. The lines are in the order in which they were last written.
    """
    screens: dict[OutputKind, Screen] = {}
    written: dict[tuple[OutputKind, int], int] = {}
    for turn, (kind, text) in enumerate(_last_pieces(store, task_key)):
        screen = screens.setdefault(kind, Screen())
        before = [*screen.rows]
        screen.feed(text)
        for row, line in enumerate(screen.rows):
            if row >= len(before) or line != before[row]:
                written[kind, row] = turn
    places = sorted(written, key=lambda place: (written[place], place[1]))
    lines = [beginning(screens[kind].rows[row]) for kind, row in places]
    return [line for line in lines if line][-count:]


def _last_pieces(store: TaskStore, task_key: int) -> list[tuple[OutputKind, str]]:
    """Return the last few kilobytes of visible output, in order, in whole lines if possible."""
    pieces: list[tuple[OutputKind, str]] = []
    size = 0
    for record in islice(store.outputs.backwards(task_key, kinds=VISIBLE), TAIL_RECORDS):
        if is_about_widget(record.kind, record.data):
            return _last_resolved(store, task_key)
        if record.kind is OutputKind.CLEAR_OUTPUT or size >= TAIL_BYTES:
            break
        if record.kind in STREAM_KINDS:
            text = record.data[-TAIL_BYTES:].decode("utf-8", "replace")
            if len(record.data) > TAIL_BYTES and "\n" in text[:-1]:
                text = text.partition("\n")[2]
        else:
            value = json.loads(record.data)["data"].get("text/plain", "")
            text = f"{value[:TAIL_BYTES]}\n"
        size += len(text)
        pieces.append((record.kind, text))
    return pieces[::-1]


def _last_resolved(store: TaskStore, task_key: int) -> list[tuple[OutputKind, str]]:
    """Return the same after an output widget was cleared: only in order do records say which."""
    backwards = islice(store.outputs.backwards(task_key), TAIL_RECORDS)
    records = [
        _with_data(record, record.data[-TAIL_BYTES:]) if record.kind in STREAM_KINDS else record
        for record in backwards
    ]
    pieces = []
    for output in resolve(reversed(records)):
        kind = OutputKind(str(output.get("name") or output["output_type"]))
        if kind in STREAM_KINDS:
            pieces.append((kind, output["text"][-TAIL_BYTES:]))
        elif kind is OutputKind.EXECUTE_RESULT:
            value = output["data"].get("text/plain", "")
            pieces.append((kind, f"{value[:TAIL_BYTES]}\n"))
    return pieces


def head(records: Iterable[OutputRecord], lines: int) -> Iterator[OutputRecord]:
    """Yield the records up to this many lines. A display counts as one line."""
    left = lines
    for record in records:
        if left <= 0:
            return
        if record.kind not in STREAM_KINDS:
            left -= 1
            yield record
            continue
        kept = record.data
        if kept.count(b"\n") >= left:
            kept = kept[: _position(kept, left)]
        left -= kept.count(b"\n")
        yield _with_data(record, kept)


def tail(backwards: Iterable[OutputRecord], lines: int) -> list[OutputRecord]:
    """Return the records of the last lines, in order, from records in reverse order."""
    if lines <= 0:
        return []
    kept: list[OutputRecord] = []
    found = 0
    for record in backwards:
        is_stream = record.kind in STREAM_KINDS
        if is_stream and not found and not kept and not record.data.endswith(b"\n"):
            found += 1  # the unfinished line
        kept.append(record)
        if not is_about_widget(record.kind, record.data):
            found += record.data.count(b"\n") if is_stream else 1
        if found > lines:
            break
    kept.reverse()
    return _without_first(kept, found - lines)


def _without_first(records: list[OutputRecord], lines: int) -> list[OutputRecord]:
    rest: list[OutputRecord] = []
    for record in records:
        if lines <= 0 or is_about_widget(record.kind, record.data):
            rest.append(record)
        elif record.kind not in STREAM_KINDS:
            lines -= 1
        elif record.data.count(b"\n") < lines:
            lines -= record.data.count(b"\n")
        else:
            data = record.data[_position(record.data, lines) :]
            lines = 0
            if data:
                rest.append(_with_data(record, data))
    return rest


def _position(data: bytes, lines: int) -> int:
    """Return the position after this many lines."""
    position = 0
    for _ in range(lines):
        position = data.index(b"\n", position) + 1
    return position


def _with_data(record: OutputRecord, data: bytes) -> OutputRecord:
    return OutputRecord(record.sequence, record.kind, record.at, data, record.first_line)
