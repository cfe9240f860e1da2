"""``%run`` and `runpy` in a task: a script has its own arguments and ``__main__`` module.

While a script runs, IPython puts its module into ``sys.modules["__main__"]``, where the foreground
and every other task would see it. So from a task's first script on, a stand-in takes that place and
shows a task's module only to that task.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

from IPython.utils.syspathcontext import prepended_to_syspath

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.isolation.process_state import script
from ipytaskpersist.running.running_task import active_task

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

MAIN = "__main__"


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Keep the scripts of tasks separate."""
    execution = importlib.import_module("IPython.core.magics.execution")
    seen: Any = SeenSystem(SeenModules(shell, patches))
    patches.set(execution, "sys", seen)
    patches.set(runpy, "sys", seen)
    folders = Folders()
    patches.replace(prepended_to_syspath, "__enter__", folders.entering)
    patches.replace(prepended_to_syspath, "__exit__", folders.leaving)
    patches.replace(shell, "new_main_mod", _new_main_mod)


class SeenSystem:
    """`sys` as seen by the code that runs a script."""

    def __init__(self, modules: SeenModules) -> None:
        self.__dict__["modules"] = modules

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(sys, name, value)

    def __reduce__(self) -> Any:
        return importlib.import_module, ("sys",)


class SeenModules:
    """``sys.modules`` with the caller's own ``__main__``."""

    def __init__(self, shell: InteractiveShell, patches: Patches) -> None:
        self._shell = shell
        self._patches = patches
        self._main: MainModule | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules, name)

    def __contains__(self, name: object) -> bool:
        return name in sys.modules

    def __getitem__(self, name: str) -> ModuleType:
        main = self._installed() if name == MAIN else None
        return sys.modules[name] if main is None else module_of_caller(main)

    def __setitem__(self, name: str, module: ModuleType) -> None:
        main = self._installed() if name == MAIN else None
        if main is None:
            sys.modules[name] = module
        elif active_task.get() is None:
            vars_of(main)["foreground"] = module
        else:
            script.set(None if module is vars_of(main)["notebook"] else module)

    def __delitem__(self, name: str) -> None:
        sys.modules.pop(name, None)  # another task may run the same script under the same name

    def _installed(self) -> MainModule | None:
        """Return the stand-in for the module, which a task's first script installs."""
        if self._main is None and active_task.get() is not None:
            self._main = MainModule(MAIN)
            here = sys.modules[MAIN]
            vars_of(self._main).update(notebook=self._shell.user_module, foreground=here)
            sys.modules[MAIN] = self._main
            self._patches.on_undo(self._remove)
        return self._main

    def _remove(self) -> None:
        if self._main is not None and sys.modules.get(MAIN) is self._main:
            sys.modules[MAIN] = vars_of(self._main)["foreground"]


class MainModule(ModuleType):
    """Stands in ``sys.modules`` for the ``__main__`` module of the calling code.

    `pickle` looks up a script's classes and functions there.
    """

    def __getattribute__(self, name: str) -> Any:
        if name == "__reduce_ex__":
            return lambda _protocol: (importlib.import_module, (MAIN,))
        return getattr(module_of_caller(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(module_of_caller(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(module_of_caller(self), name)

    def __dir__(self) -> list[str]:
        return dir(module_of_caller(self))

    def __repr__(self) -> str:
        return repr(module_of_caller(self))


def vars_of(main: MainModule) -> dict[str, Any]:
    """Return the stand-in's own attributes, which hold the actual modules."""
    own: dict[str, Any] = ModuleType.__getattribute__(main, "__dict__")
    return own


def module_of_caller(main: MainModule) -> ModuleType:
    """Return the module of the task's running script, else the notebook's or the foreground's."""
    if active_task.get() is None:
        module: ModuleType = vars_of(main)["foreground"]
        return module
    return script.get() or vars_of(main)["notebook"]


class Folders:
    """Script folders that are first in ``sys.path`` while any of their scripts runs."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = Counter[str]()
        self._added = set[str]()

    def entering(self, _plain: Callable[..., Any]) -> Callable[..., Any]:
        """Add a script's folder, or share it with scripts that are running."""

        def __enter__(block: Any) -> Any:
            with self._lock:
                block.added = block.dir not in sys.path
                if block.added:
                    sys.path.insert(0, block.dir)
                    self._added.add(block.dir)
                self._users[block.dir] += 1
            return block

        return __enter__

    def leaving(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Remove a folder when its last script has ended."""

        def __exit__(block: Any, *raised: object) -> Any:
            with self._lock:
                if not self._users[block.dir]:  # it began before the extension was loaded
                    return plain(block, *raised)
                self._users[block.dir] -= 1
                if not self._users[block.dir] and block.dir in self._added:
                    self._added.discard(block.dir)
                    if block.dir in sys.path:
                        sys.path.remove(block.dir)
            return False

        return __exit__


def _new_main_mod(plain: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
    """Give each run of a file its own module. IPython reuses one and clears it for the next run."""

    def new_main_mod(filename: str, modname: str) -> ModuleType:
        if active_task.get() is None:
            return plain(filename, modname)
        module = ModuleType(modname, doc="Module created for script run in IPython")
        module.__file__ = str(Path(filename).absolute())
        return module

    return new_main_mod
