"""What a Python process task is given: the setting of its cell, and what the cell works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from ipytaskpersist.notebookmagics import Carried


@dataclass(frozen=True, slots=True)
class Setting:
    """What a cell finds in its notebook besides variables. Pickled before them."""

    path: list[str]
    """``sys.path``."""
    config: Any
    """The configuration of IPython."""
    interactivity: str
    """IPython's ``ast_node_interactivity``."""
    compiler_flags: int
    """The ``from __future__`` of earlier cells."""
    cells: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The number and text of earlier cells by their file names. Given by earlier versions alone:
    code carries its own source."""
    secret_names: list[str] = field(default_factory=list)
    """The patterns of names that are those of secrets, too."""
    libraries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the notebook has set in libraries, by the names of `libraries`."""
    submodules: list[str] = field(default_factory=list)
    """What is imported, because the cell reaches it through modules of the notebook."""
    magics: Carried = field(default_factory=Carried)
    """The notebook's extensions and magics."""
    shell_class: tuple[str, str] | None = None
    """Module and name of the class of the notebook's shell, by which libraries know where they run.
    None for a shell that shows nothing as a notebook does."""
    profile: str = ""
    """The folder of IPython's profile, where ``%store`` keeps what it stores."""
    large_result_bytes: int | None = None
    """From how many bytes on the task says that a value is kept."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a cell works on, pickled after its `Setting`."""

    variables: dict[str, Any] = field(default_factory=dict)
    """Empty in what is pickled: there each value comes after it, so that one which cannot be loaded
    can be named."""
    call: Callable[[], Any] | None = None
    """The function to call, when the task is one instead of a cell."""
    names: list[str] = field(default_factory=list)
    """The names of the variables that come after it."""
    modules: list[ModuleType] = field(default_factory=list)
    """What the cell imports that only this notebook's process finds."""

    def apart(self) -> list[Any]:
        """What is pickled: itself, and the variables' values one after the other."""
        itself = replace(self, variables={}, names=list(self.variables))
        return [itself, *self.variables.values()]
