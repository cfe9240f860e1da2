"""A part of a task's text by bytes, and its newest displays: what a program reads step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.screen import visible_lines

AT_MOST = 4_000
"""Number of bytes that are read if no other was asked for."""
SHOWN = (
    OutputKind.DISPLAY_DATA,
    OutputKind.UPDATE_DISPLAY_DATA,
    OutputKind.EXECUTE_RESULT,
    OutputKind.ERROR,
)
SHOWN_AT_MOST = 8
"""Number of newest displays that are read."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of what a task has written to its streams."""

    text: str
    """The part as a terminal shows it: without colours, and with only the last state of a bar."""
    from_byte: int
    """Where the part begins, in bytes of both streams in order."""
    next: int
    """Where the next part begins."""
    size: int
    """Number of bytes that there were when it was read."""

    def as_json(self) -> dict[str, Any]:
        """Return the part as ``output --at-most N --json`` prints it."""
        return {
            "text": self.text,
            "from_byte": self.from_byte,
            "next": self.next,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Shown:
    """A display, a result or an error of a task."""

    kind: OutputKind
    data: dict[str, Any]
    """Its forms by MIME type. An error has only a text."""

    def as_json(self) -> dict[str, Any]:
        """Return its kind and its text."""
        text = "".join(self.data.get("text/plain", ""))
        return {"kind": self.kind.value, "text": "\n".join(visible_lines(text))}


def window(
    store: TaskStore,
    task_key: int,
    kinds: Sequence[OutputKind] = (),
    *,
    from_byte: int | None = None,
    at_most: int = AT_MOST,
    tail: int | None = None,
) -> Window:
    """Return at most so many bytes from a byte on; without one, the last ones.

    With `tail`, no more than so many last lines of these. The time does not depend on how much the
    task has written.
    """
    kinds = kinds or STREAM_KINDS
    last = store.outputs.last_sequence(task_key)
    size = _bytes_before(store, task_key, kinds, last + 1)
    begin = max(0, size - at_most) if from_byte is None else min(from_byte, size)
    data = b"".join(_pieces(store, task_key, kinds, begin, min(size, begin + at_most), last))
    text, skipped, rest = _whole_characters(data, is_last=begin + len(data) >= size)
    end = begin + len(data) - rest
    begin += skipped
    if tail is not None:
        lines = text.split("\n")
        wanted = tail + (not lines[-1])  # what follows the last line feed is no line
        text = "\n".join(lines[max(0, len(lines) - wanted) :])
        begin = end - len(text.encode())
    return Window("\n".join(visible_lines(text)), begin, end, size)


def _bytes_before(
    store: TaskStore, task_key: int, kinds: Sequence[OutputKind], sequence: int
) -> int:
    sizes = [store.outputs.stream_size(task_key, kind, before=sequence) for kind in kinds]
    return sum(size.size_bytes for size in sizes)


def _pieces(
    store: TaskStore,
    task_key: int,
    kinds: Sequence[OutputKind],
    begin: int,
    end: int,
    last: int,
) -> Iterator[bytes]:
    """Yield the bytes from one position to another."""
    low, high = 0, last + 1  # the bytes before `low` are too few, or just enough
    while high - low > 1:
        middle = (low + high) // 2
        if _bytes_before(store, task_key, kinds, middle) <= begin:
            low = middle
        else:
            high = middle
    position = _bytes_before(store, task_key, kinds, low)
    read = store.outputs.of(task_key, kinds=kinds, after=low - 1, until=last, at_once=2)
    for record in read:
        if position >= end:
            return
        yield record.data[max(0, begin - position) : end - position]
        position += len(record.data)


def _whole_characters(data: bytes, *, is_last: bool) -> tuple[str, int, int]:
    """Return the text, and how many bytes of cut characters before and after it are left out."""
    begin = next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    end = len(data)
    if not is_last:
        for back in range(1, min(4, end - begin) + 1):
            byte = data[end - back]
            if byte & 0xC0 == 0x80:
                continue
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            end -= back if length > back else 0
            break
    end = end if end > begin else len(data)  # one character that is larger than the window
    return data[begin:end].decode("utf-8", "replace"), begin, len(data) - end


def newest_shown(store: TaskStore, task_key: int) -> list[Shown]:
    """Return the newest displays, results and errors of a task, oldest first."""
    if not store.outputs.count(task_key, SHOWN):
        return []  # without reading back through all of its text
    records = islice(store.outputs.backwards(task_key, kinds=SHOWN), SHOWN_AT_MOST)
    found = [(record.kind, json.loads(record.data)) for record in records]
    return [
        Shown(kind, _data(kind, content))
        for kind, content in reversed(found)
        if kind is OutputKind.ERROR or "data" in content
    ]


def _data(kind: OutputKind, content: dict[str, Any]) -> dict[str, Any]:
    if kind is OutputKind.ERROR:
        return {"text/plain": "\n".join(content["traceback"])}
    return dict(content["data"])
