"""A small export such as a stranger could have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Document = dict[str, Any]

NOTEBOOK: Document = {
    "uid": "0123456789abcdef", "path": "/home/ada/a.ipynb", "last_number": 1, "created_at": 1.0,
}  # fmt: skip
SESSION: Document = {
    "type": "session", "id": "5e551011-x", "notebook": NOTEBOOK, "path": "/home/ada/a.ipynb",
    "has_path": True, "kernel_uuid": None, "front_end": "kernel", "host": "h", "pid": 1,
    "process_start": "1", "boot_id": "b", "started_at": 1.0, "heartbeat_at": 2.0, "ended_at": 2.0,
    "end_reason": "kernel died",
}  # fmt: skip
PROCESS: Document = {
    "command": ["/bin/sh", "-c", "true"], "script": None, "script_as": None, "directory": "/",
    "pty": False, "timeout_s": None, "grace_s": 1.0, "options": {"env": {"A": "b"}}, "pid": 1,
    "process_start": "1", "cpu_s": 0.5, "peak_memory_bytes": 5,
}  # fmt: skip
OUTPUTS: list[Document] = [
    {"kind": "stdout", "at": 1.6, "text": "printed\n"},
    {"kind": "stderr", "at": 1.7, "base64": "/w=="},
    {"kind": "display_data", "at": 1.8, "content": {"data": {"text/plain": "x"}, "metadata": {}}},
    {"kind": "error", "at": 1.9, "content": {"ename": "E", "evalue": "e", "traceback": ["E: e"]}},
]
TASK: Document = {
    "type": "task", "id": "5e551011-1", "number": 1, "session": "5e551011-x", "name": "train",
    "kind": "python", "runner": "thread", "state": "interrupted", "reason": "kernel died",
    "exit_code": None, "created_at": 1.0, "started_at": 1.5, "ended_at": 2.0,
    "cancel_requested_at": None, "cleared_at": None, "cell_id": None, "execution_count": 1,
    "source": "print('printed')", "is_call": False, "max_output_bytes": None, "dropped_bytes": 0,
    "provenance": {"python": "3.11.7", "git": {"root": "/r", "commit": "c", "branch": "b"}},
    "progress": {"done": 1.0, "total": 2.0, "text": "half"}, "post_mortem": None, "tags": ["t"],
    "history": [{"state": "pending", "reason": None, "at": 1.0}], "process": None,
    "outputs": OUTPUTS, "results": [{"name": "", "text": "1", "problem": "none"}], "more": False,
}  # fmt: skip
HEADER: Document = {"type": "header", "format": "ipytaskpersist", "version": 1}
END: Document = {"type": "end", "sessions": 1, "tasks": 1}


def a_task(number: int, **changes: Any) -> Document:
    """One of its tasks."""
    own = {"id": f"5e551011-{number}", "number": number, "created_at": 1.0 + number / 1e6}
    return {**TASK, **own, **changes}


def lines(*tasks: Document, session: Document = SESSION) -> list[Document]:
    """A whole file."""
    return [HEADER, session, *tasks, END]


def write(path: Path, found: list[Any]) -> Path:
    """Each entry in a line: a document, or the text that is to stand there."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in found]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path
