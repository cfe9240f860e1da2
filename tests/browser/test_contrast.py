"""Cards, lists and greetings can be read and told apart in light and dark, fresh and old."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from browser.accessibility import violations
from browser.contrast import too_faint
from ipytaskpersist.base.records import Progress, TaskRecord, TaskState
from ipytaskpersist.display.card_content import Card
from ipytaskpersist.display.card_output import CardOutput, Figure
from ipytaskpersist.display.greeting_words import as_html
from ipytaskpersist.display.greetings import News
from ipytaskpersist.display.listing import Listing, Produced, list_html
from ipytaskpersist.display.status_card import STALE_S, card_html
from ipytaskpersist.output.counts import OutputCounts

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NOW = datetime(2026, 3, 1, 14, 2, 26, tzinfo=UTC)
THEMES = {
    "light": "background-color:#fff;color:rgba(0,0,0,.87)",
    "dark": "background-color:#111;color:#fff",
    "VS Code's dark": "background-color:#1e1e1e;color:#d4d4d4",
}
COUNTS = OutputCounts(40, 1, 1)
OUTPUT = CardOutput([Figure(1, "data:image/png;base64,iVBORw0KGgo=")], ["a line\n"] * 9, 9)


def a_task(number: int, state: TaskState) -> TaskRecord:
    return TaskRecord(
        key=number, id=f"abcdefgh-{number}", number=number, name="train", notebook_key=1,
        notebook="/home/ada/a.ipynb", session="s", kind="python", runner="process", state=state,
        reason="NameError: name 'x' is not defined", exit_code=1 if state.is_final else None,
        source="", cell_id=None, execution_count=1, created_at=NOW,
        started_at=NOW - timedelta(seconds=8), ended_at=NOW if state.is_final else None,
        cancel_requested_at=None, cleared_at=None, rerun_of=None, is_call=False,
        progress=Progress(19, 100), last_line="epoch 7",
    )  # fmt: skip


def everything() -> str:
    """A card of each state, a list and a greeting."""
    tasks = [a_task(number, state) for number, state in enumerate(TaskState, 1)]
    cards = [
        Card(
            task,
            NOW,
            ["epoch 7"],
            COUNTS,
            512_000_000,
            "cell line 2",
            "x was not",
            also_running=tasks[1:2],
            output=OUTPUT,
        )
        for task in tasks
    ]
    ended, running = (
        [t for t in tasks if t.state.is_final is is_final] for is_final in (True, False)
    )
    counts = dict.fromkeys(TaskState, 1)
    parts = [
        *map(card_html, cards),
        list_html(Listing(tasks, 16, False, NOW, produced={tasks[0].id: Produced(COUNTS)})),
        as_html(News(NOW, NOW, "kernel restarted", counts, ended, running, counts)),
    ]
    return "<br>".join(parts)


@pytest.mark.parametrize("theme", THEMES)
def test_texts_and_signs_have_enough_contrast(chromium: Browser, theme: str) -> None:
    page = chromium.new_page()
    try:
        page.set_content(f'<!doctype html><body style="{THEMES[theme]}">{everything()}')
        body = page.locator("body")
        page.get_by_text("All output").first.click()
        fresh = body.inner_text()
        assert "last seen" not in fresh
        assert "about 0:34 left" in fresh
        assert too_faint(body) == []
        assert violations(page, "body") == []
        page.get_by_text("A picture from").first.wait_for(state="visible", timeout=2000 * STALE_S)
        old = body.inner_text()
        assert old.count("last seen ") == 2
        assert "about 0:34 left" not in old.partition("completed")[0]
        assert too_faint(body) == []
        assert violations(page, "body") == []
        # A task is told from another by a name and a role, not by its looks alone.
        for state in TaskState:
            name = "Background task \\d, train" + (f", {state}" if state.is_final else "")
            assert page.get_by_role("group", name=re.compile(f"^{name}$")).count() >= 1
        assert page.get_by_role("group", name="While you were away").count() == 1
        table = page.get_by_role("table", name="Background tasks of a.ipynb")
        titles = table.get_by_role("columnheader").all_inner_texts()
        assert titles == ["#", "name", "state", "started", "took", "result or last line", "output"]
    finally:
        page.close()
