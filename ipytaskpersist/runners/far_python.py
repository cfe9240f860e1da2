"""The process of a Python task at a place: its command, and what that runs over there.

It is the same child as here (`runners.child`). In place of the store and the state directory it has
a folder with what was sent for it, and there it leaves its values.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.runners import task_rows

PACKAGE = "ipytaskpersist"
INLINE = "module://matplotlib_inline.backend_inline"
BOOT = """\
import json, os, struct, sys

python, package = sys.argv[1:3]

def refuse(why):
    end = {"state": "failed", "reason": "could not be started: " + why, "exit_code": 1}
    data = json.dumps(end).encode()
    channel = int(os.environ["IPYTASKPERSIST_CHANNEL"])
    os.write(channel, struct.pack("<cI", b"O", len(data)) + data)
    sys.exit(1)

found = ".".join(map(str, sys.version_info[:2]))
if found != python:
    refuse(f"it needs Python {python}, and {sys.executable} there is {found}")
sys.path[:] = [path for path in sys.path if path]
from importlib.metadata import PackageNotFoundError, version
try:
    installed = version("ipytaskpersist")
except PackageNotFoundError:
    installed = "none"
if installed != package:
    refuse(f"it needs ipytaskpersist {package}, and {sys.executable} there has {installed}")
from ipytaskpersist.runners.far_python import main
main()
"""
"""Run over there. Without the same versions, what was sent could not be read."""


class NoCheckpoints:
    """Stands for the checkpoints of a task at a place, where none are kept."""

    def keep(self, value: Any) -> NoReturn:
        """Raise `InvalidRequest`: a later task would not find the value."""
        raise InvalidRequest(
            "a task at a place keeps no checkpoints: write a file of your own there, in a folder "
            "that outlives the task"
        )

    def newest(self) -> NoReturn:
        """Raise `LookupError`."""
        raise LookupError


def versions() -> tuple[str, str]:
    """Return the versions that must be the same there: Python's first two numbers, and ours."""
    return ".".join(map(str, sys.version_info[:2])), version(PACKAGE)


def command() -> list[str]:
    """Return the arguments of the Python over there. Its agent adds the folder (`places.far`)."""
    return ["-u", "-c", BOOT, *versions()]


def main() -> None:
    """Run the task that was sent into the folder in the last argument."""
    from ipytaskpersist.runners import child

    root = Path(sys.argv[-1])
    # As in a notebook, though its environment does not come along.
    os.environ.setdefault("MPLBACKEND", INLINE)
    sys.argv[1:] = [str(root)]
    child.main(task_rows.read_sent(root))
