"""Which calls of a stack are the user's: those below the cell's first, without this package's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ipytaskpersist.inspection.stacks import Frame

CELL = re.compile(r"[/\\]ipykernel_\d+[/\\]\d+\.py$|^<ipython-input-")
"""Names that ipykernel and IPython give to the code of cells."""
OWN = re.compile(
    r"[/\\]ipytaskpersist[/\\]"
    r"(base|capture|cells|inspection|isolation|output|runners|running|session|store|values)[/\\]"
)
MACHINERY = re.compile(
    r"[/\\](IPython|ipykernel|asyncio|traitlets|tornado|zmq|jupyter_client)[/\\]"
    r"|[/\\](threading|runpy|selectors|contextlib)\.py$"
    r"|[/\\](concurrent[/\\]futures|multiprocessing)[/\\]\w+\.py$"
    r"|^<frozen|^<string>$"
)
"""Code that runs the user's: calls of it that come first are not shown."""


def trimmed(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Return the calls from the cell's first on; without a cell, from the first that is foreign.

    Empty for a stack that is machinery alone, such as a thread that waits for work.
    """
    starts = [place for place, frame in enumerate(frames) if frame.is_cell]
    starts += [
        place
        for place, frame in enumerate(frames)
        if not MACHINERY.search(frame.file) and not OWN.search(frame.file)
    ]
    if not starts:
        return ()
    return tuple(frame for frame in frames[starts[0] :] if not OWN.search(frame.file))
