"""The profiles of the properties, and what many examples need."""

from __future__ import annotations

from pathlib import Path

import pytest

from properties import profiles


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nobody knows how long so many examples take."""
    here = Path(__file__).parent
    for item in items if profiles.is_thorough() else ():
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(0))
