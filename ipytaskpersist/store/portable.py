"""Whole tasks in transit between stores: without row keys, and with the stored times.

Times are the store's own numbers, in seconds since the epoch: a `datetime` would round them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.records import DEFAULT_GROUP, OutputKind, Progress, TaskState
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.base.schedules import Schedule

OF_THIS_STORE = ("imported_at", "rerun_as")
"""Provenance that concerns this store alone: a task's import, and the task that reran it."""


@dataclass(frozen=True, slots=True)
class PortableNotebook:
    """What successive sessions share."""

    uid: str | None
    """Identity in all stores; None when it was not recorded."""
    path: str
    last_number: int
    """Highest number that it has given to a task."""
    created_at: float


@dataclass(frozen=True, slots=True)
class PortableSession:
    """The lifetime of one kernel process. The fields are `SessionRecord`'s."""

    id: str
    notebook: PortableNotebook
    path: str
    has_path: bool
    """Whether the path is a notebook's own, by which its sessions are connected."""
    kernel_uuid: str | None
    front_end: str
    host: str
    pid: int
    process_start: str
    boot_id: str
    started_at: float
    heartbeat_at: float
    ended_at: float | None
    end_reason: str | None
    pid_namespace: int | None = None


@dataclass(frozen=True, slots=True)
class PortableEvent:
    """One entry of a task's state history."""

    state: TaskState
    reason: str | None
    at: float


@dataclass(frozen=True, slots=True)
class PortableProcess:
    """The process of a task that ran outside the kernel. The fields are `ProcessRecord`'s."""

    command: Sequence[str]
    script: str | None
    script_as: str | None
    directory: str
    pty: bool
    timeout_s: float | None
    grace_s: float
    options: Mapping[str, Any]
    """What the user said about it, in the form of `Options`."""
    pid: int | None
    process_start: str | None
    cpu_s: float | None
    peak_memory_bytes: int | None
    pid_namespace: int | None = None
    interpreter: str | None = None


@dataclass(frozen=True, slots=True)
class PortableTask:
    """One task without its outputs and results. The fields are `TaskRecord`'s."""

    id: str
    """Empty when it needs a new id."""
    number: int
    """0 when it needs a new number."""
    session: str
    name: str
    kind: str
    runner: str
    state: TaskState
    reason: str | None
    exit_code: int | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    cancel_requested_at: float | None
    cleared_at: float | None
    cell_id: str | None
    execution_count: int | None
    source: str
    is_call: bool
    max_output_bytes: int | None
    dropped_bytes: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    post_mortem: Mapping[str, Any] | None = None
    """Variables at its failure, in the form of `capture.post_mortem`."""
    tags: Sequence[str] = ()
    history: Sequence[PortableEvent] = ()
    process: PortableProcess | None = None
    group: str = DEFAULT_GROUP
    priority: int = 0
    demands: Demands = field(default_factory=Demands)
    gpu_ids: Sequence[str] = ()
    paused_s: float = 0.0
    try_number: int = 1
    retries: Retries | None = None
    """The rule of its tries. Which was the first is in the provenance, as `try_of`."""
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class PortableOutput:
    """One entry of a task's outputs."""

    kind: OutputKind
    at: float
    data: bytes
