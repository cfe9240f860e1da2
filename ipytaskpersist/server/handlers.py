"""The addresses of the extension, all below ``<base URL>ipytaskpersist/api/``.

Who may use them is decided by the Jupyter server: its authentication, its authorization and its
check for cross-site requests hold for each of them as for its own handlers.

Outputs of tasks are passed on as they are, HTML included. They go into a notebook's document, and
whether a notebook is trusted is the notebook's matter: the front end sanitises the outputs of one
that is not, wherever they come from. Only outputs of imported tasks, which strangers may have made,
lose what could act.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web
from tornado.iostream import StreamClosedError

from ipytaskpersist.errors import BackgroundError, StoreError, TaskNotFound
from ipytaskpersist.filling.matching import Place
from ipytaskpersist.history.documents import encoded
from ipytaskpersist.history.fields import Fields, InvalidRecord
from ipytaskpersist.output import replay
from ipytaskpersist.panel import STATIC
from ipytaskpersist.server import requests
from ipytaskpersist.server.command_line import run_verb
from ipytaskpersist.server.hub import Hub
from ipytaskpersist.server.page import Followed, Page

SIGN_OF_LIFE_S = 20.0
"""Interval of empty lines in a response that has nothing to say: proxies end silent ones."""
SESSIONS_S = 2.0
"""Time that a server gets to list its kernels, which may be elsewhere."""
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
NAME = "ipytaskpersist"


def allowed_to(action: str) -> Callable[[Method], Method]:
    """Let in only who has signed in to the server, and may do this by its rules."""

    def guarded(method: Method) -> Method:
        return cast("Method", web.authenticated(authorized(action=action)(method)))

    return guarded


class Refusal(web.HTTPError):
    """An answer that says in one line why there is no other."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(status)
        self.line = line


class Handler(APIHandler):
    """What all of them share."""

    auth_resource = NAME

    def initialize(self, hub: Hub, readers: Executor, commands: Executor) -> None:
        """Take what the extension has made: threads that read, and threads that run commands."""
        self.hub = hub
        self.readers = readers
        self.commands = commands

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer an error with its line."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        if isinstance(error, Refusal):
            self.answer({"message": error.line})
        else:
            super().write_error(status_code, **kwargs)

    async def locator(self) -> requests.Locate:
        """Return a function that says where a notebook is, and which kernel it has."""
        sessions: Any = self.session_manager
        kernels: dict[str, str] = {}
        with suppress(Exception):  # without them, a notebook is known by its path alone
            listed = ensure_async(sessions.list_sessions())
            for each in await asyncio.wait_for(listed, SESSIONS_S):
                kernels[each["path"]] = each["kernel"]["id"]
        root = getattr(self.contents_manager, "root_dir", "")
        return lambda path: Place(absolute(root, path), kernels.get(path.strip("/")))

    async def read(self, call: Callable[..., T], *arguments: Any) -> T:
        """Return what a call gives that reads the store. Errors become answers."""
        loop = asyncio.get_running_loop()
        with errors_as_answers():
            return await loop.run_in_executor(self.readers, call, *arguments)

    async def answer_read(self, call: Callable[..., Any], *arguments: Any) -> None:
        """End with the JSON document that such a call gives, which may be large."""
        self.finish(await self.read(lambda: encoded(call(*arguments))))

    def fields(self) -> Fields:
        """Return the members of the request's body."""
        with errors_as_answers():
            return requests.fields_of(self.request.body)

    def answer(self, document: Any) -> None:
        """End with a JSON document."""
        self.finish(encoded(document))


def absolute(root: str, path: str = "") -> Path:
    """Return the path on the disk of what a server knows by a path of its own."""
    return Path(root or ".").expanduser().absolute() / path.strip("/")


@contextmanager
def errors_as_answers() -> Iterator[None]:
    """Turn errors of this package into ones of HTTP, with the same line."""
    try:
        yield
    except BackgroundError as error:
        raise Refusal(_status(error), str(error)) from error


def _status(error: BackgroundError) -> int:
    if isinstance(error, TaskNotFound):
        return 404
    if isinstance(error, StoreError):
        return 503
    return 400 if isinstance(error, InvalidRecord) else 409


class NotebookHandler(Handler):
    """The tasks of a notebook's cells, each with its outputs."""

    @allowed_to("read")
    async def post(self) -> None:
        """Answer with each cell that has a task."""
        known, locate = self.fields(), await self.locator()
        with errors_as_answers():
            place = requests.place_of(known, "path", locate)
            cells = requests.cells_of(known)
        if place is None:
            raise Refusal(400, "the request names no notebook (path)")
        await self.answer_read(self.hub.filled, place, cells)


