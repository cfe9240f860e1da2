"""Several named values in one file, which stores objects that they share once.

Large pieces of their pickles, such as arrays and long texts, are in files of buffers. The end of
the file is an index, so that it is signed with the rest.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import xxhash

from ipytaskpersist.values.buffers import SMALLEST_BYTES, Linked, Part, known_digest
from ipytaskpersist.values.pickling import (
    HEADER_BYTES,
    Failed,
    Namespace,
    PickleBuffer,
    Unpickler,
    UnpicklerWithMemo,
    UnpicklingError,
    Writer,
    count_memoized,
    dump,
    is_content,
    load,
    pickler,
)

MAGIC = b"\0values\n"
"""Beginning of such a file. No pickle has it, so that the two are never confused."""
LENGTH_BYTES = 8
ITSELF, INSIDE = "itself", "inside"
LARGE_BYTES = 32 * 1024 * 1024
"""Above this size of its pickle without large pieces, the objects of a value are not listed."""
SHARES = "it shares what could not be loaded"


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a file."""

    name: str
    size: int
    """Bytes of its pickle in the file itself."""
    parts: Sequence[Part] = ()
    """Its large pieces, in the order in which unpickling needs them."""
    places: Sequence[int | None] = ()
    """Where in the pickle each piece belongs; None for a buffer that is passed along with it."""
    is_apart: bool = False
    """Whether it has a memo of its own, and refers to objects of the values before it by key."""
    digest: str = ""
    """Of its content, by which a later pickle of the same value is compared."""
    change: str = ""
    """How a task has changed what it was given: `ITSELF`, `INSIDE`, or not at all."""

    def as_json(self) -> Any:
        """Return what the index says of it: only its size, if that is all."""
        if not self.parts and not self.digest and not self.change:
            return self.size
        parts = [
            [part.file, part.offset, part.size, part.digest, place]
            for part, place in zip(self.parts, self.places, strict=True)
        ]
        return {
            "size": self.size,
            "parts": parts,
            "apart": self.is_apart,
            "digest": self.digest,
            "change": self.change,
        }


def _entry(name: str, known: Any) -> Entry:
    if isinstance(known, int):
        return Entry(name, known)
    parts = [Part(*fields) for *fields, _place in known["parts"]]
    places = [each[-1] for each in known["parts"]]
    return Entry(
        name, known["size"], parts, places, known["apart"], known["digest"], known["change"]
    )


# Writing.


class BufferKeeper(Protocol):
    """Keeps the buffers of a value."""

    def keep(self, buffers: Sequence[memoryview]) -> tuple[list[Part], list[Linked]]:
        """Keep them. Raises `StoreError`."""


class Sieve:
    """Takes a pickle: large pieces are kept apart, all else is written to the file."""

    def __init__(self, file: Writer) -> None:
        self._file = file
        self.pieces: list[tuple[int | None, memoryview]] = []
        """Each with its place in the pickle, or None for a buffer."""
        self.size = 0
        self.hash = xxhash.xxh3_128()
        """Of what is in the file itself."""
        self._before = b""
        """The end of what was written last, which may announce a text."""

    def write(self, data: Any) -> int:
        """Write a piece of the pickle. Raises `StoreError`."""
        view = memoryview(data)
        if view.nbytes >= SMALLEST_BYTES and is_content(self._before, view):
            self.pieces.append((self.size, view))
        else:
            self._file.write(data)
            self.hash.update(view)
            self.size += view.nbytes
        self._before = bytes(view[-HEADER_BYTES:])
        return view.nbytes

    def begin(self) -> None:
        """Begin with another pickle."""
        self.size, self.pieces = 0, []
        self.hash.reset()

    def keep(self, buffers: BufferKeeper) -> tuple[list[Part], list[Linked]]:
        """Have the large pieces kept. Raises `StoreError`."""
        return buffers.keep([view for _place, view in self.pieces]) if self.pieces else ([], [])

    def digest(self, parts: Sequence[Part]) -> str:
        """Return the digest of a pickle with its large pieces."""
        for part, (place, _view) in zip(parts, self.pieces, strict=True):
            self.hash.update(f"{place} {part.digest} ".encode())
        return self.hash.hexdigest()

    def take(self, buffer: PickleBuffer) -> bool:
        """Take a buffer. Returns True for a small one, which stays in the pickle."""
        view = buffer.raw()
        if view.nbytes < SMALLEST_BYTES:
            return True
        self.pieces.append((None, view))
        return False


