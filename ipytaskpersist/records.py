"""The records: what the store knows of a task, a session and an output. All are frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ipytaskpersist.identity import pid_namespace
from ipytaskpersist.safetext import legible


class TaskState(StrEnum):
    """Where a task stands. The store refuses every transition that is not drawn here.

    ``pending → running → completed · failed · cancelled · interrupted``, and from pending straight
    to failed, cancelled or interrupted for a task that never began to run. From interrupted back to
    running where another process had declared its owner dead, and the owner is alive.
    """

    PENDING = "pending"
    """It is recorded; no thread has begun it and no supervisor has claimed it."""
    RUNNING = "running"
    """Its thread has begun, or its supervisor has claimed it."""
    COMPLETED = "completed"
    """It ended by itself, with exit code 0."""
    FAILED = "failed"
    """It ended by itself with an exception, another exit code or a signal, or its time was over."""
    CANCELLED = "cancelled"
    """Somebody asked for its end, and it ended."""
    INTERRUPTED = "interrupted"
    """It did not end by itself: its kernel, its supervisor or the machine went away."""

    @property
    def is_final(self) -> bool:
        """Whether a task in this state has ended."""
        return self not in LIVE_STATES


LIVE_STATES = (TaskState.PENDING, TaskState.RUNNING)
SILENT = "no sign of life"
"""How the reason of a death begins that nobody has seen."""
RESTORED = "was running when the backup was made"
"""The reason of a task that a restore has found running. Who knows what became of it."""


class OutputKind(StrEnum):
    """The kinds of entry in a task's one ordered stream of outputs."""

    STDOUT = "stdout"
    STDERR = "stderr"
    DISPLAY_DATA = "display_data"
    UPDATE_DISPLAY_DATA = "update_display_data"
    CLEAR_OUTPUT = "clear_output"
    EXECUTE_RESULT = "execute_result"
    ERROR = "error"


STREAM_KINDS = (OutputKind.STDOUT, OutputKind.STDERR)


