"""The kind of file system that holds a store: other hosts may write to some of them as well."""

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
        # A disk shared by several machines, or a host's folder shared with its guests.
        *("ocfs2", "gfs", "gfs2", "9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "drvfs"),
        # Still not mounted after an access: most often on a network.
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
"""FUSE file systems that keep their files on this machine. All others may be on a network: there
are too many to list."""
NETWORK_MODE = "TRUNCATE"
MOUNTS = Path("/proc/self/mountinfo")
ESCAPED = re.compile(r"\\([0-7]{3})")
PAGE_BYTES = 4096
CANNOT_SHARE = (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system and its mount point."""

    id: str
    parent: str
    """Id of the mount that contains the mount point."""
    point: Path
    kind: str
    """Its type, as the system calls it."""


def journal_mode_for(folder: Path) -> str:
    """Return WAL, or the rollback journal where WAL cannot be used."""
    return NETWORK_MODE if against_wal(folder) else "WAL"


def against_wal(folder: Path) -> str:
    """Return why the users of a store cannot share the memory that WAL needs; empty when they can.

    Other hosts do not have this host's memory, and some file systems cannot share any.
    """
    if may_be_on_network(file_system_of(folder)):
        return "a network file system"
    return "" if shares_memory(folder) else "a file system without shared memory"


def may_be_on_network(kind: str) -> bool:
    """Return whether other hosts may write to a file system of this type."""
    if kind == "fuse" or kind.startswith("fuse."):
        return kind not in LOCAL_FUSE
    return kind in NETWORK_FILE_SYSTEMS


def shares_memory(folder: Path) -> bool:
    """Return whether processes can share a mapped file in a folder. Leaves nothing behind."""
    try:
        file = tempfile.TemporaryFile(dir=folder, prefix=".")  # noqa: SIM115
    except OSError:
        return True  # the folder is not writable, which says nothing about memory
    with file:
        try:
            file.truncate(PAGE_BYTES)
            mmap.mmap(file.fileno(), PAGE_BYTES).close()
        except OSError as error:  # other errors mean no room or no memory
            return error.errno not in CANNOT_SHARE
    return True


def file_system_of(folder: Path) -> str:
    """Return the type of a folder's file system; empty when the system does not say."""
    mount = mount_of(folder)
    return "" if mount is None else mount.kind


def mount_of(folder: Path) -> Mount | None:
    """Return the mount that contains a folder; None when the system does not say."""
    if sys.platform != "linux":
        return None
    found = _mount_of(folder)
    if found is not None and found.kind == "autofs":
        # It is mounted on access.
        with suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        found = _mount_of(folder)
    return found


def _mount_of(folder: Path) -> Mount | None:
    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        return mount_in(table, folder.resolve())
    except (OSError, RuntimeError):  # there is no table, or a loop of links
        return None


def mount_in(table: str, folder: Path) -> Mount | None:
    """Return the mount that contains a folder, according to the text of a ``mountinfo``.

    Follows the path as the system does: of several mounts on one point the last one counts. A mount
    that is covered by another one, on the same point or above it, does not.
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
    """Return the last of some mounts that is on the given one, or on none that is known."""
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
    """Return a path from the table with its octal escapes decoded."""
    return ESCAPED.sub(lambda found: chr(int(found.group(1), 8)), text)
