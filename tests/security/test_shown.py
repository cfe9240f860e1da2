"""No text of a stranger's acts where it is shown: in a page, in a terminal, in a message."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from html5 import has_more_than_is_kept, kept_by_a_sanitizer
from programs import environment

from ipytaskpersist.api import Task
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.notify_target import masked
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.base.vocabulary import VERBS
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import every_verb
from ipytaskpersist.display import (
    announcements,
    card_content,
    greeting_words,
    search_results,
    status_card,
)
from ipytaskpersist.display.greetings import News
from ipytaskpersist.display.listing import Listing, list_html
from ipytaskpersist.history import search_query, text_search
from ipytaskpersist.history.export_page import page
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.notify.notifier import message_about
from ipytaskpersist.output.counts import OutputCounter
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting
from ipytaskpersist.text.sanitized_html import harmless_html
from security.hostile import ATTACK, MARKUP, ONE_LINE, STEERING, make_hostile

# In a page.

ACTIVE = {
    "script", "iframe", "object", "embed", "svg", "math", "base", "form", "input", "button", "link",
    "meta", "audio", "video", "frame", "applet", "template", "textarea", "a",
}  # fmt: skip
"""What acts, loads or leads away. A page of ours has none of it but its own head."""
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=]+")


class Page(HTMLParser):
    """What a browser would make of some HTML, as far as anything in it could act."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.acts: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ACTIVE:
            self.acts.append(f"<{tag}>")
        for name, value in attrs:
            text = (value or "").lower()
            is_picture = tag == "img" and name == "src" and PICTURE.fullmatch(value or "")
            leads = name in ("src", "href", "srcset", "action", "formaction", "data", "srcdoc")
            loads = name == "style" and re.search(r"url\(|expression|@import|javascript", text)
            if name.startswith("on") or (leads and not is_picture) or loads:
                self.acts.append(f"<{tag} {name}={value!r:.60}>")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_parser_finds_what_acts() -> None:
    """Else the tests below would prove nothing."""
    found = Page(MARKUP).acts
    for expected in (
        "<script>",
        "<iframe>",
        "<svg>",
        "<a>",
        "onerror",
        "onload",
        "style",
        "<base>",
    ):
        assert any(expected in each for each in found), expected


@pytest.fixture
def hostile(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BackgroundTasks]:
    """A manager of a notebook with nothing but attacks in it."""
    make_hostile(state_dir, str(tmp_path / "a.ipynb"))
    monkeypatch.setenv("IPYTASKPERSIST_NOTEBOOK", str(tmp_path / "a.ipynb"))
    manager = BackgroundTasks()
    yield manager
    manager.archives.close()
    manager.store.close()


def news_of(tasks: Sequence[TaskRecord]) -> News:
    """A greeting that reports all of these tasks."""
    ended = [task for task in tasks if task.state.is_final]
    running = [task for task in tasks if not task.state.is_final]
    now = formatting.utc_now()
    counts = Counter(task.state for task in tasks)
    return News(now, now, "kernel restarted", counts, ended, running, counts)


def pages_of(manager: BackgroundTasks) -> Iterator[tuple[str, str]]:
    """Everything that is given to a browser as HTML, with what it is."""
    from ipytaskpersist.panel import selected

    now, tasks = formatting.utc_now(), manager.tasks.select(Selection())
    archived = manager.tasks.select_archived(Selection())
    for every in (True, False):
        listing = Listing(tasks, len(tasks) + 1, every, now, has_archives=True)
        yield f"list {every}", list_html(listing)
    yield "empty list", list_html(Listing([], 0, True, now))
    reader = [card_content.CardReader(manager).read(task, now) for task in tasks]
    for card in reader:
        yield f"card of {card.task.state}", status_card.card_html(card)
    yield "greeting", greeting_words.as_html(news_of(tasks))
    yield "cards", status_card.cards_html(reader)
    yield "a task itself", Task(manager, tasks[0])._repr_mimebundle_()["text/html"]
    for query in ("pwned", "title", "drop table"):
        found = text_search.search(
            manager.store, manager.archives, search_query.parse([query]), search_query.Scope(),
            lambda _done, _total: None,
        )  # fmt: skip
        assert found.hits, query
        yield (
            f"search {query}",
            search_results.found_html(search_results.Shown(found, manager.tasks.is_own, now)),
        )
    for task in (*tasks, *archived):
        for piece in selected.shown_of(manager.store, task, OutputCounter()).pieces:
            yield f"panel {task.state}", piece
    whole = b"".join(page(Export(manager.archives, manager.payloads, tasks))).decode()
    head, body = whole.split("<body>")
    assert "default-src 'none'" in head
    yield "exported page", body


