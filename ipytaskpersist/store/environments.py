"""The environment of a task that waits for its supervisor, in a file until the task begins.

That of a task that may be tried again stays until its last try has ended, that of one with a
schedule until the schedule has. A task that starts at once leaves only how it differs from its
supervisor's; any other all of it, because after a reboot another supervisor starts it.

Not in the store: whatever was once written there stays in SQLite's log, in backups, and for a while
in the file itself. Nor on the supervisor's command line, which every user can read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_private, new_private, open_own

Environment = dict[str, str]

BEING_MADE_S = 60.0
"""Time for which a file may exist before its task does."""


def put(
    directory: StateDirectory, task_id: str, environment: Mapping[str, str], same_as: str = ""
) -> None:
    """Leave the environment of a task for its supervisor. Raises `OSError`.

    `same_as` is a task whose environment is the same, and may still be there: a link to it takes a
    tenth of the time.
    """
    file = directory.environment(task_id)
    if same_as:
        with suppress(OSError):
            os.link(directory.environment(same_as), file)
            return
    make_private(file.parent)
    # No process looks for it before the task is recorded, so the write need not be atomic.
    with new_private(file) as target:
        target.write(json.dumps(dict(environment)).encode())


def take(directory: StateDirectory, task_id: str) -> Environment | None:
    """Return and remove the environment of a task that begins; None when there is none."""
    environment = read(directory, task_id)
    remove(directory, task_id)
    return environment


def read(directory: StateDirectory, task_id: str) -> Environment | None:
    """Return the environment of a task that may be tried again; None when there is none."""
    try:
        with open_own(directory.environment(task_id)) as source:
            environment: Environment = json.loads(source.read())
    except (OSError, ValueError):
        return None
    return environment


def remove(directory: StateDirectory, task_id: str) -> None:
    """Remove the environment of a task that will not begin."""
    with suppress(OSError):
        directory.environment(task_id).unlink()


def kept(directory: StateDirectory) -> set[str]:
    """Return the ids of the tasks for which an environment is kept."""
    with suppress(OSError):
        return {file.stem for file in directory.environments.iterdir()}
    return set()


def is_new(directory: StateDirectory, task_id: str) -> bool:
    """Return whether an environment may be that of a task that is just being recorded."""
    with suppress(OSError):
        # A link has the age of the file, but a new status.
        return time.time() - directory.environment(task_id).stat().st_ctime < BEING_MADE_S
    return False
