"""The inputs of a Python process task: its notebook settings, variables and function."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from ipytaskpersist.cells.notebook_magics import Carried
from ipytaskpersist.values.handed_results import Call


@dataclass(frozen=True, slots=True)
class Setting:
    """A cell's dependencies in its notebook besides variables. Pickled before them."""

    path: list[str]
    """``sys.path``."""
    config: Any
    """IPython's configuration."""
    interactivity: str
    """IPython's ``ast_node_interactivity``."""
    compiler_flags: int
    """Compiler flags from earlier cells' ``from __future__`` imports."""
    cells: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Number and text of earlier cells, by file name. Only earlier versions fill this in: code now
    carries its own source."""
    secret_names: list[str] = field(default_factory=list)
    """Further name patterns that mark a variable as a secret."""
    libraries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings that the notebook changed in libraries, by the names in `library_settings`."""
    submodules: list[str] = field(default_factory=list)
    """Submodules to import, because the cell reaches them through the notebook's modules."""
    magics: Carried = field(default_factory=Carried)
    """The notebook's extensions and magics."""
    shell_class: tuple[str, str] | None = None
    """Module and name of the notebook's shell class, by which libraries detect a front end. None
    for a shell that cannot display as a notebook does."""
    profile: str = ""
    """IPython profile directory, where ``%store`` keeps its values."""
    apart: list[str] = field(default_factory=list)
    """Libraries whose settings stay apart from the notebook's."""
    large_result_bytes: int | None = None
    """Size from which the task reports that it keeps a value."""
    is_durable: bool = False
    """Whether the task's values are to be on the disk before its end is recorded."""


NotebookSetup = Setting
"""Its name in the code. Pickles in the store use the other one."""


@dataclass(frozen=True, slots=True)
class Given:
    """The variables or the function that a task works on. Pickled after its `Setting`."""

    variables: dict[str, Any] = field(default_factory=dict)
    """The variables' values. Empty in the pickle, where the values follow one by one, so that a
    value that fails to load can be named."""
    call: Call | None = None
    """Function to call, if the task runs one instead of a cell."""
    names: list[str] = field(default_factory=list)
    """Names of the variables that follow in the pickle."""
    modules: list[ModuleType] = field(default_factory=list)
    """Modules the cell imports that only the notebook's process can find."""

    def without_values(self) -> Given:
        """Return it as it is pickled: the values follow one by one."""
        return replace(self, variables={}, names=list(self.variables))
