"""The buffers of values: arrays, blocks of data frames and long texts, in files of their own.

They run no code when they are loaded, so a fast checksum of each is enough: it stands in the signed
pickle that refers to it. A file is named after its content and kept once, however many tasks refer
to it: each has a hard link in its own folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.buffer_names import NAME
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import (
    make_durable,
    make_private,
    new_private,
    open_own,
    remove,
)
from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.values import mappings

SMALLEST_BYTES = 64 * 1024
"""Buffers below this size stay in the pickle."""
PIECE_BYTES = 1024 * 1024
"""How much is copied, hashed and written at once: it stays in the processor's cache."""
CHUNK_BYTES = 16 * PIECE_BYTES
"""The digest of a buffer is the digest of its chunks' digests, so that two threads can share it."""
IN_THREADS_BYTES = 64 * PIECE_BYTES


class DamagedBuffers(Exception):
    """A file of buffers is missing, cut or changed. The message says which."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where a buffer is, and what it holds."""

    file: str
    """Name of its file in the task's folder."""
    offset: int
    size: int
    """In bytes."""
    digest: str
    """Of its content, 128 bits in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Linked:
    """A file of buffers that no task owns yet, under a temporary name."""

    name: str
    path: Path
    shared: Path
    """The name under which later values with the same content find it."""

    @property
    def size(self) -> int:
        """In bytes."""
        found = NAME.fullmatch(self.name)
        assert found is not None, "files are named by `_name`"
        return int(found[1])

    def discard(self) -> None:
        """Remove the temporary name, and the file if no task has it."""
        remove(self.path)
        forget_shared(self.shared)


@contextmanager
def discarded_on_error(linked: Iterable[Linked]) -> Iterator[None]:
    """Discard files of buffers if the block fails, which was to give them to a value."""
    try:
        yield
    except BaseException:
        for each in linked:
            each.discard()
        raise


def digest_of(buffer: memoryview) -> str:
    """Return the digest of a buffer's content."""
    starts = range(0, buffer.nbytes, CHUNK_BYTES)
    digests = [b""] * len(starts)
    flat = buffer.cast("B")

    def hash_some(places: Iterable[int]) -> None:
        for place in places:
            begin = starts[place]
            digests[place] = xxhash.xxh3_128_digest(flat[begin : begin + CHUNK_BYTES])

    if buffer.nbytes < IN_THREADS_BYTES:
        hash_some(range(len(starts)))
    else:
        _in_two_threads(hash_some, len(starts))
    return _joined(digests)


def _in_two_threads(hash_some: Any, count: int) -> None:
    helper = threading.Thread(
        target=hash_some, args=(range(0, count, 2),), name="ipytaskpersist-digest", daemon=True
    )
    if start_outside(helper):
        hash_some(range(1, count, 2))
        helper.join()
    else:
        hash_some(range(count))


def _joined(digests: Sequence[bytes]) -> str:
    return str(xxhash.xxh3_128_hexdigest(b"".join(digests)))


