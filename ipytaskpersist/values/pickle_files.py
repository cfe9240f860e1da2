"""Files of pickles: hashed while they are written, and named after their digest by their task."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_durable, make_private, new_private, remove
from ipytaskpersist.values.buffers import Linked
from ipytaskpersist.values.bundles import Entry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Written values that no task owns yet."""

    path: Path
    size_bytes: int
    """Size of the pickle, without its buffers."""
    digest: str
    entries: Sequence[Entry] = ()
    linked: Sequence[Linked] = ()
    """Files of buffers."""

    def discard(self) -> None:
        """Remove the files, unless a task has adopted them."""
        remove(self.path)
        for file in self.linked:
            file.discard()


class PickleFiles:
    """The files of pickles in one state directory."""

    def __init__(self, directory: StateDirectory, *, is_durable: bool) -> None:
        """With `is_durable`, what is kept is on the disk, safe from a power loss."""
        self._directory = directory
        self._is_durable = is_durable

    def create(self, fill: Callable[[Hashing], T]) -> tuple[Prepared, T]:
        """Create a file with `fill`, and return it with `fill`'s result. Raises `StoreError`."""
        self._directory.create()
        temporary = make_private(self._directory.payloads) / f".{secrets.token_hex(8)}.part"
        try:
            with Hashing(temporary, is_durable=self._is_durable) as writer:
                given = fill(writer)
        except BaseException:
            remove(temporary)
            raise
        return Prepared(temporary, writer.size, writer.digest), given

    def name(self, task_id: str, prepared: Prepared) -> str:
        """Give a prepared file its final name. Return its path in the state directory."""
        try:
            path = self._directory.payload(task_id, prepared.digest)
            with disk_errors.writing(f"the pickle {path}", path):
                make_private(path.parent)
                prepared.path.replace(path)
                if self._is_durable:
                    make_durable(path.parent)
                    make_durable(path.parent.parent)
        finally:
            prepared.discard()
        return str(path.relative_to(self._directory.root))


class Hashing:
    """A new file that is hashed while it is written. Raises `StoreError` when writing fails."""

    def __init__(self, path: Path, *, is_durable: bool) -> None:
        self._path = path
        self._is_durable = is_durable
        self._hash = hashlib.sha256()
        self.size = 0
        with self._refusals():
            self._file = new_private(path)

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *_exception: object) -> None:
        with self._refusals(), self._file:
            self._file.flush()
            if self._is_durable:
                os.fsync(self._file.fileno())

    def write(self, data: Any) -> int:
        """Write and hash a piece."""
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        with self._refusals():
            return int(self._file.write(data))

    def _refusals(self) -> AbstractContextManager[None]:
        # Kept apart from what a pickled class raises meanwhile.
        folder = self._path.parent
        return disk_errors.writing(f"the pickle of a value in {folder}", folder)

    @property
    def digest(self) -> str:
        """The SHA-256 of what has been written, in hexadecimal."""
        return self._hash.hexdigest()
