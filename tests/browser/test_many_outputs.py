"""Much output comes back folded, and the page answers while it fills."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from browser.many_outputs import LINE, LINES, TASKS, notebook_with_much
from browser.page import NotebookPage
from browser.server import JupyterServer
from browser.test_outputs_come_back import server, state_dir

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

__all__ = ["server", "state_dir"]

IS_BUSY = "document.querySelector('.ipytaskpersist-whole')?.getAttribute('aria-busy') === 'true'"
ANSWER = f"""addEventListener('click', () => {{ window.answered ??= {IS_BUSY}; }}, true)"""


def test_much_output_comes_back_folded_and_a_click_is_answered_while_all_of_it_is_shown(
    profile: BrowserContext, server: JupyterServer, state_dir: Path
) -> None:
    server.add_kernel("own", "7.4", {})
    path = notebook_with_much(server, state_dir)
    page = profile.new_page()
    notebook = NotebookPage(page, server, path, "lab").open()
    for each in range(TASKS):
        notebook.cell(each).wait_output(f"all of {each}")
    figures = notebook.cell(TASKS + 1).box.locator("img")
    notebook.until(lambda: figures.count() > 40, "the figures that JupyterLab shows at once")
    notebook.cell(TASKS + 1).wait_output("200 figures")
    assert re.search("8[0-9]{2},[0-9]{3} lines", notebook.cell(TASKS).text)

    # What was left out is a button away.
    notebook.cell(TASKS).box.get_by_role("button", name="show").click()
    notebook.until(lambda: page.evaluate(IS_BUSY), "text that is being shown")
    page.evaluate(ANSWER)
    notebook.cell(TASKS).box.locator(".cm-content").click()
    notebook.until(lambda: page.evaluate("window.answered !== undefined"), "the click")
    assert page.evaluate("window.answered"), "answered only when everything was there"
    whole = page.locator(".ipytaskpersist-whole[aria-busy=false]")
    notebook.until(whole.count, "the whole text", timeout_s=90)
    assert whole.evaluate("box => box.textContent.length") == LINES * (len(LINE) + 1)
    page.close()
