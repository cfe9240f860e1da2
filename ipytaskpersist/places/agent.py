"""The far end of a place: starts a task on another machine, keeps its output, answers about it.

It needs Python 3.9 and its standard library, nothing of this package, and is sent as text. The
text is run in one of three ways: ``serve`` answers requests on its standard streams, ``answer``
is the same as a function, and ``keep FOLDER`` is the keeper of one task, in the foreground.
Whoever executes the text with a program of its own sets the global ``TEXT`` to it beforehand.

Each task has a folder of its own on the far end:

* ``brief``: what to run. Only of a task that is stored for a keeper in the foreground, which
  removes it: it may hold secret values of environment variables.
* ``claim``: the identity of the task's keeper. There is one at most, for ever.
* ``state``: when the task was started, and how it ended. The keeper touches it every few seconds.
* ``asked``: a line for each signal that was asked for.
* ``spool``: what the task sends, one frame after another, only appended to. A frame is one byte
  for its kind, four for its length, the data, and the CRC-32 of all these. The kinds are those of
  the channel, and ``Z`` for the end, as JSON: exit code, reason, usage.
* ``log``: what went wrong in the keeper itself.

On a full disk the keeper keeps what it has read in memory and reads no more until there is room,
so that the task waits in its next write: nothing is lost, and the spool is never damaged.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]
PROC = Path("/proc")
MARK = "IPYTASKPERSIST_TASK"
"""Environment variable that names the task of a process."""
CHANNEL = "IPYTASKPERSIST_CHANNEL"
"""Environment variable with the number of the descriptor for frames."""
GREETING = b"\nipytaskpersist agent\n"
"""What `serve` writes first. A login shell may have printed something before it."""
MESSAGE = struct.Struct(">II")
FRAME = struct.Struct("<cI")
CRC = struct.Struct("<I")
STREAMS = (b"o", b"e")
END = b"Z"
LARGEST_JSON = 16 * 1024 * 1024
LARGEST_DATA = LARGEST_FRAME = 64 * 1024 * 1024
READ_BYTES = GATHER_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
PIECE_BYTES = 8 * 1024 * 1024
"""Most bytes of a file in one answer."""
GATHER_S = 0.01
"""Output is written at once after a pause of this length, and otherwise gathered for as long."""
LOOK_S = 0.1
"""How often a keeper looks for signals, limits and the end of its task."""
PRESS_S = 0.05
"""How often a keeper looks whether a task that was asked to end has done so."""
HEART_S = 5.0
"""How often a keeper touches the state."""
SILENT_S = 60.0
"""A keeper of another boot of this host is gone when it has been silent for so long."""
MEMORY_S = 0.25
USAGE_S = 5.0
"""How often the memory of a task is measured: with a limit, and without."""
SHARE_OF_TIME = 20
"""Repeated looks take at most this fraction of the time."""
SURELY_ALONE = 2
START_S = 60.0
TERMINAL_SIZE = struct.pack("HHHH", 24, 80, 0, 0)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
BOOT = "import sys; TEXT = sys.stdin.buffer.read(int(sys.argv.pop())).decode(); exec(TEXT)"


class Refused(Exception):
    """A request that cannot be met. The message says why."""


# Files.


def place(path: str) -> Path:
    """Return a path of this machine: ``~`` is the home directory, and so is where others begin."""
    return Path.home() / Path(path).expanduser()


def make_folder(folder: Path) -> None:
    """Make a folder for this user alone, and those above it. Raises `Refused` for another's."""
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise Refused(f"the folder {folder} belongs to another user")
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """Open a file for this user alone, for writing; make it if it is missing."""
    return os.open(path, flags | os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def read_fresh(path: Path, offset: int, size: int) -> tuple[int, bytes]:
    """Return a file's size and a piece of it.

    A network file system says how a file is now only to one who opens it (nfs(5), close-to-open).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, size, offset) if size else b""
        return os.fstat(descriptor).st_size, data
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Json | None:
    """Return what a file holds: None without the file, nothing in one that is being written."""
    try:
        return json.loads(read_fresh(path, 0, LARGEST_JSON)[1])  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}


def write_json(path: Path, content: Json) -> None:
    """Write a file that appears complete or not at all."""
    new = path.with_name(f"{path.name}.new")
    descriptor = open_private(new, os.O_TRUNC)
    try:
        write_all(descriptor, json.dumps(content).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)


def write_once(path: Path, content: Json) -> bool:
    """Write a file if it is not there. Returns whether this call did; of several, one does.

    ``link`` is atomic wherever it exists, on each version of NFS too, and the file is complete
    when it appears. A server's lost reply makes a link that was made look refused: the number of
    links is the truth (open(2), O_EXCL). Without links, O_EXCL itself decides.
    """
    data = json.dumps(content).encode()
    own = path.with_name(f"{path.name}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}")
    descriptor = open_private(own, os.O_EXCL)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(own, path)
        return os.fstat(descriptor).st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return write_exclusively(path, data)
    finally:
        os.close(descriptor)
        own.unlink()


def write_exclusively(path: Path, data: bytes) -> bool:
    """Do as `write_once` on a file system without links. The file may be seen incomplete."""
    try:
        descriptor = open_private(path, os.O_EXCL)
    except FileExistsError:
        return False
    try:
        write_all(descriptor, data)
        return True
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


# Processes.


class Process(NamedTuple):
    """One process of this machine, as it was a moment ago."""

    pid: int
    is_zombie: bool
    parent: int
    session: int
    start: str


def find(pid: int) -> Process | None:
    """Return the process with this pid, or None. Without ``/proc``, one without a start time."""
    try:
        line = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None if PROC.is_dir() or not exists(pid) else Process(pid, False, 0, 0, "")
    # The command's name is in parentheses and may contain anything (proc(5)).
    fields = line[line.rindex(b")") + 2 :].split()
    is_zombie = fields[0] in (b"Z", b"X")
    return Process(pid, is_zombie, int(fields[1]), int(fields[3]), fields[19].decode())


def exists(pid: int) -> bool:
    """Return whether any process has this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def is_there(pid: int, start: str) -> bool:
    """Return whether exactly this process has not ended."""
    found = find(pid)
    return found is not None and not found.is_zombie and found.start == start


def mark_of(pid: int) -> str:
    """Return the id of the task for which a process was started, if it can be read."""
    try:
        variables = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""  # another user's, or gone
    key = f"{MARK}=".encode()
    return next((each[len(key) :].decode() for each in variables if each.startswith(key)), "")


def of_task(task_id: str, leader: int | None) -> list[Process]:
    """Return the living processes of a task: those of its session, with its mark, and theirs.

    `leader` is the pid of the task's own process, which its parent has not reaped.
    """
    pids = (int(path.name) for path in PROC.glob("[0-9]*") if path.name != str(os.getpid()))
    table = [found for found in map(find, pids) if found is not None]
    marks = {process.pid: mark_of(process.pid) for process in table}
    children: dict[int, list[Process]] = {}
    for process in table:
        if marks[process.pid] in ("", task_id):
            children.setdefault(process.parent, []).append(process)
    left = [each for each in table if each.session == leader or marks[each.pid] == task_id]
    found = {}
    while left:
        process = left.pop()
        if process.pid not in found:
            found[process.pid] = process
            left += children.get(process.pid, [])
    return [process for process in found.values() if not process.is_zombie]


def send_all(processes: Iterable[Process], number: int) -> None:
    """Send a signal to exactly these processes, as far as the system allows."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            if is_there(process.pid, process.start):
                os.kill(process.pid, number)


def stop_all(task_id: str, leader: int | None) -> None:
    """Stop all processes of a task: each once, until two looks in a row find no new one."""
    known: set[int] = set()
    quiet = 0
    while quiet < SURELY_ALONE:
        new = [each for each in of_task(task_id, leader) if each.pid not in known]
        send_all(new, signal.SIGSTOP)
        known.update(each.pid for each in new)
        quiet = 0 if new else quiet + 1


def memory_of(processes: list[Process], limit_bytes: float) -> int:
    """Return the memory of processes in bytes. Above the limit, shared pages count once."""
    used = sum(resident_bytes(each.pid) for each in processes)
    return used if used <= limit_bytes else sum(own_bytes(each.pid) for each in processes)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    with suppress(OSError, ValueError, IndexError):
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def own_bytes(pid: int) -> int:
    """Return a process's part of its memory, without the files that it has mapped."""
    counted = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")
    with suppress(OSError, ValueError):
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        found = [int(line.split()[1]) for line in lines if line.startswith(counted)]
        return sum(found) * 1024 if found else resident_bytes(pid)
    return resident_bytes(pid)


@cache
def machine() -> Json:
    """Return what distinguishes this machine's pids from those of another."""
    boot_id, namespace = "", 0
    with suppress(OSError):
        boot_id = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (PROC / "self/ns/pid").stat().st_ino
    return {"host": socket.gethostname(), "boot_id": boot_id, "namespace": namespace}


def identity() -> Json:
    """Return what distinguishes this process from every other one."""
    found = find(os.getpid())
    return {**machine(), "pid": os.getpid(), "start": "" if found is None else found.start}


def claim_of(brief: Json) -> Json:
    """Return the claim of this process on a task."""
    return {**identity(), "task_id": brief["task_id"]}


# The keeper of one task.


class Spool:
    """What the task has sent: gathered, then appended to the file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = open_private(path, os.O_APPEND)
        self._kind = b""
        self._pieces: list[bytes] = []
        self._gathered_bytes = 0
        self._frames: list[bytes] = []
        self._written_at = 0.0
        self.is_blocked = False
        """Whether the last write failed, as on a full disk. What was not written is kept."""

    def add(self, kind: bytes, data: bytes) -> None:
        """Take in a frame, or a piece of a stream."""
        is_more = kind == self._kind and self._gathered_bytes + len(data) <= GATHER_BYTES
        if not is_more or kind not in STREAMS:
            self._seal()
            self._kind = kind
        self._pieces.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHER_BYTES:
            self.flush()

    def _seal(self) -> None:
        """Make a frame of what was gathered."""
        if self._pieces:
            data = b"".join(self._pieces)
            frame = FRAME.pack(self._kind, len(data)) + data
            self._frames += [frame, CRC.pack(zlib.crc32(frame))]
            self._pieces, self._gathered_bytes = [], 0

    @property
    def due_at(self) -> float:
        """When to flush, by the monotonic clock."""
        is_empty = not self._pieces and not self._frames
        return float("inf") if is_empty or self.is_blocked else self._written_at + GATHER_S

    def flush(self) -> None:
        """Write what there is. What the disk does not take is kept for the next time."""
        self._seal()
        rest = memoryview(b"".join(self._frames))
        self.is_blocked = False
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            self.is_blocked = True
        self._frames = [bytes(rest)] if rest else []
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Write the rest, however long that takes, down to the disk."""
        self.flush()
        while self.is_blocked:
            time.sleep(LOOK_S)
            self.flush()
        os.fsync(self._descriptor)
        os.close(self._descriptor)


class Channel:
    """Cuts what a Python task sends into its frames. Streams pass in pieces of any size."""

    def __init__(self, add: Callable[[bytes, bytes], None]) -> None:
        self._add = add
        self._received = bytearray()
        self._kind = b""
        self._left_bytes = 0
        """How much is still to come of a frame that is passed on, or left out with no kind."""

    def feed(self, data: bytes) -> None:
        """Take in what was read, and add what is complete."""
        self._received += data
        while self._pass_on() or self._take_frame():
            pass

    def _pass_on(self) -> bool:
        piece = bytes(self._received[: min(self._left_bytes, GATHER_BYTES)])
        if piece:
            del self._received[: len(piece)]
            self._left_bytes -= len(piece)
            if self._kind:
                self._add(self._kind, piece)
        return bool(piece)

    def _take_frame(self) -> bool:
        if self._left_bytes or len(self._received) < FRAME.size:
            return False
        kind, size = FRAME.unpack_from(self._received)
        end = FRAME.size + size
        if kind in STREAMS or size > LARGEST_FRAME:
            self._begin(kind, size)
            end = FRAME.size
        elif len(self._received) < end:
            return False
        else:
            self._add(kind, bytes(self._received[FRAME.size : end]))
        del self._received[:end]
        return True

    def _begin(self, kind: bytes, size: int) -> None:
        self._kind, self._left_bytes = kind if kind in STREAMS else b"", size
        if not self._kind:
            limit = LARGEST_FRAME // 1024**2
            note = f"[a display of {size:,} bytes was left out: more than {limit} MiB]\n"
            self._add(b"e", note.encode())


class Keeper:
    """Starts a task, keeps what it sends, ends it when asked to, and records its end."""

    def __init__(self, folder: Path, brief: Json) -> None:
        self._folder, self._brief = folder, brief
        self._task_id: str = brief["task_id"]
        self._spool = Spool(folder / "spool")
        self._asked_bytes = 0
        self._readers: dict[int, Callable[[bytes], None]] = {}
        self._channel: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        self._reason: str | None = None
        """Why the task was ended by the keeper."""
        self._kill_at = 0.0
        self._alone = 0
        self._started_at = self._looked_at = self._look_at = self._heart_at = 0.0
        self._paused_since: float | None = None
        self._paused_s = 0.0
        self._measure_at = 0.0
        self._peak_bytes = self._used_bytes = 0
        self._is_terminated = False
        self._woken = -1

    # Its start.

    def start(self) -> str:
        """Start the task. Returns the reason in words if that fails, and then that is its end."""
        self._started_at = time.monotonic()
        self._read_asked()
        self._asked_bytes = 0  # to stop it, too, may have been asked for
        error = "it was asked to end before it started" if self._reason else self._try_to_start()
        if error:
            self._record_end({"status": None, "reason": self._reason or "not started"}, error)
        else:
            self._record({"task_pid": self._pid, "started_at": time.time()})
        return error

    def catch_signals(self) -> None:
        """Let SIGHUP pass and note SIGTERM. A handler, unlike SIG_IGN, is not the child's too."""
        self._woken, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._terminate)

    def _terminate(self, *_: object) -> None:
        self._is_terminated = True

    def _try_to_start(self) -> str:
        theirs: list[int] = []
        directory = place(self._brief.get("directory") or "~")
        try:
            if not directory.is_dir():
                return f"the directory {directory} does not exist on {socket.gethostname()}"
            self._process = self._start_child(directory, theirs)
        except (OSError, ValueError, TypeError) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            if isinstance(error, FileNotFoundError):
                words = "command not found"
            return f"{self._brief['command'][0]}: {words} (on {socket.gethostname()})"
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return ""

    def _start_child(self, directory: Path, theirs: list[int]) -> subprocess.Popen[bytes]:
        stdout, stderr = self._open_streams(theirs)
        environment = self._environment()
        command, passed = list(self._brief["command"]), []
        if self._brief.get("channel"):
            self._channel, channel = os.pipe()
            theirs.append(channel)
            passed.append(channel)
            self._take_in(self._channel, Channel(self._spool.add).feed)
            environment[CHANNEL] = str(channel)
        with open_script(self._brief.get("script")) as script:
            script_as = self._brief.get("script_as")
            if script_as == "file":
                passed.append(script.fileno())
                command.append(f"/dev/fd/{script.fileno()}")
            return subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=script if script_as == "stdin" else subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=passed,
                start_new_session=True,
            )

    def _open_streams(self, theirs: list[int]) -> tuple[int, int]:
        """Open what the task gets as descriptors 1 and 2."""
        if self._brief.get("pty"):
            import fcntl
            import termios

            master, slave = os.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, TERMINAL_SIZE)
            theirs.append(slave)
            self._take_in(master, lambda data: self._spool.add(b"o", data))
            return slave, slave
        out, stdout = os.pipe()
        err, stderr = os.pipe()
        theirs += [stdout, stderr]
        self._take_in(out, lambda data: self._spool.add(b"o", data))
        self._take_in(err, lambda data: self._spool.add(b"e", data))
        return stdout, stderr

    def _take_in(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        widen(descriptor)
        self._readers[descriptor] = take

    def _environment(self) -> dict[str, str]:
        changes = self._brief.get("environment") or {}
        removed = {CHANNEL, *(name for name, value in changes.items() if value is None)}
        whole = {**os.environ, **changes, MARK: self._task_id}
        return {name: value for name, value in whole.items() if name not in removed}

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # Its output.

    def run(self) -> int:
        """Keep the task until it has ended. Returns its exit code as a shell would say it."""
        while not self._is_over:
            self._take_output()
            now = time.monotonic()
            if now >= self._spool.due_at:
                self._spool.flush()
            if now >= self._look_at:
                self._look_around()
        return self._finish()

    def _take_output(self) -> None:
        """Wait a moment for output and read it, the channel first. Read nothing while blocked."""
        wake_at = min(self._look_at, self._spool.due_at)
        poll = select.poll()
        for descriptor in [self._woken, *(() if self._spool.is_blocked else self._readers)]:
            poll.register(descriptor, select.POLLIN)
        wait_s = max(0.0, wake_at - time.monotonic())
        ready = [descriptor for descriptor, _event in poll.poll(wait_s * 1000)]
        for descriptor in sorted(ready, key=lambda each: each != self._channel):
            if descriptor in self._readers:
                self._read(descriptor)
            else:
                os.read(self._woken, 4096)
                self._look_at = 0.0

    def _read(self, descriptor: int) -> bool:
        """Read available data. Returns False at the end, after closing the descriptor."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except OSError:
            data = b""  # a pseudo-terminal whose other end is closed
        if data:
            self._readers[descriptor](data)
        else:
            del self._readers[descriptor]
            os.close(descriptor)
            self._look_at = 0.0
        return bool(data)

    # Its limits, signals and end.

    def _look_around(self) -> None:
        self._looked_at = time.monotonic()
        self._look_at = self._looked_at + (LOOK_S if self._reason is None else PRESS_S)
        self._notice_end()
        self._read_asked()
        if self._is_terminated:
            self._end("terminated")
        elif self._is_late:
            self._end("timeout")
        self._measure()
        if self._reason is not None:
            self._press()
        if self._spool.is_blocked:
            self._spool.flush()
        if self._looked_at >= self._heart_at:
            self._beat()

    def _beat(self) -> None:
        """Touch the state, by the file system's own clock. Without its folder, nothing is kept."""
        self._heart_at = self._looked_at + HEART_S
        try:
            os.utime(self._folder / "state")
        except FileNotFoundError:
            self._end("folder removed")
        except OSError:
            pass  # the file system is out of reach: it may come back

    def _read_asked(self) -> None:
        """Do what was asked for since the last look."""
        with suppress(OSError):
            _size, data = read_fresh(self._folder / "asked", self._asked_bytes, READ_BYTES)
            lines = data[: data.rfind(b"\n") + 1]
            self._asked_bytes += len(lines)
            for line in lines.decode().split():
                self._obey(line)

    def _obey(self, what: str) -> None:
        if what == "end":
            self._end("asked")
        elif what == "kill":
            self._end("asked", at_once=True)
        elif self._process is None or self._reason is not None:
            pass
        elif what == "stop":
            self._paused_since = self._paused_since or time.monotonic()
            stop_all(self._task_id, self._pid)
        elif what == "continue":
            self._go_on()

    def _go_on(self) -> None:
        if self._paused_since is not None:
            self._paused_s += time.monotonic() - self._paused_since
            self._paused_since = None
        send_all(self._living(), signal.SIGCONT)

    def _living(self) -> list[Process]:
        return of_task(self._task_id, self._process.pid if self._process is not None else None)

    def _end(self, reason: str, *, at_once: bool = False) -> None:
        """Send SIGTERM to all processes of the task. `_press` continues from there."""
        now = time.monotonic()
        grace_s = 0.0 if at_once else float(self._brief.get("grace_s") or 0.0)
        if self._reason is not None:
            self._kill_at = min(self._kill_at, now + grace_s)
            return
        self._reason, self._kill_at = reason, now + grace_s
        if self._process is not None:
            self._signal_all(signal.SIGTERM)
            self._go_on()  # a stopped process cannot handle a signal

    def _signal_all(self, number: int) -> None:
        """Signal the group at once, whose number is not reused before it is reaped; then others."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)
        others = [each for each in self._living() if each.session != self._pid]
        send_all(others, number)

    def _press(self) -> None:
        """Look for survivors of SIGTERM, and send SIGKILL after the grace period."""
        living = self._living()
        self._alone = 0 if living else self._alone + 1
        if (living or self._status is None) and time.monotonic() >= self._kill_at:
            self._signal_all(signal.SIGKILL)
            send_all(living, signal.SIGKILL)

    @property
    def _is_late(self) -> bool:
        timeout_s = self._brief.get("timeout_s")
        if timeout_s is None or self._reason is not None or self._paused_since is not None:
            return False
        return time.monotonic() - self._started_at - self._paused_s > float(timeout_s)

    def _measure(self) -> None:
        """Measure the memory of the task, and end it above its limit."""
        limit_bytes = self._brief.get("memory_bytes")
        if self._looked_at < self._measure_at or self._reason is not None:
            return
        used_bytes = memory_of(self._living(), limit_bytes or float("inf"))
        took_s = time.monotonic() - self._looked_at
        every_s = MEMORY_S if limit_bytes else USAGE_S
        self._measure_at = time.monotonic() + max(every_s, SHARE_OF_TIME * took_s)
        self._peak_bytes = max(self._peak_bytes, used_bytes)
        if limit_bytes and used_bytes > limit_bytes:
            self._used_bytes = used_bytes
            self._end("memory")

    def _notice_end(self) -> None:
        """Note how the process has ended. Not reaped yet, it keeps its numbers from reuse."""
        if self._status is None:
            found = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                has_exited = found.si_code == os.CLD_EXITED
                self._status = found.si_status if has_exited else -found.si_status

    @property
    def _is_over(self) -> bool:
        """Whether the process has ended, and no other process of the task can print."""
        if self._status is None:
            return False
        return not self._readers if self._reason is None else self._alone >= SURELY_ALONE

    def _finish(self) -> int:
        self._read_rest()
        _pid, _status, usage = os.wait4(self._pid, 0)
        largest_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        end = {
            "status": self._status,
            "reason": self._reason,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_memory_bytes": max(self._peak_bytes, largest_bytes),
            "used_bytes": self._used_bytes or None,
        }
        self._record_end(end)
        assert self._status is not None
        return self._status if self._status >= 0 else 128 - self._status

    def _read_rest(self) -> None:
        """Read what is left in the pipes of a task that was ended. Others may still hold them."""
        for descriptor in list(self._readers):
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            for _piece in range(PIPE_BYTES // READ_BYTES):
                if not poll.poll(0) or not self._read(descriptor):
                    break

    def _record_end(self, end: Json, error: str = "") -> None:
        end = {**end, "error": error or None, "ended_at": time.time()}
        self._spool.add(END, json.dumps(end).encode())
        self._spool.close()
        self._record({"end": end})

    def _record(self, more: Json) -> None:
        """Add to the state. On a full disk that waits, as the output does."""
        path = self._folder / "state"
        while True:
            try:
                return write_json(path, {**(read_json(path) or {}), **more})
            except FileNotFoundError:
                return None  # the folder was removed
            except OSError:
                time.sleep(LOOK_S)


def open_script(script: str | None) -> Any:
    """Open a task's script, or nothing. It has no name, so it goes away with its readers."""
    if script is None:
        return open(os.devnull, "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(script.encode("utf-8", "surrogateescape"))
    file.seek(0)
    return file


def widen(descriptor: int) -> None:
    """Enlarge a pipe beyond 64 KiB, where the system allows it."""
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(descriptor, 1031, PIPE_BYTES)  # F_SETPIPE_SZ, named since Python 3.10


def keep(folder: Path, brief: Json) -> int:
    """Claim a task and keep it. Prints what has become of the start, as JSON."""
    if not write_once(folder / "claim", claim_of(brief)):
        print(json.dumps({"already": True}), flush=True)
        return os.EX_TEMPFAIL
    with suppress(FileNotFoundError):
        (folder / "brief").unlink()
    keeper = Keeper(folder, brief)
    keeper.catch_signals()
    error = keeper.start()
    print(json.dumps({"error": error} if error else {"started": True}), flush=True)
    if error:
        return os.EX_UNAVAILABLE
    to_log(folder)
    try:
        return keeper.run()
    except BaseException:
        end_left(brief["task_id"])  # nothing runs unseen
        raise


def to_log(folder: Path) -> None:
    """Let go of the standard streams of whoever started this process."""
    os.chdir("/")
    log = open_private(folder / "log", os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    os.close(nothing)
    os.close(log)


# Answers.

CLAIMS: dict[Path, Json] = {}
"""The claims that were read: they never change."""
LIVING = ("claimed", "running")
Pause = Callable[[float], object]


def own_text() -> str:
    """Return the text of this program."""
    if "TEXT" in globals():
        return str(globals()["TEXT"])
    if "__file__" in globals():
        return Path(__file__).read_text(encoding="utf-8")
    arguments = (PROC / "self/cmdline").read_bytes().split(b"\0")
    return arguments[arguments.index(b"-c") + 1].decode()


def hello(_request: Json) -> Json:
    """Return what this end is."""
    return {
        **identity(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "user": os.environ.get("USER") or str(os.geteuid()),
        "home": str(Path.home()),
        "time": time.time(),
        "version": hashlib.sha256(own_text().encode()).hexdigest()[:16],
    }


def start(request: Json) -> Json:
    """Start a task, or with `detach` false store it for a keeper in the foreground. Once."""
    folder, brief = place(request["folder"]), request["brief"]
    if not isinstance(brief["task_id"], str) or not brief["command"]:
        raise Refused("a task needs an id and a command")
    make_folder(folder)
    is_new = not (folder / "claim").exists()
    if not request.get("detach", True):
        is_new = is_new and write_once(folder / "brief", brief)
        outcome = {"stored": True} if is_new else {"already": True}
    else:
        outcome = detach(folder, brief) if is_new else {"already": True}
    return {**outcome, **look_at(folder)}


def detach(folder: Path, brief: Json) -> Json:
    """Start a keeper that outlives this process and everything that started it."""
    text = own_text().encode()
    # A process of its own instead of a fork of this one, which may have threads and much memory.
    keeper = subprocess.Popen(
        [sys.executable or "python3", "-S", "-c", BOOT, "detached", str(folder), str(len(text))],
        env={**os.environ, MARK: ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = keeper.communicate(text + json.dumps(brief).encode(), timeout=START_S)
        return json.loads(said.splitlines()[-1])  # type: ignore[no-any-return]
    except subprocess.TimeoutExpired:
        raise Refused(f"the keeper has not answered within {START_S:g} s") from None
    except (ValueError, IndexError):
        raise Refused(f"the keeper did not start: {said.decode(errors='replace')}") from None


def look_at(folder: Path) -> Json:
    """Return what is known of a task, with its ``state`` in one word."""
    try:
        claim = read_claim(folder)
        if claim is None:
            is_stored = (folder / "brief").exists()
            return {"state": "claimed" if is_stored else "absent", "size": 0}
        return {**look_at_claimed(folder, claim), **claim, "size": size_of(folder)}
    except OSError as error:
        return {"state": "unknown", "error": in_words(error), "size": 0}


def read_claim(folder: Path) -> Json | None:
    """Return the identity of a task's keeper, if it has one."""
    if folder not in CLAIMS:
        found = read_json(folder / "claim")
        if not found:
            return found
        CLAIMS[folder] = found
    return CLAIMS[folder]


def size_of(folder: Path) -> int:
    """Return the size of a task's spool."""
    with suppress(FileNotFoundError):
        return read_fresh(folder / "spool", 0, 0)[0]
    return 0


def look_at_claimed(folder: Path, claim: Json) -> Json:
    """Return the state of a task with a keeper. ``lost`` is said only when it is certain."""
    # The order matters: a keeper that was there may record the end before it is looked at.
    is_gone = is_certainly_gone(claim)
    state = read_json(folder / "state")
    if state is None:
        CLAIMS.pop(folder, None)
        if read_json(folder / "claim") is None:
            return {"state": "absent"}
    if state and "end" in state:
        return {"state": "ended", **state}
    silent_s = silence_of(folder, claim)
    found = {**(state or {}), "silent_s": silent_s}
    if is_gone or (is_of_other_boot(claim) and silent_s > SILENT_S):
        left = [each.pid for each in of_task(claim.get("task_id", "?"), None)]
        return {**found, "state": "lost", "left": left}
    return {**found, "state": "running" if state else "claimed"}


def is_ours(claim: Json) -> bool:
    """Return whether a keeper's pid means something here."""
    return all(claim.get(name) == value for name, value in machine().items())


def is_certainly_gone(claim: Json) -> bool:
    """Return whether a keeper of this machine has ended."""
    return is_ours(claim) and not is_there(claim["pid"], claim["start"])


def is_of_other_boot(claim: Json) -> bool:
    """Return whether a keeper belongs to another boot of this host, or of a namesake."""
    here = machine()
    is_known = bool(claim.get("boot_id") and here["boot_id"])
    return is_known and claim["host"] == here["host"] and claim["boot_id"] != here["boot_id"]


def silence_of(folder: Path, claim: Json) -> float:
    """Return for how many seconds a keeper was silent, by the clock of the file system."""
    for name in ("state", "claim"):
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                touched_at = os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
            now = time.time() if is_ours(claim) else clock_of(folder)
            return round(max(0.0, now - touched_at), 1)
    return 0.0


def clock_of(folder: Path) -> float:
    """Return the time by the clock of a file system, which another machine may have."""
    path = folder / f"clock-{socket.gethostname()}-{os.getpid()}"
    os.close(open_private(path, os.O_TRUNC))
    try:
        os.utime(path)
        return path.stat().st_mtime
    finally:
        path.unlink()


def look(request: Json) -> Json:
    """Return what is known of some tasks."""
    return {"looks": [look_at(place(each)) for each in request["folders"]]}


def read(request: Json, pause: Pause) -> tuple[Json, bytes]:
    """Return what some tasks have sent beyond an offset each, as soon as one has news.

    The answer has for each task how many of the bytes are its own, and a look at it: 0 and None
    for one without news. To have ended, to be lost or out of reach is news each time.
    """
    tasks = [(place(folder), int(offset)) for folder, offset in request["tasks"]]
    until = time.monotonic() + float(request.get("wait_s") or 0.0)
    look_at_s = 0.0
    while True:
        began_at = time.monotonic()
        news = [has_more(folder, offset) for folder, offset in tasks]
        if not any(news) and began_at >= look_at_s:
            news = [look_at(folder)["state"] not in LIVING for folder, _offset in tasks]
            look_at_s = time.monotonic() + max(1.0, share_of_time(began_at))
        left_s = until - time.monotonic()
        if any(news) or left_s <= 0 or pause(min(left_s, share_of_time(began_at))):
            break
    most = min(int(request.get("at_most") or LARGEST_DATA), LARGEST_DATA) // max(1, sum(news))
    answers: list[list[Any]] = []
    pieces = []
    for number, (folder, offset) in enumerate(tasks):
        found = look_at(folder) if news[number] else None
        pieces.append(piece_of(folder, offset, most) if news[number] else b"")
        answers.append([len(pieces[-1]), found])
    return {"tasks": answers}, b"".join(pieces)


def share_of_time(began_at: float) -> float:
    """Return how long to wait until what began then is done again."""
    return max(0.01, SHARE_OF_TIME * (time.monotonic() - began_at))


def has_more(folder: Path, offset: int) -> bool:
    """Return whether a spool has another size than the reader knows."""
    try:
        claim = CLAIMS.get(folder)
        if claim is not None and is_ours(claim):
            return os.stat(folder / "spool").st_size != offset  # noqa: PTH116 - in the hot path
        return size_of(folder) != offset
    except OSError:
        return False  # a look says why


def piece_of(folder: Path, offset: int, at_most: int) -> bytes:
    """Return a piece of a spool."""
    with suppress(OSError):
        return read_fresh(folder / "spool", offset, at_most)[1]
    return b""


def signal_task(request: Json) -> Json:
    """Ask a task to end, to stop or to continue: through a file, which works from any machine."""
    folder, what = place(request["folder"]), request["what"]
    if what not in ("end", "kill", "stop", "continue"):
        raise Refused(f"there is no signal {what!r}")
    found = look_at(folder)
    if found["state"] in ("absent", "unknown"):
        raise Refused(found.get("error") or f"there is no task in {folder}")
    if found["state"] == "lost" and what in ("end", "kill"):
        end_left(found["task_id"])
    elif found["state"] in LIVING:
        ask(folder, what)
    return look_at(folder)


def ask(folder: Path, what: str) -> None:
    """Leave word for the keeper. A task that has none yet will have none."""
    descriptor = open_private(folder / "asked", os.O_APPEND)
    try:
        write_all(descriptor, f"{what}\n".encode())
    finally:
        os.close(descriptor)
    brief = read_json(folder / "brief")
    if brief and what in ("end", "kill") and write_once(folder / "claim", claim_of(brief)):
        (folder / "brief").unlink()
        Keeper(folder, brief).start()


def end_left(task_id: str) -> None:
    """Kill what is left of a task without a keeper."""
    quiet = 0
    for _round in range(100):
        left = of_task(task_id, None)
        send_all(left, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        if quiet == SURELY_ALONE:
            break
        time.sleep(PRESS_S)


def put(request: Json, data: bytes) -> Json:
    """Write a piece of a file, which gets its name when it is `done`.

    Folders are made only below the one that `within` names.
    """
    path, offset = place(request["path"]), int(request.get("offset") or 0)
    if request.get("within") and place(request["within"]) in path.parents:
        make_folder(path.parent)
    part = path.with_name(f"{path.name}.part")
    descriptor = open_private(part, 0 if offset else os.O_TRUNC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size != offset:
            raise Refused(f"{part} has {size} bytes, not {offset}")
        write_all(descriptor, data)
        if request.get("done"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if request.get("done"):
        part.replace(path)
    return {"size": offset + len(data)}


def get(request: Json) -> tuple[Json, bytes]:
    """Return a piece of a file, and the file's size."""
    most = min(int(request.get("at_most") or PIECE_BYTES), PIECE_BYTES)
    size, data = read_fresh(place(request["path"]), int(request.get("offset") or 0), most)
    return {"size": size}, data


def sizes(request: Json) -> Json:
    """Return the path, the size and the time of the last change of the files of a pattern."""
    pattern = str(place(request["pattern"]))
    found = []
    for path in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - as a shell does
        with suppress(OSError):
            file = Path(path).stat()
            if stat.S_ISREG(file.st_mode):
                found.append([path, file.st_size, file.st_mtime])
    return {"files": found}


def forget(request: Json) -> Json:
    """Remove the folders of tasks that are over. Returns why others were kept, in words."""
    kept = {}
    for each in request["folders"]:
        folder = place(each)
        found = look_at(folder)
        if found["state"] not in ("ended", "lost") or found.get("left"):
            if found["state"] != "absent":
                kept[each] = f"the task is {found['state']}"
            continue
        try:
            shutil.rmtree(folder)
            CLAIMS.pop(folder, None)
        except OSError as error:
            kept[each] = in_words(error)
    return {"kept": kept}


def in_words(error: OSError) -> str:
    """Return what the system said, and of what."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def answer(request: Json, data: bytes, pause: Pause = time.sleep) -> tuple[Json, bytes]:
    """Answer a request: what was found, and bytes. What cannot be done is an ``error`` in words."""
    try:
        verb = request.get("verb")
        if verb == "read":
            return read(request, pause)
        if verb == "get":
            return get(request)
        if verb == "put":
            return put(request, data), b""
        if verb not in VERBS:
            raise Refused(f"there is no request {verb!r}")
        return VERBS[verb](request), b""
    except Refused as refused:
        return {"error": str(refused)}, b""
    except OSError as error:
        return {"error": in_words(error)}, b""
    except KeyError as missing:
        return {"error": f"the request lacks {missing}"}, b""
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}, b""


VERBS: dict[str, Callable[[Json], Json]] = {
    "hello": hello,
    "start": start,
    "look": look,
    "signal": signal_task,
    "sizes": sizes,
    "forget": forget,
}


# The ways in.


class Requests:
    """The requests on the standard input."""

    def __init__(self) -> None:
        # The program that executes this text may have read more than the text.
        os.set_blocking(0, False)
        self._received = bytearray(sys.stdin.buffer.peek())  # type: ignore[union-attr]
        os.set_blocking(0, True)

    def wait(self, seconds: float) -> bool:
        """Wait for the next request. Returns whether there is one, or there will be none."""
        return bool(self._received or select.select([0], [], [], seconds)[0])

    def take(self) -> tuple[Json, bytes]:
        """Return the next request. Raises `Refused` for what is none, and `EOFError`."""
        lengths = MESSAGE.unpack(self._exactly(MESSAGE.size))
        if lengths[0] > LARGEST_JSON or lengths[1] > LARGEST_DATA:
            self._skip(sum(lengths))
            raise Refused("the request is too large")
        text, data = map(self._exactly, lengths)
        try:
            request = json.loads(text)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            raise Refused("the request is no JSON object")
        return request, data

    def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._read(size - len(self._received))
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._exactly(min(size, PIPE_BYTES)))

    def _read(self, size: int) -> None:
        data = os.read(0, min(size, PIPE_BYTES))
        if not data:
            raise EOFError
        self._received += data


def serve() -> int:
    """Answer requests on the standard streams, in order, until there are no more."""
    requests = Requests()
    write_all(1, GREETING)
    with suppress(EOFError, BrokenPipeError):
        while True:
            try:
                content, data = answer(*requests.take(), pause=requests.wait)
            except Refused as refused:
                content, data = {"error": str(refused)}, b""
            text = json.dumps(content).encode()
            write_all(1, MESSAGE.pack(len(text), len(data)) + text + data)
    return 0


def keep_stored(folder: Path) -> int:
    """Keep a task that was stored, in the foreground."""
    brief = read_json(folder / "brief")
    if not brief:
        print(json.dumps({"already": True, "error": f"no task is stored in {folder}"}), flush=True)
        return os.EX_TEMPFAIL
    return keep(folder, brief)


def keep_detached(folder: Path) -> int:
    """Keep the task that the standard input describes, as a child of nobody."""
    brief = json.loads(sys.stdin.buffer.read())
    if os.fork():
        os._exit(0)
    return keep(folder, brief)


def main() -> int:
    """Do what the command line says. Returns the exit code."""
    verb, *folder = sys.argv[1:]
    if verb == "serve":
        return serve()
    ways = {"keep": keep_stored, "detached": keep_detached}
    return ways[verb](place(folder[0]))


if __name__ == "__main__":
    sys.exit(main())
