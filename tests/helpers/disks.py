"""Disks of a test's own: small, without inodes, read-only, or one on which the system met errors.

Each is mounted in a mount namespace that only the program on it has, and goes with it. Needs
unshare(1) and a user who may mount; `why_not()` says what is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from programs import TIMEOUT_S, Finished, environment

EXT4_BYTES = 24_000_000
MOUNT = 'folder=$1; shift; mkdir -p "$folder"; '
"""In a namespace that unshare(1) keeps from handing its mounts on."""
TMPFS = MOUNT + 'mount -t tmpfs -o "mode=700,$1" tmpfs "$folder"; shift; exec "$@"'
EXT4 = MOUNT + 'mount -o loop "$1" "$folder"; chmod 700 "$folder"; shift; exec "$@"'
READ_ONLY = (
    MOUNT + 'mount --bind "$folder" "$folder"; mount -o remount,ro,bind "$folder"; exec "$@"'
)
ENTER = ["sh", "-euc", 'exec nsenter --mount --wd="$PWD" --target "$@"', "sh"]
"""What to put before a pid and a command that is to run where the process has its disks."""


def _alone(script: str, *words: str) -> list[str]:
    return ["unshare", "--mount", "sh", "-euc", script, "sh", *words]


def small(folder: Path, options: str) -> list[str]:
    """What to put before a program that has a tmpfs of its own at a folder.

    `options` are those of mount(8): ``size=3m``, ``nr_inodes=40``.
    """
    return _alone(TMPFS, str(folder), options)


def breakable(folder: Path, image: Path) -> list[str]:
    """The same with an ext4, on which `break_disk` can have the system meet errors."""
    with image.open("wb") as file:
        file.truncate(EXT4_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    return _alone(EXT4, str(folder), str(image))


def read_only(folder: Path) -> list[str]:
    """The same with a folder that can only be read."""
    return _alone(READ_ONLY, str(folder))


def change(pid: int, folder: Path, options: str) -> None:
    """Mount the disk of a program anew, with other options."""
    command = [*ENTER, str(pid), "mount", "-o", f"remount,{options}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def break_disk(pid: int, folder: Path) -> None:
    """Have the system take an ext4 for damaged: from now on it can only be read."""
    change(pid, folder, "abort")


def seen_by(pid: int, path: Path) -> Path:
    """A path as a program sees it that has disks of its own."""
    return Path(f"/proc/{pid}/root") / path.relative_to("/")


def run_beside(pid: int, state_dir: Path, *arguments: str, before: Sequence[str] = ()) -> Finished:
    """Run `python -m ipytaskpersist` where a program has disks of its own."""
    return subprocess.run(
        [*ENTER, str(pid), *before, sys.executable, "-m", "ipytaskpersist", *arguments],
        env=environment(state_dir), timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip


@cache
def why_not(kind: str = "tmpfs") -> str:
    """Why no disk can be mounted here; empty when one can."""
    missing = [name for name in ("unshare", "nsenter", "prlimit") if shutil.which(name) is None]
    if missing:
        return f"there is no {missing[0]}(1)"
    if kind == "ext4" and (shutil.which("mkfs.ext4") is None or not Path("/dev/loop0").exists()):
        return "there is no mkfs.ext4(8), or no loop device"
    script = 'mount -t tmpfs -o size=64k tmpfs "$1"'
    tried = subprocess.run(
        _alone(script, "/mnt"), capture_output=True, text=True, timeout=60, check=False
    )
    return f"this user cannot mount: {tried.stderr.strip()}" if tried.returncode else ""
