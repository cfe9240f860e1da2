"""What a task needs of the machine on which it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Demands:
    """What is booked for a task while it runs. None for what it did not ask for."""

    cpus: float | None = None
    memory_bytes: int | None = None
    """Memory of all its processes together, at which it is ended, too."""
    gpus: int | None = None
    gpu_memory_bytes: int | None = None
    """Memory of each of its GPUs, which it shares; None for GPUs of its own."""

    def __bool__(self) -> bool:
        """Return whether it needs anything."""
        return self != NONE

    @property
    def columns(self) -> dict[str, Any]:
        """The task's columns of `tasks`."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = ("cpus", "memory_bytes", "gpus", "gpu_memory_bytes")
NONE = Demands()