def from_timestamp(seconds: float | None) -> datetime | None:
    """The UTC time for a number of seconds since the epoch, as the store keeps it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


@dataclass(frozen=True, slots=True)
class NotebookRecord:
    """What successive sessions share: the thing a person calls "this notebook"."""

    key: int
    """The notebook's row in the store."""
    path: str
    """Where the notebook was when a session of it last began; a directory for a terminal."""
    uid: str
    """What makes it the same in an archive, a backup, or another machine's store."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The lifetime of one kernel process."""

    id: str
    """The kernel session id; in the IPython terminal a uuid4."""
    notebook_key: int
    path: str
    """The notebook's path when the session began."""
    front_end: str
    """``kernel``, ``terminal`` or ``program``."""
    host: str
    pid: int
    process_start: str
    """When the process started, in the form in which `identity` compares it."""
    boot_id: str
    started_at: datetime
    heartbeat_at: datetime
    """When the session last showed the store that it was alive."""
    ended_at: datetime | None
    end_reason: str | None
    """How it ended, in words; None while it is active."""
    pid_namespace: int | None = None
    """The PID namespace in which its pid is; None where there are none, or nobody has said."""
    task_counts: tuple[tuple[str, int], ...] = ()
    """How many tasks it has in each state, where the query asked for them."""
    first_source: str = ""
    """The source of its first task, where the query asked for it."""
    last_active_at: datetime | None = None
    """When the last of its tasks began or ended, where the query asked for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come, as it said itself or as a progress bar of its shows it."""

    done: float
    """How much is done, in whatever it counts."""
    total: float | None = None
    """How much there is to do; None where that is not known."""
    text: str = ""
    """What it says of it, in one line."""

    @property
    def fraction(self) -> float | None:
        """Between 0 and 1; None where the total is not known."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None

    def as_json(self) -> dict[str, Any]:
        """The progress as ``list --json`` gives it, and as the store keeps it."""
        return {"done": self.done, "total": self.total, "text": self.text}


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One run of one background cell, as the store knows it."""

    key: int
    """The task's row in the store. Means nothing outside it."""
    id: str
    """``<first characters of the session id>-<number>``, unique in the store: eight of them, or
    as many as no other session's id has."""
    number: int
    """1, 2, 3 … in its notebook, never used again."""
    name: str
    """What the person called it; empty when they did not."""
    notebook_key: int
    notebook: str
    """The notebook's path when the task's session began."""
    session: str
    """The id of the session that launched it."""
    kind: str
    """``python`` or ``shell``."""
    runner: str
    """Where it runs: ``thread`` or ``process``."""
    state: TaskState
    reason: str | None
    """The evidence for the state, in words."""
    exit_code: int | None
    source: str
    """The cell's text as it was typed, without the line that launched it."""
    cell_id: str | None
    """The id of the launching cell, where the front end gives one."""
    execution_count: int | None
    """The launching cell's ``In [n]``."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested_at: datetime | None
    cleared_at: datetime | None
    """When it was taken off the default list; None while it is on it."""
    rerun_of: int | None
    """The row of the task whose source and options it runs again."""
    is_call: bool
    """Whether it calls a function, so that its source alone does not say what it does."""
    output_bytes: int | None = None
    """How many bytes it printed and displayed; None while it has not ended."""
    max_output_bytes: int | None = None
    """How many bytes of what it prints and displays are kept; None for all."""
    dropped_bytes: int = 0
    """How many bytes were beyond that, and are not kept."""
    progress: Progress | None = None
    """How far it has come; None where nobody has said."""
    notify: tuple[str, ...] = ()
    """Where its end is to be told; empty once somebody has taken that upon himself."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: directory, Python, host, git commit, whether the tree was dirty."""
    declared_dead: str | None = None
    """Who took it for interrupted: None for its own owner; ``proven`` and ``presumed`` for another
    process, which had seen that the owner is dead, or only no sign of its life."""
    tags: tuple[str, ...] = ()
    last_line: str | None = None
    """The last line it printed as a terminal would show it, where the query asked for it."""
    archive: str = ""
    """The month of the archive that it is in, ``YYYY-MM``; empty for the store itself."""

    @property
    def label(self) -> str:
        """How messages name the task: ``3 (train)``, or ``3`` when it has no name."""
        return f"{self.number} ({legible(self.name)})" if self.name else str(self.number)

    @property
    def is_imported(self) -> bool:
        """Whether it comes from a file, so that nothing that it says is to be trusted."""
        return "imported_at" in self.provenance

    def elapsed_s(self, now: datetime) -> float | None:
        """Seconds from start to end, or to `now` for a task that runs; None before it started."""
        if self.started_at is None:
            return None
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds())

    def as_json(self, now: datetime) -> dict[str, Any]:
        """The task as ``list --json`` gives it: times in ISO 8601, seconds as numbers."""
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
            "exit_code": self.exit_code,
            "created_at": self.created_at.isoformat(),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
            "elapsed_s": self.elapsed_s(now),
            "progress": None if self.progress is None else self.progress.as_json(),
            "last_line": self.last_line,
            "tags": list(self.tags),
            "archive": self.archive or None,
            "cell_id": self.cell_id,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Options:
    """What a person said about where and how a task's process runs."""

    cwd: str | None = None
    """The directory in which it runs, as it was typed."""
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Environment variables of its own; None for a secret's value, which is not kept."""
    timeout_s: float | None = None
    """Seconds after which it is ended; None for never."""
    pty: bool = False
    """Whether it sees a terminal, for programs that draw their progress only there."""
    shell_path: str | None = None
    """The shell that runs the command."""
    inputs: Sequence[str] | None = None
    """The variables that it is given; None for those that its source uses."""
    outputs: Sequence[str] | None = None
    """The variables that are kept at its end; None for those that its source assigns."""

    def as_json(self) -> str:
        """The options as the store keeps them: those that were given."""
        given = {
            name: value for name, value in asdict(self).items() if value not in (None, False, {})
        }
        return json.dumps(given)

    @classmethod
    def from_json(cls, text: str) -> Options:
        """The options that `as_json` has written."""
        return cls(**json.loads(text))


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
    """A script that the program reads; None when all is in the command."""
    script_as: str | None
    """How it reads the script: from ``stdin``, or as a ``file`` named by its last argument."""
    directory: str
    environment: Mapping[str, str | bool | None]
    """How its environment differs from its supervisor's; None for a variable it must not have, and
    True for one whose value waits in a file (`environments`)."""
    pty: bool
    timeout_s: float | None
    grace_s: float
    """Seconds between SIGTERM and SIGKILL when it is cancelled."""
    options: Options
    supervisor_key: int | None
    """Which supervisor has claimed it; None while it is pending."""
    pid: int | None
    process_start: str | None
    """When the process started, in the form in which `identity` compares it."""
    cpu_s: float | None
    """Seconds of processor time that it and its children used; None while it runs."""
    peak_memory_bytes: int | None
    """The most memory that any one of its processes had."""
    max_output_bytes: int | None = None
    """How much is kept of what it prints; None for all."""
    pid_namespace: int | None = None
    """The PID namespace in which its pid is; None where there are none, or nobody has said."""

    @property
    def pid_here(self) -> int | None:
        """Its pid, where that is this very process's here: not in another container."""
        return self.pid if self.pid_namespace in (None, pid_namespace()) else None


@dataclass(frozen=True, slots=True)
class SupervisorRecord:
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
    """The PID namespace in which its pid is; None where there are none, or nobody has said."""


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
    """Its place in the store. Grows along a task's outputs, with gaps."""
    kind: OutputKind
    at: datetime
    data: bytes
    """A stream's bytes as they were written; for other kinds the message's content as JSON."""
    first_line: int
    """How many lines its stream held before it (streams only)."""


@dataclass(frozen=True, slots=True)
class StreamSize:
    """How much a task has written to one of its streams."""

    size_bytes: int
    lines: int
    """How many line feeds."""


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """What is known of a task's value: where its pickle is, or why there is none."""

    name: str
    """Empty for the value of the last expression."""
    path: str | None
    """The signed pickle, relative to the state directory; None when it could not be kept."""
    size_bytes: int | None
    digest: str | None
    """SHA-256 of the pickle, in hexadecimal."""
    signature: str | None
    """HMAC-SHA256 that binds the digest to task and name, with the user's key."""
    text: str
    """The value's text form, shortened when it is long."""
    problem: str | None
    """Why there is no pickle."""
