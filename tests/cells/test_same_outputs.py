"""A cell gives in the background what it gives in the foreground."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from compare import CellRun, CodeCell, Output, compare, described, differences, normalised

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))
AT_ONCE = 6
"""Notebooks that share their two kernels: to start these costs more than most notebooks."""


@pytest.mark.parametrize(
    "notebooks",
    [NOTEBOOKS[begin : begin + AT_ONCE] for begin in range(0, len(NOTEBOOKS), AT_ONCE)],
    ids=lambda paths: f"{paths[0].stem} to {paths[-1].stem}",
)
def test_every_cell_gives_the_same_in_the_background(notebooks: list[Path], tmp_path: Path) -> None:
    problems = compare(notebooks, tmp_path / "kernel")
    assert not problems, "\n\n".join([f"{len(problems)} differences", *problems])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(notebook: Path) -> None:
    """The reference is a run on this machine, never a stored one."""
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    assert not any(cell.get("outputs") for cell in content.cells)


def stream(name: str, text: str) -> Output:
    return {"output_type": "stream", "name": name, "text": text}


def run_of(*outputs: Output, tags: frozenset[str] = frozenset()) -> list[CellRun]:
    return [CellRun(CodeCell("some", 1, "pass", tags), {"the cell": list(outputs)})]


OUT, ERR = stream("stdout", "out\n"), stream("stderr", "err\n")


def test_the_place_where_a_stream_is_cut_is_no_difference() -> None:
    pieces = [stream("stdout", "one\nt"), stream("stdout", "wo\n")]
    assert described(pieces) == described([stream("stdout", "one\ntwo\n")])


def test_the_order_of_two_streams_is_compared() -> None:
    assert list(differences([run_of(OUT, ERR)], run_of(ERR, OUT)))
    assert not list(differences([run_of(OUT, ERR), run_of(ERR, OUT)], run_of(ERR, OUT)))


def test_a_difference_names_the_cell_and_shows_both_sides() -> None:
    (problem,) = differences([run_of(OUT)], run_of(stream("stdout", "other\n")))
    assert problem.startswith("some, cell 1\n  | pass\n")
    assert "-    'out\\n'" in problem
    assert "+    'other\\n'" in problem


def test_an_output_that_no_notebook_may_hold_is_a_difference() -> None:
    broken = {"output_type": "display_data", "data": {"text/plain": "1"}, "metadata": {}, "x": 1}
    (problem,) = differences([run_of(broken)], run_of(broken))
    assert "not a valid notebook output" in problem


def test_what_turns_up_in_another_cell_is_a_difference() -> None:
    run = CellRun(CodeCell("some", 1, "pass"), {"the cell": [OUT]}, leaked=[ERR])
    (problem,) = differences([run_of(OUT)], [run])
    assert "in another cell's output:\nstderr:" in problem


def test_a_known_difference_that_is_gone_is_told() -> None:
    known = frozenset({"known-difference"})
    assert not list(differences([run_of(OUT)], run_of(ERR, tags=known)))
    (problem,) = differences([run_of(OUT)], run_of(OUT, tags=known))
    assert "but all is the same" in problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cell In[3], line 2", "Cell In[17], line 2"),
        ("/tmp/ipykernel_1/123456.py:3: UserWarning", "/tmp/ipykernel_9/98765.py:3: UserWarning"),
        ("<A object at 0x7f12ab34cd56>", "<A object at 0x7faaaaaaaaaa>"),
        (
            "\r 50%|#    | 1/2 [00:00<00:01, 9.51it/s, loss=1]\r100%|###| 2/2 [00:00<00:00, ?it/s]",
            "\r100%|##########| 2/2 [00:02<00:00, 12.1s/it]   ",
        ),
        ("12.3 ns ± 0.4 ns per loop", "1.21 µs ± 33 ms per loop"),
    ],
)
def test_what_changes_from_run_to_run_is_no_difference(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cell In[3], line 2", "Cell In[3], line 3"),
        ("\r1", "\r2"),
        (
            "100%|#| 2/2 [00:00<00:00, 9.5it/s, loss=1]",
            "100%|#| 2/2 [00:00<00:00, 9.5it/s, loss=2]",
        ),
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\r\n", "a\n"),
    ],
)
def test_what_a_cell_says_is_compared(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