class BufferFiles:
    """The files of buffers in one state directory."""

    def __init__(self, directory: StateDirectory, *, is_durable: bool = False) -> None:
        """With `is_durable`, a file is on the disk before its name is returned."""
        self._directory = directory
        self._is_durable = is_durable

    # Writing.

    def keep(self, buffers: Sequence[memoryview]) -> tuple[list[Part], list[Linked]]:
        """Keep the buffers of one value. Raises `StoreError`.

        What is an untouched piece of a mapped file is not written again.
        """
        parts: list[Part | None] = [None] * len(buffers)
        linked: dict[str, Linked] = {}
        with discarded_on_error(linked.values()):
            for number, buffer in enumerate(buffers):
                parts[number] = self._mapped(buffer, linked)
            rest = [number for number, part in enumerate(parts) if part is None]
            if rest:
                new, file = self._written([buffers[number] for number in rest])
                linked[file.name] = file
                for number, part in zip(rest, new, strict=True):
                    parts[number] = part
        return [part for part in parts if part is not None], [*linked.values()]

    def _mapped(self, buffer: memoryview, linked: dict[str, Linked]) -> Part | None:
        """Return the part that a buffer is of a file which is already there."""
        place = mappings.place_of(buffer)
        if place is None or NAME.fullmatch(place.file) is None:
            return None
        if place.file not in linked:
            file = self._link(place.file, place.path)
            if file is None:
                return None
            linked[place.file] = file
        digest = _digest_at(place, buffer)
        return Part(place.file, place.offset, buffer.nbytes, digest)

    def _link(self, name: str, *others: Path) -> Linked | None:
        """Link a known file under a temporary name; None when it is gone."""
        path = self._temporary()
        for place in (self._directory.buffers / name, *others):
            with suppress(OSError):
                _link(place, path)
                if self._is_durable:
                    make_durable(path)
                return Linked(name, path, self._directory.buffers / name)
        return None

    def _temporary(self) -> Path:
        make_private(self._directory.root)
        return make_private(self._directory.payloads) / f".{secrets.token_hex(8)}.part"

    def _written(self, buffers: Sequence[memoryview]) -> tuple[list[Part], Linked]:
        """Write buffers to one file, unless there is one with the same content."""
        offsets, size = _layout(buffers)
        if self._is_there_perhaps(size):
            digests = [digest_of(buffer) for buffer in buffers]
            name = _name(size, digests)
            linked = self._link(name)
            if linked is not None:
                return _parts(name, offsets, buffers, digests), linked
        path = self._temporary()
        with disk_errors.writing(f"the arrays of a value in {path.parent}", path.parent):
            digests = _write(path, offsets, size, buffers, is_durable=self._is_durable)
        name = _name(size, digests)
        self._share(name, path)
        file = Linked(name, path, self._directory.buffers / name)
        return _parts(name, offsets, buffers, digests), file

    def _is_there_perhaps(self, size: int) -> bool:
        """Return whether there is a file of this size: then it is worth hashing before writing."""
        with suppress(OSError):
            return next(self._directory.buffers.glob(f"{size}-*"), None) is not None
        return False

    def _share(self, name: str, path: Path) -> None:
        """Let later values with the same content find the file."""
        with suppress(OSError):  # without hard links, each task keeps its own
            os.link(path, make_private(self._directory.buffers) / name)

    def adopt(self, task_id: str, linked: Linked) -> int:
        """Give a file to a task, under its final name. Raises `StoreError`.

        Returns its size in bytes; 0 for a file that the task has already.
        """
        path = self._directory.payloads / task_id / linked.name
        is_new = not path.exists()
        try:
            with disk_errors.writing(f"the arrays of a value in {path.parent}", path.parent):
                make_private(path.parent)
                linked.path.replace(path)
        finally:
            linked.discard()  # a link does not replace another one of the same file
        return linked.size if is_new else 0

    def of_task(self, task_id: str) -> list[Path]:
        """Return a task's files of buffers."""
        return sorted((self._directory.payloads / task_id).glob("*.buffers"))

    def import_file(self, name: str, data: bytes) -> Linked:
        """Write a file from elsewhere. Raises `StoreError`.

        Other tasks do not find it: whether its content fits its name is only known when a value is
        loaded from it.
        """
        path = self._temporary()
        with disk_errors.writing(f"the arrays of a value in {path.parent}", path.parent):
            with new_private(path) as file:
                file.write(data)
            path.chmod(0o400)
        return Linked(name, path, self._directory.buffers / name)

    def take(self, task_id: str, names: Iterable[str]) -> list[Linked]:
        """Link a task's files for another task. Raises `DamagedBuffers`."""
        folder, linked = self._directory.payloads / task_id, list[Linked]()
        with discarded_on_error(linked):
            for name in names:
                file = self._link(name, folder / name)
                if file is None:
                    raise DamagedBuffers(f"its file {folder / name} is gone")
                linked.append(file)
        return linked

    def size(self, task_id: str, name: str) -> int:
        """Return the size of a task's file in bytes. Raises `OSError` and `ValueError`."""
        with self._opened(task_id, name) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, task_id: str, name: str) -> bytes:
        """Return the content of a task's file. Raises `OSError` and `ValueError`."""
        with self._opened(task_id, name) as file:
            return file.read()

    def _opened(self, task_id: str, name: str) -> BinaryIO:
        if NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a file of buffers")
        return open_own(self._directory.payloads / task_id / name)

    def forget(self, names: Iterable[str]) -> None:
        """Remove the shared names of files that no task has any more."""
        for name in names:
            forget_shared(self._directory.buffers / name)

    # Reading.

    def open(self, task_id: str, parts: Sequence[Part]) -> list[memoryview]:
        """Map the buffers of a value. Raises `DamagedBuffers` unless each is as it was written."""
        folder = self._directory.payloads / task_id
        memories = {name: _map(folder / name) for name in {part.file for part in parts}}
        views = []
        for part in parts:
            view = memories[part.file][part.offset : part.offset + part.size]
            if view.nbytes != part.size or digest_of(view) != part.digest:
                raise DamagedBuffers(f"its file {folder / part.file} has been changed")
            _known_digests[part.file, part.offset, part.size] = part.digest
            views.append(view)
        return views


