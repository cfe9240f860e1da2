"""What a supervisor, its fork server and the forked processes tell each other.

All run the same version. A message to them is a letter with descriptors. Its content, if it has
any, is a pickle in a file, which is the first descriptor. A message from a server is JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ipytaskpersist.runners.task_rows import TaskRows

IMPORT = b"I"
"""To the server: import modules, for tasks like one whose rows come with their names."""
FORK = b"F"
"""To the server: fork a process. The descriptor is its end of a socket, where it says its pid and
its parent's."""
START = b"S"
"""To a forked process: a `Work`, and the descriptors of its stdout, stderr and channel."""
READY = b"ready"
"""From a forked process: it is the task's, and waits for `GO`. Anything else is why it is not."""
GO = b"G"
"""To a forked process: run. If the supervisor ends instead, the process ends, too."""


class Work(NamedTuple):
    """A task to run in a forked process."""

    directory: str
    environment: Mapping[str, str | None]
    """How its environment differs from the one that the server was started with. None removes a
    variable."""
    rows: TaskRows
