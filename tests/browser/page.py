"""A notebook as a person has it before them: a page in a browser, cells, buttons.

Every wait is for a condition and has a deadline; the error says what the page showed instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels import until

from browser.needs import ROOT
from browser.server import JupyterServer

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

SCREENSHOTS = ROOT / "build" / "screenshots"
WAIT_S = 40

ADDRESSES = {
    "lab": "lab/workspaces/{workspace}/tree/{notebook}",
    "notebook": "notebooks/{notebook}",
}
READY = """() => {
    const kernel = document.querySelector('.jp-KernelName');
    return kernel && /^\\s*(?!No Kernel)\\S/.test(kernel.textContent)
        && document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')
        && document.querySelector('.jp-Notebook .jp-CodeCell .cm-content');
}"""
OUTSIDE = """([output, area, mayScroll]) => {
    const box = area.getBoundingClientRect();
    const clips = element => getComputedStyle(element).overflowX !== 'visible';
    const isOutside = element => {
        const own = element.getBoundingClientRect();
        return own.width && (own.left < box.left - 1 || own.right > box.right + 1);
    };
    const isCut = element => {
        for (let above = element.parentElement; area.contains(above); above = above.parentElement) {
            const isFrame = above.contains(output) || above.matches('.jp-RenderedHTMLCommon');
            if (clips(above) && (mayScroll || !isFrame)) return true;
        }
        return false;
    };
    return [output, ...output.querySelectorAll('*')]
        .filter(each => isOutside(each) && !isCut(each))
        .map(each => each.outerHTML.slice(0, 200));
}"""


class PageCell:
    """One code cell of a notebook, by its place among the code cells."""

    def __init__(self, notebook: NotebookPage, place: int) -> None:
        self._notebook = notebook
        self.place = place
        self.box: Locator = notebook.page.locator(".jp-Notebook .jp-CodeCell").nth(place)
        self.outputs: Locator = self.box.locator(".jp-OutputArea-output")
        """Each output of it: a card, a stream, an error."""

    @property
    def text(self) -> str:
        """What its outputs show, as it can be read on the page."""
        return "\n".join(self.outputs.all_inner_texts())

    @property
    def done(self) -> bool:
        """Whether it has run to its end."""
        return re.search(r"\[\d+\]:", self._prompt) is not None

    @property
    def is_queued(self) -> bool:
        """Whether it runs, or will."""
        return "[*]:" in self._prompt

    @property
    def _prompt(self) -> str:
        return "".join(self.box.locator(".jp-InputPrompt").all_inner_texts()[:1])

    def wait_done(self, timeout_s: float = WAIT_S) -> PageCell:
        """Wait for its end."""
        self._notebook.until(lambda: self.done, f"the end of cell {self.place}", timeout_s)
        return self

    def wait_output(self, wanted: str, timeout_s: float = WAIT_S) -> str:
        """Wait until what it shows matches this regular expression; return what it shows."""
        pattern = re.compile(wanted)
        self.until(lambda: pattern.search(self.text), repr(wanted), timeout_s)
        return self.text

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for a condition of this cell."""
        self._notebook.until(condition, f"{what} in cell {self.place}", timeout_s)

    def type(self, source: str) -> PageCell:
        """Replace its source."""
        editor = self.box.locator(".cm-content")
        editor.click()
        editor.fill(source)
        return self

    def run(self) -> PageCell:
        """Press Shift and Enter in it: below the last cell a new one appears."""
        self.box.locator(".cm-content").press("Shift+Enter")
        return self

    def sticks_out(self, *, may_scroll: bool = False) -> list[str]:
        """The elements of its outputs that reach beyond its output area, to the side.

        With `may_scroll`, an output may be wider than the area and scroll inside it.
        """
        area = self.box.locator(".jp-OutputArea").first.element_handle()
        found: list[str] = []
        for output in self.outputs.element_handles():
            found += self._notebook.page.evaluate(OUTSIDE, [output, area, may_scroll])
        return found


