"""Where a task comes from: directory, Python and host, and the git tree around it.

What is known at once is stored with the task. Git is asked in a thread, so that no launch waits
for it, and once for all tasks that are launched in the same moment.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import StoreError
from ipytaskpersist.identity import host_name
from ipytaskpersist.store import TaskStore

GATHER_S = 0.05
"""How long launches in the same directory are gathered before git is asked."""
GIT_S = 30.0
GIT = (
    *("git", "-c", "core.fsmonitor=false", "status"),
    *("--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules"),
)
"""Quick, writes nothing, and runs no program that a repository's configuration may name."""


def of_launch(directory: str | None = None) -> dict[str, Any]:
    """What is known of a task that is launched now, in this directory or the current one."""
    return {
        "directory": _current_directory() if directory is None else directory,
        "python": platform.python_version(),
        "executable": sys.executable,
        "host": host_name(),
    }


def _current_directory() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return ""  # it has been removed


class GitWatch:
    """Adds to tasks which commit their directory was at, and whether it had been changed."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self._waiting: dict[str, list[int]] = defaultdict(list)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def expect(self, task_key: int, directory: str) -> None:
        """Find out about a task that was just launched. Returns at once."""
        if not directory or _git_root(Path(directory)) is None:
            return
        with self._lock:
            self._waiting[directory].append(task_key)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="ipytaskpersist-git", daemon=True)
                self._thread = thread if start_outside(thread) else None

    def finish(self, timeout_s: float) -> None:
        """Wait until everything is known, at most so long."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            threading.Event().wait(GATHER_S)
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    break
                directory, keys = self._waiting.popitem()
            found = git_state(Path(directory))
            if found is not None:
                with suppress(StoreError):
                    self._store.tasks.add_provenance(keys, {"git": found})
        self._store.database.close_own()


def _git_root(directory: Path) -> Path | None:
    """The directory or the nearest above it that git manages."""
    places = (directory, *directory.parents)
    with suppress(OSError):  # a directory that may not be looked into
        return next((place for place in places if (place / ".git").exists()), None)
    return None


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit, branch, root, and whether files that git knows have been changed.

    None where git is missing, refuses, or takes too long.
    """
    root = _git_root(directory)
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            GIT, cwd=root, env=environment, capture_output=True, timeout=GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    headers = dict(line[2:].partition(" ")[::2] for line in lines if line.startswith("# "))
    commit, branch = headers.get("branch.oid"), headers.get("branch.head")
    return {
        "root": str(root),
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "is_dirty": any(not line.startswith("#") for line in lines),
    }


def git_in_words(found: dict[str, Any]) -> str:
    """``1a2b3c4d5e6f on main, with uncommitted changes``."""
    commit = (found.get("commit") or "no commit yet")[:12]
    branch = f" on {found['branch']}" if found.get("branch") else ""
    return f"{commit}{branch}{', with uncommitted changes' if found.get('is_dirty') else ''}"
