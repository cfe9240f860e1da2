"""One process task in its supervisor: its start, output, signals and end."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ipytaskpersist.base import checkpoint_folders, process_tree
from ipytaskpersist.base.buffer_names import cut_files
from ipytaskpersist.base.detached import hide_inspection
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_tree import Snapshot
from ipytaskpersist.base.records import WARM, OutputKind, ProcessRecord, ResultRecord, TaskState
from ipytaskpersist.base.retries import WAS_OUT_OF_MEMORY
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.runners.channel import (
    CHECKPOINTED,
    DESCRIPTOR,
    OUTCOME,
    OUTPUTS,
    POST_MORTEM,
    PROGRESS,
    RESULT,
    Receiver,
    as_progress,
    as_result,
)
from ipytaskpersist.runners.gpus import VISIBLE
from ipytaskpersist.runners.warm import NotForked, WarmProcess
from ipytaskpersist.runners.warm_starts import WarmStarts

RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""Unit of ``ru_maxrss`` in getrusage(2)."""
READ_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
TERMINAL_SIZE = (24, 80)
UNKILLABLE_S = 10.0
"""Delay after which a process that survives SIGKILL is reported as stuck.

Such a process hangs in the system or belongs to another user.
"""
STUCK_S = 1.0
"""How often a stuck process is checked until it has ended."""
LIMITS = {
    errno.EAGAIN: "the limit on the number of processes is reached; see ulimit -u",
    errno.EMFILE: "the supervisor's limit on open files is reached; see ulimit -n",
    errno.ENFILE: "the system's limit on open files is reached",
    errno.ENOMEM: "the system has no memory left for another process",
    errno.E2BIG: "its command and environment are longer than the system allows",
}


@dataclass(frozen=True, slots=True)
class End:
    """How a task ended."""

    state: TaskState
    reason: str | None
    exit_code: int | None


