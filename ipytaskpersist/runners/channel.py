"""The channel on which a Python process task sends frames to its supervisor.

The channel is one pipe. A frame is one byte for its kind, four for its length, then the data.
Python's own prints use the channel, so that they stay in order with the displays. C code and child
processes write to descriptors 1 and 2, which have pipes of their own. The supervisor has read those
pipes before a frame is sent, and it reads the channel before them.
"""

from __future__ import annotations

import array
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import sleep
from typing import Any

from ipytaskpersist.base.records import OutputKind, Progress, ResultRecord
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.output.recording import PROGRESS_S
from ipytaskpersist.running.sinks import Listener
from ipytaskpersist.text.encoding import encode, encode_content

DESCRIPTOR = "IPYTASKPERSIST_CHANNEL"
"""Environment variable with the number of the channel's descriptor."""
HEADER = struct.Struct("<cI")
OUTPUTS = dict(zip((b"o", b"e", b"d", b"u", b"c", b"r", b"x"), OutputKind, strict=True))
CODES = {kind: code for code, kind in OUTPUTS.items()}
RESULT, OUTCOME, PROGRESS, POST_MORTEM, CHECKPOINTED = b"R", b"O", b"P", b"M", b"K"
DRAIN_S = 5.0
EXIT_UNHEARD = 70


class Sender:
    """The task's end of the channel. Stands in for a `recording.Recording`."""

    def __init__(self, descriptor: int, streams: Sequence[int]) -> None:
        """`streams` are the descriptors whose pipes must be empty before a frame is sent."""
        self._descriptor = descriptor
        self._streams = tuple(streams)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._unsent: Progress | None = None
        self._progress_thread: threading.Thread | None = None
        self.listener: Listener | None = None
        """Called with all of the task's output before it is sent."""
        self._has_ended = False
        """Whether the task's outcome has been sent."""

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Send a piece of a stream."""
        if self.listener is not None:
            self.listener(kind, text)
        self._send(CODES[kind], encode(text))

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Send the message content of a display, a result or an error."""
        if self.listener is not None:
            self.listener(kind, content)
        self._send(CODES[kind], encode_content(content))

    def progress(self, progress: Progress) -> None:
        """Send the task's progress. Of rapid updates, only the latest is sent.

        Nothing is sent after the outcome: a progress bar that was left open is closed while the
        interpreter shuts down, and a thread started then never runs.
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
        """Keep sending progress until no update has arrived for a while."""
        while True:
            sleep(PROGRESS_S)
            if self._send_progress():
                continue
            # Clear the attribute before the last check, so that a concurrent update starts a new
            # thread.
            self._progress_thread = None
            if not self._send_progress():
                return
            self._progress_thread = threading.current_thread()

    def _send_progress(self) -> bool:
        """Send the pending progress. Returns whether there was any."""
        unsent, self._unsent = self._unsent, None
        if unsent is not None:
            self._send(PROGRESS, encode_content(unsent.as_stored()))
        return unsent is not None

    def result(self, result: ResultRecord) -> None:
        """Send the record of a saved value."""
        fields = {name: getattr(result, name) for name in ResultRecord.__slots__}
        self._send(RESULT, encode_content(fields))

    def checkpointed(self, at: float) -> None:
        """Send the time of a checkpoint, in seconds since the epoch."""
        self._send(CHECKPOINTED, encode_content({"at": at}))

    def post_mortem(self, found: dict[str, Any]) -> None:
        """Send the variables of the frames in which the task failed."""
        self._send(POST_MORTEM, encode_content(found))

    def outcome(self, state: str, reason: str | None, exit_code: int | None) -> None:
        """Send how the task ended."""
        self._has_ended = True
        self._send_progress()
        content = {"state": state, "reason": reason, "exit_code": exit_code}
        self._send(OUTCOME, encode_content(content))

    def _send(self, code: bytes, data: bytes) -> None:
        if os.getpid() != self._owner:
            return  # a forked child, whose frames would interleave with the parent's
        with self._alone():
            self._wait_until_read()
            rest = memoryview(HEADER.pack(code, len(data)) + data)
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except BrokenPipeError:
                # The supervisor is dead. Output would be lost, and the task could not be cancelled.
                os._exit(EXIT_UNHEARD)

    def _alone(self) -> AbstractContextManager[object]:
        """Keep other threads out. A finalizing interpreter has ended them, maybe as one sent."""
        return nullcontext() if sys.is_finalizing() else self._lock

    def _wait_until_read(self) -> None:
        """Wait until the supervisor has read earlier output that bypassed Python's streams."""
        if not any(map(unread_bytes, self._streams)):
            return
        deadline = time.monotonic() + DRAIN_S
        while any(map(unread_bytes, self._streams)) and time.monotonic() < deadline:
            sleep(0.0001)


def unread_bytes(descriptor: int) -> int:
    """Return the number of unread bytes in a pipe."""
    import fcntl
    import termios

    count = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


class Receiver:
    """The supervisor's end of the channel. Reassembles the frames."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take in what was read. Yields the kind and data of each frame that is now complete."""
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
    """Return the record that `Sender.progress` sent."""
    return Progress(**json.loads(data))


def as_result(data: bytes) -> ResultRecord:
    """Return the record that `Sender.result` sent."""
    return ResultRecord(**json.loads(data))
