"""One task at a place in its supervisor: what it has sent, what was asked of it, and how it ended.

It looks like a task of this machine (`runners.supervised`) to the supervisor. `runners.placements`
speaks with the place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_tree import Snapshot
from ipytaskpersist.base.records import OutputKind, ProcessRecord, Progress, ResultRecord, TaskState
from ipytaskpersist.base.retries import TIMED_OUT, USED
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.places.messages import (
    FarEnd,
    Frame,
    MessageDamaged,
    SpoolDamaged,
    SpoolReader,
    as_end,
)
from ipytaskpersist.runners.bringing import Bringing
from ipytaskpersist.runners.channel import (
    OUTCOME,
    OUTPUTS,
    POST_MORTEM,
    PROGRESS,
    RESULT,
    as_progress,
)
from ipytaskpersist.runners.fetching import Fetching
from ipytaskpersist.runners.supervised import End, Ending
from ipytaskpersist.text.formatting import short_size, size
from ipytaskpersist.values.travelling import as_post_mortem, far_record

END = b"Z"
OF_ITS_END = (RESULT, POST_MORTEM, OUTCOME, END)
"""Frames that are recorded together, when all of them are here."""
CONTENTS: dict[OutputKind, tuple[str, type]] = {
    OutputKind.DISPLAY_DATA: ("data", dict),
    OutputKind.UPDATE_DISPLAY_DATA: ("data", dict),
    OutputKind.EXECUTE_RESULT: ("data", dict),
    OutputKind.CLEAR_OUTPUT: ("wait", object),
    OutputKind.ERROR: ("traceback", list),
}
"""What the content of a message must have."""
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError, MessageDamaged)
"""What is raised for a frame that is none of those that a task sends."""
NOT_STARTED = "could not be started: "


class Placed:
    """A task that runs at a place, or waits there."""

    interpreter: str | None = None
    leader = None
    is_late = is_to_press = False
    stuck = ""
    memory_bytes = peak_memory_bytes = 0

    def __init__(
        self,
        record: ProcessRecord,
        recording: Recording,
        directory: StateDirectory,
        *,
        may_run: bool,
    ) -> None:
        """`may_run` tells that the place may have the task already."""
        self.record = record
        self.recording = recording
        self._directory = directory
        self.results: list[ResultRecord] = []
        self.post_mortem: dict[str, Any] | None = None
        self.readers: dict[int, Callable[[bytes], None]] = {}
        self.ending: Ending | None = None
        self.may_run = may_run
        self.is_asked = False
        """Whether an answer is awaited to the request to start it."""
        self.is_there = False
        """Whether the place has taken it."""
        self.has_begun = False
        self.again: Callable[[], None] | None = None
        """Asks for its start once more."""
        self.signals: list[str] = []
        """What it is still to be told."""
        self.far: Mapping[str, Any] = record.far
        self.is_committed = False
        """Whether the store has its end. Set by the writer."""
        self.has_files_there = False
        """Whether the place may have what it was given."""
        self.bringing: Bringing | Fetching | None = None
        """Brings back what it has left. Until that is done, its end is not recorded."""
        # What it has left comes back between the end of its spool and the record of its end.
        is_read_again = self.is_python or record.options.fetch
        self._spool = SpoolReader(0 if is_read_again else record.spool_offset)
        self._reported: End | None = None
        self._far_end: FarEnd | None = None
        self._end: End | None = None

    @property
    def name(self) -> str:
        """The name of its place."""
        return str((self.record.place or {}).get("name", ""))

    @property
    def folder(self) -> str:
        """Its folder over there."""
        root = str((self.record.place or {}).get("folder", "")).rstrip("/")
        return f"{root}/{self.record.task_id}"

    @property
    def pid(self) -> int:
        """A number by which to know it, which no process has."""
        return -self.record.task_key

    @property
    def offset(self) -> int:
        """How far its spool was read."""
        return self._spool.wanted

    @property
    def is_python(self) -> bool:
        """Whether it runs Python, which reports its own end, and leaves values."""
        return self.record.kind == "python"

    # What it sends.

    def take(self, data: bytes) -> None:
        """Record a piece of its spool. Raises `SpoolDamaged` after what is whole in it."""
        try:
            for frame in self._spool.feed(data):
                try:
                    self._take_frame(frame)
                except MALFORMED as error:
                    raise SpoolDamaged(frame.end, f"the frame before it: {error!r}") from error
        finally:
            self.recording.come_to(max(self._spool.offset, self.record.spool_offset))

    def _take_frame(self, frame: Frame) -> None:
        if frame.end <= self.record.spool_offset and frame.kind not in OF_ITS_END:
            return  # a supervisor before this one has recorded it
        kind = OUTPUTS.get(frame.kind)
        if kind is OutputKind.STDOUT or kind is OutputKind.STDERR:
            self.recording.write(kind, frame.data)
        elif kind is not None:
            _require_content(kind, frame.data)
            self.recording.add_encoded(kind, frame.data)
        elif frame.kind == PROGRESS:
            self.recording.progress(_as_progress(frame.data))
        elif frame.kind == RESULT:
            assert self.record.place is not None
            of_task = (self._directory, self.record.place, self.record.task_id)
            result = far_record(*of_task, frame.data)
            if result is None:
                raise ValueError("that is no record of a value")
            self.results.append(result)
        elif frame.kind == POST_MORTEM:
            self.post_mortem = as_post_mortem(frame.data)
        elif frame.kind == OUTCOME:
            self._reported = _as_outcome(frame.data)
        elif frame.kind == END:
            self._far_end = as_end(frame.data)

    # Its end.

    def fail(self, state: TaskState, reason: str) -> None:
        """Note that it has ended so, without a record of its own of that."""
        if self._end is None and self._far_end is None:
            self._end = End(state, reason, None)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, and all that it has sent is here."""
        return self._end is not None or self._far_end is not None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and what it has left is here, too."""
        return self.has_ended and self.bringing is None

    def has_just_ended(self) -> bool:
        """Whether it has ended since the last check: what it sends says so."""
        return False

    def end(self, _out_of_memory: Callable[[], bool]) -> End:
        """Return how it ended."""
        if self._end is not None:
            return self._end
        assert self._far_end is not None
        return self._end_of(self._far_end)

    def _end_of(self, far: FarEnd) -> End:
        code = far.status
        if far.reason == "not started":
            return End(TaskState.FAILED, f"{NOT_STARTED}{far.error}", None)
        if far.reason == "timeout":
            reason = f"{TIMED_OUT}{self.record.timeout_s or 0:g} s"
            return End(TaskState.FAILED, reason, code)
        if far.reason == "memory":
            used, limit = size(far.used_bytes or 0), short_size(self.record.memory_bytes or 0)
            return End(TaskState.FAILED, f"{USED}{used} of its {limit}", code)
        if far.reason == "asked":
            asked = self.ending
            if asked is None:  # by a supervisor before this one
                return End(TaskState.CANCELLED, "cancelled", code)
            return End(asked.end_state, asked.reason, code)
        if far.reason is not None:
            return End(TaskState.INTERRUPTED, f"ended by {self.name} ({far.reason})", code)
        if self._reported is not None and self._reported.exit_code == code:
            return self._reported
        if code is not None and code < 0:
            name = process_tree.signal_name(-code)
            return End(TaskState.FAILED, f"killed by {name} at {self.name}", code)
        if code == 0 and self.is_python:
            return End(TaskState.FAILED, "the process ended before its cell did", code)
        if code == 0:
            return End(TaskState.COMPLETED, None, 0)
        return End(TaskState.FAILED, f"exit status {code}", code)

    @property
    def used(self) -> tuple[float, int] | None:
        """Processor time in seconds and peak memory in bytes; None when they are not known."""
        far = self._far_end
        if far is None or far.cpu_s is None:
            return None
        return far.cpu_s, far.peak_memory_bytes or 0

    # What it is told.

    def ask_to_end(
        self, state: TaskState, reason: str, _snapshot: Snapshot, *, at_once: bool = False
    ) -> None:
        """Have it ended at its place: with SIGTERM, and with SIGKILL after the grace period.

        One that has ended already waits no longer for what it has left there.
        """
        if self.bringing is not None:
            self._give_up()
            return
        if self.ending is not None:
            return
        self.ending = Ending(state, reason, time.monotonic() + self.record.grace_s)
        if self.may_run:
            self.signals.append("kill" if at_once else "end")
        else:
            self.fail(state, reason)

    def _give_up(self) -> None:
        """Wait no longer for what it has left: its values, then its files."""
        while (bringing := self.bringing) is not None:
            bringing.give_up(f"the task was cancelled while that came from {self.name}")

    def pause(self) -> list[str]:
        """Have all its processes stopped there."""
        self.signals.append("stop")
        return []

    def go_on(self) -> None:
        """Have them go on."""
        self.signals.append("continue")

    # What only a process of this machine has.

    def note_checkpoint(self) -> None:
        """Do nothing: it has no folder of checkpoints there."""

    def close(self) -> None:
        """Do nothing: there is no descriptor to close."""

    def reap(self) -> bool:
        """Do nothing: its keeper has reaped it."""
        return True


def _require_content(kind: OutputKind, data: bytes) -> None:
    """Raise one of `MALFORMED` unless this is the content of a display, a result or an error."""
    content, (name, its_type) = json.loads(data), CONTENTS[kind]
    if not isinstance(content[name], its_type):
        raise ValueError(f"that is no {kind.value}")


def _as_progress(data: bytes) -> Progress:
    """Return how far a task says it has come. Raises one of `MALFORMED`."""
    fields: dict[str, Any] = json.loads(data)
    total = fields.get("total")
    numbers = [fields["done"], *([] if total is None else [total])]
    texts = fields.get("text", ""), fields.get("drawn", "")
    if any(type(each) not in (int, float) for each in numbers):
        raise ValueError("that is no number")
    if any(type(each) is not str for each in texts):
        raise ValueError("that is no text")
    return as_progress(data)


def _as_outcome(data: bytes) -> End:
    """Return how a task says that it has ended. Raises one of `MALFORMED`."""
    fields = json.loads(data)
    state, reason, code = TaskState(fields["state"]), fields["reason"], fields["exit_code"]
    has_types = isinstance(reason, str | None) and isinstance(code, int | None)
    if not state.is_final or not has_types:
        raise ValueError("that is no outcome")
    return End(state, reason, code)
