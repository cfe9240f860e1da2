"""The environment of a task that waits for its supervisor: in a file that goes when it begins.

Not in the store: what has once been written there stays in SQLite's log, in backups, and for a
while in the file itself. Nor in the supervisor's command line, which everybody can read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from ipytaskpersist.paths import StateDirectory, make_private, new_private, open_own

Environment = dict[str, str]

BEING_MADE_S = 60.0
"""How long a file may be there before its task is."""


def put(directory: StateDirectory, task_id: str, environment: Mapping[str, str]) -> None:
    """Leave the environment of a task for whoever starts it. Raises `OSError`."""
    file = directory.environment(task_id)
    make_private(file.parent)
    # Nobody looks for it before the task is recorded, so it need not appear complete.
    with new_private(file) as target:
        target.write(json.dumps(dict(environment)).encode())


def take(directory: StateDirectory, task_id: str) -> Environment | None:
    """The environment of a task that begins, which is nowhere from then on; None for none."""
    file = directory.environment(task_id)
    try:
        with open_own(file) as source:
            environment: Environment = json.loads(source.read())
    except (OSError, ValueError):
        return None
    finally:
        remove(directory, task_id)
    return environment


def remove(directory: StateDirectory, task_id: str) -> None:
    """Forget the environment of a task that will not begin."""
    with suppress(OSError):
        directory.environment(task_id).unlink()


def remove_left(directory: StateDirectory, is_waiting: Callable[[str], bool | None]) -> None:
    """Forget the environments of tasks that wait no more. `is_waiting` gives None for no task."""
    with suppress(OSError):
        for file in directory.environments.iterdir():
            waits = is_waiting(file.stem)
            is_new = time.time() - file.stat().st_mtime < BEING_MADE_S
            if waits is False or (waits is None and not is_new):
                file.unlink(missing_ok=True)
