"""What makes the values of tasks durable against power loss, after a launch has long replied.

It has a thread of its own, because flushing a large file may take seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from ipytaskpersist.base.private_files import make_durable
from ipytaskpersist.base.threads import start_outside


class Flushes:
    """Flushes the files of tasks to the disk, one task after the other."""

    def __init__(self, payloads: Path, warn: Callable[[str], None]) -> None:
        """`payloads` has one folder for each task. `warn` is called for the first failure."""
        self._payloads = payloads
        self._warn = warn
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._has_warned = False

    def add(self, task_id: str) -> None:
        """Flush all that a task has in files at the moment."""
        self._queue.put(task_id)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ipytaskpersist-flushes", daemon=True)
            if start_outside(thread):
                self._thread = thread

    def stop(self, timeout_s: float) -> None:
        """Flush what is pending, and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (task_id := self._queue.get()) is not None:
            folder = self._payloads / task_id
            try:
                flush(folder)
            except FileNotFoundError:
                pass  # it has no values, or was deleted
            except OSError as error:
                self._say(
                    f"what task {task_id} has in {folder} may not survive a power loss", error
                )

    def _say(self, what: str, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(f"{what}: the disk has not confirmed it ({error.strerror})")


def flush(folder: Path) -> None:
    """Flush the files in a task's folder, and the folder itself. Raises `OSError`."""
    for path in (*folder.iterdir(), folder, folder.parent):
        make_durable(path)
