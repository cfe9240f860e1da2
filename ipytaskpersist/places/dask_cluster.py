"""The client of a Dask cluster: its connection, its workers, and what they answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ipytaskpersist.places import agent, dask_worker
from ipytaskpersist.places.bridge import Json, Message, Unreachable, last_line
from ipytaskpersist.places.messages import MessageDamaged, MessageReader, agent_text

CONNECT_S = 10.0
REPLY_S = 30.0
PATIENCE_S = 120.0
"""How long a worker is occupied for a task that is not started."""
WORKERS_S = 1.0
"""How long a list of the workers is valid."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
NAME = "ipytaskpersist"
_SCOPE = "exec(source, scope) or scope['install'](name, text)"
INSTALL = f"bool({_SCOPE})"
HOLD = f"(lambda worker: worker.hold(worker.AGENT, folder, topic, patience_s))({_SCOPE})"
ASK = (
    "(lambda worker: worker.answer_all(worker.AGENT, requests) if worker else b'')"
    "(__import__('sys').modules.get(name))"
)
RELEASE = "(lambda worker: worker.release(worker.AGENT, folder))(__import__('sys').modules[name])"


class DaskCluster:
    """A cluster, to which a connection is made when it is needed.

    All that is sent is text for `eval`, so neither the scheduler nor the workers need this package.
    As for every client of Dask, those who run the scheduler could run code in this process.
    """

    def __init__(self, spec: Json, note_choice: Callable[[str, str], None]) -> None:
        """`note_choice` is told of a task's folder and the worker that the scheduler has chosen."""
        self._spec = spec
        self._note_choice = note_choice
        self._topic = f"{NAME}-{uuid.uuid4().hex}"
        self._client: Any = None
        self._workers: list[str] = []
        self._workers_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._next_attempt_at = 0.0
        self._failure = ""

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler was there a moment ago."""
        return self._client is not None and self._client.status == "running"

    async def connect(self) -> None:
        """Connect with the scheduler, at growing intervals. Raises `Unreachable`."""
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
        self._pause_s, self._workers_at = FIRST_PAUSE_S, 0.0
        self._client.subscribe_topic(self._topic, self._note_event)

    async def close(self) -> None:
        """Leave the cluster. Nothing that was started ends by that."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _note_event(self, event: tuple[float, Any]) -> None:
        self._note_choice(str(event[1]["folder"]), str(event[1]["worker"]))

    # Its workers.

    async def workers(self) -> list[str]:
        """Return the addresses of the workers."""
        if time.monotonic() >= self._workers_at + WORKERS_S:
            cores = await asyncio.wait_for(self._client.ncores(), REPLY_S)
            self._workers, self._workers_at = list(cores), time.monotonic()
        return self._workers

    async def hosts(self) -> dict[str, str]:
        """Return the address of one worker of each host."""
        return {host_of(worker): worker for worker in await self.workers()}

    async def worker_of(self, host: str) -> str:
        """Return the address of a worker of a host. Raises `Unreachable` if there is none."""
        found = (await self.hosts()).get(host)
        if found is None:
            self._workers_at = 0.0
            raise Unreachable(
                f"no worker is left on {host}, where the task is; it goes on there, and is read "
                "when a worker is started on that host"
            )
        return found

    async def ask(self, worker: str, *requests: Message) -> list[Message]:
        """Have a worker's agent answer some requests. Raises `Unreachable`, `MessageDamaged`."""
        given = {"name": _module_name(), "requests": list(requests)}
        reply = await self._run(worker, ASK, given)
        if not reply:
            await self._run(worker, INSTALL, _module())
            reply = await self._run(worker, ASK, given)
        answers = list(MessageReader().feed(agent.GREETING + reply))
        if len(answers) != len(requests):
            raise MessageDamaged(f"{worker} answered {len(answers)} of {len(requests)} requests")
        return answers

    async def _run(self, worker: str, text: str, given: Json) -> Any:
        """Evaluate text on a worker, without a thread of its pool, all of which may be busy."""
        run = self._client.run(eval, text, given, workers=[worker], on_error="return")
        running = asyncio.ensure_future(run)
        ends_at = time.monotonic() + REPLY_S
        # The scheduler goes on trying to reach a worker that has died meanwhile.
        while not (await asyncio.wait({running}, timeout=WORKERS_S))[0]:
            is_there = worker in await self.workers()
            if not is_there or time.monotonic() > ends_at:
                running.cancel()
                why = f"no answer for {REPLY_S:.0f} s" if is_there else "it has died"
                raise Unreachable(f"the worker {worker} did not answer: {why}")
        reply = running.result()[worker]
        if isinstance(reply, Exception):
            self._workers_at = 0.0
            raise Unreachable(f"the worker {worker} did not answer: {in_words(reply)}")
        return reply

    # Its scheduler.

    def hold(self, folder: str) -> Any:
        """Have the scheduler choose and occupy a worker for a task. Returns the future of that."""
        given = {**_module(), "folder": folder, "topic": self._topic, "patience_s": PATIENCE_S}
        return self._client.submit(
            eval,
            HOLD,
            given,
            key=f"{NAME}-{PurePosixPath(folder).name}-{uuid.uuid4().hex[:8]}",
            workers=self._spec["workers"] or None,
            resources=self._spec["resources"] or None,
            allow_other_workers=False,
            retries=0,
            pure=False,
        )

    async def keep(self, folder: str, host: str, future: Any) -> None:
        """Remember the host of a task, and keep the worker occupied without this client."""
        from distributed import fire_and_forget

        await asyncio.wait_for(self._client.set_metadata([NAME, folder], host), REPLY_S)
        fire_and_forget(future)

    async def remembered(self, folder: str) -> str:
        """Return the host on which a task was started or was to be, empty if it was not."""
        asked = self._client.get_metadata([NAME, folder], default="")
        return str(await asyncio.wait_for(asked, REPLY_S))

    async def cancel(self, folder: str, future: Any, worker: str) -> None:
        """Do without a worker, or release the one that was chosen."""
        await asyncio.wait_for(self._client.cancel([future]), REPLY_S)
        if worker:
            # Dask frees the worker in its books, and lets run what runs there.
            await self.release(folder, worker)

    async def release(self, folder: str, worker: str) -> None:
        """Occupy a worker no longer for a task that is not started there. Raises `Unreachable`."""
        await self._run(worker, RELEASE, {"name": _module_name(), "folder": folder})

    async def why_waiting(self, future: Any) -> str:
        """Return why the scheduler has not chosen a worker, in words."""
        if not await self.workers():
            return "the cluster has no worker"
        asked = self._client.scheduler.get_task_status(keys=[future.key])
        states = await asyncio.wait_for(asked, REPLY_S)
        if states.get(future.key) == "no-worker":
            wanted = self._spec["resources"] or self._spec["workers"]
            return f"no worker of the cluster offers {wanted}"
        return "all workers are busy"


