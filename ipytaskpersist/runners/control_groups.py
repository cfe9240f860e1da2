"""What the control groups of this process, cgroups(7), leave of the machine: CPUs and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ipytaskpersist.runners.machine_limits import CONTROL_GROUPS

OWN_GROUPS = Path("/proc/self/cgroup")
NO_LIMIT_BYTES = 1 << 60
"""Version 1 has a number near 2⁶³ for no limit."""


def memory(root: Path = CONTROL_GROUPS, groups: Path = OWN_GROUPS) -> tuple[int, int] | None:
    """Return the smallest limit in bytes, and the least that is left of one; None without any."""
    found = []
    for folder in _folders("memory", root, groups):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= NO_LIMIT_BYTES:
            continue
        # The system takes back the cached pages of files that have not been read for a while.
        cached = _statistics(folder / "memory.stat")
        back = cached.get("total_inactive_file", cached.get("inactive_file", 0))
        found.append((limit, max(0, limit - max(0, used - back))))
    if not found:
        return None
    return min(limit for limit, _left in found), min(left for _limit, left in found)


def cpus(root: Path = CONTROL_GROUPS, groups: Path = OWN_GROUPS) -> float | None:
    """Return how many CPUs' time these groups may take; None for any."""
    found = []
    for folder in _folders("cpu", root, groups):
        words = _text(folder / "cpu.max").split() or [
            _text(folder / "cpu.cfs_quota_us").strip(),
            _text(folder / "cpu.cfs_period_us").strip(),
        ]
        with suppress(ValueError):
            quota, period = map(int, words)
            if quota > 0 and period > 0:
                found.append(quota / period)
    return min(found, default=None)


def _folders(controller: str, root: Path, groups: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups with a controller, and of those around them."""
    for line in _text(groups).splitlines():
        _number, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        folder = top / group.lstrip("/")
        # In a container, the top may be the group itself, despite the name that it has outside.
        while folder != top and top in folder.parents:
            yield folder
            folder = folder.parent
        yield top


def _text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    return ""


def _number(file: Path) -> int | None:
    with suppress(ValueError):
        return int(_text(file))
    return None


def _statistics(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if pair[1:] and pair[1].isdigit()}
