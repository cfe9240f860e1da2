"""The program that carries messages to the agent of one place, and the answers that are awaited.

It is started when something is asked, and again after it has ended. It reconnects by itself, and
answers in order; a place that does not answer is an answer, too.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ipytaskpersist.base.detached import own_environment
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.places.connecting import connection_command
from ipytaskpersist.places.messages import MessageDamaged, MessageReader, pack

Json = dict[str, Any]
Take = Callable[[Json, bytes], None]
READ_BYTES = 1024 * 1024
AGAIN_S = 2.0
"""Time before the program is started again after it has ended."""
SAID_BYTES = 2000


def unreachable(words: str) -> Json:
    """Return the answer to a request with which a place could not be asked."""
    return {"error": words, "unreachable": True}


class Link:
    """One place as its supervisor sees it."""

    def __init__(
        self, place: Mapping[str, Any], directory: StateDirectory, selector: selectors.BaseSelector
    ) -> None:
        self._place = place
        self._directory = directory
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._messages = MessageReader()
        self._unsent = bytearray()
        self._awaiting: deque[Take] = deque()
        self._started_at = -AGAIN_S
        self._ended = ""
        """What the program said when it ended last."""

    def ask(self, request: Json, take: Take, data: bytes = b"") -> None:
        """Ask the place. `take` is called with the answer, later or at once."""
        if self._process is None and not self._start():
            take({**unreachable(self._ended), "unsent": True}, b"")
            return
        self._awaiting.append(take)
        self._unsent += pack(request, data)
        self._send()

    def _start(self) -> bool:
        if time.monotonic() - self._started_at < AGAIN_S:
            return False
        self._started_at = time.monotonic()
        try:
            command = connection_command(self._place, self._directory.root)
            self._process = subprocess.Popen(
                command,
                env=own_environment(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (BackgroundError, OSError) as error:
            self._ended = str(error)
            return False
        self._messages = MessageReader()
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._streams[1], selectors.EVENT_READ, self)
        return True

    @property
    def _streams(self) -> list[Any]:
        process = self._process
        assert process is not None
        return [process.stdin, process.stdout, process.stderr]

    @property
    def pid(self) -> int | None:
        """The pid of the program; None while there is none."""
        return None if self._process is None else self._process.pid

    def serve(self, descriptor: int) -> None:
        """Send and take what can be sent and taken now."""
        if self._process is None:
            return
        if descriptor == self._streams[0].fileno():
            self._send()
        else:
            self._take()

    def _send(self) -> None:
        stdin = self._streams[0]
        try:
            while self._unsent:
                del self._unsent[: os.write(stdin.fileno(), self._unsent[:READ_BYTES])]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # its end is noticed when it is read
        is_watched = stdin.fileno() in self._selector.get_map()
        if self._unsent and not is_watched:
            self._selector.register(stdin.fileno(), selectors.EVENT_WRITE, self)
        elif not self._unsent and is_watched:
            self._selector.unregister(stdin.fileno())

    def _take(self) -> None:
        try:
            data = os.read(self._streams[1].fileno(), READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            for answer, content in self._messages.feed(data):
                if self._awaiting:
                    self._awaiting.popleft()(answer, content)
        except MessageDamaged as error:
            self.end(f"what it answered is damaged: {error}")
            return
        if not data:
            self.end()

    def end(self, why: str = "") -> None:
        """End the program. Who waits for an answer learns that there is none."""
        process = self._process
        if process is None:
            return
        said = b""
        with suppress(OSError):
            said = os.read(self._streams[2].fileno(), READ_BYTES)
        for stream in self._streams:
            if stream.fileno() in self._selector.get_map():
                self._selector.unregister(stream.fileno())
            with suppress(OSError):
                stream.close()
        with suppress(OSError, subprocess.TimeoutExpired):
            process.terminate()
            process.wait(1)
        with suppress(OSError):
            process.kill()
        self._process = None
        self._unsent.clear()
        last = said[-SAID_BYTES:].decode(errors="replace").strip().rpartition("\n")[2]
        self._ended = why or last or "the connection ended"
        awaiting, self._awaiting = self._awaiting, deque()
        for take in awaiting:
            take(unreachable(self._ended), b"")
