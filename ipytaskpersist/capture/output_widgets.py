"""``ipywidgets.Output`` in a task: record what is inside it, and keep the kernel's parent.

The widget captures what the front end gets for the message being handled when the widget is
entered. Entering it makes that message the kernel's parent. In a task, this would be the launching
cell's message, and the foreground's output would go there. So the kernel puts a task's output into
the widget's ``outputs``, and the page shows it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ipytaskpersist.base import widget_marks
from ipytaskpersist.base.import_hooks import after_import
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.capture import live_output_widgets
from ipytaskpersist.capture.displays import record_display
from ipytaskpersist.capture.interaction import is_cancellation
from ipytaskpersist.running.running_task import RunningTask, active_task

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Exit = Callable[..., bool | None]


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Record from now on which output is inside which widget."""
    if hasattr(shell, "set_parent"):
        patches.replace(shell, "set_parent", partial(_set_parent, shell))
    after_import({"ipywidgets.widgets.widget_output": partial(_route_output, shell)}, patches)


def _set_parent(shell: Any, plain: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_parent(parent: Any) -> None:
        if active_task.get() is None:
            plain(parent)
        elif hasattr(shell, "set_thread_parent"):  # since ipykernel 7
            shell.set_thread_parent(parent)

    return set_parent


def _route_output(shell: Any, module: Any, patches: Patches) -> None:
    widget_class = module.Output
    patches.replace(widget_class, "__enter__", _enter)
    patches.replace(widget_class, "__exit__", partial(_exit, shell))


def _enter(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def __enter__(self: Any) -> Any:
        task = active_task.get()
        if task is None:
            return plain(self)
        task.widgets.enter(_id_of(self))
        _note(task, self, inside=True)
        live_output_widgets.enter(task, self, _id_of(self))
        return None

    return __enter__


def _exit(shell: Any, plain: Exit) -> Exit:
    def __exit__(self: Any, etype: Any, evalue: Any, tb: Any) -> bool | None:
        task = active_task.get()
        if task is None or _id_of(self) not in task.widgets:
            return plain(self, etype, evalue, tb)
        try:
            return _show_error(shell, task, etype, evalue, tb)
        finally:
            _note(task, self, inside=False)
            task.widgets.leave(_id_of(self))
            live_output_widgets.leave(_id_of(self))

    return __exit__


def _id_of(widget: Any) -> str:
    """Return the widget's model id, which stays the same when the widget is closed."""
    return str(vars(widget).setdefault("_ipytaskpersist_id", widget.model_id or uuid4().hex))


def _note(task: RunningTask, widget: Any, *, inside: bool) -> None:
    record_display(task, widget_marks.moving(_id_of(widget), inside=inside), update=True)


def _show_error(shell: Any, task: RunningTask, etype: Any, evalue: Any, tb: Any) -> bool:
    """Show an error inside the widget, as the foreground does. Returns whether it is handled.

    A handled error does not make the cell fail.
    """
    if etype is None or is_cancellation(task, evalue):
        return False
    before = task.shown_error, task.post_mortem
    shell.showtraceback((etype, evalue, tb), tb_offset=0)
    task.shown_error, task.post_mortem = before
    return True
