"""A file of a stranger runs nothing, leads nowhere, and takes neither memory nor disk nor time."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import random
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel
from layout import SHAPES
from programs import run_command, run_python

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.errors import BackgroundError, InvalidRequest
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.history.importing import Report, import_file
from ipytaskpersist.panel.actions import Actions
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.values.payloads import Payloads
from security.strangers import HEADER, NOTEBOOK, PROCESS, SESSION, a_task, lines, write


def taken(store: TaskStore, path: Path) -> Report:
    with closing(Archives(store)) as archives:
        return import_file(path, store, archives.all, Payloads(store.directory))


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def mark(tmp_path: Path) -> Any:
    """What an attack would leave."""
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists(), "a stranger's file has run something"


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


# It runs nothing.


def test_no_pickle_of_it_is_loaded_whatever_is_asked(
    store: TaskStore, manager: BackgroundTasks, tmp_path: Path, mark: Path
) -> None:
    data = base64.b64encode(pickle.dumps(Trap(mark))).decode()
    for number, signature in enumerate(("0" * 64, "f" * 64, None), 1):
        result = {"name": "", "text": "t", "signature": signature, "pickle": data}
        variable = {**result, "name": "x"}
        inputs = {**result, "name": "<inputs>"}
        task = a_task(number, state="completed", reason=None, exit_code=0, history=[],
                      results=[result, variable, inputs])  # fmt: skip
        assert len(taken(store, write(tmp_path / "f.jsonl", lines(task))).ids) == 1
    for task in manager.tasks.select(Selection()):
        for kept in (manager.store.results.get(task.key, name) for name in ("", "x", "<inputs>")):
            if kept is not None and kept.path is not None:
                with pytest.raises(BackgroundError, match="was imported"):
                    manager.payloads.load(task, kept)
                with pytest.raises(BackgroundError, match="was imported"):
                    manager.payloads.copy(task, kept)


def test_a_task_of_the_name_and_notebook_of_ones_own_is_not_run_by_mistake(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path, tmp_path: Path, mark: Path
) -> None:
    """It is the latest of that name, in this very session even: rerun asks, all others leave it."""
    notebook = tmp_path / "a.ipynb"
    kernel = make_kernel(notebook=notebook)
    kernel.run("%%background train\n1 + 1")
    kernel.run("%bg_wait")
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        own = store.sessions.notebooks()[0]
        (session_id,) = store.database.row("SELECT id FROM sessions")
        (host,) = store.database.row("SELECT host FROM sessions")
    evil = f"import os; os.mkdir({str(mark)!r})"
    there = {**NOTEBOOK, "uid": own.uid, "path": str(notebook), "last_number": 9}
    session = {**SESSION, "id": session_id, "notebook": there, "path": str(notebook), "host": host}
    bad = [
        a_task(7, source=evil, session=session_id, name="train"),
        a_task(8, source=f"!mkdir {mark}", session=session_id, name="train", kind="shell",
               runner="process", process={**PROCESS, "command": ["mkdir", str(mark)]}),
        a_task(9, source=evil, session=session_id, name="train", state="running", reason=None,
               ended_at=None, history=[]),
    ]  # fmt: skip
    file = write(tmp_path / "f.jsonl", lines(*bad, session=session))
    assert "imported 3 tasks" in kernel.run(f"%bg_import {file}").text
    assert "--yes runs it" in kernel.run("%bg_rerun train", check=False).text
    assert "--yes runs it" in kernel.run("%bg_rerun", check=False).text
    assert "imported" in kernel.run("%bg_rerun 8 --yes", check=False).text
    assert "nothing to resume" in kernel.run("%bg_resume --all").text
    assert "imported" in kernel.run("%bg_resume train", check=False).text
    kernel.run("%config BackgroundTasks.auto_resume = True\n%reload_ext ipytaskpersist")
    assert "imported" in kernel.run("%bg_show train --json").text
    kernel.run("%bg_cancel --all", check=False)
    assert "train" in kernel.run("%bg_list").text
    with closing(BackgroundTasks()) as manager:
        store = manager.store.open()
        found = store.tasks.by_name(own.key, "train")
        assert found is not None
        assert found.state is TaskState.INTERRUPTED, "whatever a file says, nothing of it runs"
        for verb in ("rerun", "resume"):
            answer = Actions(manager).do({"ask": verb, "verb": verb, "task": found.id})
            assert answer["ok"] is False
            assert "imported" in answer["text"]


def test_it_says_nowhere_where_ends_are_told(store: TaskStore, tmp_path: Path) -> None:
    """Whatever names it uses for that."""
    task = a_task(1, notify=["json://mallory.example"], supervisor_key=1, archive="2026-01", key=1)
    taken(store, write(tmp_path / "f.jsonl", lines(task)))
    assert store.tasks.to_notify() == []
    (found,) = store.tasks.select(Selection())
    assert found.notify == ()
    assert found.is_imported
    assert store.supervisors.unfinished() == []
    process = a_task(2, runner="process", process={**PROCESS, "pid": os.getpid()})
    taken(store, write(tmp_path / "f.jsonl", lines(process)))
    assert store.tasks.live(found.notebook_key) == set()


def test_what_was_imported_stays_imported(store: TaskStore, tmp_path: Path) -> None:
    """A file cannot say that it is none, and an archive keeps that mark."""
    for number, said in enumerate(
        ({"imported_at": None}, {"imported_at": 0}, {"rerun_as": "x"}), 1
    ):
        taken(store, write(tmp_path / "f.jsonl", lines(a_task(number, provenance=said))))
    tasks = store.tasks.select(Selection())
    assert len(tasks) == 3
    assert all(task.is_imported for task in tasks)
    with closing(Archives(store)) as archives:
        archives.archive(tasks)
        assert all(task.is_imported for task in archives.select(Selection()))


# It leads nowhere.


@pytest.mark.parametrize(
    "name",
    ["../../escape", "/tmp/escape", "..\\..\\escape", "C:\\escape", "CON", "nul", "a/../../escape",
     "\\\\host\\share", "~/escape", "$HOME/escape", "escape\x00.ipynb", "a" * 4000, "..", "."],
    ids=repr,
)  # fmt: skip
def test_no_name_in_it_is_used_as_a_path(
    store: TaskStore, manager: BackgroundTasks, tmp_path: Path, name: str
) -> None:
    """Of a task, a session, a notebook, a directory, a variable."""
    before = tree(tmp_path) - {"f.jsonl"}
    data = base64.b64encode(b"\x80\x04K\x01.").decode()
    result = {"name": "x", "text": "1", "signature": "0" * 64, "pickle": data}
    notebook = {**NOTEBOOK, "path": name}
    session = {**SESSION, "notebook": notebook, "path": name, "kernel_uuid": name[:100]}
    tasks = [
        a_task(1, id=f"{name[:50]}-1", name=name[:100], results=[result]),
        a_task(2, provenance={"directory": name, "original_id": name[:50]}, results=[result]),
        a_task(3, results=[{**result, "name": name}]),
        a_task(4, runner="process", process={**PROCESS, "directory": name}),
    ]
    taken(store, write(tmp_path / "f.jsonl", lines(*tasks, session=session)))
    for task in manager.tasks.select(Selection()):
        manager.payloads.delete(task.id)
    new = {path for path in tree(tmp_path) - before if not path.startswith("state/")}
    assert new <= {"f.jsonl"}
    assert "escape" not in " ".join(tree(tmp_path))


def test_a_number_that_no_json_has_does_not_poison_the_store(
    store: TaskStore, manager: BackgroundTasks, tmp_path: Path
) -> None:
    """1e999 is infinity once it is read: nothing could ever be exported again."""
    task = json.dumps(a_task(1, provenance={"x": "INF"})).replace('"INF"', "1e999")
    report = taken(store, write(tmp_path / "f.jsonl", [*lines()[:2], task, a_task(2), lines()[-1]]))
    assert [invalid.position for invalid in report.invalid] == ["line 3"]
    assert len(report.ids) == 1
    assert b"".join(
        Export(manager.archives, manager.payloads, manager.tasks.select(Selection())).lines()
    )


# It is no other kind of file.


def packed() -> dict[str, bytes]:
    """Files that would unpack to more, or elsewhere."""
    bomb = gzip.compress(b"\0" * 10_000_000)
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../escape", b"\0" * 10_000_000)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        link = tarfile.TarInfo("../../escape")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    laughs = "<!DOCTYPE l [" + "".join(
        f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9)
    ) + "]><l>&l9;</l>"  # fmt: skip
    anchors = "a: &a [x,x]\n" + "".join(f"{c}: &{c} [*a,*a]\n" for c in "bcdefgh")
    return {
        "gzip": bomb, "zip": zipped.getvalue(), "tar": tarred.getvalue(), "xml": laughs.encode(),
        "yaml": anchors.encode(), "pickle": pickle.dumps([1]), "sqlite": b"SQLite format 3\0" * 9,
        "zstd": b"\x28\xb5\x2f\xfd" + b"\0" * 99, "bom": b"\xff\xfe{\0}\0",
    }  # fmt: skip


@pytest.mark.parametrize("kind", packed())
def test_nothing_is_unpacked(store: TaskStore, tmp_path: Path, kind: str) -> None:
    before = tree(tmp_path)
    path = tmp_path / "f.jsonl"
    path.write_bytes(packed()[kind])
    with pytest.raises(InvalidRequest, match="holds no tasks"):
        taken(store, path)
    assert tree(tmp_path) - before == {"f.jsonl"}


def test_what_is_no_ordinary_file_is_not_read(store: TaskStore, tmp_path: Path) -> None:
    """Neither a device without an end, nor a pipe to which nobody writes."""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
            with pytest.raises(InvalidRequest, match="not an ordinary file"):
                taken(store, path)


# It takes little memory, and only one error comes out.

FUZZ = """
import json, random, resource, sys
from pathlib import Path
from contextlib import closing
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.history.importing import import_file
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.history.export_page import page
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

