"""Whether another user of the machine could have written a file.

A file is believed when it and every folder on the way to it belong to this user or to root, and
others can write to none of them. All folders up to ``/`` count, because a user who can write to
one of them can rename what is below and put another folder in its place. A sticky folder such as
``/tmp`` does not allow that for what is this user's: so a private folder in ``/tmp`` is sound,
and a file in ``/tmp`` itself, which anybody could have made, is not. Links are followed one by
one under the same rule.

A group counts as others, but for one in which only this user is: many systems make such a one for
each user, and let it write. Where there
are no owners, on Windows, nothing is known and everything is believed.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

LINKS = 40
"""How many links may follow one another, as in Linux."""
NAME_SERVICES = Path("/etc/nsswitch.conf")
ACCESS_LIST = "system.posix_acl_access"


class NotBelieved(Exception):
    """A file is not used, and the message says why."""


def read_believed(file: Path, limit_bytes: int, mention: bytes) -> bytes | None:
    """What a file says, or None when it does not mention a word.

    Never waits, whatever stands under the name. Raises `NotBelieved`, and `OSError` where there
    is nothing or it may not be read.
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
    """What a regular file says, and why it is not to be believed; empty when it is.

    Its last name may not be a link.

    Raises `NotBelieved` for anything else and for a larger file, and `OSError`.
    """
    # Looked at before it is opened, because the opening of a device may already do something.
    _require_regular(file.lstat())
    # Looked at again afterwards, because another file may have taken the name meanwhile.
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
    """Where an absolute path leads, and why that is not to be believed; empty when it is.

    Stops at a link that another user could have made. Raises `OSError`.
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
    """Whether a file belongs to this user or to root."""
    return not hasattr(os, "getuid") or status.st_uid in (0, os.getuid())


def is_open_to_others(folder: Path) -> bool:
    """Whether other users could put another file in the place of this user's in a folder."""
    status = folder.stat()
    if not is_own_or_roots(status):
        return True
    return _is_writable_by_others(status, folder) and not status.st_mode & stat.S_ISVTX


def _doubt_about_folder(folder: Path, entry: os.stat_result, *, is_last: bool) -> str:
    """Why an entry of a folder is not to be believed; empty when it is."""
    status = folder.lstat()
    if not is_own_or_roots(status):
        return f"the folder {folder} belongs to another user"
    if not _is_writable_by_others(status, folder):
        return ""
    # In a sticky folder only its owner and an entry's owner can move the entry; a folder of another
    # user is doubted next. A file there may be a link to another file of this user's.
    is_kept = is_own_or_roots(entry) or stat.S_ISDIR(entry.st_mode)
    if status.st_mode & stat.S_ISVTX and is_kept and not is_last:
        return ""
    return f"others can write to the folder {folder}"


def _is_writable_by_others(status: os.stat_result, where: Path | int) -> bool:
    if os.name != "posix":
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    # Where there is an access list, the group's bit says that somebody on it may write.
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
    """Whether nobody but this user and root is in a group."""
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
    # A group of the user's name was made for this user alone.
    return group.gr_name == user.pw_name or (
        _are_all_users_listed()
        and all(each.pw_gid != group_id or each.pw_uid == user.pw_uid for each in pwd.getpwall())
    )


def _are_all_users_listed() -> bool:
    """Whether all users are in a local file. A directory service lists none, or not all."""
    try:
        lines = NAME_SERVICES.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return sys.platform == "linux"  # a small image: there are only the files
    sources = [line.split(":", 1)[1].split() for line in lines if line.startswith("passwd:")]
    return all(set(each) <= {"files", "systemd"} for each in sources)
