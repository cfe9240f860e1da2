"""Background cells for Jupyter and IPython that outlive their kernel.

``%load_ext ipytaskpersist`` gives ``%%background`` and the ``%bg_`` commands. The functions here
are the same for programs; they are imported when they are first used, so that loading is quick.
"""

from __future__ import annotations

# Nothing is imported here: with ``python -m`` the working directory is still on the path.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ipytaskpersist.api import background, current_task, submit, task, tasks
    from ipytaskpersist.errors import BackgroundError, TaskCancelled, TaskFailed, TaskNotFound
    from ipytaskpersist.handle import Task
    from ipytaskpersist.progress import track
    from ipytaskpersist.records import Progress, TaskState

__version__ = "0.1.0"

__all__ = [
    "BackgroundError",
    "Progress",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskNotFound",
    "TaskState",
    "background",
    "current_task",
    "submit",
    "task",
    "tasks",
    "track",
]

_MODULES = {
    "api": ("background", "current_task", "submit", "task", "tasks"),
    "errors": ("BackgroundError", "TaskCancelled", "TaskFailed", "TaskNotFound"),
    "handle": ("Task",),
    "progress": ("track",),
    "records": ("Progress", "TaskState"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"ipytaskpersist.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """Called by ``%load_ext ipytaskpersist``."""
    from IPython.core.error import UsageError

    if getattr(shell, "is_of_process_task", False):
        return  # its magics say there that they are the notebook's
    from ipytaskpersist.errors import BackgroundError
    from ipytaskpersist.extension import Extension

    try:
        extension = Extension(shell)
    except BackgroundError as error:
        raise UsageError(str(error)) from None
    shell._ipytaskpersist = extension
    extension.load()


def unload_ipython_extension(shell: Any) -> None:
    """Called by ``%unload_ext ipytaskpersist``."""
    extension = shell.__dict__.pop("_ipytaskpersist", None)
    if extension is not None:
        extension.unload()