_known_digests: dict[tuple[str, int, int], str] = {}
"""Digests of pieces of files, which are named after their content."""


def known_digest(buffer: memoryview) -> str:
    """Return a buffer's digest: the known one, if it is an unwritten piece of a mapped file."""
    place = mappings.place_of(buffer)
    return digest_of(buffer) if place is None else _digest_at(place, buffer)


def _digest_at(place: mappings.Place, buffer: memoryview) -> str:
    known = _known_digests.get((place.file, place.offset, buffer.nbytes))
    return known or digest_of(buffer)


def forget_shared(shared: Path) -> None:
    """Remove the shared name of a file that no task has, and no value that is being written."""
    with suppress(OSError):
        if shared.stat().st_nlink == 1:
            shared.unlink()


def _map(path: Path) -> memoryview:
    found = NAME.fullmatch(path.name)
    if found is None:
        raise DamagedBuffers(f"its file is said to be {path.name!r}, where none of a task's is")
    try:
        with open_own(path) as file:
            if os.fstat(file.fileno()).st_size != int(found[1]):
                raise DamagedBuffers(f"its file {path} has been cut or extended")
            return memoryview(mappings.map_file(file.fileno(), path))
    except OSError as error:
        raise DamagedBuffers(f"its file {path} cannot be read ({error.strerror})") from error


def _link(file: Path, path: Path) -> None:
    try:
        os.link(file, path)
    except OSError:
        if not file.exists():
            raise
        shutil.copyfile(file, path)  # this file system has no hard links
        path.chmod(0o400)


def _layout(buffers: Sequence[memoryview]) -> tuple[list[int], int]:
    """Return the offset of each buffer, at the beginning of a page, and the size of the file."""
    offsets, size = [], 0
    for buffer in buffers:
        offsets.append(size)
        size += -(-buffer.nbytes // mappings.PAGE_BYTES) * mappings.PAGE_BYTES
    return offsets, size


def _name(size: int, digests: Sequence[str]) -> str:
    return f"{size}-{xxhash.xxh3_128_hexdigest(','.join(digests).encode())}.buffers"


def _parts(
    name: str, offsets: Sequence[int], buffers: Sequence[memoryview], digests: Sequence[str]
) -> list[Part]:
    return [
        Part(name, offset, buffer.nbytes, digest)
        for offset, buffer, digest in zip(offsets, buffers, digests, strict=True)
    ]


def _write(
    path: Path,
    offsets: Sequence[int],
    size: int,
    buffers: Sequence[memoryview],
    *,
    is_durable: bool,
) -> list[str]:
    """Write a file of buffers, and return their digests.

    Each piece is copied first, then hashed and written: another thread may change the original
    meanwhile.
    """
    digests = []
    try:
        with new_private(path) as file:
            for offset, buffer in zip(offsets, buffers, strict=True):
                file.seek(offset)
                digests.append(_write_one(file.fileno(), offset, buffer.cast("B")))
            os.ftruncate(file.fileno(), size)
            if is_durable:
                os.fsync(file.fileno())
            # The signed pickles rely on it: nothing opens it to write by accident.
            os.fchmod(file.fileno(), 0o400)
    except BaseException:
        remove(path)
        raise
    return digests


def _write_one(descriptor: int, offset: int, buffer: memoryview) -> str:
    piece, digests, hashing = memoryview(bytearray(PIECE_BYTES)), list[bytes](), xxhash.xxh3_128()
    for begin in range(0, buffer.nbytes, PIECE_BYTES):
        if begin and begin % CHUNK_BYTES == 0:
            digests.append(hashing.digest())
            hashing = xxhash.xxh3_128()
        copy = piece[: min(PIECE_BYTES, buffer.nbytes - begin)]
        copy[:] = buffer[begin : begin + len(copy)]
        hashing.update(copy)
        _write_all(descriptor, copy, offset + begin)
    return _joined([*digests, hashing.digest()])


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
