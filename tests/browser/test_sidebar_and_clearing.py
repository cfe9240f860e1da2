"""What a person does with the outputs of background tasks, and with the list of them."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from browser.accessibility import violations
from browser.contrast import too_faint
from browser.page import READY, NotebookPage
from browser.server import JupyterServer
from browser.test_outputs_come_back import Open, open_page, server, state_dir

if TYPE_CHECKING:
    from playwright.sync_api import Locator

__all__ = ["open_page", "server", "state_dir"]

TAB = "li.lm-TabBar-tab[data-id=ipytaskpersist-tasks]"
RUNNING_TAB = "li.lm-TabBar-tab[data-id=jp-running-sessions]"
NOTEBOOK_API = re.compile("/ipytaskpersist/api/notebook")
ACTIVE = ".jp-Notebook .jp-Cell.jp-mod-active"
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
    running, ended = rows(sidebar, "Running"), rows(sidebar, "Ended since you looked")
    notebook.until(lambda: (running.count(), ended.count()) == (1, 2), "all tasks in the list")
    assert running.get_by_role("progressbar").get_attribute("aria-valuenow") == "40"
    assert "ZeroDivisionError" in ended.first.inner_text()
    notebook.show(notebook.cell(1))
    assert_readable(notebook, sidebar, packages)

    search = sidebar.get_by_role("searchbox", name="Search tasks")
    search.fill("divide")
    notebook.until(lambda: (running.count(), ended.count()) == (0, 1), "what fits the search")
    search.fill("")
    notebook.until(lambda: running.count() == 1, "all tasks again")
    active = page.locator(ACTIVE)
    ended.first.click()
    notebook.until(lambda: "%%background divide" in active.inner_text(), "the cell of the task")

    # What runs in a thread is run again by its own kernel, and so only where there is one.
    ended.first.get_by_role("button", name="Rerun task 2 divide").click()
    note = sidebar.get_by_role("status")
    notebook.until(lambda: "own.ipynb" in note.inner_text(), "why it is not run again")
    assert rows(sidebar, "Ended since you looked").count() == 2

    load_again_with_a_saved_card(notebook)

    rerun_and_cancel_by_the_keyboard(notebook, sidebar)
    assert tab.get_attribute("data-ipytaskpersist-running") == "0"


def assert_readable(notebook: NotebookPage, sidebar: Locator, packages: str) -> None:
    """Check contrast and accessibility of sidebar and cards, and keep pictures of them."""
    page = notebook.page
    # The oldest JupyterLab changes its theme only when it is loaded.
    for is_dark in (False,) if packages else (False, True):
        notebook.dark(is_dark)
        sidebar_is_dark = f"#ipytaskpersist-tasks[data-dark={str(is_dark).lower()}]"
        page.locator(sidebar_is_dark).wait_for()
        notebook.screenshot(f"sidebar-{'dark' if is_dark else 'light'}")
        assert too_faint(sidebar) == []
        assert violations(page, "#ipytaskpersist-tasks") == []
        assert violations(page, ".ipytaskpersist-card") == []


def load_again_with_a_saved_card(notebook: NotebookPage) -> None:
    """Load the page again, and look at the saved card before the server has answered."""
    page = notebook.page
    # A card that was saved looks old as long as the server has not said that it is not.
    may_answer = threading.Event()
    held: list[Any] = []

    def hold(route: Any) -> None:
        if may_answer.is_set():
            route.continue_()
        else:
            held.append(route)

    page.route(NOTEBOOK_API, hold)
    page.reload()
    card = page.wait_for_function(
        "() => [...document.querySelectorAll('.ipytaskpersist-card')].at(-1)?.innerText"
    )
    assert "last seen running" in " ".join(str(card.json_value()).split())
    # Requests are handed over while the page is asked something.
    notebook.until(lambda: page.evaluate("1") and held, "the page's question")
    may_answer.set()
    while held:
        held.pop().continue_()
    cell = notebook.cell(3)
    notebook.until(
        lambda: "running" in cell.text and "last seen" not in cell.text, "a card that follows"
    )
    notebook.until(lambda: notebook.page.evaluate(READY), "the notebook's kernel", 60)


def rerun_and_cancel_by_the_keyboard(notebook: NotebookPage, sidebar: Locator) -> None:
    """Run the thread task again in a kernel without the extension, and cancel the other task."""
    page, running = notebook.page, rows(sidebar, "Running")
    note = sidebar.get_by_role("status")
    if not sidebar.is_visible():
        page.locator(TAB).press("Enter")
    notebook.until(lambda: running.count() == 1, "the list")
    divide = sidebar.get_by_role("row", name="divide")
    running.first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.state") == "failed"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    notebook.until(lambda: divide.count() == 2, "another run of the task")
    assert "runs again in" in note.inner_text()
    notebook.cell(2).wait_output("#4[\\s\\S]*ZeroDivisionError")
    cancel = sidebar.get_by_role("button", name="Cancel task 3 train")
    cancel.focus()
    page.keyboard.press("Enter")
    notebook.until(lambda: cancel.inner_text() == "Sure?", "the question")
    page.keyboard.press("Enter")
    notebook.until(lambda: running.count() == 0, "a cancelled task")
    notebook.cell(3).wait_output("cancelled")


def test_the_keyboard_alone_launches_a_task_reads_it_and_runs_it_again(
    open_page: Open, server: JupyterServer, packages: str
) -> None:
    server.add_kernel("own", "7.4", {})
    notebook = open_page("lab", server.add_notebook("own", "own"))
    page, keyboard = notebook.page, notebook.page.keyboard
    keyboard.press("Enter")  # from the notebook's cell into its editor
    for source in ("%load_ext ipytaskpersist", SAYS):
        keyboard.insert_text(source)
        keyboard.press("Shift+Enter")
    cell = notebook.cell(1)
    cell.wait_output("completed[\\s\\S]*first word[\\s\\S]*first word")

    # From anywhere to the list, by the command's name.
    show_by_the_palette(notebook)
    row = page.locator("#ipytaskpersist-tasks").get_by_role("row", name="says")
    notebook.until(lambda: is_focused(row.first), "the task's row in focus")
    keyboard.press("Tab")
    keyboard.press("Enter")
    notebook.until(lambda: row.count() == 2, "another run of the task")
    cell.wait_output("completed[\\s\\S]*#2[\\s\\S]*first word[\\s\\S]*first word")
    assert is_focused(row.last)  # the answer has not taken the focus away
    keyboard.press("Shift+Tab")
    keyboard.press("Home")
    keyboard.press("Enter")
    notebook.until(lambda: is_focused(page.locator(ACTIVE)), "the focus in the task's cell")
    assert SAYS.splitlines()[0] in page.locator(ACTIVE).inner_text()


def show_by_the_palette(notebook: NotebookPage) -> None:
    """Run the command that shows the list of tasks, as its name is typed."""
    keyboard = notebook.page.keyboard
    keyboard.press("Control+Shift+c")
    notebook.page.locator("#modal-command-palette").wait_for()
    keyboard.type("show background")
    found = notebook.page.locator(".lm-CommandPalette-item.lm-mod-active")
    notebook.until(lambda: "Background Tasks" in found.inner_text(), "the command in the palette")
    keyboard.press("Enter")


def is_focused(element: Locator) -> bool:
    """Whether what is typed goes to an element, or into it."""
    return bool(element.evaluate("(each) => each.contains(document.activeElement)"))


def rows(sidebar: Locator, section: str) -> Locator:
    """The tasks in a section of the list."""
    return sidebar.get_by_role("rowgroup", name=section).locator("tr[data-id]")


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
