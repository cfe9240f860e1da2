"""The widgets that a task displays: what they show is kept, for when no kernel has them any more.

A widget lives in its kernel, and a process task's in no kernel at all. So its text and its state,
in the form in which a notebook file keeps it, are recorded with the task: at its display, now and
then when it changes, when it is closed, and when the task ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from ipytaskpersist import widgetmarks
from ipytaskpersist.active import ActiveTask
from ipytaskpersist.capture.takenin import Listener
from ipytaskpersist.recording import encode_content
from ipytaskpersist.records import OutputKind
from ipytaskpersist.widgetmarks import STATE, VIEW

PAUSE_S = 1.0
"""The shortest time between two entries of one widget while its task runs."""
PAUSE_SHARE = 0.05
"""The same as a share of the time since its display: ten hours make fewer than 200 entries."""
STATE_BYTES = 4_000_000
"""A larger state is not kept at the end of its task."""
SMALL_STATE_BYTES = 64_000
"""A larger state is not kept while its task runs."""


def shown(task: ActiveTask, data: dict[str, Any]) -> None:
    """Keep from now on what a widget shows, where a display is the view of one."""
    model, module = widgetmarks.model_of(data), sys.modules.get("ipywidgets.widgets.widget")
    if model is None or module is None or task.is_forked:
        return
    widget = module._instances.get(model)
    if widget is not None and model not in task.shown_widgets:
        has_picture = any(mime not in (VIEW, "text/plain") for mime in data)
        task.shown_widgets[model] = KeptWidget(task, model, widget, has_picture=has_picture)


def end(task: ActiveTask) -> None:
    """Record what the widgets of a task show at its end."""
    if isinstance(listener := getattr(task.recording, "listener", None), Listener):
        listener.finish()
        task.recording.listener = None
    for widget in [*task.shown_widgets.values()]:
        with suppress(Exception):  # whatever a widget class raises
            widget.end()
    task.shown_widgets.clear()


def keep_now(task: ActiveTask) -> None:
    """Record what the widgets of a running task show, because its kernel ends."""
    for widget in [*task.shown_widgets.values()]:
        with suppress(Exception):
            widget.keep_last()


class KeptWidget:
    """A displayed widget, until its task ends."""

    def __init__(self, task: ActiveTask, model: str, widget: Any, *, has_picture: bool) -> None:
        """`has_picture` says that its display has another form that is as good as its view."""
        self._task = task
        self._model = model
        self.widget = widget
        self._has_picture = has_picture
        self.text = ""
        self._count: Any = None
        """How far the bar had come when its text was made."""
        self._shown_at = self._kept_at = time.monotonic()
        self._is_kept = self._is_closed = False
        self._parts = [*_with_parts(widget)]
        for part in self._parts:
            part.observe(self._changed)
        self._read()
        self._keep(SMALL_STATE_BYTES)

    @property
    def _bar(self) -> Any:
        """The bar of tqdm of which it is the widget; None for other widgets."""
        return getattr(self.widget, "pbar", None)

    @property
    def has_state(self) -> bool:
        """Whether its state is kept, and not only what it shows."""
        return self._bar is None and not self._is_closed and not self._has_picture

    def end(self) -> None:
        """Keep the widget as it is now, for the last time."""
        for part in self._parts:
            with suppress(ValueError):
                part.unobserve(self._changed)
        self.keep_last()

    def keep_last(self) -> None:
        """Keep the widget as it is now, pictures included, unless that is kept already."""
        with suppress(ReferenceError):  # a bar that is gone has shown its last text
            if self._bar is None or self._count != self._bar.n:
                self._read()
        if self._is_closed or self._bar is not None:
            if not self._is_kept:
                self._keep(0)
        else:
            pictures = self.widget._repr_mimebundle_() if self._has_picture else {}
            self._keep(STATE_BYTES, pictures)

    def _changed(self, change: Any) -> None:
        """A trait of the widget, or of one that it holds, has another value."""
        with suppress(Exception):  # it must not fail in the code that changes the widget
            is_closed = change["owner"] is self.widget and change["name"] == "comm"
            self._is_closed = self._is_closed or (is_closed and change["new"] is None)
            now = time.monotonic()
            pause_s = max(PAUSE_S, PAUSE_SHARE * (now - self._shown_at))
            if self._bar is not None or self._is_closed:
                self._read()  # a bar's own clock goes on
            self._is_kept = False
            if self._is_closed or now - self._kept_at > pause_s:
                self._read()
                self._keep(SMALL_STATE_BYTES)

    def _read(self) -> None:
        """Take in the text that stands for the widget now."""
        bar = self._bar
        if bar is None:
            self.text = repr(self.widget)
        else:
            self.text, self._count = self.widget.__repr__(True), bar.n

    def _keep(self, state_bytes: int, data: dict[str, Any] | None = None) -> None:
        """Record the widget, with its state where that is no larger."""
        self._kept_at, self._is_kept = time.monotonic(), True
        kept = {**(data or {}), "text/plain": widgetmarks.shortened(self.text)}
        kept.pop(VIEW, None)
        if self.has_state:
            state = _state_of(self._task, self.widget)
            if state and len(encode_content(state)) <= state_bytes:
                kept[STATE] = state
        self._task.recording.add(
            OutputKind.UPDATE_DISPLAY_DATA, widgetmarks.keeping(self._model, kept)
        )


def _with_parts(widget: Any) -> Iterator[Any]:
    """A widget and those that it holds."""
    module: Any = sys.modules["ipywidgets.widgets.widget"]
    for model in dependency_state(widget):
        yield module._instances.get(model, widget)


def dependency_state(widget: Any) -> dict[str, Any]:
    """The state of a widget and of those that it refers to, by their models' ids."""
    embed = import_module("ipywidgets.embed")
    found: dict[str, Any] = embed.dependency_state(widget, drop_defaults=False)
    return found


def _state_of(task: ActiveTask, widget: Any) -> dict[str, Any]:
    """The same as a notebook file keeps it; empty where it cannot be had."""
    with suppress(Exception):  # a widget that it refers to may be closed
        states = dependency_state(widget)
        for state in [*states.values()]:
            _add_inside(task, state["state"], states)
        return {"version_major": 2, "version_minor": 0, "state": states}
    return {}


def _add_inside(task: ActiveTask, state: dict[str, Any], states: dict[str, Any]) -> None:
    """Give what was displayed inside an ``Output`` its last text, and add the state of widgets."""
    if state.get("_model_name") != "OutputModel":
        return
    state["outputs"] = [_with_last(task, each, states) for each in state["outputs"]]


def _with_last(task: ActiveTask, output: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    kept = task.shown_widgets.get(widgetmarks.model_of(output.get("data", {})) or "")
    if kept is None:
        return output
    data = {**output["data"], "text/plain": widgetmarks.shortened(kept.text)}
    if kept.has_state:
        states |= dependency_state(kept.widget)
    else:
        del data[VIEW]
    return {**output, "data": data}
