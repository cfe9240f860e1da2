"""Commands in processes of their own: all that the extension ever changes, it changes by these.

So the server's process only reads, and a button says and does what the same command in a terminal
says and does.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from ipytaskpersist.base.detached import python_command
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import BackgroundError, InvalidRequest
from ipytaskpersist.runners.liveness import Watch, find_dead, find_dead_supervisors
from ipytaskpersist.store.task_store import TaskStore

VERBS = {"cancel": ("--yes",), "rerun": (), "resume": (), "pause": (), "continue": ()}
"""The verbs that pages may run, with what confirms them: a click on a task names that task."""
TIMEOUT_S = 60.0
DEATHS_AGAIN_S = 60.0
"""Interval after which a command is run again for deaths that the last one has not recorded."""
STORE_AGAIN_S = 5.0
"""The same for a store that cannot be read: another connection may just have marked it again."""


def run_verb(task: TaskRecord, verb: str, directory: Path) -> str:
    """Run a verb on a task, and return what it says. Raises `InvalidRequest` with its error."""
    if verb not in VERBS:
        raise InvalidRequest(f"a page has no action '{verb}'; there are {', '.join(VERBS)}")
    # An imported task's id may look like an option.
    ended = _command([verb, *VERBS[verb], "--", task.id], directory, Path(task.notebook))
    if ended.returncode:
        raise InvalidRequest(_last_line(ended.stderr).removeprefix("jupyter bg: "))
    return _last_line(ended.stdout)


def _command(
    arguments: list[str], directory: Path, notebook: Path
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "IPYTASKPERSIST_DIR": str(directory),
        "IPYTASKPERSIST_NOTEBOOK": str(notebook),
        "PYTHONUTF8": "1",
    }
    folder = notebook if notebook.is_dir() else notebook.parent
    try:
        return subprocess.run(
            [*python_command("__main__"), *arguments],
            env=environment,
            cwd=folder if folder.is_dir() else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidRequest(
            f"jupyter bg {' '.join(arguments)} has taken more than {TIMEOUT_S:.0f} s, and was ended"
        ) from None
    except OSError as error:
        raise InvalidRequest(f"no command could be started: {error.strerror}") from error


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "nothing was said"


class Upkeep:
    """Has a command record what only a process that writes can: deaths, migrations, repairs."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self._watch = Watch()
        self._reason: object = None
        """What the last command was run for."""
        self._thread: threading.Thread | None = None
        self._run_at = 0.0

    def look(self) -> None:
        """Run a command if a kernel or a supervisor is gone, and its end is not recorded."""
        sessions = find_dead(self._store, except_session="", watch=self._watch)
        supervisors = find_dead_supervisors(self._store, self._watch)
        dead = {*(each.owner.id for each in sessions), *(each.owner.key for each in supervisors)}
        if dead:
            self._run(dead, DEATHS_AGAIN_S)

    def mend(self) -> None:
        """Run a command because the store can only be read after a migration or a repair."""
        self._run("the store", STORE_AGAIN_S)

    def _run(self, reason: object, again_s: float) -> None:
        """Run a command that reads, in the background: each brings the store up to date first."""
        is_known = reason == self._reason and time.monotonic() - self._run_at < again_s
        if is_known or (self._thread is not None and self._thread.is_alive()):
            return
        self._reason, self._run_at = reason, time.monotonic()
        self._thread = threading.Thread(
            target=self._list, name="ipytaskpersist-upkeep", daemon=True
        )
        self._thread.start()

    def _list(self) -> None:
        directory = self._store.directory.root
        with suppress(BackgroundError):  # it is tried again; a command that is typed says why not
            _command(["list", "--all", "--limit", "1", "--json"], directory, directory)
