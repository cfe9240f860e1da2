"""Text and message contents as bytes, and bytes in pieces as text."""

from __future__ import annotations

import codecs
import json
from typing import Any


def new_decoder() -> codecs.IncrementalDecoder:
    """Return a decoder for text that comes in pieces."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def encode_content(content: dict[str, Any]) -> bytes:
    """Return a message's content as JSON.

    A lone surrogate, which no front end could receive, becomes a question mark.
    """
    return json.dumps(content, default=str, ensure_ascii=False).encode("utf-8", "replace")


def encode_all(texts: list[str]) -> bytes:
    """Return the bytes of many texts, each encoded as by itself; fast in the usual case."""
    try:
        return "".join(texts).encode()
    except UnicodeEncodeError:
        return b"".join(map(encode, texts))


def encode(text: str | bytes) -> bytes:
    """Return the bytes of printed text. What UTF-8 cannot encode is written as by a terminal."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return text.encode("utf-8", "backslashreplace")
