"""The stored form of output: as it is when short, compressed when that pays."""

from __future__ import annotations

import sys
import threading
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WORTH_COMPRESSING_BYTES = 512
LEVEL = 1


class _Compressors(threading.local):
    """One compressor per thread: making one costs a tenth of compressing a chunk."""

    def __init__(self) -> None:
        options = {
            int(zstd.CompressionParameter.compression_level): LEVEL,
            # Four bytes per piece, which reveal damage.
            int(zstd.CompressionParameter.checksum_flag): 1,
        }
        self.own = zstd.ZstdCompressor(options=options)


_compressors = _Compressors()


def pack(data: bytes) -> tuple[str | None, bytes]:
    """Return the compression's name, or None, and the bytes to store."""
    if len(data) < WORTH_COMPRESSING_BYTES:
        return None, data
    compressor = _compressors.own
    packed: bytes = compressor.compress(data, mode=compressor.FLUSH_FRAME)
    return ("zstd", packed) if len(packed) < len(data) else (None, data)


class Unreadable(Exception):
    """A piece is not what was written."""


def unpack(compression: str | None, data: Any) -> bytes:
    """Return the bytes as they were written. Raises `Unreadable` when they are damaged."""
    if compression is None:
        return bytes(data)
    try:
        if compression != "zstd":
            raise Unreadable(compression)
        return zstd.decompress(data)
    except (zstd.ZstdError, MemoryError) as error:
        raise Unreadable(str(error)) from error


def beginning(compression: str | None, data: Any, size_bytes: int) -> bytes:
    """Return the first bytes as they were written; what can be read of them, if damaged."""
    if compression is None:
        return bytes(data[:size_bytes])
    try:
        return zstd.ZstdDecompressor().decompress(data, max_length=size_bytes)
    except (zstd.ZstdError, MemoryError):
        return b""
