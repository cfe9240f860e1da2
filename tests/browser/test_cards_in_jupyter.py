"""Background cells as a person sees them: the card, the reload, the restart button."""

from __future__ import annotations

import re
from collections.abc import Callable

from browser.page import NotebookPage, PageCell
from browser.test_panel_in_jupyter import opened

SHELL_UNTIL_TOLD = """%%background --shell --timeout 150 {0}_patient
echo began
until [ -e {0} ]; do sleep 0.05; done
echo ended
"""
THREAD_UNTIL_TOLD = """%%background {0}_hopeful
import pathlib, time
print("began")
while not pathlib.Path("{0}").exists():
    time.sleep(0.05)
print("ended")
"""
SHOW_ALL = """
import ipytaskpersist
from IPython.display import display
for task in reversed(ipytaskpersist.tasks()):
    display(task)
"""


LOOKS = """() => {
    const card = document.querySelector('.ipytaskpersist-card');
    const style = getComputedStyle(card);
    const seen = (selector) => [...card.querySelectorAll(selector)].map((each) =>
        getComputedStyle(each).visibility).every((each) => each === 'visible');
    return [style.borderLeftStyle, style.borderLeftColor, seen('.ipytaskpersist-old'),
        seen('.ipytaskpersist-now'), card.innerText];
}"""
LIVE = ["solid", "rgb(47, 125, 225)", False, True]
STALE = ["dashed", "rgb(118, 124, 133)", True, False]


def launched(notebook: NotebookPage, word: str) -> tuple[PageCell, PageCell]:
    """Launch a command and a thread, which go on until they are told this word."""
    thread = notebook.run_cell(THREAD_UNTIL_TOLD.format(word))
    shell = notebook.run_cell(SHELL_UNTIL_TOLD.format(word))
    for cell in (thread, shell):
        cell.wait_output("began")
        assert f"{word}_" in cell.text
        assert "running" in cell.text
    return thread, shell


def tell(notebook: NotebookPage, word: str) -> None:
    (notebook.path.parent / word).touch()


def wait_looks(notebook: NotebookPage, wanted: list[object]) -> str:
    """Wait until the first card looks so; return what it says."""

    def is_so() -> bool:
        *found, text = notebook.page.evaluate(LOOKS)
        return bool(found == wanted) and (("last seen" in text) is (wanted is STALE))

    notebook.until(is_so, f"a card that looks so: {wanted}")
    return str(notebook.page.evaluate(LOOKS)[-1])


def test_what_cards_say_of_their_tasks_through_a_reload_and_the_restart_button(
    notebook: NotebookPage,
) -> None:
    # A card looks live while it is updated, and says that it is a picture when it is not.
    thread, shell = launched(notebook, "reload")
    clock = re.search(r"\d:\d\d", wait_looks(notebook, LIVE))
    assert clock
    thread.wait_output(f"(?!{clock.group()})0:\\d\\d")
    assert "updated" in wait_looks(notebook, LIVE)
    notebook.save()
    notebook.reload()
    said = wait_looks(notebook, STALE)
    for part in ("A picture from", "no longer follows the task", "updated", "shows all of it"):
        assert part in said
    assert "%bg_cancel" not in said
    shell.wait_output("last seen running")

    # The tasks have run on.
    listed = notebook.run_cell("%bg_list").text
    assert listed.count("running") == 2, listed
    tell(notebook, "reload")
    notebook.run_cell("%bg_wait 1 2")
    assert "ended" in notebook.run_cell("%bg_output reload_patient").text

    # A card goes from running to completed by itself.
    cells = launched(notebook, "alone")
    tell(notebook, "alone")
    for cell in cells:
        cell.wait_output("completed")
        assert "running" not in cell.text
        assert "ended" in cell.text
    listed = notebook.run_cell("%bg_list").text
    assert listed.count("completed") == 4, listed

    # Everything is there after the restart button.
    launched(notebook, "restart")
    notebook.restart_from_the_button()
    greeting = notebook.run_cell("%load_ext ipytaskpersist").text
    for part in ("While you were away", "still running", "_patient", "interrupted", "_hopeful"):
        assert part in greeting
    listed = notebook.run_cell("%bg_list").text
    assert "running" in listed
    assert "interrupted" in listed
    assert "began" in listed
    assert notebook.run_cell("%bg_output restart_hopeful").text.strip() == "began"
    tell(notebook, "restart")
    notebook.run_cell("%bg_wait restart_patient").wait_output("completed")
    assert notebook.run_cell("%bg_output restart_patient").text.split() == ["began", "ended"]


def test_cards_and_the_panel_can_be_looked_at_in_light_and_dark(
    make_notebook: Callable[..., NotebookPage], application: str
) -> None:
    notebook = make_notebook(application, "7.4").load_extension()
    notebook.run_cell(THREAD_UNTIL_TOLD.format("restart")).wait_output("began")
    notebook.restart_from_the_button().load_extension()
    notebook.run_cell('%%background divide\nprint("dividing")\n1 / 0').wait_output("failed")
    notebook.run_cell('%%background sum\nprint("adding")\nsum(range(100))').wait_output("completed")
    given_up = notebook.run_cell(
        "%%background --shell --timeout 150 download\necho 12 of 40 files; sleep 600"
    )
    given_up.wait_output("12 of 40 files")
    notebook.run_cell("%bg_cancel download")
    given_up.wait_output("cancelled")
    notebook.run_cell(SHELL_UNTIL_TOLD.format("go")).wait_output("began")
    shown = notebook.run_cell(SHOW_ALL)
    for state in ("interrupted", "failed", "completed", "cancelled", "running"):
        assert state in shown.text
    listed = notebook.run_cell("%bg_list")
    assert "ZeroDivisionError" in listed.text
    assert shown.sticks_out() == []
    cell, panel = opened(notebook)
    notebook.until(lambda: panel.locator("tbody tr").count() == 5, "five tasks in the panel")
    assert cell.sticks_out(may_scroll=True) == []
    for is_dark in (False, True):
        theme = "dark" if is_dark else "light"
        notebook.dark(is_dark).show(shown)
        notebook.screenshot(f"cards-{application}-{theme}")
        notebook.show(listed).screenshot(f"list-{application}-{theme}")
        notebook.show(cell)
        notebook.until(
            lambda is_dark=is_dark: panel.get_attribute("data-dark") == str(is_dark).lower(),
            "the panel in the page's theme",
        )
        notebook.screenshot(f"panel-{application}-{theme}")
