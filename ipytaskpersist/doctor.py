"""What is well and what is not: each check looks at one thing, changes nothing, and says so.

A new check is a function in `CHECKS`, or in `CONTENT_CHECKS` when it needs a readable store.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ipytaskpersist import disks, leftovers, liveness, problems, processes
from ipytaskpersist.errors import StoreBusy, StoreDamaged, StoreError
from ipytaskpersist.leftovers import Mark
from ipytaskpersist.ownership import is_open_to_others
from ipytaskpersist.paths import OTHER_FOLDER, StateDirectory, is_open, is_own, why_not_closed
from ipytaskpersist.records import SessionRecord, SupervisorRecord, TaskState
from ipytaskpersist.safetext import legible
from ipytaskpersist.store import SQLITE_VERSION, Selection
from ipytaskpersist.store.aside import kept_elsewhere
from ipytaskpersist.store.examination import ExaminedStore
from ipytaskpersist.store.filesystems import against_wal, journal_mode_for, mount_of
from ipytaskpersist.store.repair import SUFFIXES, backups
from ipytaskpersist.store.words import is_too_long, too_long

OK, WARNING, BROKEN = "ok", "warning", "broken"
LEVELS = (OK, WARNING, BROKEN)
"""From the least to the worst. The place of the worst finding is the exit status."""
GLYPHS = {OK: "✓", WARNING: "!", BROKEN: "✕"}

LITTLE_ROOM_BYTES = 500_000_000
NO_ROOM_BYTES = 20_000_000
TIGHT_BYTES = 1_000_000
"""From how little room below the limit on the size of a file on it is in the way."""
LONGEST = "backups/.tasks-20240131-235959-2-before-migration-from-12.db.0123abcd.part"
"""A file that SQLite opens in the state directory, and none has a longer name."""
BIG_STORE_BYTES = 250_000_000
"""From what size on a store without a backup deserves a word."""
STUCK_S = 60.0
"""After how long without a heartbeat a supervisor that has tasks is stuck: it sends four in it."""
STALE_S = 3600.0
"""After how long an unfinished file is not in the making any more."""
RECENT_S = 24 * 3600.0
PACKAGES = ("ipytaskpersist", "ipython", "ipykernel", "sqlite-utils")
LIVE = (TaskState.PENDING, TaskState.RUNNING)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found."""

    check: str
    """The name of the check."""
    level: str
    """``ok``, ``warning``: something may go wrong, or ``broken``: something does not work."""
    message: str
    advice: str = ""
    """What to do; empty when nothing is to be done."""

    def as_json(self) -> dict[str, str]:
        """The document of `doctor --json`."""
        return {
            "check": self.check,
            "level": self.level,
            "message": self.message,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class Examined:
    """What is examined."""

    directory: StateDirectory
    store: ExaminedStore
    own_session: str
    """The session that asks, which is alive."""
    setting_problems: Sequence[str]
    now: datetime
    refusal: OSError | None
    """What the system says when something is written there, or in the folder that is to hold it."""


Check = Callable[[Examined], Iterator[Finding]]


def _ok(message: str) -> Finding:
    return Finding("", OK, message)


def _warning(message: str, advice: str) -> Finding:
    return Finding("", WARNING, message, advice)


def _broken(message: str, advice: str) -> Finding:
    return Finding("", BROKEN, message, advice)


def examine(
    directory: StateDirectory, own_session: str = "", setting_problems: Sequence[str] = ()
) -> list[Finding]:
    """Run every check. One that fails is a finding too; nothing is raised and nothing changed."""
    store = ExaminedStore(directory)
    refusal = disks.trial(disks.nearest_folder(directory.root))
    now = datetime.now(UTC)
    examined = Examined(directory, store, own_session, setting_problems, now, refusal)
    try:
        findings = [finding for check in CHECKS for finding in _run(check, examined)]
        if store.is_readable:
            findings.extend(each for check in CONTENT_CHECKS for each in _run(check, examined))
    finally:
        store.close()
    return findings


def _run(check: Check, examined: Examined) -> list[Finding]:
    name = check.__name__.strip("_").replace("_", " ")
    try:
        found = list(check(examined))
    except StoreDamaged as error:
        found = [_broken(str(error), _how_to_repair(examined.directory))]
    except StoreBusy as error:
        found = [_locked(examined, str(error))]
    except (StoreError, OSError) as error:
        found = [_broken(str(error), "see what the other lines say of the state directory")]
    except Exception as error:  # a mistake in one check must not hide what the others find
        text = f"could not be checked ({type(error).__name__}: {error})"
        found = [_warning(text, "please report this, with what %bg_doctor --json says")]
    return [replace(finding, check=name) for finding in found]


def worst(findings: Iterable[Finding]) -> str:
    """The worst level among findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default=OK)


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for a person: a line each, what to do below it, and at last the sum."""
    lines = []
    for finding in findings:
        lines.append(f"{GLYPHS[finding.level]} {finding.check}: {finding.message}")
        if finding.advice:
            lines.append(f"    {finding.advice}")
    return "\n".join([*lines, "", _sum(findings)])


def _sum(findings: Sequence[Finding]) -> str:
    counts = {level: sum(each.level == level for each in findings) for level in LEVELS}
    warnings = _count(counts[WARNING], "warning")
    if counts[BROKEN]:
        return f"{counts[BROKEN]} broken, {warnings}"
    return warnings if counts[WARNING] else "all is well"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if size_bytes < 1000 * factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes / 1e9:,.1f} GB"


