"""Where the files of the tests are."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
ROOT = TESTS.parent
SCHEMAS = TESTS / "store" / "schemas"
"""Stores of earlier versions."""
SHAPES = TESTS / "history" / "imports"
"""Files that can be imported, of several shapes."""
