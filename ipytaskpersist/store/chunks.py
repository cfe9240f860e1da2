"""How a piece of output is kept: as it is when it is short, compressed when that pays."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WORTH_COMPRESSING_BYTES = 512
LEVEL = 1


def pack(data: bytes) -> tuple[str | None, bytes]:
    """The compression's name, or None, and the bytes to store."""
    if len(data) < WORTH_COMPRESSING_BYTES:
        return None, data
    packed: bytes = zstd.compress(data, level=LEVEL)
    return ("zstd", packed) if len(packed) < len(data) else (None, data)


def unpack(compression: str | None, data: Any) -> bytes:
    """The bytes as they were written."""
    return zstd.decompress(data) if compression == "zstd" else bytes(data)
