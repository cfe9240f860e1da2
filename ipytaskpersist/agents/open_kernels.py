"""Launch a cell in the kernel of an open notebook, as if it were typed there."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING

import psutil

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import SessionRecord, TaskRecord
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session import launch_keys
from ipytaskpersist.session.launcher import Launched
from ipytaskpersist.store.task_store import TaskStore

REQUEST = {"silent": False, "store_history": False, "allow_stdin": False, "user_expressions": {}}
"""What an execution asks of a kernel besides its code: not to count as one of the person's."""

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

LAUNCHED_S = 20.0
"""Time that a kernel gets to launch a task. One that runs a cell does so when that has ended."""
LOOK_S = 0.05
NAMED_AT_MOST = 5
CONNECTION = ("-f", "--f", "--ConnectionFile", "--IPKernelApp.connection_file")


def open_sessions(store: TaskStore) -> list[SessionRecord]:
    """Return the sessions of kernels of this machine that are alive, the latest last.

    Only of those that have launched a task: the store does not know the others.
    """
    if not store.exists:
        return []
    return [each for each in store.open().sessions.unfinished() if _is_open(each)]


def _is_open(session: SessionRecord) -> bool:
    if session.front_end != "kernel":
        return False
    alive = ProcessIdentity.of(session.pid)
    known = (session.host, session.boot_id, session.process_start)
    return alive is not None and (alive.host, alive.boot_id, alive.start) == known


def find_session(store: TaskStore, notebook: str) -> SessionRecord:
    """Return the session of an open notebook, named by its path or its file's name.

    Raise `InvalidRequest` if there is none, or several.
    """
    known = open_sessions(store)
    path = str(Path(notebook).absolute())
    found = [each for each in known if each.path == path]
    found = found or [each for each in known if Path(each.path).name == notebook]
    if len({each.path for each in found}) == 1:
        return found[-1]
    names = ", ".join(dict.fromkeys(legible(each.path) for each in found or known[-NAMED_AT_MOST:]))
    if found:
        raise InvalidRequest(f"several open notebooks have that name: {names}; give the path")
    there = f"; open are {names}" if names else ""
    raise InvalidRequest(
        f"no open notebook '{legible(notebook)}' that has launched a background task{there}"
    )


def launch(
    store: TaskStore, session: SessionRecord, words: Sequence[str], key: str, code: str
) -> Launched:
    """Have a kernel launch a task. `words` are those of the line, with the key.

    Raise `InvalidRequest` if the kernel is busy, or refuses. A busy one launches the task later:
    a second call with the key waits for that and does not launch another one.
    """
    from jupyter_client.blocking.client import BlockingKernelClient

    known = _task_of(store, session, key)
    if known is not None:
        launch_keys.refuse_other(known, launch_keys.tag_of(key), code)
        return Launched(known, is_new=False)
    client = BlockingKernelClient()
    client.load_connection_file(_connection_file(session))
    client.start_channels()
    try:
        line = shlex.join(words)
        launching = f"get_ipython().run_cell_magic('background', {line!r}, {code!r})"
        request = {**REQUEST, "code": launching}
        client.shell_channel.send(client.session.msg("execute_request", request))
        return Launched(_when_launched(client, store, session, key))
    finally:
        client.stop_channels()


def _task_of(store: TaskStore, session: SessionRecord, key: str) -> TaskRecord | None:
    return store.tasks.of_tag(session.notebook_key, launch_keys.tag_of(key))


def _when_launched(
    client: BlockingKernelClient, store: TaskStore, session: SessionRecord, key: str
) -> TaskRecord:
    """Return the task once the store has it: the kernel's reply may come much later."""
    deadline = time.monotonic() + LAUNCHED_S
    while time.monotonic() < deadline:
        task = _task_of(store, session, key)
        if task is not None:
            return task
        refused = _refusal(client)
        if refused:
            raise InvalidRequest(refused)
    raise InvalidRequest(
        f"the kernel of {legible(session.path)} is busy and launches the task when its cell has "
        f"ended; call run again with key {key} to be answered with that task"
    )


def _refusal(client: BlockingKernelClient) -> str:
    """Return the error with which the kernel has replied; empty if it has not yet."""
    try:
        reply = client.get_shell_msg(timeout=LOOK_S)["content"]
    except Empty:
        return ""
    return legible(reply["evalue"]) if reply["status"] == "error" else ""


def _connection_file(session: SessionRecord) -> str:
    """Return the file by which clients connect to a kernel: its command line names it."""
    with suppress(psutil.Error):
        process = psutil.Process(session.pid)
        words = process.cmdline()
        given = [after for before, after in pairwise(words) if before in CONNECTION]
        given += [word.partition("=")[2] for word in words if word.startswith(CONNECTION[1:])]
        for path in filter(None, given):
            found = Path(process.cwd()) / path
            if found.is_file():
                return str(found)
    raise InvalidRequest(
        f"the kernel of {legible(session.path)} cannot be connected to: its command line names no "
        "connection file"
    )
