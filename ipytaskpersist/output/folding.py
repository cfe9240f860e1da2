"""The outputs of a task with the middle of what is long left out, so that a page stays quick.

A page shows the first lines of what a task printed and the last ones. Displays stay between them,
unless there are very many. Each gap is a `Fold`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ipytaskpersist.base.records import STREAM_KINDS
from ipytaskpersist.output.replay import Output, Placed, Resolver, decoder

LOOSE_CHARACTERS = 64 * 1024
"""Amount of text with carriage returns after which what it has overwritten is left out."""
LINE = re.compile(r"[^\n]*\r[^\n]*")


@dataclass(frozen=True, slots=True)
class Limit:
    """An amount of output."""

    lines: int
    characters: int
    outputs: int


ALL = Limit(2_000, 256_000, 1_000)
"""What is shown whole. JupyterLab draws 100 kB of text in 0.1 s."""
HEAD = Limit(1_000, 100_000, 400)
TAIL = Limit(500, 100_000, 200)
"""The least that is shown of the end: it grows until all that is shown is too much again."""


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

    def __init__(self) -> None:
        super().__init__()
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
        return self._lines >= HEAD.lines or self._characters >= HEAD.characters

    def _place(self, output: Output) -> None:
        text = output.get("text", "") if output["output_type"] == "stream" else ""
        super()._place(output)
        self._lines += text.count("\n")
        self._characters += len(text)
        if "\r" in text:
            self._tighten(self.placed[-1], len(text))
        if (
            self._lines > ALL.lines
            or self._characters > ALL.characters
            or len(self.placed) > ALL.outputs
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
        placed = [each for each in self.placed if each.output]
        is_many = len(placed) > ALL.outputs
        head, rest = _parted(placed, HEAD)
        tail, middle = _parted(rest, TAIL, backwards=True)
        self.placed = [*head, *_folded(middle, with_displays=is_many), *tail]
        if len(self.placed) > ALL.outputs:
            self.placed = [*head, *_folded(middle, with_displays=True), *tail]
        self._inside = defaultdict(list)
        for each in self.placed:
            self._inside[each.widget].append(each)
        sizes = [*map(_size, self.placed)]
        self._lines = sum(lines for lines, _characters in sizes)
        self._characters = sum(characters for _lines, characters in sizes)


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
