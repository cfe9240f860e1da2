"""Run a program in a PID namespace of its own, as a container does.

``command()`` is what to put before the program's command. The program is the child of a process 1
that ends with it, and all others in the namespace end then; so they do when unshare(1), whose pid
the starter knows, is killed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path


def command(*, hostname: str = "", mount_proc: bool = True) -> list[str]:
    """What to put before a command that is to run in a container.

    It has the host's name, unless another is given. Without `mount_proc` it sees the host's /proc.
    """
    options = ["--pid", "--fork", "--kill-child"]
    options += ["--mount-proc"] if mount_proc else []
    options += ["--uts"] if hostname else []
    return ["unshare", *options, sys.executable, str(Path(__file__).resolve()), hostname]


@cache
def why_not() -> str:
    """Why no container can be made here; empty when one can."""
    if shutil.which("unshare") is None:
        return "there is no unshare(1)"
    tried = subprocess.run(
        [*command(hostname="x"), sys.executable, "-c", ""],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return tried.stderr.strip() if tried.returncode else ""


def main(hostname: str, arguments: list[str]) -> int:
    """Be process 1: start the program, and take the exit status of whatever ends."""
    if hostname:
        socket.sethostname(hostname)
    # The program is to stay while its parent does, which is not the one that it was told of.
    environment = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    program = os.spawnvpe(os.P_NOWAIT, arguments[0], arguments, environment)
    while True:
        pid, status = os.wait()
        if pid == program:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
