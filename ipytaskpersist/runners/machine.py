"""What a supervisor knows of the machine's limits: open files, and memory that has run out."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")


class MemoryEvents:
    """How often the system has killed a process of this control group for want of memory."""

    def __init__(self) -> None:
        self._files = list(_counters())
        self._known = self._count()

    def _count(self) -> int:
        total = 0
        for file in self._files:
            with suppress(OSError, ValueError):
                counts = dict(line.split() for line in file.read_text().splitlines())
                total += int(counts.get("oom_kill", 0))
        return total

    def have_killed(self) -> bool:
        """Whether that has happened since this was last asked."""
        before, self._known = self._known, self._count()
        return self._known > before


def _counters() -> Iterator[Path]:
    """Where this process's control group counts that: cgroups(7), of both versions."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(errors="surrogateescape").splitlines():
            _number, controllers, group = line.split(":", 2)
            if not controllers:
                yield from _counter(CONTROL_GROUPS, group, "memory.events")
            elif "memory" in controllers.split(","):
                yield from _counter(CONTROL_GROUPS / "memory", group, "memory.oom_control")


def _counter(root: Path, group: str, name: str) -> Iterator[Path]:
    """The file of a group. In a container the root may be the group, which has its name outside."""
    places = (root / group.lstrip("/") / name, root / name)
    yield from [each for each in places if each.exists()][:1]


class OpenFiles:
    """The limit on open files: raised for this process, as it was for the tasks that it starts.

    Some programs take every descriptor that they may have for one to use, or to close.
    """

    RESERVED = 6
    """How many descriptors of low number `subprocess` may need for a start."""
    SPARE = 64
    """How many are kept for looking at processes, signalling them and writing to the store."""

    def __init__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._reserved: list[int] = []
        self._raise()

    def _raise(self) -> None:
        hard = self._before[1]
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        null = os.open(os.devnull, os.O_RDONLY)
        self._reserved = [null, *(os.dup(null) for _ in range(self.RESERVED - 1))]

    def has_room(self) -> bool:
        """Whether another task's descriptors leave enough for everything else.

        The system gives the lowest number that is free, so that says how many are in use.
        """
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            return True
        try:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return False
        os.close(descriptor)
        return descriptor < limit - min(self.SPARE, limit // 4)

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Lower the limit for the start of a process, which inherits it.

        What is open stays so. What is opened meanwhile must have a number below the limit, which is
        what the reserved descriptors are for.
        """
        for descriptor in self._reserved:
            os.close(descriptor)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, self._before)
        try:
            yield
        finally:
            self._raise()
