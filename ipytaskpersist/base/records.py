"""The records of tasks, sessions and outputs in the store. All are frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.process_identity import ProcessIdentity, pid_namespace
from ipytaskpersist.base.retries import TRIES_AGAIN, Retries
from ipytaskpersist.base.schedules import Schedule


class TaskState(StrEnum):
    """The state of a task. The store refuses every transition that is not drawn here.

    ``pending → running → completed · failed · cancelled · interrupted``, and from pending straight
    to failed, cancelled or interrupted for a task that never began to run. From interrupted back to
    running when another process declared the owner dead although it is alive.
    """

    PENDING = "pending"
    """Recorded; no thread has begun it and no supervisor has claimed it."""
    RUNNING = "running"
    """Its thread has begun, or its supervisor has claimed it."""
    COMPLETED = "completed"
    """Ended by itself, with exit code 0."""
    FAILED = "failed"
    """Ended by itself with an exception, another exit code or a signal, or timed out."""
    CANCELLED = "cancelled"
    """Ended because its end was requested."""
    INTERRUPTED = "interrupted"
    """Did not end by itself: its kernel, its supervisor or the machine went away."""

    @property
    def is_final(self) -> bool:
        """Whether a task in this state has ended."""
        return self not in LIVE_STATES


LIVE_STATES = (TaskState.PENDING, TaskState.RUNNING)
SILENT = "no sign of life"
"""Beginning of the reason of a death that was presumed, not observed."""
RESTORED = "was running when the backup was made"
"""Reason of a task that was running in a restored backup. Its outcome is unknown."""


class OutputKind(StrEnum):
    """The kinds of entry in a task's single ordered stream of outputs."""

    STDOUT = "stdout"
    STDERR = "stderr"
    DISPLAY_DATA = "display_data"
    UPDATE_DISPLAY_DATA = "update_display_data"
    CLEAR_OUTPUT = "clear_output"
    EXECUTE_RESULT = "execute_result"
    ERROR = "error"


STREAM_KINDS = (OutputKind.STDOUT, OutputKind.STDERR)


def from_timestamp(seconds: float | None) -> datetime | None:
    """Return the UTC time for seconds since the epoch, as the store keeps them."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


@dataclass(frozen=True, slots=True)
class NotebookRecord:
    """What successive sessions share, and a user calls "this notebook"."""

    key: int
    """Row of the notebook in the store."""
    path: str
    """Path of the notebook when its latest session began; a directory for a terminal."""
    uid: str
    """Identity of the notebook in an archive, a backup, or another machine's store."""


class _OfProcess:
    """A record that belongs to one process."""

    __slots__ = ()
    host: str
    boot_id: str
    pid: int
    process_start: str
    pid_namespace: int | None

    @property
    def process(self) -> ProcessIdentity:
        """The process."""
        return ProcessIdentity(
            self.host, self.boot_id, self.pid, self.process_start, self.pid_namespace
        )


@dataclass(frozen=True, slots=True)
class SessionRecord(_OfProcess):
    """The lifetime of one kernel process."""

    id: str
    """The kernel session id; a uuid4 in the IPython terminal."""
    notebook_key: int
    path: str
    """Path of the notebook when the session began."""
    front_end: str
    """``kernel``, ``terminal`` or ``program``."""
    host: str
    pid: int
    process_start: str
    """Start time of the process, in the form that `base.process_identity` compares."""
    boot_id: str
    started_at: datetime
    heartbeat_at: datetime
    """Time at which the session last showed the store that it was alive."""
    ended_at: datetime | None
    end_reason: str | None
    """How it ended, in words; None while it is active."""
    pid_namespace: int | None = None
    """PID namespace of its pid; None when there are none, or it was not recorded."""
    task_counts: tuple[tuple[str, int], ...] = ()
    """Number of tasks in each state, if the query asked for it."""
    first_source: str = ""
    """Source of its first task, if the query asked for it."""
    last_active_at: datetime | None = None
    """Time at which the last of its tasks began or ended, if the query asked for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come, as reported by its code or read from its progress bar."""

    done: float
    """Amount done, in any unit."""
    total: float | None = None
    """Amount to do; None when unknown."""
    text: str = ""
    """Description, in one line."""
    drawn: str = field(default="", repr=False)
    """Its bar as a terminal would show it, with count, rate and time left, if it is a widget's."""

    @property
    def fraction(self) -> float | None:
        """Between 0 and 1; None when the total is unknown."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None

    def as_json(self) -> dict[str, Any]:
        """Return the progress as ``list --json`` prints it."""
        return {"done": self.done, "total": self.total, "text": self.text}

    def as_stored(self) -> dict[str, Any]:
        """Return the progress as the store and the channel of a process keep it."""
        return {**self.as_json(), **({"drawn": self.drawn} if self.drawn else {})}


PLACE = "place"
"""Member of a task's provenance: the name of the place where it runs, if that is not here."""
WHOLE_NOTEBOOK = "whole_notebook"
"""Member of a task's provenance: the path of the notebook that it runs."""
DEFAULT_GROUP = "default"
"""The group of tasks for which no other was named."""


