"""What the folder of a task says about it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ipytaskpersist.places.far.files import (
    Json,
    in_words,
    open_private,
    read_fresh,
    read_json,
)
from ipytaskpersist.places.far.processes import is_there, machine, of_task

SILENT_S = 60.0
"""A keeper of another boot of this host is gone when it has been silent for so long."""
LOCAL: set[Path] = set()
"""Folders whose task is kept on this machine, so that a ``stat`` shows how they are now."""


def look_at(folder: Path) -> Json:
    """Return what is known of a task, with its ``state`` in one word."""
    try:
        claim = read_claim(folder)
        if claim is None:
            is_stored = (folder / "brief").exists()
            return {"state": "claimed" if is_stored else "absent", "size": 0}
        return {**look_at_claimed(folder, claim), **claim, "size": size_of(folder)}
    except OSError as error:
        return {"state": "unknown", "error": in_words(error), "size": 0}


def read_claim(folder: Path) -> Json | None:
    """Return the identity of a task's keeper, if it has one."""
    claim = read_json(folder / "claim")
    if claim and is_ours(claim):
        LOCAL.add(folder)
    else:
        LOCAL.discard(folder)
    return claim


def size_of(folder: Path) -> int:
    """Return the size of a task's spool."""
    with suppress(FileNotFoundError):
        return read_fresh(folder / "spool", 0, 0)[0]
    return 0


def look_at_claimed(folder: Path, claim: Json) -> Json:
    """Return the state of a task with a keeper. ``lost`` is said only when it is certain."""
    # The order matters: a keeper that was there may record the end before it is looked at.
    is_gone = is_certainly_gone(claim)
    state = read_json(folder / "state")
    if state and "end" in state:
        return {"state": "ended", **state}
    silent_s = silence_of(folder, claim)
    found = {**(state or {}), "silent_s": silent_s}
    if is_gone:
        left = [each.pid for each in of_task(claim["task_id"], None)]
        return {**found, "state": "lost", "left": left}
    if is_of_other_boot(claim) and silent_s > SILENT_S:
        return {**found, "state": "lost", "left": []}
    return {**found, "state": "running" if state else "claimed"}


def is_ours(claim: Json) -> bool:
    """Return whether a keeper's pid means something here."""
    return all(claim.get(name) == value for name, value in machine().items())


def is_certainly_gone(claim: Json) -> bool:
    """Return whether a keeper of this machine has ended."""
    return is_ours(claim) and not is_there(claim["pid"], claim["start"])


def is_of_other_boot(claim: Json) -> bool:
    """Return whether a keeper belongs to another boot of this host, or of a namesake."""
    here = machine()
    is_known = bool(claim.get("boot_id") and here["boot_id"])
    return is_known and claim["host"] == here["host"] and claim["boot_id"] != here["boot_id"]


def silence_of(folder: Path, claim: Json) -> float:
    """Return for how many seconds a keeper was silent, by the clock of the file system."""
    for name in ("state", "claim"):
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                touched_at = os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
            now = time.time() if is_ours(claim) else clock_of(folder)
            return round(max(0.0, now - touched_at), 1)
    return 0.0


def clock_of(folder: Path) -> float:
    """Return the time by the clock of a file system, which another machine may have."""
    path = folder / f"clock-{os.urandom(8).hex()}"
    with suppress(OSError):
        os.close(open_private(path, os.O_EXCL))
        try:
            os.utime(path)
            return path.stat().st_mtime
        finally:
            path.unlink()
    return time.time()
