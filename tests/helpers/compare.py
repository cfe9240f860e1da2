"""Run a notebook in the foreground and in the background, and compare what its cells gave.

    python tests/helpers/compare.py NOTEBOOK …

does it by hand and prints the differences. Several notebooks run one after the other in the same
two kernels: what one of them leaves behind, it leaves in both. Tags of a cell say what is special:
`foreground`, it runs in the foreground both times; `raises-exception`, it may fail;
`known-difference`, the background is known to give something else, for the reason that its comment
gives, and it is an error when it does not.
"""

from __future__ import annotations

import base64
import copy
import difflib
import hashlib
import io
import itertools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from kernels import Cell, NotebookKernel, end_processes_of
from PIL import Image

Output = dict[str, Any]
Readings = dict[str, list[Output]]
"""The outputs of one cell by the way in which they were read."""

TASK_TIMEOUT_S = 120

# What differs between two runs of one cell in the foreground, and what is put in its place.
_CHANGING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"In ?\[\d+\]", "In[…]"),
        # From Python 3.12 on a kernel warns of a cell that it parses to see whether it awaits,
        # before it runs it: a warning of the kernel's, beside the cell's own one.
        (r"<>:\d+: SyntaxWarning: .*\n", ""),
        (r"(?:ipykernel_\d+[/\\])?\b\d{5,}\.py\b", "<cell>.py"),
        (r"\b0x[0-9a-fA-F]{6,16}\b", "0x…"),
        # %time and %%time
        (r"CPU times: .*", "CPU times: …"),
        (r"Wall time: .*", "Wall time: …"),
        # %timeit
        (r"\b[\d.]+ (?:s|ms|[µμu]s|ns) ± [\d.]+ (?:s|ms|[µμu]s|ns) per loop", "… per loop"),
        (r"The slowest run took .*\n", ""),
        (r"\d+ more times", "… more times"),
        # where a recursion ends depends on where it began
        (r"(skipping similar frames: .*) \(\d+ times\)", r"\1"),
        (r"(maximum recursion depth exceeded)[^'\"\n]*", r"\1"),
        # unittest
        (r"(Ran \d+ tests? in) [\d.]+s", r"\1 …s"),
        # asyncio counts the tasks of the kernel's own loop as well
        (r"\bTask-\d+\b", "Task-…"),
        # tqdm: times and rate, the bar that takes the room they leave, blanks over a longer line
        (r"\[(?:\d+:)+\d+(?:<[\d:?]+)?, *[\d.?]+[kMGT]?[^\s,\]]*", "[…"),
        (r"(\d%)\|[^|\r\n]*\|", r"\1|…|"),
        (r"(\[…[^\]\r\n]*\]) +(?=[\r\n]|$)", r"\1"),
        # ids made up by pandas, by matplotlib and by uuid4
        (r"\bT_[0-9a-f]{5}(?=\b|_)", "T_…"),
        (r"[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}", "<uuid>"),
        (r"\b[pmh][0-9a-f]{10}\b", "<svg id>"),
        (r"<dc:date>[^<]*</dc:date>", "<dc:date>…</dc:date>"),
    ]
]

# How often a progress bar is drawn depends on the time; how it looks in the end does not.
_REDRAWN = re.compile(r"(?:\r[^\r\n]*\[…[^\r\n]*)+(?=\r[^\r\n]*\[…)")

# ipykernel buffers stdout and stderr apart, so that a plain run shows them in an order of its own.
# With this, a stream is sent before the other one is written to: the order is that of the cell, as
# it is in the background.
# Its names are nowhere in the notebook, from which they would be removed.
KEEP_ORDER = """exec('''
import sys
from ipykernel.iostream import OutStream
schedule = OutStream._schedule_flush
def send_the_other(stream):
    other = sys.stderr if stream is sys.stdout else sys.stdout
    if getattr(other, "_buffers", None):
        other.flush()
    schedule(stream)
OutStream._schedule_flush = send_the_other
''', {})"""