def _age(seconds: float) -> str:
    for unit, factor in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= factor:
            return f"{_count(int(seconds / factor), unit)} ago"
    return "just now"


# The programs.


def _versions(_examined: Examined) -> Iterator[Finding]:
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, number in found.items() if not number]
    if missing:
        yield _broken(f"{', '.join(missing)} not installed", f"pip install {' '.join(missing)}")
    there = [f"{name} {number}" for name, number in found.items() if number]
    yield _ok(", ".join([*there, f"Python {platform.python_version()}"]))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def _sqlite(_examined: Examined) -> Iterator[Finding]:
    if (3, 7, 0) <= _numbers(SQLITE_VERSION) < (3, 51, 3):
        yield _warning(
            f"SQLite {SQLITE_VERSION} has the WAL-reset bug: two programs that write at the same "
            "moment can, very rarely, damage the store (https://sqlite.org/wal.html#walresetbug)",
            "'pip install pysqlite3' brings one without it where there is a wheel; else use a "
            "Python with SQLite 3.51.3 or later, and %bg_backup now and then",
        )
    else:
        yield _ok(f"SQLite {SQLITE_VERSION}")


def _widgets(_examined: Examined) -> Iterator[Finding]:
    number = _version("ipykernel")
    if not number:
        return
    if (7, 1) <= _numbers(number) < (7, 4):
        yield _ok(f"ipykernel {number} answers buttons also while a cell runs")
    elif _numbers(number) < (7, 1):
        yield _ok(
            f"ipykernel {number} answers buttons when the running cell has ended; "
            "jupyter bg cancel does not wait for that"
        )
    elif _numbers(number) == (7, 4, 0):
        yield _ok(
            f"ipykernel {number} answers buttons when the running cell has ended, because it "
            "replies where the button was made (7.1 to 7.3 answer at once); jupyter bg cancel "
            "does not wait for that"
        )
    else:
        yield _ok(f"ipykernel {number}; nothing special is known of it")


def _settings(examined: Examined) -> Iterator[Finding]:
    for problem in examined.setting_problems:
        yield _warning(problem, "it was left out; correct it, then %reload_ext ipytaskpersist")
    if not examined.setting_problems:
        yield _ok("all make sense; %bg_config shows them")


# The state directory.


def _state_directory(examined: Examined) -> Iterator[Finding]:
    directory = examined.directory
    root = directory.root
    if is_too_long(directory.store):
        yield _in_two(too_long(directory.store))
    elif is_too_long(root / LONGEST):
        yield replace(_in_two(too_long(root / LONGEST)), level=WARNING)
    elif not os.path.lexists(root):
        yield _missing(examined)
    elif not root.is_dir():
        yield _broken(f"{root} is not a directory", "set IPYTASKPERSIST_DIR to one")
    elif not is_own(root):
        yield _broken(
            f"{root} belongs to another user", "set IPYTASKPERSIST_DIR to a folder of your own"
        )
    else:
        yield _usable(examined)