folder, seed, turns, room = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
store = TaskStore(StateDirectory(default_directory())).open()
archives, payloads = Archives(store), Payloads(store.directory)
samples = [path.read_bytes() for path in sorted(folder.glob("sample*"))]
target = folder / "mutated"

def take(data):
    target.write_bytes(data)
    try:
        return len(import_file(target, store, archives.all, payloads).ids)
    except BackgroundError as error:
        assert "\\n" not in str(error), repr(str(error))
        return 0

for sample in samples:
    take(sample)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
chance = random.Random(seed)
TOKENS = [
    b"null", b"-1", b"1e999", b"1e308", b"[]", b"{}", b'""', b"true", b"9" * 400,
    b'"' + b"A" * 3000 + b'"', b"\\x00", b'"\\\\u0000"', b'"running"', b"NaN", b"[[[",
]

def mutated(data):
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        at = chance.randrange(len(data))
        way = chance.randrange(7)
        if way == 0: data[at] = chance.randrange(256)
        elif way == 1: del data[at : at + chance.choice((1, 10, 200))]
        elif way == 2: data[at:at] = chance.choice(TOKENS)
        elif way == 3: data[at:at] = data[at : at + chance.choice((1, 50, 500))] * 2
        elif way == 4: data[at : at + 1] = bytes([data[at] ^ (1 << chance.randrange(8))])
        elif way == 5:
            end = data.find(b",", at)
            colon = data.rfind(b":", 0, end)
            if 0 < colon < end: data[colon + 1 : end] = chance.choice(TOKENS)
        else: del data[at:]
        if not data: data = bytearray(b"x")
    return bytes(data)

