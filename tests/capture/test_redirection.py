"""What the foreground captures is the foreground's: tasks print to the store, whoever captures."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import run_python

PRINTING = r"""
import contextlib, io, sys, threading, time
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

shell = InteractiveShell.instance()
with {capture}:
    shell.run_cell("%load_ext ipytaskpersist")
import ipytaskpersist as bg

task = bg.background("for line in range(3000): print(line, flush=True)", "prints")
caught = ""
while not task.done():
    with {capture} as captured:
        pass
    caught += getattr(captured, "stdout", None) or getattr(captured, "getvalue", str)()
stdout = task.stdout
assert stdout == "".join(f"{{line}}\n" for line in range(3000)), "the store has not got all"
assert not caught, f"the foreground has caught {{caught[:80]!r}}"
print("whole")
"""


@pytest.mark.parametrize(
    "capture", ["contextlib.redirect_stdout(io.StringIO())", "capture_output()"]
)
def test_no_print_of_a_task_is_lost_while_the_foreground_begins_and_ends_to_capture(
    capture: str, state_dir: Path
) -> None:
    """Also when the extension was loaded within such a block, as by ``%%capture``."""
    ran = run_python(PRINTING.format(capture=capture), state_dir)
    assert ran.stdout.endswith("whole\n"), (ran.stdout[-500:], ran.stderr[-2000:])
