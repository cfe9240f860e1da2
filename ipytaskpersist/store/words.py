"""What SQLite's errors mean for whoever typed the command, and what to do."""

from __future__ import annotations

import os
from pathlib import Path

from ipytaskpersist.errors import StoreBusy, StoreError, StoreFull


def in_words(store: Path, said: str) -> StoreError:
    """The error for what SQLite has said of a store."""
    if "locked" in said or "busy" in said:
        return StoreBusy(
            f"the store {store} is locked by another program ({said}); %bg_doctor says by which, "
            "and try again when it is done"
        )
    if "readonly" in said or "read-only" in said or "query_only" in said:
        return StoreError(
            f"the store {store} cannot be written ({said}); %bg_doctor says what to change"
        )
    if "full" in said:
        return StoreFull(
            f"no room is left for the store {store} ({said}); make room on its disk, or "
            "%bg_delete tasks"
        )
    if "unable to open" in said:
        return StoreError(_why_it_cannot_be_opened(store))
    return StoreError(f"the store {store} cannot be used ({said}); %bg_doctor says what to change")


def _why_it_cannot_be_opened(store: Path) -> str:
    if store.is_dir():
        return f"there is a directory in the place of the store {store}; move it away"
    if not os.path.lexists(store):
        return f"there is no store {store} any more; the next task makes a new one"
    return f"the store {store} cannot be opened; %bg_doctor says what to change"
