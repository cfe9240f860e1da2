"""The panel's page in a real browser, with a model that stands in for the kernel.

The stand-in is needed to say exactly what a kernel says, and when: silence, hostile names, a
thousand tasks. What a real kernel says is tested in test_panel.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ipytaskpersist
from browser.accessibility import violations
from browser.contrast import too_faint
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.text import formatting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

STATIC = Path(ipytaskpersist.__file__).parent / "panel" / "static"
ADDRESS = "http://panel.test/"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LIGHT = "--jp-layout-color1:#fff;--jp-layout-color2:#f5f5f5;--jp-ui-font-color1:#212121;--jp-border-color2:#e0e0e0"  # noqa: E501
DARK = "--jp-layout-color1:#161616;--jp-layout-color2:#212121;--jp-ui-font-color1:#e0e0e0;--jp-border-color2:#333"  # noqa: E501
PAGE = """<!doctype html><meta charset="utf-8"><title>A panel</title>
<link rel="stylesheet" href="panel.css"><body style="margin:16px;THEME"><div id="root"></div>
<div class="the-list">the list as it was</div>
<script type="module">
import panel, { Sidebar } from "./panel.js";
window.sent = [];
const heard = new Set();
window.say = (message) => { for (const each of heard) each(structuredClone(message)); };
const model = { get: (name) => name === "snapshot_name" ? "the-list" : "",
  send: (message) => window.sent.push(message),
  on: (_name, call) => heard.add(call), off: (_name, call) => heard.delete(call) };
window.close_panel = panel.render({ model, el: document.getElementById("root") });
const another = document.createElement("div");
window.open_sidebar = (tasks) => {
  const root = document.body.appendChild(document.createElement("div"));
  new Sidebar(root, { tasks: new Map(tasks.map((each) => [each.id, each])) }).show();
};
window.open_another = () => panel.render({ model, el: document.body.appendChild(another) });
</script>"""
NOW = 1_800_000_000.0
IN_VIEW = "(line) => line.getBoundingClientRect().top"


def task(number: int, state: str = "completed", **fields: Any) -> dict[str, Any]:
    """A row as the kernel sends it."""
    is_final = state not in ("pending", "running")
    started = None if state == "pending" else NOW - 3600 + 10 * number
    return {
        "id": f"a7k3m9x2-{number}",
        "number": number,
        "name": f"task {number}",
        "own": True,
        "notebook": "a.ipynb",
        "state": state,
        "glyph": formatting.STATE_STYLES[TaskState(state)].glyph,
        "is_live": not is_final,
        "created": NOW - 3600 + 10 * number,
        "started": started,
        "ended": NOW - 3500 + 10 * number if is_final else None,
        "line": f"line of {number}",
        "fraction": None,
        "counts": False,
        "asked": False,
        "action": "rerun" if is_final else "cancel",
        "pause": None,
        "again": None,
        **fields,
    }


class Panel:
    """A page with a panel, and the kernel's part of what is said."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.root = page.locator(".ipytp")

    def say(self, kind: str, **content: Any) -> None:
        if kind == "output":
            content = {"view": self.page.evaluate("() => window.sent[0].view"), **content}
        self.page.evaluate("(message) => window.say(message)", {"kind": kind, **content})

    def say_all(self, *tasks: dict[str, Any], **content: Any) -> None:
        said = {"now": NOW, "everywhere": False, "left_out": 0, "sessions": []}
        self.say("all", **{**said, "tasks": [*tasks], **content})
        self.page.wait_for_function(
            "(count) => document.querySelector('.ipytp-chip').textContent === `All ${count}`",
            arg=f"{len(tasks):,}",
        )

    def changed(self, *tasks: dict[str, Any], gone: tuple[str, ...] = ()) -> None:
        self.say("changes", now=NOW, tasks=[*tasks], gone=[*gone])

    def sent(self, kind: str) -> list[dict[str, Any]]:
        found = self.page.evaluate("() => window.sent")
        return [message for message in found if message["kind"] == kind]

    def row(self, number: int) -> Locator:
        return self.root.locator(f'tbody tr[data-id="a7k3m9x2-{number}"]')

    def numbers(self) -> list[int]:
        return [int(text) for text in self.root.locator("td.ipytp-number").all_inner_texts()]

    def until(self, expression: str) -> None:
        self.page.wait_for_function(expression)


