"""Places of kind dask: tasks run beside the workers of a Dask cluster.

The scheduler chooses a worker by running a task of its own there, which lasts as long as ours
(`dask_worker.hold`). Everything else goes to that worker through `Client.run`, which needs no free
thread there. Dask runs the task of a dead worker once more on another one, whatever it was told. So
that task starts nothing. Only the bridge does, and only on the host that the scheduler has
remembered for the task before.

The agent's files stay on the worker's host, and so does the keeper, which outlives the worker. Any
other worker of that host can be asked about the task.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ipytaskpersist.places import agent
from ipytaskpersist.places.bridge import (
    Json,
    Message,
    Streams,
    Unreachable,
    arguments,
    last_line,
    unreachable,
)
from ipytaskpersist.places.dask_cluster import DaskCluster, host_of, in_words
from ipytaskpersist.places.messages import MessageDamaged

RESERVE_S = 1.0
"""How long a request waits for a worker before it is answered that there is none yet."""
PIECE_BYTES = 8 * 1024 * 1024
FIRST_POLL_S, LAST_POLL_S = 0.05, 0.5
"""How often workers are asked for news: more often when there were some a moment ago."""
QUIET_POLLS = 20


@dataclass(slots=True)
class Reservation:
    """A worker for a task that is not started yet."""

    future: Any
    """The task of Dask that occupies the worker."""
    worker: str = ""
    """Its address, once the scheduler has chosen one."""
    chosen: asyncio.Event = field(default_factory=asyncio.Event)


class DaskBridge:
    """Answers requests through the client of a cluster, which connects when it is needed."""

    def __init__(self, spec: Json) -> None:
        self._spec = spec
        self._cluster = DaskCluster(spec, self._note_choice)
        self._reserved: dict[str, Reservation] = {}
        self._hosts: dict[str, str] = {}
        """The hosts of tasks that are known to be there."""
        self._file_hosts: dict[str, str] = {}
        """The hosts to which files were brought for tasks that are not started yet."""
        self._starting: set[str] = set()
        """Tasks whose host is settled, and which are just being started there."""
        self._releases: dict[str, asyncio.Future[None]] = {}

    async def answer(self, request: Json, data: bytes, pause: agent.Pause) -> Message:
        """Answer a request. What cannot be done is an ``error`` in words."""
        verb = request.get("verb")
        try:
            await self._connect()
        except (Unreachable, OSError, TimeoutError) as error:
            return unreachable(in_words(error), is_unsent=True)
        try:
            if verb == "read":
                return await self._read(request, pause)
            if verb in _VERBS:
                return await _VERBS[verb](self, request, data)
            return {"error": f"there is no request {verb!r}"}, b""
        except Unreachable as error:
            return unreachable(str(error))
        except (OSError, TimeoutError, MessageDamaged) as error:
            return unreachable(f"{self._spec['address']} did not answer: {in_words(error)}")
        except KeyError as missing:
            return {"error": f"the request lacks {missing}"}, b""
        except Exception as error:
            # Whatever a scheduler answers, the next request may be one that it can answer.
            return unreachable(f"{type(error).__name__}: {in_words(error)}")

    async def _connect(self) -> None:
        if not self._cluster.is_connected:
            # The scheduler has forgotten them with the connection.
            self._reserved.clear()
            await self._cluster.connect()

    async def close(self) -> None:
        """Leave the cluster. What was started goes on, and so does what occupies its worker."""
        await self._cluster.close()

    # Where a task is.

    async def _find(self, folders: Iterable[str]) -> None:
        """Look on all hosts for tasks of which it is not known where they are."""
        known = {**self._hosts, **self._reserved}
        unknown = [each for each in folders if each not in known]
        if not unknown:
            return
        request = {"verb": "look", "folders": unknown}
        for host, worker in (await self._cluster.hosts()).items():
            content, _ = await self._told(worker, request)
            for folder, look in zip(unknown, content["looks"], strict=True):
                # Hosts may share a file system: then each of them will do.
                if look["state"] != "absent":
                    self._hosts.setdefault(folder, host)
        for folder in unknown:
            if folder not in self._hosts and (host := await self._cluster.remembered(folder)):
                self._hosts[folder] = host

    async def _told(self, worker: str, request: Json) -> Message:
        """Return what a worker's agent answers. Raises `Unreachable` when that is an error."""
        ((content, data),) = await self._cluster.ask(worker, (request, b""))
        if "error" in content:
            raise Unreachable(f"the agent of {worker} answered: {last_line(str(content['error']))}")
        return content, data

    async def _choose(self, folder: str) -> str:
        """Return a worker for a task: on its host, or the one that the scheduler chooses.

        Empty if the scheduler has not chosen one yet.
        """
        await self._find([folder])
        if folder in self._hosts:
            return await self._cluster.worker_of(self._hosts[folder])
        reservation = self._reserved.get(folder)
        if reservation is None or reservation.future.done():
            reservation = self._reserved[folder] = Reservation(self._cluster.hold(folder))
        try:
            await asyncio.wait_for(reservation.chosen.wait(), RESERVE_S)
        except TimeoutError:
            return ""
        return reservation.worker

    def _note_choice(self, folder: str, worker: str) -> None:
        if reservation := self._reserved.get(folder):
            reservation.worker = worker
            reservation.chosen.set()
        elif folder not in self._starting and folder not in self._releases:
            # The task was started. Its worker has died, and Dask occupies another one for it.
            self._releases[folder] = asyncio.ensure_future(self._release(folder, worker))

    async def _release(self, folder: str, worker: str) -> None:
        try:
            await self._cluster.release(folder, worker)
        except (Unreachable, OSError, TimeoutError):
            pass  # the worker says again that it is occupied
        finally:
            del self._releases[folder]

    def _has_moved(self, folder: str, worker: str) -> bool:
        """Return whether the files of a task are on another host than its worker."""
        return self._file_hosts.get(folder, host_of(worker)) != host_of(worker)

    def _bring_again(self, folder: str) -> Message:
        host = self._file_hosts.pop(folder)
        words = f"the worker on {host} was lost before the task was started, and its files with it"
        return {"error": words, "again": True}, b""

    async def _why(self, folder: str) -> str:
        """Return why a task has not been started, in words."""
        reservation = self._reserved[folder]
        if reservation.worker:
            return f"the worker {reservation.worker} is ready for it"
        return await self._cluster.why_waiting(reservation.future)

    # The verbs.

    async def _hello(self, request: Json, data: bytes) -> Message:
        workers = await self._cluster.workers()
        if not workers:
            return {"workers": 0}, b""
        ((content, _),) = await self._cluster.ask(workers[0], (request, data))
        return {**content, "workers": len(workers)}, b""

    async def _start(self, request: Json, data: bytes) -> Message:
        folder = request["folder"]
        worker = await self._choose(folder)
        if not worker:
            return {"pending": True, "why": await self._why(folder)}, b""
        if self._has_moved(folder, worker):
            return self._bring_again(folder)
        self._starting.add(folder)
        try:
            if folder in self._reserved:
                await self._settle(folder)
            ((content, _),) = await self._cluster.ask(worker, (request, data))
        finally:
            self._starting.discard(folder)
        return {**content, "worker": worker}, b""

    async def _settle(self, folder: str) -> None:
        """Have the scheduler remember the host of a task, before it is started there."""
        reservation = self._reserved[folder]
        host = host_of(reservation.worker)
        await self._cluster.keep(folder, host, reservation.future)
        self._hosts[folder] = host
        del self._reserved[folder]
        self._file_hosts.pop(folder, None)

    async def _put(self, request: Json, data: bytes) -> Message:
        folder = self._folder_of(request)
        worker = await self._choose(folder)
        if not worker:
            return {"pending": True, "why": await self._why(folder)}, b""
        if self._has_moved(folder, worker):
            return self._bring_again(folder)
        if folder in self._reserved:
            self._file_hosts[folder] = host_of(worker)
        return (await self._cluster.ask(worker, (request, data)))[0]

    async def _ask_host(self, request: Json, data: bytes) -> Message:
        """Have a request answered where its task is."""
        folder = self._folder_of(request)
        await self._find([folder])
        if folder not in self._hosts:
            return {"error": f"no worker of the cluster has the task of {folder}"}, b""
        worker = await self._cluster.worker_of(self._hosts[folder])
        return (await self._cluster.ask(worker, (request, data)))[0]

    def _folder_of(self, request: Json) -> str:
        """Return the folder of the task that a request is about, or to which its path belongs."""
        if "folder" in request:
            return str(request["folder"])
        path = PurePosixPath(request["path"] if "path" in request else request["pattern"])
        above = PurePosixPath(self._spec["folder"])
        if path.is_relative_to(above) and path != above:
            return str(above / path.relative_to(above).parts[0])
        raise KeyError("folder")

    async def _signal(self, request: Json, data: bytes) -> Message:
        folder = request["folder"]
        if request["what"] in ("end", "kill") and folder in self._reserved:
            reservation = self._reserved.pop(folder)
            await self._cluster.cancel(folder, reservation.future, reservation.worker)
            return {"state": "absent", "size": 0}, b""
        return await self._ask_host(request, data)

    async def _look(self, request: Json, _data: bytes) -> Message:
        folders = request["folders"]
        await self._find(folders)
        looks = {
            folder: {"state": "pending", "size": 0, "why": await self._why(folder)}
            for folder in folders
            if folder in self._reserved
        }
        for worker, theirs in (await self._by_worker(folders, looks)).items():
            try:
                content, _ = await self._told(worker, {**request, "folders": theirs})
                looks.update(zip(theirs, content["looks"], strict=True))
            except Unreachable as error:
                looks.update(dict.fromkeys(theirs, _out_of_reach(error)))
        return {"looks": [looks[folder] for folder in folders]}, b""

    async def _by_worker(
        self, folders: Iterable[str], looks: dict[str, Json]
    ) -> dict[str, list[str]]:
        """Return folders by the worker that can be asked, and add a look at those without one."""
        found: dict[str, list[str]] = {}
        for folder in folders:
            if folder in looks or folder in self._reserved:
                continue
            if folder not in self._hosts:
                looks[folder] = {"state": "absent", "size": 0}
                continue
            try:
                worker = await self._cluster.worker_of(self._hosts[folder])
                found.setdefault(worker, []).append(folder)
            except Unreachable as error:
                looks[folder] = _out_of_reach(error)
        return found

    async def _forget(self, request: Json, _data: bytes) -> Message:
        folders = request["folders"]
        await self._find(folders)
        looks: dict[str, Json] = {}
        kept: Json = {}
        for worker, theirs in (await self._by_worker(folders, looks)).items():
            content, _ = await self._told(worker, {**request, "folders": theirs})
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
            if data or any(map(_is_news, content["tasks"])) or left_s <= 0:
                return content, data
            poll_s = min(LAST_POLL_S, FIRST_POLL_S * (1 + polls / QUIET_POLLS))
            polls += 1
            if await asyncio.to_thread(pause, min(left_s, poll_s)):
                return content, data

    async def _news(self, request: Json) -> Message:
        """Return what the tasks have sent: one call to each worker, all of them at once."""
        tasks = {folder: [folder, offset] for folder, offset in request["tasks"]}
        await self._find(tasks)
        looks: dict[str, Json] = {}
        by_worker = await self._by_worker(tasks, looks)
        at_most = min(request.get("at_most") or PIECE_BYTES, PIECE_BYTES)
        calls = [
            self._told(worker, {"verb": "read", "tasks": [tasks[each] for each in theirs],
                                "at_most": at_most})
            for worker, theirs in by_worker.items()
        ]  # fmt: skip
        found: dict[str, tuple[bytes, Json | None]] = {}
        replies = await asyncio.gather(*calls, return_exceptions=True)
        for theirs, reply in zip(by_worker.values(), replies, strict=True):
            if isinstance(reply, BaseException):
                continue  # the next time another worker is asked, or it is said that there is none
            content, data = reply
            for folder, (size, look) in zip(theirs, content["tasks"], strict=True):
                found[folder] = data[:size], look
                data = data[size:]
        news = [found.get(folder, (b"", looks.get(folder))) for folder in tasks]
        answers = [[len(data), look] for data, look in news]
        return {"tasks": answers}, b"".join(data for data, _look in news)


def _out_of_reach(error: Unreachable) -> Json:
    return {"state": "unknown", "error": str(error), "size": 0}


def _is_news(task: list[Any]) -> bool:
    """Return whether an answer about a task ends the wait. That its host is gone may last long."""
    _size, look = task
    return look is not None and look["state"] != "unknown"


_VERBS = {
    "hello": DaskBridge._hello,
    "start": DaskBridge._start,
    "put": DaskBridge._put,
    "link": DaskBridge._put,
    "get": DaskBridge._ask_host,
    "sizes": DaskBridge._ask_host,
    "signal": DaskBridge._signal,
    "look": DaskBridge._look,
    "forget": DaskBridge._forget,
}


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
    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
    asyncio.run(serve(spec))
