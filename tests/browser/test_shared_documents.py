"""The server-side executors: the server runs cells, and holds a document that its pages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import nbformat
import pytest
from kernels import end_processes_of

from browser.page import NotebookPage
from browser.server import JupyterServer
from browser.test_outputs_come_back import (
    CELLS,
    all_shown,
    has_texts,
    is_live,
    launch,
    state_dir,
    wait_alike,
    wait_states,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, WebSocket

__all__ = ["state_dir"]

EXECUTORS = ("nbmodel-0.2", "documents-0.3")
UPDATE = b"\x00\x02"
"""What a change of the document begins with, on its way to the server."""
HIDE = """isHidden => {
    Object.defineProperty(document, 'hidden', {configurable: true, get: () => isHidden});
    document.dispatchEvent(new Event('visibilitychange'));
}"""


class Page:
    """A page of a shared document, and how often it has changed the document."""

    def __init__(self, browser: BrowserContext, server: JupyterServer, path: Path) -> None:
        self.writes = 0
        page = browser.new_page()
        page.on("websocket", self._watch)
        self.notebook = NotebookPage(page, server, path, "lab")
        self.notebook.workspace = uuid4().hex
        self.notebook.open()

    def close(self) -> None:
        self.notebook.page.close()

    def hide(self) -> None:
        """Look at another tab."""
        self.notebook.page.evaluate(HIDE, True)

    def wait_writes(self, count: int = 1) -> None:
        """Wait until it has changed the document so often, from now on."""
        self.writes = 0

        def has_written() -> bool:
            self.notebook.page.title()  # what the page has sent is heard of while it is asked
            return self.writes >= count

        self.notebook.until(has_written, f"{count} changes of the document")

    def _watch(self, socket: WebSocket) -> None:
        if "/collaboration/room/" in socket.url:
            socket.on("framesent", self._sent)

    def _sent(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes) and frame.startswith(UPDATE):
            self.writes += 1


@pytest.fixture(params=EXECUTORS)
def server(
    request: pytest.FixtureRequest, chromium: Browser, place: None, tmp_path: Path, state_dir: Path
) -> Iterator[JupyterServer]:
    """A server that runs the cells, with a store of its own."""
    env = {"IPYTASKPERSIST_DIR": str(state_dir)}
    try:
        with JupyterServer(tmp_path, env, packages=request.param, autosave=True) as server:
            server.add_kernel("own", "7.4", {})
            yield server
    finally:
        end_processes_of(state_dir)


@pytest.fixture
def browsers(chromium: Browser, profile: BrowserContext) -> Iterator[list[BrowserContext]]:
    """Two that know nothing of each other: pages of one would not need the server."""
    other = chromium.new_context(viewport={"width": 1200, "height": 900})
    yield [profile, other]
    other.close()


def test_all_pages_of_a_shared_document_show_what_tasks_do(
    browsers: list[BrowserContext], server: JupyterServer
) -> None:
    path = server.add_notebook("own", "own")
    one = Page(browsers[0], server, path)
    one.notebook.load_extension()
    launch(one.notebook)
    # The executor drops what the kernel says of a card after the end of its cell.
    wait_states(one.notebook, *["running"] * 4)
    has_texts(one.notebook, "red begins[\\s\\S]*3/3", "begins", "begins", "begins")
    one.notebook.until(lambda: counts(one) == [4, 2, 2, 2], "the outputs of running tasks")

    # A second page shows the same, and does not write. What is shown is in the file, too.
    two = Page(browsers[1], server, path)
    wait_alike(two.notebook, one.notebook, "in a second page")
    two.writes = 0
    one.wait_writes(4)
    assert two.writes == 0
    one.notebook.until(lambda: counts_in(path) == [4, 2, 2, 2], "outputs in the file meanwhile")

    # The page that writes is hidden, and closed: the other one takes over. Both are closed.
    one.hide()
    two.wait_writes()
    one.close()
    wait_states(two.notebook, *["running"] * 4)
    two.close()
    (path.parent / "go").touch()
    one, two = (Page(browser, server, path) for browser in browsers)
    for page in (one, two):
        wait_states(page.notebook, "completed", "failed", "failed", "running")
        has_texts(page.notebook, "ends[\\s\\S]*the result", "ZeroDivisionError", "ends", "begins")
        page.notebook.until(lambda page=page: counts(page) == [6, 4, 2, 2], "each output once")
    wait_alike(two.notebook, one.notebook, "after they ended")

    # The server is killed, and its kernel ends with it; a new one is started.
    server.kill()
    one.notebook.until(lambda: not is_live(one.notebook), "word of a lost connection")
    server.start_again()
    ended = Page(browsers[0], server, path)
    for page in (one, two, ended):
        wait_states(page.notebook, "completed", "failed", "failed", "interrupted")
        wait_alike(page.notebook, ended.notebook, "after the server was killed")
        assert counts(page) == [6, 4, 2, 2]
    ended.notebook.until(lambda: counts_in(path) == [6, 4, 2, 2], "outputs in the file at the end")
    nbformat.validate(nbformat.read(path, as_version=4))
    for page in (one, two, ended):
        page.writes = 0
    ended.notebook.run_cell("'nothing of a task'")
    assert one.writes + two.writes == 0
    for page in (one, two, ended):
        page.close()


def counts(page: Page) -> list[int]:
    """How many outputs the cells show."""
    return [len(outputs) for outputs in all_shown(page.notebook)]


def counts_in(path: Path) -> list[int]:
    """How many outputs the cells have in the file; none while the server writes it."""
    try:
        cells = nbformat.read(path, as_version=4).cells
    except nbformat.reader.NotJSONError:
        return []
    return [len(cells[place].outputs) for place in CELLS if cells[place:] and cells[place].outputs]
