"""What the status card of a task shows, read from the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.records import (
    CHANGED_HERE,
    NOT_ASKED,
    ProcessRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.display.card_output import SHOWN_ANYWAY, CardOutput, latest_figure, read_output
from ipytaskpersist.display.memory import memory_curve
from ipytaskpersist.output import replay
from ipytaskpersist.output.counts import OutputCounter, OutputCounts
from ipytaskpersist.session.cell_runs import also_running
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore

MEMORY_S = 5.0
"""Interval at which the memory of a running process is measured."""
LIVE_FIGURE_CHARACTERS = 64 * 1024
"""Maximum size of the figure on the card of a running task, which is sent again every second."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows besides the task's record."""

    task: TaskRecord
    now: datetime
    lines: Sequence[str] = ()
    """The last lines that it printed, as a terminal would show them."""
    counts: OutputCounts = field(default_factory=OutputCounts)
    """How much it has printed and displayed."""
    memory_bytes: int | None = None
    """Current memory of its processes; after its end the peak of any one of them."""
    memory_curve: str = ""
    """Its memory over time, in one line of characters."""
    failed_at: str = ""
    """The line of the cell that failed: ``cell line 4``."""
    not_back: str = ""
    """What it has changed of what it was given, and could not bring back, with the reasons."""
    also_running: Sequence[TaskRecord] = ()
    """The earlier runs of its cell that still run."""
    has_result: bool = False
    """Whether its last expression had a value."""
    output: CardOutput = field(default_factory=CardOutput)
    """Its figures, and once it has ended all of its output up to a bound."""
    earlier_try: TaskRecord | None = None
    """The try before it; None for a first try."""
    next_run: TaskRecord | None = None
    """The run that waits for the next time of its schedule; None if none does."""
    starts: str = ""
    """When it will probably start, if it waits for its group; empty when that is not known."""


class CardReader:
    """Reads what one task's card shows; costly parts only if they have changed."""

    def __init__(self, manager: BackgroundTasks, *, carries_output: bool = True) -> None:
        """Without `carries_output`, the card has no figures and nothing to unfold."""
        self._manager = manager
        self._carries_output = carries_output
        self._sequence = -1
        self._has_ended = False
        self._counter = OutputCounter()
        self._lines: Sequence[str] = ()
        self._counts = OutputCounts()
        self._output = CardOutput()
        self._memory_bytes: int | None = None
        self._memory_at = 0.0
        self._memory_curve = ""
        self._earlier_try: TaskRecord | None = None

    def read(self, task: TaskRecord, now: datetime, *, cards: int = 1) -> Card:
        """Return the current card of a task; `cards` is how many are updated side by side."""
        store = self._manager.tasks.store_of(task)
        self._read_output(store, task, LIVE_FIGURE_CHARACTERS // cards)
        return Card(
            task,
            now,
            self._lines,
            self._counts,
            self._memory(store, task),
            self._memory_curve,
            _failed_at(store, task),
            _not_back(store, task),
            also_running(store, task),
            task.state is TaskState.COMPLETED and store.results.get(task.key) is not None,
            self._output,
            self._try_before(store, task),
            _next_run(store, task),
            self._manager.queueing.expected([task]).get(task.key, ""),
        )

    def _read_output(self, store: TaskStore, task: TaskRecord, figure_characters: int) -> None:
        sequence, has_ended = store.outputs.last_sequence(task.key), task.state.is_final
        if (sequence, has_ended) == (self._sequence, self._has_ended):
            return
        self._sequence, self._has_ended = sequence, has_ended
        self._lines = replay.last_lines(store, task.key, SHOWN_ANYWAY)
        self._counts = self._counter.count(store, task.key)
        if not self._carries_output:
            return
        if has_ended:
            self._output = read_output(store, task.key, self._counts)
        elif self._counts.figures:
            self._output = latest_figure(store, task.key, figure_characters) or self._output

    def _try_before(self, store: TaskStore, task: TaskRecord) -> TaskRecord | None:
        if self._earlier_try is None and task.try_number > 1 and task.rerun_of is not None:
            self._earlier_try = store.tasks.get(task.rerun_of)
        return self._earlier_try

    def _memory(self, store: TaskStore, task: TaskRecord) -> int | None:
        if task.runner != "process":
            return None
        if not task.state.is_final and time.monotonic() - self._memory_at < MEMORY_S:
            return self._memory_bytes
        self._memory_at = time.monotonic()
        process = store.processes.get(task.key)
        self._memory_curve = memory_curve(store.processes.usage(task.key))
        self._memory_bytes = None if process is None else _memory_of(task, process)
        return self._memory_bytes


def _memory_of(task: TaskRecord, process: ProcessRecord) -> int | None:
    if task.state.is_final:
        return process.peak_memory_bytes
    used = process_tree.usage(process.pid_here, process.process_start)
    return None if used is None else used[0]


def _failed_at(store: TaskStore, task: TaskRecord) -> str:
    found = store.tasks.post_mortem(task.key) if task.state is TaskState.FAILED else None
    places = [frame["place"] for frame in found["frames"]] if found else []
    return next((each for each in reversed(places) if each.startswith("cell line ")), "")


def _next_run(store: TaskStore, task: TaskRecord) -> TaskRecord | None:
    """Return the run that is due next. One that waits is that run itself."""
    may_have_one = task.schedule is not None or task.try_number > 1
    is_waiting = task.state is TaskState.PENDING and task.schedule is not None
    return store.tasks.next_run(task) if may_have_one and not is_waiting else None


def _not_back(store: TaskStore, task: TaskRecord) -> str:
    if task.runner != "process" or not task.state.is_final:
        return ""
    problems = {each.name: each.problem or "" for each in store.results.variables(task.key)}
    shown = [
        f"{name} ({problem.removeprefix(CHANGED_HERE).lstrip(': ')})"
        for name, problem in problems.items()
        if problem.startswith(CHANGED_HERE) and not problem.endswith(NOT_ASKED)
    ]
    return f"{CHANGED_HERE}: {', '.join(shown)}" if shown else ""
