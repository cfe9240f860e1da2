"""One store, and the processes that use it: kernels, IPython sessions, command lines, supervisors.

Every process can be armed with faults. One that is stopped is woken again after a while.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from kernels import NotebookKernel, end_processes_of, processes_of, until
from programs import environment

import ipytaskpersist
from faults.points import ARMED, FOLDER, Fault, role_of
from ipytaskpersist.base.process_tree import MARK

STOPPED_S = 30.0
"""How long a process is stopped."""
WAIT_S = 120.0
"""How long a cell or a command may take, with a process that holds a lock stopped meanwhile."""
WAKING_S = 0.05

SESSION = """
"faults-session"
import contextlib, io, json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for line in sys.stdin:
    said = io.StringIO()
    is_done = False
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            # As in a kernel a stop button is heard while a cell runs.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            is_done = shell.run_cell(json.loads(line)).success
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(json.dumps([is_done, said.getvalue()]), file=answers, flush=True)
"""


class Gone(Exception):
    """The process has ended before it answered."""


class Said:
    """What became of a cell or a command."""

    def __init__(self, is_done: bool, text: str, *, was_killed: bool = False) -> None:
        self.is_done = is_done
        """Whether it was acknowledged."""
        self.text = text
        self.was_killed = was_killed


class Session:
    """IPython in a process of its own, without a kernel: quickly started, and just as real."""

    role = "session"

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION], env=environment, text=True, cwd=log.parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, source: str) -> Said:
        """Run a cell. Raises `Gone`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(source) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError as error:
            raise Gone from error
        if not answer:
            raise Gone
        return Said(*json.loads(answer))

    def end(self) -> None:
        """Let it end by itself, as at the end of its input; by force when it does not."""
        with suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self._log.close()


class Kernel:
    """A real kernel, with a front end."""

    role = "kernel"

    def __init__(self, state_dir: Path, environment: dict[str, str]) -> None:
        self._stack = ExitStack()
        try:
            self.kernel = self._stack.enter_context(NotebookKernel(state_dir, env=environment))
        except AssertionError as error:
            raise Gone from error

    @property
    def pid(self) -> int:
        return self.kernel.pid

    def run(self, source: str) -> Said:
        """Run a cell. Raises `Gone`."""
        try:
            cell = self.kernel.run(source, timeout=WAIT_S, check=False)
        except AssertionError as error:
            if self.kernel.alive:
                raise
            raise Gone from error
        return Said(cell.error is None, cell.text)

    def end(self) -> None:
        """Shut it down, or take away what is left of it."""
        self._stack.close()


Actor = Session | Kernel


