"""An export holds all that is known of tasks, in forms for programs and for people."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from programs import environment, run_command, run_python
from stores import HOSTILE, NOT_UTF_8, PIXEL, archive_some, command, copied, make_store, opened

from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.cells.shell_commands import usual_shell
from ipytaskpersist.history import export_page
from ipytaskpersist.history.documents import encoded
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.tasks import NewTask
from ipytaskpersist.text.colours import Colours
from ipytaskpersist.text.sanitized_html import harmless_html, harmless_output

Document = dict[str, Any]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with tasks of every kind, for reading only."""
    folder = tmp_path_factory.mktemp("full")
    make_store(folder / "state", folder / "analysis.ipynb")
    return folder / "state"


@pytest.fixture(scope="module")
def lines(full: Path) -> list[Document]:
    """What `export --all` writes."""
    return [json.loads(line) for line in command(full, "export", "--all").stdout.splitlines()]


@pytest.fixture(scope="module")
def tasks(lines: list[Document]) -> dict[str, Document]:
    """The tasks of the export by their names, each with all of its outputs and results."""
    found: dict[str, Document] = {}
    for line in lines:
        if line["type"] == "task":
            found.setdefault(line["name"], line)
            latest = line
        elif line["type"] == "more":
            assert line["task"] == latest["id"]
            latest["outputs"] += line["outputs"]
            latest["results"] += line["results"]
    return found


def stream(task: Document, name: str) -> bytes:
    pieces = [each for each in task["outputs"] if each["kind"] == name]
    return b"".join(
        each["text"].encode() if "text" in each else base64.b64decode(each["base64"])
        for each in pieces
    )


# Lines of JSON.


def test_an_export_begins_with_a_header_and_ends_with_what_it_holds(lines: list[Document]) -> None:
    assert lines[0] == {"type": "header", "format": "ipytaskpersist", "version": 1}
    assert lines[-1] == {"type": "end", "sessions": 1, "tasks": 7}
    assert [line["type"] for line in lines[1:3]] == ["session", "task"]


def test_a_session_tells_host_notebook_times_and_how_it_ended(
    full: Path, lines: list[Document]
) -> None:
    session = lines[1]
    assert session["path"].endswith("analysis.ipynb")
    assert session["notebook"]["path"] == session["path"]
    assert (session["front_end"], session["end_reason"]) == ("terminal", "IPython ended")
    assert session["host"]
    assert session["started_at"] <= session["ended_at"]
    with opened(full) as store:
        (known,) = store.sessions.select(None)
        assert session["notebook"]["uid"] == store.sessions.uid_of_notebook(known.notebook_key)


def test_streams_are_exact_also_when_they_are_no_text(tasks: dict[str, Document]) -> None:
    task = tasks["bytes"]
    assert stream(task, "stdout") == NOT_UTF_8
    assert stream(task, "stderr") == "é\n".encode()
    assert ["base64" in each for each in task["outputs"]] == [True, False]


def test_a_process_tells_its_command_directory_options_and_what_it_used(
    tasks: dict[str, Document],
) -> None:
    task = tasks["bytes"]
    assert (task["state"], task["exit_code"], task["reason"]) == ("failed", 3, "exit status 3")
    process = task["process"]
    assert process["command"][:2] == [usual_shell(), "-c"]
    assert Path(process["directory"]).is_dir()
    assert process["options"] == {"env": {"COLOUR": "blue"}}
    assert process["cpu_s"] >= 0
    assert process["peak_memory_bytes"] > 0


def test_displays_updates_and_errors_have_all_that_was_sent(tasks: dict[str, Document]) -> None:
    outputs = tasks[HOSTILE]["outputs"]
    assert [each["kind"] for each in outputs] == [
        *("display_data", "clear_output", "display_data", "update_display_data"),
        *("display_data", "display_data", "error"),
    ]
    assert outputs[4]["content"]["data"]["image/png"] == PIXEL
    assert "<script>" in outputs[3]["content"]["data"]["text/html"]
    assert "NaN" in outputs[5]["text"]
    assert outputs[6]["content"]["ename"] == "ZeroDivisionError"


