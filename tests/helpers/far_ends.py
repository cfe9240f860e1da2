"""An agent in a process of its own, as on another machine, and what a supervisor asks it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from kernels import PATIENCE

from ipytaskpersist.places.far.files import read_json
from ipytaskpersist.places.far.processes import end_left, is_there, of_task
from ipytaskpersist.places.far.spool import CRC, END, FRAME
from ipytaskpersist.places.messages import (
    FarEnd,
    Frame,
    Json,
    MessageReader,
    SpoolReader,
    agent_text,
    as_end,
    pack,
)

ENDED_S = 30.0


class FarEnds:
    """A server of the agent, as ssh starts one. It may be killed, and is started again."""

    def __init__(self, home: Path, *command: str) -> None:
        """`command` starts its Python: this one, when there is none."""
        home.mkdir(exist_ok=True)
        self.home = home
        self.folder = home / "tasks"
        # The agent ends a task's processes by its id, and other tests run beside this one.
        self.session = hashlib.sha256(os.fsencode(home)).hexdigest()[:8]
        self._command = command or (sys.executable,)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = MessageReader()
        self._messages: Iterator[tuple[Json, bytes]] = iter(())

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server, started when it is not there."""
        if self._process is None or self._process.poll() is not None:
            self._reader = MessageReader()
            self._process = subprocess.Popen(
                [*self._command, "-c", agent_text(), "serve"],
                env={**os.environ, "HOME": str(self.home), "SECRET": "of the far end"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        return self._process

    def send(self, content: Json, data: bytes = b"") -> None:
        """Send a request without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(pack(content, data))
        self.process.stdin.flush()

    def receive(self) -> tuple[Json, bytes]:
        """Return the next answer. Raises `EOFError` when the server has ended."""
        for message in self._messages:
            return message
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 1024 * 1024):
            self._messages = self._reader.feed(data)
            for message in self._messages:
                return message
        raise EOFError

    def ask(self, verb: str, data: bytes = b"", **content: Any) -> Json:
        """Return the answer to a request, which must be no error."""
        return self.ask_for(verb, data, **content)[0]

    def ask_for(self, verb: str, data: bytes = b"", **content: Any) -> tuple[Json, bytes]:
        """Do the same, with the bytes of the answer."""
        self.send({"verb": verb, **content}, data)
        answer, binary = self.receive()
        assert "error" not in answer, answer["error"]
        return answer, binary

    def refusal(self, verb: str, data: bytes = b"", **content: Any) -> str:
        """Return the words with which a request is refused."""
        self.send({"verb": verb, **content}, data)
        answer, _binary = self.receive()
        return str(answer["error"])

    def task(self, name: str = "1") -> FarTask:
        """Return a task of this name, which may not exist yet."""
        return FarTask(self, self.folder / f"{self.session}-{name}")

    def start(self, *command: str, name: str = "1", **brief: Any) -> FarTask:
        """Start a task."""
        task = self.task(name)
        answer = task.start(*command, **brief)
        assert answer.get("started"), answer
        return task

    def kill(self) -> None:
        """Kill the server and whatever is still in its group and in its session."""
        if self._process is not None:
            members = [each for each in psutil.pids() if session_of(each) == self._process.pid]
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    stream and stream.close()

    def close(self) -> None:
        """End the server and all keepers and tasks below its home."""
        self.kill()
        for path in self.home.rglob("claim"):
            claim = read_json(path) or {}
            pid = claim.get("pid", 0)
            if pid == os.getpid():
                continue
            if is_there(pid, claim.get("start", "")):
                os.kill(pid, signal.SIGKILL)
            end_left(claim.get("task_id", "?"))


@dataclass
class FarTask:
    """A task of a far end, and what of its spool was read."""

    far: FarEnds
    folder: Path
    frames: list[Frame] = field(default_factory=list)
    reader: SpoolReader = field(default_factory=SpoolReader)

    def start(self, *command: str, detach: bool = True, **brief: Any) -> Json:
        """Ask for its start. Returns the answer, which may be an error."""
        brief = {"task_id": self.folder.name, "command": command, "grace_s": 5.0, **brief}
        self.far.send(
            {"verb": "start", "folder": str(self.folder), "brief": brief, "detach": detach}
        )
        return self.far.receive()[0]

    def look(self) -> Json:
        """Return what is known of it."""
        (found,) = self.far.ask("look", folders=[str(self.folder)])["looks"]
        return dict(found)

    def state(self) -> str:
        """Return its state."""
        return str(self.look()["state"])

    def signal(self, what: str) -> Json:
        """Ask for a signal."""
        return self.far.ask("signal", folder=str(self.folder), what=what)

    def pull(self, wait_s: float = 1.0, at_most: int = 4 * 1024 * 1024) -> Json | None:
        """Read what it has sent since. Returns the look that came with it."""
        tasks = [[str(self.folder), self.reader.wanted]]
        answer, data = self.far.ask_for("read", tasks=tasks, wait_s=wait_s, at_most=at_most)
        ((size, look),) = answer["tasks"]
        assert size == len(data)
        self.frames += self.reader.feed(data)
        return dict(look) if look is not None else None

    def text(self, kind: bytes = b"o") -> str:
        """Return what it has printed, as far as that was read."""
        return self.data(kind).decode()

    def data(self, kind: bytes = b"o") -> bytes:
        """Return the data of all frames of a kind, as far as they were read."""
        return b"".join(frame.data for frame in self.frames if frame.kind == kind)

    def wait_for(self, text: str) -> None:
        """Read until it has printed this."""
        self._pull_until(lambda: text in self.text(), text)

    def end(self) -> FarEnd:
        """Read until its end, and return that."""
        kind = END
        self._pull_until(lambda: [each.kind for each in self.frames[-1:]] == [kind], "its end")
        return as_end(self.frames[-1].data)

    def _pull_until(self, condition: Callable[[], bool], message: str) -> None:
        deadline = time.monotonic() + ENDED_S * PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{message} did not come; {self.look()}"
            self.pull()

    @property
    def keeper(self) -> int:
        """The pid of its keeper."""
        return int((read_json(self.folder / "claim") or {})["pid"])

    def processes(self) -> list[int]:
        """The pids of its processes."""
        return [each.pid for each in of_task(self.folder.name, None)]


def frame(kind: bytes, data: bytes) -> bytes:
    """Return a frame as a keeper writes it."""
    whole = FRAME.pack(kind, len(data)) + data
    return whole + CRC.pack(zlib.crc32(whole))


def session_of(pid: int) -> int:
    """The session of a process, 0 without it."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def is_running(pid: int) -> bool:
    """Whether there is a process with this pid that has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
