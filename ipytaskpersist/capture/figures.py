"""A separate pyplot state for each task, so that a background cell has its own figures.

matplotlib keeps open figures in global variables, and so does its inline backend with figures still
to be shown. Here, those variables depend on the calling task. A cell's figures are shown among that
cell's outputs and never among another's.
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

from ipytaskpersist.base.cell_events import call_between_cells
from ipytaskpersist.base.import_hooks import after_import
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.stand_ins import StandIn, is_stand_in
from ipytaskpersist.capture import open_figures
from ipytaskpersist.capture.installation import publish_for_task
from ipytaskpersist.running.running_task import RunningTask, active_task

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

INLINE = "matplotlib_inline.backend_inline"
IPYMPL = "ipympl.backend_nbagg"
PYPLOT = "matplotlib.pyplot"
LIBRARIES = ("matplotlib", "ipympl")
"""Name prefixes of the modules that draw at the end of a cell."""


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Separate the figures of tasks, now or as soon as matplotlib is imported."""
    routes = {
        open_figures.MODULE: open_figures.route,
        INLINE: _route_inline,
        IPYMPL: _route_ipympl,
        PYPLOT: _route_pyplot,
    }
    after_import(routes, patches)
    call_between_cells(shell, patches.on_undo, open_figures.before_cell)


# The beginning and the end of a cell.


def begin(task: RunningTask) -> None:
    """Give a newly launched task the figures that the calling cell leaves open."""
    inline: Any = sys.modules.get(INLINE)
    drawn = getattr(getattr(inline, "show", None), "_draw_called", False)
    open_figures.begin(task, are_closed=drawn and _closes_at_end())


def flush(task: RunningTask) -> None:
    """Handle the open figures as at the end of any cell."""
    if task.is_forked or not task.figures:
        return
    if task.figures.get("open") and _has_images_for_windows():
        show_images()
    else:
        _end_cell()


def leave(task: RunningTask) -> None:
    """Leave an ended task's open figures to later cells."""
    drawn = task.figures.get("_draw_called", False)
    open_figures.leave(task, are_closed=drawn and _closes_at_end())


def _at_end() -> list[Callable[..., Any]]:
    """Return the callbacks of matplotlib and its backends at the end of a cell."""
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
    """A backend's state about figures still to be shown, separate for each task.

    The inline backend keeps it in attributes of its function ``show``, ipympl in a class.
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


# Backends with windows or page widgets.


def _route_pyplot(module: Any, patches: Patches) -> None:
    """Keep the windows of a GUI backend away from threads: a task's figures become images.

    `new_figure_manager` and `show` are not replaced: their warnings would point at a line in this
    file.
    """
    patches.replace(module, "_get_backend_mod", _get_backend_mod)


def _get_backend_mod(plain: Callable[[], Any]) -> Callable[[], Any]:
    def _get_backend_mod() -> Any:
        backend = plain()
        return backend if active_task.get() is None else _for_task(backend)

    return _get_backend_mod


def _for_task(backend: Any) -> Any:
    """Return the backend for a task whose notebook has chosen this one."""
    canvas_class = backend.FigureCanvas
    if open_figures.is_of_page(canvas_class):
        has_page = hasattr(get_ipython(), "kernel")
        if has_page and canvas_class.__module__ == open_figures.NBAGG:
            return _images_for_nbagg(backend)
        return backend if has_page else _images_for_windows()
    if open_figures.has_windows(canvas_class, canvas_class.manager_class):
        return _images_for_windows()
    return backend


class ImageBackend(SimpleNamespace):
    """A backend whose figures are images among the outputs of the task that shows them."""


def _images_for_windows() -> ImageBackend:
    agg = importlib.import_module("matplotlib.backends.backend_agg")
    return ImageBackend(**{**vars(agg), "show": show_images})


@functools.cache
def _images_for_nbagg(backend: Any) -> ImageBackend:
    """Return nbagg's own canvases, shown as images while they belong to a task.

    When first shown, they draw into an element of the page, which a task's output does not have
    yet.
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
"""Figures that have not been drawn since they were last shown."""


def show_images(*_args: Any, **_kwargs: Any) -> None:
    """Show the calling task's open figures that have changed since they were last shown."""
    helpers: Any = sys.modules[open_figures.MODULE]
    for manager in helpers.Gcf.get_all_fig_managers():
        figure = manager.canvas.figure
        if type(manager.canvas).__module__ == open_figures.NBAGG:
            manager.canvas.draw_idle()  # from the foreground: the page shows the change
        elif figure.stale or figure not in _shown:
            _show_image(figure)


def _note_drawn(event: Any) -> None:
    """Note a figure that was drawn at once, as by ``plt.draw``. It is not stale afterwards."""
    if not event.canvas.is_saving():
        _shown.discard(event.canvas.figure)


def _show_image(figure: Any) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    # Saving changes properties temporarily, which marks the figure as stale.
    figure.stale = False
    _shown.add(figure)
    figure.canvas.mpl_connect("draw_event", _note_drawn)
    publish_for_task({"image/png": image.getvalue(), "text/plain": repr(figure)}, {}, {})
