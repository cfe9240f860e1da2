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
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from IPython.core.events import EventManager
from IPython.core.getipython import get_ipython

from ipytaskpersist import openfigures
from ipytaskpersist.active import ActiveTask, active_task
from ipytaskpersist.afterimport import after_import
from ipytaskpersist.betweencells import call_between_cells
from ipytaskpersist.capture import publish_for_task
from ipytaskpersist.patches import Patches
from ipytaskpersist.standins import StandIn, is_stand_in

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

INLINE = "matplotlib_inline.backend_inline"
IPYMPL = "ipympl.backend_nbagg"
PYPLOT = "matplotlib.pyplot"
LIBRARIES = ("matplotlib", "ipympl")
"""How the names begin of the modules that draw at the end of a cell."""


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Separate the figures of tasks, now or as soon as matplotlib is imported."""
    routes = {
        openfigures.MODULE: openfigures.route,
        INLINE: _route_inline,
        IPYMPL: _route_ipympl,
        PYPLOT: _route_pyplot,
    }
    after_import(routes, patches)
    call_between_cells(shell, patches.on_undo, openfigures.before_cell)


# The beginning and the end of a cell.


def begin(task: ActiveTask) -> None:
    """Give a task that is launched now the figures that the calling cell leaves open."""
    inline: Any = sys.modules.get(INLINE)
    drawn = getattr(getattr(inline, "show", None), "_draw_called", False)
    openfigures.begin(task, are_closed=drawn and _closes_at_end())


def flush(task: ActiveTask) -> None:
    """Do with the open figures what the end of any cell does."""
    if task.is_forked or not task.figures:
        return
    if task.figures.get("open") and _has_images_for_windows():
        show_images()
    else:
        _end_cell()


def leave(task: ActiveTask) -> None:
    """Leave the figures that an ended task has open to the cells that follow."""
    drawn = task.figures.get("_draw_called", False)
    openfigures.leave(task, are_closed=drawn and _closes_at_end())


def _at_end() -> list[Callable[..., Any]]:
    """What matplotlib and its backends have IPython do at the end of a cell."""
    shell: Any = get_ipython()
    calls = [] if shell is None else shell.events.callbacks["post_execute"]
    return [call for call in calls if getattr(call, "__module__", "").startswith(LIBRARIES)]


def _end_cell() -> None:
    shell: Any = get_ipython()
    events = EventManager(shell, ("post_execute",))
    for call in _at_end():
        events.register("post_execute", call)
    events.trigger("post_execute")


def _closes_at_end() -> bool:
    """Whether a cell that has drawn with the inline backend closes all figures at its end."""
    inline: Any = sys.modules.get(INLINE)
    is_called = inline is not None and inline.flush_figures in _at_end()
    return is_called and bool(inline.InlineBackend.instance().close_figures)


# The inline backend.


class TaskShow(StandIn):
    """What a backend keeps of the figures that are still to be shown, for each task apart.

    The inline backend keeps it in the attributes of its function ``show``, ipympl in its class.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        task = active_task.get()
        if name in ("_to_draw", "_to_show") and task is not None:
            return task.figures.setdefault(name, [])
        if name == "_draw_called" and task is not None:
            return task.figures.get(name, False)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        task = active_task.get()
        if name in StandIn.__slots__:
            super().__setattr__(name, value)
        elif task is None:
            setattr(self._plain, name, value)
        else:
            task.figures[name] = value


def _route_inline(module: ModuleType, patches: Patches) -> None:
    if not is_stand_in(module.show):
        patches.stand_in(module, "show", lambda plain: plain, TaskShow)


def _route_ipympl(module: ModuleType, patches: Patches) -> None:
    if not is_stand_in(module._Backend_ipympl):
        patches.stand_in(module, "_Backend_ipympl", lambda plain: plain, TaskShow)


# Backends with windows, or widgets of a page.


def _route_pyplot(module: Any, patches: Patches) -> None:
    """Keep the windows of a graphical backend away from threads: a task's figures are images.

    Not by `new_figure_manager` and `show`: what those warn of would point at a line here.
    """
    patches.replace(module, "_get_backend_mod", _get_backend_mod)


def _get_backend_mod(plain: Callable[[], Any]) -> Callable[[], Any]:
    def _get_backend_mod() -> Any:
        backend = plain()
        return backend if active_task.get() is None else _for_task(backend)

    return _get_backend_mod


def _for_task(backend: Any) -> Any:
    """The backend of a task whose notebook has chosen this one."""
    canvas_class = backend.FigureCanvas
    if openfigures.is_of_page(canvas_class):
        has_page = hasattr(get_ipython(), "kernel")
        if has_page and canvas_class.__module__ == openfigures.NBAGG:
            return _images_for_nbagg(backend)
        return backend if has_page else _images_for_windows()
    if openfigures.has_windows(canvas_class, canvas_class.manager_class):
        return _images_for_windows()
    return backend


class ImageBackend(SimpleNamespace):
    """A backend whose figures are images, shown among the outputs of the task that shows them."""


def _images_for_windows() -> ImageBackend:
    agg = importlib.import_module("matplotlib.backends.backend_agg")
    return ImageBackend(**{**vars(agg), "show": show_images})


@functools.cache
def _images_for_nbagg(backend: Any) -> ImageBackend:
    """nbagg's own canvases, as images while they are a task's.

    They draw into an element of the page that has to be there when they are first shown, which the
    output of a task is not.
    """

    class Manager(backend.FigureManager):  # type: ignore[misc]
        def show(self) -> None:
            if active_task.get() is None:
                super().show()
            else:
                show_images()

        @classmethod
        def create_with_canvas(cls, canvas_class: Any, figure: Any, num: Any) -> Any:
            canvas = canvas_class(figure)
            return cls(canvas, num)

    class Canvas(backend.FigureCanvas):  # type: ignore[misc]
        manager_class = Manager

    class Backend(importlib.import_module("matplotlib.backend_bases")._Backend):  # type: ignore[misc]
        FigureCanvas, FigureManager = Canvas, Manager

    names = ("new_figure_manager", "new_figure_manager_given_figure")
    made = {name: getattr(Backend, name) for name in ("FigureCanvas", "FigureManager", *names)}
    return ImageBackend(**{**vars(backend), **made, "show": show_images})


def _has_images_for_windows() -> bool:
    pyplot: Any = sys.modules.get(PYPLOT)
    return pyplot is not None and isinstance(pyplot._get_backend_mod(), ImageBackend)


_shown: WeakSet[Any] = WeakSet()
"""Figures that nobody has drawn since they were last shown."""


def show_images(*_args: Any, **_kwargs: Any) -> None:
    """Show the calling task's open figures that have changed since they were last shown."""
    helpers: Any = sys.modules[openfigures.MODULE]
    for manager in helpers.Gcf.get_all_fig_managers():
        figure = manager.canvas.figure
        if type(manager.canvas).__module__ == openfigures.NBAGG:
            manager.canvas.draw_idle()  # the foreground's: the page shows what has changed
        elif figure.stale or figure not in _shown:
            _show_image(figure)


def _note_drawn(event: Any) -> None:
    """After a change that was drawn at once, as by ``plt.draw``, a figure is not stale."""
    if not event.canvas.is_saving():
        _shown.discard(event.canvas.figure)


def _show_image(figure: Any) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    # What saving sets for its time, and sets back, counts as a change.
    figure.stale = False
    _shown.add(figure)
    figure.canvas.mpl_connect("draw_event", _note_drawn)
    publish_for_task({"image/png": image.getvalue(), "text/plain": repr(figure)}, {}, {})