def label_of(number: int, name: str) -> str:
    """Return a task's name in messages: ``3 (train)``, or ``3`` when it has no name."""
    return f"{number} ({legible(name)})" if name else str(number)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a pending task waits for."""

    group: str
    priority: int
    after: tuple[str, ...]
    """The labels of the tasks that have to end first."""
    due_at: datetime | None
    """Time before which it does not start."""
    width: int | None
    """How many tasks of its group run at once; None for any number."""
    running: int
    """How many of them run now."""
    is_paused: bool
    """Whether no task of its group starts."""
    lacks: str | None = None
    """What the machine lacked for it when a process last wanted to start it, in words."""

    def as_json(self) -> dict[str, Any]:
        """Return what ``list --json`` prints about it."""
        return {
            "after": list(self.after),
            "due_at": self.due_at.isoformat() if self.due_at else None,
            "priority": self.priority,
            "width": self.width,
            "running": self.running,
            "is_paused": self.is_paused,
            "lacks": self.lacks,
        }


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One run of one background cell."""

    key: int
    """Row of the task in the store. Has no meaning outside it."""
    id: str
    """``<first characters of the session id>-<number>``, unique in the store: eight characters, or
    as many as distinguish the session from all others."""
    number: int
    """1, 2, 3 … in its notebook, never reused."""
    name: str
    """Name that the user gave it; empty for none."""
    notebook_key: int
    notebook: str
    """Path of the notebook when the task's session began."""
    session: str
    """Id of the session that launched it."""
    kind: str
    """``python`` or ``shell``."""
    runner: str
    """Where it runs: ``thread`` or ``process``."""
    state: TaskState
    reason: str | None
    """Evidence for the state, in words."""
    exit_code: int | None
    source: str
    """The cell's text as typed, without the line that launched it."""
    cell_id: str | None
    """Id of the launching cell, if the front end provides one."""
    execution_count: int | None
    """The launching cell's ``In [n]``."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested_at: datetime | None
    cleared_at: datetime | None
    """Time at which it was removed from the default list; None while it is listed."""
    rerun_of: int | None
    """Row of the task whose source and options it runs again."""
    is_call: bool
    """Whether it calls a function, so that its source alone does not say what it does."""
    output_bytes: int | None = None
    """Bytes that it printed and displayed; None while it has not ended."""
    max_output_bytes: int | None = None
    """Maximum number of bytes of its output to keep; None for all."""
    dropped_bytes: int = 0
    """Bytes of output beyond that limit, which were not kept."""
    progress: Progress | None = None
    """How far it has come; None when unknown."""
    notify: tuple[str, ...] = ()
    """Places to notify of its end; empty once a process has taken that over."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Its origin: directory, Python, host, git commit, whether the tree was dirty."""
    declared_dead: str | None = None
    """How it was declared interrupted: None by its own owner; by another process, ``proven`` when
    that had seen that the owner is dead, ``presumed`` when it had only seen no sign of life."""
    tags: tuple[str, ...] = ()
    group: str = DEFAULT_GROUP
    """The tasks with which it shares a width."""
    waiting: Waiting | None = None
    """What it waits for before it starts; None for nothing."""
    demands: Demands = field(default_factory=Demands)
    """What it has booked of its machine, or will have while it runs."""
    gpu_ids: tuple[str, ...] = ()
    """The GPUs that it has or had, as their driver names them."""
    paused_at: datetime | None = None
    """Since when its processes are stopped; None if they are not."""
    paused_s: float = 0.0
    """Seconds that it was paused before, which do not count as time taken."""
    pause_requested: bool = False
    """Whether it is to be paused, or to stay so."""
    checkpoint_place: str | None = None
    """Folder of its checkpoints, by its name; a task that goes on from there has the same. None
    for a task of an earlier version, and for an imported one."""
    checkpoint_at: datetime | None = None
    """Time of the latest of them; None when there is none."""
    retries: Retries | None = None
    """When it is tried again; None for never."""
    try_of: int | None = None
    """Row of its first try; None in the first try itself."""
    try_number: int = 1
    first_try: int | None = None
    """Number of its first try; None in that itself."""
    schedule: Schedule | None = None
    """The times at which it runs; None for once, and for a further try of a run."""
    unreachable_since: datetime | None = None
    """Since when its place does not answer; None while it does."""
    unreachable_why: str | None = None
    """Why it does not, in words."""
    last_line: str | None = None
    """Last line of its output as a terminal would show it, if the query asked for it."""
    archive: str = ""
    """Month of the archive that contains it, ``YYYY-MM``; empty for the store itself."""

    @property
    def label(self) -> str:
        """The task's name in messages: ``3 (train)``, or ``3`` when it has no name."""
        return label_of(self.number, self.name)

    @property
    def place(self) -> str:
        """The name of the place where it runs; empty for here."""
        return str(self.provenance.get(PLACE, ""))

    @property
    def is_imported(self) -> bool:
        """Whether it comes from a file, so that its content is not to be trusted."""
        return "imported_at" in self.provenance

    @property
    def is_whole_notebook(self) -> bool:
        """Whether it runs a whole notebook. What a file says of an imported task does not count."""
        return WHOLE_NOTEBOOK in self.provenance and not self.is_imported

    @property
    def can_go_on(self) -> bool:
        """Whether it is a whole notebook that was cut off or failed, and was not run again yet."""
        is_cut = self.state.is_final and self.state is not TaskState.COMPLETED
        return self.is_whole_notebook and is_cut and "rerun_as" not in self.provenance

    @property
    def was_tried_again(self) -> bool:
        """Whether another try has followed it."""
        return self.retries is not None and (self.reason or "").endswith(TRIES_AGAIN)

    @property
    def is_next_run(self) -> bool:
        """Whether it is a later run by a schedule, and waits."""
        is_later = self.schedule is not None and self.schedule.first_task is not None
        return is_later and self.state is TaskState.PENDING

    @property
    def inputs_of(self) -> str:
        """Id of the task that has its inputs: the first of its tries, of the first run."""
        of_tries = self.retries and self.retries.environment_of
        return of_tries or (self.schedule and self.schedule.first_task) or self.id

    def elapsed_s(self, now: datetime) -> float | None:
        """Return seconds from start to end, or to `now` while it runs; None before it started.

        Without those in which it was paused.
        """
        if self.started_at is None:
            return None
        until = self.ended_at or self.paused_at or now
        return max(0.0, (until - self.started_at).total_seconds() - self.paused_s)

    def as_json(self, now: datetime) -> dict[str, Any]:
        """Return the task as ``list --json`` prints it: times in ISO 8601, seconds as numbers."""
        return {
            "id": self.id,
            "number": self.number,
            "name": self.name or None,
            "notebook": self.notebook,
            "session": self.session,
            "kind": self.kind,
            "runner": self.runner,
            "state": self.state.value,
            "reason": self.reason,
            "group": self.group,
            "place": self.place or None,
            "unreachable_since": self.unreachable_since.isoformat()
            if self.unreachable_since
            else None,
            "unreachable_why": self.unreachable_why,
            "paused_at": self.paused_at.isoformat() if self.paused_at else None,
            "paused_s": self.paused_s,
            "waiting": None if self.waiting is None else self.waiting.as_json(),
            **self.demands.columns,
            "gpu_ids": list(self.gpu_ids),
            "exit_code": self.exit_code,
            "created_at": self.created_at.isoformat(),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
            "elapsed_s": self.elapsed_s(now),
            "progress": None if self.progress is None else self.progress.as_json(),
            # The archive has no checkpoints.
            "checkpoint_at": self.checkpoint_at.isoformat()
            if self.checkpoint_at and not self.archive
            else None,
            "last_line": self.last_line,
            "try": None if self.retries is None else self._try_as_json(self.retries),
            "schedule": None if self.schedule is None else self._schedule_as_json(self.schedule),
            "tags": list(self.tags),
            "archive": self.archive or None,
            "cell_id": self.cell_id,
            "source": self.source,
        }

    def _try_as_json(self, retries: Retries) -> dict[str, Any]:
        return {
            "number": self.try_number,
            "of": retries.count + 1,
            "first_task": self.first_try or (self.number if self.try_number == 1 else None),
            "causes": list(retries.causes),
        }

    def _schedule_as_json(self, schedule: Schedule) -> dict[str, Any]:
        due_at = from_timestamp(schedule.due_at)
        assert due_at is not None, "a schedule has a time"
        return {
            "every_s": schedule.every_s,
            "cron": schedule.cron,
            "zone": schedule.zone or None,
            "missed": schedule.missed,
            "due_at": due_at.isoformat(),
            "first_task": schedule.first_task or self.id,
        }


