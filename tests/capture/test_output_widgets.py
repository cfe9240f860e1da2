"""Widgets of tasks: kept for when they are gone; and ``Output``, which has what is inside it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel, until

from ipytaskpersist.base import widget_marks
from ipytaskpersist.base.records import OutputKind, OutputRecord, TaskRecord, TaskState
from ipytaskpersist.base.widget_marks import STATE, VIEW
from ipytaskpersist.history.fields import InvalidRecord
from ipytaskpersist.history.output_reading import output_of
from ipytaskpersist.output import replay
from ipytaskpersist.output.counts import OutputCounter
from ipytaskpersist.output.replay import NO_TIME, Resolver
from ipytaskpersist.panel import selected
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.encoding import encode_content

RUNNERS = pytest.mark.parametrize("runner", ["--thread", "--process"])
SETUP = """
import ipywidgets, threading, time
from IPython.display import clear_output, display
from ipywidgets import Output, interact, interact_manual, interactive_output
out, other = Output(), Output()
"""


def run(kernel: NotebookKernel, source: str, runner: str = "--thread") -> list[dict[str, Any]]:
    """Run a cell as a task that completes; return its outputs, without the widgets themselves."""
    kernel.run(f"%%background {runner}\n{SETUP}{source}")
    waited = kernel.run("%bg_wait")
    assert "completed" in waited.text, kernel.run("%bg_output").text
    found: list[dict[str, Any]] = json.loads(kernel.run("%bg_output --json").stream("stdout"))
    return [each for each in found if not is_widget(each)]


def is_widget(output: dict[str, Any]) -> bool:
    return VIEW in output.get("data", {})


def text_of(found: list[dict[str, Any]]) -> str:
    return "".join(
        each["text"] if each["output_type"] == "stream" else each["data"]["text/plain"] + "\n"
        for each in found
    )


CASES = {
    "interact": (
        "print('before')\nshown = interact(lambda x: print('x is', x), x=3)\nprint('after')",
        "before\nx is 3\nafter\n",
    ),
    "updates": (
        "print('before')\n"
        "slider = ipywidgets.IntSlider(3)\n"
        "shown = interactive_output(lambda x: print('x is', x), {'x': slider})\n"
        "slider.value = 4\nslider.value = 5",
        "before\nx is 5\n",
    ),
    "manual": (
        "print('before')\n"
        "made = interact_manual.options(manual=True)(lambda x: x * 2, x=3)\n"
        "made.widget.update()\nmade.widget.update()",
        "before\n6\n",
    ),
    "clear": ("print('1')\nwith out: print('2')\nprint('3')\nout.clear_output()", "1\n3\n"),
    "wait": (
        "with out:\n    print('old')\n    clear_output(wait=True)\nprint('outside')\n"
        "with out: print('new')",
        "outside\nnew\n",
    ),
    "waits for ever": (
        "with out:\n    print('old')\n    clear_output(wait=True)\nprint('outside')",
        "old\noutside\n",
    ),
    "nested": (
        "with out:\n"
        "    print('outer')\n"
        "    with other:\n"
        "        print('gone')\n        clear_output()\n        print('inner')\n"
        "    print('outer too')\n"
        "other.clear_output(wait=True)\n"
        "with other: print('inner again')",
        "outer\nouter too\ninner again\n",
    ),
    "again": (
        "with out:\n    with out: print('1')\n    print('2')\n    clear_output()\n    print('3')",
        "3\n",
    ),
    "capture": (
        "@out.capture(clear_output=True, wait=True)\ndef say(text): print(text)\n"
        "print('before')\nsay('one')\nsay('two')",
        "before\ntwo\n",
    ),
    "outside": (
        "with out: print('inside')\nprint('gone')\nclear_output()\nprint('outside')",
        "inside\noutside\n",
    ),
    "thread": (
        "def work():\n"
        "    for n in range(3):\n"
        "        with out:\n            clear_output()\n            print(n)\n"
        "print('before')\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()",
        "before\n2\n",
    ),
    "redirected": (
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as caught, out:\n"
        "    print('x')\nprint(repr(caught.getvalue()))",
        "'x\\n'\n",
    ),
}


@pytest.mark.parametrize(("source", "left"), CASES.values(), ids=CASES)
def test_a_widget_that_is_cleared_loses_what_is_inside_it_alone(
    kernel: NotebookKernel, source: str, left: str
) -> None:
    assert text_of(run(kernel, source)) == left


def test_in_a_process_it_is_the_same(kernel: NotebookKernel) -> None:
    source, left = CASES["updates"]
    assert text_of(run(kernel, source, "--process")) == left


@RUNNERS
def test_an_error_inside_is_shown_and_the_task_completes(
    kernel: NotebookKernel, store: TaskStore, runner: str
) -> None:
    before, error, after = run(
        kernel, "print('before')\nwith out:\n    1 / 0\nprint('after')", runner
    )
    assert (before["text"], after["text"]) == ("before\n", "after\n")
    assert error["ename"] == "ZeroDivisionError"
    assert "widgets.py" not in "".join(error["traceback"])
    task = store.tasks.get(1)
    assert task is not None
    assert (task.state, task.exit_code) == (TaskState.COMPLETED, 0)
    assert store.tasks.post_mortem(1) is None


def test_a_task_that_fails_after_an_error_inside_fails_by_its_own(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    kernel.run(f"%%background\n{SETUP}with out: 1 / 0\n[][0]")
    kernel.run("%bg_wait")
    task = store.tasks.get(1)
    assert task is not None
    assert task.state is TaskState.FAILED
    assert task.reason == "IndexError: list index out of range"


def test_a_task_inside_is_cancelled_as_any_other(kernel: NotebookKernel, store: TaskStore) -> None:
    kernel.run(f"%%background\n{SETUP}with out:\n    print('in')\n    time.sleep(60)\nprint('on')")
    until(lambda: any(b"in\n" in record.data for record in store.outputs.of(1)))
    kernel.run("%bg_cancel")
    assert "cancelled" in kernel.run("%bg_wait").text
    assert "on" not in kernel.run("%bg_output").text.splitlines()


# Beside a task that is inside.

EVENTS = f"{SETUP}import os\ngo, inside, end = [threading.Event() for _ in range(3)]\n"
SET_PARENT = "ip = get_ipython()\nip.set_parent(ip.get_parent())\ninside.set()\nend.wait(60)"
ENTER = "with out:\n    inside.set()\n    print('in')\n    end.wait(60)\n    print('left')"


@pytest.mark.parametrize("moving", [ENTER, SET_PARENT], ids=["enter", "set_parent"])
def test_what_c_code_prints_for_a_foreground_cell_stays_in_that_cell(
    kernel: NotebookKernel, moving: str
) -> None:
    kernel.run(EVENTS)
    launched = kernel.run(f"%%background\ngo.wait(60)\n{moving}")
    cell = kernel.start(
        "go.set()\nassert inside.wait(60)\ncode = os.system('echo from C')\n"
        "while not os.path.exists('seen'): time.sleep(0.01)"
    )
    kernel.take_until(lambda: cell.text or launched.stream("stdout"), 30, "what C code prints")
    assert cell.text == "from C\n"
    (kernel.cwd / "seen").touch()
    cell.wait()
    kernel.run("end.set()\n%bg_wait")


def test_a_foreground_cell_uses_the_widget_as_ever(kernel: NotebookKernel) -> None:
    kernel.run(EVENTS)
    kernel.run(f"%%background\n{ENTER}")
    kernel.run("assert inside.wait(60) and out.msg_id == ''")
    kernel.run(
        "with out:\n"
        "    assert out.msg_id == get_ipython().get_parent()['header']['msg_id'] != ''\n"
        "    print('foreground')\n"
        "assert out.msg_id == ''"
    )
    kernel.run("end.set()\n%bg_wait\nassert out.msg_id == ''")
    assert kernel.run("%bg_output").text == "in\nleft\n"


def test_two_tasks_may_be_inside_of_one_widget(kernel: NotebookKernel) -> None:
    kernel.run(EVENTS)
    for _ in range(2):
        kernel.run(f"inside.clear()\nget_ipython().run_cell_magic('background', '', {ENTER!r})")
        kernel.run("assert inside.wait(60)")
    kernel.run("%%background\nprint('kept')\nout.clear_output()")
    kernel.run("end.set()\n%bg_wait 1 2 3")
    assert kernel.run("%bg_output 1").text == "in\nleft\n"
    assert kernel.run("%bg_output 2").text == "in\nleft\n"
    assert kernel.run("%bg_output 3").text == "kept\n"


def test_unloading_puts_the_widget_back(kernel: NotebookKernel) -> None:
    kernel.run(f"{SETUP}before = Output.__enter__.__code__")
    kernel.run("%%background\nwith out: pass")
    kernel.run("%bg_wait\nassert Output.__enter__.__code__ is not before")
    kernel.run("%unload_ext ipytaskpersist\n")
    kernel.run(
        "assert Output.__enter__.__code__ is before\nassert 'set_parent' not in vars(get_ipython())"
    )


# The record, and those that read it.

Entry = tuple[OutputKind, bytes]


def printed(text: str) -> Entry:
    return OutputKind.STDOUT, text.encode()


def enter(widget: str) -> Entry:
    moving = widget_marks.moving(widget, inside=True)
    return OutputKind.UPDATE_DISPLAY_DATA, encode_content(moving)


def leave(widget: str) -> Entry:
    moving = widget_marks.moving(widget, inside=False)
    return OutputKind.UPDATE_DISPLAY_DATA, encode_content(moving)


def clear(widget: str | None, *, wait: bool = False) -> Entry:
    return OutputKind.CLEAR_OUTPUT, encode_content(widget_marks.clearing(widget, wait=wait))


def placed(*entries: Entry) -> list[tuple[str, str | None]]:
    """The texts that these entries leave, each with the widget that it is inside of."""
    resolver = Resolver()
    for place, (kind, data) in enumerate(entries):
        resolver.add(OutputRecord(place, kind, NO_TIME, data, 0))
    resolver.finish()
    return [(each.whole()["text"], each.widget) for each in resolver.placed]


def test_the_record_knows_what_is_inside_which_widget() -> None:
    left = placed(
        *(printed("0"), enter("a"), printed("1"), enter("b"), printed("2"), printed("3")),
        *(leave("b"), printed("4"), leave("a"), printed("5")),
    )
    assert left == [("0", None), ("1", "a"), ("23", "b"), ("4", "a"), ("5", None)]


def test_threads_may_leave_in_another_order_than_they_entered() -> None:
    entries = (enter("a"), enter("b"), leave("a"), printed("1"), leave("b"), printed("2"))
    assert placed(*entries) == [("1", "b"), ("2", None)]


def test_records_that_begin_inside_a_widget_are_inside_it() -> None:
    assert placed(printed("1"), leave("a"), printed("2")) == [("1", "a"), ("2", None)]
    assert placed(printed("1"), clear("a"), printed("2"), leave("a")) == [("2", "a")]
    waits = (printed("1"), clear("a", wait=True), printed("2"), leave("a"), printed("3"))
    assert placed(*waits) == [("2", "a"), ("3", None)]


def test_what_is_cleared_outside_is_not_inside_a_widget() -> None:
    entries = (printed("1"), enter("a"), printed("2"), leave("a"), clear(None), printed("3"))
    assert placed(*entries) == [("2", "a"), ("3", None)]


@pytest.fixture
def task(store: TaskStore) -> TaskRecord:
    return add_task(store, begin_session(store), state=TaskState.PENDING)


def put(store: TaskStore, task: TaskRecord, *entries: Entry) -> None:
    store.outputs.append([NewOutput(task.key, *of(entry)).as_row() for entry in entries])


def of(entry: Entry) -> tuple[OutputKind, float, bytes]:
    return entry[0], 1.0, entry[1]


SESSION = (
    *(printed("before\n"), enter("a"), printed("gone\n"), clear("a", wait=True)),
    *(printed("inside\n"), leave("a"), printed("after\n")),
)


def test_no_reader_shows_the_entries_themselves(store: TaskStore, task: TaskRecord) -> None:
    put(store, task, *SESSION)
    assert replay.last_lines(store, task.key, 9) == ["before", "inside", "after"]
    lines = [f'<div class="stdout">{text}</div>' for text in ("before", "inside", "after")]
    assert selected.shown_of(store, task, OutputCounter()).pieces == lines
    whole = [*replay.merge_streams(replay.of_task(store, task.key))]
    text = "before\ninside\nafter\n"
    assert whole == [{"output_type": "stream", "name": "stdout", "text": text}]
    tail = replay.of_task(store, task.key, replay.Cut(tail=2))
    assert "".join(each["text"] for each in tail) == "inside\nafter\n"


def test_the_panel_counts_lines_not_entries(store: TaskStore, task: TaskRecord) -> None:
    loop = [each for n in range(300) for each in (enter("a"), printed(f"{n}\n"), leave("a"))]
    put(store, task, *loop)
    found = selected.shown_of(store, task, OutputCounter()).pieces
    assert len(found) == selected.LINES
    assert found[0] == '<div class="stdout">100</div>'


def test_following_shows_what_is_printed_and_clears_nothing(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    kernel.run(f"%%background\n{SETUP}print('1')\nwith out: print('2')\nout.clear_output()")
    kernel.run("%bg_wait")
    followed = kernel.run("%bg_output --follow")
    assert [(each.output_type, each.text) for each in followed.outputs] == [("stream", "1\n2\n")]


def test_a_limit_on_output_counts_only_output(kernel: NotebookKernel, store: TaskStore) -> None:
    kernel.run("%config BackgroundTasks.max_output_bytes = 1000")
    kernel.run(
        f"%%background\n{SETUP}for n in range(50):\n    with out: print(n)\n"
        "with out: print('x' * 2000)\n'result'"
    )
    kernel.run("%bg_wait")
    resolver = Resolver()
    for record in store.outputs.of(1):
        resolver.add(record)
    resolver.finish()
    *inside, result = resolver.placed
    assert result.widget is None
    assert len({each.widget for each in inside}) == 1
    text = "".join(each.whole()["text"] for each in inside)
    assert text.startswith("0\n1\n")
    assert "49\nxxx" in text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_that_is_inside_prints_only_what_it_prints(kernel: NotebookKernel) -> None:
    assert hasattr(os, "fork")
    found = run(
        kernel,
        "import os\npid = os.fork()\n"
        "if not pid:\n    with out: print('child', flush=True)\n    os._exit(0)\n"
        "code = os.waitpid(pid, 0)",
    )
    assert text_of(found) == "child\n"


@pytest.mark.parametrize(
    "content",
    [
        {**widget_marks.moving("a", inside=True), "widget": ["a"]},
        {**widget_marks.moving("a", inside=True), "inside": None},
    ],
)
def test_a_file_with_entries_of_another_form_is_refused(content: dict[str, Any]) -> None:
    document = {"kind": "update_display_data", "at": 1.0, "content": content}
    with pytest.raises(InvalidRecord):
        output_of(document, "line 1")
    document["content"] = widget_marks.moving("a", inside=True)
    kept = output_of(document, "line 1")
    assert widget_marks.is_about_widget(kept.kind, kept.data)


# What is inside is in the widget.

INSIDE = {
    "streams": ("with out:\n    print('1')\n    print('2', file=sys.stderr)", ["1\n", "2\n"]),
    "display": ("with out: display(1)\nprint('outside')", ["1"]),
    "update": (
        "with out: handle = display('a', display_id=True)\nhandle.update('b')", ["'b'"],
    ),
    "clear": (
        "with out: print('1')\nwith out:\n    clear_output(wait=True)\n    print('2')", ["2\n"],
    ),
    "error": ("with out: 1 / 0", ["ZeroDivisionError"]),
    "command": ("with out: os.system('echo hi')", ["hi\n"]),
    "interact": ("out = interact(lambda x: print('x is', x), x=3).widget.out", ["x is 3\n"]),
    "thread": (
        "def work():\n    with out: print('1')\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()", ["1\n"],
    ),
}  # fmt: skip
SHOW = """
def shown(widget):
    return [o.get('text') or o.get('ename') or o['data']['text/plain'] for o in widget.outputs]