@pytest.fixture(scope="module")
def browser_of_page(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The browser of this folder's tests where they share one, else one of its own."""
    try:
        yield request.getfixturevalue("chromium")
    except pytest.FixtureLookupError:
        playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
        executable = shutil.which("chromium") or shutil.which("chromium-browser")
        if executable is None:
            pytest.skip("needs Chromium: apt-get install chromium")
        with playwright_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=[*ARGUMENTS])
            yield browser
            browser.close()


@pytest.fixture
def page(browser_of_page: Browser) -> Iterator[Page]:
    """An empty page from which nothing goes out. An error in it fails the test."""
    context = browser_of_page.new_context(
        viewport={"width": 940, "height": 800}, timezone_id="Europe/Berlin"
    )
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("**/*", lambda route: route.abort())
    page.route(f"{ADDRESS}panel.js", lambda route: route.fulfill(path=STATIC / "panel.js"))
    page.route(f"{ADDRESS}panel.css", lambda route: route.fulfill(path=STATIC / "panel.css"))
    yield page
    context.close()
    assert errors == []


def opened(page: Page, theme: str = LIGHT) -> Panel:
    html = PAGE.replace("THEME", theme)
    page.route(ADDRESS, lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto(ADDRESS)
    page.wait_for_function("() => window.sent?.length > 0")
    return Panel(page)


@pytest.fixture
def panel(page: Page) -> Panel:
    """A panel that has asked for everything, and has had no answer yet."""
    return opened(page)


def test_a_task_shows_its_state_by_glyph_and_word_and_how_far_it_is(panel: Panel) -> None:
    panel.say_all(
        task(1, "failed", line="KeyError: 'customer_id'"),
        task(2, "running", name="train", fraction=0.68, counts=True),
        task(3, "running", counts=True),
        task(4, "pending"),
    )
    assert panel.row(1).locator("td.ipytp-state").inner_text() == "✕ failed"
    assert panel.row(2).locator("td.ipytp-state").inner_text() == "● running"
    assert panel.row(2).get_by_role("progressbar").get_attribute("aria-valuenow") == "68"
    assert panel.row(3).get_by_role("progressbar").get_attribute("aria-valuenow") is None
    assert panel.row(4).locator("td.ipytp-time-cell").inner_text() == "–"
    assert panel.numbers() == [4, 3, 2, 1]
    # What is live is first, however long ago it began.
    panel.changed(task(5), task(6, "failed"))
    panel.until("() => document.querySelectorAll('tbody tr').length === 6")
    assert panel.numbers() == [4, 3, 2, 6, 5, 1]


def test_the_output_has_a_heading_and_belongs_to_a_task_of_the_list(page: Page) -> None:
    page.clock.install(time=NOW)
    panel = opened(page)
    panel.say_all(
        task(1, name="train"),
        task(2, "running", name="sweep", started=NOW - 8, fraction=0.2, counts=True),
    )
    heading = panel.root.get_by_role("heading")
    assert heading.inner_text().split("\n") == [
        "●", "sweep", "#2", "running · 0:08 · 20 % · about 0:32 left",
    ]  # fmt: skip
    nothing = panel.root.locator(".ipytp-nothing")
    said = {"anew": True, "drop": 0, "keep": 0, "add": [], "facts": [["started", NOW]]}
    panel.say("output", task="a7k3m9x2-2", above="", **said)
    assert nothing.inner_text() == "no output yet"
    assert panel.root.locator("dd").inner_text() == "09:00:00 GMT+1"  # the browser's own zone
    panel.root.get_by_role("searchbox").fill("train")
    panel.until("() => document.querySelector('.ipytp-heading').textContent.includes('train')")
    assert "completed" in heading.inner_text()
    assert panel.sent("select")[-1]["task"] == "a7k3m9x2-1"
    panel.say("output", task="a7k3m9x2-1", above="172 figures", **said)
    assert nothing.inner_text() == "no output"
    above = panel.root.locator(".ipytp-above").inner_text()
    assert above == "172 figures not shown · %bg_output 1 shows all"
    panel.root.get_by_role("searchbox").fill("neither")
    panel.until("() => document.querySelector('.ipytp-detail').hidden")
    assert panel.sent("select")[-1]["task"] is None


def test_two_views_of_a_panel_select_on_their_own(panel: Panel) -> None:
    panel.page.evaluate("() => window.open_another()")
    panel.say_all(task(1), task(2))
    first, second = panel.page.locator(".ipytp").all()
    second.locator("tbody tr").nth(1).click()
    heading = ".ipytp-heading bdi"
    panel.until(f"() => document.querySelectorAll('{heading}')[1].textContent === 'task 1'")
    assert first.locator(heading).inner_text() == "task 2"
    views = [message["view"] for message in panel.sent("open")]
    said = {"anew": True, "drop": 0, "keep": 0, "above": "", "facts": []}
    for view, number in zip(views, (2, 1), strict=True):
        for other in (1, 2):
            line = f'<div class="stdout">of {number}</div>'
            shown = {"task": f"a7k3m9x2-{other}", "add": [line], **said}
            panel.say("output", view=view, **shown) if other == number else None
    assert [each.locator(".ipytp-lines").inner_text() for each in (first, second)] == [
        "of 2",
        "of 1",
    ]


def test_plain_keys_are_the_panels_and_saving_is_the_notebooks(panel: Panel) -> None:
    panel.say_all(task(1))
    panel.page.evaluate(
        """() => {
            const isHeldBack = (event) =>
                event.target.closest("[data-lm-suppress-shortcuts]") !== null;
            window.pressed = [];
            window.bubbled = [];
            document.addEventListener("keydown",
                (event) => window.pressed.push([event.key, isHeldBack(event)]), true);
            document.addEventListener("keydown",
                (event) => { window.bubbled.push(event.key); event.preventDefault(); });
        }"""
    )
    panel.row(1).focus()
    for keys in ("j", "Control+s", "j"):
        panel.page.keyboard.press(keys)
    pressed = [each for each in panel.page.evaluate("() => window.pressed") if each[0] != "Control"]
    assert pressed == [["j", True], ["s", False], ["j", True]]
    assert "s" in panel.page.evaluate("() => window.bubbled")
    assert "j" not in panel.page.evaluate("() => window.bubbled")


def test_a_change_touches_its_own_row_only(panel: Panel) -> None:
    panel.say_all(task(1), task(2, "running"))
    panel.page.evaluate(
        """() => { window.touched = []; new MutationObserver((records) => window.touched.push(
        ...records.map((r) => (r.target.closest ?? (() => r.target.parentElement.closest("tr")))
        .call(r.target, "tr")?.dataset.id))).observe(document.querySelector(".ipytp tbody"),
        { childList: true, subtree: true, characterData: true, attributes: true }); }"""
    )
    panel.changed(task(2, "running", line="epoch 7"))
    panel.until("() => document.querySelector('tbody').textContent.includes('epoch 7')")
    assert {*panel.page.evaluate("() => window.touched")} == {"a7k3m9x2-2"}


def test_time_goes_on_in_the_page_by_itself(page: Page) -> None:
    page.clock.install(time=NOW)
    panel = opened(page)
    panel.say_all(task(1, "running", started=NOW - 63))
    assert panel.row(1).locator("td.ipytp-time-cell").inner_text() == "1:03"
    page.clock.run_for(4000)
    assert panel.row(1).locator("td.ipytp-time-cell").inner_text() in ("1:06", "1:07")


def test_names_and_lines_are_only_ever_text(panel: Panel) -> None:
    hostile = "<img src=x onerror='window.ran=1'><script>window.ran=1</script>"
    right_to_left = "שלום ● completed"
    panel.say_all(
        task(1, name=hostile, line=hostile, notebook=hostile, id="a7k3m9x2-1"),
        task(2, "failed", name=right_to_left, line="x" * 5000),
        everywhere=True,
    )
    panel.say("output", task="a7k3m9x2-2", anew=True, drop=0, keep=0, above="",
              add=['<div class="stdout">&lt;b&gt;</div>'], facts=[["exit", hostile]])  # fmt: skip
    panel.say("answer", ask="unknown", ok=False, text=hostile)
    assert panel.row(1).locator("td.ipytp-name").inner_text().startswith(hostile)
    assert panel.root.locator("img, script").count() == 0
    assert panel.page.evaluate("() => window.ran") is None
    assert panel.row(2).locator("td.ipytp-state").inner_text() == "✕ failed"
    isolated = "(node) => getComputedStyle(node).unicodeBidi"
    assert panel.row(2).locator("td.ipytp-name bdi").first.evaluate(isolated) == "isolate"
    assert_nothing_sticks_out(panel)


def assert_nothing_sticks_out(panel: Panel) -> None:
    wider = "(node) => node.scrollWidth - node.clientWidth"
    for part in (".ipytp-list", ".ipytp-head", ".ipytp-output", ".ipytp dl"):
        assert panel.page.locator(part).evaluate(wider) <= 0, part
    assert panel.page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0


def test_filters_count_and_choose(panel: Panel) -> None:
    panel.say_all(task(1, "failed"), task(2, "running"), task(3), task(4, "interrupted"))
    chips = panel.root.locator("button.ipytp-chip")
    assert chips.all_inner_texts()[:4] == ["All 4", "Running 1", "Failed 2", "Ended 3"]
    chips.nth(2).click()
    panel.until("() => document.querySelectorAll('tbody tr').length === 2")
    assert panel.numbers() == [4, 1]
    assert chips.nth(2).get_attribute("aria-pressed") == "true"


def test_a_search_shows_names_and_lines_at_once_and_what_the_kernel_has_found(
    panel: Panel,
) -> None:
    panel.say_all(task(1, name="train"), task(2, line="a needle"), task(3))
    panel.root.get_by_role("searchbox").fill("needle")
    panel.until("() => document.querySelectorAll('tbody tr').length === 1")
    assert panel.numbers() == [2]
    panel.until("() => window.sent.some((message) => message.kind === 'search')")
    assert panel.sent("search")[0]["text"] == "needle"
    assert panel.row(2).get_attribute("aria-selected") == "true"
    panel.say("found", text="needle", tasks=["a7k3m9x2-3"], problem="")
    panel.until("() => document.querySelectorAll('tbody tr').length === 2")
    panel.say("found", text="what was typed before", tasks=["a7k3m9x2-1"], problem="")
    assert panel.numbers() == [3, 2]


def test_headings_sort_and_say_so(panel: Panel) -> None:
    panel.say_all(task(1, name="b"), task(2, name="c"), task(3, name="a"))
    heading = panel.root.get_by_role("columnheader", name="Task")
    heading.get_by_role("button").click()
    numbers = "[...document.querySelectorAll('td.ipytp-number')].map((cell) => cell.textContent)"
    panel.until(f"() => {numbers}.join() === '3,1,2'")
    assert (panel.numbers(), heading.get_attribute("aria-sort")) == ([3, 1, 2], "ascending")
    heading.get_by_role("button").click()
    panel.until(f"() => {numbers}.join() === '2,1,3'")
    assert (panel.numbers(), heading.get_attribute("aria-sort")) == ([2, 1, 3], "descending")


def test_all_can_be_done_with_the_keyboard(panel: Panel) -> None:
    panel.say_all(task(1, "running"), task(2), task(3))
    panel.row(1).focus()  # the selected one is the one that Tab reaches
    keyboard = panel.page.keyboard
    keyboard.press("Tab")
    assert panel.row(1).get_by_role("button").evaluate("(node) => node === document.activeElement")
    keyboard.press("Tab")
    assert not panel.root.locator("tbody").evaluate("(t) => t.contains(document.activeElement)")
    panel.row(1).focus()
    keyboard.press("ArrowDown")
    assert panel.row(3).get_attribute("aria-selected") == "true"
    assert panel.row(3).evaluate("(row) => row === document.activeElement")
    keyboard.press("Enter")
    (asked,) = panel.sent("do")
    assert (asked["verb"], asked["task"]) == ("rerun", "a7k3m9x2-3")
    keyboard.press("/")
    assert panel.root.get_by_role("searchbox").evaluate("(node) => node === document.activeElement")
    assert panel.root.get_attribute("data-lm-suppress-shortcuts") == "true"


def test_a_button_asks_once_says_that_it_waits_and_shows_the_answer(page: Page) -> None:
    page.clock.install(time=NOW)
    panel = opened(page)
    panel.say_all(task(1, "running"))
    button = panel.row(1).get_by_role("button")
    button.dblclick(force=True)
    (asked,) = panel.sent("do")
    assert (asked["verb"], asked["task"], asked["again"]) == ("cancel", "a7k3m9x2-1", None)
    assert button.is_disabled()
    note = panel.root.locator(".ipytp-note")
    page.clock.run_for(800)
    assert note.inner_text() == "Cancel 1: will happen when the running cell ends"
    panel.say("answer", ask=asked["ask"], ok=False, text="the store is locked")
    assert note.inner_text() == "the store is locked"
    assert button.is_enabled()


def test_a_process_has_a_button_that_pauses_it_and_lets_it_go_on(panel: Panel) -> None:
    panel.say_all(task(1, "running", pause="pause"), task(2, "running", pause="continue"))
    panel.row(1).get_by_role("button", name="Pause task 1").click()
    panel.row(2).get_by_role("button", name="Continue task 2").click()
    asked = [(each["verb"], each["task"]) for each in panel.sent("do")]
    assert asked == [("pause", "a7k3m9x2-1"), ("continue", "a7k3m9x2-2")]


def test_a_task_of_another_notebook_is_cancelled_at_the_second_click(panel: Panel) -> None:
    panel.say_all(task(1, "running", own=False), everywhere=True)
    panel.row(1).get_by_role("button").click()
    assert panel.sent("do") == []
    assert panel.row(1).get_by_role("button").inner_text() == "Sure?"
    panel.row(1).get_by_role("button").click()
    assert panel.sent("do")[0]["sure"] is True


def test_a_panel_without_its_kernel_says_so_and_comes_back_with_it(page: Page) -> None:
    page.clock.install(time=NOW)
    panel = opened(page)
    panel.say_all(task(1, "running"))
    page.clock.run_for(8000)
    assert len(panel.sent("open")) == 2  # it asks before it says anything
    panel.say("beat")
    page.clock.run_for(5000)
    assert panel.root.get_by_role("alert").inner_text() == ""
    page.clock.run_for(10000)
    said = panel.root.get_by_role("alert").inner_text()
    assert said.startswith("The kernel that fed this panel is gone (last heard ")
    assert said.endswith("Run %bg_panel again.")
    assert panel.row(1).get_by_role("button").is_disabled()
    stopped = panel.row(1).locator("td.ipytp-time-cell").inner_text()
    page.clock.run_for(5000)
    assert panel.row(1).locator("td.ipytp-time-cell").inner_text() == stopped
    assert too_faint(panel.root) == []
    panel.say("beat")
    assert panel.root.get_by_role("alert").inner_text() == ""
    assert panel.row(1).get_by_role("button").is_enabled()
    assert len(panel.sent("open")) == 4


def test_output_comes_piece_by_piece_and_stays_where_one_reads(panel: Panel) -> None:
    panel.say_all(task(1, "running"))
    lines = [f'<div class="stdout">line {number}</div>' for number in range(100)]
    said = {"task": "a7k3m9x2-1", "anew": True, "drop": 0, "keep": 0}
    panel.say("output", **said, above="", add=lines, facts=[["task", "a7k3m9x2-1"]])
    output = panel.root.locator(".ipytp-output")
    assert output.evaluate("(box) => box.scrollTop > 0")  # at its end
    output.evaluate("(box) => { box.scrollTop = 100; }")
    read = panel.root.get_by_text("line 8", exact=True)
    before = read.evaluate(IN_VIEW)
    said = {"task": "a7k3m9x2-1", "anew": False, "drop": 1, "keep": 99}
    panel.say("output", **said, above="1,200 lines", add=['<div class="stdout">new</div>'])
    shown = panel.root.locator(".ipytp-lines > div")
    assert (shown.count(), shown.first.inner_text(), shown.last.inner_text()) == (
        100,
        "line 1",
        "new",
    )
    assert abs(read.evaluate(IN_VIEW) - before) < 1
    assert "1,200 lines not shown · %bg_output 1" in panel.root.locator(".ipytp-above").inner_text()
    panel.say("output", **{**said, "task": "a7k3m9x2-9"}, above="", add=["<div>another's</div>"])
    assert shown.last.inner_text() == "new"


def test_the_timeline_shows_when_tasks_ran_and_zooms(panel: Panel) -> None:
    panel.say_all(
        task(1, "failed", started=NOW - 3600, ended=NOW - 1800),
        task(2, "running", started=NOW - 1200),
        sessions=[{"at": NOW - 1500, "why": "kernel restarted", "notebook": "a.ipynb"}],
    )
    bars = panel.root.locator(".ipytp-time > svg > path[data-state]")
    drawn = bars.evaluate_all(
        "(paths) => paths.filter((p) => p.getAttribute('d')).map((p) => p.dataset.state)"
    )
    assert {*drawn} == {"failed", "running"}
    # Without its colour a failed one is still another.
    fills = bars.evaluate_all(
        "(all) => all.map((p) => [p.dataset.state, getComputedStyle(p).fill])"
    )
    assert {state for state, fill in fills if fill.startswith("url(")} == {"failed", "interrupted"}
    assert panel.root.locator(".ipytp-time g").last.locator("path").count() == 1
    labels = panel.root.locator(".ipytp-time text")
    before = labels.all_text_contents()
    assert all(len(label) == 5 for label in before), before
    box = panel.root.locator(".ipytp-time svg").bounding_box()
    assert box is not None
    mouse = panel.page.mouse
    # The session's end is where nothing runs: three fifths to the right of the hour.
    mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 20)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 20, steps=4)
    mouse.up()
    panel.until(f"() => document.querySelector('.ipytp-time text').textContent !== '{before[0]}'")
    panel.root.get_by_role("button", name="Show all of the time").click()
    panel.until(f"() => document.querySelector('.ipytp-time text').textContent === '{before[0]}'")
    mouse.click(box["x"] + box["width"] * 0.3, box["y"] + 8)
    panel.until("() => document.querySelector('tr[aria-selected=true]').dataset.id.endsWith('-1')")