@dataclass(frozen=True)
class CodeCell:
    """A code cell of a notebook; `number` counts all cells from 1."""

    notebook: str
    number: int
    source: str
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CellRun:
    """What one cell gave, and what of it turned up in other cells."""

    cell: CodeCell
    readings: Readings
    leaked: list[Output] = field(default_factory=list)


RunCell = Callable[[NotebookKernel, CodeCell], CellRun]


def compare(paths: Sequence[Path], folder: Path) -> list[str]:
    """Every difference between the foreground and the background, a readable text each.

    Both run in `folder`, emptied in between, so that every path that a cell can print is the same.
    """
    background = run_notebooks(paths, folder, run_in_background, setup="%load_ext ipytaskpersist")
    in_order = run_notebooks(paths, folder, run_in_foreground, setup=KEEP_ORDER)
    if problems := list(differences([in_order], background)):
        foreground = run_notebooks(paths, folder, run_in_foreground)
        problems = list(differences([foreground, in_order], background))
    return problems


def run_notebooks(
    paths: Sequence[Path], folder: Path, run_cell: RunCell, setup: str = ""
) -> list[CellRun]:
    """Run the code cells of notebooks one after the other in a new kernel."""
    shutil.rmtree(folder, ignore_errors=True)
    state_dir = folder / "state"
    try:
        with NotebookKernel(state_dir, folder=folder, env={"PYTHONHASHSEED": "0"}) as kernel:
            kernel.run(setup)
            return [
                (run_in_foreground if "foreground" in cell.tags else run_cell)(kernel, cell)
                for path in paths
                for cell in code_cells(path)
            ]
    finally:
        end_processes_of(state_dir)


def code_cells(path: Path) -> Iterator[CodeCell]:
    """The code cells of a notebook. The first finds no names of notebooks that ran before."""
    yield CodeCell(
        path.stem,
        0,
        "%reset_selective -f .\n__import__('gc').collect();",
        frozenset({"foreground"}),
    )
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
        if cell.cell_type == "code":
            tags = frozenset(cell.metadata.get("tags", []))
            yield CodeCell(path.stem, number, cell.source, tags)


def run_in_foreground(kernel: NotebookKernel, cell: CodeCell) -> CellRun:
    may_fail = "raises-exception" in cell.tags
    ran = kernel.run(cell.source, timeout=TASK_TIMEOUT_S, check=not may_fail)
    return CellRun(cell, {"the cell": snapshot(ran)})


def run_in_background(kernel: NotebookKernel, cell: CodeCell) -> CellRun:
    """Run a cell as a task and read its outputs in each way there is."""
    launched = kernel.run(f"%%background\n{cell.source}", check=False)
    if launched.error:  # A cell that does not compile fails at once, and there.
        return CellRun(cell, {"%%background": snapshot(launched)})
    stored = kernel.run(
        f"%bg_wait --timeout {TASK_TIMEOUT_S}\n%bg_output --json", timeout=TASK_TIMEOUT_S + 30
    )
    shown = kernel.run("%bg_output")
    return CellRun(
        cell,
        # Anything else on the standard output would keep it from being JSON.
        {"%bg_output": snapshot(shown), "%bg_output --json": _parsed(stored)},
        # Both cells show a status card, and nothing that the task printed.
        leaked=[
            *(out for out in launched.outputs if out.output_type == "stream"),
            *(out for out in stored.outputs if out.get("name") == "stderr"),
        ],
    )


def snapshot(cell: Cell) -> list[Output]:
    """The outputs as they are now: a later cell may update a display."""
    return [copy.deepcopy(dict(output)) for output in cell.outputs]


def _parsed(cell: Cell) -> list[Output]:
    try:
        outputs = json.loads(cell.stream("stdout"))
    except ValueError as error:
        raise AssertionError(f"{cell.source} gave no JSON: {error}\n{cell.text}") from error
    assert isinstance(outputs, list), f"{cell.source} gave no list: {outputs}"
    return outputs


