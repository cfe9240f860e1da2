"""How a piece of output is kept: as it is when it is short, compressed when that pays."""

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
    """One compressor for each thread: making one costs a tenth of compressing a chunk."""

    def __init__(self) -> None:
        self.own = zstd.ZstdCompressor(level=LEVEL)


_compressors = _Compressors()


def pack(data: bytes) -> tuple[str | None, bytes]:
    """The compression's name, or None, and the bytes to store."""
    if len(data) < WORTH_COMPRESSING_BYTES:
        return None, data
    compressor = _compressors.own
    packed: bytes = compressor.compress(data, mode=compressor.FLUSH_FRAME)
    return ("zstd", packed) if len(packed) < len(data) else (None, data)


def unpack(compression: str | None, data: Any) -> bytes:
    """The bytes as they were written."""
    return zstd.decompress(data) if compression == "zstd" else bytes(data)
