"""The live panel in JupyterLab and Notebook 7: its buttons, and what it says without its kernel."""

from __future__ import annotations

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


def test_the_buttons_of_a_panel_while_a_cell_runs_and_after_its_kernel_is_gone(
    notebook: NotebookPage, ipykernel: str
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

    # Without its kernel a panel says so, and can do no more. A new one takes over.
    notebook.run_cell(WORK).wait_output("began")
    cancel = panel.get_by_role("button", name="Cancel task 2")
    notebook.until(lambda: cancel.count() and cancel.is_enabled(), "the button of the second task")
    notebook.restart_from_the_button()
    banner = panel.locator(".ipytp-banner")
    notebook.until(
        lambda: "gone" in banner.inner_text(), "the panel's word that its kernel is gone"
    )
    assert not cancel.is_enabled()
    notebook.load_extension()
    _again, panel = opened(notebook)
    panel.get_by_role("button", name="Cancel task 2").click()
    notebook.until(
        lambda: panel.locator("tbody tr[data-state=cancelled]").count() == 2, "the end in the panel"
    )
