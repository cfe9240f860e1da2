"""Background cells as a person sees them: the card, the reload, the restart button."""

from __future__ import annotations

import re
from collections.abc import Callable

from browser.page import NotebookPage, PageCell
from browser.test_panel_in_jupyter import opened

SHELL_UNTIL_TOLD = """%%background --shell --timeout 150 patient
echo began
until [ -e go ]; do sleep 0.05; done
echo ended
"""
THREAD_UNTIL_TOLD = """%%background hopeful
import pathlib, time
print("began")
while not pathlib.Path("go").exists():
    time.sleep(0.05)
print("ended")
"""
TELL = "import pathlib; pathlib.Path('go').touch()"
SHOW_ALL = """
import ipytaskpersist
from IPython.display import display
for task in reversed(ipytaskpersist.tasks()):
    display(task)
"""


LOOKS = """cell => {
    const card = cell.querySelector('.ipytaskpersist-card');
    const style = getComputedStyle(card);
    const seen = (selector) => [...card.querySelectorAll(selector)].map((each) =>
        getComputedStyle(each).visibility).every((each) => each === 'visible');
    return [style.borderLeftStyle, style.borderLeftColor, seen('.ipytaskpersist-old'),
        seen('.ipytaskpersist-now'), card.innerText];
}"""
LIVE = ["solid", "rgb(47, 125, 225)", False, True]
STALE = ["dashed", "rgb(118, 124, 133)", True, False]


def wait_looks(cell: PageCell, wanted: list[object], said: str = "") -> str:
    """Wait until a cell's card looks so and what it says matches; return what it says."""

    def is_so() -> bool:
        *found, text = cell.box.evaluate(LOOKS)
        is_stale = "last seen" in text
        return found == wanted and is_stale is (wanted is STALE) and bool(re.search(said, text))

    cell.until(is_so, f"a card that looks so: {wanted}")
    return str(cell.box.evaluate(LOOKS)[-1])


def wait_moving(cell: PageCell) -> None:
    """Wait until a cell's card looks live and its clock has moved on."""
    clock = re.search(r"\d:\d\d", wait_looks(cell, LIVE))
    assert clock
    wait_looks(cell, LIVE, f"(?!{clock.group()})0:\\d\\d")


def test_cards_follow_their_tasks_again_in_a_page_that_is_reloaded_while_the_kernel_lives(
    notebook: NotebookPage,
) -> None:
    shell, thread = notebook.run_cell(SHELL_UNTIL_TOLD), notebook.run_cell(THREAD_UNTIL_TOLD)
    for cell, name in ((shell, "patient"), (thread, "hopeful")):
        cell.wait_output("began")
        assert name in cell.text
        wait_moving(cell)
    notebook.save()
    notebook.reload()
    for cell in (shell, thread):
        wait_moving(cell)
    notebook.run_cell(TELL)
    for cell in (shell, thread):
        cell.wait_output("completed")
        assert "running" not in cell.text
        assert "ended" in cell.text
    assert [len(cell["outputs"]) for cell in notebook.save()["cells"][1:3]] == [1, 1]


def test_a_card_says_that_it_is_a_picture_when_its_kernel_is_gone_until_another_brings_it_back(
    make_notebook: Callable[..., NotebookPage], application: str
) -> None:
    notebook = make_notebook(application, "7.4").load_extension()
    shell, thread = notebook.run_cell(SHELL_UNTIL_TOLD), notebook.run_cell(THREAD_UNTIL_TOLD)
    for cell in (shell, thread):
        cell.wait_output("began")
    notebook.save()
    notebook.reload()
    for cell in (shell, thread):
        wait_moving(cell)
    notebook.restart_from_the_button()
    for reload in (False, True):
        if reload:
            notebook.reload()
        said = wait_looks(thread, STALE)
        for part in ("A picture from", "no longer follows the task", "updated", "shows all of it"):
            assert part in said
        assert "%bg_cancel" not in said
        assert "Error" not in notebook.page.locator(".jp-Notebook").inner_text()
    greeting = notebook.run_cell("%load_ext ipytaskpersist").text
    for part in ("While you were away", "still running", "patient", "interrupted", "hopeful"):
        assert part in greeting
    listed = notebook.run_cell("%bg_list").text
    for part in ("running", "interrupted", "began"):
        assert part in listed
    assert notebook.run_cell("%bg_output hopeful").text.strip() == "began"
    # The next session's first task brings the cards of the one before.
    notebook.run_cell(SHELL_UNTIL_TOLD.replace("patient", "next"))
    thread.wait_output("interrupted")
    wait_moving(shell)
    notebook.run_cell(TELL)
    shell.wait_output("completed")
    assert notebook.run_cell("%bg_output patient").text.split() == ["began", "ended"]


def test_cards_and_the_panel_can_be_looked_at_in_light_and_dark(
    make_notebook: Callable[..., NotebookPage], application: str
) -> None:
    notebook = make_notebook(application, "7.4").load_extension()
    notebook.run_cell(THREAD_UNTIL_TOLD).wait_output("began")
    notebook.restart_from_the_button().load_extension()
    notebook.run_cell('%%background divide\nprint("dividing")\n1 / 0').wait_output("failed")
    notebook.run_cell('%%background sum\nprint("adding")\nsum(range(100))').wait_output("completed")
    given_up = notebook.run_cell(
        "%%background --shell --timeout 150 download\necho 12 of 40 files; sleep 600"
    )
    given_up.wait_output("12 of 40 files")
    notebook.run_cell("%bg_cancel download")
    given_up.wait_output("cancelled")
    notebook.run_cell(SHELL_UNTIL_TOLD).wait_output("began")
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
