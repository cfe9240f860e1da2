"""Keep what a cell prints below the rate from which on a Jupyter server drops it.

By default a server drops what exceeds 1 MB of text or 1,000 messages a second, averaged over three
seconds. Here, what a cell sends within four seconds stays below that, because messages may reach
the server with some delay and then in quick succession.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

BURST_BYTES, BYTES_PER_S = 1_000_000, 500_000
BURST_MESSAGES, MESSAGES_PER_S = 1_000, 500
PIECE_CHARACTERS = 50_000


class Pace:
    """What a cell may still send at once."""

    def __init__(self) -> None:
        self._bytes = float(BURST_BYTES)
        self._messages = float(BURST_MESSAGES)
        self._at = time.monotonic()

    def keep(self, text: str = "") -> None:
        """Wait until a message with this text may be sent."""
        size_bytes = len(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._refill()
        lacking = (size_bytes - self._bytes) / BYTES_PER_S, (1 - self._messages) / MESSAGES_PER_S
        if max(lacking) > 0:
            time.sleep(max(lacking))
            self._refill()
        self._bytes -= size_bytes
        self._messages -= 1

    def _refill(self) -> None:
        now = time.monotonic()
        passed_s, self._at = now - self._at, now
        self._bytes = min(BURST_BYTES, self._bytes + passed_s * BYTES_PER_S)
        self._messages = min(BURST_MESSAGES, self._messages + passed_s * MESSAGES_PER_S)


def pieces(text: str) -> Iterator[str]:
    """Split a text into parts that are sent one by one."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]
