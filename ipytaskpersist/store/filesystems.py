"""On what kind of file system a store is: other hosts may write to some of them as well."""

from __future__ import annotations

import errno
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "davfs"),
        *("ceph", "beegfs", "glusterfs", "lustre", "gpfs", "panfs", "pvfs2", "wekafs", "acfs"),
        # A disk that several machines have, and a folder of the host that its guests have.
        *("ocfs2", "gfs", "gfs2", "9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "drvfs"),
        # What is still not mounted after it was looked into is most often on a network.
        "autofs",
    )
)
LOCAL_FUSE = frozenset(
    (
        "fuseblk",
        *(f"fuse.{name}" for name in ("ext2", "ext3", "ext4", "fuse2fs", "ntfs", "ntfs-3g")),
        *(
            f"fuse.{name}"
            for name in ("lowntfs-3g", "exfat", "exfat-fuse", "zfs", "fuse-overlayfs")
        ),
        *(f"fuse.{name}" for name in ("gocryptfs", "encfs", "cryfs", "securefs")),
        *(f"fuse.{name}" for name in ("bindfs", "mergerfs", "unionfs", "unionfs-fuse")),
    )
)
"""Programs that are file systems, and keep their files on this machine. All others may be on a
network: there are more of them than anybody has a list of."""
NETWORK_MODE = "TRUNCATE"
MOUNTS = Path("/proc/self/mountinfo")
ESCAPED = re.compile(r"\\([0-7]{3})")
PAGE_BYTES = 4096
CANNOT_SHARE = (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system, and where it is."""

    id: str
    parent: str
    """The id of the mount that the point is on."""
    point: Path
    kind: str
    """Its type, as the system calls it."""


def journal_mode_for(folder: Path) -> str:
    """WAL, or the rollback journal where there is something against WAL."""
    return NETWORK_MODE if against_wal(folder) else "WAL"


def against_wal(folder: Path) -> str:
    """Why the memory that WAL needs cannot be shared by all who use a store; empty when it can.

    Other hosts do not have this host's memory, and some file systems share none at all.
    """
    if may_be_on_network(file_system_of(folder)):
        return "a network file system"
    return "" if shares_memory(folder) else "a file system without shared memory"


def may_be_on_network(kind: str) -> bool:
    """Whether other hosts may write to a file system of this type as well."""
    if kind == "fuse" or kind.startswith("fuse."):
        return kind not in LOCAL_FUSE
    return kind in NETWORK_FILE_SYSTEMS


def shares_memory(folder: Path) -> bool:
    """Whether a file there can be memory that processes share. Leaves nothing behind."""
    try:
        file = tempfile.TemporaryFile(dir=folder, prefix=".")  # noqa: SIM115
    except OSError:
        return True  # nothing can be written here, so nothing is said of it
    with file:
        try:
            file.truncate(PAGE_BYTES)
            mmap.mmap(file.fileno(), PAGE_BYTES).close()
        except OSError as error:  # others say that there is no room, or no memory
            return error.errno not in CANNOT_SHARE
    return True


def file_system_of(folder: Path) -> str:
    """The type of the file system that holds a folder; empty where the system does not tell."""
    mount = mount_of(folder)
    return "" if mount is None else mount.kind


def mount_of(folder: Path) -> Mount | None:
    """What holds a folder; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    found = _mount_of(folder)
    if found is not None and found.kind == "autofs":
        # It is mounted when somebody looks into it.
        with suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        found = _mount_of(folder)
    return found


def _mount_of(folder: Path) -> Mount | None:
    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        return mount_in(table, folder.resolve())
    except (OSError, RuntimeError):  # there is no table, or a circle of links
        return None


def mount_in(table: str, folder: Path) -> Mount | None:
    """What holds a folder, according to the text of a ``mountinfo``.

    Goes down the path as the system does: of several mounts on one point the last one counts, and
    one that another mount has covered, on the same point or above it, does not.
    """
    mounts = list(_mounts(table))
    known = {mount.id for mount in mounts}
    found: Mount | None = None
    for point in (*reversed(folder.parents), folder):
        here = [mount for mount in mounts if mount.point == point]
        while over := _last_on(found, here, known):
            found = over
            here.remove(over)
    return found


def _last_on(under: Mount | None, here: list[Mount], known: set[str]) -> Mount | None:
    """The last of some mounts that is on another one, or on none that is known."""
    parent = under.id if under is not None else ""
    on_it = [each for each in here if each.parent == parent or each.parent not in known]
    return on_it[-1] if on_it else None


def _mounts(table: str) -> Iterator[Mount]:
    for line in table.split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4 and after:
            yield Mount(fields[0], fields[1], Path(_unescaped(fields[4])), after.split(" ")[0])


def _unescaped(text: str) -> str:
    """A path in the table, in which spaces and the like are octal numbers."""
    return ESCAPED.sub(lambda found: chr(int(found.group(1), 8)), text)
