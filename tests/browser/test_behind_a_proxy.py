"""A server as JupyterHub has it: below a base URL, behind a proxy that breaks connections."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kernels import end_processes_of

from browser.proxy import CuttingProxy
from browser.server import JupyterServer
from browser.test_outputs_come_back import Open, is_live, open_page, state_dir

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["open_page", "state_dir"]

CUT_EVERY_S = 1.5
LINES = 8
SLOW = (
    "%%background --shell slow\nuntil [ -e go ]; do sleep 0.05; done\n"
    f"for each in $(seq {LINES}); do echo line $each; sleep 1; done"
)
MUCH = "%%background --shell much\nseq 3000"


@pytest.fixture
def server(
    chromium: Browser, place: None, tmp_path: Path, state_dir: Path
) -> Iterator[JupyterServer]:
    env = {"IPYTASKPERSIST_DIR": str(state_dir)}
    try:
        with JupyterServer(tmp_path, env, base_url="/user/ada/") as server:
            server.add_kernel("own", "7.4", {})
            yield server
    finally:
        end_processes_of(state_dir)


def test_a_page_gets_all_over_connections_that_break(
    open_page: Open, server: JupyterServer
) -> None:
    path = server.add_notebook("own", "own")
    with CuttingProxy(server.port) as proxy:
        behind = copy(server)
        behind.port = proxy.port
        page = open_page("lab", path, behind)
        page.load_extension()
        much = page.run_cell(MUCH)
        much.wait_output("completed[\\s\\S]*save as file")
        link = much.box.get_by_role("link", name="save as file")
        slow = page.run_cell(SLOW)
        slow.wait_output("running")
        with proxy.cutting(CUT_EVERY_S):
            before = proxy.cuts
            (path.parent / "go").touch()
            slow.wait_output("completed")
            assert proxy.cuts > before + LINES // 2
        page.until(lambda: is_live(page), "a connection, now that none is cut")
        lines = "".join(f"line {each}\n" for each in range(1, 1 + LINES))
        page.until(
            lambda: slow.outputs.last.inner_text().strip() == lines.strip(), "each line once"
        )
        assert slow.outputs.count() == 2
        address = link.get_attribute("href")
        assert address is not None
        assert address.startswith("/user/ada/ipytaskpersist/api/")
        saved = page.page.request.get(f"http://127.0.0.1:{proxy.port}{address}")
        assert saved.text() == "".join(f"{each}\n" for each in range(1, 3001))