@dataclass(frozen=True, slots=True)
class Options:
    """What the user said about where and how a task's process runs."""

    cwd: str | None = None
    """Working directory, as typed."""
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Environment variables of its own; None for a secret's value, which is not kept."""
    timeout_s: float | None = None
    """Seconds after which it is ended; None for never."""
    pty: bool = False
    """Whether it gets a terminal, for programs that draw their progress only there."""
    shell_path: str | None = None
    """Shell that runs the command."""
    inputs: Sequence[str] | None = None
    """Variables passed to it; None for those that its source uses."""
    outputs: Sequence[str] | None = None
    """Variables kept when it ends; None for those that its source assigns."""
    fresh: bool = False
    """Whether it gets a fresh interpreter, even if there is a warm one. The store keeps this as
    the `ProcessRecord.interpreter`: an earlier version does not know this option."""
    send: Sequence[str] | None = None
    """Files and folders that a task at a place is sent, as typed."""
    fetch: Sequence[str] | None = None
    """Patterns of the files that it is to bring back."""
    here: str | None = None
    """Directory in which these paths are meant here; None for a task without any."""

    def as_json(self) -> str:
        """Return the options that were given, as the store keeps them."""
        given = {
            name: value
            for name, value in asdict(self).items()
            if name != "fresh" and value not in (None, False, {})
        }
        return json.dumps(given)

    @classmethod
    def from_json(cls, text: str) -> Options:
        """Return the options that `as_json` wrote."""
        return cls(**json.loads(text))