class BundleWriter:
    """Writes a file of values."""

    def __init__(
        self,
        file: Writer,
        buffers: BufferKeeper,
        namespace: Namespace,
        sharing: Iterable[Any] = (),
    ) -> None:
        """Other arrays may be views of those among the values `sharing` memory."""
        self._file = file
        self._sharing = [*sharing]
        self._buffers = buffers
        self._namespace = namespace
        self._sieve = Sieve(file)
        self._entries: list[Entry] = []
        self.linked: dict[str, Linked] = {}
        """The files of buffers that the values are in."""
        self.objects: dict[Any, Any] = {}
        """The objects of the given values that may be referred to, by key."""
        self._given = 0
        self.group = 0
        """The number of the given value that shares its memo with the last one."""
        self._new_pickler()
        file.write(MAGIC)

    def _new_pickler(self) -> None:
        self.pickler = pickler(self._sieve, self._namespace, self._sieve.take)
        self.pickler.share_memory(self._sharing)

    @property
    def entries(self) -> Sequence[Entry]:
        """What has been written."""
        return self._entries

    def add(self, name: str, value: Any, change: str = "") -> None:
        """Write a value. Raises `Unpicklable`, which leaves the file unusable, and `StoreError`."""
        self._add(name, value)
        self._entries[-1] = replace(self._entries[-1], change=change)

    def add_alone(self, name: str, value: Any) -> None:
        """Write a value that shares nothing with others. Raises the same."""
        shared = self.pickler
        self._new_pickler()
        self._add(name, value, is_apart=True)
        self.pickler = shared

    def add_given(self, name: str, value: Any) -> Entry:
        """Write a value that is compared later. Raises the same, but the file stays usable.

        What it shares with earlier ones it refers to by key, so that its pickle does not depend on
        theirs. A very large one is followed by others with the same memo instead, because listing
        its objects would take as much memory again.
        """
        is_apart = not self._entries or self._entries[-1].size <= LARGE_BYTES
        if is_apart:
            self.group = self._given
            self._new_pickler()
            self.pickler.refer((each, key) for key, each in self.objects.items())
        self._given += 1
        self.objects[name] = value
        entry = self._add(name, value, is_apart=is_apart, is_given=True)
        if is_apart and entry.size <= LARGE_BYTES:
            self.objects |= _shareable(
                self.group, ((number, each) for number, each in self.pickler.memo.copy().values())
            )
        return entry

    def skip_given(self) -> None:
        """Go on as if another value had been written."""
        self.group = self._given
        self._given += 1

    def _add(
        self, name: str, value: Any, *, is_apart: bool = False, is_given: bool = False
    ) -> Entry:
        self._sieve.begin()
        try:
            dump(self.pickler, name, value)
            parts, linked = self._sieve.keep(self._buffers)
            for each in linked:
                self._add_linked(each)
            digest = self._sieve.digest(parts) if is_given else ""
            places = [place for place, _view in self._sieve.pieces]
        finally:
            size = self._sieve.size
            self._sieve.begin()
        self._entries.append(Entry(name, size, parts, places, is_apart, digest))
        return self._entries[-1]

    def _add_linked(self, file: Linked) -> None:
        if file.name in self.linked:
            file.discard()
        else:
            self.linked[file.name] = file

    def finish(self) -> None:
        """Write the index. Raises `StoreError`."""
        index = json.dumps({entry.name: entry.as_json() for entry in self._entries}).encode()
        self._file.write(index + len(index).to_bytes(LENGTH_BYTES, "little"))

    def discard(self) -> None:
        """Remove the files of buffers, after an error."""
        for file in self.linked.values():
            file.discard()


