"""Places of kind dask: tasks run beside the workers of a Dask cluster.

The scheduler chooses a worker by running a task of its own there, which lasts as long as ours
(`dask_worker.hold`). Everything else goes to that worker through `Client.run`, which needs no free
thread there. Dask runs the task of a dead worker again on another one, whatever it was told. So that
task starts nothing: only the bridge does, once, and only on the host that the scheduler has
remembered for the task by then.

The agent's files stay on the worker's host, and so does the keeper, which outlives the worker. Any
other worker of that host reads on. All that is sent is text for `eval`, so neither the scheduler nor
the workers need this package. As for every client of Dask, those who run the scheduler could run
code in this process.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ipytaskpersist.places import agent, dask_worker
from ipytaskpersist.places.bridge import (
    Json,
    Message,
    Streams,
    Unreachable,
    arguments,
    last_line,
    unreachable,
)
from ipytaskpersist.places.messages import MessageDamaged, MessageReader, agent_text

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10.0
REPLY_S = 30.0
RESERVE_S = 1.0
"""How long a request waits for a worker before it is answered that there is none yet."""
PATIENCE_S = 120.0
"""How long a worker is kept for a task that is not started."""
WORKERS_S = 1.0
"""How long a list of the workers is good for."""
PIECE_BYTES = 8 * 1024 * 1024
FIRST_POLL_S, LAST_POLL_S = 0.05, 0.5
"""How often workers are asked for news: often after some, then less."""
QUIET_POLLS = 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
METADATA = "ipytaskpersist"
_SCOPE = "exec(source, scope) or scope['install'](name, text)"
INSTALL = f"bool({_SCOPE})"
HOLD = f"(lambda worker: worker.hold(worker.AGENT, folder, topic, patience_s))({_SCOPE})"
ASK = (
    "(lambda worker: worker.answer_all(worker.AGENT, requests) if worker else b'')"
    "(__import__('sys').modules.get(name))"
)


@dataclass(slots=True)
class Reservation:
    """A worker for a task that is not started yet."""

    future: Future[Any]
    """The task of Dask that occupies the worker."""
    worker: str = ""
    """Its address, once the scheduler has chosen one."""
    has_files: bool = False
    """Whether files were brought there."""
    is_moved: bool = False
    """Whether the scheduler has chosen another host since then."""
    chosen: asyncio.Event = field(default_factory=asyncio.Event)


class DaskBridge:
    """Answers requests through the client of a cluster, which connects when it is needed."""

    def __init__(self, spec: Json) -> None:
        self._spec = spec
        self._topic = f"{METADATA}-{uuid.uuid4().hex}"
        self._client: Client | None = None
        self._reserved: dict[str, Reservation] = {}
        self._hosts: dict[str, str] = {}
        """The hosts of tasks that are known to be there."""
        self._workers: list[str] = []
        self._workers_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._next_attempt_at = 0.0
        self._failure = ""

    async def answer(self, request: Json, data: bytes, pause: agent.Pause) -> Message:
        """Answer a request. What cannot be done is an ``error`` in words."""
        verb = request.get("verb")
        try:
            await self._connect()
            if verb == "read":
                return await self._read(request, pause)
            if verb in _VERBS:
                return await _VERBS[verb](self, request, data)
            return {"error": f"there is no request {verb!r}"}, b""
        except Unreachable as error:
            return unreachable(str(error))
        except (OSError, ValueError, TimeoutError, MessageDamaged) as error:
            return unreachable(f"{self._name} did not answer: {in_words(error)}")
        except KeyError as missing:
            return {"error": f"the request lacks {missing}"}, b""

    @property
    def _name(self) -> str:
        return f"the Dask scheduler at {self._spec['address']}"

    # The connection.

    async def _connect(self) -> None:
        if self._client is not None and self._client.status == "running":
            return
        if time.monotonic() < self._next_attempt_at:
            raise Unreachable(self._failure)
        await self.close()
        try:
            self._client = await connected_client(self._spec["address"])
        except Unreachable as error:
            self._failure = str(error)
            self._next_attempt_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            raise
        self._pause_s = FIRST_PAUSE_S
        self._client.subscribe_topic(self._topic, self._note_choice)

    async def close(self) -> None:
        """Leave the cluster. Tasks that were started go on, and so does what is counted for them."""
        self._reserved.clear()
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _cluster(self) -> Client:
        assert self._client is not None
        return self._client

    async def _addresses(self) -> list[str]:
        """Return the addresses of the workers."""
        if time.monotonic() >= self._workers_at + WORKERS_S:
            cores = await asyncio.wait_for(self._cluster().ncores(), REPLY_S)
            self._workers, self._workers_at = list(cores), time.monotonic()
        return self._workers

    async def _worker_of(self, host: str) -> str:
        """Return the address of a worker on a host. Raises `Unreachable` without one."""
        found = next((each for each in await self._addresses() if host_of(each) == host), "")
        if not found:
            self._workers_at = 0.0
            raise Unreachable(
                f"no worker is left on {host}, where the task is; it goes on there, and is read "
                "when a worker is started on that host"
            )
        return found

    async def _ask(self, worker: str, requests: list[Message]) -> list[Message]:
        """Have a worker's agent answer some requests. Raises `Unreachable`, `MessageDamaged`."""
        given = {"name": _module_name(), "requests": requests}
        reply = await self._run(worker, ASK, given)
        if not reply:
            await self._run(worker, INSTALL, _module())
            reply = await self._run(worker, ASK, given)
        reader = MessageReader()
        answers = list(reader.feed(agent.GREETING + reply))
        if len(answers) != len(requests):
            raise MessageDamaged(f"{worker} answered {len(answers)} of {len(requests)} requests")
        return answers

    async def _run(self, worker: str, text: str, given: Json) -> Any:
        client = self._cluster()
        running = client.run(eval, text, given, workers=[worker], on_error="return")
        try:
            reply = (await asyncio.wait_for(running, REPLY_S))[worker]
        except TimeoutError:
            reply = TimeoutError(f"no answer for {REPLY_S:.0f} s")
        if isinstance(reply, Exception):
            self._workers_at = 0.0
            raise Unreachable(f"the worker {worker} did not answer: {in_words(reply)}")
        return reply

    # Where a task is.

    async def _find(self, folders: Iterable[str]) -> None:
        """Look on all hosts for tasks of which it is not known where they are."""
        unknown = [each for each in folders if each not in self._hosts]
        if not unknown:
            return
        request: Message = {"verb": "look", "folders": unknown}, b""
        for worker in {host_of(each): each for each in await self._addresses()}.values():
            content, _ = (await self._ask(worker, [request]))[0]
            for folder, look in zip(unknown, content["looks"], strict=True):
                # Hosts may share a file system: then each of them will do.
                if look["state"] != "absent":
                    self._hosts.setdefault(folder, host_of(worker))
        for folder in unknown:
            if folder not in self._hosts and (host := await self._remembered(folder)):
                self._hosts[folder] = host

    async def _remembered(self, folder: str) -> str:
        """Return the host on which a task was to be started, as the scheduler remembers it."""
        found = await self._cluster().get_metadata([METADATA, folder], default="")
        return str(found)

    async def _host(self, folder: str) -> str:
        """Return the host of a task, empty if it has none."""
        await self._find([folder])
        return self._hosts.get(folder, "")

    async def _reserve(self, folder: str) -> str:
        """Return a worker for a task: on its host, or that which the scheduler chooses.

        Empty if the scheduler has not chosen one yet.
        """
        if host := await self._host(folder):
            return await self._worker_of(host)
        reservation = self._reserved.get(folder)
        if reservation is None or reservation.future.done():
            reservation = self._reserved[folder] = Reservation(self._hold(folder))
        try:
            await asyncio.wait_for(reservation.chosen.wait(), RESERVE_S)
        except TimeoutError:
            return ""
        return reservation.worker

    def _hold(self, folder: str) -> Future[Any]:
        given = {**_module(), "folder": folder, "topic": self._topic, "patience_s": PATIENCE_S}
        return self._cluster().submit(
            eval,
            HOLD,
            given,
            key=f"{METADATA}-{PurePosixPath(folder).name}-{uuid.uuid4().hex[:8]}",
            workers=self._spec["workers"] or None,
            resources=self._spec["resources"] or None,
            allow_other_workers=False,
            retries=0,
            pure=False,
        )

    def _note_choice(self, event: tuple[float, Any]) -> None:
        """Take in that a worker has begun to hold a place for a task."""
        message = event[1]
        reservation = self._reserved.get(message["folder"])
        if reservation is None:
            return  # the task was started: its worker is dead, and Dask has tried another one
        worker = message["worker"]
        is_elsewhere = host_of(worker) != host_of(reservation.worker)
        reservation.is_moved |= reservation.has_files and is_elsewhere
        reservation.worker = worker
        reservation.chosen.set()

    async def _why_pending(self, folder: str) -> str:
        """Return why the scheduler has not chosen a worker, in words."""
        if not await self._addresses():
            return "the cluster has no worker"
        key = self._reserved[folder].future.key
        states = await self._cluster().scheduler.get_task_status(keys=[key])
        if states.get(key) == "no-worker":
            wanted = {**self._spec["resources"]}
            return f"no worker offers what it asks for: {wanted or self._spec['workers']}"
        return "all workers are busy"

    # The verbs.

    async def _hello(self, request: Json, data: bytes) -> Message:
        workers = await self._addresses()
        if not workers:
            return {"workers": 0}, b""
        content, _ = (await self._ask(workers[0], [(request, data)]))[0]
        return {**content, "workers": len(workers)}, b""

    async def _start(self, request: Json, data: bytes) -> Message:
        folder = request["folder"]
        worker = await self._reserve(folder)
        if not worker:
            return {"pending": True, "why": await self._why_pending(folder)}, b""
        if (reservation := self._reserved.get(folder)) is not None:
            if reservation.is_moved:
                return self._forget_move(folder)
            await self._settle(folder, reservation)
        content, _ = (await self._ask(worker, [(request, data)]))[0]
        return {**content, "worker": worker}, b""

    async def _settle(self, folder: str, reservation: Reservation) -> None:
        """Have the scheduler remember the host of a task, before it is started there."""
        from distributed import fire_and_forget

        host = host_of(reservation.worker)
        await self._cluster().set_metadata([METADATA, folder], host)
        # What occupies the worker for it stays there without this client.
        fire_and_forget(reservation.future)
        self._hosts[folder] = host
        del self._reserved[folder]

    def _forget_move(self, folder: str) -> Message:
        del self._reserved[folder]
        words = "the worker died before the task was started, and its files with it"
        return {"error": words, "again": True}, b""

    async def _put(self, request: Json, data: bytes) -> Message:
        folder = self._folder_of(request)
        worker = await self._reserve(folder)
        if not worker:
            return {"pending": True, "why": await self._why_pending(folder)}, b""
        if (reservation := self._reserved.get(folder)) is not None:
            if reservation.is_moved:
                return self._forget_move(folder)
            reservation.has_files = True
        return (await self._ask(worker, [(request, data)]))[0]

    async def _ask_host(self, request: Json, data: bytes) -> Message:
        """Have a request answered where its task is."""
        folder = self._folder_of(request)
        host = await self._host(folder)
        if not host:
            return {"error": f"no worker has the task's folder {folder}"}, b""
        return (await self._ask(await self._worker_of(host), [(request, data)]))[0]

    def _folder_of(self, request: Json) -> str:
        """Return the folder of the task that a request is about."""
        if "folder" in request:
            return str(request["folder"])
        path = PurePosixPath(request["path"] if "path" in request else request["pattern"])
        above = PurePosixPath(self._spec["folder"])
        known = [*self._hosts, *self._reserved]
        for folder in (*known, *(str(above / each) for each in path.parts)):
            if path.is_relative_to(folder):
                return folder
        raise KeyError("folder")

    async def _signal(self, request: Json, data: bytes) -> Message:
        folder = request["folder"]
        if request["what"] in ("end", "kill") and folder in self._reserved:
            await self._cluster().cancel([self._reserved.pop(folder).future])
            return {"state": "absent", "size": 0}, b""
        return await self._ask_host(request, data)

    async def _look(self, request: Json, _data: bytes) -> Message:
        folders = request["folders"]
        await self._find([each for each in folders if each not in self._reserved])
        looks = {
            folder: {"state": "pending", "size": 0, "why": await self._why_pending(folder)}
            for folder in folders
            if folder in self._reserved
        }
        for worker, theirs in (await self._by_worker(folders, looks)).items():
            asked: Message = {**request, "folders": theirs}, b""
            content, _ = (await self._ask(worker, [asked]))[0]
            looks.update(zip(theirs, content["looks"], strict=True))
        return {"looks": [looks[folder] for folder in folders]}, b""

    async def _by_worker(self, folders: list[str], looks: dict[str, Json]) -> dict[str, list[str]]:
        """Return folders by the worker that can be asked, and note why others cannot be."""
        found: dict[str, list[str]] = {}
        for folder in folders:
            if folder in looks:
                continue
            if folder not in self._hosts:
                looks[folder] = {"state": "absent", "size": 0}
                continue
            try:
                found.setdefault(await self._worker_of(self._hosts[folder]), []).append(folder)
            except Unreachable as error:
                looks[folder] = {"state": "unknown", "error": str(error), "size": 0}
        return found

    async def _forget(self, request: Json, data: bytes) -> Message:
        folders = request["folders"]
        await self._find(folders)
        looks: dict[str, Json] = {}
        kept: Json = {}
        for worker, theirs in (await self._by_worker(folders, looks)).items():
            content, _ = (await self._ask(worker, [({**request, "folders": theirs}, data)]))[0]
            kept.update(content["kept"])
            for folder in set(theirs) - set(kept):
                del self._hosts[folder]
        unknown = {each: look["error"] for each, look in looks.items() if "error" in look}
        return {"kept": {**kept, **unknown}}, b""

    # News of tasks.

    async def _read(self, request: Json, pause: agent.Pause) -> Message:
        """Ask the workers for news until there are some. A wait would block a worker's own loop."""
        ends_at = time.monotonic() + float(request.get("wait_s") or 0.0)
        polls = 0
        while True:
            content, data = await self._news(request)
            left_s = ends_at - time.monotonic()
            if data or any(look for _size, look in content["tasks"]) or left_s <= 0:
                return content, data
            poll_s = min(LAST_POLL_S, FIRST_POLL_S * (1 + polls / QUIET_POLLS))
            polls += 1
            if await asyncio.to_thread(pause, min(left_s, poll_s)):
                return content, data

    async def _news(self, request: Json) -> Message:
        """Return what the tasks have sent: one call to each worker, all of them at once."""
        tasks = {folder: [folder, offset] for folder, offset in request["tasks"]}
        await self._find(tasks)
        by_worker = await self._by_worker(list(tasks), {})
        at_most = min(request.get("at_most") or PIECE_BYTES, PIECE_BYTES)
        asked: list[list[Message]] = [
            [({"verb": "read", "tasks": [tasks[each] for each in theirs], "at_most": at_most}, b"")]
            for theirs in by_worker.values()
        ]
        calls = map(self._ask, by_worker, asked)
        found: dict[str, tuple[bytes, Json | None]] = {}
        for theirs, reply in zip(by_worker.values(), await asyncio.gather(*calls), strict=True):
            content, data = reply[0]
            for folder, (size, look) in zip(theirs, content["tasks"], strict=True):
                found[folder] = data[:size], look
                data = data[size:]
        news = [found.get(folder, (b"", None)) for folder in tasks]
        return {"tasks": [[len(data), look] for data, look in news]}, b"".join(
            data for data, _look in news
        )


