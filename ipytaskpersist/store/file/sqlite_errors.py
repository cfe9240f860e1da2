"""Readable messages for SQLite's errors, with what to do about them."""

from __future__ import annotations

import os
from pathlib import Path

from ipytaskpersist.base import disk_errors
from ipytaskpersist.errors import StoreBusy, StoreError, StoreFull

PATH_BYTES = 504
"""Longest path of a file that SQLite opens: 512 bytes less ``-journal``."""


def in_words(store: Path, said: str) -> StoreError:
    """Return the error to raise for SQLite's message about a store."""
    if "locked" in said or "busy" in said:
        return StoreBusy(
            f"the store {store} is locked by another program ({said}); %bg_doctor says by which, "
            "and try again when it is done"
        )
    if "full" in said:
        return StoreFull(
            f"no room is left for the store {store} ({said}); make room on its disk, or "
            "%bg_delete tasks"
        )
    if "unable to open" in said:
        why = _why_it_cannot_be_opened(store)
        if why:
            return StoreError(why)
    refusal = disk_errors.why_not(store.parent) if _may_be_the_disk(said) else None
    if refusal is not None:
        return disk_errors.refused(f"the store {store}", refusal, store.parent, DOCTOR)
    if "readonly" in said:
        return StoreError(f"the store {store} cannot be written ({said}); {DOCTOR}")
    return StoreError(f"the store {store} cannot be used ({said}); {DOCTOR}")


def _may_be_the_disk(said: str) -> bool:
    return any(words in said for words in ("disk I/O", "readonly", "unable to open"))


DOCTOR = "%bg_doctor says what to change"


def _why_it_cannot_be_opened(store: Path) -> str:
    """Return the apparent reason; empty when there is none to be seen."""
    if store.is_dir():
        return f"there is a directory in the place of the store {store}; move it away"
    if is_too_long(store):
        return too_long(store)
    if not os.path.lexists(store):
        return f"there is no store {store} any more; the next task makes a new one"
    return ""


def is_too_long(file: Path) -> bool:
    """Return whether a file's path is too long for SQLite."""
    return len(os.fsencode(file)) > PATH_BYTES


def too_long(file: Path) -> str:
    """Return the message about it."""
    return (
        f"the path {file} is {len(os.fsencode(file))} bytes long, and SQLite takes {PATH_BYTES}; "
        "set IPYTASKPERSIST_DIR to a shorter one"
    )
