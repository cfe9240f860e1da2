"""All that is known of one task, for ``show``."""

from __future__ import annotations

from typing import Any

from ipytaskpersist import views
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.records import OutputKind, ResultRecord, TaskRecord
from ipytaskpersist.terminal import details, history_line, render


def as_document(manager: BackgroundTasks, task: TaskRecord) -> dict[str, Any]:
    """The JSON document of ``show --json``."""
    sizes = {kind: manager.store.outputs.stream_size(task.key, kind) for kind in _STREAMS}
    kept = manager.store.results.get(task.key)
    return {
        **task.as_json(views.utc_now()),
        "history": [
            {"state": event.state.value, "reason": event.reason, "at": event.at.isoformat()}
            for event in manager.store.tasks.history(task.key)
        ],
        "streams": {
            kind.value: {"bytes": size.size_bytes, "lines": size.lines}
            for kind, size in sizes.items()
        },
        "result": None if kept is None else _result_document(kept),
    }


_STREAMS = (OutputKind.STDOUT, OutputKind.STDERR)


def _result_document(kept: ResultRecord) -> dict[str, Any]:
    return {"text": kept.text, "size_bytes": kept.size_bytes, "problem": kept.problem}


def as_text(manager: BackgroundTasks, task: TaskRecord) -> str:
    """What ``show`` prints."""
    plain = manager.shell is not None
    rows = [*_facts(task), *_what_is_kept(manager, task), *_history(manager, task)]
    return f"{render(details(rows), plain=plain)}\n\n{task.source.rstrip()}"


def _facts(task: TaskRecord) -> list[tuple[str, str]]:
    now = views.utc_now()
    look = views.LOOKS[task.state]
    state = f"{look.glyph} {task.state.value}"
    if task.reason and task.reason != task.state.value:
        state += f" ({task.reason})"
    facts = [
        ("task", f"{task.label}, {task.id}"),
        ("state", state),
        ("exit code", "" if task.exit_code is None else str(task.exit_code)),
        ("time", views.duration(task.elapsed_s(now))),
        ("runs in", f"a {task.runner} of session {task.session[:8]}"),
        ("notebook", task.notebook),
        ("cell", task.cell_id or ""),
    ]
    return [(name, value) for name, value in facts if value]


def _what_is_kept(manager: BackgroundTasks, task: TaskRecord) -> list[tuple[str, str]]:
    rows = []
    for kind in _STREAMS:
        size = manager.store.outputs.stream_size(task.key, kind)
        if size.size_bytes:
            rows.append((kind.value, f"{size.lines:,} lines, {size.size_bytes:,} bytes"))
    kept = manager.store.results.get(task.key)
    if kept is not None:
        shown = views.shorten(kept.text, 200)
        size_text = f" ({kept.size_bytes:,} bytes)" if kept.size_bytes is not None else ""
        rows.append(("result", f"{shown}{size_text}"))
        if kept.problem:
            rows.append(("not kept", kept.problem))
    return rows


def _history(manager: BackgroundTasks, task: TaskRecord) -> list[tuple[str, str]]:
    now = views.utc_now()
    events = manager.store.tasks.history(task.key)
    return [("history", "\n".join(history_line(event, now) for event in events))]
