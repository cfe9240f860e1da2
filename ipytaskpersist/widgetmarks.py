"""How a task's record says which outputs are inside which ``ipywidgets.Output``.

What a task prints and displays within ``with output:`` is recorded beside the widget. Entries of
three forms say where it is and what is cleared, each with the id of the widget's model::

    update_display_data  {"widget": "…", "inside": true, "data": {}, …}   what follows is inside it
    update_display_data  {"widget": "…", "inside": false, "data": {}, …}  what follows is not
    clear_output         {"widget": "…", "wait": false}                   its outputs are cleared

Between the first and the second everything is inside that the task puts out, in whichever of its
threads, and of several widgets inside the one entered last: so a kernel and its front end have it.
An entry of ``clear_output`` without a widget clears what is inside none.

What a displayed widget showed last is kept in an entry of a fourth form, with its state where it
has one, for when its model is not alive any more::

    update_display_data  {"model": "…", "data": {"text/plain": "…", "…widget-state+json": {}}, …}

The kinds are as old as the store. No display has the id that these entries update, so a
reader that does not know them passes over them.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from itertools import count
from typing import Any

from ipytaskpersist.records import OutputKind

VIEW = "application/vnd.jupyter.widget-view+json"
"""The MIME type of a display that is the view of a widget, with the id of its model."""
STATE = "application/vnd.jupyter.widget-state+json"
"""The MIME type under which notebook files keep the state of widgets."""
PREFIX = b'{"widget": '
"""How the content of each such entry begins, so that it is known without being parsed."""
KEPT_PREFIX = b'{"model": '
"""The same for an entry of what a widget showed last."""
TEXT_CHARACTERS = 110
"""How much of a widget's text is kept, as of the one that goes with its display."""
KINDS = (OutputKind.UPDATE_DISPLAY_DATA, OutputKind.CLEAR_OUTPUT)


def moving(widget: str, *, inside: bool) -> dict[str, Any]:
    """The content of an ``update_display_data`` for entering and for leaving a widget."""
    transient = {"display_id": f"ipytaskpersist-inside-{widget}"}
    return {
        "widget": widget, "inside": inside, "data": {}, "metadata": {}, "transient": transient,
    }  # fmt: skip


def clearing(widget: str | None, *, wait: bool) -> dict[str, Any]:
    """The content of a ``clear_output`` for a widget, or for what is inside none."""
    return {"wait": wait} if widget is None else {"widget": widget, "wait": wait}


def is_about_widget(kind: OutputKind, data: bytes) -> bool:
    """Whether an entry is of one of these forms, and so shows nothing by itself."""
    return kind in KINDS and data.startswith((PREFIX, KEPT_PREFIX))


def is_kept_widget(kind: OutputKind, data: bytes) -> bool:
    """Whether an entry says what a widget showed last."""
    return kind is OutputKind.UPDATE_DISPLAY_DATA and data.startswith(KEPT_PREFIX)


def keeping(model: str, data: dict[str, Any]) -> dict[str, Any]:
    """The content of an ``update_display_data`` with what a widget showed last."""
    transient = {"display_id": f"ipytaskpersist-model-{model}"}
    return {"model": model, "data": data, "metadata": {}, "transient": transient}


def shortened(text: str) -> str:
    """A widget's text as its display has it."""
    return text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + "…"


def model_of(data: Any) -> str | None:
    """The id of the model of which a display is the view; None for other displays."""
    view = data.get(VIEW)
    model = view.get("model_id") if isinstance(view, dict) else None
    return model if isinstance(model, str) else None


class Entered:
    """The widgets that a task is inside of. A step takes the same time however many they are."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, str] = OrderedDict()
        """The widget of each entry that has not been left, in order."""
        self._of: defaultdict[str, deque[int]] = defaultdict(deque)
        """The entries of each widget that one is inside of."""
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
        """Enter a widget before those that are entered already."""
        number = next(self._numbers)
        self._entries[number] = widget
        self._entries.move_to_end(number, last=False)
        self._of[widget].appendleft(number)

    def leave(self, widget: str) -> None:
        """Leave a widget, which need not be the one entered last."""
        del self._entries[self._of[widget].pop()]
        if not self._of[widget]:
            del self._of[widget]
