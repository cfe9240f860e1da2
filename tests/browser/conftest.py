"""Fixtures of the tests in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from kernels import PATIENCE, end_processes_of, until

from browser import needs
from browser.page import NotebookPage
from browser.server import JupyterServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
AT_ONCE = 2
"""Browsers, in all processes of a parallel run. Each keeps a core busy, and its kernels another."""
WAIT_FOR_A_PLACE_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test may wait for its place."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout((WAIT_FOR_A_PLACE_S + 180) * PATIENCE))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test in each application, by a line of ipykernel or of JupyterLab if it is for any."""
    if "ipykernel" in metafunc.fixturenames:
        metafunc.parametrize(("application", "ipykernel"), needs.pairs())
    elif "application" in metafunc.fixturenames:
        metafunc.parametrize("application", needs.APPLICATIONS)
    if "packages" in metafunc.fixturenames:
        metafunc.parametrize("packages", needs.front_ends())


# For the tests of this folder, not for the whole run: a browser driven from here leaves a running
# event loop in the thread, in which no other test could have one of its own.
@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    executable = needs.chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def profile(chromium: Browser) -> BrowserContext:
    """What the pages share: the cache of the applications' scripts, above all."""
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(30_000 * PATIENCE)
    return context


@pytest.fixture(scope="package")
def server(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """A Jupyter server of another environment than ours, for JupyterLab and Notebook 7."""
    with JupyterServer(tmp_path_factory.mktemp("jupyter"), extended=False) as server:
        yield server


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One of the places that there are for browsers, in all processes of a parallel run."""
    shared = tmp_path_factory.getbasetemp().parent
    files = [(shared / f"browser-{number}.lock").open("w") for number in range(AT_ONCE)]
    try:
        until(lambda: any(map(_lock, files)), WAIT_FOR_A_PLACE_S, "a place for a browser")
        yield
    finally:
        for file in files:
            file.close()


def _lock(file: IO[str]) -> bool:
    """Take the lock that is this file, unless somebody has it. Closing the file gives it back."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.fixture
def make_notebook(
    profile: BrowserContext,
    server: JupyterServer,
    place: None,
    tmp_path: Path,
) -> Iterator[Callable[..., NotebookPage]]:
    """Open notebooks of one state directory: `make_notebook(application, ipykernel)`.

    With `path`, that notebook file instead of an empty one.
    """
    state_dir = tmp_path / "state"
    name = tmp_path.name  # which is no other test's
    with ExitStack() as pages:

        def make(application: str, ipykernel: str, path: Path | None = None) -> NotebookPage:
            env = {"IPYTASKPERSIST_DIR": str(state_dir), "IPYTHONDIR": str(tmp_path / "ipython")}
            server.add_kernel(name, ipykernel, env)
            page = profile.new_page()
            pages.callback(page.close)
            notebook = NotebookPage(
                page, server, path or server.add_notebook(name, name), application
            )
            return notebook.open()

        try:
            yield make
        finally:
            pages.close()
            server.end_sessions()
            end_processes_of(state_dir)


@pytest.fixture
def notebook(
    make_notebook: Callable[..., NotebookPage], application: str, ipykernel: str
) -> NotebookPage:
    """A notebook on the page, with the extension loaded."""
    return make_notebook(application, ipykernel).load_extension()