"""


def test_what_a_task_writes_inside_a_widget_is_in_the_widget_and_not_beside_it(
    kernel: NotebookKernel,
) -> None:
    kernel.run(f"import os, sys\n{SETUP}{SHOW}")
    for number, (source, inside) in enumerate(INSIDE.values(), 1):
        # `interact` displays what it makes.
        displayed = "" if "interact" in source else "display(out)\n"
        kernel.run(f"%%background\nout = Output()\n{displayed}{source}")
        kernel.run("%bg_wait")
        assert kernel.run("shown(out)").outputs[-1].data["text/plain"] == repr(inside)
        beside = [each for each in kernel.run("%bg_output").outputs if not is_widget(each)]
        assert text_of(beside) == ("outside\n" if "outside" in source else ""), source
        kernel.run(f"assert {number} < 99")
    assert kernel.run("print(shown(other))").text == "[]\n"


def test_two_tasks_and_what_was_there_before_are_inside_of_one_widget(
    kernel: NotebookKernel,
) -> None:
    kernel.run(f"{EVENTS}{SHOW}out.append_stdout('before\\n')\ndisplay(out)")
    kernel.run(f"%%background\n{ENTER}")
    kernel.run("assert inside.wait(60)")
    kernel.run("%%background\nwith out: print('second')")
    kernel.run("%bg_wait 2\nend.set()\n%bg_wait")
    assert kernel.run("print(shown(out))").text == "['before\\nin\\nsecond\\nleft\\n']\n"


# Displays of widgets that are gone.

WIDGETS = """
from tqdm.notebook import tqdm
for _ in tqdm(range(2), desc='outer'):
    for _ in tqdm(range(3), desc='inner', leave=False): pass
