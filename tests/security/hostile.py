"""A store in which every text that may be a stranger's is an attack."""

from __future__ import annotations

import json
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from histories import add_task, begin_session

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import Options, OutputKind, Progress, ResultRecord, TaskState
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.encoding import encode_content

STEERING = (
    "\x1b]0;title\x07 \x1b]52;c;cm0gLXJm\x07 \x1b[2J\x1b[H \x1bc \x1b[?1049h \x1bP+q544e\x1b\\"
    " \x1b[6n \x1b[5i \x9b2J \x9d0;title\x9c \x90q\x9c \x8d \x0e \x7f \x08\x08 \x1b]8;;http://a\x07"
)
"""Title, clipboard, screen, reset, another screen, questions, printing; the same in one byte."""
TURNING = "\u202egnp.exe\u202c \u2066a\u2069 \u200f"
MARKUP = (
    "<script>pwned()</script><img src=x onerror=pwned()><svg onload=pwned()>"
    "<iframe srcdoc='<script>pwned()</script>'></iframe><a href='javascript:pwned()'>a</a>"
    "<style>@import 'http://a'</style><div style='background:url(http://a/b)'>"
    "</pre></td></table></div></textarea></title><base href=//a><form action=//a><button>"
    "<math><mtext><mglyph><style><img src=x onerror=pwned()>"
)
QUOTES = "'\"`; DROP TABLE tasks; -- %s ${x} {0} \\"
ATTACK = f"{MARKUP}{STEERING}{TURNING}{QUOTES}"
ONE_LINE = ATTACK.replace("\n", " ")


def _add(store: TaskStore, key: int, kind: OutputKind, content: object) -> None:
    data = content if isinstance(content, bytes) else encode_content(content)  # type: ignore[arg-type]
    store.outputs.append([NewOutput(key, kind, time.time(), data, 0, 0, 1, ONE_LINE).as_row()])


def _show(store: TaskStore, key: int) -> None:
    _add(store, key, OutputKind.STDERR, f"{ATTACK}\n".encode())
    bundle = {
        "text/plain": ATTACK, "text/html": MARKUP, "image/svg+xml": MARKUP,
        ONE_LINE: ATTACK, "text/markdown": MARKUP, "application/javascript": "pwned()",
    }  # fmt: skip
    plain = {"text/plain": ATTACK, "text/html": MARKUP}
    for data in (bundle, plain, {"text/plain": ATTACK}, {"image/png": MARKUP}):
        _add(store, key, OutputKind.DISPLAY_DATA, {"data": data, "metadata": {}})
    error = {"ename": ONE_LINE, "evalue": ATTACK, "traceback": [ATTACK, MARKUP]}
    _add(store, key, OutputKind.ERROR, error)


def make_hostile(state_dir: Path, path: str, tags: list[str] | None = None) -> list[str]:
    """Fill a store, and return the ids of its tasks: one for each way in which a task may be."""
    ids = []
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        session = begin_session(store, path)
        others = begin_session(store, f"/home/mallory/{ONE_LINE}.ipynb")
        store.database.execute("UPDATE sessions SET host = ?", (ONE_LINE,))
        known = {
            "host": ONE_LINE, "directory": ONE_LINE, "python": ONE_LINE, "executable": ONE_LINE,
            "git": {"root": ONE_LINE, "commit": ONE_LINE, "branch": ONE_LINE, "is_dirty": True},
        }  # fmt: skip
        for place, state in ((others, TaskState.FAILED), *((session, each) for each in TaskState)):
            task = add_task(
                store, place, state=state, name=ONE_LINE, printed=f"{ATTACK}\n".encode() * 3,
                provenance=known, tags=tags or [], shown=partial(_show, store),
            )  # fmt: skip
            ids.append(task.id)
            change = "UPDATE tasks SET reason = ?, source = ? WHERE key = ?"
            store.database.execute(change, (ATTACK, f"{ATTACK}\n1\n", task.key))
            store.database.execute("UPDATE events SET reason = ?", (ATTACK,))
            store.tasks.progress(task.key, Progress(1, 2, ONE_LINE))
            frame = {
                "place": ONE_LINE, "function": ONE_LINE, "code": ONE_LINE, "left_out": 0,
                "variables": [{"name": ONE_LINE, "type": ONE_LINE, "text": ATTACK}],
            }  # fmt: skip
            store.tasks.save_post_mortem(task.key, {"frames": [frame], "left_out": 0})
            for name in ("", ONE_LINE):
                store.results.save(
                    task.key, ResultRecord(name, None, None, None, None, ATTACK, ATTACK)
                )
            process = NewProcess(
                [ONE_LINE, ATTACK], ONE_LINE, 1, Options(env={ONE_LINE: ATTACK}), script=None
            )
            with store.database.transaction() as connection:
                process.insert(connection, task.key)
        store.database.execute(
            "UPDATE tasks SET provenance = json_set(provenance, '$.imported_at', 1.0) "
            "WHERE state = 'cancelled'"
        )
    (state_dir / "problems.jsonl").write_text(
        json.dumps({"at": time.time(), "pid": 1, "message": ATTACK}) + "\n"
    )
    (state_dir / "problems.jsonl").chmod(0o600)
    return ids
