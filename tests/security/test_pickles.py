"""No pickle is loaded but one that this user has signed for that task and name, from its own place.

More about signatures is in `tests/values/test_stored_payloads.py`.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel
from traps import Trap, guarded

from ipytaskpersist.base.records import ResultRecord, TaskRecord
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.runners import channel, supervised, supervisor
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.payloads import Payloads


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    with guarded(tmp_path) as path:
        yield path


@pytest.fixture
def payloads(store: TaskStore) -> Payloads:
    return Payloads(store.directory)


@pytest.fixture
def task(store: TaskStore) -> TaskRecord:
    return add_task(store, begin_session(store))


def refused(payloads: Payloads, task: TaskRecord, kept: ResultRecord) -> str:
    """The line with which a value is refused, however it is asked for."""
    said = set()
    for ask in (payloads.load, payloads.copy):
        with pytest.raises(ResultUnavailable) as error:
            ask(task, kept)
        said.add(str(error.value))
    (line,) = said
    assert "\n" not in line
    assert task.label in line
    return line


def elsewhere(tmp_path: Path, kept: ResultRecord) -> list[str]:
    """Paths that a store which somebody has changed could name."""
    name = Path(str(kept.path)).name
    return [
        "/etc/passwd", "../../../../../../../etc/passwd", "../elsewhere.pickle",
        str(tmp_path / "elsewhere.pickle"), "", ".", "..", "signing.key", "tasks.db", "payloads",
        f"payloads/../../{name}", f"payloads/other-1/{name}", f"./{kept.path}/../../x/{name}",
        f"{kept.path}\0", f"{kept.path}/", f"payloads//{name}", "payloads/\x00", "C:\\x.pickle",
        f"payloads\\x\\{name}", "~/x.pickle", "/dev/zero", "/dev/stdin",
    ]  # fmt: skip


def test_a_path_of_the_store_that_leads_elsewhere_opens_nothing(
    payloads: Payloads, task: TaskRecord, tmp_path: Path, mark: Path
) -> None:
    """Not even what carries a good signature is read there."""
    kept = payloads.save(task.id, "", Trap(mark), "text")
    data = (payloads._directory.root / str(kept.path)).read_bytes()
    (tmp_path / "elsewhere.pickle").write_bytes(data)
    for path in elsewhere(tmp_path, kept):
        if path == f"{kept.path}/":
            continue  # the same place
        line = refused(payloads, task, replace(kept, path=path))
        assert "was not loaded" in line, path
        with pytest.raises(ResultUnavailable):
            payloads.read(task, replace(kept, path=path))


@pytest.mark.parametrize(
    "change",
    [{"signature": ""}, {"signature": None}, {"signature": "é" * 64}, {"signature": "\x00"},
     {"signature": "\udc80"}, {"digest": "../../../../etc/passwd"}, {"digest": ""},
     {"digest": "0" * 64}, {"digest": "é"}, {"name": "x"}, {"name": "\0"}],
    ids=repr,
)  # fmt: skip
def test_a_record_of_another_kind_is_refused_in_words(
    payloads: Payloads, task: TaskRecord, mark: Path, change: dict[str, Any]
) -> None:
    """Whatever is in the store, it is no traceback."""
    refused(payloads, task, replace(payloads.save(task.id, "", Trap(mark), "text"), **change))


def test_digests_that_have_changed_places_are_noticed(
    payloads: Payloads, task: TaskRecord, mark: Path
) -> None:
    one, other = payloads.save(task.id, "", 1, "1"), payloads.save(task.id, "x", Trap(mark), "x")
    swapped = replace(one, path=other.path, digest=other.digest)
    assert "does not carry your signature" in refused(payloads, task, swapped)
    signed = replace(swapped, signature=other.signature)
    assert "does not carry your signature" in refused(payloads, task, signed)


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe", "device"])
def test_what_is_no_file_of_ours_is_not_opened(
    payloads: Payloads, task: TaskRecord, tmp_path: Path, mark: Path, kind: str
) -> None:
    kept = payloads.save(task.id, "", Trap(mark), "text")
    file = payloads._directory.root / str(kept.path)
    (tmp_path / "real.pickle").write_bytes(file.read_bytes())
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        targets = {
            "link": tmp_path / "real.pickle",
            "dangling": tmp_path / "no",
            "device": "/dev/zero",
        }
        file.symlink_to(targets[kind])
    assert "cannot be read" in refused(payloads, task, kept)


@pytest.mark.parametrize("task_id", ["..", "../..", ".", "", "/", "a/b", "/tmp"])
def test_deleting_a_task_of_a_strange_id_removes_nothing_else(
    payloads: Payloads, task: TaskRecord, task_id: str
) -> None:
    payloads.save(task.id, "", 1, "1")
    root = payloads._directory.root
    before = {str(path) for path in root.rglob("*")}
    payloads.delete(task_id)
    assert {str(path) for path in root.rglob("*")} == before


def test_deleting_a_task_does_not_follow_a_link(
    payloads: Payloads, task: TaskRecord, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    payloads.save(task.id, "", 1, "1")
    folder = payloads._directory.payloads / "a1b2c3d4-2"
    folder.symlink_to(tmp_path / "precious")
    payloads.delete(folder.name)
    assert (tmp_path / "precious" / "file").exists()


def test_what_a_process_is_given_was_signed_for_it(
    make_kernel: Callable[..., NotebookKernel], mark: Path
) -> None:
    """Changed while the task waits, it is not loaded, and the task fails and says why."""
    kernel = make_kernel()
    kernel.run("x = 1")
    kernel.run("%%background --shell first\ntrue")
    kernel.run("%bg_wait 1")
    # A supervisor that is stopped leaves time to change what a waiting task is given.
    kernel.run(CHANGED_WHILE_IT_WAITS.format(mark=str(mark)))
    kernel.run("%bg_wait 2")
    shown = kernel.run("%bg_output 2").text
    assert "does not carry your signature" in shown
    assert "failed" in kernel.run("%bg_list").text


CHANGED_WHILE_IT_WAITS = """
import os, pickle, signal
import ipytaskpersist as bg
from ipytaskpersist.session.manager import current
store = current().store
(supervisor,) = store.supervisors.unfinished()
os.kill(supervisor.pid, signal.SIGSTOP)
try:
    second = bg.background("x", process=True)
    record = store.tasks.by_id(second.id)
    given = store.results.get(record.key, "<inputs>")
    class Trap:
        def __reduce__(self):
            return os.mkdir, ({mark!r},)
    (current().directory.root / given.path).write_bytes(pickle.dumps(Trap()))