imported = 0
for turn in range(turns):
    # Another time makes it another task, which is not there yet.
    sample = chance.choice(samples).replace(b'"created_at": 1.', b'"created_at": %d.' % turn)
    imported += take(mutated(sample))
for bomb in sys.argv[5:]:
    try:
        print("imported", import_file(Path(bomb), store, archives.all, payloads))
    except BackgroundError as error:
        print("refused", error)
manager = BackgroundTasks()
tasks = manager.tasks.select(Selection())
assert imported > turns / 100, imported  # one in twelve, give or take: chance decides
for make in (Export.lines, Export.document, Export.notebook, page):
    for piece in make(Export(manager.archives, manager.payloads, tasks)):
        pass
assert store.database.row("PRAGMA integrity_check") == ("ok",)
print("whole")
"""
TURNS = int(os.environ.get("IPYTASKPERSIST_FUZZ_TURNS", "300"))
ROOM_BYTES = 100 * 1024 * 1024
"""How much memory there is: less than what some of the files need."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to such a limit")
def test_mutated_files_and_bombs_are_refused_in_words_and_in_little_memory(
    state_dir: Path, tmp_path: Path
) -> None:
    """Nothing but `BackgroundError` comes out, and what was taken can be exported afterwards."""
    folder = tmp_path / "fuzz"
    folder.mkdir()
    write(folder / "sample1", lines(a_task(1), a_task(2, runner="process", process=PROCESS)))
    tasks = [a_task(3), a_task(4, state="completed", exit_code=0, history=[])]
    whole = {**HEADER, "sessions": [SESSION], "tasks": tasks}
    (folder / "sample2").write_text(json.dumps(whole))
    for place, shape in enumerate(sorted(SHAPES.glob("*.json"))):
        (folder / f"sample{place + 3}").write_bytes(shape.read_bytes())
    bombs = {
        "values": b"[" + b"[]," * 2_000_000 + b"[]]",
        "deep": b"[" * 3_000_000,
        "number": b'{"a":' + b"9" * 5_000_000 + b"}",
    }
    for name, data in bombs.items():
        (folder / name).write_bytes(data)
    with (folder / "sparse").open("wb") as sparse:
        sparse.truncate(10 * 1024**3)
    seed = random.randrange(2**32)
    names = [str(folder / name) for name in (*bombs, "sparse")]
    ended = run_python(FUZZ, state_dir, str(folder), str(seed), str(TURNS), str(ROOM_BYTES), *names)
    assert ended.returncode == 0, f"seed {seed}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
    assert ended.stdout.endswith("whole\n")
    assert ended.stdout.count("refused") == len(names), ended.stdout


