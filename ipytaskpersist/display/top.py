"""What running tasks use of the machine, as a table and as JSON."""

from __future__ import annotations

from typing import Any

from ipytaskpersist.display.drawing import RenderableType, Text
from ipytaskpersist.display.memory import memory_curve
from ipytaskpersist.display.tables import Column, Columns
from ipytaskpersist.session.inspecting import InUse, Top
from ipytaskpersist.text import formatting


def top_tables(top: Top, *, every_notebook: bool) -> list[RenderableType]:
    """Return the tasks that run, with what each uses now, and what the machine has."""
    if not top.tasks:
        return [Text("no task runs", style="dim")]
    rows = top.tasks
    references = [formatting.reference(each.task, every_notebook) for each in rows]
    columns = [
        Column("id" if every_notebook else "#", references, ["dim"], least=3),
        Column("name", [each.task.name for each in rows], ["bold"], least=3, share=5),
        Column("CPU", [_percent(each) for each in rows], least=6),
        Column("memory", [_memory(each) for each in rows], least=8),
        Column("over time", [memory_curve(each.history) for each in rows], ["dim"], turn=4),
        Column("GPU", [_gpu(each) for each in rows], turn=1),
        Column("read/s", [_rate(each, "read_bytes") for each in rows], turn=3, least=7),
        Column("written/s", [_rate(each, "written_bytes") for each in rows], turn=2, least=7),
        Column("processes", [_processes(each) for each in rows], ["dim"], turn=5, least=4),
        Column("", [each.note for each in rows], ["dim"], turn=6, least=8),
    ]
    in_use = formatting.share(top.memory_bytes - top.free_bytes, top.memory_bytes)
    machine = f"{top.cpus:g} CPUs, {in_use} of memory in use"
    return [Columns(*columns), Text(machine, style="dim")]


def _percent(used: InUse) -> str:
    return "" if used.point is None else f"{used.point.cpus * 100:.0f} %"


def _memory(used: InUse) -> str:
    return "" if used.point is None else formatting.size(used.point.memory_bytes)


def _gpu(used: InUse) -> str:
    return "" if not used.gpu_bytes else formatting.size(used.gpu_bytes)


def _rate(used: InUse, name: str) -> str:
    if used.point is None:
        return ""
    rate = getattr(used.point, name) / used.point.span_s
    return formatting.size(int(rate)) if rate >= 1 else ""


def _processes(used: InUse) -> str:
    point = used.point
    return (
        "" if point is None else f"{point.processes}, {formatting.counted(point.threads, 'thread')}"
    )


def top_document(top: Top) -> dict[str, Any]:
    """Return the document that ``top --json`` prints."""
    return {
        "cpus": top.cpus,
        "memory_bytes": top.memory_bytes,
        "free_bytes": top.free_bytes,
        "tasks": [_use_document(each) for each in top.tasks],
    }


def _use_document(used: InUse) -> dict[str, Any]:
    task, point = used.task, used.point
    known = None
    if point is not None:
        known = {
            "cpus": round(point.cpus, 3),
            "memory_bytes": point.memory_bytes,
            "read_bytes_per_s": round(point.read_bytes / point.span_s),
            "written_bytes_per_s": round(point.written_bytes / point.span_s),
            "threads": point.threads,
            "processes": point.processes,
        }
    return {
        "id": task.id,
        "number": task.number,
        "name": task.name or None,
        "uses": known,
        "gpu_bytes": used.gpu_bytes,
        "note": used.note or None,
    }
