"""The provenance of a task: directory, Python and host, and the git tree around it.

What is known immediately is stored with the task. Git's files are read, and git is asked, in a
thread, so that no launch waits for it, and once for all tasks launched at the same moment.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.base.process_identity import host_name
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.errors import StoreError
from ipytaskpersist.session.git_repository import GitFolders
from ipytaskpersist.store.file.database import storable
from ipytaskpersist.store.task_store import TaskStore

GATHER_S = 0.05
"""Time during which launches in the same directory are gathered before git is asked."""
GIT_S = 30.0
OPTIONS = (
    *("--no-pager", "-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null"),
    *("-c", "diff.external=", "-c", "core.alternateRefsCommand=", "-c", "submodule.recurse=false"),
)
STATUS = (
    *("status", "--porcelain=v2", "--untracked-files=no", "--ignore-submodules=all"),
    *("--no-renames", "--no-ahead-behind"),
)
FILTERED = (
    *("ls-files", "-z", "--"),
    *(":(top,exclude,attr:!filter)", ":(top,exclude,attr:-filter)"),
)
"""Lists the files for which a filter could run, whichever configuration defines it."""
ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",  # write nothing, so that no hook runs
    "GIT_NO_LAZY_FETCH": "1",  # fetch no missing objects
    "GIT_ALLOW_PROTOCOL": "none",  # the same, for git before 2.45
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
CHANGES = {
    True: ", with uncommitted changes",
    False: "",
    None: ", uncommitted changes not known",
}
KEPT = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH")
"""Git variables that are taken from the user. Others could select another repository."""


def of_launch(directory: str | None = None) -> dict[str, Any]:
    """Return what is known about a task launched now, in this directory or the current one."""
    return {
        "directory": storable(current_directory() if directory is None else directory),
        "python": platform.python_version(),
        "executable": storable(sys.executable),
        "host": host_name(),
    }


def current_directory() -> str:
    """Return the working directory; empty if there is none."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""  # it has been removed


class GitWatch:
    """Records for tasks which commit their directory was at, and whether it had changes."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self._waiting: dict[str, list[int]] = defaultdict(list)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def expect(self, task_key: int, directory: str) -> None:
        """Collect the state of git for a task that was just launched. Return at once."""
        if not directory or GitFolders.around(Path(directory)) is None:
            return
        with self._lock:
            self._waiting[directory].append(task_key)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="ipytaskpersist-git", daemon=True)
                self._thread = thread if start_outside(thread) else None

    def finish(self, timeout_s: float) -> None:
        """Wait until everything is known, at most for this time."""
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


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return commit, branch, root, and whether tracked files have been changed.

    None if no repository can be read. Whether files have been changed is None if git is missing,
    refuses, takes too long, or might run a program that the repository names.
    """
    folders = GitFolders.around(directory)
    head = folders.head() if folders is not None else None
    if folders is None or head is None:
        return None
    return {
        "root": storable(str(folders.root)),
        "commit": head.commit,
        "branch": storable(head.branch),
        "is_dirty": None if folders.names_programs() else _is_dirty(folders.root),
    }


def _is_dirty(root: Path) -> bool | None:
    git = _git()
    if not git:
        return None
    try:
        if _asked(git, root, FILTERED):
            return None
        return bool(_asked(git, root, STATUS))
    except (OSError, subprocess.SubprocessError):
        return None


def _git() -> str:
    """Return the path of git, or "". A relative ``PATH`` could lead into the project."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which("git", path=os.pathsep.join(filter(os.path.isabs, folders))) or ""


def _asked(git: str, root: Path, question: tuple[str, ...]) -> bytes:
    """Ask git about a working tree. Raise `OSError` and `SubprocessError`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in KEPT
    }
    # Name the working tree, because the configuration may name another one.
    command = (git, "-C", str(root), "--work-tree", str(root), *OPTIONS, *question)
    done = subprocess.run(
        command, env={**kept, **ENVIRONMENT}, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=GIT_S, check=True,
    )  # fmt: skip
    return done.stdout


def git_in_words(found: dict[str, Any]) -> str:
    """``1a2b3c4d5e6f on main, with uncommitted changes``."""
    commit = (found.get("commit") or "no commit yet")[:12]
    branch = f" on {found['branch']}" if found.get("branch") else ""
    # The store keeps no None.
    return f"{commit}{branch}{CHANGES[found.get('is_dirty')]}"
