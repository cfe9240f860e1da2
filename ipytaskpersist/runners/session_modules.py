"""Which modules a notebook has imported from its environment: what its tasks import, too."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Any

OF_KERNEL = {
    "IPython", "ipykernel", "ipytaskpersist", "ipywidgets", "jupyter_client", "jupyter_core",
    "jupyter_server", "jupyterlab_widgets", "traitlets", "traittypes", "comm", "debugpy", "zmq",
    "tornado", "matplotlib_inline", "anywidget", "pydevd", "pydevconsole", "pytest", "pip",
    "setuptools", "pkg_resources", "sqlite_utils", "notebook",
}  # fmt: skip
"""Packages that a kernel imports for itself, or that look at its shell when they are imported."""
OF_SHELL = ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook")
"""Modules of other packages that do so."""


class SessionModules:
    """The modules that this process has imported from its environment's site-packages.

    Not those from the notebook's folder, an editable install or ``PYTHONPATH``: people edit them.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._names: list[str] = []
        self._tops: dict[str, bool] = {}
        self._folders: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return their names in the order of their import."""
        new = [name for name in list(sys.modules) if name not in self._seen]
        if new:
            self._folders = self._folders or _site_packages()
            self._seen.update(new)
            self._names.extend(name for name in new if self._is_wanted(name))
        return self._names

    def _is_wanted(self, name: object) -> bool:
        if type(name) is not str or name in OF_SHELL:
            return False
        top = name.partition(".")[0]
        if top in OF_KERNEL or not self._is_here(name):
            return False
        if top not in self._tops:
            self._tops[top] = not self._is_linked(top)
        return self._tops[top]

    def _is_here(self, name: str) -> bool:
        """Whether a module is one of a file in site-packages, under its own name.

        Not if that is below another package's, which has put its folder into ``sys.path``.
        """
        module = sys.modules.get(name)
        file, spec = _of(module, "__file__"), _of(module, "__spec__")
        if not isinstance(file, str) or getattr(spec, "name", None) != name:
            return False
        top = name.partition(".")[0]
        return any(
            file.startswith((f"{here}{top}{os.sep}", f"{here}{top}.")) for here in self._folders
        )

    def _is_linked(self, top: str) -> bool:
        """Whether a package in site-packages is a link to where people edit it."""
        file = _of(sys.modules.get(top), "__file__")
        if not isinstance(file, str):
            return False  # a namespace
        path = Path(file)
        return path.is_symlink() or (path.parent.is_symlink() and path.parent.name == top)


def _of(module: Any, name: str) -> Any:
    """Return what stands in a module's namespace: the module may be any object."""
    try:
        return vars(module).get(name)
    except TypeError:
        return None


def _site_packages() -> tuple[str, ...]:
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    with suppress(AttributeError):  # some programs that embed Python
        folders.update(site.getsitepackages())
        if site.ENABLE_USER_SITE:
            folders.add(site.getusersitepackages())
    return tuple(f"{folder}{os.sep}" for folder in folders if folder)
