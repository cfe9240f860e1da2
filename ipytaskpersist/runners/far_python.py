"""The Python of a place: what a Python task's process is started with, and must have, there."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any, NoReturn

from ipytaskpersist.errors import InvalidRequest

PACKAGE = "ipytaskpersist"
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
from ipytaskpersist.runners.far_child import main
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
