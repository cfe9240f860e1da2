"""The Model Context Protocol: tools for one client on standard streams, or for several over HTTP.

The SDK speaks the protocol. Tools run in threads, because they read a database and wait for tasks.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from threading import Event
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from ipytaskpersist.agents.captured_prints import divert_prints
from ipytaskpersist.agents.tools import Answer, CallEnded, Tool

NAME = "ipytaskpersist"
Context = ServerRequestContext[Any, Any]


def make_server(tools: Sequence[Tool], version: str, instructions: str) -> Server[Any]:
    """Return a server that offers these tools."""
    # The SDK prints tracebacks of clients that went away, and of its own warnings.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    logging.getLogger("mcp").propagate = False
    listed = types.ListToolsResult(tools=[_described(tool) for tool in tools])
    known = {tool.name: tool for tool in tools}

    async def list_tools(_context: Context, _params: Any) -> types.ListToolsResult:
        return listed

    async def call_tool(
        context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = known.get(params.name)
        if tool is None:
            said = f"this server has no such tool; it has {', '.join(known)}"
            return _result(Answer(json.dumps({"error": said}), is_error=True))
        return _result(await _call(context, tool, params.arguments or {}))

    return Server(
        NAME,
        version=version,
        instructions=instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _described(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=dict(tool.schema),
        annotations=types.ToolAnnotations(read_only_hint=tool.is_reading),
    )


async def _call(context: Context, tool: Tool, arguments: Mapping[str, Any]) -> Answer:
    """Run a tool in a thread, which ends soon after the client has stopped waiting."""
    has_ended = Event()

    def progress(done: float, total: float | None, said: str) -> None:
        if has_ended.is_set():
            raise CallEnded
        anyio.from_thread.run(context.session.report_progress, done, total, said)

    call = partial(tool.call, arguments, progress)
    try:
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
    finally:
        has_ended.set()


def _result(answer: Answer) -> types.CallToolResult:
    pictures = [
        types.ImageContent(type="image", data=each.base64, mime_type=each.mime)
        for each in answer.pictures
    ]
    text = types.TextContent(type="text", text=answer.text)
    return types.CallToolResult(content=[text, *pictures], is_error=answer.is_error)


def serve_stdio(server: Server[Any]) -> None:
    """Serve the client that has started this process, until it closes the stream."""

    async def serve() -> None:
        async with stdio_server() as (received, sent):
            divert_prints()  # the stream for the client has just been taken from `sys.stdout`
            await server.run(received, sent, server.create_initialization_options())

    anyio.run(serve)


def serve_http(server: Server[Any], port: int, token: str, *, announce: str) -> None:
    """Serve clients of this machine that know the token, until interrupted.

    `announce` is printed to stderr once it listens, with ``{address}`` and ``{token}`` filled in.
    """
    import uvicorn

    from ipytaskpersist.agents.tokens import BearerToken

    divert_prints()
    app = BearerToken(server.streamable_http_app(host=HOST), token)
    config = uvicorn.Config(app, host=HOST, port=port, log_config=None, lifespan="on")
    listening = config.bind_socket()
    address = f"http://{HOST}:{listening.getsockname()[1]}/mcp"
    print(announce.format(address=address, token=token), file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])


HOST = "127.0.0.1"
"""The server listens to nothing but this machine."""