def test_of_a_thousand_tasks_those_in_sight_are_drawn(panel: Panel) -> None:
    panel.say_all(*(task(number) for number in range(1, 1001)))
    rows = panel.root.locator("tbody tr")
    assert rows.count() < 300
    panel.root.locator(".ipytp-list").evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    panel.until("() => document.querySelectorAll('tbody tr').length >= 300")
    panel.changed(task(1001, "running"))
    panel.until("() => document.querySelector('td.ipytp-number').textContent === '1001'")


def test_an_end_is_notified_once_the_person_has_asked_for_it(page: Page) -> None:
    page.add_init_script(
        """window.told = []; window.Notification = class {
        static permission = "default";
        static async requestPermission() { return Notification.permission = "granted"; }
        constructor(title, options) { window.told.push([title, options.body]); } };"""
    )
    panel = opened(page)
    panel.say_all(task(1, "running"), task(2, "running"))
    panel.changed(task(1))
    assert page.evaluate("() => window.told") == []
    panel.root.get_by_role("button", name="Notify me").click()
    panel.until("() => document.querySelector('[title^=Tell]').ariaPressed === 'true'")
    panel.changed(task(2, "failed", name="train"))
    ((title, _body),) = page.evaluate("() => window.told")
    assert title == "✕ failed: train"


