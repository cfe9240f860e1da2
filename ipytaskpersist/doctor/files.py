"""Checks of the state directory, the store, its archives and its backups as files."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.ownership import is_open_to_others
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import OTHER_FOLDER, is_open, is_own, why_not_closed
from ipytaskpersist.doctor.findings import (
    WARNING,
    Examined,
    Finding,
    broken,
    ok,
    warning,
)
from ipytaskpersist.errors import StoreBusy, StoreError
from ipytaskpersist.store import problems
from ipytaskpersist.store.examination import ExaminedStore
from ipytaskpersist.store.file.file_systems import against_wal, mount_of
from ipytaskpersist.store.file.repair import SUFFIXES, backups
from ipytaskpersist.store.file.sqlite_errors import is_too_long, too_long
from ipytaskpersist.text import formatting

LITTLE_ROOM_BYTES = 500_000_000

NO_ROOM_BYTES = 20_000_000

TIGHT_BYTES = 1_000_000
"""Room below the limit on file size that counts as too little."""

LONGEST = "backups/.tasks-20240131-235959-2-before-migration-from-12.db.0123abcd.part"
"""The longest name of a file that SQLite opens in the state directory."""

BIG_STORE_BYTES = 250_000_000
"""Size from which a store without a backup is worth a note."""

STALE_S = 3600.0
"""Age from which an unfinished file is no longer being written."""

RECENT_S = 24 * 3600.0


def check_state_directory(examined: Examined) -> Iterator[Finding]:
    """Check that the state directory exists and is usable."""
    directory = examined.directory
    root = directory.root
    if is_too_long(directory.store):
        yield _in_two(too_long(directory.store))
    elif is_too_long(root / LONGEST):
        yield replace(_in_two(too_long(root / LONGEST)), level=WARNING)
    elif not os.path.lexists(root):
        yield _missing(examined)
    elif not root.is_dir():
        yield broken(f"{root} is not a directory", "set IPYTASKPERSIST_DIR to one")
    elif not is_own(root):
        yield broken(
            f"{root} belongs to another user", "set IPYTASKPERSIST_DIR to a folder of your own"
        )
    else:
        yield _usable(examined)


def _missing(examined: Examined) -> Finding:
    """Check whether it can be created in the nearest existing folder above it."""
    root = examined.directory.root
    above = disk_errors.nearest_folder(root)
    in_the_way = above / root.relative_to(above).parts[0]
    if os.path.lexists(in_the_way):
        return broken(
            f"{root} cannot be made: {in_the_way} is not a directory", "set IPYTASKPERSIST_DIR"
        )
    if examined.refusal is not None:
        words = disk_errors.in_words(examined.refusal, above, OTHER_FOLDER)
        return _in_two(f"{root} cannot be made in {above}: {words}")
    return ok(f"{root} does not exist yet: the first task makes it")


def _usable(examined: Examined) -> Finding:
    """Check an existing directory of the user's own."""
    root = examined.directory.root
    refusal = examined.refusal
    if _is_shared(root):
        return _in_two(why_not_closed(root))
    if refusal is None and os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return ok(str(root))
    if refusal is None or not disk_errors.has_words(refusal):
        return broken(f"{root} cannot be read and written", f"chmod 700 {root}")
    return _in_two(f"nothing can be written in {root}: {disk_errors.in_words(refusal, root)}")


def _is_shared(root: Path) -> bool:
    """Return whether others use a folder, so that it cannot be a state directory."""
    return is_open(root) and os.access(root, os.R_OK) and bool(why_not_closed(root))


def _in_two(words: str) -> Finding:
    """Return a finding for a failure, from a message with its advice after a semicolon."""
    message, _, advice = words.partition("; ")
    return broken(message, advice)


def check_file_system(examined: Examined) -> Iterator[Finding]:
    """Name the file system, and its consequence for the journal."""
    root = disk_errors.nearest_folder(examined.directory.root)
    mount = mount_of(root)
    place = f"{mount.kind}, mounted on {mount.point}" if mount is not None else "unknown"
    against = against_wal(root)
    if against:
        risk = "and only as safe as its locks" if "network" in against else "but as safe"
        yield warning(
            f"{place}: {against}, so the store uses the rollback journal, slower {risk}",
            "set IPYTASKPERSIST_DIR to a folder on a local disk if you can",
        )
    else:
        free = formatting.size(shutil.disk_usage(root).free)
        yield ok(f"{place}, with {free} free; its processes share memory, so the journal is WAL")


