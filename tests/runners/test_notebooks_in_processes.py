"""A notebook whose cells run in processes is the notebook, or says what it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from compare import CodeCell
from notebooks_in_processes import (
    ALIKE,
    FOLLOWS,
    LOUD,
    SILENT,
    After,
    Notebooks,
    cells_of,
    in_words,
    judge,
    run_notebook,
)

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.py"))
CELL = CodeCell("some", 1, "names.append(1)")
ADA = ["builtins.list", "1234", "['ada']"]
BOB = ["builtins.list", "5678", "['bob']"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_in_a_process_differs_without_a_word(path: Path) -> None:
    silent = [in_words(each) for each in run_notebook(path) if each.kind == SILENT]
    assert not silent, "\n\n".join(silent)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebooks]:
    with Notebooks(tmp_path_factory.mktemp("notebooks").resolve()) as both:
        yield both


def test_cells_are_alike_or_loud(notebooks: Notebooks) -> None:
    """After a loud cell the next one finds what the foreground's finds."""
    sources = {
        "import threading\nlock, one = threading.Lock(), 1": LOUD,
        "two = one + 1\nprint(two)": ALIKE,
        "held = lock.acquire(timeout=1)": LOUD,
        "held, lock.locked()": LOUD,
        "numbers = [one, two]\nsame = numbers": ALIKE,
        "raise ValueError(numbers)": ALIKE,
    }
    cells = [CodeCell("some", number, source) for number, source in enumerate(sources, 1)]
    judged = list(notebooks.run(cells))
    kinds = [each.kind for each in judged]
    assert kinds == [*sources.values()], "\n\n".join(map(in_words, judged))


def test_what_differs_from_one_run_to_the_next_is_silent(notebooks: Notebooks) -> None:
    """A difference that is said could hide it: what is said is of the process."""
    sources = {"import os, threading": ALIKE, "held = [threading.Lock(), os.getpid()]": SILENT}
    cells = [CodeCell("some", number, source) for number, source in enumerate(sources, 1)]
    kinds = [each.kind for each in notebooks.run(cells)]
    assert kinds == [*sources.values()]


def after(
    values: dict[str, list[str]],
    *shared: tuple[str, ...],
    said: str = "",
    has_failed: bool = False,
    outputs: str = "",
) -> After:
    return After([outputs], values, frozenset(shared), has_failed, said)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (after({"names": ADA}, ("also", "names")), ALIKE),
        (after({"names": BOB}, ("also", "names")), SILENT),
        (after({}, ("also", "names")), SILENT),
        (after({"names": ADA, "more": ADA}, ("also", "names")), SILENT),
        (after({"names": ADA}), SILENT),
        (after({"names": ADA}, ("also", "names"), outputs="more"), SILENT),
        (after({"names": BOB}, ("also", "names"), has_failed=True), LOUD),
        (after({"names": BOB}, ("also", "names"), said="task 1: names is not (no)"), LOUD),
        (after({"names": BOB}, ("also", "names"), said="task 1: names2 is not (no)"), SILENT),
        (after({"names": BOB}, ("also", "names"), said="names is in the notebook"), SILENT),
        (
            after(
                {"names": BOB},
                ("also", "names"),
                said="task 1: names, b are in the notebook (names was changed in place); c is not",
            ),
            SILENT,
        ),
        (
            after(
                {"names": BOB},
                ("also", "names"),
                said="changed in the process, not brought back: names",
            ),
            LOUD,
        ),
    ],
)
def test_a_cell_is_silent_unless_something_names_what_differs(given: After, kind: str) -> None:
    assert judge(CELL, after({"names": ADA}, ("also", "names")), given).kind == kind


def test_a_cell_that_differs_after_another_follows_from_it() -> None:
    assert judge(CELL, after({"names": ADA}), after({"names": BOB}), before=SILENT).kind == FOLLOWS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_has_cells_that_compile(path: Path) -> None:
    cells = cells_of(path)
    assert len(cells) >= 12
    for cell in cells:
        if "%" not in cell.source:
            compile(cell.source, path.name, "exec")