def _missing(examined: Examined) -> Finding:
    """Of a directory that is to be made, in the nearest folder above it that is there."""
    root = examined.directory.root
    above = disks.nearest_folder(root)
    in_the_way = above / root.relative_to(above).parts[0]
    if os.path.lexists(in_the_way):
        return _broken(
            f"{root} cannot be made: {in_the_way} is not a directory", "set IPYTASKPERSIST_DIR"
        )
    if examined.refusal is not None:
        words = disks.in_words(examined.refusal, above, OTHER_FOLDER)
        return _in_two(f"{root} cannot be made in {above}: {words}")
    return _ok(f"{root} does not exist yet: the first task makes it")


def _usable(examined: Examined) -> Finding:
    """Of a directory that is there and one's own."""
    root = examined.directory.root
    refusal = examined.refusal
    if _is_shared(root):
        return _in_two(why_not_closed(root))
    if refusal is None and os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return _ok(str(root))
    if refusal is None or not disks.has_words(refusal):
        return _broken(f"{root} cannot be read and written", f"chmod 700 {root}")
    return _in_two(f"nothing can be written in {root}: {disks.in_words(refusal, root)}")


def _is_shared(root: Path) -> bool:
    """Whether others use a folder, so that it can be no state directory."""
    return is_open(root) and os.access(root, os.R_OK) and bool(why_not_closed(root))


def _in_two(words: str) -> Finding:
    """Something that does not work, of words that say after a semicolon what to do."""
    message, _, advice = words.partition("; ")
    return _broken(message, advice)


def _file_system(examined: Examined) -> Iterator[Finding]:
    root = disks.nearest_folder(examined.directory.root)
    mount = mount_of(root)
    place = f"{mount.kind}, mounted on {mount.point}" if mount is not None else "unknown"
    against = against_wal(root)
    if against:
        risk = "and only as safe as its locks" if "network" in against else "but as safe"
        yield _warning(
            f"{place}: {against}, so the store uses the rollback journal, slower {risk}",
            "set IPYTASKPERSIST_DIR to a folder on a local disk if you can",
        )
    else:
        free = _size(shutil.disk_usage(root).free)
        yield _ok(f"{place}, with {free} free; its processes share memory, so the journal is WAL")


def _room(examined: Examined) -> Iterator[Finding]:
    root = disks.nearest_folder(examined.directory.root)
    free = shutil.disk_usage(root).free
    limit = disks.file_size_limit()
    if limit is not None:
        yield _file_size(limit, _size_of(examined.directory))
    if free < LITTLE_ROOM_BYTES:
        make = _broken if free < NO_ROOM_BYTES else _warning
        yield make(
            f"only {_size(free)} are free where the store is",
            "make room, or set max_store_bytes (%bg_config max_store_bytes); %bg_delete removes "
            "tasks for good",
        )


def _file_size(limit: int, size: int) -> Finding:
    """Of a limit on how large a file of this process may be."""
    make = _broken if limit < size + TIGHT_BYTES else _warning
    return make(
        f"a file of this process may have no more than {_size(limit)} (ulimit -f), and the store "
        f"has {_size(size)}",
        "type 'ulimit -f unlimited' before you start Jupyter",
    )


def _permissions(examined: Examined) -> Iterator[Finding]:
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
        yield _warning(
            f"others may enter or read {_names(shared)}",
            f"chmod -R go= {root}",
        )
    if foreign:
        yield _warning(
            f"{_names(foreign)} belongs to another user, so it may not be writable",
            f"chown -R {os.getuid()} {root}, as an administrator",
        )
    if not shared and not foreign:
        yield _ok("only you can read what is stored")


def _folders_above(examined: Examined) -> Iterator[Finding]:
    if not hasattr(os, "getuid"):
        return
    open_ones = [each for each in examined.directory.root.parents if _is_open(each)]
    if open_ones:
        yield _warning(
            f"other users can put another folder in the place of yours: {open_ones[0]} is theirs, "
            "or they may write to it",
            "set IPYTASKPERSIST_DIR to a folder below your home",
        )


def _is_open(folder: Path) -> bool:
    """Whether others could rename what is in a folder."""
    try:
        return is_open_to_others(folder)
    except OSError:
        return False


def _private_paths(directory: StateDirectory) -> Iterator[Path]:
    yield directory.root
    for folder in (directory.root, directory.archives, directory.backups):
        if folder.is_dir():
            yield from folder.iterdir()


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(path.name for path in paths[:3]) + more


