"""A pyplot for each task: figures of a background cell are its own.

matplotlib keeps the open figures, and its inline backend the figures still to show, in global
variables. Here those variables look at the calling task, so that a cell's figures are shown with
that cell's outputs and never with another's.
"""

from __future__ import annotations

import functools
import importlib
import io
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ipytaskpersist.active import ActiveTask, active_task
from ipytaskpersist.afterimport import after_import
from ipytaskpersist.capture import publish_for_task
from ipytaskpersist.patches import Patches

FIGURES = "matplotlib._pylab_helpers"
INLINE = "matplotlib_inline.backend_inline"
PYPLOT = "matplotlib.pyplot"


def install(patches: Patches) -> None:
    """Separate the figures of tasks, now or as soon as matplotlib is imported."""
    routes = {FIGURES: _route_figures, INLINE: _route_inline, PYPLOT: _route_pyplot}
    after_import(routes, patches)


def begin(task: ActiveTask) -> None:
    """Give a task the figures that the tasks before it have left open."""
    if _left_open:
        task.figures["open"] = OrderedDict(_left_open)


def flush(task: ActiveTask) -> None:
    """Show the figures that the ending cell has left open, as the end of any cell does."""
    if not task.figures or task.is_forked:
        return
    inline = sys.modules.get(INLINE)
    if inline is not None and _uses_inline():
        inline.flush_figures()
    else:
        show_as_png(task)
    _left_open.clear()
    _left_open.update(task.figures.get("open", {}))


_left_open: OrderedDict[int, Any] = OrderedDict()
"""What stays open after its cell, where the inline backend is told not to close figures."""


def _uses_inline() -> bool:
    import matplotlib

    return "inline" in str(matplotlib.rcParams._get("backend")).lower()


def show_as_png(task: ActiveTask) -> None:
    """Show and close a task's open figures, where no inline backend does."""
    for manager in task.figures.pop("open", {}).values():
        image = io.BytesIO()
        manager.canvas.figure.savefig(image, format="png")
        data = {"image/png": image.getvalue(), "text/plain": repr(manager.canvas.figure)}
        publish_for_task(data, {}, {})


class TaskFigures(OrderedDict[int, Any]):
    """The open figures, by number: the calling task's, or the foreground's own."""

    def __init__(self, foreground: OrderedDict[int, Any]) -> None:
        super().__init__()
        self.foreground = foreground

    @property
    def _mine(self) -> OrderedDict[int, Any]:
        task = active_task.get()
        if task is None:
            return self.foreground
        mine: OrderedDict[int, Any] = task.figures.setdefault("open", OrderedDict())
        return mine

    def __getitem__(self, number: int) -> Any:
        return self._mine[number]

    def __setitem__(self, number: int, manager: Any) -> None:
        self._mine[number] = manager

    def __delitem__(self, number: int) -> None:
        del self._mine[number]

    def __contains__(self, number: object) -> bool:
        return number in self._mine

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)

    def __reversed__(self) -> Iterator[int]:
        return iter(reversed(self._mine))

    def __len__(self) -> int:
        return len(self._mine)

    def __bool__(self) -> bool:
        return bool(self._mine)

    def get(self, number: int, default: Any = None) -> Any:
        return self._mine.get(number, default)

    def keys(self) -> Any:
        return self._mine.keys()

    def values(self) -> Any:
        return self._mine.values()

    def items(self) -> Any:
        return self._mine.items()

    def pop(self, number: int, *default: Any) -> Any:
        return self._mine.pop(number, *default)

    def popitem(self, last: bool = True) -> tuple[int, Any]:
        return self._mine.popitem(last)

    def move_to_end(self, number: int, last: bool = True) -> None:
        self._mine.move_to_end(number, last)

    def clear(self) -> None:
        self._mine.clear()


def _route_figures(module: ModuleType, patches: Patches) -> None:
    managers = module.Gcf
    if not isinstance(managers.figs, TaskFigures):
        figures = TaskFigures(managers.figs)
        managers.figs = figures
        patches.on_undo(lambda: setattr(managers, "figs", figures.foreground))


class TaskShow:
    """The inline backend's ``show``, whose attributes say what is still to be shown."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.__dict__.update(vars(plain), plain=plain)
        self.__doc__ = plain.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.plain(*args, **kwargs)

    def __getattribute__(self, name: str) -> Any:
        task = active_task.get()
        if name == "_to_draw" and task is not None:
            return task.figures.setdefault(name, [])
        if name == "_draw_called" and task is not None:
            return task.figures.get(name, False)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        task = active_task.get()
        if task is None:
            super().__setattr__(name, value)
        else:
            task.figures[name] = value


def _route_inline(module: ModuleType, patches: Patches) -> None:
    plain = module.show
    if not isinstance(plain, TaskShow):
        patches.set(module, "show", TaskShow(plain))


def _route_pyplot(module: Any, patches: Patches) -> None:
    """Keep the windows of a graphical backend away from threads: a task's figures are images."""
    plain_new, plain_show = module.new_figure_manager, module.show

    def new_figure_manager(*args: Any, **kwargs: Any) -> Any:
        if active_task.get() is None or _uses_inline():
            return plain_new(*args, **kwargs)
        agg: Any = importlib.import_module("matplotlib.backends.backend_agg")
        return agg.new_figure_manager(*args, **kwargs)

    def show(*args: Any, **kwargs: Any) -> Any:
        task = active_task.get()
        if task is None or _uses_inline():
            return plain_show(*args, **kwargs)
        return show_as_png(task)

    patches.set(module, "new_figure_manager", new_figure_manager)
    patches.set(module, "show", functools.update_wrapper(show, plain_show))