def test_nothing_in_a_page_acts(hostile: BackgroundTasks) -> None:
    seen = 0
    for what, html in pages_of(hostile):
        found = Page(html)
        assert found.acts == [], what
        text = "".join(found.text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), (what, text[:80])
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", text), what
        seen += "pwned" in html
    assert seen > 20, "what is looked at has the attacks in it"


def test_a_page_made_harmless_has_nothing_that_acts() -> None:
    assert Page(harmless_html(ATTACK)).acts == []
    assert Page(harmless_html(MARKUP * 50)).acts == []


@pytest.mark.parametrize("attack", MARKUP.replace("><", ">\n<").splitlines())
def test_an_html5_parser_finds_nothing_more_in_a_page_made_harmless(attack: str) -> None:
    """A sanitizer fails where a browser reads its markup in another way than it was meant."""
    assert has_more_than_is_kept(MARKUP), "else this would prove nothing"
    around = (f"{attack}{MARKUP}", f"<table><tr>{attack}<p>{MARKUP}", f"<b><p>{attack * 9}</b>")
    for html in (attack, *around):
        assert not has_more_than_is_kept(harmless_html(html))


def test_a_table_that_pandas_shows_is_kept_as_a_sanitizer_keeps_it() -> None:
    import pandas as pd

    columns = pd.MultiIndex.from_product([["a & b", "c"], ["<d>", "é"]])
    html = pd.DataFrame([[1, 2.5, "x<y>", None]] * 3, columns=columns)._repr_html_()
    assert "colspan" in harmless_html(html)
    assert harmless_html(html) == kept_by_a_sanitizer(html)


def test_an_exported_notebook_is_markdown_without_markup(hostile: BackgroundTasks) -> None:
    """A front end does not trust its outputs; its headings are text."""
    whole = json.loads(
        b"".join(
            Export(hostile.archives, hostile.payloads, hostile.tasks.select(Selection())).notebook()
        )
    )
    headings = [cell["source"] for cell in whole["cells"] if cell["cell_type"] == "markdown"]
    assert len(headings) == 7
    for heading in headings:
        assert re.search(r"(?<!\\)[<>\[\]`&]", heading) is None
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", heading.replace("\\", ""))
    assert not whole["metadata"].get("signature")


def test_the_panel_sets_all_but_one_piece_as_text() -> None:
    """That piece is the selected task's output, which `pages_of` has looked at."""
    from ipytaskpersist import panel

    script = (Path(panel.__file__).parent / "static" / "panel.js").read_text(encoding="utf-8")
    assert script.count("innerHTML") == 1
    assert "safe.innerHTML = piece" in script
    for way in ("outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function(",
                "DOMParser", "setHTML", "createContextualFragment", "javascript:"):  # fmt: skip
        assert way not in script, way


