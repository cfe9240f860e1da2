"""The panel as a widget: messages from its page, and what a page without a kernel shows of it."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anywidget
from traitlets import Unicode

from ipytaskpersist import searching, views
from ipytaskpersist.active import start_outside
from ipytaskpersist.errors import BackgroundError, StoreError
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.panel.actions import Actions
from ipytaskpersist.panel.feed import TASKS, Feed, Feeder
from ipytaskpersist.store import Selection

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

STATIC = Path(__file__).parents[1] / "static"
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
    """What the list beside it is called in the page."""

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
        html = f'<div style="opacity:.7">{escape(ONLY_LIVE)}</div>'
        return {**data, "text/html": html, "text/plain": ONLY_LIVE}, metadata

    def snapshot(self) -> dict[str, str]:
        """The list as it is now, to stand beside the panel where its kernel is gone.

        An output of its own, which a live panel hides: JupyterLab shows nothing else of an output
        that has a widget, even when the widget is not there any more.
        """
        return snapshot(self._manager, self._feed.everywhere, str(self.snapshot_name))

    def _take(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """A message from its page. Runs in the kernel's main thread or in that of a subshell."""
        kind, view = content.get("kind"), str(content.get("view", ""))
        if kind == "close":
            self._feed.left(view)
            return
        self._feed.heard(view)
        if kind == "open":
            self._feed.wants_all = True
            self.first = ""  # it has served, and a saved notebook need not hold it
        elif kind == "scope":
            self._feed.everywhere = bool(content.get("everywhere"))
            self._feed.wants_all = True
        elif kind == "select":
            self._feed.selected = content.get("task")
        elif kind == "search":
            self._search(str(content.get("text", "")))
        elif kind == "do":
            self.send(self._actions.do(content))
        if kind != "here":
            self._feeder.wake()

    def _search(self, typed: str) -> None:
        # The first search may have much to index, and the page's other wishes do not wait for it.
        context = copy_context()
        thread = threading.Thread(target=lambda: context.run(self._find, typed), daemon=True)
        if not start_outside(thread):
            self._find(typed)

    def _find(self, typed: str) -> None:
        found, problem = [], ""
        try:
            query = searching.parse([f"{typed}*" if typed[-1:].isalnum() else typed])
            here = "" if self._feed.everywhere else self._manager.identity.path
            scope = searching.Scope(limit=TASKS, notebook=here)
            store, archives = self._manager.store, self._manager.archives
            hits = searching.search(store, archives, query, scope, lambda _done, _total: None)
            found = [hit.task.id for hit in hits.hits]
        except BackgroundError as error:
            problem = str(error)
        finally:
            self._manager.store.database.close_own()
        self.send({"kind": "found", "text": typed, "tasks": found, "problem": problem})


def snapshot(manager: BackgroundTasks, everywhere: bool, name: str) -> dict[str, str]:
    """The list as it is now, for whoever opens the notebook without its kernel."""
    from ipytaskpersist.terminal import render, task_table

    now = views.utc_now()
    key = None if everywhere else manager.notebook_key() or -1
    chosen = Selection(key, cleared=False, limit=SNAPSHOT_TASKS)
    tasks = manager.select(chosen)
    total = manager.store.tasks.count(chosen) if manager.store.exists else 0
    listing = views.Listing(tasks, total, everywhere, now)
    title = f"Background tasks as of {now.astimezone():%Y-%m-%d %H:%M:%S}"
    return {
        "text/html": f'<div class="{name}"><div style="opacity:.7">{title}</div>'
        f"{views.list_html(listing)}</div>",
        "text/plain": f"{title}\n{render(*task_table(listing), plain=True)}",
    }


# Hearing a page while a cell runs.


def hear_at_once(comm: Any, take: Any) -> None:
    """Let messages of a comm be handled where they arrive, without what would disturb a cell.

    ipykernel 7.4.0 sends a page's messages to the subshell that opened the comm, which is the main
    one: they would wait for the running cell. And a comm announces each message as if a cell began
    and ended, which among others shows the running cell's unfinished figures.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, default: default

    def handle(message: Any) -> None:
        try:
            take(message)
        finally:
            FOREGROUND_OUTPUT.restore()

    comm.handle_msg = handle


class ForegroundOutput:
    """Where threads of the foreground print: to the latest cell, not to a message of a page.

    ipykernel 7 notes the latest message of any subshell for threads that it does not know.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def watch(self, shell: InteractiveShell) -> None:
        """Note with each cell from now on where its threads print."""
        self._note(shell)
        if not any(call == self.note for call in shell.events.callbacks["pre_run_cell"]):
            shell.events.register("pre_run_cell", self.note)

    def unwatch(self, shell: InteractiveShell) -> None:
        """Leave cells alone again."""
        self._kept = []
        with suppress(ValueError):
            shell.events.unregister("pre_run_cell", self.note)

    def note(self, _info: Any = None) -> None:
        """A cell begins."""
        from IPython.core.getipython import get_ipython

        self._note(get_ipython())

    def _note(self, shell: Any) -> None:
        places = (sys.stdout, sys.stderr, shell, shell.displayhook, shell.display_pub)
        self._kept = [
            (place, place._parent_header_global)
            for place in places
            if hasattr(place, "_parent_header_global")
        ]

    def restore(self) -> None:
        """Put back what a message has changed."""
        for place, parent in self._kept:
            place._parent_header_global = parent


FOREGROUND_OUTPUT = ForegroundOutput()


class Listening:
    """Tells whether the kernel's main thread is free, so that it hears what pages send."""

    def __init__(self, shell: Any) -> None:
        self._loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
        self._asked_at: float | None = None
        self._free_since = time.monotonic()

    def __call__(self) -> bool:
        """Whether it has been free for some seconds. Asks it again, for the next time."""
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
    """A new panel, which is live from now on."""
    with suppress(StoreError):  # then it can at least be looked for
        manager.get_ready()
    feeder = _feeders.get(id(manager))
    if feeder is None:
        _feeders.clear()
        feeder = _feeders[id(manager)] = Feeder(manager, Listening(shell))
        manager.on_close.append(lambda: FOREGROUND_OUTPUT.unwatch(shell))
    FOREGROUND_OUTPUT.watch(shell)
    return Panel(manager, feeder, everywhere=everywhere)
