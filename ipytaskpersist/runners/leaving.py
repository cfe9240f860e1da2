"""End a forked process as an interpreter ends, but leave alone what it shares with its server.

At its end, an interpreter takes all of its modules apart. In a forked process, the system first
copies each page that this writes to, which takes longer than a short task. Libraries lose nothing
when they are left as they are: what a task itself has made is what may hold unwritten data.
"""

from __future__ import annotations

import _io
import atexit
import ctypes
import gc
import sys
import threading
from collections.abc import Container
from contextlib import suppress
from types import ModuleType

LAST_ERROR = ("last_type", "last_value", "last_traceback", "last_exc")
"""Where an interactive interpreter keeps an error, and with it the variables of its frames."""


def leave(status: int, shared: Container[str]) -> None:
    """End this process with an exit status, unless only the interpreter can.

    `shared` names the modules that were imported before the fork. Returns if a daemon thread still
    runs: it would see its variables vanish, where an interpreter stops it.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if len(sys._current_frames()) > 1:
        return
    _take_apart(shared)
    _flush_files()
    # The GIL is held meanwhile, so that no thread of a library comes back to Python.
    ctypes.PyDLL(None).exit(status)


def _take_apart(shared: Container[str]) -> None:
    """Drop the variables of the cell and of its own modules, the last imported first."""
    for name in LAST_ERROR:
        sys.__dict__.pop(name, None)
    main = sys.modules["__main__"].__dict__
    own = [name for name in sys.modules if name not in shared]
    modules = [sys.modules.pop(name) for name in reversed(own)]
    main.clear()
    gc.collect()
    for module in modules:
        if isinstance(module, ModuleType):
            module.__dict__.clear()
    gc.collect()


def _flush_files() -> None:
    """Write what files that something still holds have in their buffers."""
    for each in (*gc.get_objects(), sys.stdout, sys.stderr):
        if issubclass(type(each), _io._IOBase):
            with suppress(Exception):  # closed, or its disk is full: as at an interpreter's end
                each.flush()
