"""What the foreground has made and a task goes on with: displays, bars, and results of cells."""

from __future__ import annotations

import pytest
from kernels import Cell, NotebookKernel

SETUP = """
from IPython.display import display, update_display, ProgressBar, DisplayHandle
from tqdm import tqdm
from tqdm.notebook import tqdm as widget_tqdm
"""


def run_process(kernel: NotebookKernel, source: str) -> Cell:
    """Run a cell in a process; its outputs."""
    kernel.run(f"%%background --process\n{source}")
    assert "completed" in kernel.run("%bg_wait", timeout=120).text
    return kernel.run("%bg_output")


def test_a_display_of_the_foreground_is_a_process_tasks_own_and_is_updated_there(
    kernel: NotebookKernel,
) -> None:
    shown = kernel.run(
        f"{SETUP}handle = display('first', display_id=True)\nbar = ProgressBar(4); bar.display()"
    )
    handed = run_process(
        kernel,
        "handle.update('second'); handle.update('third')\n"
        "update_display('named', display_id=handle.display_id)\n"
        "for _ in bar: pass\nbar.progress = 3\n"
        "mine = display('mine', display_id=True); mine.update('mine too')",
    )
    texts = [output.data["text/plain"] for output in handed.outputs]
    assert (texts[0], texts[-1]) == ("'named'", "'mine too'")
    assert "3/4" in texts[1]
    assert len(texts) == 3
    kernel.take_until(lambda: shown.outputs[0].data["text/plain"] == "'named'", 30, "the update")
    kernel.take_until(lambda: "3/4" in shown.outputs[1].data["text/plain"], 30, "the bar")
    kernel.run("mine.update('from here')\nDisplayHandle(handle.display_id).update('here again')")
    assert shown.outputs[0].data["text/plain"] == "'here again'"


def test_bars_of_the_foreground_go_on_in_a_process(kernel: NotebookKernel) -> None:
    kernel.run(
        f"{SETUP}text = tqdm(total=10, desc='text'); text.update(2)\n"
        "widget = widget_tqdm(total=10, desc='widget'); widget.update(2)\n"
        "both = widget_tqdm(range(3), desc='loop')"
    )
    shown = run_process(
        kernel,
        "text.update(3); text.refresh()\nwidget.update(8); widget.close()\nfor n in both: pass",
    )
    assert "text:  50%|█████     | 5/10" in shown.stream("stderr")
    bars = [output.data["text/plain"] for output in shown.outputs if "data" in output]
    assert bars[0].startswith("widget: 100%|██████████| 10/10")
    assert bars[1].startswith("loop: 100%|██████████| 3/3")
    after = kernel.run("print(text.n, widget.n)")
    assert printed(after) == "2 2"
    assert "not brought back: text (tqdm objects stay in their process)" in after.stream("stderr")


def printed(cell: Cell) -> str:
    return cell.stream("stdout").strip()


@pytest.mark.parametrize("runner", ["--thread", "--process"])
def test_a_cell_that_reads_results_of_cells_is_told_what_they_are(
    kernel: NotebookKernel, runner: str
) -> None:
    kernel.run("'one'")
    kernel.run("'two'")
    meaning = "the notebook's" if runner == "--thread" else "empty in a process"
    for source, names in {
        "print(len(_))": "_",
        "%time len(__)": "__",
        "def f(): return Out": "Out",
        "[In[-1], _oh]": "In, _oh",
        "_2": "_2",
    }.items():
        said = kernel.run(f"%%background {runner}\n{source}").stream("stderr")
        assert f" reads {names}, " in said, source
        assert meaning in said
    for source in (
        "for _ in [1]: pass",
        "Out = 1; Out",
        "sum(_ for _ in [1])",
        "'_ Out'",
        "a_ = 1",
    ):
        assert kernel.run(f"%%background {runner}\n{source}").stream("stderr") == "", source
    kernel.run("_ = str")
    assert kernel.run(f"%%background {runner}\n_(1)").stream("stderr") == ""
    kernel.run("%bg_wait", timeout=180)
