"""Control groups, cgroups(7), in which the system itself holds a task to its memory.

A user may often make none: then `memory_watch` alone looks how much a task uses. A group stops one
that takes gigabytes between two looks, before the machine has none left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ipytaskpersist.base.process_tree import PROC
from ipytaskpersist.runners.control_groups import OWN_GROUPS
from ipytaskpersist.runners.machine_limits import CONTROL_GROUPS

SHARE_ABOVE = 16
"""A group allows this part more than the limit: a task is mostly ended by a look before, which can
say how much it has used, and the system counts more than a look does."""
SURELY_FILLED_S = 60.0
"""Age after which a group without processes is no longer about to be given one."""
PREFIX = "ipytaskpersist-"


class MemoryGroup:
    """The group of one task."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has_killed(self) -> bool:
        """Return whether the system has killed a process of the group."""
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError, ValueError):
                lines = (self._folder / name).read_text(encoding="ascii").splitlines()
                return int(dict(line.split() for line in lines).get("oom_kill", 0)) > 0
        return False

    def remove(self) -> None:
        """Remove the group, unless a process that has detached itself from the task is in it."""
        with suppress(OSError):
            self._folder.rmdir()


def hold(
    task_id: str,
    pid: int,
    limit_bytes: int,
    root: Path = CONTROL_GROUPS,
    groups: Path = OWN_GROUPS,
) -> MemoryGroup | None:
    """Put a process and its later children into a group that may use so many bytes.

    Returns None where this process may make no group.
    """
    for parent in _parents(root, groups):
        _remove_left(parent)
        folder = parent / f"{PREFIX}{task_id}"
        try:
            folder.mkdir()
        except OSError:
            continue
        group = MemoryGroup(folder)
        if _is_limited(folder, limit_bytes + limit_bytes // SHARE_ABOVE):
            with suppress(OSError):
                _take(folder, pid)
                return group
        group.remove()
    return None


def _remove_left(parent: Path) -> None:
    """Remove the groups without processes that supervisors have left which were killed."""
    with suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            if time.time() - folder.stat().st_mtime > SURELY_FILLED_S:
                MemoryGroup(folder).remove()


def _take(folder: Path, pid: int) -> None:
    """Put a process into a group, and the children that it has started already."""
    (folder / "cgroup.procs").write_text(str(pid))
    with suppress(OSError):  # not every system tells the children
        for child in (PROC / f"{pid}/task/{pid}/children").read_text().split():
            _take(folder, int(child))


def _is_limited(folder: Path, most_bytes: int) -> bool:
    """Limit the memory of a group, and keep it from moving to the swap instead."""
    settings = [("memory.max", most_bytes), ("memory.limit_in_bytes", most_bytes)]
    limited = [_set(folder / name, value) for name, value in settings]
    for name, value in (
        ("memory.swap.max", 0),
        ("memory.memsw.limit_in_bytes", most_bytes),
        ("memory.oom.group", 1),
    ):
        _set(folder / name, value)
    return any(limited)


def _set(file: Path, value: int) -> bool:
    if not file.exists():
        return False
    with suppress(OSError):
        file.write_text(str(value))
        return True
    return False


def _parents(root: Path, groups: Path) -> Iterator[Path]:
    """Yield the groups in which one for a task could be made.

    In version 2 a group with processes has no groups of its own with a limit. So a task's is made
    beside that of this process, which a user may in a session of systemd.
    """
    with suppress(OSError):
        for line in groups.read_text(errors="surrogateescape").splitlines():
            _number, controllers, name = line.split(":", 2)
            own = name.lstrip("/")
            if "memory" in controllers.split(","):
                yield from {root / "memory" / own: None, root / "memory": None}
            elif not controllers and own:
                parent = (root / own).parent
                with suppress(OSError):
                    if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                        yield parent
