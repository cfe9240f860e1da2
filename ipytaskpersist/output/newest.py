"""The newest output of a task, of which no more is read than is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, OutputRecord
from ipytaskpersist.base.widget_marks import is_about_widget
from ipytaskpersist.output import replay
from ipytaskpersist.output.replay import Output
from ipytaskpersist.store.task_store import TaskStore

READ_BYTES = 512 * 1024
"""Maximum amount of a task's newest output that is read."""
DISPLAYS = (OutputKind.DISPLAY_DATA, OutputKind.UPDATE_DISPLAY_DATA)


def newest_outputs(store: TaskStore, task_key: int, lines: int) -> list[Output]:
    """Return the outputs of the last lines. Earlier output is not read."""
    records = replay.tail(_bounded(store.outputs.backwards(task_key)), lines)
    return replay.resolve(_shown_again(records))


def _bounded(records: Iterable[OutputRecord]) -> Iterator[OutputRecord]:
    """Yield the records, last first, until they are enough; the last one whatever its size."""
    left = READ_BYTES
    for record in records:
        is_stream = record.kind in STREAM_KINDS
        if is_stream and left == READ_BYTES:
            yield replace(record, data=record.data[-READ_BYTES:])
        elif len(record.data) <= left or left == READ_BYTES:
            yield record
        left -= len(record.data)
        if left <= 0:
            return


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
