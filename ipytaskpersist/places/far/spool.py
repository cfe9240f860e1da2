"""The spool of a task: the file in which its keeper puts what the task sends."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from ipytaskpersist.places.far.files import open_private

FRAME = struct.Struct("<cI")
CRC = struct.Struct("<I")
STREAMS = (b"o", b"e")
END = b"Z"
LARGEST_FRAME = 64 * 1024 * 1024
GATHER_BYTES = 256 * 1024
GATHER_S = 0.01
"""Output is written at once after a pause of this length, and otherwise gathered for as long."""
RETRY_S = 0.1
"""How often to write again to a disk that was full."""


class Spool:
    """What the task has sent: gathered, then appended to the file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = open_private(path, os.O_APPEND)
        self._kind = b""
        self._pieces: list[bytes] = []
        self._gathered_bytes = 0
        self._frames: list[bytes] = []
        self._written_at = 0.0
        self.is_blocked = False
        """Whether the last write failed, as on a full disk. What was not written is kept."""

    def add(self, kind: bytes, data: bytes) -> None:
        """Take in a frame, or a piece of a stream."""
        is_more = kind == self._kind and self._gathered_bytes + len(data) <= GATHER_BYTES
        if not is_more or kind not in STREAMS:
            self._seal()
            self._kind = kind
        self._pieces.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHER_BYTES:
            self.flush()

    def _seal(self) -> None:
        """Make a frame of what was gathered."""
        if self._pieces:
            data = b"".join(self._pieces)
            frame = FRAME.pack(self._kind, len(data)) + data
            self._frames += [frame, CRC.pack(zlib.crc32(frame))]
            self._pieces, self._gathered_bytes = [], 0

    @property
    def due_at(self) -> float:
        """When to flush, by the monotonic clock."""
        is_empty = not self._pieces and not self._frames
        return float("inf") if is_empty or self.is_blocked else self._written_at + GATHER_S

    def flush(self) -> None:
        """Write what there is. What the disk does not take is kept for the next time."""
        self._seal()
        rest = memoryview(b"".join(self._frames))
        self.is_blocked = False
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            self.is_blocked = True
        self._frames = [bytes(rest)] if rest else []
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Write the rest, however long that takes, down to the disk."""
        self.flush()
        while self.is_blocked:
            time.sleep(RETRY_S)
            self.flush()
        os.fsync(self._descriptor)
        os.close(self._descriptor)


class Channel:
    """Cuts what a Python task sends into its frames. Streams pass in pieces of any size."""

    def __init__(self, add: Callable[[bytes, bytes], None]) -> None:
        self._add = add
        self._received = bytearray()
        self._kind = b""
        self._left_bytes = 0
        """How much is still to come of a frame that is passed on, or left out with no kind."""

    def feed(self, data: bytes) -> None:
        """Take in what was read, and add what is complete."""
        self._received += data
        while self._pass_on() or self._take_frame():
            pass

    def _pass_on(self) -> bool:
        piece = bytes(self._received[: min(self._left_bytes, GATHER_BYTES)])
        if piece:
            del self._received[: len(piece)]
            self._left_bytes -= len(piece)
            if self._kind:
                self._add(self._kind, piece)
        return bool(piece)

    def _take_frame(self) -> bool:
        if self._left_bytes or len(self._received) < FRAME.size:
            return False
        kind, size = FRAME.unpack_from(self._received)
        end = FRAME.size + size
        if kind in STREAMS or size > LARGEST_FRAME:
            self._begin(kind, size)
            end = FRAME.size
        elif len(self._received) < end:
            return False
        else:
            self._add(kind, bytes(self._received[FRAME.size : end]))
        del self._received[:end]
        return True

    def _begin(self, kind: bytes, size: int) -> None:
        self._kind, self._left_bytes = kind if kind in STREAMS else b"", size
        if not self._kind:
            limit = LARGEST_FRAME // 1024**2
            note = f"[a display of {size:,} bytes was left out: more than {limit} MiB]\n"
            self._add(b"e", note.encode())