def test_the_end_of_a_task_is_said_to_who_does_not_see_it(panel: Panel) -> None:
    panel.say_all(task(1, "running"))
    panel.changed(task(1))
    panel.until("() => document.querySelector('[aria-live=polite]').textContent !== ''")
    assert panel.root.locator("[aria-live=polite]").inner_text() == "task 1 task 1 completed"


@pytest.mark.parametrize("width", [360, 480, 640, 940])
def test_a_narrow_cell_shows_what_matters(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    panel = opened(page)
    panel.say_all(
        task(1, "interrupted", action="resume"), task(2, "running", fraction=0.5, counts=True)
    )
    assert_nothing_sticks_out(panel)
    for cell in ("td.ipytp-state", "td.ipytp-name", "td.ipytp-act button:not([hidden])"):
        assert panel.row(1).locator(cell).is_visible()
    state = panel.row(1).locator("td.ipytp-state")
    assert state.evaluate("(cell) => cell.scrollWidth <= cell.clientWidth")
    assert "interrupted" in state.inner_text()  # of an icon, too
    assert (state.bounding_box() or {})["width"] < 60 if width <= 560 else True
    for cell in (panel.row(2).get_by_role("progressbar"), panel.row(2).locator("td.ipytp-line")):
        assert cell.is_visible()
    assert (panel.row(1).locator("td.ipytp-name").bounding_box() or {})["width"] >= 130


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_all_of_it_can_be_read_in_each_theme(page: Page, theme: str) -> None:
    panel = opened(page, theme)
    panel.say_all(*(task(number, state.value) for number, state in enumerate(TaskState, 1)))
    said = {"anew": True, "drop": 0, "keep": 0, "above": "1 line", "facts": [["task", "x"]]}
    lines = [f'<div class="{name}">a line</div>' for name in ("stdout", "stderr")]
    for state in range(1, len(TaskState) + 1):
        panel.row(state).click()
        panel.say("output", task=f"a7k3m9x2-{state}", add=lines, **said)
        assert too_faint(panel.root) == []
    assert violations(page, ".ipytp") == []


@pytest.mark.parametrize("width", [240, 940])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_sidebar_can_be_read_in_each_theme(page: Page, theme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    opened(page, theme)
    states = [state.value for state in TaskState]
    tasks = [
        task(number, state, path="a.ipynb", fraction=0.4, counts=state == "running")
        for number, state in enumerate(states, 1)
    ]
    page.evaluate("(tasks) => { close_panel(); root.remove(); open_sidebar(tasks); }", tasks)
    sidebar = page.locator(".ipytp-sidebar")
    sidebar.locator("tr[data-id]").nth(len(states) - 1).wait_for()
    groups = [sidebar.get_by_role("rowgroup", name=name) for name in ("Running", "Ended since")]
    assert [group.locator("tr[data-id]").count() for group in groups] == [2, len(states) - 2]
    assert sidebar.get_by_role("progressbar").get_attribute("aria-valuenow") == "40"
    assert sidebar.locator("tr[data-state=failed] td.ipytp-line").is_visible()
    assert too_faint(sidebar) == []
    assert violations(page, ".ipytp-sidebar") == []
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    for row in sidebar.locator("tr[data-id]").all():
        assert row.evaluate("(row) => row.scrollWidth <= row.clientWidth")


def test_a_panel_that_is_taken_away_says_so(panel: Panel) -> None:
    beside = panel.page.get_by_text("the list as it was")
    assert beside.is_hidden()
    panel.page.evaluate("() => window.close_panel()")
    assert len(panel.sent("close")) == 1
    assert beside.is_visible()
