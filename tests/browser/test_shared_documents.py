"""The server-side executors: a document that the server holds, and that all its pages share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kernels import end_processes_of

from browser.page import NotebookPage
from browser.server import JupyterServer
from browser.test_outputs_come_back import SOURCES, all_shown, has_texts, is_live, wait_shown, wait_states

if TYPE_CHECKING:
    from playwright.sync_api import Browser, WebSocket

Open = Callable[[Path], "Watched"]

EXECUTORS = ("nbmodel-0.2", "documents-0.3")
SYNC, UPDATE = 0, 2


class Watched:
    """A page of a shared document, and how often it has written to the document."""

    def __init__(self, notebook: NotebookPage) -> None:
        self.notebook = notebook
        self.writes = 0
        notebook.page.on("websocket", self._watch)

    def _watch(self, socket: WebSocket) -> None:
        if "collaboration/room" in socket.url and "globalAwareness" not in socket.url:
            socket.on("framesent", self._sent)

    def _sent(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes) and list(frame[:2]) == [SYNC, UPDATE]:
            self.writes += 1


@pytest.fixture(params=EXECUTORS)
def server(
    request: pytest.FixtureRequest, chromium: Browser, place: None, tmp_path: Path
) -> Iterator[JupyterServer]:
    """A server with an executor of its own."""
    state_dir = tmp_path / "state"
    env = {"IPYTASKPERSIST_DIR": str(state_dir)}
    try:
        with JupyterServer(tmp_path, env, packages=request.param, autosave=True) as server:
            server.add_kernel("own", "7.4", {})
            yield server
    finally:
        end_processes_of(state_dir)


@pytest.fixture
def open_page(chromium: Browser, server: JupyterServer) -> Iterator[Open]:
    """Open a notebook in a browser of its own."""
    with ExitStack() as pages:

        def opened(path: Path) -> Watched:
            context = chromium.new_context(viewport={"width": 1200, "height": 900})
            pages.callback(context.close)
            watched = Watched(NotebookPage(context.new_page(), server, path, "lab"))
            watched.notebook.open()
            return watched

        yield opened


def test_it(open_page, server):
    import time
    path = server.add_notebook("own", "own")
    first = open_page(path)
    one = first.notebook.load_extension()
    for source in SOURCES:
        one.run_cell(source)
    has_texts(one, "red begins[\\s\\S]*3/3", "begins", "begins", "begins")
    one.until(lambda: one.cell(1).box.locator("img").count(), "the figure of the thread")
    wait_states(one, *["running"] * 4)
    print([len(x) for x in all_shown(one)])
    second = open_page(path)
    two = second.notebook
    wait_shown(two, all_shown(one), "while they run")
    print([len(x) for x in all_shown(two)])
    first.writes = second.writes = 0
    one.page.wait_for_timeout(3000)
    print("writes running", first.writes, second.writes)
    one.page.close()
    wait_states(two, *["running"] * 4)
    first.writes = second.writes = 0
    two.page.wait_for_timeout(3000)
    print("writes running, first closed", first.writes, second.writes)
    two.page.close()
    (path.parent / "go").touch()
    time.sleep(8)
    first = open_page(path); one = first.notebook
    second = open_page(path); two = second.notebook
    wait_states(one, "completed", "failed", "failed", "running")
    wait_shown(two, all_shown(one), "after they ended")
    for x in all_shown(two): print([(k, t[:150]) for k,t in x])
    server.kill()
    t=time.time()
    print("FILE", path.read_text()[:300], len(path.read_text()))
    one.until(lambda: not is_live(one), "lost")
    one.page.wait_for_timeout(3000)
    server.start_again()
    print('restarted', time.time()-t)
    for i in range(20):
        one.page.wait_for_timeout(1000)
        print(i, is_live(one), is_live(two), [[len(x), x[0][1]if x else None] for x in all_shown(one)],  [[len(x), x[0][1]if x else None] for x in all_shown(two)])
        if i==10: 
            one.screenshot('ends-after-kill')
            print([d.inner_text() for d in one.page.locator('.jp-Dialog').all()])
    third = open_page(path); three=third.notebook
    for i in range(5):
        one.page.wait_for_timeout(1000)
        print(i, [[len(x), x[0][1]if x else None] for x in all_shown(three)])
    for x in all_shown(three): print([(k, t[:150]) for k,t in x])
    print(server.log[-6000:])