@cache
def _module_name() -> str:
    texts = dask_worker.own_text() + agent_text()
    return f"{NAME}_{sha256(texts.encode()).hexdigest()[:16]}"


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


async def connected_client(address: str) -> Any:
    """Return a client of the cluster. Raises `Unreachable`."""
    try:
        from distributed import Client
    except ImportError as error:
        raise Unreachable(
            f"Dask is not installed here ({error}): pip install 'ipytaskpersist[dask]'"
        ) from None
    here, there = await versions(address)
    # 2026.8 gets on with 2026.1, but with 2024.8 all that is said is that a connection was lost.
    if here.split(".")[0] != there.split(".")[0]:
        raise Unreachable(
            f"the Dask scheduler at {address} runs distributed {there}, and this environment has "
            f"{here}; they must be of the same year: pip install 'distributed=={there}' here, or "
            "update the cluster"
        )
    try:
        return await Client(address, asynchronous=True, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise Unreachable(_no_scheduler(address, error)) from None


async def versions(address: str) -> tuple[str, str]:
    """Return the versions of distributed here and at a scheduler. Raises `Unreachable`."""
    from importlib.metadata import version

    from distributed.core import rpc
    from distributed.security import Security

    connection = Security().get_connection_args("client")
    try:
        async with rpc(address, timeout=CONNECT_S, connection_args=connection) as scheduler:
            found = await asyncio.wait_for(scheduler.versions(), CONNECT_S)
            return version("distributed"), str(found["packages"]["distributed"])
    except (OSError, ValueError, TimeoutError, KeyError, TypeError) as error:
        raise Unreachable(_no_scheduler(address, error)) from None


def _no_scheduler(address: str, error: BaseException) -> str:
    return f"no Dask scheduler answers at {address}; is it running? ({in_words(error)})"
