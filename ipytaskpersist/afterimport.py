"""Call a function with a module as soon as it has been imported, or at once where it has been."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from ipytaskpersist.patches import Patches

Route = Callable[[Any, Patches], None]


def after_import(routes: Mapping[str, Route], patches: Patches) -> None:
    """Call each function with the module of its name, now or when it comes, until the undoing."""
    missing = {}
    for name, route in routes.items():
        if name in sys.modules:
            route(sys.modules[name], patches)
        else:
            missing[name] = route
    finder = _Finder(missing, patches)
    sys.meta_path.insert(0, finder)
    patches.on_undo(lambda: sys.meta_path.remove(finder))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the others find, and sees it loaded."""

    def __init__(self, routes: dict[str, Route], patches: Patches) -> None:
        self._routes = routes
        self._patches = patches
        self._looking: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._routes or fullname in self._looking:
            return None
        self._looking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking.discard(fullname)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader, fullname)
        return spec

    def _watch(self, loader: Any, name: str) -> None:
        plain_exec = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            plain_exec(module)
            # Not before: who only looks for the module, or fails to import it, may try again.
            route = self._routes.pop(name, None)
            if route is not None:
                route(module, self._patches)

        loader.exec_module = exec_module
