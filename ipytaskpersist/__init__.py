"""Background cells for Jupyter and IPython that outlive their kernel.

``%load_ext ipytaskpersist`` provides ``%%background`` and the ``%bg_`` commands. The functions here
are their counterparts for programs. They are imported on first use, so that loading is fast.
"""

from __future__ import annotations

# Import nothing here: with ``python -m`` the working directory is still on the path.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ipytaskpersist.api import (
        Task,
        background,
        current_task,
        run_notebook,
        submit,
        task,
        tasks,
    )
    from ipytaskpersist.base.records import Progress, TaskState
    from ipytaskpersist.capture.progress import track
    from ipytaskpersist.errors import BackgroundError, TaskCancelled, TaskFailed, TaskNotFound
    from ipytaskpersist.runners.in_task import (
        checkpoint,
        checkpointed,
        ending,
        ending_soon,
        on_ending_soon,
    )

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
    "checkpoint",
    "checkpointed",
    "current_task",
    "ending",
    "ending_soon",
    "on_ending_soon",
    "run_notebook",
    "submit",
    "task",
    "tasks",
    "track",
]

_MODULES = {
    "api": ("Task", "background", "current_task", "run_notebook", "submit", "task", "tasks"),
    "errors": ("BackgroundError", "TaskCancelled", "TaskFailed", "TaskNotFound"),
    "capture.progress": ("track",),
    "runners.in_task": ("checkpoint", "checkpointed", "ending", "ending_soon", "on_ending_soon"),
    "base.records": ("Progress", "TaskState"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"ipytaskpersist.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """Load the extension; called by ``%load_ext ipytaskpersist``."""
    from IPython.core.error import UsageError

    if getattr(shell, "is_of_process_task", False):
        return  # in the process of a task, the magics say that they work only in the notebook
    from ipytaskpersist.errors import BackgroundError
    from ipytaskpersist.extension import Extension

    try:
        extension = Extension(shell)
    except BackgroundError as error:
        raise UsageError(str(error)) from None
    shell._ipytaskpersist = extension
    extension.load()


def unload_ipython_extension(shell: Any) -> None:
    """Unload the extension; called by ``%unload_ext ipytaskpersist``."""
    extension = shell.__dict__.pop("_ipytaskpersist", None)
    if extension is not None:
        extension.unload()


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Name the module that a Jupyter server loads."""
    return [{"module": "ipytaskpersist.server.extension"}]