# A store or a backup that a stranger has made.


def beside(file: Path) -> set[str]:
    """What SQLite leaves beside a file that it only reads."""
    return {f"{file.name}-wal", f"{file.name}-shm"}


def test_a_backup_with_other_things_under_our_names_is_refused_or_harmless(
    state_dir: Path, tmp_path: Path, mark: Path
) -> None:
    """Views and triggers instead of tables: whatever SQLite makes of it, in one line."""
    file = tmp_path / "evil.db"
    with closing(TaskStore(StateDirectory(tmp_path / "made")).open()) as made:
        add_task(made, begin_session(made))
        made.back_up(file)
    with closing(sqlite3.connect(file)) as evil:
        evil.execute("ALTER TABLE tasks RENAME TO hidden")
        evil.execute(
            "CREATE VIEW tasks AS SELECT *, load_extension('/tmp/evil.so') AS x FROM hidden"
        )
        evil.execute(
            "CREATE TRIGGER t INSTEAD OF DELETE ON tasks BEGIN SELECT writefile('x', 'y'); END"
        )
        evil.commit()
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        add_task(store, begin_session(store), name="mine")
    before = tree(tmp_path)
    ended = run_command(state_dir, "restore", str(file), "--yes")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not {each for each in tree(tmp_path) - before if "backups" not in each} - beside(file)
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        assert [task.name for task in store.tasks.select(Selection())] == ["mine"]
