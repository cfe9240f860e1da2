"""The live panel in JupyterLab and Notebook 7: its buttons, and what it says without its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from browser.page import NotebookPage, PageCell

if TYPE_CHECKING:
    from playwright.sync_api import Locator

WORK = """%%background --shell --timeout 150 work
echo began
exec sleep 600
"""
BUSY = """import pathlib, time
pathlib.Path("busy").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.05)
"""


def opened(notebook: NotebookPage) -> tuple[PageCell, Locator]:
    """Run the cell that shows a panel; the cell, and the panel once it lists a running task."""
    cell = notebook.run_cell("%bg_panel")
    panel = cell.box.locator(".ipytp")
    notebook.until(
        lambda: panel.locator("tbody tr[data-state=running]").count(), "a running task in the panel"
    )
    return cell, panel


def test_a_task_is_cancelled_from_the_panel_while_a_cell_runs(
    notebook: NotebookPage, application: str, ipykernel: str
) -> None:
    card = notebook.run_cell(WORK)
    card.wait_output("began")
    _cell, panel = opened(notebook)
    busy = notebook.start_cell(BUSY)
    notebook.until((notebook.path.parent / "busy").exists, "a cell at work")
    panel.get_by_role("button", name="Cancel task 1").click()
    if ipykernel == "6.29":
        # Its kernel hears of a button only between two cells.
        note = panel.locator(".ipytp-note")
        notebook.until(
            lambda: "will happen when the running cell ends" in note.inner_text(),
            "word of the wait",
        )
        assert "running" in card.text
        (notebook.path.parent / "go").touch()
    card.wait_output("cancelled")
    assert busy.done is False or ipykernel == "6.29"
    notebook.until(
        lambda: panel.locator("tbody tr[data-state=cancelled]").count(), "the end in the panel"
    )
    (notebook.path.parent / "go").touch()
    busy.wait_done()
    assert "cancelled" in notebook.run_cell("%bg_list").text


def test_a_panel_without_its_kernel_says_so_and_can_do_no_more(notebook: NotebookPage) -> None:
    notebook.run_cell(WORK).wait_output("began")
    _cell, panel = opened(notebook)
    cancel = panel.get_by_role("button", name="Cancel task 1")
    assert cancel.is_enabled()
    notebook.restart_from_the_button()
    banner = panel.locator(".ipytp-banner")
    notebook.until(
        lambda: "gone" in banner.inner_text(), "the panel's word that its kernel is gone"
    )
    assert not cancel.is_enabled()
    notebook.load_extension()
    _again, panel = opened(notebook)
    panel.get_by_role("button", name="Cancel task 1").click()
    notebook.until(
        lambda: panel.locator("tbody tr[data-state=cancelled]").count(), "the end in the panel"
    )


def test_a_panel_can_be_looked_at_in_light_and_dark(
    make_notebook: Callable[..., NotebookPage], application: str
) -> None:
    notebook = make_notebook(application, "7.4").load_extension()
    notebook.run_cell('%%background divide\nprint("dividing")\n1 / 0').wait_output("failed")
    notebook.run_cell('%%background sum\nprint("adding")\nsum(range(100))').wait_output("completed")
    notebook.run_cell(WORK).wait_output("began")
    cell, panel = opened(notebook)
    notebook.until(lambda: panel.locator("tbody tr").count() == 3, "three tasks in the panel")
    assert cell.sticks_out(may_scroll=True) == []
    for is_dark in (False, True):
        notebook.dark(is_dark).show(cell)
        notebook.until(
            lambda is_dark=is_dark: panel.get_attribute("data-dark") == str(is_dark).lower(),
            "the panel in the page's theme",
        )
        notebook.screenshot(f"panel-{application}-{'dark' if is_dark else 'light'}")
