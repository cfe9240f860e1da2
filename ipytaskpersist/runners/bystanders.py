"""What a cell may change in its process although it was not given: it does not come back."""

from __future__ import annotations

import ast
from typing import Any

from ipytaskpersist.cells import mentions
from ipytaskpersist.isolation import process_wide
from ipytaskpersist.values.module_variables import ModuleVariables

OF_MODULE = "modules keep their variables in their process"
OF_PROCESS = "each process has its own"


class Bystanders:
    """What belongs to modules and to the process, as it was before the cell."""

    def __init__(self, tree: ast.Module, namespace: dict[str, Any]) -> None:
        self._tree = tree
        self._variables = ModuleVariables(namespace, mentions.chains(tree))
        self._settings = process_wide.settings()

    def changed(self, namespace: dict[str, Any]) -> dict[str, str]:
        """Return what the cell has changed of it, each with where it stays."""
        variables = self._variables.changed(namespace, mentions.assigned_chains(self._tree))
        return {
            **dict.fromkeys(variables, OF_MODULE),
            **dict.fromkeys(process_wide.changed(self._settings), OF_PROCESS),
        }
