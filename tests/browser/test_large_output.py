"""A long output reaches a page, although a Jupyter server drops what comes too fast."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from kernels import end_processes_of
from websocket import WebSocket, create_connection

from browser.server import JupyterServer

LINES, ASKED = 100_000, 65_000
PRINTING = f"""%%background lines
from IPython.display import HTML, display
for n in range({LINES}):
    print(f"line {{n:06}} {{'.' * 40}}")
    if n == 50_000: display(HTML("<b>in the middle</b>"))
"""


class Page:
    """A page that talks to a kernel through the server."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    def run(self, source: str) -> dict[str, Any]:
        """Run a cell and return its text by stream, its displays, and what else came."""
        header = {
            "msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "",
            "session": "page", "version": "5.3", "date": "",
        }  # fmt: skip
        content = {
            "code": source, "silent": False, "store_history": True, "user_expressions": {},
            "allow_stdin": False, "stop_on_error": True,
        }  # fmt: skip
        request = {
            "header": header, "parent_header": {}, "metadata": {}, "content": content,
            "channel": "shell", "buffers": [],
        }  # fmt: skip
        self._socket.send(json.dumps(request))
        found: dict[str, Any] = {"stdout": "", "stderr": "", "display_data": []}
        while True:
            message = json.loads(self._socket.recv())
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                found[content["name"]] += content["text"]
            elif kind == "display_data":
                found[kind].append(content["data"])
            elif kind == "status" and content["execution_state"] == "idle":
                return found


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page of a server, with a kernel of its own and the extension loaded."""
    pytest.importorskip("jupyterlab")
    state_dir = tmp_path / "state"
    with JupyterServer(tmp_path / "jupyter") as server, ExitStack() as cleanup:
        cleanup.callback(end_processes_of, state_dir)
        env = {"IPYTASKPERSIST_DIR": str(state_dir), "IPYTASKPERSIST_NOTEBOOK": "large.ipynb"}
        server.add_kernel("python3", str(version("ipykernel").rpartition(".")[0]), env)
        kernel = server.ask("POST", "kernels")["id"]
        address = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels"
        socket = create_connection(f"{address}?token={server.token}", timeout=60)
        cleanup.callback(socket.close)
        page = Page(socket)
        page.run("%load_ext ipytaskpersist")
        yield page


def test_a_long_output_reaches_the_page_and_says_what_is_left_out(page: Page) -> None:
    page.run(PRINTING)
    page.run("%bg_wait")

    folded = page.run("%bg_output lines")
    lines = folded["stdout"].splitlines()
    first = next(n for n, line in enumerate(lines) if int(line.split()[1]) != n)
    shown = [int(line.split()[1]) for line in lines]
    assert shown == [*range(first), *range(LINES - len(lines) + first, LINES)]
    assert f"… {LINES - len(lines):,} lines (" in folded["stderr"]
    assert "%bg_output 1 --save FILE" in folded["stderr"]
    assert [data["text/html"] for data in folded["display_data"]] == ["<b>in the middle</b>"]

    # What was asked for comes in full, slower than the server's limit.
    asked = page.run(f"%bg_output lines --stdout --tail {ASKED}")
    assert len(asked["stdout"].splitlines()) == ASKED
    assert "rate exceeded" not in asked["stderr"] + folded["stderr"]