# Files.


def _store(examined: Examined) -> Iterator[Finding]:
    directory, store = examined.directory, examined.store
    if directory.damage_mark.exists():
        yield _broken(
            "SQLite has found the store damaged",
            "the next command, %bg_list, sets it aside and saves what can be read",
        )
    if not store.exists:
        yield _ok("nothing is stored yet")
    elif not directory.store.is_file():
        yield _broken(f"{directory.store} is not a file", "move it away")
    elif not os.access(directory.store, os.R_OK | os.W_OK) and examined.refusal is None:
        yield _broken(f"{directory.store} cannot be written", f"chmod 600 {directory.store}")
    else:
        yield _schema(examined, store)


def _schema(examined: Examined, store: ExaminedStore) -> Finding:
    found, expected = store.look.schema_version, store.expected_schema_version
    if found > expected:
        return _warning(
            f"a newer version of ipytaskpersist wrote it (schema {found}, this one knows "
            f"{expected}), so {_kept_from(store)}",
            "pip install -U ipytaskpersist",
        )
    size = _size(_size_of(examined.directory))
    if found < expected:
        return _ok(f"{size}, schema {found}: the next use brings it to {expected}, after a backup")
    return _ok(f"{size}, schema {found}")


def _kept_from(store: ExaminedStore) -> str:
    is_written = store.look.may_be_written
    return "this one moves and deletes no tasks" if is_written else "it is only read"


def _size_of(directory: StateDirectory) -> int:
    """How large a store is, with SQLite's files beside it."""
    files = [Path(f"{directory.store}{suffix}") for suffix in SUFFIXES]
    return sum(file.stat().st_size for file in files if file.exists())


def _how_to_repair(directory: StateDirectory) -> str:
    return (
        f"'touch {directory.damage_mark}', then %bg_list sets it aside and saves what can be read"
    )


def _archives(examined: Examined) -> Iterator[Finding]:
    months = examined.directory.months()
    total = 0
    for month in months:
        directory = examined.directory.archive(month)
        total += _size_of(directory)
        yield from _archive(directory)
    if months:
        yield _ok(f"{_count(len(months), 'month')}, {_size(total)}")


def _archive(directory: StateDirectory) -> Iterator[Finding]:
    archive = ExaminedStore(directory)
    try:
        if archive.look.schema_version > archive.expected_schema_version:
            yield _warning(
                f"a newer version of ipytaskpersist wrote {directory.file}, so "
                f"{_kept_from(archive)}",
                "pip install -U ipytaskpersist",
            )
        damage = archive.look.damage()
    except StoreBusy as error:
        yield _warning(str(error), "wait until it is free")
        return
    except StoreError as error:
        damage = [str(error)]
    finally:
        archive.close()
    if damage:
        yield _broken(f"{directory.file} is damaged: {damage[0]}", _how_to_repair(directory))


def _backups(examined: Examined) -> Iterator[Finding]:
    found = backups(examined.directory)
    size = _size_of(examined.directory)
    if found:
        newest = found[0]
        age = _age(time.time() - newest.stat().st_mtime)
        damage = _damage_of_backup(newest)
        if damage:
            yield _warning(
                f"the newest, {newest.name}, is damaged: {damage[0]}", "%bg_backup makes another"
            )
        else:
            yield _ok(f"the newest is {newest.name}, {age}, {_size(newest.stat().st_size)}")
    elif size > BIG_STORE_BYTES:
        yield _warning(f"none of a store of {_size(size)}", "%bg_backup makes one")
    else:
        yield _ok("none")


def _damage_of_backup(file: Path) -> list[str]:
    copy = ExaminedStore(StateDirectory(file.parent, file.name))
    try:
        return copy.look.damage()
    except StoreError as error:
        return [str(error)]
    finally:
        copy.close()


def _leftover_files(examined: Examined) -> Iterator[Finding]:
    directory = examined.directory
    folders = (directory.root, directory.archives, directory.backups, directory.payloads)
    stale_before = time.time() - STALE_S
    partial = [file for folder in folders for file in folder.glob(".*.part")]
    stale = [file for file in partial if file.stat().st_mtime < stale_before]
    if stale:
        size = _size(sum(file.stat().st_size for file in stale))
        yield _warning(
            f"{_count(len(stale), 'unfinished file')}, {size}: {_names(stale)}",
            f"rm {' '.join(map(str, stale[:3]))}" + (" …" if len(stale) > 3 else ""),
        )
    for aside in sorted(directory.root.rglob("*-damaged-*.db")):
        yield _ok(
            f"{aside} is a damaged store that was set aside ({_size(aside.stat().st_size)}); "
            "delete it when you miss nothing"
        )


