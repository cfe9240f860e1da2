"""The fork server: an interpreter that has imported what its session's tasks import.

A supervisor starts it, and has it fork processes, which wait for a Python task that so begins
without importing anything. The two speak through a socket that only they have, and each forked
process has one of its own. The server is expendable: when it ends, or does not answer, a task is
started in a fresh interpreter instead.
"""

from __future__ import annotations

import json
import os
import pickle  # what its own supervisor sends  # nosec B403
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from IPython.core.completer import CompletionSplitter

from ipytaskpersist.base.detached import NO_TASK
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.runners import child, freshness, leaving, shown_environment
from ipytaskpersist.runners.adoption import end_with_parent
from ipytaskpersist.runners.channel import DESCRIPTOR
from ipytaskpersist.runners.fork_work import FORK, GO, IMPORT, READY, Work
from ipytaskpersist.runners.imported_files import ImportedFiles
from ipytaskpersist.runners.machine_limits import is_memory_short
from ipytaskpersist.runners.preloading import Preloading
from ipytaskpersist.runners.rehearsal import import_what_a_start_does, prepare_shell, rehearse
from ipytaskpersist.runners.task_rows import TaskRows

IDLE_S = 600.0
"""Time without a task after which a server leaves."""
MEMORY_LOOK_S = 10.0
AT_ONCE_BYTES = 64
DESCRIPTORS = 8


class Task(NamedTuple):
    """What a forked process is to run, and the descriptors that it was given."""

    work: Work
    stdout: int
    stderr: int
    channel: int


class ForkServer:
    """The one thread of this process."""

    def __init__(self, root: Path, connection: socket.socket) -> None:
        self._root = root
        self._connection = connection
        self._preloading = Preloading()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._files = ImportedFiles(())

    def serve(self) -> Task:
        """Do what the supervisor asks for. Returns only in the process of a task."""
        while True:
            letter, descriptors = self._receive()
            if letter == IMPORT:
                modules, rows = pickle.loads(_content(descriptors.pop()))  # nosec B301
                self._prepare_shell(rows)
                self._import(modules)
            elif letter == FORK:
                task = self._fork(descriptors[0])
                if task is not None:
                    return task
            for descriptor in descriptors:
                os.close(descriptor)

    def _receive(self) -> tuple[bytes, list[int]]:
        """Wait for a message. Ends this process if none comes, or when memory is short."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        for _look in range(round(IDLE_S / MEMORY_LOOK_S)):
            if poll.poll(MEMORY_LOOK_S * 1000):
                letter, descriptors, *_rest = socket.recv_fds(
                    self._connection, AT_ONCE_BYTES, DESCRIPTORS
                )
                if letter:
                    return letter, descriptors
                leave()  # the supervisor is gone
            if is_memory_short():
                leave()
        return leave()

    def _say(self, **message: object) -> None:
        with suppress(OSError):
            self._connection.send(json.dumps(message).encode())

    # Preparing.

    def _prepare_shell(self, rows: TaskRows) -> None:
        """Create a shell as a task has it."""
        with suppress(Exception):  # then each task creates its own
            prepare_shell(self._root, rows)

    def _import(self, names: Sequence[str]) -> None:
        """Import modules. Afterwards this process is ready, or says why it must be replaced."""
        bad: dict[str, str] = {}
        self._files.close()
        for name in names:
            if name not in sys.modules:
                self._say(importing=name)
                why = self._preloading.load(name)
                if why:
                    bad[name] = why
                if why and not why.startswith("its import fails"):
                    break  # what the next ones do could not be told from that
        if bad:
            self._say(left_out=bad)
            leave()
        os.umask(self._umask)
        freshness.freeze()
        self._files = ImportedFiles([*sys.modules.values()])
        packages = {name.partition(".")[0] for name in names}
        self._say(ready=sorted(packages))

    # Forking.

    def _fork(self, descriptor: int) -> Task | None:
        """Fork a process that waits for its task. The supervisor becomes its parent.

        Returns None in this process. `descriptor` is the new process's end of a socket.
        """
        self._files.look_ahead()
        try:
            middle = os.fork()
            if middle == 0:
                middle = os.getpid()
                fork_or_exit()
                return self._wait_for_task(descriptor, middle)
            _pid, status = os.waitpid(middle, 0)
        except OSError as error:
            os.write(descriptor, str(error.strerror).encode())
            return None
        if status:
            os.write(descriptor, os.strerror(os.waitstatus_to_exitcode(status)).encode())
        return None

    def _wait_for_task(self, descriptor: int, middle: int) -> Task:
        """Wait in a new process for a task, until the supervisor knows of it. Or end the process.

        It must not go on as a second server, whatever happens here.
        """
        supervisor = socket.socket(fileno=descriptor)
        try:
            self._connection.detach()
            _close_all_but(descriptor, self._files.descriptor)
            os.setsid()
            while os.getppid() == middle:
                os.sched_yield()
            supervisor.send(f"{os.getpid()} {os.getppid()}".encode())
            freshness.draw_anew()
            rehearse(lambda: _has_message(supervisor))
            letter, descriptors, *_rest = socket.recv_fds(supervisor, AT_ONCE_BYTES, DESCRIPTORS)
            if letter:
                task = Task(pickle.loads(_content(descriptors[0])), *descriptors[1:])  # nosec B301
                supervisor.send(self._be_of(task.work))
                if supervisor.recv(AT_ONCE_BYTES) == GO:
                    return task
        except BaseException as error:
            with suppress(OSError):
                supervisor.send(f"{type(error).__name__}: {error}".encode())
        os._exit(1)

    def _be_of(self, work: Work) -> bytes:
        """Make this process a task's, as others see it. Returns `READY`, or why it cannot be."""
        if self._files.have_changed:
            return b"packages have changed"
        os.chdir(work.directory)
        freshness.set_environment(work.environment)
        shown = {MARK.encode(): os.environb[MARK.encode()], **os.environb}
        shown_environment.show(shown, work.rows.process.command)
        return READY


