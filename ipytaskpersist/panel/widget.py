"""The panel as a widget: messages from its page, and its appearance in a page without a kernel."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC
from html import escape
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anywidget
from traitlets import Unicode

from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.display.listing import Listing, list_html, produced_by
from ipytaskpersist.errors import BackgroundError, StoreError
from ipytaskpersist.history import search_query, text_search
from ipytaskpersist.panel import STATIC
from ipytaskpersist.panel.actions import Actions
from ipytaskpersist.panel.feed import TASKS, Feed, Feeder
from ipytaskpersist.panel.hearing import FOREGROUND_OUTPUT, hear_at_once
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

SNAPSHOT_TASKS = 30
ONLY_LIVE = "The panel is live while its kernel runs; %bg_panel opens it again."
LISTENING_S = 5.0
BUSY_S = 1.0


class Panel(anywidget.AnyWidget):
    """One panel, which may have several views in pages."""

    _esm = STATIC / "panel.js"
    _css = STATIC / "panel.css"
    first = Unicode().tag(sync=True)
    """The list as it was at the beginning, for a page that the kernel cannot answer yet."""

    snapshot_name = Unicode().tag(sync=True)
    """Name of the accompanying list in the page."""

    def __init__(self, manager: BackgroundTasks, feeder: Feeder, *, everywhere: bool) -> None:
        self._manager = manager
        self._feeder = feeder
        self._actions = Actions(manager)
        self._feed = Feed(manager, self.send, everywhere=everywhere)
        super().__init__(
            first=json.dumps(self._feed.everything()), snapshot_name=f"ipytp-{uuid4().hex}"
        )
        hear_at_once(self.comm, self._handle_msg)
        self.on_msg(self._take)
        feeder.add(self._feed)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, metadata = bundle
        html = f'<div style="{formatting.DIM}">{escape(ONLY_LIVE)}</div>'
        return {**data, "text/html": html, "text/plain": ONLY_LIVE}, metadata

    def snapshot(self) -> dict[str, str]:
        """Return the current list, to stand beside the panel when its kernel is gone.

        This is a separate output, which a live panel hides. JupyterLab shows nothing else of an
        output that has a widget, even when the widget no longer exists.
        """
        return snapshot(self._manager, self._feed.everywhere, str(self.snapshot_name))

    def _take(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """Handle a message from its page, in the kernel's main thread or that of a subshell."""
        kind, view = content.get("kind"), str(content.get("view", ""))
        if kind == "close":
            self._feed.left(view)
            return
        self._feed.heard(view)
        if kind == "open":
            self._feed.wants_all = True
            self.first = ""  # it has served its purpose, and a saved notebook does not need it
        elif kind == "scope":
            self._feed.everywhere = bool(content.get("everywhere"))
            self._feed.wants_all = True
        elif kind == "select":
            self._feed.select(view, content.get("task"))
        elif kind == "search":
            self._search(str(content.get("text", "")))
        elif kind == "do":
            self.send(self._actions.do(content))
        if kind != "here":
            self._feeder.wake()

    def _search(self, typed: str) -> None:
        # The first search may have much to index, and other requests must not wait for it.
        context = copy_context()
        thread = threading.Thread(target=lambda: context.run(self._find, typed), daemon=True)
        if not start_outside(thread):
            self._find(typed)

    def _find(self, typed: str) -> None:
        found, problem = [], ""
        try:
            query = search_query.parse([f"{typed}*" if typed[-1:].isalnum() else typed])
            here = "" if self._feed.everywhere else self._manager.session.identity.path
            scope = search_query.Scope(limit=TASKS, notebook=here)
            store, archives = self._manager.store, self._manager.archives
            hits = text_search.search(store, archives, query, scope, lambda _done, _total: None)
            found = [hit.task.id for hit in hits.hits]
        except BackgroundError as error:
            problem = str(error)
        finally:
            self._manager.store.database.close_own()
        self.send({"kind": "found", "text": typed, "tasks": found, "problem": problem})


def snapshot(manager: BackgroundTasks, everywhere: bool, name: str) -> dict[str, str]:
    """Return the current list, for a notebook that is opened without its kernel."""
    from ipytaskpersist.display.tables import render, task_table

    now = formatting.utc_now()
    key = None if everywhere else manager.session.notebook_key() or -1
    chosen = Selection(key, cleared=False, limit=SNAPSHOT_TASKS)
    tasks = manager.tasks.select(chosen)
    total = manager.store.tasks.count(chosen) if manager.store.exists else 0
    produced = produced_by(manager, tasks)
    listing = Listing(tasks, total, everywhere, now, produced=produced)
    title = f"Background tasks at {formatting.utc_clock(now)}, {formatting.utc_date(now)}"
    return {
        "text/html": f'<div class="{name}"><div style="{formatting.DIM}">{title}</div>'
        f"{list_html(listing)}</div>",
        "text/plain": f"{title}\n{render(*task_table(listing, UTC), plain=True)}",
    }


class Listening:
    """Checks whether the kernel's main thread is free, so that it receives what pages send."""

    def __init__(self, shell: Any) -> None:
        self._loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
        self._asked_at: float | None = None
        self._free_since = time.monotonic()

    def __call__(self) -> bool:
        """Return whether it has been free for some seconds. Query it again, for the next call."""
        now = time.monotonic()
        if self._asked_at is None and self._loop is not None:
            self._asked_at = now
            self._loop.add_callback(self._free)
        elif self._asked_at is not None and now - self._asked_at > BUSY_S:
            return False
        return now - self._free_since > LISTENING_S

    def _free(self) -> None:
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at > BUSY_S:
            self._free_since = now
        self._asked_at = None


_feeders: dict[int, Feeder] = {}


def open_panel(manager: BackgroundTasks, shell: InteractiveShell, *, everywhere: bool) -> Panel:
    """Return a new panel, which is live from now on."""
    with suppress(StoreError):  # it can still show what is there
        manager.runners.get_ready()
    feeder = _feeders.get(id(manager))
    if feeder is None:
        _feeders.clear()
        feeder = _feeders[id(manager)] = Feeder(manager, Listening(shell))
        manager.runners.on_close.append(lambda: FOREGROUND_OUTPUT.unwatch(shell))
    FOREGROUND_OUTPUT.watch(shell)
    return Panel(manager, feeder, everywhere=everywhere)