def test_the_panel_is_told_texts_that_steer_nothing(hostile: BackgroundTasks) -> None:
    from ipytaskpersist.panel.actions import Actions
    from ipytaskpersist.panel.feed import Feed
    from ipytaskpersist.panel.selected import Facts

    feed = Feed(hostile, lambda _message, _buffers=None: None, everywhere=True)
    tasks = hostile.tasks.select(Selection())
    told = [feed.everything(), *(Facts(hostile, task).of(task) for task in tasks)]
    told += [
        Actions(hostile).do({"ask": n, "verb": verb, "task": task.id})
        for n, (verb, task) in enumerate((v, t) for v in ("rerun", "resume") for t in tasks)
    ]
    told.append(Actions(hostile).do({"ask": "x", "verb": ATTACK, "task": ATTACK}))
    for text in texts_in(told):
        assert legible(text) == text


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts_in(each)


# In a terminal.

ALL_VERBS = """
import json, sys
from ipytaskpersist.__main__ import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    print("verb:", arguments[0], flush=True)
    try:
        main()
    except SystemExit as end:
        print("status:", end.code, flush=True)
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MOVE = re.compile(r"\x1b\[[0-9]*[ABCDEFGJK]")
STEERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def at_terminal(state_dir: Path, cwd: Path, lines: Sequence[Sequence[str]]) -> dict[str, str]:
    """What a real terminal gets from each of these commands."""
    import pexpect

    child = pexpect.spawn(
        sys.executable, ["-c", ALL_VERBS, json.dumps(lines)], cwd=str(cwd), dimensions=(40, 200),
        env=environment(state_dir, {"IPYTASKPERSIST_NOTEBOOK": str(cwd / "a.ipynb")}), timeout=60,
        encoding="utf-8", codec_errors="replace", echo=False,
    )  # fmt: skip
    for _question in lines:
        child.sendline("no")
    child.expect(pexpect.EOF)
    child.close()
    said = re.split(r"verb: (\w+)\r\n", child.before)[1:]
    found: dict[str, str] = {}
    for verb, text in zip(said[::2], said[1::2], strict=True):
        found[verb] = found.get(verb, "") + text
    return found


def test_no_verb_lets_a_text_steer_the_terminal(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verb, with a task of every state, a file and a folder full of attacks."""
    ids = make_hostile(state_dir, str(tmp_path / "a.ipynb"))
    name = json.dumps(f"x{STEERING}").replace("\\u007f", "\\u007F")
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.ipytaskpersist]\n{name} = 1\nrunner = {name}\nsecret_names = [{name}]\n"
    )
    (tmp_path / "evil.jsonl").write_text(evil_file())
    evil = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": STEERING}]}
    (tmp_path / "evil.ipynb").write_text(json.dumps(evil))
    lines = [
        *(["list", *more] for more in ([], ["--all"], ["--json"], ["--state", "failed"])),
        *([verb, task] for task in ids for verb in ("show", "output", "result")),
        *(["wait", task, "--timeout", "0"] for task in ids),
        *(["show", task, "--json"] for task in ids[:2]), ["output", ids[0], "--json"],
        *([verb, ids[0]] for verb in ("rerun", "resume", "cancel", "load", "unarchive", "delete")),
        *(["cancel", task] for task in ids[1:2]), ["tag", ids[0]], ["keep", ids[0]],
        ["search", "pwned"], ["search", "title", "--json"], ["sessions", "--all"], ["stats"],
        ["stats", "--json"], ["sessions", "--json"], ["config"], ["config", "secret_names"],
        ["doctor"], ["doctor", "--json"], ["import", "evil.jsonl"], ["archive", ids[0]],
        ["list", "--archived", "--all"], ["export", ids[0], "--output", "out.jsonl"],
        ["list", STEERING], ["show", STEERING], ["export", STEERING], ["config", STEERING],
        ["fill", STEERING], ["fill", "evil.ipynb"], ["backup", f"{STEERING}/x"],
        ["restore", STEERING], ["panel"], ["clear"], ["adopt"],
        ["group", STEERING, "--width", "1"], ["group", f"x{STEERING}"], ["groups"],
        ["groups", "--json"], ["move", STEERING, "--first"], ["move", ids[0], "--before", STEERING],
        *([verb, "--group", STEERING] for verb in ("pause", "continue")), ["pause", ids[0]],
        *(["stack", task] for task in ids), ["stack", STEERING], ["stack", ids[0], "--json"],
        ["top", "--all", "--times", "1"], ["top", "--all", "--json"], ["top", "--every", STEERING],
        ["run", STEERING], ["run", "evil.ipynb"], ["run", "evil.ipynb", "-p", STEERING],
        ["places"], ["places", "--json"],
        ["places", STEERING], ["service", STEERING], ["service", "status"], ["service", "run"],
        ["mcp", "--cwd", STEERING], ["mcp", STEERING], ["output", ids[0], "--at-most", "4000"],
    ]  # fmt: skip
    shown = at_terminal(state_dir, tmp_path, lines)
    assert set(VERBS) <= set(shown), "each verb is attacked"
    assert set(VERBS) == set(every_verb())
    for verb, text in shown.items():
        assert "Traceback" not in text or verb in ("show", "output"), (verb, text)
        rest = COLOUR.sub("", text)
        rest = MOVE.sub("", rest).replace("\x08", "") if verb in ("output", "wait") else rest
        found = STEERS.search(rest)
        assert found is None, (verb, rest[max(0, found.start() - 80) : found.end() + 20])
        turned = TURNS.search(rest)
        # What a task has printed is shown as it is, but for what steers.
        assert verb == "output" or turned is None, (verb, rest[max(0, turned.start() - 80) :][:160])