SHORTAGES = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Shortages that may pass when another process ends."""


class CannotStart(Exception):
    """The system refused to start the process. The message says why."""

    def __init__(self, message: str, *, is_shortage: bool = False) -> None:
        super().__init__(message)
        self.is_shortage = is_shortage
        """Whether the start may succeed when another process has ended."""


@dataclass(slots=True)
class Ending:
    """The ending of a process that was asked to end."""

    end_state: TaskState
    reason: str
    kill_at: float
    """When SIGTERM has had its time, by the monotonic clock."""


class Supervised:
    """A task's process, from its start to its last byte."""

    def __init__(
        self, record: ProcessRecord, recording: Recording, directory: StateDirectory
    ) -> None:
        self.record = record
        self._directory = directory
        self.recording = recording
        self.results: list[ResultRecord] = []
        """Records of the values that a Python task has saved."""
        self.post_mortem: dict[str, Any] | None = None
        """Variables that a Python task has sent from where it failed."""
        self.readers: dict[int, Callable[[bytes], None]] = {}
        """Open descriptors, each with the function that takes its data."""
        self.ending: Ending | None = None
        self.usage: Any = None
        self.memory_bytes = self.peak_memory_bytes = 0
        """Memory of all its processes when it was last looked at, and the most; of a task with a
        limit."""
        self.leader: process_tree.Process | None = None
        self._started_at = time.monotonic()
        self._paused_since: float | None = None
        self._paused_s = 0.0
        self._status: int | None = None
        self.stuck = ""
        """Description of the processes that survived SIGKILL, once that is certain."""
        self._press_at = 0.0
        self._alone = 0
        """How many checks in a row have found no process of the task."""
        self._receiver = Receiver()
        self._reported: End | None = None
        self._process: subprocess.Popen[bytes] | WarmProcess | None = None
        self.interpreter = record.interpreter
        """Which interpreter a Python task has, in words."""

    # Its start.

    def start(
        self,
        environment: dict[str, str],
        limits: AbstractContextManager[None],
        warm: WarmStarts,
    ) -> None:
        """Start the process within these limits, or fork a warm one. Raises `CannotStart`."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            stdout, stderr = self._open_streams(ours, theirs)
            channel = self._open_channel(ours, theirs)
            whole = self._environment(environment, channel)
            self._process = self._fork(stdout, stderr, channel, whole, warm)
            if self._process is None:
                with self._script() as script:
                    self._process = self._popen(stdout, stderr, channel, script, whole, limits)
        except (OSError, ValueError, TypeError) as error:
            for descriptor in ours:
                os.close(descriptor)
            self.readers.clear()
            is_shortage = isinstance(error, OSError) and error.errno in SHORTAGES
            raise CannotStart(self._in_words(error), is_shortage=is_shortage) from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        # If no descriptor is free to inspect it, it is this process's child all the same.
        with suppress(OSError):
            self.leader = process_tree.find(self._process.pid)

    def _open_streams(self, ours: list[int], theirs: list[int]) -> tuple[int, int]:
        """Open what the process gets as descriptors 1 and 2."""
        if self.record.pty:
            import fcntl
            import struct
            import termios

            master, slave = os.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *TERMINAL_SIZE, 0, 0))
            ours.append(master)
            theirs.append(slave)
            self.readers[master] = self._taker(OutputKind.STDOUT)
            return slave, slave
        return (
            self._open_pipe(ours, theirs, self._taker(OutputKind.STDOUT)),
            self._open_pipe(ours, theirs, self._taker(OutputKind.STDERR)),
        )

    def _open_channel(self, ours: list[int], theirs: list[int]) -> int | None:
        return self._open_pipe(ours, theirs, self._take_frames) if self.is_python else None

    def _open_pipe(self, ours: list[int], theirs: list[int], take: Callable[[bytes], None]) -> int:
        read, write = os.pipe()
        ours.append(read)
        theirs.append(write)
        _widen(read)
        self.readers[read] = take
        return write

    def _taker(self, kind: OutputKind) -> Callable[[bytes], None]:
        return lambda data: self.recording.write(kind, data)

    def _script(self) -> IO[bytes]:
        """Open the process's standard input: its script, or nothing."""
        if self.record.script is None:
            return open(os.devnull, "rb")
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        file.write(self.record.script.encode())
        file.seek(0)
        return file

    def _environment(self, environment: dict[str, str], channel: int | None) -> dict[str, str]:
        """Return the environment of the task's process."""
        whole = {**environment, process_tree.MARK: self.record.task_id}
        if self.record.gpu_ids:
            whole[VISIBLE] = ",".join(self.record.gpu_ids)
        whole.pop(checkpoint_folders.VARIABLE, None)  # that of a command which started all this
        if channel is not None:
            hide_inspection(whole)
            whole[DESCRIPTOR] = str(channel)
        else:
            folder = checkpoint_folders.make_for_command(self._directory, self._place)
            whole[checkpoint_folders.VARIABLE] = str(folder)
        return whole

    @property
    def _place(self) -> str:
        return self.record.checkpoint_place or self.record.task_id

    def _fork(
        self,
        stdout: int,
        stderr: int,
        channel: int | None,
        environment: dict[str, str],
        warm: WarmStarts,
    ) -> WarmProcess | None:
        """Fork a warm process for a Python task. None if the task needs a fresh interpreter."""
        if channel is None or self.record.interpreter is not None:
            return None
        try:
            pid = warm.fork(self.record, environment, (stdout, stderr, channel))
        except NotForked as reason:
            self.interpreter = f"fresh ({reason})"
            return None
        self.interpreter = WARM
        return WarmProcess(pid)

    def _popen(
        self,
        stdout: int,
        stderr: int,
        channel: int | None,
        script: IO[bytes],
        environment: dict[str, str],
        limits: AbstractContextManager[None],
    ) -> subprocess.Popen[bytes]:
        command, passed = list(self.record.command), []
        if self.record.script_as == "file":
            command.append(f"/dev/fd/{script.fileno()}")
            passed.append(script.fileno())
        if channel is not None:
            passed.append(channel)
        # The limits apply to this call only: descriptors opened for the task stay in this process.
        with limits:
            return subprocess.Popen(
                command,
                cwd=self.record.directory,
                env=environment,
                stdin=script if self.record.script_as == "stdin" else subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=passed,
                start_new_session=True,
            )

    def _in_words(self, error: Exception) -> str:
        if not isinstance(error, OSError):
            return f"could not be started: {error}"
        if not Path(self.record.directory).is_dir():
            return f"the directory {self.record.directory} does not exist any more"
        reason = LIMITS.get(error.errno or 0, error.strerror)
        return f"could not be started: {self.record.command[0]}: {reason}"

    @property
    def pid(self) -> int:
        """The pid of the task's own process."""
        assert self._process is not None
        return self._process.pid

    # Its output.

    def read(self, descriptor: int) -> bool:
        """Read available data. Returns False at the end, after closing the descriptor."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except OSError:
            data = b""  # a pseudo-terminal whose other end is closed
        if data:
            self.readers[descriptor](data)
            return True
        del self.readers[descriptor]
        os.close(descriptor)
        return False

    def drop(self, descriptor: int) -> None:
        """Stop reading a descriptor."""
        if self.readers.pop(descriptor, None) is not None:
            os.close(descriptor)

    def is_channel(self, descriptor: int) -> bool:
        """Whether a descriptor is the channel, which is read before the streams."""
        return self.readers.get(descriptor) == self._take_frames

    def _take_frames(self, data: bytes) -> None:
        for code, content in self._receiver.feed(data):
            if code == RESULT:
                self.results.append(as_result(content))
            elif code == POST_MORTEM:
                self.post_mortem = json.loads(content)
            elif code == PROGRESS:
                self.recording.progress(as_progress(content))
            elif code == CHECKPOINTED:
                self.recording.checkpointed(json.loads(content)["at"])
            elif code == OUTCOME:
                fields = json.loads(content)
                self._reported = End(TaskState(fields.pop("state")), **fields)
            else:
                self._record(OUTPUTS[code], content)

    def _record(self, kind: OutputKind, content: bytes) -> None:
        if kind is OutputKind.STDOUT or kind is OutputKind.STDERR:
            self.recording.write(kind, content)
        else:
            self.recording.add_encoded(kind, content)

    # Its end.

    def has_just_ended(self) -> bool:
        """Whether the process has ended since the last check.

        If the system allows, the process is not reaped yet. Until then its pid, process group and
        session numbers cannot be reused.
        """
        if self._status is not None:
            return False
        if not hasattr(os, "waitid"):
            return self.reap()
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            has_exited = found.si_code == os.CLD_EXITED
            self._status = found.si_status << 8 if has_exited else found.si_status
        return found is not None

    def reap(self) -> bool:
        """Reap the process and record its usage. Returns whether it had ended."""
        assert self._process is not None
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            return False  # already reaped
        if pid:
            self._status, self.usage = status, usage
            self._process.returncode = os.waitstatus_to_exitcode(status)
        return bool(pid)

    @property
    def used(self) -> tuple[float, int] | None:
        """Processor time in seconds and peak memory in bytes; None before it is reaped."""
        usage = self.usage
        if usage is None:
            return None
        peak_bytes = max(usage.ru_maxrss * RSS_UNIT_BYTES, self.peak_memory_bytes)
        return usage.ru_utime + usage.ru_stime, peak_bytes

    def pause(self) -> list[str]:
        """Stop all processes of the task. Returns which could not be stopped."""
        self._paused_since = self._paused_since or time.monotonic()
        return process_tree.stop_task(self.record.task_id, self.leader)

    def go_on(self) -> None:
        """Let the task's processes go on."""
        if self._paused_since is not None:
            self._paused_s += time.monotonic() - self._paused_since
            self._paused_since = None
        process_tree.continue_task(self.record.task_id, self.leader)

    def ask_to_end(
        self, state: TaskState, reason: str, snapshot: Snapshot, *, at_once: bool = False
    ) -> None:
        """Send SIGTERM to all processes of the task. `press` continues from there.

        With `at_once`, it sends SIGKILL next, without the grace period.
        """
        if self.ending is not None:
            return
        grace_s = 0.0 if at_once else self.record.grace_s
        self.ending = Ending(state, reason, time.monotonic() + grace_s)
        self._signal_group(signal.SIGTERM)
        others = [each for each in self._living(snapshot) if not _is_in_group(each, self.pid)]
        process_tree.send_all(others, signal.SIGTERM)
        if self._paused_since is not None:
            self.go_on()  # a stopped process cannot handle a signal

    def press(self, snapshot: Snapshot) -> None:
        """Continue the ending: look for survivors, and send SIGKILL after the grace period."""
        assert self.ending is not None
        living, now = self._living(snapshot), time.monotonic()
        self._alone = 0 if living else self._alone + 1
        # The leader exists even if no process can be found, as in a foreign /proc.
        if (living or self._status is None) and now >= self.ending.kill_at:
            self._signal_group(signal.SIGKILL)
            refused = process_tree.send_all(living, signal.SIGKILL)
            if living and now > self.ending.kill_at + UNKILLABLE_S:
                self.stuck = ", ".join(refused or map(process_tree.outlasting, living))
                self._press_at = now + STUCK_S

    @property
    def is_to_press(self) -> bool:
        """Whether the ending should be continued now."""
        return self.ending is not None and time.monotonic() >= self._press_at

    def _living(self, snapshot: Snapshot) -> list[process_tree.Process]:
        return snapshot.of_task(self.record.task_id, self.leader)

    def _signal_group(self, number: int) -> None:
        """Signal the whole group at once. Its leader is not reaped, so the number is not reused."""
        assert self._process is not None
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    @property
    def is_late(self) -> bool:
        """Whether the process has exceeded its time limit and was not asked to end yet."""
        timeout_s = self.record.timeout_s
        if timeout_s is None or self.ending is not None or self._paused_since is not None:
            return False
        return time.monotonic() - self._started_at - self._paused_s > timeout_s

    @property
    def is_over(self) -> bool:
        """Whether the process has ended, and no other process of the task can print."""
        if self._status is None:
            return False
        if self.ending is None:
            return not self.readers
        return self._alone >= process_tree.SURELY_ALONE

    def note_checkpoint(self) -> None:
        """Record what a command has left in its folder of checkpoints, once it has ended."""
        if not self.is_python:
            left = checkpoint_folders.latest(self._directory, self._place, self.record.kind)
            if left is not None:
                self.recording.checkpointed(left.at)
            else:
                checkpoint_folders.remove_if_empty(self._directory, self._place)

    def close(self) -> None:
        """Read the remaining output and close the descriptors.

        Later output from unrelated programs that still hold a stream is not recorded.
        """
        for descriptor in list(self.readers):
            for _piece in range(PIPE_BYTES // READ_BYTES):
                if not _has_more(descriptor) or not self.read(descriptor):
                    break
            self.drop(descriptor)

    def end(self, out_of_memory: Callable[[], bool]) -> End:
        """Return how the task ended. `out_of_memory` asks if the OOM killer has just acted."""
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        if self.ending is not None:
            return End(self.ending.end_state, self.ending.reason, code)
        if self._reported is not None and self._reported.exit_code == code:
            return self._reported
        if code is not None and code < 0:
            why = self._why_killed(-code, out_of_memory)
            return End(TaskState.FAILED, f"killed by {process_tree.signal_name(-code)}{why}", code)
        if code == 0 and self.is_python:
            return End(TaskState.FAILED, "the process ended before its cell did", code)
        if code == 0:
            return End(TaskState.COMPLETED, None, 0)
        return End(TaskState.FAILED, f"exit status {code}", code)

    def _why_killed(self, signal_number: int, out_of_memory: Callable[[], bool]) -> str:
        """Return what is known about the cause of a deadly signal, to be put after its name."""
        if signal_number == signal.SIGKILL and out_of_memory():
            return f" {WAS_OUT_OF_MEMORY}"
        if signal_number == signal.SIGBUS:
            # The system sends it for a page of a mapped file behind the file's end.
            for path in cut_files(self._directory.payloads / self.record.task_id):
                return f": {path}, which it was given, was cut while it ran"
        return ""

    @property
    def is_python(self) -> bool:
        """Whether the process runs a Python cell, which reports its own end."""
        return self.record.kind == "python"


def _is_in_group(process: process_tree.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group
    except OSError:
        return False


def _widen(descriptor: int) -> None:
    """Enlarge a pipe beyond 64 KiB, where the system allows it."""
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _has_more(descriptor: int) -> bool:
    # Unlike select.select, poll takes descriptors above 1023.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