def check_room(examined: Examined) -> Iterator[Finding]:
    """Check how much room is left."""
    root = disk_errors.nearest_folder(examined.directory.root)
    free = shutil.disk_usage(root).free
    limit = disk_errors.file_size_limit()
    if limit is not None:
        yield _file_size(limit, size_of(examined.directory))
    if free < LITTLE_ROOM_BYTES:
        make = broken if free < NO_ROOM_BYTES else warning
        yield make(
            f"only {formatting.size(free)} are free where the store is",
            "make room, or set max_store_bytes (%bg_config max_store_bytes); %bg_delete removes "
            "tasks for good",
        )


def _file_size(limit: int, size: int) -> Finding:
    """Report a limit on the size of files of this process."""
    make = broken if limit < size + TIGHT_BYTES else warning
    return make(
        f"a file of this process may have no more than {formatting.size(limit)} (ulimit -f), "
        f"and the store has {formatting.size(size)}",
        "type 'ulimit -f unlimited' before you start Jupyter",
    )


def check_permissions(examined: Examined) -> Iterator[Finding]:
    """Check that only its owner can read the store."""
    root = examined.directory.root
    if not hasattr(os, "getuid") or not root.is_dir() or _is_shared(root):
        return
    shared, foreign = [], []
    for path in _private_paths(examined.directory):
        status = path.lstat()
        if stat.S_IMODE(status.st_mode) & 0o077 and not stat.S_ISLNK(status.st_mode):
            shared.append(path)
        if status.st_uid != os.getuid():
            foreign.append(path)
    if shared:
        yield warning(
            f"others may enter or read {names(shared)}",
            f"chmod -R go= {root}",
        )
    if foreign:
        yield warning(
            f"{names(foreign)} belongs to another user, so it may not be writable",
            f"chown -R {os.getuid()} {root}, as an administrator",
        )
    if not shared and not foreign:
        yield ok("only you can read what is stored")


def check_folders_above(examined: Examined) -> Iterator[Finding]:
    """Check that no other user can replace the folders above."""
    if not hasattr(os, "getuid"):
        return
    open_ones = [each for each in examined.directory.root.parents if _is_open(each)]
    if open_ones:
        yield warning(
            f"other users can put another folder in the place of yours: {open_ones[0]} is theirs, "
            "or they may write to it",
            "set IPYTASKPERSIST_DIR to a folder below your home",
        )


def _is_open(folder: Path) -> bool:
    """Return whether others could rename the contents of a folder."""
    try:
        return is_open_to_others(folder)
    except OSError:
        return False


def _private_paths(directory: StateDirectory) -> Iterator[Path]:
    yield directory.root
    for folder in (directory.root, directory.archives, directory.backups):
        if folder.is_dir():
            yield from folder.iterdir()


def names(paths: Sequence[Path]) -> str:
    """Name the first few paths, and the number of the others."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(path.name for path in paths[:3]) + more


def check_store(examined: Examined) -> Iterator[Finding]:
    """Check that the store can be opened, its schema and its size."""
    directory, store = examined.directory, examined.store
    if directory.damage_mark.exists():
        yield broken(
            "SQLite has found the store damaged",
            "the next command, %bg_list, sets it aside and saves what can be read",
        )
    if not store.exists:
        yield ok("nothing is stored yet")
    elif not directory.store.is_file():
        yield broken(f"{directory.store} is not a file", "move it away")
    elif not os.access(directory.store, os.R_OK | os.W_OK) and examined.refusal is None:
        yield broken(f"{directory.store} cannot be written", f"chmod 600 {directory.store}")
    else:
        yield _schema(examined, store)


def _schema(examined: Examined, store: ExaminedStore) -> Finding:
    found, expected = store.file.schema_version, store.expected_schema_version
    if found > expected:
        return warning(
            f"a newer version of ipytaskpersist wrote it (schema {found}, this one knows "
            f"{expected}), so {_kept_from(store)}",
            "pip install -U ipytaskpersist",
        )
    size = formatting.size(size_of(examined.directory))
    if found < expected:
        return ok(f"{size}, schema {found}: the next use brings it to {expected}, after a backup")
    return ok(f"{size}, schema {found}")


def _kept_from(store: ExaminedStore) -> str:
    is_written = store.file.may_be_written
    return "this one moves and deletes no tasks" if is_written else "it is only read"


def size_of(directory: StateDirectory) -> int:
    """Return the size of a store, including SQLite's files beside it."""
    files = [Path(f"{directory.store}{suffix}") for suffix in SUFFIXES]
    return sum(file.stat().st_size for file in files if file.exists())


