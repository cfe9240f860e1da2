"""Thread-local connections to the store's file, transactions, and readable errors.

This is the only module that imports SQLite. It prefers `pysqlite3`, which bundles a newer SQLite
where it has a wheel: every SQLite from 3.7.0 to 3.51.2, so the one in every CPython, has a bug by
which two writers can corrupt a database in WAL mode (https://sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import new_private, open_private
from ipytaskpersist.errors import ForkedProcess, StoreBusy, StoreDamaged, StoreError, StoreNewer
from ipytaskpersist.running.interruption import HeldBack, let_through
from ipytaskpersist.store.file.file_systems import NETWORK_MODE, journal_mode_for, shares_memory
from ipytaskpersist.store.file.sidecars import (
    INDEX_HEAD_BYTES,
    LOST_LOG,
    Beside,
    Identity,
    beside,
    identity_of,
    is_log_cut,
    log_of,
    move_log,
    read_options,
    shared_memory_of,
)
from ipytaskpersist.store.file.sqlite_errors import DOCTOR, in_words

try:
    from pysqlite3 import dbapi2 as sqlite3
except ImportError:
    import sqlite3

__all__ = ["SQLITE_VERSION", "Database", "sqlite3", "storable"]

BUSY_TIMEOUT_MS = 20_000
WAIT_MS = 250
"""Timeout of SQLite's own wait for other writers. The stop button works between two waits."""
CHECKPOINT_PAGES = 100_000
"""Size that the write-ahead log may reach, 400 MB, before a commit has to checkpoint it.

With SQLite's default of 4 MB, a task that prints without a pause waits for the disk at every second
commit. Code that writes a lot calls `checkpoint` when it pauses.
"""
LONG_LOG_PAGES = 2_000
"""Log length, 8 MB, beyond which a checkpoint makes sure that the log restarts."""
LOG_BYTES = 64 * 1024 * 1024
"""Size to which the log is truncated when it restarts."""
CUT_TIMEOUT_MS = 250
"""Time that a full checkpoint waits for readers. Writers wait as long."""
LOCK_POLL_S = 0.01
LOOK_S = 0.5
"""Interval between checks that the open file is still the one at the store's path."""
IN_FLIGHT_S = 5.0
"""Time that the transactions of other threads get to finish after the file was replaced."""
DAMAGE = ("UTF-8", "no such column", "has no column", "no such index", "malformed")
"""Fragments of SQLite's operational errors that mean the file is corrupted."""
FEW = 8
"""Number of on-demand files that a thread keeps open at once."""
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_has_inherited = False
"""Whether this process was forked from one that had connections."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retired:
    """A file that is no longer at the store's path, or that has lost its log."""

    connection: Any
    """A connection that can still read it; None when none was open."""
    identity: Identity | None
    has_lost_log: bool
    """Whether only its log was removed."""


def _leave_wal(run: Callable[[str], Any], *, shares_memory: bool) -> None:
    """Use the rollback journal. This is set per connection; only WAL is persistent."""
    if shares_memory:
        run(f"PRAGMA journal_mode = {NETWORK_MODE}")
        return
    # A store made elsewhere may have a log. It can be read here only with exclusive access.
    run("PRAGMA locking_mode = EXCLUSIVE")
    run(f"PRAGMA journal_mode = {NETWORK_MODE}")
    run("PRAGMA locking_mode = NORMAL")


