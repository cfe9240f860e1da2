"""Read commit, branch and configuration from a repository's files, without running a program.

A repository may be a stranger's, and git runs programs that a repository's configuration names. So
its files are read here, each up to a limit, and git is asked only if they name no program.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ipytaskpersist.base.ownership import NotBelieved, look_up, read_regular

SMALL_BYTES = 100_000
"""Limit for files that have one line or are written by hand."""
PACKED_BYTES = 100_000_000
"""Limit for the list of all branches and tags."""
SYMBOLIC = 5
"""Number of references that may point to one another, as in git."""
COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
REFERENCE = re.compile(r"refs/(?!.*(?:\.\.|//))[^\x00-\x20\x7f~^:?*\[\\]{1,1000}")
OTHER_FORMAT = "refs/heads/.invalid"
"""Content of HEAD if references are stored in a format unknown here (reftable)."""

PROGRAMS = re.compile(
    rb"\[\s*(?:filter|diff|include|includeif)\b"
    rb"|(?:^|\])\s*(?:fsmonitor|hookspath|attributesfile|sshcommand|gitproxy|alternaterefscommand"
    rb"|external|promisor|partialclone|partialclonefilter|uploadpack|vcs)\b",
    re.IGNORECASE | re.MULTILINE,
)
"""Configuration that names programs, makes git fetch objects, or includes other files.

Names of sections and keys appear literally in the file: git's format cannot quote them.
"""


@dataclass(frozen=True, slots=True)
class Head:
    """The commit and branch of a working tree."""

    commit: str | None
    """None before the first commit."""
    branch: str | None
    """None if a commit is checked out without a branch."""


@dataclass(frozen=True, slots=True)
class GitFolders:
    """The folders of one working tree."""

    root: Path
    """The folder with the files."""
    own: Path
    """Git's data for this working tree: ``.git``, or the target of a file of this name."""
    common: Path
    """Git's data for all working trees of the repository."""

    @classmethod
    def around(cls, directory: Path) -> GitFolders | None:
        """Return the folders of the repository around a directory; None if they cannot be read."""
        with suppress(OSError, ValueError, NotBelieved):
            for root in (directory, *directory.parents):
                if (root / ".git").exists():
                    return cls._of(root)
        return None

    @classmethod
    def _of(cls, root: Path) -> GitFolders:
        own = root / ".git"
        if not own.is_dir():
            own = root / _line(own.resolve()).removeprefix("gitdir: ")
        common = own
        with suppress(FileNotFoundError):
            common = own / _line(own / "commondir")
        return cls(root, own, common)

    def head(self) -> Head | None:
        """Return commit and branch; None if the files do not say."""
        try:
            text = self._symbolic_head() or _line(self.own / "HEAD")
            name = text.removeprefix("ref: ")
            if name == text:
                return Head(text, None) if COMMIT.fullmatch(text) else None
            if name == OTHER_FORMAT or not REFERENCE.fullmatch(name):
                return None
            return Head(self._commit_of(name), name.removeprefix("refs/heads/"))
        except (OSError, ValueError, NotBelieved):
            return None

    def _symbolic_head(self) -> str:
        """Return HEAD if it is a link, as in old versions of git."""
        head = self.own / "HEAD"
        return f"ref: {head.readlink()}" if head.is_symlink() else ""

    def _commit_of(self, name: str) -> str | None:
        for _turn in range(SYMBOLIC):
            text = self._loose(name) or self._packed(name)
            if not text.startswith("ref: "):
                return text if COMMIT.fullmatch(text) else None
            name = text.removeprefix("ref: ")
            if not REFERENCE.fullmatch(name):
                break
        return None

    def _loose(self, name: str) -> str:
        for folder in (self.own, self.common):
            if (folder / name).is_dir():
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                return _line(folder / name)
        return ""

    def _packed(self, name: str) -> str:
        try:
            data, _doubt = read_regular(self.common / "packed-refs", PACKED_BYTES)
        except FileNotFoundError:
            return ""
        found = re.search(rb"^([0-9a-f]+) " + re.escape(name.encode()) + rb"$", data, re.MULTILINE)
        return found.group(1).decode() if found else ""

    def names_programs(self) -> bool:
        """Return whether the repository's configuration could make git run a program.

        Also return True if that cannot be known, because the configuration includes other files, or
        because another user could change it in the meantime.
        """
        configurations = {self.common / "config", self.own / "config.worktree"}
        return any(_names_programs(each) for each in configurations)


def _names_programs(configuration: Path) -> bool:
    try:
        place, doubt = look_up(configuration.absolute())
        text, own_doubt = read_regular(place, SMALL_BYTES)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, NotBelieved):
        return True
    return bool(doubt or own_doubt or PROGRAMS.search(text))


def _line(file: Path) -> str:
    """Return the text of a one-line file."""
    data, _doubt = read_regular(file, SMALL_BYTES)
    return data.decode("utf-8", "replace").strip()
