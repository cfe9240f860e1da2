"""Names, commands and outputs that would take over the page stay text on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from browser.page import NotebookPage, PageCell

NASTY = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=2>",
    "</div></td></table><svg onload=window.pwned=3>",
    "\"' onmouseover=window.pwned=4 style=position:fixed ",
    "\x1b[31mred\x1b[2J\x1b]0;title\x07",
    "\u202ereversed completed\u2066",
    "w" * 3000,
    "&lt;b&gt;",
)
STEERING = {"\x1b", "\x07", "\u202e", "\u2066"}
"""What would turn a line of text around, or steer a terminal."""

LAUNCH = """
import ipytaskpersist
NASTY = {nasty!r}
for text in NASTY:
    task = ipytaskpersist.background("print(text)\\nraise ValueError(text)", name=text)
    task.wait()
    display(task)
command = "printf '%s\\\\n' " + " ".join("'" + text.replace("'", "") + "'" for text in NASTY)
task = ipytaskpersist.background(command, name="shell " + NASTY[1], shell=True)
task.wait()
display(task)
"""
NAMED = '%%background "{name}"\nprint({name!r})\nraise ValueError({name!r})'
LEFT_TO_RIGHT = """([box, word]) => {
    const texts = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    for (let node; (node = texts.nextNode());) {
        const at = node.data.indexOf(word);
        if (at < 0) continue;
        const [first, last] = [at, at + word.length - 1].map(place => {
            const range = document.createRange();
            range.setStart(node, place);
            range.setEnd(node, place + 1);
            return range.getBoundingClientRect();
        });
        return first.width > 0 && first.left < last.left && first.top === last.top;
    }
    return false;
}"""


def reads(cell: PageCell, word: str) -> bool:
    """Whether each output has this word and it stands there from left to right."""
    outputs = cell.outputs.element_handles()
    page = cell.outputs.page
    return bool(outputs) and all(page.evaluate(LEFT_TO_RIGHT, [out, word]) for out in outputs)


@pytest.fixture
def attacked(make_notebook: Callable[..., NotebookPage], application: str) -> NotebookPage:
    """A notebook with tasks that consist of what would do harm."""
    return make_notebook(application, "7.4").load_extension()


def assert_unharmed(notebook: NotebookPage) -> None:
    """No script of a task has run, and nothing pushes the page out of shape."""
    assert notebook.page.evaluate("window.pwned") is None
    assert notebook.dialogs == []
    assert notebook.page.locator(".jp-OutputArea-output script").count() == 0
    assert notebook.page.locator(".jp-OutputArea-output img[src=x]").count() == 0
    assert notebook.page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


def test_what_a_task_is_made_of_stays_text_on_the_page(attacked: NotebookPage) -> None:
    named = attacked.run_cell(NAMED.format(name=NASTY[1]))
    named.wait_output("failed")
    assert NASTY[1] in named.text
    cards = attacked.run_cell(LAUNCH.format(nasty=NASTY))
    assert cards.outputs.count() == len(NASTY) + 1
    for cell in (named, cards):
        assert cell.sticks_out() == []
    assert_unharmed(attacked)
    for place, state in enumerate(["failed"] * len(NASTY) + ["completed"]):
        card = cards.outputs.nth(place)
        page = attacked.page
        assert page.evaluate(LEFT_TO_RIGHT, [card.element_handle(), state]), card.inner_text()
    attacked.show(cards).screenshot(f"hostile-cards-{attacked.application}")
    outputs = "\n".join(f"%bg_output {number}" for number in range(1, len(NASTY) + 3))
    shows = "\n".join(f"%bg_show {number}" for number in range(1, len(NASTY) + 3))
    for commands in (outputs, shows, "%bg_list", "%bg_search pwned", "%bg_search reversed"):
        cell = attacked.run_cell(commands)
        assert cell.sticks_out(may_scroll=True) == [], commands
        assert_unharmed(attacked)
        verb = commands.split()[0].removeprefix("%")
        if commands != outputs:
            assert "failed" in cell.text, commands
        if "\n" not in commands:
            assert not STEERING & {*cell.text}, commands
        attacked.show(cell).screenshot(f"hostile-{verb}-{attacked.application}")