WARM = "warm"
"""The interpreter of a task that was forked from one with everything imported."""
FRESH_ASKED = "fresh (--fresh)"
"""The interpreter of a task that was launched so."""
FRESH_SETTING = "fresh (warm_processes is off)"


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """The process of a task that runs outside the kernel."""

    task_key: int
    task_id: str
    kind: str
    """``python`` or ``shell``."""
    command: Sequence[str]
    """The program and its arguments."""
    script: str | None
    """Script that the program reads; None when the command is complete."""
    script_as: str | None
    """How it reads the script: from ``stdin``, or as a ``file`` named by its last argument."""
    directory: str
    environment: Mapping[str, str | bool | None]
    """Differences between its environment and its supervisor's. None for a variable to remove, True
    for one whose value waits in a file (`store.environments`)."""
    pty: bool
    timeout_s: float | None
    grace_s: float
    """Seconds between SIGTERM and SIGKILL when it is cancelled."""
    options: Options
    supervisor_key: int | None
    """Supervisor that claimed it; None while it is pending."""
    pid: int | None
    process_start: str | None
    """Start time of the process, in the form that `base.process_identity` compares."""
    cpu_s: float | None
    """Processor time of it and its children, in seconds; None while it runs."""
    peak_memory_bytes: int | None
    """Peak memory of any one of its processes; with a limit, of all of them together."""
    max_output_bytes: int | None = None
    """Maximum number of bytes of its output to keep; None for all."""
    pid_namespace: int | None = None
    """PID namespace of its pid; None when there are none, or it was not recorded."""
    interpreter: str | None = None
    """Which interpreter a Python task has: `WARM`, or ``fresh`` and why. Before it has begun, None
    unless that is already certain."""
    memory_bytes: int | None = None
    """Memory of all its processes together, at which it is ended; None for any amount."""
    gpu_ids: Sequence[str] = ()
    """The GPUs that it sees, as their driver names them; empty for those that its kernel sees."""
    checkpoint_place: str | None = None
    """`TaskRecord`'s."""
    retries: Retries | None = None
    """When it is tried again."""
    schedule: Schedule | None = None
    """The times at which it runs."""
    place: Mapping[str, Any] | None = None
    """Where it runs, as that was set at its launch (`places.connecting.check`); None for here."""
    spool_offset: int = 0
    """How much of its spool there is recorded here, in bytes."""
    far: Mapping[str, Any] = field(default_factory=dict)
    """What is known of its process there."""
    is_whole: bool = False
    """Whether its whole environment waits in that file, not the differences from its supervisor's.
    So it is for a task that waits, for tries and for runs: another supervisor may start it."""

    @property
    def keeps_environment(self) -> bool:
        """Whether its environment is kept after its start.

        For another try or run, or for a place that may have to be asked again to start it.
        """
        return any(each is not None for each in (self.retries, self.schedule, self.place))

    @property
    def environment_of(self) -> str:
        """Id of the task in whose name the values of its environment are kept."""
        of_tries = self.retries and self.retries.environment_of
        return of_tries or (self.schedule and self.schedule.first_task) or self.task_id

    @property
    def pid_here(self) -> int | None:
        """Its pid, if that means the same process here; None in another container."""
        return self.pid if self.pid_namespace in (None, pid_namespace()) else None


