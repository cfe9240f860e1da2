"""Outputs and results out of JSON documents, each member checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base import widget_marks
from ipytaskpersist.base.buffer_names import NAME
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind
from ipytaskpersist.history.fields import (
    LINE_BYTES,
    TEXT_CHARACTERS,
    Fields,
    InvalidRecord,
    base64_of,
)
from ipytaskpersist.store.portable import PortableOutput
from ipytaskpersist.text.encoding import encode_content

DEPTH_AT_MOST = 200
RESERVED = frozenset(("output_type", "name", "text"))
"""What an output has beside the content of its message."""


def output_of(document: Any, place: str) -> PortableOutput:
    """The entry of a task's outputs that a document describes."""
    known = Fields.of(document, place)
    kind, at = OutputKind(known.choice("kind", [*OutputKind])), known.number("at")
    if kind not in STREAM_KINDS and known.has("content"):
        content = known.inside("content")
        _check_content(kind, content)
        return PortableOutput(kind, at, encode_content(content.members))
    data = base64_of(known, "base64") if known.has("base64") else _utf_8(known)
    if kind not in STREAM_KINDS:
        _check_content(kind, Fields.of(_loosely_parsed(data, known.at("text")), place))
    return PortableOutput(kind, at, data)


def _utf_8(known: Fields) -> bytes:
    try:
        return known.text("text", LINE_BYTES).encode()
    except UnicodeEncodeError:
        raise known.refuse("text", "has half of a surrogate pair") from None


def _loosely_parsed(data: bytes, place: str) -> Any:
    """JSON with NaN and infinity, which displays may have though JSON does not."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidRecord(place, "is not JSON") from None


def _check_content(kind: OutputKind, content: Fields) -> None:
    """Raise `InvalidRecord` for what no front end could show."""
    for name in RESERVED & content.members.keys():
        raise content.refuse(name, "has no place in the content of a message")
    for name in ("widget", "model"):
        if kind in widget_marks.KINDS and name in content.members:
            content.text(name)
    if kind is OutputKind.CLEAR_OUTPUT:
        content.flag("wait")
    elif kind is OutputKind.ERROR:
        content.text("ename", TEXT_CHARACTERS)
        content.text("evalue", LINE_BYTES)
        content.texts("traceback", LINE_BYTES)
        if "traceback" not in content.members:
            raise content.refuse("traceback", "is missing")
    else:
        _check_bundle(content.inside("data"))
        content.inside("metadata")
        if "transient" in content.members or kind is OutputKind.UPDATE_DISPLAY_DATA:
            content.inside("transient").maybe(content.inside("transient").text, "display_id")
        if kind is OutputKind.UPDATE_DISPLAY_DATA and "widget" in content.members:
            content.flag("inside")
        if kind is OutputKind.EXECUTE_RESULT:
            content.maybe(content.whole, "execution_count")
    _check_depth(content)


def _check_bundle(data: Fields) -> None:
    for mime, value in data.members.items():
        is_text = isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(line, str) for line in value)
        )
        if not is_text and not mime.endswith("json"):
            raise data.refuse(mime[:100], "is not a text")


def _check_depth(content: Fields) -> None:
    """What is read in one place is written in others, each of which follows every level."""
    level: Sequence[Any] = [content.members]
    for _ in range(DEPTH_AT_MOST):
        inside = (each for each in level if isinstance(each, dict | list))
        level = [
            value
            for each in inside
            for value in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise InvalidRecord(content.place, f"is nested more than {DEPTH_AT_MOST} levels deep")


@dataclass(frozen=True, slots=True)
class PortableResult:
    """What a file says of a value."""

    name: str
    text: str
    problem: str | None
    signature: str = ""
    pickled: bytes | None = None
    """Its pickle, which is nothing to rely on before its signature is verified."""
    pickle_of: str | None = None
    """The name of an earlier value of the task in whose pickle it is, too."""
    size_bytes: int | None = None
    """How much of its pickle is its own, where that has other values, too."""
    buffers: Mapping[str, bytes] = field(default_factory=dict)
    """The files that its pickle refers to, by name."""


def result_of(document: Any, place: str) -> PortableResult:
    """The value that a document describes."""
    known = Fields.of(document, place)
    return PortableResult(
        name=known.printable("name"),
        text=known.text("text", TEXT_CHARACTERS),
        problem=known.maybe(known.text, "problem", TEXT_CHARACTERS),
        signature=known.maybe(known.text, "signature", 64, "[0-9a-f]{64}") or "",
        pickled=known.maybe(lambda name: base64_of(known, name), "pickle"),
        pickle_of=known.maybe(known.printable, "pickle_of"),
        size_bytes=known.maybe(known.whole, "bytes"),
        buffers=known.maybe(lambda name: _buffers_of(known, name), "buffers") or {},
    )


def _buffers_of(known: Fields, name: str) -> Mapping[str, bytes]:
    files = Fields.of(known.members[name], known.at(name))
    for file in files.members:
        if NAME.fullmatch(file) is None:
            raise files.refuse(file[:40], "is no name of a file of buffers")
    return {file: base64_of(files, file) for file in files.members}