def test_results_have_their_text_and_their_signed_pickle(tasks: dict[str, Document]) -> None:
    (result,) = tasks["first"]["results"]
    assert (result["name"], result["text"]) == ("", "{'answer': 42}")
    assert re.fullmatch(r"[0-9a-f]{64}", result["signature"])
    assert result["pickle"]
    left = {each["name"]: each for each in tasks["process"]["results"]}
    assert left["numbers"]["text"] == "[1, 2]"


def test_a_task_has_its_history_tags_and_what_it_runs_again(lines: list[Document]) -> None:
    first, again = (line for line in lines if line.get("name") == "first")
    assert [event["state"] for event in first["history"]] == ["pending", "running", "completed"]
    assert [event["at"] for event in first["history"]] == [
        first[name] for name in ("created_at", "started_at", "ended_at")
    ]
    assert again["tags"] == ["größer", "nightly"]
    assert again["provenance"]["rerun_of"] == first["id"]


def test_times_are_the_very_numbers_of_the_store(full: Path, lines: list[Document]) -> None:
    with opened(full) as store:
        kept = store.database.rows("SELECT id, created_at, started_at, ended_at FROM tasks")
    names = ("id", "created_at", "started_at", "ended_at")
    found = [tuple(line[name] for name in names) for line in lines if line["type"] == "task"]
    assert sorted(found) == sorted(map(tuple, kept))


def test_a_long_task_goes_on_in_more_lines(
    lines: list[Document], tasks: dict[str, Document]
) -> None:
    task = tasks["long"]
    own = [line for line in lines if task["id"] in (line.get("id"), line.get("task"))]
    assert [line["more"] for line in own] == [True, False]
    assert stream(task, "stdout") == b"x" * 1_500_000 + b"\nend\n"


def test_exporting_a_great_output_takes_little_memory(state_dir: Path) -> None:
    """Ten times as much output takes hardly more memory, whatever the form."""
    with opened(state_dir) as store:
        session = store.sessions.begin(session_identity(None))
        for name, pieces in (("small", 4), ("great", 200)):
            new = NewTask(session.notebook_key, session.id, name, "python", "thread", "1")
            key = store.tasks.insert(new).key
            for _ in range(pieces):
                data = os.urandom(90_000).hex().encode() + b"\n"
                row = NewOutput(key, OutputKind.STDOUT, 1.0, data).as_row()
                store.outputs.append([row])
    code = """if True:
        import resource, sys
        from ipytaskpersist.commands.moving import FORMATS
        from ipytaskpersist.history.exporting import Export
        from ipytaskpersist.session.manager import current
        from ipytaskpersist.store.tasks import Selection
        manager, peaks = current(), []
        small, great = manager.tasks.select(Selection())
        for task in (small, great):
            for pieces in FORMATS.values():
                sum(map(len, pieces(Export(manager.archives, manager.payloads, [task]))))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(peaks[1] - peaks[0])
    """
    ended = run_python(code, state_dir)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 15_000, "KiB more for 36 MB of output"


# Which tasks.


def ids_in(directory: Path, *arguments: str) -> list[str]:
    exported = command(directory, "export", *arguments).stdout.splitlines()
    return [line["id"] for line in map(json.loads, exported) if line["type"] == "task"]


def test_tasks_are_chosen_by_reference_session_or_all(full: Path, lines: list[Document]) -> None:
    ids = [line["id"] for line in lines if line["type"] == "task"]
    assert ids_in(full, ids[1], ids[0]) == ids[:2]
    assert ids_in(full, "--session", ids[0][:8]) == ids
    for wrong in ([], ["--all", ids[0]], ["--all", "--session", ids[0][:8]]):
        assert len(command(full, "export", *wrong, status=1).stderr.splitlines()) == 1


