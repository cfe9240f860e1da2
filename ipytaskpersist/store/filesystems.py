"""On what kind of file system a store is: other hosts may write to some of them as well."""

from __future__ import annotations

import sys
from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "lustre", "gpfs"),
        *("ceph", "beegfs", "glusterfs", "fuse.sshfs"),
    )
)
NETWORK_MODE = "TRUNCATE"


def journal_mode_for(folder: Path) -> str:
    """WAL, but the rollback journal on a network file system, where WAL's shared memory fails."""
    return NETWORK_MODE if file_system_of(folder) in NETWORK_FILE_SYSTEMS else "WAL"


def file_system_of(folder: Path) -> str:
    """The type of the file system that holds `folder`; empty where the system does not tell."""
    if sys.platform != "linux":
        return ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return _deepest_mount(mounts, folder.resolve())


def _deepest_mount(mounts: str, folder: Path) -> str:
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = Path(fields[1].replace("\\040", " "))
        if len(point.parts) > best and folder.is_relative_to(point):
            best, kind = len(point.parts), fields[2]
    return kind