def how_to_repair(directory: StateDirectory) -> str:
    """Return the advice for a damaged store."""
    return (
        f"'touch {directory.damage_mark}', then %bg_list sets it aside and saves what can be read"
    )


def check_archives(examined: Examined) -> Iterator[Finding]:
    """Check each archive."""
    months = examined.directory.months()
    total = 0
    for month in months:
        directory = examined.directory.archive(month)
        total += size_of(directory)
        yield from _archive(directory)
    if months:
        yield ok(f"{formatting.counted(len(months), 'month')}, {formatting.size(total)}")


def _archive(directory: StateDirectory) -> Iterator[Finding]:
    archive = ExaminedStore(directory)
    try:
        if archive.file.schema_version > archive.expected_schema_version:
            yield warning(
                f"a newer version of ipytaskpersist wrote {directory.file}, so "
                f"{_kept_from(archive)}",
                "pip install -U ipytaskpersist",
            )
        damage = archive.file.damage()
    except StoreBusy as error:
        yield warning(str(error), "wait until it is free")
        return
    except StoreError as error:
        damage = [str(error)]
    finally:
        archive.close()
    if damage:
        yield broken(f"{directory.file} is damaged: {damage[0]}", how_to_repair(directory))


def check_backups(examined: Examined) -> Iterator[Finding]:
    """Check each backup."""
    found = backups(examined.directory)
    size = size_of(examined.directory)
    if found:
        newest = found[0]
        age = formatting.age(time.time() - newest.stat().st_mtime)
        damage = _damage_of_backup(newest)
        if damage:
            yield warning(
                f"the newest, {newest.name}, is damaged: {damage[0]}", "%bg_backup makes another"
            )
        else:
            yield ok(
                f"the newest is {newest.name}, {age}, {formatting.size(newest.stat().st_size)}"
            )
    elif size > BIG_STORE_BYTES:
        yield warning(f"none of a store of {formatting.size(size)}", "%bg_backup makes one")
    else:
        yield ok("none")


def _damage_of_backup(file: Path) -> list[str]:
    copy = ExaminedStore(StateDirectory(file.parent, file.name))
    try:
        return copy.file.damage()
    except StoreError as error:
        return [str(error)]
    finally:
        copy.close()


def check_leftover_files(examined: Examined) -> Iterator[Finding]:
    """Name files left by unfinished work, and stores that were set aside."""
    directory = examined.directory
    folders = (directory.root, directory.archives, directory.backups, directory.payloads)
    stale_before = time.time() - STALE_S
    partial = [file for folder in folders for file in folder.glob(".*.part")]
    stale = [file for file in partial if file.stat().st_mtime < stale_before]
    if stale:
        size = formatting.size(sum(file.stat().st_size for file in stale))
        yield warning(
            f"{formatting.counted(len(stale), 'unfinished file')}, {size}: {names(stale)}",
            f"rm {' '.join(map(str, stale[:3]))}" + (" …" if len(stale) > 3 else ""),
        )
    for aside in sorted(directory.root.rglob("*-damaged-*.db")):
        size = formatting.size(aside.stat().st_size)
        yield ok(
            f"{aside} is a damaged store that was set aside ({size}); "
            "delete it when you miss nothing"
        )


def check_problems(examined: Examined) -> Iterator[Finding]:
    """Report the recorded problems."""
    found = problems.recorded(examined.directory)
    if not found:
        yield ok("the store has had none")
        return
    last = found[-1]
    silent_s = (examined.now - last.at).total_seconds()
    count, age = formatting.counted(len(found), "problem"), formatting.age(silent_s)
    text = f"{count} on record, the last {age}: {last.message}"
    if silent_s < RECENT_S:
        yield warning(text, f"all are in {examined.directory.problems}")
    else:
        yield ok(text)


def locked(examined: Examined, message: str) -> Finding:
    """The finding that another program has the store locked."""
    holders = holding(examined.directory)
    who = f" ({', '.join(f'process {pid}' for pid in holders)})" if holders else ""
    return warning(
        f"{message}{who}", "wait for it, or end it; what tasks print is kept in memory meanwhile"
    )


def holding(directory: StateDirectory) -> list[int]:
    """Return the processes that hold a write lock on the store, if the system reveals them."""
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii")
        inodes = {str(Path(f"{directory.store}{suffix}").stat().st_ino) for suffix in ("", "-shm")}
    except (OSError, ValueError):
        return []
    fields = [line.split() for line in locks.splitlines()]
    return sorted(
        {
            int(each[4])
            for each in fields
            if len(each) > 5 and each[3] == "WRITE" and each[5].rpartition(":")[2] in inodes
        }
        - {os.getpid()}
    )
