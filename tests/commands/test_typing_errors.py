"""A typing error is answered in one line with the next step."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import run_command
from typed import MakeKernel, Notebook, kinds

from ipytaskpersist.commands import launch_line
from ipytaskpersist.commands.launching import background
from ipytaskpersist.errors import InvalidRequest


@pytest.mark.parametrize(
    ("typed", "next_step"),
    [
        ("%%background\n   \n", "write the code to run in the background below %%background"),
        ("%%background\n# only a remark", None),
        ("%background", "write the code after %background"),
        ("%%background --name a b\n1", "exclude each other"),
        ("%%background --qqqqq\n1", "%%background --help"),
        ("%%background it's\n1", "quotation"),
        ("%%background x = 1\n2", "or all in one line: %background x = 1"),
        ("%%background --process time.sleep(3)\n2", "%background --process time.sleep(3)"),
        ("%%background --shell make -j8\nls", "%background --shell make -j8"),
        ("%%background 1\n2", "a number means"),
        ("%background --proces 1", "--process"),
        ("%bg_list --nope", "%bg_list --help"),
        ("%bg_list --sate failed", "--state"),
        ("%bg_list --state lost", "interrupted"),
        ("%bg_list --limit 0", "1"),
        ("%bg_list --limit many", "integer"),
        ("%bg_list --limit -5", "1"),
        ("%bg_list --session nope", "the most recent are"),
        ("%bg_list unexpected", "%bg_list --help"),
        ("%bg_list failed", "did you mean --state failed?"),
        ("%bg_list all", "did you mean --all?"),
        ("%bg_cancel all", "did you mean --all?"),
        ("%bg_output > out.txt", "did you mean --save FILE?"),
        ("%bg kill 1", "did you mean 'cancel'?"),
        ("%bg 1", "did you mean 'show 1'?"),
        ("%bg lst", "did you mean 'list'?"),
        ("%bg frobnicate", "there are adopt, archive, backup"),
        ("%bg_output nope", "in this notebook"),
        ("%bg_result 1 2", "no task '1 2'"),
        ("%bg_config runner fork", "it must be 'thread' or 'process'"),
        ("%bg_config IPYTASKPERSIST_DIR /x", "export IPYTASKPERSIST_DIR=/x"),
        ("%bg_output --head 1 --tail 1", "give one of them"),
        ("%bg_output --tail -1", "0"),
        ("%bg_output --follow --save x", "one of them"),
        ("%bg_output 99999", "in this notebook"),
        ("%bg_wait --timeout soon", "not a valid number of seconds"),
        ("%bg_wait nope", "in this notebook"),
        ("%bg_cancel nope", "in this notebook"),
        ("%bg_result nope", "in this notebook"),
        ("%bg_delete", "%bg_delete 3"),
        ("%bg_delete nope --yes", "in this notebook"),
        ("%bg_show 'unfinished", "quotation"),
    ],
)
def test_what_is_typed_wrong_is_one_line_with_the_next_step(
    notebook: Notebook, typed: str, next_step: str | None
) -> None:
    latest = notebook.finish("1")
    answer = notebook.type(typed)
    assert answer.cell is not None
    if next_step is None:
        assert not answer.failed
        return
    assert answer.cell.error is not None
    assert answer.cell.error[0] == "UsageError"
    assert kinds(answer.cell.outputs) == ["stderr"]
    assert answer.stderr.startswith("UsageError: ")
    assert answer.stderr.count("\n") == 1
    assert next_step in answer.stderr
    assert notebook.show()["id"] == latest["id"]


@pytest.mark.parametrize(
    "line",
    [
        "x = 1", "x = -1", "lr=0.1", "print('a b')", "model.fit(X, y)  # slow", "import os", "1+1",
        "for i in range(3):", "x[0]", "train time.sleep(3)", "train x = 1", "!ls", "%timeit f",
    ],
)  # fmt: skip
def test_code_on_the_line_of_the_name_is_refused(line: str) -> None:
    with pytest.raises(InvalidRequest, match="write the code on the lines below it"):
        launch_line.refuse_code(f"--env A=1 {line}", background)


@pytest.mark.parametrize(
    "line",
    [
        "", "train", "my long name", "train-2", "2024-11-15", "v1.0", "a/b.c", "run@host", "1.5",
        "not yet", "search and replace", "first pass", "best lr=0.1", "it: works", "'x = 1'",
        "naïve Bayes", "--tag a=b name", "# a remark",
    ],
)  # fmt: skip
def test_what_looks_like_a_name_is_one(line: str) -> None:
    launch_line.refuse_code(line, background)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("def (:", "SyntaxError"),
        ("x = 1\n   y = 2", "IndentationError"),
        ("print('a", "SyntaxError"),
        ("return 1", "SyntaxError"),
    ],
)
def test_a_cell_that_does_not_compile_is_a_syntax_error_and_no_task(
    notebook: Notebook, typed: str, name: str
) -> None:
    latest = notebook.finish("1")
    answer = notebook.type(f"%%background wrong\n{typed}")
    assert answer.cell is not None
    assert answer.cell.error is not None
    ename, _evalue, traceback = answer.cell.error
    assert ename == name
    shown = "\n".join(traceback)
    assert "Cell" in shown
    assert "ipytaskpersist" not in shown
    assert notebook.show()["id"] == latest["id"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "nope"], 1, "jupyter bg: no task 'nope' in this notebook"),
        (["output", "--head", "1", "--tail", "1"], 1, "jupyter bg: --head, --tail and --follow"),
        (["list", "--session", "nope"], 1, "jupyter bg: no session 'nope'"),
        (["list", "--nope"], 2, "Error: No such option"),
        (["lst"], 2, "Error: No verb 'lst'; did you mean 'list'?"),
        (["list", "--limit", "0"], 2, "Error: Invalid value for '--limit'"),
    ],
)
def test_what_is_typed_wrong_in_a_terminal_is_said_on_stderr(
    state_dir: Path, arguments: list[str], status: int, message: str
) -> None:
    answer = run_command(state_dir, *arguments)
    assert (answer.returncode, answer.stdout) == (status, "")
    *before, last = answer.stderr.splitlines()
    assert last.startswith(message)
    assert "%bg" not in last
    assert len(before) == (0 if status == 1 else 3)
    assert not state_dir.exists()


def test_a_state_directory_that_cannot_be_made_is_one_line(
    make_kernel: MakeKernel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    broken = tmp_path / "file" / "state"
    kernel = make_kernel(load=False, env={"IPYTASKPERSIST_DIR": str(broken)})
    notebook = Notebook(kernel, broken, tmp_path / "a.ipynb")
    loaded = notebook.type("%load_ext ipytaskpersist")
    assert not loaded.failed
    assert loaded.text.count("\n") <= 1
    launched = notebook.type("%%background\n1")
    assert launched.failed
    assert launched.stderr == (
        f"UsageError: cannot make the state directory {broken}: Not a directory; "
        "set IPYTASKPERSIST_DIR to a folder that you can write\n"
    )
    listed = notebook.type("%bg_list --json")
    assert listed.json() == {"tasks": [], "count": 0}
    shown = run_command(broken, "show", "1")
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    assert not notebook.type("print('the foreground goes on')").failed


def test_an_error_of_a_command_does_not_stop_the_tasks(notebook: Notebook) -> None:
    with notebook.running("steady", after="print('finished')") as task:
        assert notebook.type("%bg_show nope").failed
        assert notebook.type("%%background\ndef (:").failed
    assert notebook.ended(task)["last_line"] == "finished"


def test_numbers_follow_the_order_in_which_cells_are_run(notebook: Notebook) -> None:
    notebook.kernel.run(
        "for n in range(100):\n"
        "    get_ipython().run_cell_magic('background', f'n{n}', f'print({n})')"
    )
    tasks = notebook.underscored("list", "--json", "--limit", "100").json()["tasks"]
    assert [task["name"] for task in tasks] == [f"n{n}" for n in range(100)]
    numbers = [task["number"] for task in tasks]
    assert numbers == list(range(numbers[0], numbers[0] + 100))
    assert not notebook.underscored("wait", *map(str, numbers), "--check").failed
