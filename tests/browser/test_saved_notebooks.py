"""What a card in a saved notebook tells a reader without kernel, scripts or trust."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from stores import PIXEL

from browser.page import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser

UNTIL_TOLD = (
    "%%background --shell --timeout 150 patient\necho began\nuntil [ -e go ]; do sleep 0.05; done"
)
FAILS = f"""%%background divide
from IPython.display import HTML, display
print("dividing")
display({{"image/png": "{PIXEL}", "text/plain": "a figure"}}, raw=True)
display(HTML("<table><tr><td>0.93</td></tr></table>"))
1 / 0"""
STATES = ("running", "failed")


def saved(notebook: NotebookPage) -> Path:
    """Save a notebook with a card of a task that runs and one of a task that failed."""
    notebook.run_cell(UNTIL_TOLD).wait_output("began")
    notebook.run_cell(FAILS).wait_output("failed")
    outputs = [
        output
        for cell in notebook.save()["cells"]
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert len(outputs) == len(STATES)
    for output, state in zip(outputs, STATES, strict=True):
        assert state in output["data"]["text/html"]
        assert state in output["data"]["text/plain"]
        assert "<script" not in output["data"]["text/html"]
    return notebook.path


def test_a_saved_card_tells_state_and_time_without_scripts(
    make_notebook: Callable[..., NotebookPage], chromium: Browser, tmp_path: Path
) -> None:
    path = saved(make_notebook("lab", "7.4").load_extension())
    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", path, "--output-dir", tmp_path],
        check=True,
        capture_output=True,
    )
    context = chromium.new_context(java_script_enabled=False, offline=True)
    try:
        page = context.new_page()
        page.goto((tmp_path / f"{path.stem}.html").as_uri())
        cards = page.locator(".jp-OutputArea-output").filter(has_text="patient")
        cards.get_by_text("A picture from").wait_for(state="visible")
        assert "last seen running" in cards.inner_text()
        cards = page.locator(".jp-OutputArea-output").filter(has_text="divide")
        assert "failed" in cards.inner_text()
        assert "ZeroDivisionError" in cards.inner_text()
    finally:
        context.close()


def test_a_card_is_legible_in_a_notebook_that_is_not_trusted(
    make_notebook: Callable[..., NotebookPage], application: str
) -> None:
    path = saved(make_notebook(application, "7.4").load_extension())
    # What is trusted is a digest of the whole notebook.
    copy = nbformat.read(path, as_version=4)
    copy.metadata["title"] = "from somebody else"
    untrusted = path.with_stem(f"{path.stem}-copy")
    nbformat.write(copy, untrusted)
    notebook = make_notebook(application, "7.4", path=untrusted)
    assert not notebook.trusted
    running, failed = notebook.cell(1), notebook.cell(2)
    assert "last seen running" in running.text
    for cell, state in ((running, "running"), (failed, "failed")):
        assert state in cell.text
        assert cell.sticks_out() == []
    assert notebook.page.locator(".jp-OutputArea-output script").count() == 0
    # What the task has left is there: its figure, and everything else to be unfolded.
    assert failed.box.locator("section img").evaluate("(image) => image.naturalWidth") > 0
    summary = failed.box.locator("summary")
    assert summary.inner_text() == "All output: 1 line, 1 figure, 1 table, the traceback"
    summary.click()
    for part in ("[figure 1]", "0.93", "ZeroDivisionError: division by zero"):
        assert part in failed.box.locator("details").inner_text()
    notebook.screenshot(f"untrusted-{application}")
