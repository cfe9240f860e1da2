"""``%run``, and `runpy`, in a task: a script has its own arguments and module ``__main__``.

IPython puts the module of a script into ``sys.modules["__main__"]`` while it runs. There it would
be the foreground's, and every other task's. So a task's is shown to that task alone, by an object
that stands there from the first script of a task on.
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

from ipytaskpersist.active import active_task
from ipytaskpersist.ownstate import script
from ipytaskpersist.patches import Patches

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

MAIN = "__main__"


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Keep the scripts of tasks apart from now on."""
    execution = importlib.import_module("IPython.core.magics.execution")
    seen: Any = SeenSystem(SeenModules(shell, patches))
    patches.set(execution, "sys", seen)
    patches.set(runpy, "sys", seen)
    folders = Folders()
    patches.replace(prepended_to_syspath, "__enter__", folders.entering)
    patches.replace(prepended_to_syspath, "__exit__", folders.leaving)
    patches.replace(shell, "new_main_mod", _new_main_mod)


class SeenSystem:
    """`sys`, as the code that runs a script sees it."""

    def __init__(self, modules: SeenModules) -> None:
        self.__dict__["modules"] = modules

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(sys, name, value)

    def __reduce__(self) -> Any:
        return importlib.import_module, ("sys",)


class SeenModules:
    """``sys.modules``, in which ``__main__`` is what it is for the caller."""

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
        """What stands in the place of the module; from the first script of a task on."""
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
    """Stands in ``sys.modules`` for the module that the caller's code is part of.

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
    """What is kept of the modules for which one stands."""
    own: dict[str, Any] = ModuleType.__getattribute__(main, "__dict__")
    return own


def module_of_caller(main: MainModule) -> ModuleType:
    """The script's module in a task that runs one, else the notebook's or the foreground's."""
    if active_task.get() is None:
        module: ModuleType = vars_of(main)["foreground"]
        return module
    return script.get() or vars_of(main)["notebook"]


class Folders:
    """The folders that stand at the beginning of ``sys.path`` while any script of them runs."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = Counter[str]()
        self._added = set[str]()

    def entering(self, _plain: Callable[..., Any]) -> Callable[..., Any]:
        """Have a script stand with those that run already."""

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
        """Take a folder away with the last script of it."""

        def __exit__(block: Any, *raised: object) -> Any:
            with self._lock:
                if not self._users[block.dir]:  # it has begun before the extension was there
                    return plain(block, *raised)
                self._users[block.dir] -= 1
                if not self._users[block.dir] and block.dir in self._added:
                    self._added.discard(block.dir)
                    if block.dir in sys.path:
                        sys.path.remove(block.dir)
            return False

        return __exit__


def _new_main_mod(plain: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
    """IPython gives all runs of a file the same module, and empties it when the next one begins."""

    def new_main_mod(filename: str, modname: str) -> ModuleType:
        if active_task.get() is None:
            return plain(filename, modname)
        module = ModuleType(modname, doc="Module created for script run in IPython")
        module.__file__ = str(Path(filename).absolute())
        return module

    return new_main_mod
