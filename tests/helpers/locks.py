"""Another program that holds the lock of a store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from programs import environment

HOLD = """
import sys
from ipytaskpersist.base.paths import default_directory, StateDirectory
from ipytaskpersist.store.task_store import TaskStore
store = TaskStore(StateDirectory(default_directory()))
for statement in sys.argv[1:]:
    store.database.execute(statement)
print("locked", flush=True)
sys.stdin.read()
"""
WRITING, ALONE = "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"


@contextmanager
def held(state_dir: Path, *statements: str) -> Iterator[int]:
    """Another process has given these statements to the store, and waits. Gives its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *statements], env=environment(state_dir), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process.pid
        finally:
            process.kill()
