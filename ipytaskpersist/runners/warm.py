"""A fork server as its supervisor sees it: start it, have it fork a task's process, end it.

The supervisor never waits for it longer than a moment.
"""

from __future__ import annotations

import json
import os
import pickle  # it only writes  # nosec B403
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from ipytaskpersist.base.detached import own_environment, python_code
from ipytaskpersist.base.records import ProcessRecord
from ipytaskpersist.runners.adoption import adopting
from ipytaskpersist.runners.fork_work import FORK, GO, IMPORT, READY, START, Work
from ipytaskpersist.runners.shown_environment import ROOM, ROOM_BYTES
from ipytaskpersist.runners.task_rows import TaskRows

ANSWER_S = 1.0
"""Time for a fork. A server that takes longer is ended."""
MESSAGE_BYTES = 256 * 1024
SAID_BYTES = 2000


class NotForked(Exception):
    """A fork server has not forked a task's process. The message says why."""


class WarmProcess:
    """A process that a fork server has forked, with what is used of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None


class WaitingProcess:
    """A process that a fork server has forked, and that waits for its task."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._socket = connection

    def start(self, work: Work, streams: Sequence[int]) -> None:
        """Have it run a task. Raises `NotForked`."""
        try:
            _send(self._socket, START, work, streams)
            said = _answer(self._socket)
            if said != READY.decode():
                raise NotForked(said)
            self._socket.send(GO)
        except OSError as error:
            raise _not_forked(error) from error

    def close(self) -> None:
        """Let go of it. It ends, unless it runs a task."""
        self._socket.close()


class ForkServer:
    """One fork server."""

    def __init__(
        self,
        process: ProcessRecord,
        environment: Mapping[str, str],
        limits: AbstractContextManager[None],
    ) -> None:
        """Start one with the interpreter of a task. Raises `OSError`."""
        self.program = program_of(process)
        self.environment = own_environment(environment)
        self.packages: Sequence[str] = ()
        """Names of the packages that it has imported."""
        self.modules: Sequence[str] = ()
        """Modules that it was asked to import."""
        self.importing = ""
        """The module that it imports now."""
        self.is_ready = False
        self.heard_at = time.monotonic()
        self._waiting: WaitingProcess | None = None
        """A process that was forked ahead."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said, printed = os.pipe()
        self._socket.setblocking(False)
        os.set_blocking(self._said, False)
        try:
            with limits:
                self._process = subprocess.Popen(
                    self._command(process, theirs.fileno()),
                    cwd="/",
                    env={**self.environment, ROOM: "." * ROOM_BYTES},
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()
            os.close(printed)

    @staticmethod
    def _command(process: ProcessRecord, descriptor: int) -> list[str]:
        root, own = process.command[-1], (str(os.getpid()), str(descriptor))
        return [*program_of(process), python_code("runners.fork_server"), root, *own]

    @property
    def pid(self) -> int:
        """The pid of the server."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """The pids of the server, and of a process that waits for a task."""
        return [self.pid, *([] if self._waiting is None else [self._waiting.pid])]

    @property
    def descriptor(self) -> int:
        """Becomes readable when the server says something or ends."""
        return self._socket.fileno()

    def ask_to_import(self, modules: Sequence[str], rows: TaskRows) -> None:
        """Have it import modules, in this order, for tasks like this one. Raises `OSError`."""
        self.is_ready, self.modules, self.heard_at = False, modules, time.monotonic()
        self._forget_waiting()
        _send(self._socket, IMPORT, (list(modules), rows), ())

    def take(self) -> dict[str, Any] | None:
        """Take its next message. None when it has ended; empty when there is no message."""
        try:
            data = self._socket.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return {}
        except OSError:
            return None
        if not data:
            return None
        self.heard_at = time.monotonic()
        message: dict[str, Any] = json.loads(data)
        self.importing = message.get("importing", "")
        if "ready" in message:
            self.packages, self.is_ready = message["ready"], True
        return message

    @property
    def has_waiting(self) -> bool:
        """Whether a process waits for the next task."""
        return self._waiting is not None

    def prefork(self) -> None:
        """Have it fork a process that waits for the next task. Raises `NotForked`."""
        if self._waiting is None:
            self._waiting = self._fork()

    def fork(
        self,
        process: ProcessRecord,
        rows: TaskRows,
        environment: Mapping[str, str],
        streams: Sequence[int],
    ) -> int:
        """Start a task in a process that it has forked. Returns its pid.

        `streams` are its descriptors: stdout, stderr and the channel. Raises `NotForked`:
        no process of the task then runs.
        """
        work = Work(process.directory, _changes(self.environment, environment), rows)
        self.prefork()
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        try:
            waiting.start(work, streams)
        finally:
            waiting.close()
        return waiting.pid

    def _fork(self) -> WaitingProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, adopting():
                socket.send_fds(self._socket, [FORK], [theirs.fileno()])
                theirs.close()
                said = _answer(ours)
            pid, _space, parent = said.partition(" ")
            if parent != str(os.getpid()):
                raise NotForked(said)
        except BaseException as error:
            ours.close()
            raise _not_forked(error) from error
        return WaitingProcess(int(pid), ours)

    def _forget_waiting(self) -> None:
        """End the process that waits, if there is one: it notices that its socket is closed."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def end(self) -> str:
        """End it. Returns the last of what it has printed."""
        self._forget_waiting()
        with suppress(OSError, subprocess.TimeoutExpired):  # one that hangs in the system
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(ANSWER_S)
        said = b""
        with suppress(OSError):
            said = os.read(self._said, MESSAGE_BYTES)
        self._close()
        return said[-SAID_BYTES:].decode(errors="replace").strip()

    def _close(self) -> None:
        self._socket.close()
        os.close(self._said)


def _send(
    target: socket.socket, letter: bytes, content: object, descriptors: Sequence[int]
) -> None:
    """Send a message with content, as `fork_work` describes. Raises `OSError`."""
    with open(os.memfd_create("ipytaskpersist"), "wb") as file:
        pickle.dump(content, file)
        file.flush()
        socket.send_fds(target, [letter], [file.fileno(), *descriptors])


def _answer(source: socket.socket) -> str:
    """Wait for an answer, a moment only. Raises `NotForked` if there is none, and `OSError`."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if not poll.poll(ANSWER_S * 1000):
        raise NotForked(f"the warm one did not answer within {ANSWER_S:g} s")
    text = source.recv(MESSAGE_BYTES).decode(errors="replace")
    if not text:
        raise NotForked("the warm one ended")
    return text


def _not_forked(error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        return NotForked(f"the warm one failed: {error.strerror}")
    return error


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    changed: dict[str, str | None] = {
        name: value for name, value in after.items() if before.get(name) != value
    }
    removed = dict.fromkeys(name for name in before if name not in after)
    return {**changed, **removed}


def program_of(process: ProcessRecord) -> list[str]:
    """Return the interpreter of a Python task, with its flags."""
    return list(process.command[:-2])


def is_usual(process: ProcessRecord) -> bool:
    """Return whether a Python task runs this package's code, as this version starts it."""
    return process.kind == "python" and process.command[-2:-1] == [python_code("runners.child")]
