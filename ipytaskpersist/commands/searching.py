"""The verb that finds words in the names, sources and outputs of all tasks: search."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    as_json,
    print_json,
    refuse_together,
    surface_and_manager,
    verbs,
)
from ipytaskpersist.commands.surfaces import Surface, stopped_by_interrupt
from ipytaskpersist.history import search_query, text_search
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.search_index import COLUMNS
from ipytaskpersist.text import formatting
from ipytaskpersist.text.durations import parse_since

SHOW_PROGRESS_S = 1.0


@verbs.command()
@click.argument("words", nargs=-1, metavar="WORDS...")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([state.value for state in TaskState]),
    help="Only tasks in this state. May be given several times.",
)  # fmt: skip
@click.option("--since", metavar="AGE", help="Only tasks since then: 12h, 7d, 2w or 2026-01-31.")
@click.option(
    "--notebook", metavar="NAME", shell_complete=completion.notebooks,
    help="Only this notebook's: its path or file name.",
)  # fmt: skip
@click.option("--stdout", is_flag=True, help="Only in standard output.")
@click.option("--source", is_flag=True, help="Only in sources and names.")
@click.option("--archived", is_flag=True, help="Also in the archives.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, metavar="N",
    help="Only the best N tasks. Default: 20.",
)  # fmt: skip
@as_json
@surface_and_manager
def search(
    surface: Surface,
    manager: BackgroundTasks,
    words: Sequence[str],
    states: Sequence[str],
    since: str | None,
    notebook: str | None,
    stdout: bool,
    source: bool,
    archived: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Find words in the names, sources and outputs of all tasks, best matches first."""
    from ipytaskpersist.display.search_results import Shown

    refuse_together({"--stdout": stdout, "--source": source})
    query = search_query.parse(words)
    now = formatting.utc_now()
    scope = search_query.Scope(
        columns=("stdout",) if stdout else ("name", "source") if source else COLUMNS,
        states=[TaskState(state) for state in states],
        since=parse_since(since, now).timestamp() if since is not None else None,
        notebook=notebook or "",
        archived=archived,
        limit=limit,
    )
    manager.runners.reconcile()
    with stopped_by_interrupt("no longer searching; what has been indexed so far is kept"):
        progress = _Progress()
        try:
            found = text_search.search(manager.store, manager.archives, query, scope, progress.show)
        finally:
            progress.close()
        if as_json:
            print_json(found.as_json(now))
        else:
            surface.found(Shown(found, manager.tasks.is_own, now))


class _Progress:
    """A line on stderr with the indexing progress, shown in a terminal if indexing takes long."""

    def __init__(self) -> None:
        self._begun_at = time.monotonic()
        self._is_shown = False

    def show(self, done_bytes: int, total_bytes: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - self._begun_at > SHOW_PROGRESS_S:
            self._is_shown = True
            text = f"indexed {done_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
