"""Bring back the values that one task has left at its place, when it has ended there.

They come before its end is recorded, so that both are in the store or none. A supervisor that takes
over from a dead one reads from the task's spool which they are, and begins again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import ResultRecord
from ipytaskpersist.errors import StoreError
from ipytaskpersist.places.far.keeper import PYTHON_FOLDER
from ipytaskpersist.runners.link import Json
from ipytaskpersist.runners.sending import PIECE_BYTES, Ask
from ipytaskpersist.values.travelling import (
    Arriving,
    Damaged,
    buffers_to_fetch,
    without_file,
)


class _Wanted(NamedTuple):
    """A file to bring, and the pickle for which it is brought: itself, or one that refers to it."""

    name: str
    pickle: str
    """The digest of the pickle."""


class Bringing:
    """The files of one task on their way back."""

    def __init__(
        self,
        ask: Ask,
        directory: StateDirectory,
        task_id: str,
        folder: str,
        results: list[ResultRecord],
        *,
        then: Callable[[list[ResultRecord]], None],
        is_unreachable: Callable[[Json], bool],
    ) -> None:
        """`then` is called once, with the records of what is here, and of what is not and why.

        `is_unreachable` says of an answer whether it is none; `go_on` asks again then.
        """
        self._ask, self._directory = ask, directory
        self._task_id, self._folder = task_id, folder
        self._results = results
        self._then, self._is_unreachable = then, is_unreachable
        digests = dict.fromkeys(each.digest for each in results if each.digest)
        self._wanted = deque(self._pickle(digest) for digest in digests)
        self._problems: dict[str, str] = {}
        """Why a pickle has not come, by its digest."""
        self._arriving: Arriving | None = None
        self._is_over = False
        self.is_silent = False
        """Whether the place did not answer."""

    def _pickle(self, digest: str) -> _Wanted:
        return _Wanted(self._directory.payload(self._task_id, digest).name, digest)

    def go_on(self) -> None:
        """Ask for the next piece."""
        self.is_silent = False
        if self._is_over:
            return
        while self._wanted and self._wanted[0].pickle in self._problems:
            self._wanted.popleft()
        if self._wanted:
            self._get(self._wanted[0])
        else:
            self._end()

    def give_up(self, why: str) -> None:
        """Bring no more."""
        if not self._is_over:
            self._problems.update({each.pickle: why for each in self._wanted})
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._discard()
        self._then(
            [
                without_file(each, self._problems[each.digest])
                if each.digest in self._problems
                else each
                for each in self._results
            ]
        )

    def _get(self, wanted: _Wanted) -> None:
        there = self._directory.payloads / self._task_id / wanted.name
        name = there.relative_to(self._directory.root)
        offset = 0 if self._arriving is None else self._arriving.size
        request = {
            "verb": "get",
            "folder": self._folder,
            "path": f"{self._folder}/{PYTHON_FOLDER}/{name}",
            "offset": offset,
            "at_most": PIECE_BYTES,
        }
        self._ask(request, partial(self._has_got, wanted), b"")

    def _has_got(self, wanted: _Wanted, answer: Json, data: bytes) -> None:
        if self._is_over:
            return
        self.is_silent = self._is_unreachable(answer)
        if self.is_silent:
            return
        try:
            self._take(wanted, answer, data)
        except (Damaged, StoreError) as error:
            self._problems[wanted.pickle] = str(error)
            self._discard()
        self.go_on()

    def _take(self, wanted: _Wanted, answer: Json, data: bytes) -> None:
        if "error" in answer:
            raise Damaged(f"it did not come back: {answer['error']}")
        if self._arriving is None:
            is_pickle = wanted == self._pickle(wanted.pickle)
            digest = wanted.pickle if is_pickle else ""
            self._arriving = Arriving(self._directory, self._task_id, wanted.name, digest)
        self._arriving.add(data)
        size = answer.get("size")
        if data and type(size) is int and self._arriving.size < size:
            return
        arrived, self._arriving = self._arriving, None
        try:
            path = arrived.finish()
        finally:
            arrived.discard()
        self._wanted.popleft()
        if wanted == self._pickle(wanted.pickle):
            names = buffers_to_fetch(self._directory, self._task_id, path)
            self._wanted.extend(_Wanted(name, wanted.pickle) for name in names)

    def _discard(self) -> None:
        if self._arriving is not None:
            self._arriving.discard()
            self._arriving = None
