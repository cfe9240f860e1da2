"""The process of a Python task at a place.

It is the same child as here. In place of the store and the state directory it has a folder with
what was sent for it, and there it leaves its values.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ipytaskpersist.runners import child, task_rows

INLINE = "module://matplotlib_inline.backend_inline"


def main() -> None:
    """Run the task that was sent into the folder in the last argument."""
    root = Path(sys.argv[-1])
    # As in a notebook, though its environment does not come along.
    os.environ.setdefault("MPLBACKEND", INLINE)
    sys.argv[1:] = [str(root)]
    child.main(task_rows.read_sent(root))
