"""Load the extension and run one thread task, where IPYTASKPERSIST_PEERS says "with".

This is a plugin of pytest, for the process of a peer's tests, and an extension of IPython, for the
kernels and terminals that they start. Where the variable says "without", both do the same but load
nothing, so that two runs differ by the extension alone.
"""

from __future__ import annotations

import os
import sys
from typing import Any

FINISHES_WITHIN_S = 60.0


def load_ipython_extension(shell: Any) -> None:
    if os.environ.get("IPYTASKPERSIST_PEERS") != "with":
        return
    shell.extension_manager.load_extension("ipytaskpersist")
    import ipytaskpersist

    task = ipytaskpersist.submit(_job)
    task.wait(FINISHES_WITHIN_S)
    if task.state != "completed":
        raise RuntimeError(f"The task that was to end before the tests is {task.state}")


def _job() -> None:
    print("a task before the tests")


def pytest_collection_finish() -> None:
    """Load into the shell that the peer's conftest has made, or into one that is no singleton.

    A shell makes itself `__main__`, which pytest and multiprocessing go on to need.
    """
    from IPython.core.interactiveshell import InteractiveShell

    main = sys.modules["__main__"]
    shell = InteractiveShell._instance or InteractiveShell()
    sys.modules["__main__"] = main
    load_ipython_extension(shell)
