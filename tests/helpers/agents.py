"""A coding agent: the SDK's own client, and a real `jupyter bg mcp` that it talks to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import psutil
from anyio.from_thread import start_blocking_portal
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ListToolsResult
from programs import environment

CALL_S = 60.0
Progress = Callable[[float, float | None, str | None], None]


class Refused(Exception):
    """A tool has answered with an error."""


class Agent:
    """A client on the standard streams of a server of its own, or at an address."""

    def __init__(
        self,
        state_dir: Path,
        *flags: str,
        folder: Path,
        address: str = "",
        token: str = "",
        mode: str = "auto",
    ) -> None:
        self._cleanup = ExitStack()
        self._portal = self._cleanup.enter_context(start_blocking_portal())
        before = {child.pid for child in psutil.Process().children()}
        if address:
            headers = {"Authorization": f"Bearer {token}"}
            http = self._portal.call(partial(httpx2.AsyncClient, headers=headers, timeout=CALL_S))
            transport: Any = streamable_http_client(address, http_client=http)
        else:
            words = ["-m", "ipytaskpersist", "mcp", "--cwd", str(folder), *flags]
            transport = stdio_client(
                StdioServerParameters(
                    command=sys.executable, args=words, env=environment(state_dir)
                )
            )
        client: Any = self._portal.wrap_async_context_manager(Client(transport, mode=mode))
        self._client: Client = self._cleanup.enter_context(client)
        self._server = [child for child in psutil.Process().children() if child.pid not in before]

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def tools(self) -> ListToolsResult:
        return self._portal.call(self._client.list_tools)

    def result(
        self, tool: str, progress: Progress | None = None, **arguments: Any
    ) -> CallToolResult:
        async def told(done: float, total: float | None, said: str | None) -> None:
            if progress is not None:
                progress(done, total, said)

        call = partial(
            self._client.call_tool, tool, arguments, CALL_S,
            progress_callback=told if progress is not None else None,
        )  # fmt: skip
        found = self._portal.call(call)
        assert isinstance(found, CallToolResult)
        return found

    def call(self, tool: str, progress: Progress | None = None, **arguments: Any) -> Any:
        """Call a tool, and return the document that it answers. An error raises `Refused`."""
        found = self.result(tool, progress, **arguments)
        document = json.loads(text_of(found))
        if found.is_error:
            raise Refused(document["error"])
        return document

    def start(self, tool: str, **arguments: Any) -> Any:
        """Begin a call, and return a future of its document."""
        return self._portal.start_task_soon(partial(self._client.call_tool, tool, arguments))

    def kill(self) -> None:
        """Kill the server, and forget it."""
        for process in self._server:
            process.kill()
            process.wait(10)
        with suppress(Exception):  # the client complains that the server has gone
            self._cleanup.close()


def text_of(found: CallToolResult) -> str:
    """The text of an answer; pictures follow it."""
    first = found.content[0]
    assert first.type == "text"
    return first.text


def pictures_of(found: CallToolResult) -> Sequence[Any]:
    return [each for each in found.content if each.type == "image"]
