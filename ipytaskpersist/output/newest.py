"""The newest output of a task, of which no more is read than is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, OutputRecord
from ipytaskpersist.base.widget_marks import is_about_widget
from ipytaskpersist.output import replay
from ipytaskpersist.output.replay import Output
from ipytaskpersist.store.task_store import TaskStore

READ_BYTES = 512 * 1024
"""Maximum amount of a task's newest output that is read."""
DISPLAYS = (OutputKind.DISPLAY_DATA, OutputKind.UPDATE_DISPLAY_DATA)


@dataclass(frozen=True, slots=True)
class Newest:
    """The end of a task's output."""

    outputs: Sequence[Output]
    is_whole: bool
    """Whether there is nothing before it."""


def newest_outputs(store: TaskStore, task_key: int, lines: int) -> Newest:
    """Return the outputs of the last lines. Earlier output is not read."""
    backwards = _Bounded(store.outputs.backwards(task_key))
    records = replay.tail(backwards, lines)
    return Newest(replay.resolve(_shown_again(records)), backwards.is_whole)


class _Bounded:
    """The records, last first, until they are enough; the last one whatever its size."""

    def __init__(self, records: Iterable[OutputRecord]) -> None:
        self._records = records
        self.is_whole = False
        """Whether all records have been yielded, and none was cut or left out."""

    def __iter__(self) -> Iterator[OutputRecord]:
        left, is_whole = READ_BYTES, True
        for record in self._records:
            size, is_last = len(record.data), left == READ_BYTES
            if record.kind in STREAM_KINDS and is_last:
                is_whole = is_whole and size <= READ_BYTES
                yield replace(record, data=record.data[-READ_BYTES:])
            elif size <= left or is_last:
                yield record
            else:
                is_whole = False
            left -= size
            if left <= 0:
                return
        self.is_whole = is_whole


def _shown_again(records: list[OutputRecord]) -> Iterator[OutputRecord]:
    """Yield the records. An update of a display from before them becomes a display."""
    known = set()
    for record in records:
        if record.kind in DISPLAYS and not is_about_widget(record.kind, record.data):
            display = replay.display_id(record)
            is_known = display in known
            known.add(display)
            yield record if is_known else replace(record, kind=OutputKind.DISPLAY_DATA)
        else:
            yield record
