"""Send what one task is given to its place, file by file, before it is started there.

A file that other tasks have there already is linked instead. When the place does not answer, all of
it is begun again: what is shared is there by then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO

from ipytaskpersist.places.agent import FIRST_SENT, SHARED
from ipytaskpersist.runners.link import Json, Take
from ipytaskpersist.text.formatting import short_size
from ipytaskpersist.values.travelling import FileToSend

PIECE_BYTES = 4 * 1024 * 1024
SAY_S = 1.0
"""How often it is said how much is there."""
Ask = Callable[[Json, Take, bytes], None]


class Sending:
    """The files of one task on their way to its place."""

    def __init__(
        self,
        ask: Ask,
        folder: str,
        files: Sequence[FileToSend],
        *,
        then: Callable[[], None],
        on_refusal: Callable[[Json], None],
        is_wanted: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """`folder` is the task's. Of `then` and `on_refusal` one is called, once, at the end.

        `say` is called with how much is there, in words, if that takes a while.
        """
        self._ask, self._folder = ask, folder
        self._root = folder.rpartition("/")[0]
        self._files = deque([FileToSend(FIRST_SENT), *files])
        self._then, self._on_refusal = then, on_refusal
        self._is_wanted, self._say = is_wanted, say
        self._source: BinaryIO | None = None
        self._total_bytes = self._sent_bytes = 0
        self._say_at = time.monotonic() + SAY_S

    def begin(self) -> None:
        """Send the first file."""
        self._try(self._measure)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            self._close()
            self._on_refusal({"error": f"what it is to be given cannot be read ({error})"})

    def _measure(self) -> None:
        self._total_bytes = sum(file.size for file in self._files)
        self._next()

    def _next(self) -> None:
        if not self._is_wanted():
            return
        if not self._files:
            self._then()
            return
        file = self._files.popleft()
        if file.is_shared:
            there, shared = self._there(file), self._shared(file)
            request = {"verb": "link", "path": shared, "to": there}
            self._request(request, partial(self._has_linked, file))
        else:
            self._put(file)

    def _there(self, file: FileToSend) -> str:
        return f"{self._folder}/{file.name}"

    def _shared(self, file: FileToSend) -> str:
        return f"{self._root}/{SHARED}/{file.name.rpartition('/')[2]}"

    def _request(self, request: Json, take: Callable[[Json], None], data: bytes = b"") -> None:
        def answered(answer: Json, _data: bytes) -> None:
            if "error" in answer or answer.get("pending"):
                self._close()
                self._on_refusal(answer)
            else:
                self._try(partial(take, answer))

        whole = {**request, "folder": self._folder, "within": self._root}
        self._ask(whole, answered, data)

    def _has_linked(self, file: FileToSend, answer: Json) -> None:
        if answer.get("linked"):
            self._sent_bytes += file.size
            self._next()
        else:
            self._put(file)

    def _put(self, file: FileToSend) -> None:
        if file.path is not None:
            self._source = file.open()
        self._put_piece(file, 0)

    def _put_piece(self, file: FileToSend, offset: int) -> None:
        source = self._source
        data = file.content if source is None else source.read(PIECE_BYTES)
        end = offset + len(data)
        is_done = not data or end >= file.size
        request = {
            "verb": "put",
            "path": self._there(file),
            "offset": offset,
            "done": is_done,
            "executable": file.is_executable,
        }
        if is_done:
            self._close()
        self._request(request, partial(self._has_put, file, end, is_done=is_done), data)

    def _has_put(self, file: FileToSend, end: int, answer: Json, *, is_done: bool) -> None:
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SAY_S
            there, total = map(short_size, (self._sent_bytes + end, self._total_bytes))
            self._say(f"{there} of {total} are there")
        if not self._is_wanted():
            self._close()
        elif not is_done:
            self._put_piece(file, end)
        elif file.is_shared:
            self._sent_bytes += end
            request = {"verb": "link", "path": self._there(file), "to": self._shared(file)}
            self._request(request, lambda _answer: self._next())
        else:
            self._sent_bytes += end
            self._next()

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