_VERBS = {
    "hello": DaskBridge._hello,
    "start": DaskBridge._start,
    "put": DaskBridge._put,
    "get": DaskBridge._ask_host,
    "sizes": DaskBridge._ask_host,
    "signal": DaskBridge._signal,
    "look": DaskBridge._look,
    "forget": DaskBridge._forget,
}


@cache
def _module_name() -> str:
    texts = dask_worker.own_text() + agent_text()
    return f"ipytaskpersist_{sha256(texts.encode()).hexdigest()[:16]}"


def _module() -> Json:
    """Return what a worker needs to make the module that answers there."""
    name = _module_name()
    scope = {"__name__": name}
    return {"name": name, "source": dask_worker.own_text(), "text": agent_text(), "scope": scope}


def host_of(address: str) -> str:
    """Return the host of a worker, by the address at which it listens."""
    return urlsplit(address).hostname or address


def in_words(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return last_line(str(error)) or type(error).__name__


async def connected_client(address: str) -> Client:
    """Return a client of the cluster. Raises `Unreachable`."""
    from distributed import Client

    here, there = await versions(address)
    # Between versions the protocol changes, and then all that is said is that connections are lost.
    if here.split(".")[:2] != there.split(".")[:2]:
        raise Unreachable(
            f"the Dask scheduler at {address} runs distributed {there}, and this environment has "
            f"{here}; they must be of the same month: pip install 'distributed=={there}' here, or "
            "update the cluster"
        )
    try:
        return await Client(address, asynchronous=True, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise Unreachable(no_scheduler(address, error)) from None


async def versions(address: str) -> tuple[str, str]:
    """Return the versions of distributed here and at a scheduler. Raises `Unreachable`."""
    import distributed
    from distributed.core import rpc
    from distributed.security import Security

    connection = Security().get_connection_args("client")
    try:
        async with rpc(address, timeout=CONNECT_S, connection_args=connection) as scheduler:
            found = await asyncio.wait_for(scheduler.versions(), CONNECT_S)
            return distributed.__version__, str(found["packages"]["distributed"])
    except (OSError, ValueError, TimeoutError, KeyError, TypeError) as error:
        raise Unreachable(no_scheduler(address, error)) from None


def no_scheduler(address: str, error: BaseException) -> str:
    """Return that there is no scheduler, in words."""
    return f"no Dask scheduler answers at {address}; is it running? ({in_words(error)})"


async def serve(spec: Json) -> None:
    """Answer the requests one after another, until the supervisor has gone."""
    streams = Streams()
    bridge = DaskBridge(spec)
    try:
        while True:
            request, data = await asyncio.to_thread(streams.requests.take)
            streams.write(await bridge.answer(request, data, streams.requests.wait))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        await bridge.close()


def main() -> None:
    """Connect the standard streams with the agents of a cluster's workers."""
    spec, _state_directory = arguments()
    # What the client would print about lost connections is answered in words.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    asyncio.run(serve(spec))