@dataclass(frozen=True, slots=True)
class SupervisorRecord(_OfProcess):
    """The detached process that owns the process tasks of one session."""

    key: int
    session: str
    host: str
    boot_id: str
    pid: int
    process_start: str
    started_at: datetime
    heartbeat_at: datetime
    ended_at: datetime | None
    end_reason: str | None
    pid_namespace: int | None = None
    """PID namespace of its pid; None when there are none, or it was not recorded."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One entry of a task's state history."""

    state: TaskState
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One entry of a task's outputs: a piece of a stream, or one display, result or error."""

    sequence: int
    """Position in the store. Grows along a task's outputs, with gaps."""
    kind: OutputKind
    at: datetime
    data: bytes
    """A stream's bytes as written; for other kinds the message's content as JSON."""
    first_line: int
    """Number of lines in its stream before it (streams only)."""


@dataclass(frozen=True, slots=True)
class StreamSize:
    """How much a task has written to one of its streams."""

    size_bytes: int
    lines: int
    """Number of line feeds."""


INPUTS = "<inputs>"
"""Name of a Python process task's inputs among its values; no variable can have it."""
CHECKPOINT = "<checkpoint>"
"""Name of a checkpoint's value; no variable can have it."""
CHANGED_HERE = "changed in the process, not brought back"
"""Beginning of the problem of a variable that a task was given and has changed."""
NOT_ASKED = "--out does not name it"


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """A task's value: the path of its pickle, or the reason why there is none."""

    name: str
    """Empty for the value of the last expression."""
    path: str | None
    """Path of the signed pickle in the state directory; None when it could not be kept."""
    size_bytes: int | None
    digest: str | None
    """SHA-256 of the pickle, in hexadecimal."""
    signature: str | None
    """HMAC-SHA256 with the user's key, which binds the digest to task and name."""
    text: str
    """Text form of the value, shortened when long."""
    problem: str | None
    """Reason why there is no pickle."""
