"""`output` gives all that a task has put out, or the part that was asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment
from typed import Notebook, Run, kinds

MIXED = """
import sys
print('one')
print('two')
print('oops', file=sys.stderr)
from IPython.display import HTML, display
display(HTML('<b>bold</b>'))
print('three')
'the value'
"""


def test_output_in_a_notebook_is_what_the_cell_itself_would_have_given(notebook: Notebook) -> None:
    plain = notebook.type(MIXED)
    notebook.finish(MIXED, "mixed")
    replayed = notebook.underscored("output", "mixed")
    assert replayed.cell is not None
    assert plain.cell is not None
    assert kinds(replayed.cell.outputs) == [
        "stdout", "stderr", "display_data", "stdout", "execute_result",
    ]  # fmt: skip
    for expected, given in zip(plain.cell.outputs[-3:], replayed.cell.outputs[-3:], strict=True):
        assert given.get("data", given.get("text")) == expected.get("data", expected.get("text"))


def test_output_gives_nbformat_outputs_as_json(notebook: Notebook, run: Run) -> None:
    notebook.finish(MIXED, "mixed")
    document = run("output", "mixed", "--json").json()
    assert kinds(document) == ["stdout", "stderr", "display_data", "stdout", "execute_result"]
    assert document[0] == {"output_type": "stream", "name": "stdout", "text": "one\ntwo\n"}
    assert document[2]["data"]["text/html"] == "<b>bold</b>"
    assert document[-1]["data"] == {"text/plain": "'the value'"}


@pytest.mark.parametrize(
    ("options", "stdout", "stderr"),
    [
        (["--stdout"], "one\ntwo\nthree\n", ""),
        (["--stderr"], "", "oops\n"),
        (["--stdout", "--stderr"], "one\ntwo\nthree\n", "oops\n"),
        (["--head", "1"], "one\n", ""),
        (["--head", "3"], "one\ntwo\n", "oops\n"),
        (["--stdout", "--head", "2"], "one\ntwo\n", ""),
        (["--stdout", "--tail", "2"], "two\nthree\n", ""),
        (["--tail", "0"], "", ""),
        (["--head", "0"], "", ""),
        (["--raw", "--stdout"], "one\ntwo\nthree\n", ""),
        (["--raw", "--stdout", "--tail", "1"], "three\n", ""),
        (["--raw", "--stdout", "--head", "1"], "one\n", ""),
    ],
)
def test_output_is_narrowed_by_stream_and_by_line(
    notebook: Notebook, options: list[str], stdout: str, stderr: str
) -> None:
    notebook.finish(MIXED, "mixed")
    answer = notebook.underscored("output", "mixed", *options)
    assert not answer.failed, answer.stderr
    assert (answer.stdout, answer.stderr) == (stdout, stderr)


LINES = "print(*range(1, 6), sep='\\n')\n"
CLEARED = "from IPython.display import clear_output\nprint('gone\\n' * 3)\nclear_output()\n" + LINES
UPDATED = f"handle = display('old', display_id=True)\n{LINES}for n in range(9): handle.update(n)\n"


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (CLEARED, ["--head", "2"], "1\n2\n"),
        (CLEARED, ["--tail", "2"], "4\n5\n"),
        (CLEARED, ["--tail", "9"], "1\n2\n3\n4\n5\n"),
        (UPDATED, ["--head", "1"], "8\n"),
        (UPDATED, ["--head", "2"], "8\n1\n"),
        (UPDATED, ["--tail", "1"], "5\n"),
        (UPDATED, ["--tail", "9"], "8\n1\n2\n3\n4\n5\n"),
    ],
)
def test_lines_are_counted_in_what_is_shown(
    notebook: Notebook, source: str, options: list[str], expected: str
) -> None:
    """Not in what was cleared or updated since: ten updates of a progress bar are one display."""
    task = notebook.finish(source)
    answer = notebook.underscored("output", task["id"], "--json", *options)
    texts = [
        output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"] + "\n"
        for output in answer.json()
    ]
    assert "".join(texts) == expected


BYTES = "import sys, os\nos.system(r\"printf 'a\\000b\\377\\303\\251\\n'\")\nprint('é')"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no printf")
def test_output_gives_the_very_bytes_raw_and_saved(notebook: Notebook) -> None:
    task = notebook.finish(BYTES)
    expected = b"a\0b\xff\xc3\xa9\n\xc3\xa9\n"
    raw = subprocess.run(
        [sys.executable, "-m", "ipytaskpersist", "output", "--raw", task["id"]],
        env=environment(notebook.state_dir), capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert raw.stdout == expected
    saved = notebook.state_dir.parent / f"{task['id']}.txt"
    answer = notebook.underscored("output", task["id"], "--save", str(saved))
    assert answer.stdout == f"task {task['number']}: 10 bytes written to {saved}\n"
    assert saved.read_bytes() == expected


def test_output_that_cannot_be_saved_is_one_line(notebook: Notebook) -> None:
    notebook.finish("print(1)")
    answer = notebook.underscored("output", "--save", "/no/such/file")
    assert answer.stderr == "UsageError: cannot write /no/such/file: No such file or directory\n"


def test_output_of_a_live_task_closes_with_its_state_on_stderr(
    notebook: Notebook, run: Run, tmp_path: Path
) -> None:
    with notebook.running("steady", before="print('before')") as task:
        for options in ([], ["--raw"], ["--save", str(tmp_path / "saved")]):
            answer = run("output", "steady", *options)
            assert answer.stdout.startswith("task " if "--save" in options else "before\n")
            assert re.fullmatch(
                rf"task {task['number']} \(steady\) is still running \(\d:\d\d\): "
                rf"(%bg_|jupyter bg )output {task['number']} --follow goes on\n",
                answer.stderr,
            )
        assert run("output", "steady", "--json").stderr == ""
    assert run("output", "steady").stderr == ""


def test_output_takes_several_tasks(notebook: Notebook, run: Run) -> None:
    one = notebook.finish("print(1)", "one thing")
    two = notebook.finish("print(2)", "another")
    shown = [
        f"==> task {one['number']} (one thing): completed <==\n1\n",
        f"==> task {two['number']} (another): completed <==\n2\n",
    ]
    assert run("output", "one", "thing", "-1").stdout == "".join(shown)
    assert run("output", "one thing", "another", "--raw").stdout == "1\n2\n"
    assert run("output", "--all").stdout.endswith("".join(shown))
    for references in ("one thing", "another"), (f"{one['number']},{two['number']}",):
        first, second = run("output", *references, "--json").json()["tasks"]
        assert (first["number"], second["number"]) == (one["number"], two["number"])
    notebook.finish("print(3)", "1,2")
    assert run("output", "1,2").stdout == "3\n", "it is a name"
    assert (first["id"], second["outputs"][0]["text"]) == (one["id"], "2\n")
    assert "--follow takes one task, not 2" in run("output", "-1", "-2", "--follow").stderr


def test_output_follows_a_task_to_its_end_in_a_notebook(notebook: Notebook) -> None:
    with notebook.running(before="print('before')", after="print('after')") as task:
        following = notebook.kernel.start(f"%bg_output --follow {task['id']}")
        notebook.kernel.take_until(lambda: "before\n" in following.text, 30, "the first line")
        assert not following.done
        task["gate"].touch()
        assert following.wait().text == "before\nafter\n"


def test_output_follows_a_task_to_its_end_in_a_terminal(notebook: Notebook) -> None:
    with notebook.running(before="print('before')", after="print('after')") as task:
        arguments = [sys.executable, "-m", "ipytaskpersist", "output", "--follow", task["id"]]
        with subprocess.Popen(
            arguments, env=environment(notebook.state_dir), stdout=subprocess.PIPE, text=True
        ) as following:
            try:
                assert following.stdout is not None
                assert following.stdout.readline() == "before\n"
                assert following.poll() is None
                task["gate"].touch()
                assert following.stdout.read() == "after\n"
                assert following.wait(30) == 0
            finally:
                following.kill()


def test_the_stop_button_ends_the_following_and_not_the_task(notebook: Notebook) -> None:
    with notebook.running(before="print('before')") as task:
        following = notebook.kernel.start(f"%bg_output --follow {task['id']}")
        notebook.kernel.take_until(lambda: "before\n" in following.text, 30, "the first line")
        notebook.kernel.interrupt()
        following.wait(check=False)
        assert f"no longer following; task {task['number']} runs on" in following.stream("stderr")
        assert notebook.show(task["id"])["state"] == "running"


def test_following_shows_updates_and_clearing_as_they_happen(notebook: Notebook) -> None:
    task = notebook.finish(
        "from IPython.display import clear_output\nprint('gone')\nclear_output()\n"
        "handle = display('old', display_id=True)\nhandle.update('new')\nprint('end')"
    )
    following = notebook.underscored("output", "--follow", task["id"])
    assert following.text == "'new'end\n"


def test_following_does_not_split_a_character(notebook: Notebook) -> None:
    """A stream is kept in pieces of 256 KiB, whose edge may be in the middle of a character."""
    task = notebook.finish("print('x' + 'é' * 400_000)")
    answer = notebook.underscored("output", "--follow", task["id"])
    assert answer.stdout == "x" + "é" * 400_000 + "\n"