finally:
    os.kill(supervisor.pid, signal.SIGCONT)
"""


def imported_by(path: Path) -> set[str]:
    """The modules that one imports anywhere."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


LOADING = {"pickle", "cloudpickle", "marshal", "shelve", "dill"}


@pytest.mark.parametrize("module", [channel, supervised, supervisor])
def test_the_channel_of_a_task_carries_no_pickles(module: Any) -> None:
    """What its process sends is JSON and bytes: a supervisor has nothing that could load others."""
    assert not imported_by(Path(module.__file__)) & LOADING


def test_one_module_alone_loads_pickles_and_one_alone_uses_it() -> None:
    root = Path(channel.__file__).parents[1]
    found = {path.name for path in root.rglob("*.py") if imported_by(path) & LOADING}
    # A supervisor hands a task's rows to its own fork server, through a socket that both inherit.
    # `notebook_pickler` writes only, and `pickling` alone calls it.
    # `agent` marshals its own compiled text, for interpreters that it starts itself.
    # A process at a place loads, over there, the rows that its supervisor has sent (`task_rows`).
    own = {"warm.py", "fork_server.py", "agent.py", "task_rows.py"}
    assert found == {"pickling.py", "notebook_pickler.py", *own}
    using = {path.name for path in root.rglob("*.py") if "pickling import" in path.read_text()}
    # `launcher` and `checkpoints` only find out what cannot be pickled.
    # Those that load do so from bytes that `signed_files` has checked.
    assert using == {
        *("payloads.py", "signed_files.py", "bundles.py", "originals.py", "returned.py"),
        *("changeable.py", "module_variables.py"),
        *("child.py", "launcher.py", "checkpoints.py", "notebook_magics.py"),
    }
