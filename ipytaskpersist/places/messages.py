"""Our side of what an agent sends: its messages, and the frames of a task's spool.

Whatever comes from there is data: it is checked, limited in size, and never unpickled or evaluated.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.places import agent
from ipytaskpersist.places.far.files import LARGEST_JSON
from ipytaskpersist.places.far.spool import CRC, FRAME, LARGEST_FRAME

Json = dict[str, Any]
MANY = 1e18
"""No number from there is as large. It also leaves out infinity and what is no number."""
_OVERHEAD = FRAME.size + CRC.size


class MessageDamaged(Exception):
    """What the far end sent is no message."""


class SpoolDamaged(Exception):
    """A frame of a spool is not as it was written."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(f"the spool is damaged at byte {offset}: {why}")
        self.offset = offset
        """Where the frame begins. Everything before it is whole."""


def agent_text() -> str:
    """Return the text of the agent, to be executed over there."""
    return agent.own_text()


def agent_version() -> str:
    """Return the version that an agent with this text says in its ``hello``."""
    return hashlib.sha256(agent_text().encode()).hexdigest()[:16]


def pack(content: Json, data: bytes = b"") -> bytes:
    """Return a message as bytes."""
    text = json.dumps(content).encode()
    return agent.MESSAGE.pack(len(text), len(data)) + text + data


class MessageReader:
    """Takes messages out of what an agent writes to its standard output."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._is_greeted = False

    def feed(self, data: bytes) -> Iterator[tuple[Json, bytes]]:
        """Take in what was read. Yields each message that is now complete.

        What a login shell has printed before the agent's greeting is passed over. Raises
        `MessageDamaged`.
        """
        self._received += data
        self._pass_greeting()
        while self._is_greeted and (lengths := self._lengths()) is not None:
            text_end = agent.MESSAGE.size + lengths[0]
            end = text_end + lengths[1]
            if len(self._received) < end:
                return
            content = _object(bytes(self._received[agent.MESSAGE.size : text_end]))
            binary = bytes(self._received[text_end:end])
            del self._received[:end]
            yield content, binary

    def _pass_greeting(self) -> None:
        if not self._is_greeted:
            _before, greeting, rest = self._received.partition(agent.GREETING)
            self._is_greeted = bool(greeting)
            # Part of the greeting may be there: only what cannot be part of it is dropped.
            self._received = rest if greeting else self._received[-len(agent.GREETING) :]

    def _lengths(self) -> tuple[int, int] | None:
        if len(self._received) < agent.MESSAGE.size:
            return None
        text, data = agent.MESSAGE.unpack_from(self._received)
        if text > LARGEST_JSON or data > agent.LARGEST_DATA:
            raise MessageDamaged(f"a message of {text + data} bytes was announced")
        return text, data


def _object(text: bytes) -> Json:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageDamaged(f"a message is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise MessageDamaged("a message is no JSON object")
    return content


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a spool."""

    kind: bytes
    """Its kind, of one byte: one of the channel's, or that of the end."""
    data: bytes
    end: int
    """Offset in the spool behind it: where the next one begins."""


class SpoolReader:
    """Takes the frames out of a spool that is read piece by piece."""

    def __init__(self, offset: int = 0) -> None:
        """`offset` is where reading begins: at a frame."""
        self.offset = offset
        """Where the first frame begins that is not complete yet."""
        self._received = bytearray()

    @property
    def wanted(self) -> int:
        """The offset from which to read on."""
        return self.offset + len(self._received)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in a piece. Yields each frame that is now complete.

        Raises `SpoolDamaged` at a frame that is wrong, after those before it.
        """
        self._received += data
        position = 0
        try:
            while (size := self._size_at(position)) is not None:
                if len(self._received) - position < size:
                    return
                frame = self._frame_at(position, size)
                position += size
                self.offset += size
                yield frame
        finally:
            del self._received[:position]

    def _size_at(self, position: int) -> int | None:
        if len(self._received) - position < FRAME.size:
            return None
        _kind, size = FRAME.unpack_from(self._received, position)
        if size > LARGEST_FRAME:
            raise SpoolDamaged(self.offset, f"a frame of {size} bytes is announced")
        return int(size) + _OVERHEAD

    def _frame_at(self, position: int, size: int) -> Frame:
        whole = memoryview(self._received)[position : position + size]
        try:
            content = whole[: -CRC.size]
            (crc,) = CRC.unpack(whole[-CRC.size :])
            if zlib.crc32(content) != crc:
                raise SpoolDamaged(self.offset, "its checksum is wrong")
            kind, data = bytes(content[:1]), bytes(content[FRAME.size :])
            return Frame(kind, data, self.offset + size)
        finally:
            content.release()
            whole.release()


@dataclass(frozen=True, slots=True)
class FarEnd:
    """How a task has ended over there, as its keeper has recorded it."""

    status: int | None
    """Its exit code, or -N for a signal; None when it was not started."""
    reason: str | None
    """What the keeper ended it for: ``timeout``, ``memory``, ``asked``, ``terminated``,
    ``folder removed``; ``not started``; None when it ended by itself."""
    error: str | None
    """Why it could not be started, in words."""
    cpu_s: float | None
    peak_memory_bytes: int | None
    used_bytes: int | None
    """What it used when that was more than its limit."""
    ended_at: float | None
    """When it ended, in seconds since the epoch by the clock over there."""


def as_end(data: bytes) -> FarEnd:
    """Return the record in the last frame of a spool. Raises `MessageDamaged`.

    A field that is not of its type is as if it were missing.
    """
    content = _object(data)
    return FarEnd(
        status=_of_type(content, "status", int),
        reason=_of_type(content, "reason", str),
        error=_of_type(content, "error", str),
        cpu_s=_number(content, "cpu_s"),
        peak_memory_bytes=_of_type(content, "peak_memory_bytes", int),
        used_bytes=_of_type(content, "used_bytes", int),
        ended_at=_number(content, "ended_at"),
    )


def _of_type(content: Json, name: str, kind: type) -> Any:
    value = content.get(name)
    return value if type(value) is kind else None


def _number(content: Json, name: str) -> float | None:
    value = content.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < MANY else None
