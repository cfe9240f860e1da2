"""A file for the changes of a process whose store a newer version has taken over.

The process's tasks run on, and their output and their end must not be lost. So the calls that would
have changed the store are written to the file, one per line. The newer version makes them when it
next checks on the tasks of other processes. Making a call twice changes nothing, so that this may
be interrupted at any moment. The file is removed once its process has certainly ended. Only a
process that can see it does that: one on the same host, in the same container.

The file outlives versions: its lines name only calls in `CALLS`, which stay as they are.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_private, open_own, open_private
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import Progress, ResultRecord, TaskState
from ipytaskpersist.errors import StoreError
from ipytaskpersist.store import problems

if TYPE_CHECKING:
    from ipytaskpersist.store.task_store import TaskStore

AT_ONCE_BYTES = 1024 * 1024
"""Amount of a file that is applied while others wait for the store."""
NOT_BEGUN = "a newer version of ipytaskpersist took over the store before it began"
BYTES, RESULT, PROGRESS = "$bytes", "$result", "$progress"
"""Keys that represent types that JSON lacks."""


class Aside:
    """Substitute for the store in code that changes it: writes the calls to a file."""

    def __init__(self, directory: StateDirectory, session_id: str) -> None:
        self._directory = directory
        self._session_id = session_id
        self._process = ProcessIdentity.own()
        self._file = -1
        self._lock = threading.Lock()
        for table in {call.partition(".")[0] for call in CALLS}:
            setattr(self, table, _Calls(self, table))

    @property
    def path(self) -> Path:
        """The file."""
        name = f"{self._session_id[:8]}-{self._process.pid}-{self._process.start}.jsonl"
        return self._directory.aside / name

    def begin(self) -> None:
        """Create the file, which names its owner: a task that waits for that owner waits in vain.

        Raises `StoreError` when there is no room for it.
        """
        with self._lock, self._in_words():
            if self._file < 0:
                make_private(self.path.parent)
                file = open_private(self.path, os.O_WRONLY | os.O_APPEND)
                try:
                    _write(file, {"session": self._session_id, "process": asdict(self._process)})
                except OSError:
                    os.close(file)
                    raise
                self._file = file

    def keep(self, call: str, given: Sequence[Any], named: dict[str, Any]) -> bool | list[Any]:
        """Write a call that would have changed the store. Queries have no answer here.

        Raises `StoreError` when there is no room for it.
        """
        if call not in CALLS:
            return []
        self.begin()
        with self._in_words():
            _write(self._file, {"call": call, "given": list(given), "named": named})
        return True

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write {self.path} ({error.strerror})") from error


def _write(file: int, line: dict[str, Any]) -> None:
    """Append a line, all of it or nothing."""
    data = json.dumps(line, default=_encoded).encode() + b"\n"
    size = os.fstat(file).st_size
    if os.write(file, data) < len(data):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Calls:
    """Substitute for a table of the store."""

    def __init__(self, aside: Aside, table: str) -> None:
        self._aside = aside
        self._table = table

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *given, **named: self._aside.keep(f"{self._table}.{name}", given, named)


def _encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    if isinstance(value, ResultRecord):
        return {RESULT: {name: getattr(value, name) for name in ResultRecord.__slots__}}
    if isinstance(value, Progress):
        return {PROGRESS: value.as_stored()}
    return list(value)  # a set


def _decoded(found: dict[str, Any]) -> Any:
    if found.keys() == {BYTES}:
        return base64.b64decode(found[BYTES])
    if found.keys() == {RESULT}:
        return ResultRecord(**found[RESULT])
    return Progress(**found[PROGRESS]) if found.keys() == {PROGRESS} else found


# Applying the files.


def take_in(store: TaskStore) -> None:
    """Apply the changes that processes of earlier versions kept, and remove finished files."""
    for file in _files(store.directory):
        try:
            _take_in(store, file)
        except (OSError, ValueError, TypeError, KeyError) as error:
            problems.record_once(
                store.directory,
                f"what {file} has of running tasks cannot be taken in "
                f"({type(error).__name__}: {error})",
            )


def kept_elsewhere(store: TaskStore) -> list[tuple[Path, ProcessIdentity]]:
    """Return the files whose process can be seen only from its own host or container."""
    shared = store.database.is_shared_by_hosts
    found = [(file, process) for file in _files(store.directory) if (process := _writer(file))]
    return [each for each in found if each[1].is_out_of_sight(shared=shared)]


def _writer(file: Path) -> ProcessIdentity | None:
    with suppress(OSError, ValueError, TypeError, KeyError), open_own(file) as source:
        return _owner(source)[1]
    return None


def _owner(source: BinaryIO) -> tuple[str, ProcessIdentity]:
    """Return the session and the process that own a file."""
    owner = json.loads(source.readline())
    return owner["session"], ProcessIdentity(**owner["process"])


def _files(directory: StateDirectory) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.aside.glob("*.jsonl"))
    return []


def _take_in(store: TaskStore, file: Path) -> None:
    with open_own(file) as source:
        session, process = _owner(source)
        # Checked before the process's last lines are read.
        has_ended = process.has_ended(shared=store.database.is_shared_by_hosts)
        store.tasks.interrupt_pending(session, NOT_BEGUN, time.time())
        begin = source.tell()
        while _take_some(store, session, source, file.name, begin):
            pass
    if has_ended:
        file.unlink(missing_ok=True)
        store.upkeep.forget(file.name)


def _take_some(store: TaskStore, session: str, source: BinaryIO, name: str, begin: int) -> bool:
    """Apply the next lines, once for all processes. Return whether there were any."""
    with store.database.transaction():
        at = max(begin, store.upkeep.reached(name))
        source.seek(at)
        lines = [line for line in source.readlines(AT_ONCE_BYTES) if line.endswith(b"\n")]
        for line in lines:
            _do(store, session, json.loads(line, object_hook=_decoded))
        if lines:
            store.upkeep.reach(name, at + sum(map(len, lines)))
    return bool(lines)


def _do(store: TaskStore, session: str, line: dict[str, Any]) -> None:
    do = CALLS.get(line.get("call", ""))
    if do is not None:
        do(store, session, *line["given"], **line["named"])


# The calls. These names and arguments stay as they are.


def _of(owners: str, table: str, method: str) -> Callable[..., None]:
    """Return a call of a method, restricted to rows whose owner is of the session."""

    def do(store: TaskStore, session: str, key: int, *given: Any, **named: Any) -> None:
        if _is_own(store, session, owners, key):
            getattr(getattr(store, table), method)(key, *given, **named)

    return do


def _is_own(store: TaskStore, session: str, table: str, key: int) -> bool:
    row = store.database.row(f"SELECT session_id FROM {table} WHERE key = ?", (key,))
    return row is not None and row[0] == session


def _append(
    store: TaskStore,
    session: str,
    rows: list[list[Any]],
    offsets: dict[str, int] | None = None,
) -> None:
    own = [tuple(row) for row in rows if _is_own(store, session, "tasks", row[0])]
    come_to = {int(key): offset for key, offset in (offsets or {}).items()}
    store.outputs.append(
        own,
        {key: at for key, at in come_to.items() if _is_own(store, session, "tasks", key)},
    )


def _start(store: TaskStore, session: str, key: int, at: float) -> None:
    if _is_own(store, session, "tasks", key) and not store.tasks.start(key, at):
        store.tasks.take_back([key], at)


def _end(store: TaskStore, session: str, key: int, state: str, *rest: Any) -> None:
    if not _is_own(store, session, "tasks", key):
        return
    if not store.tasks.end(key, TaskState(state), *rest):
        # It was declared dead by mistake. Its owner knows better.
        store.tasks.take_back([key], time.time())
        store.tasks.end(key, TaskState(state), *rest)


def _interrupt(store: TaskStore, session: str, owner: str, *rest: Any) -> None:
    if owner == session:
        store.tasks.interrupt_session(owner, *rest)


def _end_session(store: TaskStore, session: str, owner: str, *rest: Any) -> None:
    if owner == session:
        store.sessions.end(owner, *rest)


CALLS: dict[str, Callable[..., None]] = {
    "outputs.append": _append,
    "results.save": _of("tasks", "results", "save"),
    "tasks.start": _start,
    "tasks.end": _end,
    "tasks.progress": _of("tasks", "tasks", "progress"),
    "tasks.dropped": _of("tasks", "tasks", "dropped"),
    "tasks.save_post_mortem": _of("tasks", "tasks", "save_post_mortem"),
    "tasks.interrupt_session": _interrupt,
    "processes.started": _of("tasks", "processes", "started"),
    "processes.used": _of("tasks", "processes", "used"),
    "processes.interrupt": _of("supervisors", "processes", "interrupt"),
    "supervisors.end": _of("supervisors", "supervisors", "end"),
    "sessions.end": _end_session,
}
