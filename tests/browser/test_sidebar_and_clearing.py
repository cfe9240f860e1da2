"""What a person does with the outputs of background tasks, and with the list of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from browser.page import NotebookPage
from browser.server import JupyterServer
from browser.test_outputs_come_back import Open, open_page, server, state_dir

if TYPE_CHECKING:
    from playwright.sync_api import Locator

__all__ = ["open_page", "server", "state_dir"]

TAB = "li.lm-TabBar-tab[data-id=ipytaskpersist-tasks]"
RUNNING_TAB = "li.lm-TabBar-tab[data-id=jp-running-sessions]"
TRAIN = """%%background --shell train
for each in 1 2 3 4; do echo "epoch $each of 10, loss 0.$((44 - each * 7))"; done
printf ' 40%%|####      | 4/10 [00:04<00:06,  1.00s/it]\\r' >&2
exec sleep 600"""
BUILD = "%%background --shell build\necho '[100%] Built target engine'"
DIVIDE = "%%background divide\n1 / 0"
SAYS = "%%background says\nprint('first word')"
LINE = "%background print('from the task')\nprint('of the cell itself')"
TITLE_IS_CLEAN = "() => !document.querySelector('.jp-mod-dirty')"


def test_what_a_person_clears_or_runs_by_hand_stays_as_it_is(
    open_page: Open, server: JupyterServer
) -> None:
    server.add_kernel("own", "7.4", {})
    path = server.add_notebook("own", "own")
    notebook = open_page("lab", path).load_extension()
    cleared, by_hand, again = (notebook.run_cell(SAYS) for _ in range(3))
    line = notebook.run_cell(LINE)
    for cell in (cleared, by_hand, again):
        cell.wait_output("completed[\\s\\S]*first word[\\s\\S]*first word")
    line.wait_output("completed[\\s\\S]*from the task[\\s\\S]*of the cell itself")

    by_hand.type("print('by hand')").run().wait_done()
    again.type(SAYS.replace("first", "second")).run()
    again.wait_output("completed[\\s\\S]*second word[\\s\\S]*second word")
    clear_outputs(notebook, cleared.box)
    notebook.until(lambda: not cleared.text, "a cell without outputs")
    texts = [cell.text for cell in (cleared, by_hand, again, line)]
    assert "first" not in "".join(texts)
    notebook.save()

    notebook.reload()
    again.wait_output("second word[\\s\\S]*second word")
    shown = [cell.text for cell in (cleared, by_hand, again, line)]
    assert shown == texts
    assert by_hand.text.strip() == "by hand"
    # To look at outputs that have come back is no change that would have to be saved.
    notebook.until(lambda: notebook.page.evaluate(TITLE_IS_CLEAN), "a notebook without changes")

    # What is launched in one page is shown by the others, too.
    other = open_page("notebook", path)
    assert other.page.locator("#ipytaskpersist-tasks").count() == 1
    again.type(SAYS.replace("first", "third")).run()
    other.cell(again.place).wait_output("third word[\\s\\S]*third word")
    assert other.cell(cleared.place).text == ""


def test_the_sidebar_lists_tasks_and_their_buttons_work_without_a_kernel(
    open_page: Open, server: JupyterServer, packages: str
) -> None:
    server.add_kernel("own", "7.4", {})
    path = server.add_notebook("own", "own")
    notebook = open_page("lab", path).load_extension()
    page = notebook.page
    notebook.run_cell(BUILD).wait_output("completed")
    notebook.run_cell(DIVIDE).wait_output("failed")
    notebook.run_cell(TRAIN).wait_output("epoch 4 of 10")
    notebook.save()
    end_kernel(server, path)
    tab = page.locator(TAB)
    notebook.until(
        lambda: tab.get_attribute("data-ipytaskpersist-running") == "1", "one running task"
    )
    assert tab.get_attribute("title") == "Background tasks, 1 running"
    page.locator(RUNNING_TAB).click()
    things = page.locator("#jp-running-sessions")
    notebook.until(lambda: "train" in things.inner_text(), "the task among the running things")
    tab.click()
    sidebar = page.locator("#ipytaskpersist-tasks")
    running = sidebar.get_by_role("list", name="Running").get_by_role("listitem")
    ended = sidebar.get_by_role("list", name="Ended since you looked").get_by_role("listitem")
    notebook.until(lambda: (running.count(), ended.count()) == (1, 2), "all tasks in the list")
    assert "40%" in running.inner_text()
    assert "ZeroDivisionError" in ended.first.inner_text()
    notebook.show(notebook.cell(1))
    # The oldest JupyterLab changes its theme only when it is loaded.
    for is_dark in (False,) if packages else (False, True):
        notebook.dark(is_dark).screenshot(f"sidebar-{'dark' if is_dark else 'light'}")

    # By the keyboard alone: search, go to a cell, cancel.
    search = sidebar.get_by_role("searchbox", name="Search tasks")
    search.fill("divide")
    notebook.until(lambda: (running.count(), ended.count()) == (0, 1), "what fits the search")
    search.fill("")
    notebook.until(lambda: running.count() == 1, "all tasks again")
    row = sidebar.get_by_role("button", name="train, task 3, running, 40 %")
    row.press("ArrowDown")
    assert page.evaluate("document.activeElement.title").startswith("divide, task 2, failed")
    page.keyboard.press("Enter")
    active = page.locator(".jp-Notebook .jp-Cell.jp-mod-active")
    notebook.until(lambda: "%%background divide" in active.inner_text(), "the cell of the task")
    cancel = sidebar.get_by_role("button", name="Cancel task 3 train")
    cancel.press("Enter")
    assert cancel.inner_text() == "Sure?"
    cancel.press("Enter")
    notebook.until(lambda: running.count() == 0, "a cancelled task")
    notebook.cell(3).wait_output("cancelled")
    assert tab.get_attribute("data-ipytaskpersist-running") == "0"


def clear_outputs(notebook: NotebookPage, box: Locator) -> None:
    """Press what the menu has for it: Edit, Clear Cell Output."""
    box.locator(".jp-InputPrompt").click()
    notebook.page.get_by_role("menuitem", name="Edit").first.click()
    notebook.page.locator('.lm-Menu-item[data-command="editmenu:clear-current"]').click()


def end_kernel(server: JupyterServer, path: Path) -> None:
    """Shut the kernel of a notebook down from elsewhere."""
    for session in server.ask("GET", "sessions"):
        if session["path"] == server.path_of(path):
            server.ask("DELETE", f"sessions/{session['id']}")