class HashedBuffers:
    """Keeps nothing of buffers but their digests."""

    def keep(self, buffers: Sequence[memoryview]) -> tuple[list[Part], list[Linked]]:
        """Return parts without a place."""
        return [Part("", 0, each.nbytes, known_digest(each)) for each in buffers], []


ATOMS = frozenset({str, bytes, int, float, complex, bool})
"""Types whose objects are as good as any other with the same value."""


def _shareable(group: int, numbered: Iterable[tuple[int, Any]]) -> dict[Any, Any]:
    """Return the objects of a memo that have an identity, by the keys of their group."""
    return {(group, number): each for number, each in numbered if type(each) not in ATOMS}


# Reading.


def is_bundle(data: bytes) -> bool:
    """Return whether these are the bytes of several values."""
    return data.startswith(MAGIC)


def entries_of(data: bytes) -> list[Entry]:
    """Return what the index of a file says."""
    end = len(data) - LENGTH_BYTES
    index = end - int.from_bytes(data[end:], "little")
    return [_entry(name, known) for name, known in json.loads(data[index:end]).items()]


def buffer_files_of(path: Path) -> list[str]:
    """Return the names of the files of buffers to which a file of values refers.

    Only its index is read. Raises `OSError`, and `ValueError` for what is no such file.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no file of values")
        end = file.seek(-LENGTH_BYTES, os.SEEK_END)
        size = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size > end:
            raise ValueError(f"the index of {path} is damaged")
        file.seek(end - size)
        index = json.loads(file.read(size))
    try:
        names = [
            part[0] for known in index.values() if type(known) is dict for part in known["parts"]
        ]
    except (AttributeError, LookupError, TypeError):
        raise ValueError(f"the index of {path} is damaged") from None
    return [*dict.fromkeys(map(str, names))]


class _Stream:
    """The bytes of one pickle after another, with the large pieces where they belong."""

    def __init__(self) -> None:
        self._segments: deque[memoryview] = deque()

    def open(self, segments: Sequence[memoryview]) -> None:
        """Continue with these bytes."""
        self._segments = deque(segment for segment in segments if segment.nbytes)

    @property
    def is_at_end(self) -> bool:
        """Whether everything has been read."""
        return not self._segments

    def readinto(self, target: Any) -> int:
        """Fill a buffer, as far as there is something left."""
        rest = memoryview(target).cast("B")
        size = rest.nbytes
        while rest and self._segments:
            segment = self._segments.popleft()
            count = min(len(rest), len(segment))
            rest[:count] = segment[:count]
            rest = rest[count:]
            if count < len(segment):
                self._segments.appendleft(segment[count:])
        return size - len(rest)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`."""
        data = bytearray(sum(map(len, self._segments)) if size < 0 else size)
        return bytes(data[: self.readinto(data)])

    def readline(self) -> bytes:
        """Return the rest of the line, in which a pickle of protocol 0 keeps an argument."""
        line = bytearray()
        while (byte := self.read(1)) and not line.endswith(b"\n"):
            line += byte
        return bytes(line)


