"""Background cells as a person sees them: the card, the reload, the restart button."""

from __future__ import annotations

import re
from collections.abc import Callable

from browser.page import NotebookPage

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


def test_a_card_goes_from_running_to_completed_by_itself(notebook: NotebookPage) -> None:
    shell, thread = notebook.run_cell(SHELL_UNTIL_TOLD), notebook.run_cell(THREAD_UNTIL_TOLD)
    for cell, name in ((shell, "patient"), (thread, "hopeful")):
        cell.wait_output("running")
        assert name in cell.text
    notebook.run_cell(TELL)
    for cell in (shell, thread):
        cell.wait_output("completed")
        assert "running" not in cell.text
        assert "ended" in cell.text


def test_a_task_runs_on_when_the_page_is_reloaded_and_its_old_card_says_of_when_it_is(
    notebook: NotebookPage,
) -> None:
    shell, thread = notebook.run_cell(SHELL_UNTIL_TOLD), notebook.run_cell(THREAD_UNTIL_TOLD)
    for cell in (shell, thread):
        cell.wait_output("began")
    notebook.save()
    notebook.reload()
    for cell in (shell, thread):
        cell.wait_output("last seen running")
    listed = notebook.run_cell("%bg_list").text
    assert listed.count("running") == 2, listed
    notebook.run_cell(TELL)
    notebook.run_cell("%bg_wait 1 2")
    listed = notebook.run_cell("%bg_list").text
    assert listed.count("completed") == 2, listed
    assert "ended" in notebook.run_cell("%bg_output 1").text


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


def test_a_card_looks_live_while_it_is_updated_and_says_that_it_is_a_picture_when_it_is_not(
    make_notebook: Callable[..., NotebookPage], application: str
) -> None:
    notebook = make_notebook(application, "7.4").load_extension()
    cell = notebook.run_cell(THREAD_UNTIL_TOLD)
    cell.wait_output("began")

    def looks(wanted: list[object]) -> str:
        def is_so() -> bool:
            *found, text = notebook.page.evaluate(LOOKS)
            return bool(found == wanted) and (("last seen" in text) is (wanted is STALE))

        notebook.until(is_so, f"a card that looks so: {wanted}")
        return str(notebook.page.evaluate(LOOKS)[-1])

    clock = re.search(r"\d:\d\d", looks(LIVE))
    assert clock
    cell.wait_output(f"(?!{clock.group()})0:\\d\\d")
    assert "updated" in looks(LIVE)
    notebook.save()
    notebook.reload()
    said = looks(STALE)
    for part in ("A picture from", "no longer follows the task", "updated", "shows all of it"):
        assert part in said
    assert "%bg_cancel" not in said
    notebook.run_cell(TELL)


def test_everything_is_there_after_the_restart_button(notebook: NotebookPage) -> None:
    thread, shell = notebook.run_cell(THREAD_UNTIL_TOLD), notebook.run_cell(SHELL_UNTIL_TOLD)
    for cell in (thread, shell):
        cell.wait_output("began")
    notebook.restart_from_the_button()
    greeting = notebook.run_cell("%load_ext ipytaskpersist").text
    for part in ("While you were away", "still running", "patient", "interrupted", "hopeful"):
        assert part in greeting
    listed = notebook.run_cell("%bg_list").text
    assert "running" in listed
    assert "interrupted" in listed
    assert "began" in listed
    assert notebook.run_cell("%bg_output hopeful").text.strip() == "began"
    notebook.run_cell(TELL)
    notebook.run_cell("%bg_wait patient").wait_output("completed")
    assert notebook.run_cell("%bg_output patient").text.split() == ["began", "ended"]


def test_cards_can_be_looked_at_in_light_and_dark(
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
    for is_dark in (False, True):
        notebook.dark(is_dark).show(shown)
        notebook.screenshot(f"cards-{application}-{'dark' if is_dark else 'light'}")
        notebook.show(listed).screenshot(f"list-{application}-{'dark' if is_dark else 'light'}")