def _problems(examined: Examined) -> Iterator[Finding]:
    found = problems.recorded(examined.directory)
    if not found:
        yield _ok("the store has had none")
        return
    last = found[-1]
    silent_s = (examined.now - last.at).total_seconds()
    text = f"{_count(len(found), 'problem')} on record, the last {_age(silent_s)}: {last.message}"
    if silent_s < RECENT_S:
        yield _warning(text, f"all are in {examined.directory.problems}")
    else:
        yield _ok(text)


# What is in the store.


def _content(examined: Examined) -> Iterator[Finding]:
    damage = examined.store.look.damage()
    if damage:
        yield _broken(
            f"the store is damaged: {'; '.join(damage)}", _how_to_repair(examined.directory)
        )
    else:
        yield _ok("SQLite finds nothing wrong")


def _journal(examined: Examined) -> Iterator[Finding]:
    mode, expected = examined.store.look.journal_mode, journal_mode_for(examined.directory.root)
    if (mode == "WAL") == (expected == "WAL"):
        yield _ok(f"journal mode {mode}")
    else:
        yield _warning(
            f"journal mode {mode}, where {expected} is right for this file system",
            "was the state directory moved? Make a backup there (%bg_backup) and restore it here",
        )


def _lock(examined: Examined) -> Iterator[Finding]:
    if examined.store.look.can_be_written():
        yield _ok("nobody keeps the store from being written")
    else:
        yield _locked(examined, "another program keeps the store from being written")


def _locked(examined: Examined, message: str) -> Finding:
    holders = _holders(examined.directory)
    who = f" ({', '.join(f'process {pid}' for pid in holders)})" if holders else ""
    return _warning(
        f"{message}{who}", "wait for it, or end it; what tasks print is kept in memory meanwhile"
    )


def _holders(directory: StateDirectory) -> list[int]:
    """The processes that hold a write lock on the store, where the system tells."""
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


def _sessions(examined: Examined) -> Iterator[Finding]:
    store = examined.store
    dead = liveness.find_dead(store, except_session=examined.own_session)
    for death in dead:
        count = _live_tasks(store, death.owner.id, "thread")
        if count:
            yield _warning(
                f"session {store.sessions.short(death.owner.id)} is gone ({death.reason}) and left "
                f"{_count(count, 'task')} "
                "that the store has as running",
                "the next command, %bg_list, marks them as interrupted",
            )
    if dead:
        yield _ok(f"{_count(len(dead), 'session')} ended without saying so")
    uncertain = _out_of_sight(examined)
    for session in uncertain:
        yield _ok(f"of session {store.sessions.short(session.id)} {_not_certain(session)}")
    if not dead and not uncertain:
        yield _ok("every one that has not ended is alive")


def _kept_aside(examined: Examined) -> Iterator[Finding]:
    for file, process in kept_elsewhere(examined.store):
        yield _ok(
            f"{file} is what process {process.pid} of {process.host} keeps since a newer version "
            "took over the store: the next command takes in what is new, and one that runs there "
            "removes it when the process has ended; delete it when that host or container is gone"
        )


def _out_of_sight(examined: Examined) -> list[SessionRecord]:
    """The sessions with running tasks of which one look cannot say whether they are alive."""
    store = examined.store
    return [
        session
        for session in store.sessions.with_live_tasks()
        if session.id != examined.own_session
        and session.end_reason is None
        and liveness.is_out_of_sight(store, session)
    ]


def _not_certain(owner: SessionRecord | SupervisorRecord) -> str:
    return (
        f"it is not certain whether it is alive: it is on another host ({legible(owner.host)}) or "
        f"in another container, with its last heartbeat at {owner.heartbeat_at:%Y-%m-%d %H:%M:%S} "
        f"UTC by its clock; a notebook that watches for {liveness.SILENCE_S:.0f} s decides"
    )


