"""The keeper of one task: starts it, keeps what it sends, and records its end."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.places.far.files import (
    Json,
    append_line,
    host_name,
    in_words,
    make_folder,
    open_private,
    place,
    read_fresh,
    read_json,
    remove,
    write_json,
    write_once,
)
from ipytaskpersist.places.far.processes import (
    MARK,
    SHARE_OF_TIME,
    SURELY_ALONE,
    Process,
    end_left,
    identity,
    memory_of,
    of_task,
    send_all,
    stop_all,
)
from ipytaskpersist.places.far.spool import END, RETRY_S, Channel, Spool

CHANNEL = "IPYTASKPERSIST_CHANNEL"
"""Environment variable with the number of the descriptor for frames."""
FILES_FOLDER = "files"
"""Folder in which a task runs whose files are sent there, or wanted back."""
PYTHON_FOLDER = "python"
"""Folder of a task in Python with what it was given, and what it leaves."""
READ_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
LOOK_S = 0.1
"""How often a keeper looks for signals, limits and the end of its task."""
PRESS_S = 0.05
"""How often a keeper looks whether a task that was asked to end has done so."""
HEART_S = 5.0
"""How often a keeper touches the state."""
MEMORY_S = 0.25
"""How often the memory of a task with a limit is measured."""
UNSTARTED = "it was asked to end before it was started"
TERMINAL_SIZE = struct.pack("HHHH", 24, 80, 0, 0)


def claim_of(brief: Json) -> Json:
    """Return the claim of this process on a task."""
    return {**identity(), "task_id": brief["task_id"]}


class Signals:
    """The signals that a keeper gets: SIGHUP wakes it, and SIGTERM ends its task.

    They have handlers: what is ignored would be ignored by the task, too.
    """

    def __init__(self) -> None:
        self.is_terminated = False
        self.descriptor, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._terminate)

    def _terminate(self, *_: object) -> None:
        self.is_terminated = True


class Keeper:
    """Starts a task, keeps what it sends, ends it when asked to, and records its end."""

    def __init__(self, folder: Path, brief: Json, signals: Signals, every_s: float) -> None:
        """`every_s` is how often to look for what is asked, unless SIGHUP says that there is."""
        self._folder, self._brief = folder, brief
        self._signals, self._every_s = signals, every_s
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
        self._measure_at = 0.0 if brief.get("memory_bytes") else float("inf")
        self._peak_bytes = self._used_bytes = 0

    # Its start.

    def start(self) -> str:
        """Start the task. Returns the reason in words if that fails, and then that is its end."""
        self._started_at = time.monotonic()
        # It has a block of the disk from now on: a full disk does not keep anyone from asking.
        append_line(self._folder / "asked", "")
        self._read_asked()
        self._asked_bytes = 0  # to stop it, too, may have been asked for
        error = UNSTARTED if self._reason else self._try_to_start()
        if error:
            end = {"status": None, "reason": self._reason or "not started", "error": error}
            record_end(self._folder, self._spool, end)
        else:
            record(self._folder, {"task_pid": self._pid, "started_at": time.time()})
        return error

    def _try_to_start(self) -> str:
        theirs: list[int] = []
        directory = place(self._brief.get("directory") or "~")
        try:
            if self._brief.get("own_directory"):
                directory = self._folder / FILES_FOLDER
                make_folder(directory)
            if not directory.is_dir():
                return f"the directory {directory} does not exist on {host_name()}"
            self._process = self._start_child(directory, theirs)
        except (OSError, ValueError, TypeError) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            if isinstance(error, FileNotFoundError):
                words = "command not found"
            return f"{self._brief['command'][0]}: {words} (on {host_name()})"
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return ""

    def _start_child(self, directory: Path, theirs: list[int]) -> subprocess.Popen[bytes]:
        stdout, stderr = self._open_streams(theirs)
        environment = self._environment()
        command, passed = self._command(), []
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

    def _command(self) -> list[str]:
        """Return the command: of a task in Python, the arguments of this Python are given."""
        command = list(self._brief["command"])
        if not self._brief.get("python"):
            return command
        return [sys.executable or "python3", *command, str(self._folder / PYTHON_FOLDER)]

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
        poll.register(self._signals.descriptor, select.POLLIN)
        for descriptor in () if self._spool.is_blocked else self._readers:
            poll.register(descriptor, select.POLLIN)
        wait_s = max(0.0, wake_at - time.monotonic())
        ready = [descriptor for descriptor, _event in poll.poll(wait_s * 1000)]
        for descriptor in sorted(ready, key=lambda each: each != self._channel):
            if descriptor in self._readers:
                self._read(descriptor)
            else:
                os.read(self._signals.descriptor, 4096)
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
        self._notice_end()
        self._read_asked()
        if self._signals.is_terminated:
            self._end("terminated")
        elif self._looked_at >= self._late_at and self._reason is None:
            self._end("timeout")
        self._measure()
        if self._reason is not None:
            self._press()
        if self._spool.is_blocked:
            self._spool.flush()
        if self._looked_at >= self._heart_at:
            self._beat()
        self._look_at = self._next_look_at

    @property
    def _next_look_at(self) -> float:
        if self._reason is not None:
            return self._looked_at + PRESS_S
        every_s = RETRY_S if self._spool.is_blocked else self._every_s
        return min(self._looked_at + every_s, self._measure_at, self._late_at)

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
            for line in lines.decode(errors="replace").split():
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
    def _late_at(self) -> float:
        """When it has run for as long as it may. Time for which it was stopped does not count."""
        timeout_s = self._brief.get("timeout_s")
        if timeout_s is None or self._paused_since is not None:
            return float("inf")
        return self._started_at + self._paused_s + float(timeout_s)

    def _measure(self) -> None:
        """Measure the memory of a task with a limit, and end it beyond that."""
        if self._looked_at < self._measure_at or self._reason is not None:
            return
        began_at, limit_bytes = time.monotonic(), int(self._brief["memory_bytes"])
        used_bytes = memory_of(self._living(), limit_bytes)
        now = time.monotonic()
        self._measure_at = now + max(MEMORY_S, SHARE_OF_TIME * (now - began_at))
        self._peak_bytes = max(self._peak_bytes, used_bytes)
        if used_bytes > limit_bytes:
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
        record_end(self._folder, self._spool, end)
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


def record(folder: Path, more: Json) -> None:
    """Add to the state of a task. On a full disk that waits, as the output does."""
    path = folder / "state"
    while True:
        try:
            return write_json(path, {**(read_json(path) or {}), **more})
        except FileNotFoundError:
            return None  # the folder was removed
        except OSError:
            time.sleep(RETRY_S)


def record_end(folder: Path, spool: Spool, end: Json) -> None:
    """Record how a task has ended: in its spool, and then in its state."""
    end = {**end, "ended_at": time.time()}
    spool.add(END, json.dumps(end).encode())
    spool.close()
    record(folder, {"end": end})


def withdraw(folder: Path, brief: Json) -> bool:
    """End a task that is stored, instead of a keeper. Returns whether none has claimed it."""
    is_mine = write_once(folder / "claim", {**claim_of(brief), "withdrawn": True})
    if is_mine:
        remove(folder / "brief")
        end = {"status": None, "reason": "asked", "error": UNSTARTED}
        record_end(folder, Spool(folder / "spool"), end)
    return is_mine


def open_script(script: str | None) -> Any:
    """Open a task's script, or nothing. It has no name, so it goes away with its readers."""
    if script is None:
        return open(os.devnull, "rb")
    import tempfile

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


def keep(folder: Path, brief: Json, every_s: float) -> int:
    """Claim a task, start it and keep it. Prints what has become of the start, as JSON."""
    try:
        keeper, said = claimed_and_started(folder, brief, every_s)
    except OSError as error:
        keeper, said = None, {"error": in_words(error)}
    print(json.dumps(said), flush=True)
    if keeper is None:
        return os.EX_TEMPFAIL if "already" in said else os.EX_UNAVAILABLE
    try:
        to_log(folder)
        return keeper.run()
    except BaseException:
        end_left(brief["task_id"])  # nothing runs unseen
        raise


def claimed_and_started(folder: Path, brief: Json, every_s: float) -> tuple[Keeper | None, Json]:
    """Return the keeper of a task that was started, or none, and what has become of the start."""
    signals = Signals()
    if not write_once(folder / "claim", claim_of(brief)):
        return None, {"already": True}
    remove(folder / "brief")
    keeper = Keeper(folder, brief, signals, every_s)
    error = keeper.start()
    return (None, {"error": error}) if error else (keeper, {"started": True})


def to_log(folder: Path) -> None:
    """Let go of the standard streams of the program that started this process."""
    os.chdir("/")
    log = open_private(folder / "log", os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    os.close(nothing)
    os.close(log)
