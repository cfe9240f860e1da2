"""Marks in a task's record for the outputs inside an ``ipywidgets.Output``.

What a task prints and displays within ``with output:`` is recorded along with the widget. Entries
of three forms mark its position and what is cleared, each with the id of the widget's model::

    update_display_data  {"widget": "…", "inside": true, "data": {}, …}   what follows is inside it
    update_display_data  {"widget": "…", "inside": false, "data": {}, …}  what follows is not
    clear_output         {"widget": "…", "wait": false}                   its outputs are cleared

Between the first and the second, all of the task's output is inside, from whichever of its threads.
With several widgets it is inside the one entered last, as in a kernel and its front end. A
``clear_output`` entry without a widget clears what is inside none.

The last appearance of a displayed widget is kept in an entry of a fourth form, with its state if it
has one, for when its model is no longer alive::

    update_display_data  {"model": "…", "data": {"text/plain": "…", "…widget-state+json": {}}, …}

The kinds are as old as the store. No display has the id that these entries update, so a reader that
does not know them ignores them.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from itertools import count
from typing import Any

from ipytaskpersist.base.records import OutputKind

VIEW = "application/vnd.jupyter.widget-view+json"
"""MIME type of the display of a widget's view, with the id of its model."""
STATE = "application/vnd.jupyter.widget-state+json"
"""MIME type under which notebook files keep the state of widgets."""
PREFIX = b'{"widget": '
"""Prefix of the content of each such entry, to recognise it without parsing."""
KEPT_PREFIX = b'{"model": '
"""The same for an entry with a widget's last appearance."""
TEXT_CHARACTERS = 110
"""Amount of a widget's text that is kept, the same as with its display."""
KINDS = (OutputKind.UPDATE_DISPLAY_DATA, OutputKind.CLEAR_OUTPUT)


def moving(widget: str, *, inside: bool) -> dict[str, Any]:
    """Return the content of an ``update_display_data`` that enters or leaves a widget."""
    transient = {"display_id": f"ipytaskpersist-inside-{widget}"}
    return {
        "widget": widget, "inside": inside, "data": {}, "metadata": {}, "transient": transient,
    }  # fmt: skip


def clearing(widget: str | None, *, wait: bool) -> dict[str, Any]:
    """Return the content of a ``clear_output`` for a widget, or for what is inside none."""
    return {"wait": wait} if widget is None else {"widget": widget, "wait": wait}


def is_about_widget(kind: OutputKind, data: bytes) -> bool:
    """Return whether an entry has one of these forms, and so shows nothing by itself."""
    return kind in KINDS and data.startswith((PREFIX, KEPT_PREFIX))


def is_kept_widget(kind: OutputKind, data: bytes) -> bool:
    """Return whether an entry holds a widget's last appearance."""
    return kind is OutputKind.UPDATE_DISPLAY_DATA and data.startswith(KEPT_PREFIX)


def keeping(model: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the content of an ``update_display_data`` with a widget's last appearance."""
    transient = {"display_id": f"ipytaskpersist-model-{model}"}
    return {"model": model, "data": data, "metadata": {}, "transient": transient}


def shortened(text: str) -> str:
    """Return a widget's text as its display has it."""
    return text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + "…"


def model_of(data: Any) -> str | None:
    """Return the id of the model that a display is the view of; None for other displays."""
    view = data.get(VIEW)
    model = view.get("model_id") if isinstance(view, dict) else None
    return model if isinstance(model, str) else None


class Entered:
    """The widgets that a task is inside of. Every step takes constant time."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, str] = OrderedDict()
        """The widget of each entry that was not left, in order."""
        self._of: defaultdict[str, deque[int]] = defaultdict(deque)
        """The entries of each widget that was entered."""
        self._numbers = count()

    def __contains__(self, widget: str) -> bool:
        return widget in self._of

    @property
    def innermost(self) -> str | None:
        """The widget entered last; None outside of all."""
        return next(reversed(self._entries.values()), None)

    def enter(self, widget: str) -> None:
        """Enter a widget."""
        number = next(self._numbers)
        self._entries[number] = widget
        self._of[widget].append(number)

    def enter_before_all(self, widget: str) -> None:
        """Enter a widget before those that are already entered."""
        number = next(self._numbers)
        self._entries[number] = widget
        self._entries.move_to_end(number, last=False)
        self._of[widget].appendleft(number)

    def leave(self, widget: str) -> None:
        """Leave a widget, which need not be the one entered last."""
        del self._entries[self._of[widget].pop()]
        if not self._of[widget]:
            del self._of[widget]


def is_state(kept: Any) -> bool:
    """Return whether a value has the form in which notebook files keep the state of widgets."""
    models = kept.get("state") if isinstance(kept, dict) else None
    return isinstance(models, dict) and all(
        isinstance(each, dict) and isinstance(each.get("state"), dict) for each in models.values()
    )