def fork_or_exit() -> None:
    """Fork, and end the calling process. Returns in the new one."""
    try:
        if os.fork():
            os._exit(0)
    except OSError as error:
        os._exit(error.errno or 1)


def become(task: Task) -> None:
    """Make this process like a fresh interpreter that was started for the task."""
    os.dup2(task.stdout, 1)
    os.dup2(task.stderr, 2)
    _close_all_but(task.channel)
    os.environ[DESCRIPTOR] = str(task.channel)
    sys.orig_argv = [*task.work.rows.process.command]
    sys.argv = ["-c", *sys.orig_argv[-1:]]
    freshness.thaw()


def _has_message(source: socket.socket) -> bool:
    """Return whether something has arrived, or the other end was closed."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(0))


def _close_all_but(*kept: int) -> None:
    """Close all descriptors but these and the three standard ones."""
    begin = 3
    for descriptor in sorted(each for each in kept if each >= begin):
        os.closerange(begin, descriptor)
        begin = descriptor + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))


def _content(descriptor: int) -> bytes:
    """Return the content of a file, and close it."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def leave() -> NoReturn:
    """End this process without running what its modules have registered for the end."""
    os._exit(0)


def _be_ready(root: Path) -> None:
    """Do what the start of every task does, as far as it can be done once."""
    import_what_a_start_does(StateDirectory(root))
    CompletionSplitter()  # compiles a long expression, which `re` keeps


def main() -> None:
    """Serve a supervisor. Arguments: state directory, its pid, number of the socket."""
    root = Path(sys.argv[1])
    parent, number = map(int, sys.argv[2:])
    end_with_parent(parent, signal.SIGKILL)
    shown_environment.move_away()
    shown_environment.show({MARK.encode(): NO_TASK.encode(), **os.environb})
    _be_ready(root)
    connection = socket.socket(fileno=number)
    task = ForkServer(root, connection).serve()
    become(task)
    sys.modules.pop(__name__, None)
    shared, status = frozenset(sys.modules), None
    try:
        child.main(task.work.rows)
    except SystemExit as end:
        status = end.code
    if isinstance(status, int):
        leaving.leave(status, shared)
    sys.exit(status)
