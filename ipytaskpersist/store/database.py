"""Connections to the store: one a thread, each in the right mode; transactions; errors in words.

This is the one module that imports SQLite. `pysqlite3` brings its own, newer one where it has a
wheel: every SQLite from 3.7.0 to 3.51.2, so every CPython's own, has a bug by which two writers
can corrupt a database in WAL mode (https://sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.errors import ForkedProcess, StoreBusy, StoreDamaged, StoreError
from ipytaskpersist.paths import StateDirectory

try:
    from pysqlite3 import dbapi2 as sqlite3
except ImportError:
    import sqlite3

__all__ = [
    "SQLITE_VERSION",
    "Database",
    "exclusive",
    "journal_mode_for",
    "one_at_a_time",
    "sqlite3",
    "storable",
]

BUSY_TIMEOUT_MS = 20_000
CHECKPOINT_PAGES = 100_000
"""How large the write-ahead log may grow, 400 MB, before a commit has to copy it into the store.

SQLite's own 4 MB make a task that prints without a pause wait for the disk at every second commit.
Whoever writes much calls `checkpoint` when there is a pause.
"""
LOG_BYTES = 64 * 1024 * 1024
"""To what the log is cut when it begins anew."""
LOCK_POLL_S = 0.01
MAKING_S = 300.0
"""How long to wait for who makes or migrates the store: a backup of all of it comes first, and a
hundred kernels may begin at once."""
NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "lustre", "gpfs"),
        *("ceph", "beegfs", "glusterfs", "fuse.sshfs"),
    )
)
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_has_inherited = False
"""Whether this process was forked from one that had connections."""


class Database:
    """The store's file, and this process's connections to it."""

    def __init__(self, directory: StateDirectory, synchronous: str = "normal") -> None:
        self.directory = directory
        self.synchronous = synchronous
        """``normal`` or ``full``: whether a commit survives a loss of power."""
        self.read_only = False
        self.integrity_error: type[Exception] = sqlite3.IntegrityError
        self._connections: dict[int, tuple[weakref.ref[threading.Thread], Any]] = {}
        _databases.add(self)

    @property
    def path(self) -> Path:
        """The database file."""
        return self.directory.store

    @property
    def log(self) -> Path:
        """The write-ahead log, to which every commit is written."""
        return self.path.with_name(self.path.name + "-wal")

    @property
    def is_shared_by_hosts(self) -> bool:
        """Whether the store is where other hosts may write to it too."""
        return journal_mode_for(self.directory.root) != "WAL"

    @property
    def exists(self) -> bool:
        """Whether there is a store yet."""
        try:
            return self.path.exists()
        except OSError as error:
            raise StoreError(
                f"cannot look into the state directory {self.directory.root} ({error.strerror}); "
                "set IPYTASKPERSIST_DIR to a folder of your own"
            ) from error

    def create_file(self) -> None:
        """Make an empty database file that only its owner can read, where there is none."""
        self.directory.create()
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            raise StoreError(f"cannot make the store {self.path}: {error.strerror}") from error

    @property
    def connection(self) -> Any:
        """The calling thread's own connection, opened when it is first asked for.

        A connection shared by threads loses writes without a word, and one taken through a fork
        can corrupt the file, so neither ever happens.
        """
        thread = threading.current_thread()
        known = self._connections.get(threading.get_ident())
        if known is not None and known[0]() is thread:
            return known[1]
        if _has_inherited:
            raise ForkedProcess
        self._close_for_ended_threads()
        connection = self._connect()
        self._connections[threading.get_ident()] = (weakref.ref(thread), connection)
        return connection

    def _connect(self) -> Any:
        with self.errors():
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            connection.execute(f"PRAGMA synchronous = {self.synchronous}")
            if self.read_only:
                connection.execute("PRAGMA query_only = ON")
        return connection

    def _close_for_ended_threads(self) -> None:
        for ident, (thread, connection) in list(self._connections.items()):
            owner = thread()
            if owner is None or not owner.is_alive():
                del self._connections[ident]
                connection.close()

    def close(self) -> None:
        """Close every connection of this process."""
        connections, self._connections = self._connections, {}
        for _thread, connection in connections.values():
            with suppress(sqlite3.Error):
                connection.close()

    def close_own(self) -> None:
        """Close the calling thread's connection, if it has one."""
        known = self._connections.pop(threading.get_ident(), None)
        if known is not None:
            known[1].close()

    def abandon(self) -> bool:
        """In a forked child: let go of the parent's connections. Returns whether there were any.

        They are neither used nor ever closed, not even at the end of the interpreter: who closes
        the last one removes the log, and with it what others write by then.
        """
        connections, self._connections = self._connections, {}
        for _thread, connection in connections.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        return bool(connections)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run one statement, committed at once outside a transaction."""
        with self.errors():
            return self.connection.execute(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All rows of one query."""
        with self.errors():
            return list(self.connection.execute(sql, parameters).fetchall())

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The first row of one query, or None."""
        with self.errors():
            return self.connection.execute(sql, parameters).fetchone()

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A transaction that holds the write lock from its start.

        A deferred one that reads before it writes fails at once when another writer came between,
        whatever the busy timeout says.
        """
        connection = self.connection
        with self.errors():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def copy(self, connection: Any, target: Path) -> None:
        """Copy what a connection sees with SQLite's backup API, while others write."""
        with self.errors():
            destination = sqlite3.connect(target)
            try:
                connection.backup(destination)
            finally:
                destination.close()

    def restore_from(self, source: Path) -> None:
        """Replace the whole content by that of another database file."""
        origin = sqlite3.connect(source)
        try:
            with self.errors():
                origin.backup(self.connection)
        finally:
            origin.close()

    @property
    def log_bytes(self) -> int:
        """How large the write-ahead log's file is; 0 where there is none."""
        try:
            return self.log.stat().st_size
        except OSError:
            return 0

    def checkpoint(self) -> None:
        """Copy what is in the write-ahead log into the store, as far as readers allow it now."""
        self.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @property
    def data_version(self) -> int:
        """A number that changes when anyone else has committed: microseconds to ask for."""
        return int(self.row("PRAGMA data_version")[0])

    @property
    def change_mark(self) -> tuple[int, int]:
        """Changes when anyone has committed, the calling thread as well: as quick to ask for."""
        return self.data_version, int(self.connection.total_changes)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ones that say which store, and what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._in_words(error) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            with suppress(OSError):
                self.directory.damage_mark.touch(mode=0o600)
            raise StoreDamaged(
                f"the store {self.path} is damaged ({error}); restart the kernel and type "
                "%load_ext ipytaskpersist: it saves what can be read"
            ) from error

    def _in_words(self, error: Exception) -> StoreError:
        text = str(error)
        if "locked" in text or "busy" in text:
            return StoreBusy(f"the store {self.path} is locked by another program ({text})")
        if "readonly" in text or "read-only" in text or "query_only" in text:
            return StoreError(f"the store {self.path} cannot be written ({text})")
        if "full" in text:
            return StoreError(f"no room left for the store {self.path} ({text})")
        return StoreError(f"the store {self.path} cannot be used ({text})")


