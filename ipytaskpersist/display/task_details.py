"""Everything known about one task, for ``show``."""

from __future__ import annotations

import json
import shlex
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from ipytaskpersist.base.legible import legible, legible_lines
from ipytaskpersist.base.records import (
    DEFAULT_GROUP,
    OutputKind,
    ProcessRecord,
    ResultRecord,
    SessionRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.base.schedules import SKIP
from ipytaskpersist.display import memory
from ipytaskpersist.display.drawing import Table, Text
from ipytaskpersist.display.listing import Listing, produced_by
from ipytaskpersist.display.tables import details, history_line, render, task_table, variables
from ipytaskpersist.notify import targets
from ipytaskpersist.output.counts import counts_of
from ipytaskpersist.session import notebook_parameters, whole_notebooks
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.provenance import git_in_words
from ipytaskpersist.text import formatting
from ipytaskpersist.text.search_words import as_shown

LONG_WORD = 200


def as_document(manager: BackgroundTasks, what: TaskRecord | SessionRecord) -> dict[str, Any]:
    """Return the JSON document of ``show --json``."""
    if isinstance(what, SessionRecord):
        now, tasks = formatting.utc_now(), manager.tasks.of_session(what)
        return {**formatting.session_json(what), "tasks": [task.as_json(now) for task in tasks]}
    return _task_document(manager, what)


def _task_document(manager: BackgroundTasks, task: TaskRecord) -> dict[str, Any]:
    store = manager.tasks.store_of(task)
    sizes = {kind: store.outputs.stream_size(task.key, kind) for kind in _STREAMS}
    kept = store.results.get(task.key)
    process = store.processes.get(task.key)
    variables = store.results.variables(task.key)
    return {
        **task.as_json(formatting.utc_now()),
        "history": [
            {"state": event.state.value, "reason": event.reason, "at": event.at.isoformat()}
            for event in store.tasks.history(task.key)
        ],
        "streams": {
            kind.value: {"bytes": size.size_bytes, "lines": size.lines}
            for kind, size in sizes.items()
        },
        "output": asdict(counts_of(store, task.key)),
        "result": None if kept is None else _result_document(kept),
        "variables": {each.name: _result_document(each) for each in variables},
        "process": None if process is None else _process_document(process),
        "usage": memory.document(store.processes.usage(task.key)),
        "whole_notebook": _notebook_document(task, process),
        "rerun_of": task.provenance.get("rerun_of"),
        "checkpoint": None if (latest := manager.checkpoint(task)) is None else latest.as_json(),
        "error": _error(manager, task),
        "post_mortem": store.tasks.post_mortem(task.key),
        "provenance": dict(task.provenance),
        "output_bytes": task.output_bytes,
        "dropped_bytes": task.dropped_bytes,
        "notify": targets.in_words(task.notify),
        "usual_s": None if task.archive else store.tasks.usual_s(task.key),
    }


FACTS = ("host", "worker", "job", "node")
"""What is shown of where at its place a task runs."""
_STREAMS = (OutputKind.STDOUT, OutputKind.STDERR)


def _result_document(kept: ResultRecord) -> dict[str, Any]:
    return {"text": kept.text, "size_bytes": kept.size_bytes, "problem": kept.problem}


def _process_document(process: ProcessRecord) -> dict[str, Any]:
    return {
        "command": list(process.command),
        "directory": process.directory,
        "pid": process.pid,
        "interpreter": process.interpreter,
        "cpu_s": process.cpu_s,
        "peak_memory_bytes": process.peak_memory_bytes,
        "timeout_s": process.timeout_s,
        "env": dict(process.options.env),
        "place": None if process.place is None else {**process.place, "task": dict(process.far)},
    }


def _notebook_document(task: TaskRecord, process: ProcessRecord | None) -> dict[str, Any] | None:
    if process is None or not task.is_whole_notebook:
        return None
    run = whole_notebooks.asked_of(process)
    return {
        "path": run.path,
        "kernel": run.kernel,
        "parameters": dict(run.parameters),
        "saved_as": str(run.saved_as(task.id)),
        "resumes": run.goes_on_from or None,
    }


def as_text(manager: BackgroundTasks, what: TaskRecord | SessionRecord) -> str:
    """Return what ``show`` prints."""
    if isinstance(what, SessionRecord):
        return _session_text(manager, what)
    return _task_text(manager, what)


def _session_text(manager: BackgroundTasks, session: SessionRecord) -> str:
    now, tasks = formatting.utc_now(), manager.tasks.of_session(session)
    facts = [
        ("session", session.id),
        ("notebook", session.path),
        ("runs in", f"{session.front_end}, process {session.pid} on {session.host}"),
        ("began", formatting.clock(session.started_at, now)),
        ("ended", formatting.session_end(session, now)),
        ("tasks", formatting.task_counts(session)),
    ]
    listing = Listing(tasks, len(tasks), False, now, produced=produced_by(manager, tasks))
    return render(details(facts), "", *task_table(listing), plain=manager.shell is not None)


def _task_text(manager: BackgroundTasks, task: TaskRecord) -> str:
    plain = manager.shell is not None
    rows = [
        *_facts(task, manager.store.sessions.short(task.session)),
        *_queue(manager, task),
        *_checkpoint(manager, task),
        *_process(manager, task),
        *_what_is_kept(manager, task),
        *_history(manager, task),
    ]
    table, plot = render(details(rows), plain=plain), _memory_plot(manager, task)
    parts = [table, *plot, _source(task), *_failure(manager, task)]
    return "\n\n".join(parts)


def _memory_plot(manager: BackgroundTasks, task: TaskRecord) -> list[str]:
    used = manager.tasks.store_of(task).processes.usage(task.key)
    return [memory.memory_plot(used)] if used is not None and len(used.points) > 1 else []


def _source(task: TaskRecord) -> str:
    """Return the source in legible form: an imported source may try to look different."""
    return legible_lines(task.source.rstrip().expandtabs(8))


def _error(manager: BackgroundTasks, task: TaskRecord) -> dict[str, Any] | None:
    """Return the last error that a task has shown: its name, message and traceback."""
    records = manager.tasks.store_of(task).outputs.of(task.key, kinds=(OutputKind.ERROR,))
    last = next(iter(deque(records, maxlen=1)), None)
    return None if last is None else json.loads(last.data)


def _failure(manager: BackgroundTasks, task: TaskRecord) -> Iterator[str]:
    """Yield the traceback of a failed task, and its variables at that point."""
    error = _error(manager, task) if task.state is TaskState.FAILED else None
    if error is not None:
        lines = as_shown("\n".join(error["traceback"])).splitlines()
        yield "\n".join(legible(line.rstrip()) for line in lines).strip("\n")
    found = manager.tasks.store_of(task).tasks.post_mortem(task.key)
    if found is not None and any(frame["variables"] for frame in found["frames"]):
        tables = [part for frame in found["frames"] for part in _frame(frame)][1:]
        yield render(*tables, plain=manager.shell is not None)


def _frame(frame: dict[str, Any]) -> Iterator[Table | Text]:
    """Yield a frame with its variables; nothing if it has none."""
    if frame["variables"]:
        yield Text()
        head = f"{frame['place']}, {frame['function']}: {frame['code']}"
        yield Text(legible(head), style="dim")
        left_out = frame["left_out"]
        more = [("", "", f"and {left_out:,} more")] if left_out else []
        rows = [(each["name"], each["type"], each["text"]) for each in frame["variables"]]
        yield variables([*rows, *more])


def _facts(task: TaskRecord, session: str) -> list[tuple[str, str]]:
    now = formatting.utc_now()
    look = formatting.STATE_STYLES[task.state]
    state = f"{look.glyph} {task.state.value}"
    why = task.reason or formatting.ending(task)
    if why and why not in (task.state.value, formatting.exit_text(task)):
        state += f" ({why})"
    facts = [
        ("task", f"{task.label}, {task.id}"),
        ("state", state),
        ("exit code", "" if task.exit_code is None else str(task.exit_code)),
        ("time", formatting.duration(task.elapsed_s(now))),
        ("paused for", formatting.duration(task.paused_s) if task.paused_s else ""),
        ("try", formatting.which_try(task) or _first_try(task)),
        ("schedule", _schedule(task)),
        ("group", "" if task.group == DEFAULT_GROUP else task.group),
        ("priority", str(task.waiting.priority) if task.waiting and task.waiting.priority else ""),
        (_of_machine(task), formatting.demands(task.demands)),
        ("GPUs", ", ".join(task.gpu_ids)),
        ("runs as", f"{formatting.place(task)} of session {session}"),
        ("notebook", task.notebook),
        ("cell", task.cell_id or ""),
        ("tags", ", ".join(task.tags)),
        ("tells its end", ", ".join(targets.in_words(task.notify))),
        ("archived", f"in the archive of {task.archive}" if task.archive else ""),
        *_provenance(task),
    ]
    return [(name, value) for name, value in facts if value]


def _queue(manager: BackgroundTasks, task: TaskRecord) -> list[tuple[str, str]]:
    """Return a waiting task's place, and how long a live one will probably take."""
    if task.state.is_final or task.archive:
        return []
    facts = []
    if task.state is TaskState.PENDING:
        ahead, start = manager.queueing.place_of(task)
        place = f"{formatting.counted(ahead, 'task')} of its group first" if ahead else ""
        facts = [("place", place), ("starts", start)]
    usual_s = manager.store.tasks.usual_s(task.key)
    facts.append(("usually takes", "" if usual_s is None else formatting.duration(usual_s)))
    return [(name, value) for name, value in facts if value]


def _of_machine(task: TaskRecord) -> str:
    if task.state is TaskState.PENDING:
        return "needs"
    return "has booked" if task.state is TaskState.RUNNING else "had booked"


def _first_try(task: TaskRecord) -> str:
    return "" if task.retries is None else f"try 1 of {task.retries.count + 1}"


def _schedule(task: TaskRecord) -> str:
    if task.schedule is None:
        return ""
    missed = ", without what was missed" if task.schedule.missed == SKIP else ""
    return f"{formatting.schedule(task)}{missed}"


def _provenance(task: TaskRecord) -> list[tuple[str, str]]:
    known = task.provenance
    python = (known.get("python"), known.get("executable"))
    return [
        ("rerun of", known.get("rerun_of", "")),
        ("run again as", known.get("rerun_as", "")),
        ("directory", known.get("directory", "")),
        ("Python", "{} ({})".format(*python) if all(python) else ""),
        ("host", known.get("host", "")),
        ("git", git_in_words(known["git"]) if known.get("git") else ""),
    ]


def _checkpoint(manager: BackgroundTasks, task: TaskRecord) -> list[tuple[str, str]]:
    said = formatting.checkpoint(manager.checkpoint(task))
    return [("checkpoint", said)] if said else []


def _process(manager: BackgroundTasks, task: TaskRecord) -> list[tuple[str, str]]:
    store = manager.tasks.store_of(task)
    process, used = store.processes.get(task.key), store.processes.usage(task.key)
    if process is None:
        return []
    facts = [
        *_whole_notebook(task, process),
        ("command", _command(process) if task.kind == "shell" else ""),
        ("pid", "" if process.pid is None else str(process.pid)),
        (f"on {task.place}", _elsewhere(process)),
        ("interpreter", process.interpreter or ""),
        ("time limit", "" if process.timeout_s is None else f"{process.timeout_s:g} s"),
        ("CPU time", "" if process.cpu_s is None else f"{process.cpu_s:.2f} s"),
        ("peak memory", _size(process.peak_memory_bytes)),
        ("memory", "" if used is None else memory.in_words(used)),
    ]
    return [(name, value) for name, value in facts if value]


def _elsewhere(process: ProcessRecord) -> str:
    """Return where at its place a task runs, as far as that is known; empty for here."""
    known = [f"{name} {process.far[name]}" for name in FACTS if process.far.get(name)]
    return legible(", ".join(known))


def _whole_notebook(task: TaskRecord, process: ProcessRecord) -> list[tuple[str, str]]:
    """Return which notebook a task runs, and where it is saved."""
    if not task.is_whole_notebook:
        return []
    run = whole_notebooks.asked_of(process)
    return [
        ("runs", legible(run.path)),
        ("parameters", legible(notebook_parameters.in_words(run.parameters))),
        ("saved as", legible(str(run.saved_as(task.id)))),
        ("resumes", legible(run.goes_on_from)),
    ]


def _command(process: ProcessRecord) -> str:
    """Return the command without its script, which is shown below as the task's source."""
    shown = [word for word in process.command if "\n" not in word and len(word) < LONG_WORD]
    return " ".join(map(shlex.quote, shown))


def _size(size_bytes: int | None) -> str:
    return "" if size_bytes is None else formatting.size(size_bytes)


def _what_is_kept(manager: BackgroundTasks, task: TaskRecord) -> list[tuple[str, str]]:
    store = manager.tasks.store_of(task)
    rows = []
    for kind in _STREAMS:
        size = store.outputs.stream_size(task.key, kind)
        if size.size_bytes:
            lines = formatting.counted(size.lines, "line")
            rows.append((kind.value, f"{lines}, {formatting.counted(size.size_bytes, 'byte')}"))
    displayed = replace(counts_of(store, task.key), lines=0).in_words()
    if displayed:
        rows.append(("displayed", displayed))
    if task.dropped_bytes:
        rows.append(("not kept", f"{formatting.counted(task.dropped_bytes, 'byte')} of its output"))
    kept = store.results.get(task.key)
    if kept is not None:
        shown = formatting.shorten(kept.text, 200)
        size_text = f" ({kept.size_bytes:,} bytes)" if kept.size_bytes is not None else ""
        rows.append(("result", f"{shown}{size_text}"))
        if kept.problem:
            rows.append(("not kept", kept.problem))
    rows.extend(
        (f"left {each.name}", _variable(each)) for each in store.results.variables(task.key)
    )
    return rows


def _variable(kept: ResultRecord) -> str:
    if kept.problem:
        return f"not kept: {kept.problem}"
    return f"{formatting.shorten(kept.text, 100)} ({kept.size_bytes:,} bytes)"


def _history(manager: BackgroundTasks, task: TaskRecord) -> list[tuple[str, str]]:
    events = manager.tasks.store_of(task).tasks.history(task.key)
    return [("history", "\n".join(map(history_line, events)))]
