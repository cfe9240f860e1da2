"""What a Python process task sends to its supervisor besides the bytes on its descriptors 1 and 2.

One pipe, and in it frames: a byte for the kind, four for the length, then the data. Python's own
prints come this way too, so that they and the displays keep their order. What C code and child
processes write to descriptors 1 and 2 comes through pipes of their own; before a frame is sent,
the supervisor has read those, and it reads this pipe before them.
"""

from __future__ import annotations

import array
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from time import sleep
from typing import Any

from ipytaskpersist.active import start_outside
from ipytaskpersist.recording import PROGRESS_S, encode, encode_content
from ipytaskpersist.records import OutputKind, Progress, ResultRecord

DESCRIPTOR = "IPYTASKPERSIST_CHANNEL"
"""The environment variable that holds the number of the pipe's descriptor."""
HEADER = struct.Struct("<cI")
OUTPUTS = dict(zip((b"o", b"e", b"d", b"u", b"c", b"r", b"x"), OutputKind, strict=True))
CODES = {kind: code for code, kind in OUTPUTS.items()}
RESULT, OUTCOME, PROGRESS, POST_MORTEM = b"R", b"O", b"P", b"M"
DRAIN_S = 5.0
EXIT_UNHEARD = 70


class Sender:
    """The task's end of the pipe. Stands in a `recorder.Recording`'s place."""

    def __init__(self, descriptor: int, streams: Sequence[int]) -> None:
        """`streams` are the descriptors whose pipes must be empty before a frame is sent."""
        self._descriptor = descriptor
        self._streams = tuple(streams)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._unsent: Progress | None = None
        self._progress_thread: threading.Thread | None = None
        self.listener: Callable[[OutputKind, Any], None] | None = None
        """Hears all that the task puts out, before it is sent."""
        self._has_ended = False
        """Whether it has been told how the task has ended."""

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Send a piece of a stream."""
        if self.listener is not None:
            self.listener(kind, text)
        self._send(CODES[kind], encode(text))

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Send a display, a result or an error: the content of its message."""
        if self.listener is not None:
            self.listener(kind, content)
        self._send(CODES[kind], encode_content(content))

    def progress(self, progress: Progress) -> None:
        """Send how far the task has come; not each step of one that hurries, but the last one.

        Not after its end: a bar that is left open is closed when the interpreter is torn down, and
        a thread that is started then never begins.
        """
        if self._has_ended:
            return
        self._unsent = progress
        if self._progress_thread is None and os.getpid() == self._owner:
            self._send_progress()
            thread = threading.Thread(
                target=self._keep_sending, name="ipytaskpersist-progress", daemon=True
            )
            self._progress_thread = thread
            if not start_outside(thread):
                self._progress_thread = None

    def _keep_sending(self) -> None:
        """Send what was said since, for as long as something is said now and then."""
        while True:
            sleep(PROGRESS_S)
            if self._send_progress():
                continue
            # First the mark, then a look: what is said in between begins anew.
            self._progress_thread = None
            if not self._send_progress():
                return
            self._progress_thread = threading.current_thread()

    def _send_progress(self) -> bool:
        """Send what is not sent yet. Returns whether there was anything."""
        unsent, self._unsent = self._unsent, None
        if unsent is not None:
            self._send(PROGRESS, encode_content(unsent.as_json()))
        return unsent is not None

    def result(self, result: ResultRecord) -> None:
        """Send what is to be known of a value."""
        fields = {name: getattr(result, name) for name in ResultRecord.__slots__}
        self._send(RESULT, encode_content(fields))

    def post_mortem(self, found: dict[str, Any]) -> None:
        """Send what the variables were where the task failed."""
        self._send(POST_MORTEM, encode_content(found))

    def outcome(self, state: str, reason: str | None, exit_code: int | None) -> None:
        """Send how the task has ended."""
        self._has_ended = True
        self._send_progress()
        content = {"state": state, "reason": reason, "exit_code": exit_code}
        self._send(OUTCOME, encode_content(content))

    def _send(self, code: bytes, data: bytes) -> None:
        if os.getpid() != self._owner:
            return  # a forked copy, whose frames would fall into others
        with self._lock:
            self._wait_until_read()
            rest = memoryview(HEADER.pack(code, len(data)) + data)
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except BrokenPipeError:
                # The supervisor is dead. Nothing more would be kept, and nobody could end this.
                os._exit(EXIT_UNHEARD)

    def _wait_until_read(self) -> None:
        """Let the supervisor read what was written past Python before this."""
        if not any(map(unread_bytes, self._streams)):
            return
        deadline = time.monotonic() + DRAIN_S
        while any(map(unread_bytes, self._streams)) and time.monotonic() < deadline:
            sleep(0.0001)


def unread_bytes(descriptor: int) -> int:
    """How many bytes of a pipe nobody has read yet."""
    import fcntl
    import termios

    count = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


class Receiver:
    """The supervisor's end: puts the frames together."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take in what was read, and give the frames that are whole by now: code and data."""
        self._received += data
        position = 0
        while len(self._received) - position >= HEADER.size:
            code, size = HEADER.unpack_from(self._received, position)
            end = position + HEADER.size + size
            if len(self._received) < end:
                break
            yield code, bytes(self._received[position + HEADER.size : end])
            position = end
        del self._received[:position]


def as_progress(data: bytes) -> Progress:
    """The record that `Sender.progress` has sent."""
    return Progress(**json.loads(data))


def as_result(data: bytes) -> ResultRecord:
    """The record that `Sender.result` has sent."""
    return ResultRecord(**json.loads(data))