def differences(
    references: Sequence[Sequence[CellRun]], actual: Sequence[CellRun]
) -> Iterator[str]:
    """What agrees with none of the reference runs, and what no notebook may hold."""
    for position, run in enumerate(actual):
        expected = [described(reference[position].readings["the cell"]) for reference in references]
        heading = f"{run.cell.notebook}, cell {run.cell.number}\n{_indented(run.cell.source)}\n"
        found = list(_differences(expected, run))
        if "known-difference" in run.cell.tags:
            found = [] if found else ["tagged as a known difference, but all is the same"]
        yield from (heading + problem for problem in found)


def _differences(expected: Sequence[list[str]], run: CellRun) -> Iterator[str]:
    for reading, outputs in run.readings.items():
        yield from (f"{reading}: {flaw}" for flaw in flaws(outputs))
        if (given := described(outputs)) not in expected:
            lines = difflib.unified_diff(
                expected[0], given, "foreground", reading, lineterm="", n=2
            )
            yield "\n".join(lines)
    if run.leaked:
        yield "\n".join(["in another cell's output:", *described(run.leaked)])


def flaws(outputs: Sequence[Output]) -> Iterator[str]:
    """What nbformat has against each output."""
    for output in outputs:
        try:
            nbformat.validate(output, ref="output", version=4, version_minor=5)
        except nbformat.ValidationError as error:
            yield f"not a valid notebook output: {error}\n{str(output)[:500]}"


def described(outputs: Sequence[Output]) -> list[str]:
    """Outputs as lines of text, without what changes from run to run."""
    return [line for output in _coalesced(outputs) for line in _lines(output)]


def _coalesced(outputs: Sequence[Output]) -> Iterator[Output]:
    """Join adjacent texts of one stream: where a stream is cut is a matter of time."""
    held: Output | None = None
    for output in outputs:
        if held and output.get("name") == held["name"]:
            held["text"] += _joined(output["text"])
            continue
        if held:
            yield held
        held = None
        if output["output_type"] == "stream":
            held = {**output, "text": _joined(output["text"])}
        else:
            yield output
    if held:
        yield held


def _lines(output: Output) -> Iterator[str]:
    kind = output["output_type"]
    if kind == "stream":
        yield f"{output['name']}:"
        yield from _text_lines(output["text"])
    elif kind == "error":
        yield f"error {output['ename']}:"
        yield from _text_lines(output["evalue"])
        frames = [normalised(frame) for frame in output["traceback"]]
        # How deep a recursion got depends on where it began, so equal frames count once.
        yield from _text_lines("\n".join(frame for frame, _ in itertools.groupby(frames)))
    else:
        yield f"{kind}:"
        for mime, value in sorted(output["data"].items()):
            yield f"  {mime}:"
            yield from _data_lines(mime, value)
        yield f"  metadata: {json.dumps(output['metadata'], sort_keys=True)}"


def _data_lines(mime: str, value: Any) -> Iterator[str]:
    if mime == "image/png":
        yield f"    {_picture(_joined(value))}"
    elif mime == "application/json" or mime.endswith("+json"):
        yield from _text_lines(json.dumps(value, indent=1, sort_keys=True))
    else:
        yield from _text_lines(_joined(value))


def _picture(encoded: str) -> str:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        pixels = image.convert("RGBA").tobytes()
        return f"PNG of {image.width}x{image.height}, pixels {hashlib.sha256(pixels).hexdigest()}"


def _text_lines(text: str) -> Iterator[str]:
    for line in normalised(text).splitlines(keepends=True):
        yield f"    {line!r}"


def normalised(text: str) -> str:
    """`text` without what changes from one run of a cell to the next."""
    for pattern, replacement in _CHANGING:
        text = pattern.sub(replacement, text)
    return _REDRAWN.sub("", text)


def _joined(text: str | list[str]) -> str:
    """A text of a notebook file may be one string or a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def _indented(source: str) -> str:
    return "\n".join(f"  | {line}" for line in source.splitlines())


def main(paths: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="compare-", ignore_cleanup_errors=True) as folder:
        problems = compare([Path(path) for path in paths], Path(folder).resolve() / "kernel")
    print(f"{len(problems)} differences", *problems, sep="\n\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