class Bundle:
    """The values of one file, loaded in order: each only when it is asked for."""

    def __init__(
        self,
        data: bytes,
        open_parts: Callable[[Sequence[Part]], list[memoryview]],
        namespace: dict[str, Any],
    ) -> None:
        """`open_parts` returns the content of pieces, and raises when one is damaged."""
        self._data = memoryview(data)
        self.entries = entries_of(data)
        self._open_parts = open_parts
        self.namespace = namespace
        self._stream = _Stream()
        self._buffers: deque[memoryview] = deque()
        self._missing = _Missing()
        self.objects: dict[Any, Any] = {}
        """The objects of the given values that may be referred to, by key."""
        self._given = self._group = 0
        self.find_elsewhere: Callable[[Any], Any] | None = None
        """Returns an object that is not in the file."""
        self._past: list[memoryview] = []
        """The pickles of the earlier values with the same memo."""
        self.unpickler: Unpickler | UnpicklerWithMemo = self._new_unpickler()

    def _new_unpickler(self) -> Unpickler:
        self._past = []
        made = Unpickler(self._stream, self.namespace, self._passed())
        made.find_given = self.find_given
        return made

    def find_given(self, key: Any) -> Any:
        """Return an object of an earlier value, or of elsewhere. Raises `KeyError`."""
        if self.find_elsewhere is not None:
            return self.find_elsewhere(tuple(key) if isinstance(key, list) else key)
        return self.objects[tuple(key) if isinstance(key, list) else key]

    def _passed(self) -> Iterator[memoryview]:
        while True:
            yield self._buffers.popleft()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the values, each with its name; a `Failed` in place of one that fails.

        Later values are complete, unless they share an object that could not be loaded.
        """
        for entry, data in self._pickles():
            if entry.is_apart:
                self.unpickler = self._new_unpickler()
            value = self._load(entry, data)
            if entry.digest:
                self._note_given(entry, value)
            yield entry.name, value

    def _pickles(self) -> Iterator[tuple[Entry, memoryview]]:
        at = len(MAGIC)
        for entry in self.entries:
            yield entry, self._data[at : at + entry.size]
            at += entry.size

    def alone(self, name: str) -> Any:
        """Return a value that shares nothing with others; None when there is none."""
        for entry, data in self._pickles():
            if entry.name == name:
                self.unpickler = self._new_unpickler()
                value = self._load(entry, data)
                self.unpickler = self._new_unpickler()
                return value
        return None

    def _note_given(self, entry: Entry, value: Any) -> None:
        """Note the objects of a given value under the keys that `BundleWriter` gave them."""
        if entry.is_apart:
            self._group = self._given
        self._given += 1
        self.objects[entry.name] = value
        if entry.is_apart and entry.size <= LARGE_BYTES:
            self.objects |= _shareable(self._group, self.unpickler.memo.copy().items())

    def _load(self, entry: Entry, data: memoryview) -> Any:
        uses = sys.getrefcount(self._missing)
        try:
            pieces = self._open_parts(entry.parts)
        except Exception as error:  # a damaged file concerns the values in it
            pieces = [memoryview(bytes(part.size)) for part in entry.parts]
            return self._failed(Failed(error), _segments(entry, data, pieces))
        segments = _segments(entry, data, pieces)
        self._buffers.clear()
        passed = [p for p, place in zip(pieces, entry.places, strict=True) if place is None]
        self._buffers.extend(passed)
        self._stream.open(segments)
        value = load(self.unpickler)
        if sys.getrefcount(self._missing) > uses:
            value = Failed(UnpicklingError(SHARES))
        if isinstance(value, Failed):
            return self._failed(value, segments)
        self._past += segments
        return value

    def _failed(self, value: Failed, segments: Sequence[memoryview]) -> Failed:
        """Be ready for the values after one that could not be loaded."""
        self._past += segments
        self._stream.open([*self._past])
        # The memo's size is the number of the next object, so it must be the same here.
        numbers = range(count_memoized(self._stream, lambda: self._stream.is_at_end))
        known: dict[int, Any] = self.unpickler.memo.copy()
        memo = dict.fromkeys(numbers, self._missing) | known
        self.unpickler = UnpicklerWithMemo(self._stream, self.namespace, self._passed(), memo)
        self.unpickler.find_given = self.find_given
        return value


def _segments(entry: Entry, data: memoryview, pieces: Sequence[memoryview]) -> Sequence[memoryview]:
    """Return the bytes of a pickle, with its large pieces where they belong."""
    segments, begin = list[memoryview](), 0
    for piece, place in zip(pieces, entry.places, strict=True):
        if place is not None:
            segments += [data[begin:place], piece]
            begin = place
    return [*segments, data[begin:]]


class _Missing:
    """Substitute in a memo for what could not be loaded, which fails on any use."""

    def __getattribute__(self, name: str) -> Any:
        raise UnpicklingError(SHARES)

    def _refuse(self, *_arguments: Any) -> Any:
        raise UnpicklingError(SHARES)

    __repr__ = __str__ = __hash__ = __eq__ = __bool__ = __len__ = __iter__ = __call__ = _refuse