def _abandon_all() -> None:
    """In a forked child: keep off SQLite for good, when the parent has connections.

    SQLite keeps a list of the locks that a process has on a file, which a fork copies, and the
    system's locks themselves, which it does not. So even a connection of the child's own would
    take none, and somebody else could overwrite the log under it.
    """
    global _has_inherited
    for database in list(_databases):
        _has_inherited |= database.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


SQLITE_VERSION: str = sqlite3.sqlite_version


def storable(text: str | None) -> str | None:
    """The text as SQLite can hold it: halves of surrogate pairs become escapes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _lock(descriptor: int, wait_s: float, busy: str) -> None:
    import fcntl

    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreBusy(busy) from None
            time.sleep(LOCK_POLL_S)
        else:
            return


@contextmanager
def exclusive(path: Path, busy: str, wait_s: float = BUSY_TIMEOUT_MS / 1000) -> Iterator[None]:
    """Hold the lock that is this file. Raises `StoreBusy` with this message when others do."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if os.name == "posix":
            _lock(descriptor, wait_s, busy)
        yield
    finally:
        os.close(descriptor)


def one_at_a_time(directory: StateDirectory) -> AbstractContextManager[None]:
    """Keep other processes from making or repairing the same store meanwhile."""
    return exclusive(
        directory.lock,
        f"another process is making or repairing the store {directory.store} and does not come to "
        "an end; try again when it has",
        MAKING_S,
    )


def journal_mode_for(folder: Path) -> str:
    """WAL, but the rollback journal on a network file system, where WAL's shared memory fails."""
    return "TRUNCATE" if file_system_of(folder) in NETWORK_FILE_SYSTEMS else "WAL"


def file_system_of(folder: Path) -> str:
    """The type of the file system that holds `folder`; empty where the system does not tell."""
    if sys.platform != "linux":
        return ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return _deepest_mount(mounts, folder.resolve())


def _deepest_mount(mounts: str, folder: Path) -> str:
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = Path(fields[1].replace("\\040", " "))
        if len(point.parts) > best and folder.is_relative_to(point):
            best, kind = len(point.parts), fields[2]
    return kind
