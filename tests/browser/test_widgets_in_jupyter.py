"""Widgets of tasks in a real page: live ones, and what is shown of those that are gone."""

from __future__ import annotations

from collections.abc import Callable

from browser.page import NotebookPage

WIDGETS = """
import ipywidgets
from tqdm.notebook import tqdm
from IPython.display import display
for n in tqdm(range(3), desc='bar', leave=False): pass
inside = ipywidgets.Output()
display(ipywidgets.IntSlider(7, description='slider'), inside)
with inside: print('written ' + 'inside')
"""
BROKEN = "Error displaying widget"


def test_widgets_of_a_task_are_shown_live_and_later_as_they_were(
    make_notebook: Callable[..., NotebookPage],
) -> None:
    notebook = make_notebook("lab", "7.4").load_extension()
    for runner in ("--thread", "--process"):
        notebook.run_cell(f"%%background {runner}\n{WIDGETS}")
        notebook.run_cell("%bg_wait")
    for task in (1, 2):
        shown = notebook.run_cell(f"%bg_output {task}")
        shown.wait_output("written inside")
        shown.wait_output("slider")
        assert "100%" in shown.text
        assert BROKEN not in shown.text
        assert shown.box.inner_text().count("written inside") == 1
    notebook.restart_from_the_button()
    notebook.load_extension()
    for task in (1, 2):
        shown = notebook.run_cell(f"%bg_output {task}")
        shown.wait_output("written inside")
        assert "slider" in shown.text
        assert "100%" in shown.text
        assert BROKEN not in shown.text
