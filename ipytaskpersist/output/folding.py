"""The outputs of a task with the middle of what is long left out, so that a page stays quick.

The first lines of what a task printed are shown, and the last ones. Displays stay between them,
unless there are very many. Each gap is a `Fold`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, OutputRecord
from ipytaskpersist.output import replay
from ipytaskpersist.output.replay import Output, Placed, Resolver, decoder
from ipytaskpersist.store.task_store import TaskStore

LONG_BYTES = 8_000_000
"""Amount of text of which only the beginning and the end are read."""
OTHER_KINDS = tuple(kind for kind in OutputKind if kind not in STREAM_KINDS)
LOOSE_CHARACTERS = 64 * 1024
"""Amount of text with carriage returns after which what it has overwritten is left out."""
LINE = re.compile(r"[^\n]*\r[^\n]*")


@dataclass(frozen=True, slots=True)
class Limit:
    """An amount of output."""

    lines: int
    characters: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a task's outputs is shown in one place."""

    whole: Limit
    """What is shown whole."""
    head: Limit
    """What is shown of the beginning of more than that."""
    tail: Limit
    """The least that is shown of the end: it grows until all that is shown is too much again."""


PAGE = Limits(
    whole=Limit(2_000, 256_000, 1_000),
    head=Limit(1_000, 100_000, 400),
    tail=Limit(500, 100_000, 200),
)
"""The cell of a task in a page. JupyterLab draws 100 kB of text in 0.1 s."""
COMMAND = Limits(
    whole=Limit(sys.maxsize, 3_000_000, sys.maxsize),
    head=Limit(sys.maxsize, 400_000, sys.maxsize),
    tail=Limit(sys.maxsize, 400_000, sys.maxsize),
)
"""What a cell with `%bg_output` shows: as much as a Jupyter server lets through at once."""


@dataclass(slots=True, eq=False)
class Fold(Placed):
    """A gap: how much is left out there."""

    lines: int = 0
    characters: int = 0
    displays: int = 0

    def with_more(self, other: Placed) -> Fold:
        """Return the gap that also leaves out what follows it."""
        if isinstance(other, Fold):
            amounts = other.lines, other.characters, other.displays
        else:
            amounts = *_size(other), 0 if other.text else 1
        return gap(
            self.widget,
            lines=self.lines + amounts[0],
            characters=self.characters + amounts[1],
            displays=self.displays + amounts[2],
        )


def gap(widget: str | None, *, lines: int = 0, characters: int = 0, displays: int = 0) -> Fold:
    """Return a gap of this size."""
    return Fold({"output_type": "fold"}, widget, [], lines, characters, displays)


def _size(placed: Placed) -> tuple[int, int]:
    return sum(each.count("\n") for each in placed.text), sum(map(len, placed.text))


