"""How long a page in a browser stands still while much output comes back.

It uses the browser, the server and the notebook of the tests, and what they need.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.results import BenchmarkError, Row

TESTS = Path(__file__).parents[1] / "tests"
TURNS = 3
LONGEST_FRAME_MS = 100
WATCH = """
window.frames = [];
let last = performance.now();
const next = now => {
    if (window.beganAt) window.frames.push(now - last);
    last = now;
    requestAnimationFrame(next);
};
requestAnimationFrame(next);
setInterval(() => {
    const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
    const filled = cells.filter(each => each.querySelector('.jp-OutputArea-output'));
    if (filled.length) window.beganAt ??= performance.now();
    if (filled.length && filled.length === cells.length) window.filledAt ??= performance.now();
}, 5);
"""
LONGEST = "Math.max(...window.frames)"


def frames(bench: Bench) -> list[Row]:
    """The longest frames of a page that is filled, and of one that shows 50 MB of text."""
    sys.path[:0] = [str(TESTS), str(TESTS / "helpers")]
    try:
        from browser import many_outputs, needs
        from browser.conftest import ARGUMENTS
        from browser.server import JupyterServer
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BenchmarkError(f"{error.name} is missing: make test installs it") from None
    executable = next(filter(None, map(needs.shutil.which, needs.CHROMIUMS)), None)
    if executable is None:
        raise BenchmarkError("no Chromium: make test-browser installs it")
    state, folder = bench.new_state(), bench.new_file()
    folder.mkdir()
    bench.say("20 tasks, 50 MB of text and 200 figures in a page")
    with (
        JupyterServer(folder, {"IPYTASKPERSIST_DIR": str(state)}) as server,
        sync_playwright() as playwright,
    ):
        server.add_kernel("own", "7.4", {})
        path = many_outputs.notebook_with_much(server, state)
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        measured = [_measured(context, server, path) for _ in range(TURNS)]
        browser.close()
    took, filling, showing = zip(*measured, strict=True)
    return [
        Row("frames", "from the first outputs in a page to those of all 22 cells", "ms", took),
        Row("frames", "longest frame meanwhile", "ms", filling).at_most(LONGEST_FRAME_MS),
        Row("frames", "longest frame while 50 MB of text are shown", "ms", showing).at_most(
            LONGEST_FRAME_MS
        ),
    ]


def _measured(context: Any, server: Any, path: Path) -> tuple[float, float, float]:
    from browser.many_outputs import TASKS
    from browser.page import NotebookPage

    page = context.new_page()
    page.add_init_script(WATCH)
    notebook = NotebookPage(page, server, path, "lab").open()
    figures = notebook.cell(TASKS + 1).box.locator("img")
    notebook.until(lambda: page.evaluate("window.filledAt") and figures.count() > 40, "all cells")
    took, filling = page.evaluate(f"[window.filledAt - window.beganAt, {LONGEST}]")
    notebook.cell(TASKS).box.get_by_role("button", name="show").click()
    page.evaluate("window.frames = []")
    whole = page.locator(".ipytaskpersist-whole[aria-busy=false]")
    notebook.until(whole.count, "the whole text", timeout_s=90)
    showing = page.evaluate(LONGEST)
    page.close()
    return took, filling, showing
