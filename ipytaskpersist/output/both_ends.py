"""The beginning and the end of an output that is too long for a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, OutputRecord
from ipytaskpersist.output import replay
from ipytaskpersist.output.replay import Output
from ipytaskpersist.store.task_store import TaskStore

LARGEST_BYTES = 3_000_000
"""Size up to which all text is shown."""
END_CHARACTERS = 400_000
"""How much text is shown of the beginning, and as much of the end."""
SHOWN = (OutputKind.DISPLAY_DATA, OutputKind.EXECUTE_RESULT, OutputKind.ERROR)


@dataclass(frozen=True, slots=True)
class Folded:
    """What is shown of a long output, in order: everything but the middle of its text."""

    beginning: Sequence[Output]
    between: Sequence[Output]
    """What is no text, such as figures, from the middle."""
    end: Sequence[Output]
    left_out_lines: int
    left_out_bytes: int


def fold(store: TaskStore, task_key: int, kinds: Sequence[OutputKind] = ()) -> Folded | None:
    """Return what is shown of a task's output, or of these kinds; None if it is all of it."""
    if store.outputs.count(task_key, replay.CHANGES):
        outputs = [*replay.beside(replay.of_task(store, task_key, replay.Cut(kinds)))]
        return _folded(outputs, *_size(outputs))
    sizes = [store.outputs.stream_size(task_key, kind) for kind in kinds or STREAM_KINDS]
    lines, size_bytes = sum(each.lines for each in sizes), sum(each.size_bytes for each in sizes)
    if size_bytes <= LARGEST_BYTES:
        return None
    return _folded([*_without_middle(store, task_key, kinds)], lines, size_bytes)


def _without_middle(
    store: TaskStore, task_key: int, kinds: Sequence[OutputKind]
) -> Iterator[Output]:
    """Yield a bit more than is shown of an output, so that the middle need not be read."""
    first = [*_enough(store.outputs.of(task_key, kinds=kinds))]
    last = [*_enough(store.outputs.backwards(task_key, kinds=kinds))][::-1]
    after, until = first[-1].sequence, last[0].sequence - 1
    between = [] if kinds else store.outputs.of(task_key, kinds=SHOWN, after=after, until=until)
    for records in (first, between, last):
        follower = replay.Follower()
        yield from map(follower.output, records)
        yield from follower.finish()


def _enough(records: Iterable[OutputRecord]) -> Iterator[OutputRecord]:
    size_bytes = 0
    for record in records:
        yield record
        # A character has up to four bytes.
        size_bytes += len(record.data) if record.kind in STREAM_KINDS else 0
        if size_bytes >= 4 * END_CHARACTERS:
            return


def _folded(outputs: Sequence[Output], lines: int, size_bytes: int) -> Folded | None:
    if size_bytes <= LARGEST_BYTES:
        return None
    beginning = [*_beginning(outputs)]
    end = [*_end(outputs)][::-1]
    middle = outputs[len(beginning) : len(outputs) - len(end)]
    shown_lines, shown_bytes = _size([*beginning, *end])
    return Folded(
        beginning,
        [output for output in middle if "text" not in output],
        end,
        lines - shown_lines,
        size_bytes - shown_bytes,
    )


def _beginning(outputs: Iterable[Output]) -> Iterator[Output]:
    """Yield the first outputs, the last of them cut after a line if there is one."""
    left = END_CHARACTERS
    for output in outputs:
        text = output.get("text", "")
        if len(text) > left:
            cut = text.rfind("\n", 0, left) + 1 or left
            yield {**output, "text": text[:cut]}
            return
        left -= len(text)
        yield output


def _end(outputs: Sequence[Output]) -> Iterator[Output]:
    """Yield the last outputs from the last on, the first of them cut in the same way."""
    left = END_CHARACTERS
    for output in reversed(outputs):
        text = output.get("text", "")
        if len(text) > left:
            cut = text.find("\n", len(text) - left) + 1 or len(text) - left
            yield {**output, "text": text[cut:]}
            return
        left -= len(text)
        yield output


def _size(outputs: Iterable[Output]) -> tuple[int, int]:
    """Return the number of lines and bytes of text."""
    texts = [output["text"] for output in outputs if "text" in output]
    size_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return sum(text.count("\n") for text in texts), size_bytes