class NotebookPage:
    """A notebook in JupyterLab (``lab``) or in Notebook 7 (``notebook``)."""

    def __init__(self, page: Page, server: JupyterServer, path: Path, application: str) -> None:
        self.page = page
        self.server = server
        self.path = path
        self.application = application
        self.workspace = path.stem
        """Of JupyterLab: two pages of one browser cannot share one."""
        self.dialogs: list[str] = []
        """What scripts have asked the person: `alert` and its like."""
        page.on("dialog", self._answer)

    # The page.

    def open(self) -> NotebookPage:
        """Go to the notebook and wait until its kernel is ready."""
        address = ADDRESSES[self.application].format(
            workspace=self.workspace, notebook=self.server.path_of(self.path)
        )
        self.page.goto(self.server.url(address))
        return self._ready()

    def reload(self) -> NotebookPage:
        """Press the browser's reload button. What was not saved is lost."""
        self.page.reload()
        return self._ready()

    def _ready(self) -> NotebookPage:
        self.until(lambda: self.page.evaluate(READY), "the notebook's kernel on the page", 60)
        return self

    def save(self) -> dict[str, Any]:
        """Save the notebook from the keyboard; return what is in its file."""
        import nbformat

        with self.page.expect_response(
            lambda got: got.request.method == "PUT" and "/api/contents/" in got.url
        ) as answer:
            self.page.locator(".jp-Notebook").first.press("Control+s")
        assert answer.value.ok, f"the notebook was not saved: {answer.value.status}"
        saved: dict[str, Any] = nbformat.read(self.path, as_version=4)
        return saved

    @property
    def trusted(self) -> bool:
        """Whether the page says that it trusts the notebook: its outputs may have scripts then."""
        warnings = (
            ".jp-StatusItem-trust [data-icon='ui-components:not-trusted']",
            ".jp-NotebookTrustedStatus[title^='JavaScript disabled']",
        )
        return self.page.locator(", ".join(warnings)).count() == 0

    def show(self, cell: PageCell) -> NotebookPage:
        """Scroll to a cell."""
        cell.box.scroll_into_view_if_needed()
        return self

    def screenshot(self, name: str) -> Path:
        """Keep a picture of the page in ``build/screenshots``."""
        file = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=file)
        return file

    def dark(self, is_dark: bool = True) -> NotebookPage:
        """Change the theme, as a person does for the whole system."""
        self.page.emulate_media(color_scheme="dark" if is_dark else "light")
        light = "false" if is_dark else "true"
        self.page.locator(f"body[data-jp-theme-light={light}]").wait_for(state="attached")
        self.page.locator("#jupyterlab-splash").wait_for(state="hidden")
        return self

    # Cells.

    def cell(self, place: int) -> PageCell:
        """The code cell at a place, from 0; -1 is the last."""
        count = self.page.locator(".jp-Notebook .jp-CodeCell").count()
        return PageCell(self, place if place >= 0 else count + place)

    def type(self, source: str) -> PageCell:
        """Type a source into the last cell, which is empty."""
        return self.cell(-1).type(source)

    def start_cell(self, source: str) -> PageCell:
        """Type a source into the last cell and run it; do not wait for its end."""
        cell = self.type(source).run()
        self.until(
            lambda: self.page.locator(".jp-Notebook .jp-CodeCell").count() > cell.place + 1,
            "a new cell below the last",
        )
        return cell

    def run_cell(self, source: str, timeout_s: float = WAIT_S) -> PageCell:
        """Type a source into the last cell, run it and wait for its end."""
        return self.start_cell(source).wait_done(timeout_s)

    def load_extension(self) -> NotebookPage:
        """Run the cell that every notebook with background cells begins with.

        The application may drop what it is asked just after its kernel has started: the prompt is
        empty again then, and a person presses the keys once more.
        """
        cell = self.start_cell("%load_ext ipytaskpersist")
        for _attempt in range(3):
            try:
                cell.wait_done(10)
            except AssertionError:
                if not cell.is_queued:
                    cell.run()
        cell.wait_done()
        return self

    # The kernel.

    @property
    def kernel_id(self) -> str:
        """The kernel that the server runs for this notebook."""
        kernel = self.server.kernel_of(self.path)
        assert kernel is not None, f"{self.path.name} has no kernel"
        return str(kernel["id"])

    def restart_from_the_button(self) -> NotebookPage:
        """Press the restart button, confirm, and wait until the server has restarted the kernel."""
        with self.page.expect_response(
            lambda got: got.request.method == "POST" and got.url.split("?")[0].endswith("/restart"),
            timeout=60_000,
        ) as answer:
            self.page.locator('[data-jp-item-name="restart"]').first.click()
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
        assert answer.value.ok, f"the kernel was not restarted: {answer.value.status}"
        self.until(
            lambda: (
                self.server.ask("GET", f"kernels/{self.kernel_id}")["execution_state"] == "idle"
            ),
            "an idle kernel after its restart",
        )
        return self

    # Waiting.

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
        """Wait for a condition; a picture of the page is kept where it does not come."""
        try:
            return until(condition, timeout_s, what)
        except AssertionError as error:
            picture = self.screenshot(f"failed-{self.path.stem}")
            cells = self.page.locator(".jp-Notebook .jp-CodeCell").all_inner_texts()
            raise AssertionError(f"{error}\n{picture}\n" + "\n---\n".join(cells)) from None

    def _answer(self, dialog: Any) -> None:
        if dialog.type == "beforeunload":
            dialog.accept()
            return
        self.dialogs.append(dialog.message)
        dialog.dismiss()