def work():
    for _ in tqdm(range(4), desc='thread'): pass
thread = threading.Thread(target=work); thread.start(); thread.join()
bar = tqdm(total=5, desc='open')
for _ in range(5): bar.update()
slider = ipywidgets.IntSlider(3); display(slider); slider.value = 7
display(ipywidgets.VBox([ipywidgets.Text('hi')]))
closed = ipywidgets.IntText(4); display(closed); closed.close()
inside = Output(); display(inside)
with inside:
    for _ in tqdm(range(6), desc='inside'): pass
ipywidgets.HTML('<b>yes</b>')
"""
BARS = [
    *("outer: 100%|██████████| 2/2 [", "inner: 100%|██████████| 3/3 ["),
    *("inner: 100%|██████████| 3/3 [", "thread: 100%|██████████| 4/4 ["),
    "open: 100%|██████████| 5/5 [",
]
TEXTS = ["IntSlider(value=7)", "VBox(children=(Text(value='hi'),))", "IntText(value=4)"]
LIVE = "import ipywidgets.widgets.widget as w; print(*w._instances)"


@RUNNERS
def test_a_widget_that_is_gone_is_shown_without_its_view_or_as_a_new_one(
    kernel: NotebookKernel, runner: str
) -> None:
    kernel.run(f"%%background {runner}\n{SETUP}{WIDGETS}")
    assert "completed" in kernel.run("%bg_wait", timeout=120).text
    for _ in range(2):
        shown = kernel.run("%bg_output").outputs
        alive = kernel.run(LIVE).text.split()
        texts = [output.data["text/plain"] for output in shown]
        assert [text[: len(bar)] for text, bar in zip(texts, BARS, strict=False)] == BARS
        assert "?" not in "".join(texts[: len(BARS)])
        assert texts[len(BARS) : -2] == TEXTS
        assert texts[-1] == "HTML(value='<b>yes</b>')"
        views = [output.data[VIEW]["model_id"] for output in shown if is_widget(output)]
        assert set(views) <= set(alive)
        slider, box, closed = (is_widget(output) for output in shown[len(BARS) : -2])
        assert (slider, box, closed) == (True, True, False)
        kernel.restart()
        kernel.run("%load_ext ipytaskpersist")
    kernel.run("%bg_output")
    state = "[*w._instances.values()][-1].get_state()"
    assert printed_by(kernel, f"{LIVE[:-22]}; print({state}['value'])") == "<b>yes</b>"
    outputs_of = (
        "[s['outputs'] for i in w._instances.values() if 'outputs' in (s := i.get_state())]"
    )
    inside = printed_by(kernel, f"print({outputs_of}[-1])")
    assert "inside: 100%" in inside
    assert VIEW not in inside


def printed_by(kernel: NotebookKernel, source: str) -> str:
    return kernel.run(source).stream("stdout").strip()


def test_who_follows_a_process_sees_its_bar_move(kernel: NotebookKernel) -> None:
    kernel.run("import time, os\nfrom tqdm.notebook import tqdm")
    kernel.run(
        "%%background --process\nfor n in tqdm(range(8)):\n"
        "    while n == 6 and not os.path.exists('go'): time.sleep(0.01)"
    )
    followed = kernel.start("%bg_output --follow")
    kernel.take_until(lambda: followed.outputs, 60, "the bar")
    (kernel.cwd / "go").touch()
    (bar,) = followed.wait().outputs
    assert bar.data.keys() == {"text/plain"}
    assert bar.data["text/plain"].startswith("100%|██████████| 8/8 [")


def test_a_bar_of_a_kernel_that_was_killed_shows_how_far_it_was(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    kernel.run(
        "%%background\nimport time\nfrom tqdm.notebook import tqdm\n"
        "for n in tqdm(range(900), mininterval=0): time.sleep(0.01 if n < 600 else 600)"
    )
    until(lambda: [*store.outputs.of(1)][2:])
    kernel.kill()
    kernel.revive()
    kernel.run("%load_ext ipytaskpersist")
    (bar,) = kernel.run("%bg_output").outputs
    assert bar.data.keys() == {"text/plain"}
    assert not bar.data["text/plain"].startswith("  0%")


def test_pages_and_programs_get_the_text_and_the_state(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    kernel.run(f"%%background\n{SETUP}slider = ipywidgets.IntSlider(3); display(slider)")
    kernel.run("%bg_wait")
    (shown,) = json.loads(kernel.run("%bg_output --json").stream("stdout"))
    model = shown["data"][VIEW]["model_id"]
    assert shown["metadata"][STATE]["state"][model]["state"]["value"] == 3
    record = [*store.outputs.of(1)][-1]
    content = json.loads(record.data)
    document = {"kind": record.kind.value, "at": 1.0, "content": content}
    assert widget_marks.is_kept_widget(record.kind, output_of(document, "line 1").data)
    document["content"] = {**content, "model": ["a"]}
    with pytest.raises(InvalidRecord):
        output_of(document, "line 1")
    (div,) = selected.shown_of(store, store.tasks.get(1), OutputCounter()).pieces  # type: ignore[arg-type]
    assert div == '<div class="display"><pre>IntSlider(value=3)</pre>\n</div>'


def test_a_process_ends_though_a_bar_of_its_is_open(kernel: NotebookKernel) -> None:
    """The bar closes itself while the interpreter is torn down."""
    kernel.run("%%background --process\nfrom tqdm.notebook import tqdm\nbar = tqdm(total=3)")
    assert "completed" in kernel.run("%bg_wait", timeout=60).text
