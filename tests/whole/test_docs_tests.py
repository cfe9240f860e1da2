"""The pages that name the test of what they promise name tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from pages import ROOT

TESTS = ROOT / "tests"
SECURITY = ROOT / "docs" / "security.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
NAME = re.compile(r"`(tests/[\w/.]+|test_\w+\.py|test_\w+…?|…\w+…?)`")


def named(page: str) -> Iterator[tuple[str, str]]:
    """The file of each test that a page names, and the pattern of its name; ``*`` for a file.

    A test is in the file that was named last, in its table or on its way there.
    """
    file = ""
    for name in NAME.findall(page):
        if name.endswith(".py") or "/" in name:
            file = name
            yield file, "*"
        else:
            yield file, name.replace("…", "*")


def place_of(file: str) -> Path:
    return ROOT / file if file.startswith("tests/") else TESTS / "security" / file


def functions_in(file: Path) -> list[str]:
    functions = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [each.name for each in functions if isinstance(each, ast.FunctionDef)]


def is_there(file: str, pattern: str) -> bool:
    place = place_of(file)
    if pattern == "*" or not place.is_file():
        return pattern == "*" and place.exists()
    return any(fnmatchcase(name, pattern) and name[:5] == "test_" for name in functions_in(place))


@pytest.mark.parametrize("page", [SECURITY, RELIABILITY], ids=lambda page: page.stem)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    found = [*named(page.read_text(encoding="utf-8"))]
    assert found
    assert [each for each in found if not is_there(*each)] == []


@pytest.mark.parametrize(
    ("text", "is_true"),
    [
        ("`test_sql.py`", True),
        ("`tests/whole/test_structure.py`: `…in_order_that…`", False),
        ("`test_docs.py`", False),
        ("`tests/whole/test_docs_tests.py`: `…a_page_names…`, `test_every_test…`", True),
        ("`tests/whole/test_docs_tests.py`, `test_sql.py`: `…a_page_names…`", False),
    ],
)
def test_a_name_that_no_test_has_is_found(text: str, is_true: bool) -> None:
    assert all(is_there(*each) for each in named(text)) is is_true