def test_archived_tasks_are_exported_when_they_are_asked_for(
    full: Path, tmp_path: Path, lines: list[Document]
) -> None:
    """The lines are the same as before they were archived."""
    directory = copied(full, tmp_path / "state")
    archive_some(directory)
    ids = [line["id"] for line in lines if line["type"] == "task"]
    assert ids_in(directory, "--all") == [ids[0], *ids[3:]]
    assert ids_in(directory, ids[1]) == [ids[1]]
    exported = command(directory, "export", "--all", "--archived").stdout
    assert exported == command(full, "export", "--all").stdout


# Files.


def test_a_file_is_replaced_only_on_purpose(full: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("precious")
    refused = command(full, "export", "--all", "--output", target, status=1)
    assert "--force" in refused.stderr
    assert target.read_text() == "precious"
    said = command(full, "export", "--all", "--output", target, "--force").stdout
    assert said.startswith("exported 7 tasks of 1 notebook to ")
    assert target.read_bytes() == command(full, "export", "--all").stdout.encode()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(
    full: Path, tmp_path: Path
) -> None:
    refused = command(full, "export", "--all", "--output", tmp_path / "no" / "out", status=1)
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# One document.


def test_one_document_holds_what_the_lines_hold(
    full: Path, lines: list[Document], tasks: dict[str, Document]
) -> None:
    document = json.loads(command(full, "export", "--all", "--format", "json").stdout)
    assert document["sessions"] == [lines[1]]
    for task in document["tasks"]:
        if task["name"] != "first":
            assert {**task, "more": False} == {**tasks[task["name"]], "more": False}


# A notebook.


@pytest.fixture(scope="module")
def notebook(full: Path) -> Any:
    exported = command(full, "export", "--all", "--format", "ipynb").stdout
    return nbformat.reads(exported, as_version=nbformat.NO_CONVERT)


def test_a_notebook_is_valid_and_has_a_heading_and_a_cell_for_each_task(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code"] * 7
    assert notebook.cells[0].source.startswith("## 1 \\(first\\)")
    assert "✓ completed" in notebook.cells[0].source
    assert "<script>" not in notebook.cells[2].source.replace("\\<script\\>", "")


def test_a_notebook_has_the_outputs_as_they_were_at_the_end(notebook: Any) -> None:
    first, shown, failing, _process, long = (cell.outputs for cell in notebook.cells[1:10:2])
    kinds = {(each.output_type, each.get("name")) for each in first}
    assert kinds == {("stream", "stdout"), ("stream", "stderr"), ("execute_result", None)}
    assert [each.output_type for each in shown] == [*["display_data"] * 3, "error"]
    assert "cell" in shown[0].data["text/html"]
    assert shown[2].data["application/json"] == {"x": None}
    assert "".join(failing[0].text).startswith("\ufffd")
    assert len(long) == 1, "the pieces of a stream are one output"
    assert "".join(long[0].text) == "x" * 1_500_000 + "\nend\n"


def test_a_shell_command_is_a_cell_that_runs_it(notebook: Any) -> None:
    assert notebook.cells[5].source.startswith("%%sh\nprintf")


# A page.


class Page(HTMLParser):
    """Collects the elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)


@pytest.fixture(scope="module")
def html(full: Path) -> str:
    return str(command(full, "export", "--all", "--format", "html").stdout)


def test_a_page_runs_nothing_and_loads_nothing(html: str) -> None:
    page = Page(html)
    assert page.tags.count("section") == 7
    assert not {"script", "iframe", "object", "link", "base", "form", "a"} & set(page.tags)
    assert not [name for name, _value in page.attributes if name.startswith("on")]
    sources = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert sources == [f"data:image/png;base64,{PIXEL}"]
    assert "default-src 'none'" in html


def test_a_page_shows_names_colours_tables_and_errors(html: str) -> None:
    assert "&lt;script&gt;alert(&#x27;name&#x27;)" in html
    assert 'a <span class="red">red</span> line' in html
    assert '<table><tr><td colspan="2">cell</td></tr></table></div>' in html
    assert "ZeroDivisionError" in html
    assert "before" not in re.sub(r'<pre class="source">.*?</pre>', "", html, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("shown", "kept"),
    [
        ("<b onclick=x()>a</b>", "<b>a</b>"),
        ("<script>alert(1)</script>b", "b"),
        ("<svg onload=x()><script>y</script></svg>c", "c"),
        ("<img src=x onerror=y()>d", "d"),
        ("<td colspan='2\" onclick=x'>e", "<td>e</td>"),
        ("<p><table><tr></p>f", "<p><table><tr></tr></table></p>f"),
        ("</div></section>g", "g"),
        ("<a href='javascript:x()'>h</a>", "h"),
        ("&lt;script&gt;i", "&lt;script&gt;i"),
        ("<style>* { x }</style>j", "j"),
        ("<!-- <script> -->k", "k"),
    ],
)
def test_html_that_a_task_displayed_keeps_its_text_and_nothing_that_acts(
    shown: str, kept: str
) -> None:
    assert harmless_html(shown) == kept


def test_deeply_nested_html_is_cut_flat() -> None:
    assert harmless_html("<div>" * 100_000 + "x").count("<div>") == 100


def test_of_a_display_only_harmless_forms_stay() -> None:
    data = {"application/javascript": "x()", "text/html": "<b>y</b>", "image/png": PIXEL}
    output = harmless_output({"output_type": "display_data", "data": data, "metadata": {"a": 1}})
    assert output["data"] == {"image/png": PIXEL, "text/html": "<b>y</b>"}


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[1;34mx\x1b[m<", '<span class="bold blue">x</span>&lt;'),
        ("\x1b[38;5;196mx\x1b[39my", '<span style="color:#ff0000">x</span>y'),
        ("\x1b[48;2;1;2;300mx", '<span style="background-color:#0102ff">x</span>'),
        ("\x1b[97;41mx", '<span class="bright-white on-red">x</span>'),
        ("\x1b[38;5mx\x1b[999mz", "xz"),
        ("a\x1b[2Kb\x1b]0;title\x07c\x08", "abc"),
        ("\x1b[4:3mcurly", '<span class="underlined">curly</span>'),
        ("\x1b[4m\x1b[4:0mplain", "plain"),
        ("\x1b[38:2::255:0:10mx", '<span style="color:#ff000a">x</span>'),
        ("\x1b[38:2:255:0:10mx", '<span style="color:#ff000a">x</span>'),
        ("\x1b[58:2::1:2:3mx", "x"),
    ],
)
def test_colours_of_a_terminal_are_colours_of_the_page(printed: str, shown: str) -> None:
    assert Colours().html(printed) == shown


def test_a_colour_goes_on_in_the_next_line() -> None:
    colours = Colours()
    assert colours.html("\x1b[31mx") == colours.html("x") == '<span class="red">x</span>'


def test_a_display_of_a_list_as_json_is_on_the_page_as_well() -> None:
    data = {"application/json": [1, None], "text/plain": "a list"}
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    assert export_page.shown(output) == "<pre>a list</pre>\n"


# What text may hold.


def test_half_of_a_surrogate_pair_is_kept_as_jsons_own_escape() -> None:
    assert encoded({"name": "\udc80é\0"}) == '{"name":"\\udc80é\\u0000"}'.encode()
    assert json.loads(encoded("\udc80")) == "\udc80"


def test_a_reader_that_has_seen_enough_ends_the_export(full: Path) -> None:
    """As in `jupyter bg export --all | head -1`: no traceback."""
    import subprocess
    import sys

    words = [sys.executable, "-m", "ipytaskpersist", "export", "--all"]
    with subprocess.Popen(
        words, env=environment(full), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(30) == 0


def test_nothing_is_exported_from_where_there_is_no_store(state_dir: Path) -> None:
    ended = run_command(state_dir, "export", "--all")
    assert [json.loads(line)["type"] for line in ended.stdout.splitlines()] == ["header", "end"]
    assert not state_dir.exists()


@pytest.fixture(scope="module", autouse=True)
def _everything_has_ended(full: Path) -> Iterator[None]:
    from kernels import end_processes_of

    yield
    end_processes_of(full)
