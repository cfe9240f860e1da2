"""Check whether another user of the machine could have written a file.

A file is trusted when it and every folder above it belong to this user or to root, and others can
write to none of them. All folders up to ``/`` count, because a user who can write to one of them
can rename what is below and put another folder in its place. A sticky folder such as ``/tmp`` does
not allow that for entries that are this user's. So a private folder in ``/tmp`` is trusted, but a
file directly in ``/tmp``, which any user could have created, is not. Links are followed one by one
under the same rule.

A group counts as others, unless this user is its only member: many systems create such a group for
each user, and let it write. Where there are no owners, on Windows, everything is trusted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

LINKS = 40
"""Maximum number of links in a row, as in Linux."""
NAME_SERVICES = Path("/etc/nsswitch.conf")
ACCESS_LIST = "system.posix_acl_access"


class NotBelieved(Exception):
    """A file is not used, for the reason in the message."""


def read_believed(file: Path, limit_bytes: int, mention: bytes) -> bytes | None:
    """Return the content of a file, or None when it does not mention a word.

    Never blocks, whatever the file is. Raises `NotBelieved`, and `OSError` when it is missing or
    may not be read.
    """
    place, doubt = look_up(file)
    try:
        data, own_doubt = read_regular(place, limit_bytes)
        doubt = doubt or own_doubt
    except NotBelieved as error:
        raise NotBelieved(doubt or str(error)) from None
    if mention not in data:
        return None
    if doubt:
        raise NotBelieved(doubt)
    return data


def read_regular(file: Path, limit_bytes: int) -> tuple[bytes, str]:
    """Return a regular file's content, and why not to trust it; empty when it is trusted.

    The file itself must not be a link.

    Raises `NotBelieved` for anything else and for a larger file, and `OSError`.
    """
    # Checked before it is opened, because opening a device may already do something.
    _require_regular(file.lstat())
    # Checked again afterwards, because another file may have replaced it meanwhile.
    flags = ("O_NONBLOCK", "O_NOCTTY", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
    descriptor = os.open(file, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
    with open(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        _require_regular(status)
        doubt = _doubt_about_file(status, descriptor)
        data = opened.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise NotBelieved(f"it is larger than {limit_bytes:,} bytes")
    return data, doubt


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotBelieved("it is not a regular file")


def look_up(file: Path) -> tuple[Path, str]:
    """Return where an absolute path leads, and why not to trust that; empty when it is trusted.

    Stops at a link that another user could have created. Raises `OSError`.
    """
    place, doubt, links = Path(file.anchor), "", 0
    ahead = list(reversed(file.parts[1:]))
    while ahead:
        name = ahead.pop()
        entry = place.parent if name == ".." else place / name
        status = entry.lstat()
        if name != "..":
            doubt = doubt or _doubt_about_folder(place, status, is_last=not ahead)
        if not stat.S_ISLNK(status.st_mode):
            place = entry
        elif doubt:
            return entry, doubt
        else:
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(file))
            target = entry.readlink()
            place = Path(target.anchor) if target.is_absolute() else place
            ahead.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    return place, doubt


def _doubt_about_file(status: os.stat_result, descriptor: int) -> str:
    if not is_own_or_roots(status):
        return "it belongs to another user"
    return "others can write to it" if _is_writable_by_others(status, descriptor) else ""


def is_own_or_roots(status: os.stat_result) -> bool:
    """Return whether a file belongs to this user or to root."""
    return not hasattr(os, "getuid") or status.st_uid in (0, os.getuid())


def is_open_to_others(folder: Path) -> bool:
    """Return whether other users could replace this user's files in a folder."""
    status = folder.stat()
    if not is_own_or_roots(status):
        return True
    return _is_writable_by_others(status, folder) and not status.st_mode & stat.S_ISVTX


def _doubt_about_folder(folder: Path, entry: os.stat_result, *, is_last: bool) -> str:
    """Return why not to trust an entry of a folder; empty when it is trusted."""
    status = folder.lstat()
    if not is_own_or_roots(status):
        return f"the folder {folder} belongs to another user"
    if not _is_writable_by_others(status, folder):
        return ""
    # In a sticky folder only its owner and an entry's owner can move the entry; another user's
    # folder is rejected next. A file there may be a hard link to another file of this user's.
    is_kept = is_own_or_roots(entry) or stat.S_ISDIR(entry.st_mode)
    if status.st_mode & stat.S_ISVTX and is_kept and not is_last:
        return ""
    return f"others can write to the folder {folder}"


def _is_writable_by_others(status: os.stat_result, where: Path | int) -> bool:
    if os.name != "posix":
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    # With an access list, the group bit means that some entry of the list may write.
    may_group = bool(status.st_mode & stat.S_IWGRP)
    return may_group and (_has_access_list(where) or not _is_private_group(status.st_gid))


def _has_access_list(where: Path | int) -> bool:
    if not hasattr(os, "getxattr"):
        return False
    try:
        return bool(os.getxattr(where, ACCESS_LIST))
    except OSError:
        return False


def _is_private_group(group_id: int) -> bool:
    """Return whether a group has no members but this user and root."""
    import grp
    import pwd

    try:
        group = grp.getgrgid(group_id)
        if group_id == 0:
            return set(group.gr_mem) <= {"root"}
        user = pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    if user.pw_gid != group_id or not set(group.gr_mem) <= {user.pw_name, "root"}:
        return False
    # A group with the user's name was created for this user alone.
    return group.gr_name == user.pw_name or (
        _are_all_users_listed()
        and all(each.pw_gid != group_id or each.pw_uid == user.pw_uid for each in pwd.getpwall())
    )


def _are_all_users_listed() -> bool:
    """Return whether all users are in a local file. Directory services list not all, or none."""
    try:
        lines = NAME_SERVICES.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return sys.platform == "linux"  # a small image: there are only the files
    sources = [line.split(":", 1)[1].split() for line in lines if line.startswith("passwd:")]
    return all(set(each) <= {"files", "systemd"} for each in sources)
