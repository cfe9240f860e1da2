"""Pictures of a display as the source of an ``<img>``, which runs no script and loads nothing."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from ipytaskpersist.text.sanitized_html import IMAGES

SVG = "image/svg+xml"


def picture_source(data: Mapping[str, Any]) -> str:
    """Return the ``data:`` address of a display's picture; empty if it has none."""
    for mime in IMAGES:
        encoded = "".join(joined(data.get(mime, "")).split())
        if encoded and _is_base64(encoded):
            return f"data:{mime};base64,{encoded}"
    if SVG in data:
        encoded = base64.b64encode(joined(data[SVG]).encode("utf-8", "replace")).decode()
        return f"data:{SVG};base64,{encoded}"
    return ""


def joined(value: Any) -> str:
    """Return a text that a notebook may keep as a list of its lines."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_base64(value: str) -> bool:
    try:
        return bool(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        return False
