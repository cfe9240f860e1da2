"""Fetch the files that the user wants back from the place of a task that has ended there.

Each is beside its final name until it is complete. A file of the same name here is replaced.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import Progress
from ipytaskpersist.places.far.keeper import FILES_FOLDER
from ipytaskpersist.runners.link import Json
from ipytaskpersist.runners.sending import PIECE_BYTES, SAY_S, Ask
from ipytaskpersist.runners.sent_files import matches

MEGABYTE = 1_000_000


class Fetching:
    """The files of one task that are fetched."""

    def __init__(
        self,
        ask: Ask,
        folder: str,
        patterns: Sequence[str],
        into: Path,
        *,
        then: Callable[[list[str]], None],
        is_unreachable: Callable[[Json], bool],
        say: Callable[[Progress], None],
    ) -> None:
        """`folder` is the task's. `then` is called once, with what has not come and why.

        `is_unreachable` says of an answer whether it is none; `go_on` asks again then. `say` is
        called with how much has come, if that takes a while.
        """
        self._ask, self._folder, self._into = ask, folder, into
        self._patterns, self._files = deque(patterns), deque[tuple[str, int]]()
        self._known: set[str] = set()
        self._then, self._is_unreachable, self._say = then, is_unreachable, say
        self._problems: list[str] = []
        self._file: BinaryIO | None = None
        self._temporary = Path()
        self._offset = self._come_bytes = self._total_bytes = 0
        self._say_at = time.monotonic() + SAY_S
        self._is_over = False
        self.is_silent = False
        """Whether the place did not answer."""

    def go_on(self) -> None:
        """Ask for what is next."""
        self.is_silent = False
        if self._is_over:
            return
        if self._patterns:
            path = f"{self._folder}/{FILES_FOLDER}/{self._patterns[0]}"
            request = {"verb": "sizes", "folder": self._folder, "pattern": path}
            self._request(request, self._has_listed)
        elif self._files:
            path = f"{self._folder}/{FILES_FOLDER}/{self._files[0][0]}"
            request = {"verb": "get", "folder": self._folder, "path": path}
            more = {"offset": self._offset, "at_most": PIECE_BYTES}
            self._request({**request, **more}, self._has_got)
        else:
            self._end()

    def give_up(self, why: str) -> None:
        """Fetch no more."""
        if not self._is_over:
            left = [*self._patterns, *(name for name, _size in self._files)]
            self._problems += [f"{name} was not fetched: {why}" for name in left]
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._discard()
        self._then(self._problems)

    def _request(self, request: Json, take: Callable[[Json, bytes], None]) -> None:
        self._ask(request, partial(self._has_come, take), b"")

    def _has_come(self, take: Callable[[Json, bytes], None], answer: Json, data: bytes) -> None:
        if self._is_over:
            return
        self.is_silent = self._is_unreachable(answer)
        if not self.is_silent:
            take(answer, data)
            self.go_on()

    def _has_listed(self, answer: Json, _data: bytes) -> None:
        pattern = self._patterns.popleft()
        if "error" in answer:
            self._problems.append(f"{pattern} was not fetched: {answer['error']}")
            return
        found = [each for each in answer.get("files", ()) if self._is_wanted(pattern, each)]
        if not found:
            self._problems.append(f"nothing was there for --fetch {pattern}")
        for path, size, _changed_at in found:
            name = self._name(path)
            if name not in self._known:
                self._known.add(name)
                self._files.append((name, int(size)))
                self._total_bytes += int(size)

    def _is_wanted(self, pattern: str, listed: list[object]) -> bool:
        is_file = len(listed) == 3 and isinstance(listed[0], str) and type(listed[1]) is int
        return is_file and matches(pattern, self._name(str(listed[0])))

    def _name(self, path: str) -> str:
        """Return the path of a file in the task's folder, from its whole path over there."""
        task = self._folder.rpartition("/")[2]
        return path.partition(f"/{task}/{FILES_FOLDER}/")[2]

    def _has_got(self, answer: Json, data: bytes) -> None:
        name, _size = self._files[0]
        try:
            if "error" in answer:
                raise OSError(str(answer["error"]))
            if self._file is None:
                self._open(self._into / name)
            assert self._file is not None
            self._file.write(data)
            self._offset += len(data)
            self._come_bytes += len(data)
            size = answer.get("size")
            if not data or type(size) is not int or self._offset >= size:
                self._finish(self._into / name)
        except OSError as error:
            why = str(error) if error.errno is None else describe(error)
            self._problems.append(f"{name} was not fetched: {why}")
            self._discard()
            self._files.popleft()
        self._say_how_much()

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A supervisor after a dead one uses the same name, so that nothing is left of this one.
        task = self._folder.rpartition("/")[2]
        self._temporary = path.with_name(f".{path.name[:100]}.{task}.part")
        self._file, self._offset = self._temporary.open("wb"), 0

    def _finish(self, path: Path) -> None:
        assert self._file is not None
        self._file.close()
        self._temporary.replace(path)
        self._file, self._offset = None, 0
        self._files.popleft()

    def _discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._temporary.unlink()
        self._file, self._offset = None, 0

    def _say_how_much(self) -> None:
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SAY_S
            come, total = self._come_bytes / MEGABYTE, self._total_bytes / MEGABYTE
            what = legible(self._files[0][0]) if self._files else "files"
            self._say(Progress(round(come, 1), round(total, 1), f"MB fetched: {what}"))
