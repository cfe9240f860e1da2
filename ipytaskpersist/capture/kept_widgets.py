"""Record what displayed widgets show, for when their kernel is gone.

A widget lives in its kernel, and a process task has no kernel at all. So its text and its state, in
the form used in notebook files, are recorded with the task: at its display, occasionally when it
changes, when it is closed, and when the task ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from ipytaskpersist.base import widget_marks
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.base.widget_marks import STATE, VIEW
from ipytaskpersist.capture.live_output_widgets import Listener
from ipytaskpersist.running.running_task import RunningTask
from ipytaskpersist.text.encoding import encode_content

PAUSE_S = 1.0
"""Shortest time between two records of one widget while its task runs."""
PAUSE_SHARE = 0.05
"""The same as a share of the time since its display. Ten hours make fewer than 200 records."""
STATE_BYTES = 4_000_000
"""A larger state is not kept at the end of the task."""
SMALL_STATE_BYTES = 64_000
"""A larger state is not kept while the task runs."""


def shown(task: RunningTask, data: dict[str, Any]) -> None:
    """Record what a widget shows from now on, if the display is a widget's view."""
    model, module = widget_marks.model_of(data), sys.modules.get("ipywidgets.widgets.widget")
    if model is None or module is None or task.is_forked:
        return
    widget = module._instances.get(model)
    if widget is not None and model not in task.shown_widgets:
        has_picture = any(mime not in (VIEW, "text/plain") for mime in data)
        task.shown_widgets[model] = KeptWidget(task, model, widget, has_picture=has_picture)


def end(task: RunningTask) -> None:
    """Record what a task's widgets show at its end."""
    if isinstance(listener := task.recording.listener, Listener):
        listener.finish()
        task.recording.listener = None
    for widget in [*task.shown_widgets.values()]:
        with suppress(Exception):  # a widget class may raise anything
            widget.end()
    task.shown_widgets.clear()


def keep_now(task: RunningTask) -> None:
    """Record what a running task's widgets show, because its kernel is ending."""
    for widget in [*task.shown_widgets.values()]:
        with suppress(Exception):
            widget.keep_last()


class KeptWidget:
    """A displayed widget, until its task ends."""

    def __init__(self, task: RunningTask, model: str, widget: Any, *, has_picture: bool) -> None:
        """`has_picture` tells whether the display has another form as good as the view."""
        self._task = task
        self._model = model
        self.widget = widget
        self._has_picture = has_picture
        self.text = ""
        self._count: Any = None
        """The bar's count when its text was rendered."""
        self._shown_at = self._kept_at = time.monotonic()
        self._is_kept = self._is_closed = False
        self._parts = [*_with_parts(widget)]
        for part in self._parts:
            part.observe(self._changed)
        self._read()
        self._keep(SMALL_STATE_BYTES)

    @property
    def _bar(self) -> Any:
        """The tqdm bar to which the widget belongs, or None."""
        return getattr(self.widget, "pbar", None)

    @property
    def has_state(self) -> bool:
        """Whether the widget's state is kept in addition to its text."""
        return self._bar is None and not self._is_closed and not self._has_picture

    def end(self) -> None:
        """Record the widget for the last time."""
        for part in self._parts:
            with suppress(ValueError):
                part.unobserve(self._changed)
        self.keep_last()

    def keep_last(self) -> None:
        """Record the widget as it is now, including pictures, unless this is done already."""
        with suppress(ReferenceError):  # the bar is gone, and has shown its last text
            if self._bar is None or self._count != self._bar.n:
                self._read()
        if self._is_closed or self._bar is not None:
            if not self._is_kept:
                self._keep(0)
        else:
            pictures = self.widget._repr_mimebundle_() if self._has_picture else {}
            self._keep(STATE_BYTES, pictures)

    def _changed(self, change: Any) -> None:
        """Handle a changed trait of the widget or of one inside it."""
        with suppress(Exception):  # it must not fail in the code that changes the widget
            is_closed = change["owner"] is self.widget and change["name"] == "comm"
            self._is_closed = self._is_closed or (is_closed and change["new"] is None)
            now = time.monotonic()
            pause_s = max(PAUSE_S, PAUSE_SHARE * (now - self._shown_at))
            if self._bar is not None or self._is_closed:
                self._read()  # the bar's clock goes on
            self._is_kept = False
            if self._is_closed or now - self._kept_at > pause_s:
                self._read()
                self._keep(SMALL_STATE_BYTES)

    def _read(self) -> None:
        """Render the widget's current text."""
        bar = self._bar
        if bar is None:
            self.text = repr(self.widget)
        else:
            self.text, self._count = self.widget.__repr__(True), bar.n

    def _keep(self, state_bytes: int, data: dict[str, Any] | None = None) -> None:
        """Record the widget, including its state if that is small enough."""
        self._kept_at, self._is_kept = time.monotonic(), True
        kept = {**(data or {}), "text/plain": widget_marks.shortened(self.text)}
        kept.pop(VIEW, None)
        if self.has_state:
            state = _state_of(self._task, self.widget)
            if state and len(encode_content(state)) <= state_bytes:
                kept[STATE] = state
        self._task.recording.add(
            OutputKind.UPDATE_DISPLAY_DATA, widget_marks.keeping(self._model, kept)
        )


def _with_parts(widget: Any) -> Iterator[Any]:
    """Yield a widget and the widgets that it refers to."""
    module: Any = sys.modules["ipywidgets.widgets.widget"]
    for model in dependency_state(widget):
        yield module._instances.get(model, widget)


def dependency_state(widget: Any) -> dict[str, Any]:
    """Return the state of a widget and of those it refers to, by model id."""
    embed = import_module("ipywidgets.embed")
    found: dict[str, Any] = embed.dependency_state(widget, drop_defaults=False)
    return found


def _state_of(task: RunningTask, widget: Any) -> dict[str, Any]:
    """Return the same state as in a notebook file. Empty if it is not available."""
    with suppress(Exception):  # a widget that it refers to may be closed
        states = dependency_state(widget)
        for state in [*states.values()]:
            _add_inside(task, state["state"], states)
        return {"version_major": 2, "version_minor": 0, "state": states}
    return {}


def _add_inside(task: RunningTask, state: dict[str, Any], states: dict[str, Any]) -> None:
    """Update the text of widgets displayed inside an ``Output``, and add their state."""
    if state.get("_model_name") != "OutputModel":
        return
    state["outputs"] = [_with_last(task, each, states) for each in state["outputs"]]


def _with_last(task: RunningTask, output: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    kept = task.shown_widgets.get(widget_marks.model_of(output.get("data", {})) or "")
    if kept is None:
        return output
    data = {**output["data"], "text/plain": widget_marks.shortened(kept.text)}
    if kept.has_state:
        states |= dependency_state(kept.widget)
    else:
        del data[VIEW]
    return {**output, "data": data}
