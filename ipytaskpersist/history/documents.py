"""Sessions, tasks, outputs and results as JSON, one document a line.

docs/export-format.md tells what the members mean.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ipytaskpersist.base.records import STREAM_KINDS, ResultRecord
from ipytaskpersist.base.redaction import without_values
from ipytaskpersist.history.fields import Document
from ipytaskpersist.store.portable import PortableOutput, PortableSession, PortableTask

FORMAT = "ipytaskpersist"
VERSION = 1


def session_document(session: PortableSession) -> Document:
    """A session as JSON."""
    return {"type": "session", **asdict(session)}


def task_document(task: PortableTask) -> Document:
    """A task as JSON, without its outputs and results, and without values of secrets."""
    document = {"type": "task", **asdict(task)}
    options = (document["process"] or {}).get("options", {})
    if "env" in options:
        options["env"] = without_values(options["env"])
    if document["retries"] is not None:
        del document["retries"]["environment_of"]  # that is not exported
    return document


def output_document(output: PortableOutput) -> Document:
    """One entry of a task's outputs as JSON."""
    known: Document = {"kind": output.kind.value, "at": output.at}
    if output.kind not in STREAM_KINDS:
        content = json.loads(output.data)
        if _is_standard(content):
            return {**known, "content": content}
    try:
        return {**known, "text": output.data.decode()}
    except UnicodeDecodeError:
        return {**known, "base64": base64.b64encode(output.data).decode()}


def _is_standard(content: Any) -> bool:
    """Whether other readers of JSON than Python's take it: it has no NaN and no infinity."""
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        return False
    return True


def result_document(
    result: ResultRecord,
    pickled: bytes | str | None,
    problem: str | None,
    buffers: Mapping[str, bytes] | None = None,
) -> Document:
    """What is known of a value as JSON: with its signed pickle, or with why there is none.

    Instead of a pickle that several values share it has the name of the first of them. `buffers`
    are the files that the pickle refers to, by name.
    """
    known: Document = {"name": result.name, "text": result.text}
    if pickled is None:
        return {**known, "problem": problem}
    known["signature"] = result.signature
    if isinstance(pickled, str):
        return {**known, "bytes": result.size_bytes, "pickle_of": pickled}
    data = base64.b64encode(pickled).decode()
    if result.size_bytes != len(pickled):
        known["bytes"] = result.size_bytes
    if buffers:
        known["buffers"] = {name: base64.b64encode(each).decode() for name, each in buffers.items()}
    return {**known, "pickle": data}


def encoded(document: Any) -> bytes:
    """A document in one line. Half of a surrogate pair is written as JSON's own escape of it."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
