"""What a Python process task is given: the setting of its cell, and what the cell works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


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
    """The number and text of earlier cells by their file names, for tracebacks through them."""
    secret_names: list[str] = field(default_factory=list)
    """The patterns of names that are those of secrets, too."""
    libraries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the notebook has set in libraries, by the names of `libraries`."""
    submodules: list[str] = field(default_factory=list)
    """What is imported, because the cell reaches it through modules of the notebook."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a cell works on, pickled after its `Setting`."""

    variables: dict[str, Any] = field(default_factory=dict)
    call: Callable[[], Any] | None = None
    """The function to call, when the task is one instead of a cell."""
