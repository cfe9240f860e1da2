"""A task's outputs as its cell shows them: whole, in order, folded when long, and up to date."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import nbformat
import pytest
from histories import add_task, begin_session

from ipytaskpersist.base import output_marks
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.filling.entries import Entry, TaskOutputs, edits
from ipytaskpersist.filling.filled_cell import FilledCell
from ipytaskpersist.output.folding import COMMAND, PAGE, Fold, FoldedOutputs, without_overwritten
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.encoding import encode_content
from ipytaskpersist.text.formatting import utc_now

OUT, ERR = OutputKind.STDOUT, OutputKind.STDERR
Piece = tuple[OutputKind, Any]


class Writer:
    """A running task that writes what a test says."""

    def __init__(self, store: TaskStore) -> None:
        self.store = store
        self.task = add_task(store, begin_session(store), state=TaskState.RUNNING, printed=b"")
        self._sizes = {OUT: [0, 0], ERR: [0, 0]}

    def write(self, *pieces: Piece) -> None:
        rows = []
        for kind, content in pieces:
            data = content.encode() if isinstance(content, str) else encode_content(content)
            size = self._sizes.setdefault(kind, [0, 0])
            lines = data.count(b"\n")
            rows.append(NewOutput(self.task.key, kind, 1.0, data, *size, lines).as_row())
            size[0] += len(data)
            size[1] += lines
        self.store.outputs.append(rows)

    def end(self) -> TaskRecord:
        self.store.tasks.end(self.task.key, TaskState.COMPLETED, None, 0, 2.0)
        found = self.store.tasks.get(self.task.key)
        assert found is not None
        return found

    def read(self) -> list[dict[str, Any]]:
        """What somebody sees who looks for the first time."""
        outputs = TaskOutputs(self.store, self.task)
        outputs.read(self.task)
        return [entry.output for entry in outputs.entries()]


@pytest.fixture
def writer(store: TaskStore) -> Writer:
    return Writer(store)


def display(text: str, display_id: str = "") -> Piece:
    content: dict[str, Any] = {"data": {"text/plain": text}, "metadata": {}}
    return OutputKind.DISPLAY_DATA, content | (
        {"transient": {"display_id": display_id}} if display_id else {}
    )


def update(text: str, display_id: str) -> Piece:
    return OutputKind.UPDATE_DISPLAY_DATA, display(text, display_id)[1]


def clear(*, wait: bool = False) -> Piece:
    return OutputKind.CLEAR_OUTPUT, {"wait": wait}


def texts(outputs: Sequence[dict[str, Any]]) -> list[str]:
    return [out["text"] if "text" in out else out["data"]["text/plain"] for out in outputs]


def test_a_cell_shows_all_in_the_order_in_which_it_happened(
    writer: Writer, manager: BackgroundTasks
) -> None:
    result = {"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 3}
    error = {"ename": "E", "evalue": "bad", "traceback": ["\x1b[31mE\x1b[0m: bad"]}
    writer.write(
        *((OUT, "one\n"), (OUT, "t\x1b[31mwo\n"), (ERR, "bar 1%\rbar 2%"), display("shown", "a")),
        *((OUT, "é"), update("updated", "a"), (OutputKind.EXECUTE_RESULT, result)),
        (OutputKind.ERROR, error),
    )
    cell = FilledCell(manager, writer.end())
    cell.update(writer.end(), utc_now())
    card, *outputs = [entry.output for entry in cell.entries]
    assert output_marks.task_of(card, "card") == writer.task.id
    assert "completed" in card["data"]["text/html"]
    kinds = [out.get("name", out["output_type"]) for out in outputs]
    wanted = ["stdout", "stderr", "display_data", "stdout", "execute_result", "error"]
    assert kinds == wanted
    assert texts(outputs[:5]) == ["one\nt\x1b[31mwo\n", "bar 1%\rbar 2%", "updated", "é", "42"]
    for out in (outputs[2], outputs[4]):
        assert output_marks.task_of(out, "output") == writer.task.id
    cells = [nbformat.v4.new_code_cell(outputs=nbformat.from_dict([card, *outputs]))]
    nbformat.validate(nbformat.v4.new_notebook(cells=cells))
    found = [{"output_type": "stream"}, card, *outputs]
    (whole,) = output_marks.filled_parts(found, is_whole=True)
    assert (whole.task, whole.start, whole.end) == (writer.task.id, 1, 8)
    (part,) = output_marks.filled_parts(found, is_whole=False)
    assert (part.start, part.end) == (1, 7), "an error has no mark"
    closed = output_marks.closed(found, writer.task.id)
    (part,) = output_marks.filled_parts([*closed, {"output_type": "stream"}], is_whole=False)
    assert (part.start, part.end) == (1, 9)


def test_what_is_cleared_is_gone(writer: Writer) -> None:
    writer.write((OUT, "old"), display("old"), clear(wait=True))
    assert texts(writer.read()) == ["old", "old"], "until there is something new"
    writer.write((OUT, "new"))
    assert texts(writer.read()) == ["new"]
    writer.write(clear(), (ERR, "newer"))
    assert texts(writer.read()) == ["newer"]


# Long output.


def lines(begin: int, end: int, width: int = 0) -> str:
    return "".join(f"line {n} {'x' * width}\n" for n in range(begin, end))


def folds(outputs: Sequence[dict[str, Any]]) -> list[str]:
    return [
        out["data"]["text/plain"]
        for out in outputs
        if output_marks.task_of(out, "fold") is not None
    ]


def test_of_many_lines_the_first_and_the_last_are_shown(writer: Writer) -> None:
    writer.write((OUT, lines(0, 2000)))
    assert texts(writer.read()) == [lines(0, 2000)], "as much is shown whole"
    writer.write(*((OUT, lines(n, n + 100)) for n in range(2000, 60_000, 100)))
    head, fold, tail = writer.read()
    assert head["text"] == lines(0, 1000)
    shown = tail["text"].count("\n")
    assert 500 <= shown <= 1000
    assert tail["text"] == lines(60_000 - shown, 60_000)
    assert fold["data"]["text/plain"] == (
        f"… {59_000 - shown:,} lines · %bg_output {writer.task.id}"
    )


def test_displays_stay_between_what_is_left_out(writer: Writer) -> None:
    writer.write((OUT, lines(0, 1500)), display("first"), (ERR, lines(0, 2000)), display("second"))
    writer.write((OUT, lines(0, 5000)), display("last"))
    outputs = writer.read()
    kept = [out for out in texts(outputs) if out in ("first", "second", "last")]
    assert kept == ["first", "second", "last"]
    amounts = [int(note.split()[1].replace(",", "")) for note in folds(outputs)]
    shown = sum(out["text"].count("\n") for out in outputs if "text" in out)
    assert sum(amounts) + shown == 8500
    assert shown <= 2000
    assert len(amounts) == 3, "one before each display"


def test_very_many_displays_are_left_out_too(writer: Writer) -> None:
    writer.write(*(display(f"figure {n}") for n in range(5_000)))
    outputs = writer.read()
    assert len(outputs) <= PAGE.whole.outputs
    (note,) = folds(outputs)
    assert note.startswith(f"… {5_001 - len(outputs):,} displays ·")
    assert texts(outputs)[-1] == "figure 4999"


def test_streams_that_take_turns_stay_few(writer: Writer) -> None:
    writer.write(*((each, "x") for _ in range(20_000) for each in (OUT, ERR)))
    outputs = writer.read()
    assert len(outputs) <= PAGE.whole.outputs
    assert len(folds(outputs)) == 1


def test_a_long_line_is_cut_within(writer: Writer) -> None:
    writer.write((OUT, "a" * 900_000), (OUT, "b" * 900_000))
    head, fold, tail = writer.read()
    assert head["text"] == "a" * 100_000
    assert tail["text"] == "b" * 100_000
    assert fold["data"]["text/plain"].startswith("… 1.6 MB ·")


def test_a_bar_that_was_drawn_all_day_takes_little_room(writer: Writer) -> None:
    bars = [f"\r{n:6d}/300000 {'#' * 60}" for n in range(30_000)]
    writer.write(
        (OUT, "before\n"), *((OUT, "".join(bars[n : n + 50])) for n in range(0, 30_000, 50))
    )
    (output,) = writer.read()
    assert len(output["text"]) < 200_000
    assert output["text"].startswith("before\n")
    assert output["text"].endswith(bars[-1])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("10%\r20%\r30%", "30%"),
        ("long line\rshort", "long line\rshort"),
        ("a\r\nb\r\n", "a\r\nb\r\n"),
        ("one\rtwo\nthree\rfour!", "two\nfour!"),
        ("abc\b\rxyz", "abc\b\rxyz"),
        ("abc\r", "abc\r"),
    ],
)
def test_what_is_overwritten_completely_is_left_out(text: str, left: str) -> None:
    assert without_overwritten(text) == left


def test_of_a_huge_output_only_the_ends_are_read(writer: Writer) -> None:
    def read() -> int:
        count = 0
        plain = writer.store.outputs._database.record

        def counting(make: Callable[..., Any], *given: Any) -> Any:
            nonlocal count
            count += 1
            return plain(make, *given)

        writer.store.outputs._database.record = counting  # type: ignore[method-assign]
        try:
            outputs.extend(writer.read())
        finally:
            del writer.store.outputs._database.record
        return count

    outputs: list[dict[str, Any]] = []
    chunk = lines(0, 1000, width=90)
    for _ in range(5):
        writer.write(*((OUT, chunk) for _ in range(30)), display("figure", "a"))
    writer.write(update("a later figure", "a"), *((ERR, chunk) for _ in range(10)))
    assert read() < 40
    assert texts(outputs).count("a later figure") == 5
    shown = sum(out["text"].count("\n") for out in outputs if "text" in out)
    amounts = [int(note.split()[1].replace(",", "")) for note in folds(outputs)]
    assert sum(amounts) + shown == 160_000


@pytest.mark.parametrize("chunks", [60, 200], ids=["read whole", "read at its ends"])
def test_a_command_shows_as_much_of_each_end_whatever_is_read(writer: Writer, chunks: int) -> None:
    chunk = lines(0, 1000, width=90)
    for each in range(chunks):
        writer.write((OUT, chunk), (ERR, "é" * 30), display(f"figure {each}"))
    for kinds in (), (OUT,):
        outputs = FoldedOutputs(writer.store, writer.task.key, COMMAND, kinds)
        outputs.read()
        present = outputs.present()
        folds = [placed for placed, _output in present if isinstance(placed, Fold)]
        shown = "".join(output.get("text", "") for _placed, output in present)
        assert 2 * 400_000 - 180 <= len(shown) <= 2 * 400_000
        assert sum(fold.lines for fold in folds) + shown.count("\n") == 1000 * chunks
        displays = sum("data" in output for _placed, output in present)
        assert displays == (0 if kinds else chunks)


def test_a_command_shows_what_an_output_of_another_kind_has_left(writer: Writer) -> None:
    writer.write((OUT, "gone\n"), clear(wait=True), (ERR, "x"), (OUT, lines(0, 40_000, width=99)))
    outputs = FoldedOutputs(writer.store, writer.task.key, COMMAND, (OUT,))
    outputs.read_cleared()
    (_, head), (fold, _), (_, tail) = outputs.present()
    shown = head["text"] + tail["text"]
    assert shown.startswith("line 0 ")
    assert isinstance(fold, Fold)
    assert fold.lines + shown.count("\n") == 40_000


# Differences.


def applied(has: list[dict[str, Any]], before: Sequence[Entry], now: Sequence[Entry]) -> Any:
    """What a page has after it was told what changed."""
    for edit in edits(before, now):
        document = edit.as_json()
        if "text" in document:
            has[edit.at] = {**has[edit.at], "text": has[edit.at]["text"] + document["text"]}
        else:
            has[edit.at : edit.at + 1] = [document["output"]]
    return has[: len(now)]


@pytest.mark.parametrize("seed", range(6))
def test_a_page_that_is_told_what_changed_has_what_is_there(writer: Writer, seed: int) -> None:
    """Whatever happens, in whatever order, and however seldom it is told."""
    draw = random.Random(seed)
    outputs = TaskOutputs(writer.store, writer.task)
    before: list[Entry] = []
    has: list[dict[str, Any]] = []
    said = 0
    for turn in range(60):
        pieces: list[Piece] = [
            (OUT, f"{turn} words\n" * draw.choice((1, 3, 400))),
            (ERR, f"\r{turn:5d}" * draw.choice((1, 2000))),
            display(f"shown {turn}", draw.choice("ab")),
            update(f"updated {turn}", draw.choice("ab")),
            clear(wait=draw.random() < 0.5) if draw.random() < 0.2 else (OUT, "no end"),
        ]
        writer.write(*draw.sample(pieces, draw.randrange(1, 5)))
        if draw.random() < 0.6:
            outputs.read(writer.task)
            now = outputs.entries()
            said += sum(len(edit.text) for edit in edits(before, now))
            has = applied(has, before, now)
            before = now
            assert has == [entry.output for entry in now]
    assert said, "some text was appended"


def test_text_is_appended_and_not_sent_again(writer: Writer) -> None:
    outputs = TaskOutputs(writer.store, writer.task)
    writer.write((OUT, "one\n"), display("figure"), (OUT, "two"))
    outputs.read(writer.task)
    before = outputs.entries()
    writer.write((OUT, " and more\n"))
    outputs.read(writer.task)
    found = [edit.as_json() for edit in edits(before, outputs.entries())]
    assert found == [{"at": 2, "text": " and more\n"}]