class FoldingResolver(Resolver):
    """A resolver that leaves out the middle of long output as it grows.

    A `Placed` is only ever appended to. One whose content changes otherwise is replaced, so a
    reader that keeps it and the length of its text knows what has changed.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._lines = self._characters = 0
        """Amounts placed since they were last counted. What was cleared since is included."""
        self._loose: tuple[Placed | None, int] = None, 0
        """The stream that is written with carriage returns, and how much was."""

    def skip(self, lines: int, characters: int) -> None:
        """Leave out text without being given it."""
        if characters > 0:
            self._decoders = {kind: decoder() for kind in STREAM_KINDS}
            self.placed.append(gap(None, lines=lines, characters=characters))
            self._inside[None].append(self.placed[-1])

    @property
    def has_head(self) -> bool:
        """Whether more text would not be part of the head any more."""
        head = self._limits.head
        return self._lines >= head.lines or self._characters >= head.characters

    def shorten(self) -> None:
        """Show no more than the least of an output of which something is left out already."""
        if any(isinstance(each, Fold) for each in self.placed):
            self._fold()

    def place(self, output: Output) -> None:
        text = output.get("text", "") if output["output_type"] == "stream" else ""
        super().place(output)
        self._lines += text.count("\n")
        self._characters += len(text)
        if "\r" in text:
            self._tighten(self.placed[-1], len(text))
        whole = self._limits.whole
        if (
            self._lines > whole.lines
            or self._characters > whole.characters
            or len(self.placed) > whole.outputs
        ):
            self._fold()

    def _tighten(self, placed: Placed, added: int) -> None:
        """Leave out what carriage returns have overwritten, now and then."""
        known, loose = self._loose
        loose = added + (loose if known is placed else 0)
        if loose > LOOSE_CHARACTERS:
            text = "".join(placed.text)
            shorter = without_overwritten(text)
            self._characters -= len(text) - len(shorter)
            placed, loose = self._replace(placed, shorter), 0
        self._loose = placed, loose

    def _replace(self, placed: Placed, text: str) -> Placed:
        new = Placed(placed.output, placed.widget, [text])
        self.placed[self.placed.index(placed)] = new
        inside = self._inside[placed.widget]
        inside[inside.index(placed)] = new
        return new

    def _fold(self) -> None:
        """Leave out what is between head and tail."""
        limits, placed = self._limits, [each for each in self.placed if each.output]
        is_many = len(placed) > limits.whole.outputs
        head, rest = _parted(placed, limits.head)
        tail, middle = _parted(rest, limits.tail, backwards=True)
        self.placed = [*head, *_folded(middle, with_displays=is_many), *tail]
        if len(self.placed) > limits.whole.outputs:
            self.placed = [*head, *_folded(middle, with_displays=True), *tail]
        self._inside = defaultdict(list)
        for each in self.placed:
            self._inside[each.widget].append(each)
        sizes = [*map(_size, self.placed)]
        self._lines = sum(lines for lines, _characters in sizes)
        self._characters = sum(characters for _lines, characters in sizes)


class FoldedOutputs:
    """The outputs of one task, or those of some kinds, folded."""

    def __init__(
        self, store: TaskStore, task_key: int, limits: Limits, kinds: Sequence[OutputKind] = ()
    ) -> None:
        self.sequence = 0
        """The last record that was read."""
        self._store, self._key, self._kinds = store, task_key, kinds
        self._limits = limits
        self._resolver = FoldingResolver(limits)

    def read(self) -> None:
        """Read what the task has added. Reading again reads only what is new."""
        is_first = not self.sequence
        if is_first:
            self._skip_middle()
        for record in self._store.outputs.of(self._key, kinds=self._kinds, after=self.sequence):
            self._add(record)
        if is_first:
            self._resolver.shorten()

    def read_cleared(self) -> None:
        """Read the outputs of some kinds where an output of any kind may have cleared them."""
        for output in replay.of_task(self._store, self._key, replay.Cut(self._kinds)):
            self._resolver.place(output)
        self._resolver.shorten()

    def finish(self) -> None:
        """Note that the task adds no more. An incomplete character shows as a replacement."""
        self._resolver.finish()

    def present(self) -> list[tuple[Placed, Output]]:
        """Return the outputs. A gap is placed as a `Fold`."""
        return self._resolver.present()

    def _add(self, record: OutputRecord) -> None:
        self._resolver.add(record)
        self.sequence = record.sequence

    def _skip_middle(self) -> None:
        """Read the beginning of long text, and all displays up to its end, which comes next."""
        outputs, key = self._store.outputs, self._key
        size = text_bytes(self._store, key, self._kinds)
        if size < LONG_BYTES or outputs.count(key, (OutputKind.CLEAR_OUTPUT,)):
            return
        for record in outputs.of(key, kinds=self._kinds):
            self._add(record)
            if self._resolver.has_head:
                break
        tail = self._begin_of_tail()
        if not self._kinds:
            for record in outputs.of(key, kinds=OTHER_KINDS, after=self.sequence, until=tail - 1):
                self._skip_to(record.sequence)
                self._add(record)
        self._skip_to(tail)
        self.sequence = max(self.sequence, tail - 1)

    def _begin_of_tail(self) -> int:
        """Return the sequence of the first record of the last lines."""
        outputs, limit = self._store.outputs, self._limits.tail
        lines, size, sequence = 0, 0, self.sequence + 1
        for record in outputs.backwards(self._key, kinds=self._kinds or STREAM_KINDS):
            sequence = record.sequence
            lines += record.data.count(b"\n")
            size += len(record.data)
            # A character has up to four bytes.
            if sequence <= self.sequence or lines > limit.lines or size > 4 * limit.characters:
                break
        return max(sequence, self.sequence + 1)

    def _skip_to(self, sequence: int) -> None:
        """Leave out the text between the last record that was read and another one."""
        begin, end = (
            [
                self._store.outputs.stream_size(self._key, kind, before=place)
                for kind in self._kinds or STREAM_KINDS
            ]
            for place in (self.sequence + 1, sequence)
        )
        lines = sum(each.lines for each in end) - sum(each.lines for each in begin)
        size = sum(each.size_bytes for each in end) - sum(each.size_bytes for each in begin)
        self._resolver.skip(lines, size)


def text_bytes(store: TaskStore, task_key: int, kinds: Sequence[OutputKind] = ()) -> int:
    """Return the size of what a task has printed."""
    sizes = [store.outputs.stream_size(task_key, kind) for kind in kinds or STREAM_KINDS]
    return sum(each.size_bytes for each in sizes)


def _parted(
    placed: list[Placed], limit: Limit, *, backwards: bool = False
) -> tuple[list[Placed], list[Placed]]:
    """Return the first outputs up to a limit or the first gap, and the rest; or the last ones."""
    lines, characters = limit.lines, limit.characters
    part: list[Placed] = []
    rest = placed[::-1] if backwards else [*placed]
    rest.reverse()
    while rest and len(part) < limit.outputs and not isinstance(rest[-1], Fold):
        each = rest.pop()
        size = _size(each)
        if size[0] > lines or size[1] > characters:
            near, far = _cut(each, lines, characters, backwards=backwards)
            part += near
            rest += far
            break
        part.append(each)
        lines, characters = lines - size[0], characters - size[1]
    rest.reverse()
    return (part[::-1], rest[::-1]) if backwards else (part, rest)


def _cut(
    placed: Placed, lines: int, characters: int, *, backwards: bool
) -> tuple[list[Placed], list[Placed]]:
    """Return the parts of a stream on this side of a limit and beyond it, each in a list."""
    text = "".join(placed.text)
    place = _end_of_tail(text, lines, characters) if backwards else _end(text, lines, characters)
    parts = [
        [Placed(placed.output, placed.widget, [part])] if part else []
        for part in (text[:place], text[place:])
    ]
    return (parts[1], parts[0]) if backwards else (parts[0], parts[1])


def _end(text: str, lines: int, characters: int) -> int:
    """Return the position after so many lines; within a line only if that is too long."""
    place = 0
    for _ in range(lines):
        end = text.find("\n", place) + 1
        if not end or end > characters:
            break
        place = end
    return place or (min(characters, len(text)) if lines else 0)


def _end_of_tail(text: str, lines: int, characters: int) -> int:
    """Return the position before the last lines; within a line only if that is too long."""
    place = len(text)
    for _ in range(lines):
        begin = text.rfind("\n", 0, max(0, place - 1)) + 1
        if len(text) - begin > characters or begin == place:
            break
        place = begin
    return place if place < len(text) or not lines else max(0, len(text) - characters)


def _folded(placed: Iterable[Placed], *, with_displays: bool) -> list[Placed]:
    """Return the outputs with gaps in place of streams, or of everything."""
    found: list[Placed] = []
    for each in placed:
        if not (each.text or isinstance(each, Fold) or with_displays):
            found.append(each)
            continue
        last = found[-1] if found else None
        if not isinstance(last, Fold) or last.widget != each.widget:
            found.append(each if isinstance(each, Fold) else gap(each.widget).with_more(each))
        else:
            found[-1] = last.with_more(each)
        if not isinstance(each, Fold):
            each.output = {}  # its content may be large, and others may know it by its display id
    return found


def without_overwritten(text: str) -> str:
    """Return a text without what its carriage returns have overwritten completely.

    A front end writes what follows a carriage return over the beginning of the line, character by
    character. So a part of a line is gone once a later one is at least as long.
    """
    return LINE.sub(lambda line: _last_parts(line[0]), text)


def _last_parts(line: str) -> str:
    if "\b" in line:
        return line
    kept, longest = [], -1
    for part in reversed(line.split("\r")):
        if len(part) > longest:
            kept.append(part)
            longest = len(part)
    return "\r".join(reversed(kept))
