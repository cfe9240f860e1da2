"""The verbs that look into running tasks: stack, top."""

from __future__ import annotations

import sys
import time
from itertools import islice
from typing import Any

import click

from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    as_json,
    one_reference,
    print_json,
    surface_and_manager,
    verbs,
)
from ipytaskpersist.commands.surfaces import Surface, stopped_by_interrupt
from ipytaskpersist.display import console
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.inspection.looks import Look, change
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import durations, formatting

CLEAR = "\x1b[H\x1b[2J"
"""Moves to the first line of a terminal and clears it."""


@verbs.command()
@one_reference(completion.tasks)
@click.option(
    "--times", type=click.IntRange(1, 1000), default=1, metavar="N",
    help="Look N times, and show what has moved in between.",
)  # fmt: skip
@click.option(
    "--every", default="1s", metavar="TIME",
    help="The time between two looks, such as 0.5s or 1m. Default: 1s.",
)  # fmt: skip
@as_json
@surface_and_manager
def stack(
    surface: Surface,
    manager: BackgroundTasks,
    ref: str | None,
    times: int,
    every: str,
    as_json: bool,
) -> None:
    """Show what a running task does now: its threads, coroutines and processes, as a traceback."""
    every_s = durations.parse_age(every)
    task = manager.tasks.find(ref, live=True)
    looks: list[Look] = []
    with stopped_by_interrupt(f"no more looks; task {task.label} goes on"):
        for count in range(times):
            if count:
                time.sleep(every_s)
            try:
                looks.append(manager.inspecting.look(task))
            except InvalidRequest:
                if not looks:
                    raise
                break
            if not as_json:
                click.echo(surface.in_words(_text(task, looks)))
    if as_json:
        print_json({**_head(task), "looks": [look.as_json() for look in looks]})
    elif len(looks) < times:
        now = manager.tasks.refresh(task)
        click.echo(surface.in_words(f"task {now.label} is {now.state.value} now"))


def _head(task: TaskRecord) -> dict[str, Any]:
    return {
        "id": task.id,
        "number": task.number,
        "name": task.name or None,
        "kind": task.kind,
        "runner": task.runner,
    }


def _text(task: TaskRecord, looks: list[Look]) -> str:
    """Return the first look as a whole, and of a later one what has moved."""
    *before, look = looks
    if before:
        return f"{formatting.utc_clock(look.at)}: {change(before[-1], look)}"
    since = formatting.duration(task.elapsed_s(look.at))
    return f"task {task.label}, running for {since}\n{look}"


@verbs.command()
@click.option("--all", "every_notebook", is_flag=True, help="The tasks of every notebook.")
@click.option(
    "--times", type=click.IntRange(min=1), metavar="N",
    help="Look N times. Default: until Ctrl-C in a terminal, once elsewhere.",
)  # fmt: skip
@click.option(
    "--every", default="1s", metavar="TIME",
    help="The time over which is measured, such as 0.5s or 1m. Default: 1s.",
)  # fmt: skip
@click.option("--pss", is_flag=True, help="Count memory that processes share once. Takes longer.")
@as_json
@surface_and_manager
def top(
    surface: Surface,
    manager: BackgroundTasks,
    every_notebook: bool,
    times: int | None,
    every: str,
    pss: bool,
    as_json: bool,
) -> None:
    """Show what the running tasks use: processors, memory, GPU memory, disks, processes."""
    from ipytaskpersist.display.tables import render
    from ipytaskpersist.display.top import top_document, top_tables

    key = None if every_notebook else manager.session.notebook_key() or -1
    is_live = not as_json and not surface.is_ipython and console.is_terminal(sys.stdout)
    looks = manager.inspecting.top(
        lambda: manager.tasks.select(Selection(key, states=[TaskState.RUNNING])),
        durations.parse_age(every),
        shared_once=pss,
    )
    wanted = islice(looks, times or (None if is_live else 1))
    with stopped_by_interrupt(""):
        if as_json:
            documents = [top_document(each) for each in wanted]
            print_json(documents[0] if len(documents) == 1 else {"looks": documents})
            return
        for count, each in enumerate(wanted):
            tables = top_tables(each, every_notebook=every_notebook)
            shown = render(*tables, plain=surface.is_ipython)
            if count and is_live and console.can_move():
                click.echo(CLEAR, nl=False)
            click.echo(shown)
