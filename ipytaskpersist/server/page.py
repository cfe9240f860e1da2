"""What one page follows and lacks. It is told by one long-lived response."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.filling.matching import Place
from ipytaskpersist.history.documents import encoded
from ipytaskpersist.server.documents import Document, Held
from ipytaskpersist.server.task_document import TaskDocument
from ipytaskpersist.server.task_lists import TASKS, TaskList

LAUNCHED_AT_MOST = 1_000


@dataclass(slots=True)
class Followed:
    """A task that a page follows."""

    task: TaskRecord
    held: Held
    """What the page has. Its outputs are empty while there is no document."""
    document: Document | None = None
    """None while the page lacks nothing of an ended task."""

    def rest(self) -> None:
        """Keep nothing in memory for a task that has ended, and of which the page has all."""
        document = self.document
        if document is None or not document.task.state.is_final:
            return
        if self.held.position == document.now.position:
            self.document, self.held = None, Held(self.held.position)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a page asks to be told."""

    places: Mapping[str, Place]
    """Its notebooks, by their paths on the server."""
    follow: Mapping[str, str]
    """The position that it has of each task, by task id."""
    wants_list: bool = False
    list_place: Place | None = None
    """The notebook whose tasks it lists; None for every notebook's."""
    list_limit: int = TASKS
    seen: int | None = None
    """The last task that there was when the page asked for its cells."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A task that a notebook has launched."""

    path: str
    """The notebook's path on the server."""
    task: TaskDocument


class Page:
    """One page. The watcher says what is new, and the response takes it when it can be sent."""

    def __init__(self, wishes: Wishes) -> None:
        self.wishes = wishes
        self.notebooks: dict[str, int] = {}
        """Keys of its notebooks, as far as the store knows them."""
        self.seen = wishes.seen
        """The last task of which it was told that it was launched, or that it knows."""
        self.followed: dict[str, Followed] = {}
        """By the id of the task."""
        self.list: TaskList | None = None
        self.is_gone = False
        self._list_version = 0
        self._lacking: deque[str] = deque()
        """Ids of the tasks of which it lacks something, each once."""
        self._launched: deque[Launched] = deque(maxlen=LAUNCHED_AT_MOST)
        self._problem: str | None = None
        self._said: str | None = None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    # The watcher's thread.

    def lacks(self, task_id: str) -> None:
        """Note that a task that it follows has something new."""
        if task_id not in self._lacking:
            self._lacking.append(task_id)

    def launched(self, path: str, task: TaskDocument) -> None:
        """Note a task that one of its notebooks has launched."""
        self._launched.append(Launched(path, task))

    def has_problem(self, problem: str | None) -> None:
        """Note why the store cannot be read, or that it can."""
        self._problem = problem

    def begin_anew(self) -> None:
        """Go on with another file of the store: rows and lists mean something else there."""
        self.notebooks, self.list, self.seen = {}, None, None
        self._list_version = 0

    @property
    def has_news(self) -> bool:
        """Whether it lacks anything."""
        lacks_list = self.list is not None and self.list.version != self._list_version
        return bool(self._lacking or self._launched or lacks_list or self._problem != self._said)

    def wake(self) -> None:
        """Have the response look what there is. Any thread may call this."""
        self._loop.call_soon_threadsafe(self._news.set)

    # The response.

    async def wait(self) -> None:
        """Wait until there may be something."""
        await self._news.wait()
        self._news.clear()

    def lines(self) -> Iterator[bytes]:
        """Yield what it lacks but for outputs, one line at a time."""
        if self._problem != self._said:
            self._said = self._problem
            yield encoded({"problem": self._said}) + b"\n"
        while self._launched:
            launched = self._launched.popleft()
            yield encoded({"launched": asdict(launched)}) + b"\n"
        if self.list is not None and self.list.version != self._list_version:
            since, self._list_version = self._list_version, self.list.version
            yield from self.list.messages(since)

    def next_lacking(self) -> Followed | None:
        """Return the next task of which it lacks something."""
        while self._lacking:
            followed = self.followed.get(self._lacking.popleft())
            if followed is not None and followed.document is not None:
                return followed
        return None
