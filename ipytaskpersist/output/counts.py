"""How much a task has printed and displayed: lines, figures, tables and other displays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.formatting import counted

DISPLAY_KINDS = (OutputKind.DISPLAY_DATA, OutputKind.EXECUTE_RESULT)
FIGURE, TABLE, DISPLAY = "figure", "table", "display"
MIME = re.compile(r'"([a-z]+/[^"\\]+)": ')
"""A key of a display's data. Inside a text its quotation marks would be escaped."""


@dataclass(frozen=True, slots=True)
class OutputCounts:
    """Amounts of a task's output, each of one kind."""

    lines: int = 0
    """Lines that it has printed to both streams."""
    figures: int = 0
    tables: int = 0
    displays: int = 0
    """Displays that are neither a figure nor a table."""

    def in_words(self) -> str:
        """Return ``40 lines, 4 figures, 1 table``; empty if there is no output."""
        amounts = (
            (self.lines, "line"),
            (self.figures, FIGURE),
            (self.tables, TABLE),
            (self.displays, DISPLAY),
        )
        return ", ".join(counted(count, noun) for count, noun in amounts if count)


class OutputCounter:
    """Counts one task's output. Counting again reads only what has been added."""

    def __init__(self) -> None:
        self._after = 0
        self._kinds: Counter[str] = Counter()

    def count(self, store: TaskStore, task_key: int) -> OutputCounts:
        """Return how much there is now. What was cleared does not count, except its lines."""
        outputs = store.outputs
        cleared = outputs.cleared_until(task_key)
        if cleared > self._after:
            self._after = cleared
            self._kinds.clear()
        for sequence, kind, data in outputs.beginnings(task_key, DISPLAY_KINDS, after=self._after):
            self._after = sequence
            text = data.decode("utf-8", "replace")
            is_result = kind is OutputKind.EXECUTE_RESULT
            self._kinds[kind_of(MIME.findall(text), text, is_result=is_result)] += 1
        lines = sum(outputs.stream_size(task_key, kind).lines for kind in STREAM_KINDS)
        return OutputCounts(lines, *(self._kinds[kind] for kind in (FIGURE, TABLE, DISPLAY)))


def counts_of(store: TaskStore, task_key: int) -> OutputCounts:
    """Return how much a task has printed and displayed."""
    return OutputCounter().count(store, task_key)


def kind_of(mimes: Collection[str], html: str, *, is_result: bool) -> str:
    """Return ``figure``, ``table`` or ``display``; empty for a result that is only text."""
    if any(mime.startswith("image/") for mime in mimes):
        return FIGURE
    if "<table" in html:
        return TABLE
    return "" if is_result and {*mimes} <= {"text/plain"} else DISPLAY