class ListHandler(Handler):
    """The list of tasks, once."""

    @allowed_to("read")
    async def get(self) -> None:
        """Answer with the tasks of a notebook or all, which contain a text if one is given."""
        path, text = self.get_argument("notebook", ""), self.get_argument("search", "")
        place = (await self.locator())(path) if path else None
        wanted = self.get_argument("limit", "")
        with errors_as_answers():
            limit = requests.limit_of(Fields({"limit": int(wanted)} if wanted.isdecimal() else {}))
        await self.answer_read(self.hub.listed, place, text, limit)


class TaskHandler(Handler):
    """The verbs on one task."""

    @allowed_to("execute")
    async def post(self, task_id: str, verb: str) -> None:
        """Run a verb, as the command line does."""
        loop = asyncio.get_running_loop()
        with errors_as_answers():
            said = await loop.run_in_executor(self.commands, self._run, task_id, verb)
        self.answer({"said": said})

    def _run(self, task_id: str, verb: str) -> str:
        task = self.hub.task(task_id)
        if task is None:
            raise TaskNotFound(f"there is no task '{task_id}' any more")
        return run_verb(task, verb, self.hub.store.directory.root)


class OutputHandler(Handler):
    """All text of a task, as a file."""

    @allowed_to("read")
    async def get(self, task_id: str) -> None:
        """Send what the task wrote to its streams, in order, byte by byte."""
        task = await self.read(self.hub.task, task_id)
        if task is None:
            raise Refusal(404, f"there is no task '{task_id}' any more")
        name = f"task {task.number} {task.name}".strip().replace("/", "_") + ".txt"
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name)}")
        store = self.hub.manager.tasks.store_of(task)
        pieces = replay.stream_bytes(store, task.key)
        while (piece := await self.read(next, pieces, None)) is not None:
            self.write(piece)
            await self.flush()
        await self.finish(set_content_type="text/plain; charset=utf-8")


class PanelHandler(Handler):
    """The panel's own files, which the sidebar shares."""

    @allowed_to("read")
    async def get(self, name: str) -> None:
        """Send a file. A browser that has this version of it is told so by its tag."""
        self.set_header("Cache-Control", "private, no-cache")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        self.write(await self.read((STATIC / name).read_bytes))
        await self.finish(set_content_type=f"{kind}; charset=utf-8")


class EventsHandler(Handler):
    """One long response for each page, a line for each piece of news."""

    @allowed_to("read")
    async def post(self) -> None:
        """Tell the page what it lacks, as long as it is there."""
        known, locate = self.fields(), await self.locator()
        with errors_as_answers():
            wishes = requests.wishes_of(known, locate)
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        await self.flush()
        self._page = page = Page(wishes)
        try:
            await self.read(self.hub.join, page)
            await self._tell(page)
        except StreamClosedError:
            pass  # the page has gone
        finally:
            await self.read(self.hub.leave, page)

    _page: Page | None = None

    def on_connection_close(self) -> None:
        """Notice that the page has gone."""
        if self._page is not None:
            self._page.is_gone = True
            self._page.wake()

    async def _tell(self, page: Page) -> None:
        while not page.is_gone:
            try:
                await asyncio.wait_for(page.wait(), SIGN_OF_LIFE_S)
            except TimeoutError:
                await self._send(b"\n")
            for line in page.lines():
                await self._send(line)
            while (followed := page.next_lacking()) is not None:
                await self._tell_outputs(followed)

    async def _tell_outputs(self, followed: Followed) -> None:
        """Send all that the page lacks of one task, one message at a time."""
        document = followed.document
        while document is not None and followed.held.position != document.now.position:
            message = document.ready(followed.held)
            if message is None:
                message = await self.read(document.next, followed.held)
            if message is None:
                break
            followed.held = message.held
            await self._send(message.line)
        followed.rest()

    async def _send(self, line: bytes) -> None:
        """Send a line. Returns when the page has room for another one."""
        self.write(line)
        await self.flush()


def handlers(base_url: str) -> Iterator[tuple[str, type[Handler]]]:
    """Yield the addresses, as regular expressions."""
    base = f"{base_url.rstrip('/')}/{NAME}/api"
    task = r"(?P<task_id>[^/]+)"
    yield rf"{base}/notebook", NotebookHandler
    yield rf"{base}/events", EventsHandler
    yield rf"{base}/list", ListHandler
    yield rf"{base}/(?P<name>panel\.(?:js|css))", PanelHandler
    yield rf"{base}/tasks/{task}/output", OutputHandler
    yield rf"{base}/tasks/{task}/(?P<verb>[a-z]+)", TaskHandler
