"""Pickles that nobody may load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@contextmanager
def guarded(folder: Path) -> Iterator[Path]:
    """Where a trap leaves its mark. None may be there at the end."""
    mark = folder / "mark"
    yield mark
    assert not mark.exists(), "a pickle that is not to be trusted was loaded"