def evil_file() -> str:
    """An export in which the names of members and the texts of wrong ones are attacks."""
    session = {"type": "session", "id": "s", "notebook": ONE_LINE}
    task = {"type": "task", "id": ONE_LINE, "kind": ONE_LINE, "provenance": {ONE_LINE: []}}
    old = {"sessions": [{ONE_LINE: 1}], "tasks": [{"status": ONE_LINE, "id": ONE_LINE}]}
    header = {"type": "header", "format": "ipytaskpersist", "version": 1}
    lines = [header, session, task, {"type": ONE_LINE}, old]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def test_what_is_said_before_a_prompt_steers_nothing(hostile: BackgroundTasks) -> None:
    tasks = hostile.tasks.select(Selection())
    said = [announcements.in_words([task for task in tasks if task.state.is_final])]
    said += [formatting.launched_text(task) for task in tasks]
    said += [greeting_words.in_words(news_of(tasks))]
    said += [status_card.card_text(card_content.CardReader(hostile).read(t, formatting.utc_now()))
             for t in tasks]  # fmt: skip
    for text in said:
        assert "pwned" in text
        assert not STEERS.search(COLOUR.sub("", text)), text
        assert not TURNS.search(text)


def test_what_is_told_elsewhere_is_plain_text(hostile: BackgroundTasks) -> None:
    for task in hostile.tasks.select(Selection()):
        told = message_about(hostile.store, task)
        for text in (told.label, told.title, told.body):
            assert not STEERS.search(text)
            assert not TURNS.search(text)
    assert not STEERS.search(masked(ATTACK))


def test_what_is_offered_on_tab_can_be_shown_and_typed(hostile: BackgroundTasks) -> None:
    """A shell shows it as it is, also what it is helped with."""
    import click

    from ipytaskpersist.commands.surfaces import Surface

    context = click.Context(click.Command("x"), obj=Surface(hostile))
    offered = 0
    for complete in (completion.tasks, completion.sessions, completion.tags, completion.notebooks):
        for item in complete(context, None, ""):  # type: ignore[arg-type]
            offered += 1
            for text in (item.value, item.help or ""):
                assert legible(text) == text
    assert offered >= 6


def test_each_line_of_a_file_is_one_line(hostile: BackgroundTasks) -> None:
    """A text with a line feed in it cannot pass itself off as two messages."""
    tasks = hostile.tasks.select(Selection())
    for task in tasks:
        assert "\n" not in legible(f"{task.name}\n{task.reason}\nforged: line")