def _live_tasks(store: ExaminedStore, session_id: str, runner: str) -> int:
    tasks = store.tasks.select(Selection(states=LIVE, session_prefix=session_id))
    return sum(task.runner == runner for task in tasks)


def _supervisors(examined: Examined) -> Iterator[Finding]:
    store = examined.store
    dead = liveness.find_dead_supervisors(store)
    for death in dead:
        count = len(store.processes.live_of(death.owner.key))
        yield _warning(
            f"that of session {store.sessions.short(death.owner.session)} is gone "
            f"({death.reason}) and left {_count(count, 'task')}",
            "the next command, %bg_list, ends what is left of it and marks its tasks as "
            "interrupted; %bg_resume --all runs those again"
            if count
            else "the next command, %bg_list, notes that",
        )
    gone = {death.owner.key for death in dead}
    alive = [each for each in store.supervisors.unfinished() if each.key not in gone]
    for supervisor in alive:
        yield _supervisor(examined, supervisor)
    for session_id in store.supervisors.orphaned_sessions():
        yield _warning(
            f"tasks of session {store.sessions.short(session_id)} wait, and it has none",
            "%bg_list in that notebook starts one, or marks them as interrupted",
        )


def _supervisor(examined: Examined, supervisor: SupervisorRecord) -> Finding:
    count = len(examined.store.processes.live_of(supervisor.key))
    session = examined.store.sessions.short(supervisor.session)
    if liveness.is_out_of_sight(examined.store, supervisor):
        said = f"of that of session {session}, with {_count(count, 'task')}, "
        return _ok(said + _not_certain(supervisor))
    silent_s = (examined.now - supervisor.heartbeat_at).total_seconds()
    who = f"that of session {session} (process {supervisor.pid})"
    if count and silent_s > STUCK_S:
        log = examined.directory.supervisor_log(supervisor.session)
        return _warning(
            f"{who} has {_count(count, 'task')}, but gave its last sign of life "
            f"{_age(silent_s)}{_state_of(supervisor)}",
            f"see {log}; 'kill -CONT {supervisor.pid}' if it is stopped, "
            f"'kill -KILL {supervisor.pid}' ends it, and %bg_list then its tasks",
        )
    return _ok(f"{who} is alive, with {_count(count, 'task')}")


def _state_of(supervisor: SupervisorRecord) -> str:
    return "; it is stopped" if processes.is_stopped(supervisor.pid) else ""


def _left_processes(examined: Examined) -> Iterator[Finding]:
    left: dict[Mark, list[processes.Process]] = {}
    for process, mark in leftovers.find(leftovers.of_gone_kernels()).items():
        if examined.store.sessions.find(mark.task_id.rpartition("-")[0]):
            left.setdefault(mark, []).append(process)
    for mark, found in left.items():
        yield _left(examined, mark, found)
    if not left:
        yield _ok("no process of a task in a thread runs on after its kernel")


def _left(examined: Examined, mark: Mark, found: Sequence[processes.Process]) -> Finding:
    task = examined.store.tasks.by_id(mark.task_id)
    which = f"task {mark.task_id if task is None else task.label}"
    names = ", ".join(leftovers.in_words(each) for each in found)
    is_known = task is not None and task.state is TaskState.INTERRUPTED
    ends = f"%bg_cancel {mark.task_id}" if is_known else f"kill {' '.join(_pids(found))}"
    are, them = ("is", "it") if len(found) == 1 else ("are", "them")
    return _warning(
        f"{legible(names)} {are} left of {which}, whose kernel (process {mark.kernel.pid}) is gone",
        f"{ends} ends {them}",
    )


def _pids(found: Sequence[processes.Process]) -> list[str]:
    return [str(each.pid) for each in found]


CHECKS: list[Check] = [
    *(_versions, _sqlite, _widgets, _settings),
    *(_state_directory, _file_system, _room, _permissions, _folders_above),
    *(_store, _archives, _backups, _leftover_files, _problems),
]
"""What can be looked at whatever the store is like."""

CONTENT_CHECKS: list[Check] = [
    *(_content, _journal, _lock, _sessions, _supervisors, _kept_aside, _left_processes),
]
"""What needs a store that this version can read."""


def as_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The document of `doctor --json`."""
    return {"status": worst(findings), "findings": [finding.as_json() for finding in findings]}
