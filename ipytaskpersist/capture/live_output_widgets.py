"""Send the output of tasks inside an ``ipywidgets.Output`` to the widget, which shows it live.

A front end captures a cell's output inside the widget by the message that runs the cell. A task has
no such message, so the kernel sets the widget's outputs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from ipytaskpersist.base.records import STREAM_KINDS, OutputKind
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.running.running_task import RunningTask

Outputs = list[dict[str, Any]]
PAUSE_S = 0.05
"""Shortest interval between two updates of a widget in the page."""
COST_SHARE = 10
"""The same as a multiple of the last update's duration, because each one sends all outputs."""


_taken_by: WeakValueDictionary[str, Taken] = WeakValueDictionary()
"""Entries by widget id, for all tasks."""


def enter(task: RunningTask, widget: Any, name: str) -> None:
    """Put the task's output into the widget with this id from now on."""
    if task.is_forked:
        return
    if not isinstance(task.recording.listener, Listener):
        task.recording.listener = Listener(task)
    taken = _taken_by.get(name) or Taken(widget)
    _taken_by[name] = task.recording.listener.taken[name] = taken


def leave(name: str) -> None:
    """Note that a task has left a widget, whose content is now complete."""
    taken = _taken_by.get(name)
    if taken is not None:
        taken.leave()


class Listener:
    """Receives a task's output and passes it to the widgets that it is inside."""

    def __init__(self, task: RunningTask) -> None:
        self._task = task
        self.taken: dict[str, Taken] = {}
        """Entries by widget id, for all widgets that the task has been inside."""

    def __call__(self, kind: OutputKind, content: Any) -> None:
        if kind in STREAM_KINDS:
            if (taken := self.taken.get(self._task.widgets.innermost or "")) is not None:
                text = content.decode(errors="replace") if isinstance(content, bytes) else content
                taken.change(partial(_add_text, kind.value, text))
        elif kind is OutputKind.UPDATE_DISPLAY_DATA:
            if not {"widget", "model"} & content.keys():
                for taken in self.taken.values():
                    taken.change(partial(_update, content))
        elif kind is OutputKind.CLEAR_OUTPUT:
            if (taken := self.taken.get(content.get("widget", ""))) is not None:
                taken.clear(wait=content["wait"])
        elif (taken := self.taken.get(self._task.widgets.innermost or "")) is not None:
            taken.change(partial(_add, {"output_type": kind.value, **content}))

    def finish(self) -> None:
        """Send the remaining output, because the task has ended."""
        for taken in self.taken.values():
            taken.send()


class Taken:
    """Output of tasks inside a widget, before it is sent to the widget."""

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        self._changes: deque[Callable[[Outputs], None]] = deque()
        self._lock = threading.RLock()
        self._sent_at, self._cost_s = 0.0, 0.0
        self._clears_next = False
        self._timer: threading.Timer | None = None

    def clear(self, *, wait: bool) -> None:
        """Clear the widget, now or before the next output."""
        self._clears_next = wait
        if not wait:
            self.change(list.clear, is_output=False)

    def change(self, change: Callable[[Outputs], None], *, is_output: bool = True) -> None:
        """Apply a change to the widget soon."""
        if is_output and self._clears_next:
            self._clears_next = False
            self._changes.append(list.clear)
        self._changes.append(change)
        pause_s = max(PAUSE_S, COST_SHARE * self._cost_s)
        if time.monotonic() - self._sent_at > pause_s:
            self.send()
        elif self._timer is None:
            self._timer = threading.Timer(pause_s, self.send)
            self._timer.daemon = True
            start_outside(self._timer)

    def leave(self) -> None:
        """Send the changes, unless the last update was too recent."""
        if time.monotonic() - self._sent_at > COST_SHARE * self._cost_s:
            self.send()

    def send(self) -> None:
        """Send the pending changes to the widget."""
        with self._lock:
            self._timer = None
            if not self._changes:
                return
            self._sent_at = begun = time.monotonic()
            found = [dict(each) for each in self._widget.outputs]
            while self._changes:
                self._changes.popleft()(found)
            self._widget.outputs = tuple(found)
            self._cost_s = time.monotonic() - begun


def _add_text(name: str, text: str, found: Outputs) -> None:
    if found and found[-1].get("name") == name:
        found[-1]["text"] += text
    else:
        found.append({"output_type": "stream", "name": name, "text": text})


def _add(output: dict[str, Any], found: Outputs) -> None:
    found.append(output)


def _update(content: dict[str, Any], found: Outputs) -> None:
    wanted = content["transient"].get("display_id")
    for output in found:
        if output.get("transient", {}).get("display_id") == wanted:
            output.update(data=content["data"], metadata=content["metadata"])
