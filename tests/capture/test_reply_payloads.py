"""What a task pages, or would put into a cell, is shown by the task and by no other cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel
from programs import run_python


def background(kernel: NotebookKernel, source: str, *options: str) -> list[dict[str, Any]]:
    """Run a cell as a task; return its outputs when no other cell got a payload."""
    cells = [
        kernel.run(f"%%background {' '.join(options)}\n{source}"),
        kernel.run("%bg_wait"),
        kernel.run("%bg_output --json"),
    ]
    assert [cell.payload for cell in cells] == [[], [], []]
    outputs: list[dict[str, Any]] = json.loads(cells[-1].stream("stdout"))
    return outputs


@pytest.mark.parametrize("runner", ["--thread", "--process"])
@pytest.mark.parametrize("paging", ["len?", "%pinfo len"])
def test_what_is_asked_about_an_object_is_shown_by_the_task(
    kernel: NotebookKernel, paging: str, runner: str
) -> None:
    (shown,) = background(kernel, paging, runner)
    assert shown["output_type"] == "display_data"
    assert "number of items in a container" in shown["data"]["text/plain"]
    (payload,) = kernel.run(paging).payload
    assert "number of items in a container" in payload["data"]["text/plain"]


def test_a_text_that_is_paged_is_shown_by_the_task(kernel: NotebookKernel) -> None:
    (shown,) = background(kernel, "from IPython.core import page\npage.page('a long text')")
    assert shown["data"] == {"text/plain": "a long text"}
    (shown,) = background(
        kernel,
        "get_ipython().payload_manager.write_payload("
        "{'source': 'page', 'data': {'text/html': '<b>'}, 'start': 0})",
    )
    assert shown["data"] == {"text/html": "<b>"}


REFUSED = "is not possible from background task 1 (cell); run it in a foreground cell\n"


@pytest.mark.parametrize("runner", ["--thread", "--process"])
@pytest.mark.parametrize("filling", ["%load file.py", "get_ipython().set_next_input('x = 1\\n')"])
def test_a_text_for_a_cell_is_shown_with_what_to_do(
    kernel: NotebookKernel, filling: str, runner: str
) -> None:
    (kernel.cwd / "file.py").write_text("x = 1\n")
    told, shown = background(kernel, filling, "cell", runner)
    assert told["name"] == "stderr"
    assert told["text"] == f"putting text into a cell {REFUSED}"
    assert "x = 1" in shown["data"]["text/plain"]
    (payload,) = kernel.run(filling).payload
    assert payload["source"] == "set_next_input"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("edit_magic", "opening a file in the editor"),
        ("other", "what other asks the front end for"),
    ],
)
def test_what_else_would_be_asked_of_the_front_end_is_told_and_dropped(
    kernel: NotebookKernel, source: str, what: str
) -> None:
    asking = f"get_ipython().payload_manager.write_payload({{'source': {source!r}}})"
    (told,) = background(kernel, asking, "cell")
    assert told == {"output_type": "stream", "name": "stderr", "text": f"{what} {REFUSED}"}
    assert kernel.run(asking).payload == [{"source": source}]


def test_beside_a_task_the_foreground_pages_as_ever(kernel: NotebookKernel) -> None:
    kernel.run("import threading\ngo = threading.Event()")
    kernel.run("%%background\ngo.wait(60)\nlen?")
    payloads = kernel.run("dict?").payload
    assert [payload["source"] for payload in payloads] == ["page"]
    assert kernel.run("go.set()\n%bg_wait").payload == []


def test_unloading_puts_the_pager_back(kernel: NotebookKernel) -> None:
    kernel.run("%%background\n1")
    look = "print([hook for _, hook in get_ipython().hooks.show_in_pager])"
    assert "_show_in_pager" in kernel.run(look).text
    kernel.run("%unload_ext ipytaskpersist")
    assert "_show_in_pager" not in kernel.run(look).text


IN_A_TERMINAL = """
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell("%load_ext ipytaskpersist")
import ipytaskpersist as bg

task = bg.background("get_ipython().set_next_input('x = 1')\\nlen?", "cell")
task.wait(60)
assert "rl_next_input" not in vars(shell), shell.rl_next_input
told, text, page = task.outputs
assert told["text"].startswith("putting text into a cell is not possible"), told
assert text["data"] == {"text/plain": "x = 1"}, text
assert "number of items" in page["data"]["text/plain"], page
shell.set_next_input("y = 2")
assert shell.rl_next_input == "y = 2"
print("apart")
"""


def test_in_a_terminal_nothing_is_put_after_the_prompt_and_no_pager_opens(state_dir: Path) -> None:
    ran = run_python(IN_A_TERMINAL, state_dir)
    assert ran.stdout.endswith("apart\n"), (ran.stdout[-500:], ran.stderr[-2000:])