class World:
    """A state directory and all that happens in it, which ends with it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._stack = ExitStack()
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)
        )
        self.folder = Path(folder)
        self.state_dir = self.folder / "state"
        self.notebook = self.folder / "work.ipynb"
        self.faults = faults
        self.sprung: list[str] = []
        """The faults that have happened."""
        self._marks = self.folder / "marks"
        self._marks.mkdir()
        self._actors: list[Actor] = []
        self._over = threading.Event()
        self._nurse = threading.Thread(target=self._wake, daemon=True)
        self._nurse.start()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._nurse.join()
        for process in processes_of(self.state_dir):
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        end_processes_of(self.state_dir)
        self.end_actors()
        self._stack.close()

    # Who takes part.

    def environment(self, *, armed: bool = True) -> dict[str, str]:
        source = str(Path(ipytaskpersist.__file__).parents[1])
        known = {
            "IPYTASKPERSIST_NOTEBOOK": str(self.notebook),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "inject"), source]),
            FOLDER: str(self._marks),
        }
        if armed and self.faults:
            known[ARMED] = ",".join(fault.text for fault in self.faults)
        return environment(self.state_dir, known)

    def session(self, *, armed: bool = True) -> Session:
        """An IPython with the extension loaded. Raises `Gone`."""
        log = self.folder / f"session-{len(self._actors)}.log"
        return self._joined(Session(self.environment(armed=armed), log))

    def kernel(self, *, armed: bool = True) -> Kernel:
        """A kernel with the extension loaded. Raises `Gone`."""
        return self._joined(Kernel(self.state_dir, self.environment(armed=armed)))

    def _joined(self, actor: Any) -> Any:
        self._actors.append(actor)
        actor.run("%load_ext ipytaskpersist")
        return actor

    def leave(self, actor: Actor) -> None:
        """End an actor, whatever state it is in."""
        self._actors.remove(actor)
        actor.end()

    def end_actors(self) -> None:
        """End all that are left."""
        while self._actors:
            self._actors.pop().end()

    def start(self, *arguments: str, armed: bool = True) -> subprocess.Popen[str]:
        """Start a verb as in a terminal."""
        return subprocess.Popen(
            [sys.executable, "-m", "ipytaskpersist", *arguments], cwd=self.folder, text=True,
            env=self.environment(armed=armed), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def command(self, *arguments: str, armed: bool = True) -> Said:
        """Run a verb as in a terminal, to its end."""
        with self.start(*arguments, armed=armed) as program:
            try:
                text, _ = program.communicate(timeout=WAIT_S)
            finally:
                program.kill()
        return Said(program.returncode == 0, text, was_killed=program.returncode < 0)

    # What happens to them.

    def strike(self, role: str, name: str, dice: random.Random) -> None:
        """Send a signal to one of the processes of a role: to any when there is none."""
        found = {process: role_of(_command_line(process)) for process in self.processes()}
        chosen = [each for each, its in found.items() if its == role] or [*found]
        if not chosen:
            return
        victim = dice.choice(sorted(chosen, key=lambda process: process.pid))
        with suppress(psutil.Error):
            victim.send_signal(signal.Signals[name])
            role = found[victim] or "task"
            self.sprung.append(f"{role}/at random/{name}")
            if name == "SIGSTOP":
                (self._marks / f"{role}~at random~{victim.pid}~SIGSTOP").write_text(str(victim.pid))

    def processes(self) -> list[psutil.Process]:
        """All processes that keep their tasks here."""
        return processes_of(self.state_dir)

    def command_lines(self) -> list[str]:
        """What they were started as, for who wonders why they are there."""
        return [_command_line(process) for process in self.processes()]

    def processes_of_tasks(self) -> dict[int, str]:
        """The processes that belong to a task, each with its task's id."""
        found = {}
        for process in self.processes():
            with suppress(psutil.Error, OSError):
                # A process that is a zombie, or is just being started, has no environment.
                if task := process.environ().get(MARK):
                    found[process.pid] = task
        return found

    @property
    def is_any_stopped(self) -> bool:
        """Whether a process is stopped now."""
        return bool(self._stopped())

    def wait_for_the_stopped(self) -> None:
        """Wait until everything that was stopped goes on."""
        until(lambda: not self._stopped(), STOPPED_S + 30, "the waking of what was stopped")

    def collect(self) -> None:
        """Note which of the armed faults have happened."""
        for fault in self.faults:
            if (self._marks / fault.text.replace("/", "~")).exists():
                self.sprung.append(f"{fault.role}/{fault.point}/{fault.signal}")

    def _stopped(self) -> list[Path]:
        return [mark for mark in self._marks.glob("*SIGSTOP") if not _woken(mark).exists()]

    def _wake(self) -> None:
        """Send SIGCONT to what has been stopped long enough."""
        while not self._over.wait(WAKING_S):
            for mark in self._stopped():
                text = mark.read_text()
                if text and time.time() - mark.stat().st_mtime > STOPPED_S:
                    with suppress(ProcessLookupError):
                        os.kill(int(text), signal.SIGCONT)
                    _woken(mark).touch()


def _woken(mark: Path) -> Path:
    return mark.with_suffix(".woken")


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def quietly(call: Callable[[], Any]) -> Any:
    """What a call gives; None when its process has gone."""
    try:
        return call()
    except Gone:
        return None
