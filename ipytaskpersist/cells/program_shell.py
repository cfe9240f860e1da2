"""What compiles cells as IPython does, in a program that is not IPython."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

MODULE = "ipytaskpersist_cells"
"""The module of its variables, of which it has none: not the program's own."""


@cache
def shell_of_program() -> InteractiveShell:
    """Return a shell that runs nothing: it has no variables and keeps no history.

    IPython does not count it as the shell of this process: `get_ipython` does not find it.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.warn_venv = False
    shell = InteractiveShell(config=config, user_module=ModuleType(MODULE))
    sys.modules.pop(MODULE, None)
    shell.user_ns.clear()  # nothing runs here, and nothing of it belongs to a task
    return shell
