"""Background cells as a person sees them: the card, the reload, the restart button."""

from __future__ import annotations

from browser.page import NotebookPage

SHELL = "%%background --shell count\nfor i in 1 2 3 4 5; do echo step $i; sleep 0.3; done"
THREAD = """%%background think
import time
for step in range(5):
    print("thought", step)
    time.sleep(0.3)
"""


def test_a_card_goes_from_running_to_completed_by_itself(notebook: NotebookPage) -> None:
    for source, name in ((SHELL, "count"), (THREAD, "think")):
        cell = notebook.run_cell(source)
        assert name in cell.wait_output("running")
        cell.wait_output("completed")
        assert "running" not in cell.text
