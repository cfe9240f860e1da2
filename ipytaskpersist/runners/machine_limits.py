"""The machine's limits as a supervisor sees them: open files and memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")


LITTLE_MEMORY = 0.05
"""Share of the machine's memory below which the available memory is short."""


def is_memory_short() -> bool:
    """Return whether little of the machine's memory is available."""
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
        return known["MemAvailable"] < LITTLE_MEMORY * known["MemTotal"]
    return False


def is_idle() -> bool:
    """Return whether a processor has nothing to do, besides the one that runs this."""
    with suppress(OSError, ValueError, IndexError):
        running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].split("/")[0])
        return running <= len(os.sched_getaffinity(0))
    return True


class MemoryEvents:
    """Counts the processes of this control group that the OOM killer has ended."""

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
        """Whether the OOM killer has acted since the last call."""
        before, self._known = self._known, self._count()
        return self._known > before


def _counters() -> Iterator[Path]:
    """Yield the files with this process's OOM counters, for both versions of cgroups(7)."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(errors="surrogateescape").splitlines():
            _number, controllers, group = line.split(":", 2)
            if not controllers:
                yield from _counter(CONTROL_GROUPS, group, "memory.events")
            elif "memory" in controllers.split(","):
                yield from _counter(CONTROL_GROUPS / "memory", group, "memory.oom_control")


def _counter(root: Path, group: str, name: str) -> Iterator[Path]:
    """Yield a group's file. In a container, the root may be the group, despite its outside name."""
    places = (root / group.lstrip("/") / name, root / name)
    yield from [each for each in places if each.exists()][:1]


class OpenFiles:
    """The limit on open files: raised for this process, unchanged for the tasks that it starts.

    The limit of tasks stays low because some programs allocate or close every descriptor it allows.
    """

    RESERVED = 6
    """How many low-numbered descriptors `subprocess` may need to start a process."""
    SPARE = 64
    """How many descriptors are kept for inspecting and signalling processes and for the store."""

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
        """Whether enough descriptors remain after another task's.

        A new descriptor gets the lowest free number, which shows how many are in use.
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
        """Lower the limit while a process is started, which inherits it.

        Open descriptors stay open. A descriptor opened meanwhile needs a number below the limit, so
        the reserved ones are freed for it.
        """
        for descriptor in self._reserved:
            os.close(descriptor)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, self._before)
        try:
            yield
        finally:
            self._raise()