class Database:
    """The store's file and this process's connections to it."""

    def __init__(self, directory: StateDirectory, synchronous: str = "normal") -> None:
        self.directory = directory
        self.synchronous = synchronous
        """``normal`` or ``full``: whether a commit survives a power loss."""
        self.read_only = False
        self.is_on_demand = False
        """Whether it may be closed while others are used. There can be one such file for each
        month, and an open file takes up to three descriptors."""
        self.integrity_error: type[Exception] = sqlite3.IntegrityError
        self.on_replaced: Callable[[], None] | None = None
        """Called before use when the open file or its log is no longer the one at the store's path.

        Without it, existing connections keep using the file that they opened.
        """
        self.version: int | None = None
        """Schema version, as far as this process knows; None while that does not matter."""
        self.on_version: Callable[[int], None] = lambda _version: None
        """Called in a transaction that finds another version. May refuse to write."""
        self.newer_words: Callable[[], str] = str
        """Explanation for a failed statement on a newer version's store; empty for others."""
        self._connections: dict[int, tuple[weakref.ref[threading.Thread], Any]] = {}
        self._identity: Identity | None = None
        """Identity of the file that the connections have open."""
        self._beside: Beside | None = None
        """Identities of the log and the shared memory that they have open; None until known."""
        self._index = -1
        """Descriptor of the shared memory of a store that had an I/O error."""
        self._patience_ms: dict[int, int] = {}
        self._in_transaction: set[int] = set()
        """Threads that are inside `transaction`."""
        self._look_at = 0.0
        self._retired: Retired | None = None
        """The replaced file, until everything needed from it is in the new one."""
        self._mover: int | None = None
        """Thread that is switching to the new file. The others wait for it."""
        _databases.add(self)

    @property
    def path(self) -> Path:
        """The database file."""
        return self.directory.store

    @property
    def log(self) -> Path:
        """The write-ahead log, which receives every commit."""
        return log_of(self.path)

    @cached_property
    def is_shared_by_hosts(self) -> bool:
        """Whether other hosts may write to the store, too."""
        return journal_mode_for(self.directory.root) != "WAL"

    @cached_property
    def _shares_memory(self) -> bool:
        return shares_memory(self.directory.root)

    @property
    def cannot_be_written(self) -> bool:
        """Whether there is a store that the system does not let this process write."""
        try:
            # SQLite keeps its log beside the file.
            can_write = os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
            return not can_write and os.access(self.path, os.R_OK)
        except OSError:
            return False

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
        """Create an empty database file, readable only by its owner, unless there is one."""
        self.directory.create()
        self._set_leftovers_aside()
        try:
            new_private(self.path).close()
        except FileExistsError:
            return
        except OSError as error:
            raise disk_errors.refused(f"the store {self.path}", error, self.path, DOCTOR) from error

    def _set_leftovers_aside(self) -> None:
        """Keep the log of a renamed store from being taken for that of a new one."""
        if not self.path.exists():
            stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6}"
            move_log(self.path, self.path.with_name(f"{self.path.stem}-left-{stamp}.db"))

    @property
    def connection(self) -> Any:
        """The calling thread's own connection, opened on first use.

        A connection shared by threads silently loses writes, and one inherited through a fork can
        corrupt the file. Neither ever happens.
        """
        known = self._own()
        go_on_elsewhere = self.on_replaced
        if go_on_elsewhere is not None and self._shall_look(known) and self.is_out_of_place:
            go_on_elsewhere()
            known = self._own()
        known = known or self._open_own()
        if known.in_transaction and threading.get_ident() not in self._in_transaction:
            # An exception left this transaction open, and others wait for its lock.
            known.execute("ROLLBACK")
        if self._beside is None:
            # Immediately: later it could be a different one.
            self._beside = self._find_beside()
        if self.is_on_demand:
            _on_demand.use(self)
        return known

    def _shall_look(self, known: Any) -> bool:
        """Return whether it is time to check that the open file is still at its path."""
        if self._mover is not None:
            return self._mover != threading.get_ident()
        now = time.monotonic()
        if now < self._look_at or (known is not None and known.in_transaction):
            return False
        self._look_at = now + LOOK_S
        return True

    def be_impatient(self, patience_ms: int) -> None:
        """Limit how long the calling thread waits for other writers.

        Its calls then raise `StoreBusy` earlier, so that it can do something else between two
        attempts.
        """
        self._patience_ms[threading.get_ident()] = patience_ms

    @property
    def _own_patience_ms(self) -> int:
        return self._patience_ms.get(threading.get_ident(), BUSY_TIMEOUT_MS)

    @property
    def is_in_own_transaction(self) -> bool:
        """Whether the calling thread is in a transaction."""
        return threading.get_ident() in self._in_transaction

    def _own(self) -> Any:
        """Return the calling thread's connection; None when it has none yet."""
        known = self._connections.get(threading.get_ident())
        return known[1] if known and known[0]() is threading.current_thread() else None

    def _open_own(self) -> Any:
        if _has_inherited:
            raise ForkedProcess
        self._close_for_ended_threads()
        if not self._connections:
            self._beside = None  # closing the last connection removes both
        try:
            before = identity_of(self.path)
            connection = self._connect()
            is_same = before is not None and identity_of(self.path) == before
        except OSError as error:
            raise disk_errors.refused(f"the store {self.path}", error, self.path, DOCTOR) from error
        if not is_same:
            connection.close()
            raise self._being_replaced
        if self._identity not in (None, before):
            # Without `on_replaced` nothing is carried over: a search index, say, is just rebuilt.
            self._let_go(self._connections)
            self._connections = {}
        self._identity = before
        entry = (weakref.ref(threading.current_thread()), connection)
        self._connections[threading.get_ident()] = entry
        return connection

    def _connect(self) -> Any:
        self.directory.require_own()
        with self.errors():
            # Never create a file: if it is missing, another process has just removed it.
            how = read_options(self.path) if self.cannot_be_written else "mode=rw"
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?{how}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            # The last connection to close has exclusive access while it copies the log.
            run = partial(self._run, connection)
            wait_ms = min(WAIT_MS, self._own_patience_ms)
            run(f"PRAGMA busy_timeout = {wait_ms}")
            if self.is_shared_by_hosts and not self.read_only:
                # Before anything reads the store, which may need its log.
                _leave_wal(run, shares_memory=self._shares_memory)
            run("PRAGMA foreign_keys = ON")
            run(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            run(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            run(f"PRAGMA synchronous = {self.synchronous}")
            # Overwrite deleted content, which otherwise stays in the file and in every backup.
            run("PRAGMA secure_delete = ON")
            if self.read_only:
                run("PRAGMA query_only = ON")
            # A first read opens the log. From then on no other process removes it.
            run("PRAGMA user_version").fetchone()
        return connection

    def _close_for_ended_threads(self) -> None:
        for ident, (thread, _) in list(self._connections.items()):
            owner = thread()
            if owner is None or not owner.is_alive():
                self._let_go({ident: self._connections.pop(ident)})

    def close(self) -> None:
        """Close every connection of this process."""
        connections, self._connections = self._connections, {}
        self._let_go(connections)
        self._identity = self._retired = self._mover = None

    def close_own(self) -> None:
        """Close the calling thread's connection, if it has one."""
        known = self._connections.pop(threading.get_ident(), None)
        if known is not None:
            self._let_go({0: known})

    def _let_go(self, connections: dict[int, tuple[Any, Any]]) -> None:
        """Close connections, unless that would remove files that belong to another database by now.

        The last connection to close removes the log and the shared memory by name. If the open file
        was renamed or removed, those names belong to the file that replaced it, and other processes
        would go on writing to a log that no reader sees.
        """
        has_moved = self._has_moved
        for thread, connection in connections.values():
            if has_moved:
                keep_for_ever(connection)
            elif _may_be_using_it(thread()):
                # Closing it while its thread uses it would crash the interpreter. Nothing else
                # refers to it any more, so it closes by itself when the thread is done with it.
                continue
            else:
                with suppress(sqlite3.Error):
                    connection.close()

    @property
    def is_replaced(self) -> bool:
        """Whether the open file is not the one at the store's path: it was moved or removed.

        False when that cannot be determined.
        """
        return self._retired is not None or self._has_moved

    @property
    def is_out_of_place(self) -> bool:
        """Whether the open file or its log is no longer at its path."""
        return self.is_replaced or self.has_lost_log

    @property
    def _has_moved(self) -> bool:
        try:
            return self._identity not in (None, identity_of(self.path))
        except OSError:
            return False

    @property
    def has_lost_log(self) -> bool:
        """Whether its log or shared memory is not the one that is open: it was removed.

        A process that opens the file from now on does not see what is in the log, and shares no
        lock.
        """
        known = self._beside
        return known is not None and bool(self._connections) and self._find_beside() != known

    def _find_beside(self) -> Beside | None:
        """Return what is beside the file; None until both are there, the known value on errors."""
        if self.read_only or self.is_shared_by_hosts:
            return None
        try:
            found = beside(self.path)
        except OSError:
            return self._beside
        return None if self._beside is None and None in found else found

    def retire(self) -> Retired:
        """Stop writing to the replaced file, and return it.

        The calling thread can then use the file now at the store's path; the others wait for
        `go_on` or `hold`. Raises `StoreBusy` when another thread is in the middle of a long
        transaction.
        """
        connections = [connection for _thread, connection in self._connections.values()]
        if self._retired is None:
            for connection in connections:
                with suppress(sqlite3.Error):
                    connection.execute("PRAGMA query_only = ON")
            _await_end_of_transactions(connections, self.path)
            open_one = connections[0] if connections else None
            is_there = not self._has_moved
            self._retired = Retired(open_one, self._identity, is_there and self.has_lost_log)
        elif not self._has_moved:
            connections = []
        if connections:
            for connection in connections:
                keep_for_ever(connection)
            self._connections, self._identity, self._beside = {}, None, None
        self._mover = threading.get_ident()
        return self._retired

    def go_on(self) -> None:
        """Forget the retired file: its content is in the file at the store's path."""
        self._retired = self._mover = None

    @contextmanager
    def being_replaced(self) -> Iterator[None]:
        """Have the other threads look before each use whether the file is still at its path.

        The calling thread is about to replace the file, and no other may use it afterwards.
        """
        self._mover = threading.get_ident()
        try:
            yield
        finally:
            self._mover = None

    def hold(self) -> None:
        """Keep the retired file until there is another one that can be used."""
        self._mover = None

    def abandon(self) -> bool:
        """Let go of the parent's connections, in a forked child. Return whether there were any.

        They are never used and never closed, not even when the interpreter exits: closing the last
        one removes the log, and with it whatever other processes have written by then.
        """
        connections, self._connections = self._connections, {}
        for _thread, connection in connections.values():
            keep_for_ever(connection)
        if self._retired is not None and self._retired.connection is not None:
            keep_for_ever(self._retired.connection)
        self._identity = self._retired = self._mover = None
        return bool(connections)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run one statement, committed immediately when outside a transaction."""
        with self.errors():
            return self._run(self.connection, sql, parameters)

    def write(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run one statement that changes something, in a transaction of its own unless in one."""
        with self.transaction() as connection:
            return self._run(connection, sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of one query."""
        with self.errors():
            return list(self._run(self.connection, sql, parameters).fetchall())

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Return the first row of one query, or None."""
        with self.errors():
            return self._run(self.connection, sql, parameters).fetchone()

    def _run(self, connection: Any, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run one statement. Wait while others write, unless the stop button is pressed."""
        until = time.monotonic() + self._own_patience_ms / 1000
        while True:
            try:
                return connection.execute(sql, parameters)
            except sqlite3.OperationalError as error:
                is_locked = "locked" in str(error) and not connection.in_transaction
                if not is_locked or time.monotonic() >= until:
                    raise
            let_through()

    def _begin(self, connection: Any, begin: str, lock: str) -> None:
        """Begin a transaction. Wait while others write, as a single statement does.

        When `lock` is given, the transaction starts with it, and is restarted as a whole if that
        fails: anything read before the wait would be stale, so that nothing could be written.
        """
        until = time.monotonic() + self._own_patience_ms / 1000
        while True:
            try:
                connection.execute(begin)
                if lock:
                    connection.execute(lock)
                return
            except sqlite3.OperationalError as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if "locked" not in str(error) or time.monotonic() >= until:
                    raise
            let_through()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE", lock: str = "") -> Iterator[Any]:
        """Run a transaction that holds the write lock from its start.

        A deferred transaction that reads before it writes fails at once when another writer came
        between, whatever the busy timeout. So its first statement is `lock`, which writes to what
        it is to lock. Nothing is raised from outside between its start and its end: an exception
        there would keep the lock from all other programs. A nested transaction is part of the outer
        one.
        """
        connection, here = self.connection, threading.get_ident()
        if here in self._in_transaction:
            yield connection
            return
        with HeldBack(), self.errors():
            try:
                self._in_transaction.add(here)
                self._begin(connection, begin, lock)
                self._check_version(connection)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction.discard(here)

    def _check_version(self, connection: Any) -> None:
        """Check, while holding the lock, whether another process has migrated the schema."""
        if self.version is not None:
            (now,) = connection.execute("PRAGMA user_version").fetchone()
            if now != self.version:
                self.on_version(now)

    def copy(self, connection: Any, target: Path) -> None:
        """Copy what a connection sees through SQLite's backup API, while others write."""
        destination = sqlite3.connect(target)
        try:
            with self.errors():
                connection.backup(destination)
        finally:
            destination.close()

    def restore_from(self, source: Path) -> None:
        """Replace the whole content with that of another database file."""
        origin = sqlite3.connect(source)
        try:
            with self.errors():
                origin.backup(self.connection)
        finally:
            origin.close()

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the store, as far as readers currently allow.

        The log restarts only when all of it was copied. While several processes write without a
        pause, there is always more by then. So once the log is long, the rest is copied while
        holding the lock.
        """
        _busy, pages, _copied = self.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > LONG_LOG_PAGES:
            self._checkpoint_alone("RESTART")

    def cut_log(self) -> None:
        """Empty the write-ahead log, which still contains deleted content.

        If others read or write without a pause, this is left to them: the log restarts once all of
        it has reached the store.
        """
        self._checkpoint_alone("TRUNCATE")

    def _checkpoint_alone(self, mode: str) -> None:
        """Copy all of the log while no other connection writes. Give up after a moment."""
        self.execute(f"PRAGMA busy_timeout = {CUT_TIMEOUT_MS}")
        try:
            self.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        finally:
            wait_ms = min(WAIT_MS, self._own_patience_ms)
            self.execute(f"PRAGMA busy_timeout = {wait_ms}")

    @property
    def data_version(self) -> int:
        """A number that changes when another connection has committed. Read in microseconds."""
        return int(self.row("PRAGMA data_version")[0])

    @property
    def change_mark(self) -> tuple[int, int]:
        """A value that changes on every commit, the calling thread's own included. As fast."""
        return self.data_version, int(self.connection.total_changes)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ones that name the store and say what to do."""
        try:
            yield
        except OSError as error:
            if not disk_errors.has_words(error):
                raise
            what = error.filename or f"beside the store {self.path}"
            raise disk_errors.refused(what, error, self.path.parent) from error
        except UnicodeDecodeError as error:
            # From SQLite's own message, which quotes corrupted content.
            raise self.damaged("a text is not UTF-8") from error
        except sqlite3.OperationalError as error:
            if "disk I/O error" in str(error) and self._is_log_cut():
                raise self.damaged("its log was cut", has_lost_log=True) from error
            if any(words in str(error) for words in DAMAGE):
                raise self.damaged(str(error)) from error
            raise in_words(self.path, str(error)) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise self.damaged(str(error)) from error

    def damaged(self, why: str, *, has_lost_log: bool = False) -> StoreError:
        """Leave a mark for the next process that opens the store, and return the error to raise.

        Data that a newer version wrote, and this one cannot read, is not damage. Neither is an
        error in a file that was repaired meanwhile, and is no longer at the store's path.
        """
        newer = self.newer_words()
        if newer:
            return StoreNewer(f"{newer} ({why})")
        if self._own() is not None and self._has_moved:
            return self._being_replaced
        with suppress(OSError):
            self.leave_mark(has_lost_log=has_lost_log)
        return StoreDamaged(
            f"the store {self.path} is damaged ({why}); the next command, %bg_list, sets it "
            "aside and saves what can be read"
        )

    @property
    def _being_replaced(self) -> StoreBusy:
        return StoreBusy(f"the store {self.path} is just being replaced; try again")

    def _is_log_cut(self) -> bool:
        """Return whether the log is shorter than its index says."""
        try:
            if self._index < 0:
                # Never closed: closing it would drop this process's locks on the file.
                self._index = os.open(shared_memory_of(self.path), os.O_RDONLY)
            return is_log_cut(self.path, os.pread(self._index, INDEX_HEAD_BYTES, 0))
        except OSError:
            return False

    def leave_mark(self, *, has_lost_log: bool = False) -> None:
        """Have the next process that opens the store repair it, or wait for that. Raises `OSError`.

        `has_lost_log` says that the store's file may look intact without being so.
        """
        with open(open_private(self.directory.damage_mark, os.O_WRONLY), "wb") as mark:
            mark.write(LOST_LOG if has_lost_log else b"")

    def record(self, make: Callable[..., T], *given: Any) -> T:
        """Return what `make` makes of a row. Raise `StoreDamaged` for a row that makes no sense."""
        try:
            return make(*given)
        except (ValueError, TypeError, OverflowError, OSError, AssertionError) as error:
            raise self.damaged(f"a row makes no sense: {error}") from error


class CommitWatch:
    """Whether anyone else has committed since the last look."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: int | None = None

    def has_news(self) -> bool:
        """Look once more. Each thread needs a watch of its own. Raises `StoreError`."""
        version = self._database.data_version
        is_new, self._seen = version != self._seen, version
        return is_new

    def forget(self) -> None:
        """Have news at the next look in any case."""
        self._seen = None


def _abandon_all() -> None:
    """Never use SQLite again in this forked child, if the parent has connections.

    SQLite keeps a list of the locks that a process holds on a file. A fork copies that list, but
    not the locks themselves. So even a connection of the child's own would take none, and another
    process could overwrite the log under it.
    """
    global _has_inherited
    for database in list(_databases):
        _has_inherited |= database.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


SQLITE_VERSION: str = sqlite3.sqlite_version


class _OnDemand(threading.local):
    """The on-demand files that the calling thread has open, the most recently used last."""

    def __init__(self) -> None:
        self._open: dict[Database, None] = {}

    def use(self, database: Database) -> None:
        """Note that a file is used, and close the least recently used ones."""
        self._open.pop(database, None)
        self._open[database] = None
        for other in list(self._open)[:-FEW]:
            if not other.is_in_own_transaction:
                del self._open[other]
                other.close_own()


_on_demand = _OnDemand()


def _may_be_using_it(thread: threading.Thread | None) -> bool:
    """Return whether another live thread has the connection."""
    return thread is not None and thread is not threading.current_thread() and thread.is_alive()


def keep_for_ever(connection: Any) -> None:
    """Keep a connection from ever being closed, even when the interpreter exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


@atexit.register
def _spare_what_is_not_ours() -> None:
    """Keep the interpreter's exit from closing connections, which may remove another file's log."""
    for database in list(_databases):
        if database.is_replaced:
            database.close()


def _await_end_of_transactions(connections: Sequence[Any], path: Path) -> None:
    deadline = time.monotonic() + IN_FLIGHT_S
    while any(connection.in_transaction for connection in connections):
        if time.monotonic() > deadline:
            raise StoreBusy(f"the store {path} was replaced while it was being written; try again")
        time.sleep(LOCK_POLL_S)


def storable(text: str | None) -> str | None:
    """Return the text as SQLite can store it, with lone surrogates escaped."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
