"""A far end of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from far_ends import FarEnds


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarEnds]:
    """An agent whose home is a private folder, with a space and an umlaut in its name."""
    with closing(FarEnds(tmp_path / "Über all")) as far:
        yield far
