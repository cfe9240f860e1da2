"""Who may ask the server's extension, and what it answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
from histories import add_task, add_tasks, begin_session, open_store
from kernels import until
from plain_servers import BASE_URL, PlainServer
from programs import run_command, run_python

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.server.command_line import VERBS
from ipytaskpersist.store.task_store import TaskStore

API = f"{BASE_URL}ipytaskpersist/api/"


@pytest.fixture
def kept(server: PlainServer, directory: Path) -> Iterator[TaskStore]:
    """The store of which it answers."""
    with closing(open_store(directory)) as store:
        yield store


REQUESTS = [
    ("POST", "notebook"), ("POST", "events"), ("GET", "list"), ("GET", "tasks/x-1/output"),
    ("POST", "tasks/x-1/cancel"), ("POST", "tasks/x-1/rerun"), ("POST", "tasks/x-1/resume"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_nobody_is_answered_whom_the_server_does_not_let_in(
    server: PlainServer, method: str, path: str
) -> None:
    """Neither without a token, nor with a wrong one or that of an earlier server."""
    for headers in ({}, {"Authorization": "token wrong"}, {"Authorization": f"token {'0' * 32}"}):
        answer = server.ask(method, path, {}, headers)
        assert answer.status == 403, (headers, answer.body)
        assert b"task" not in answer.body


def test_a_page_of_another_site_cannot_use_the_browser_s_cookie(server: PlainServer) -> None:
    """The cookie alone is not enough to change or to read anything by POST."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", f"{BASE_URL}tree?token={server.token}")
    answer = connection.getresponse()
    cookies = [each.partition(";")[0] for each in answer.headers.get_all("Set-Cookie") or ()]
    answer.read()
    with_cookie = {"Cookie": "; ".join(cookies)}
    assert server.ask("GET", "list", None, with_cookie).status == 200, "it does sign in"
    for method, path in REQUESTS:
        if method == "POST":
            answered = server.ask(method, path, {}, with_cookie)
            assert answered.status == 403, path
            assert "_xsrf" in answered.said
    elsewhere = {**with_cookie, "Origin": "https://elsewhere.example"}
    assert server.ask("GET", "list", None, elsewhere).status in (403, 404)
    (xsrf,) = [each.partition("=")[2] for each in cookies if each.startswith("_xsrf=")]
    with_both = {**with_cookie, "X-XSRFToken": xsrf}
    assert server.ask("POST", "notebook", {"path": "a", "cells": []}, with_both).status == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not json", "is not JSON"),
        (b"[]", "is not an object"),
        (b'{"cells": []}', "names no notebook"),
        (b'{"path": 3}', "the request.path is not a text"),
        (b'{"path": "a", "cells": {"id": "x"}}', "the request.cells is not a list"),
        (b'{"path": "a", "cells": [3]}', "the request.cells[0] is not an object"),
        (b'{"path": "a", "cells": [{"id": "x", "source": []}]}', "source is not a text"),
    ],
)
def test_what_is_no_request_is_refused_in_one_line(
    server: PlainServer, body: bytes, said: str
) -> None:
    answer = server.ask("POST", "notebook", body)
    assert answer.status == 400
    assert said in answer.said
    assert "\n" not in answer.said


def test_an_unknown_task_and_an_unknown_verb_are_refused(
    server: PlainServer, kept: TaskStore
) -> None:
    task = add_task(kept, begin_session(kept))
    for method, path in (("GET", "output"), ("POST", "cancel"), ("POST", "rerun")):
        answer = server.ask(method, f"tasks/nothing-1/{path}", {} if method == "POST" else None)
        assert (answer.status, answer.said) == (404, "there is no task 'nothing-1' any more")
    for verb in ("delete", "export", "restore", "import"):
        answer = server.ask("POST", f"tasks/{task.id}/{verb}")
        assert (answer.status, kept.tasks.by_id(task.id) is not None) == (409, True)
        assert answer.said == f"a page has no action '{verb}'; there are {', '.join(VERBS)}"
    assert server.ask("GET", f"tasks/{task.id}/cancel").status == 405


def test_verbs_do_and_say_what_the_command_line_does_and_says(
    server: PlainServer, directory: Path, kept: TaskStore
) -> None:
    notebook = server.root / "verbs.ipynb"
    made = run_python(
        "import ipytaskpersist as bg\n"
        "bg.background('sleep 600', 'long', shell=True)\n"
        "bg.background('echo done', 'short', shell=True).wait(60)\n",
        directory,
        env={"IPYTASKPERSIST_NOTEBOOK": str(notebook)},
    )
    assert made.returncode == 0, made.stderr
    long, short = _named(kept, "long", "short")
    kept.database.execute("UPDATE tasks SET cell_id = 'c' WHERE id = ?", (short,))
    answer = server.ask("POST", f"tasks/{long}/cancel")
    assert (answer.status, answer.json) == (200, {"said": "task 1 (long): cancelled"})
    answer = server.ask("POST", f"tasks/{long}/resume")
    assert answer.status == 409
    assert answer.said == run_command(
        directory, "resume", long, notebook=notebook
    ).stderr.strip().removeprefix("jupyter bg: ")
    answer = server.ask("POST", f"tasks/{short}/rerun")
    assert answer.status == 200
    assert answer.json["said"].startswith("● background task 3 (short) has started")
    cell = {"id": "c", "source": "%%background --shell short\necho done"}
    until(lambda: "completed" in str(server.cells("verbs.ipynb", cell)), 60, "the end of the task")
    shown = server.cells("verbs.ipynb", cell)["cells"]["c"]
    assert shown["task"]["number"] == 3, "the cell shows its latest run"
    assert [out.get("text") for out in shown["outputs"]][1:] == ["done\n"]
    python = add_task(kept, begin_session(kept, str(notebook)))
    refused = server.ask("POST", f"tasks/{python.id}/rerun")
    assert (refused.status, "%load_ext ipytaskpersist" in refused.said) == (409, True)


def _named(store: TaskStore, *names: str) -> list[str]:
    rows = store.database.rows("SELECT name, id FROM tasks")
    return [dict(rows)[name] for name in names]


def test_cells_get_their_outputs_and_a_file_has_all_of_the_text(
    server: PlainServer, kept: TaskStore
) -> None:
    session = begin_session(kept, str(server.root / "folder" / "b c.ipynb"))
    text = "".join(f"line {n}\n" for n in range(60_000)).encode() + b"\xff end"
    task = add_task(kept, session, name='größer/ä"', printed=text, cell_id="one")
    cells = server.cells(
        "folder/b c.ipynb", {"id": "one", "source": "%%background x\nprint(1)"},
        {"id": "two", "source": "1"}, {"id": "three", "source": "1", "marked": task.id},
    )["cells"]  # fmt: skip
    assert cells.keys() == {"one", "three"}
    _card, head, fold, tail = cells["one"]["outputs"]
    nbformat.validate(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(outputs=nbformat.from_dict(cells["one"]["outputs"]))]
        )
    )
    assert head["text"].startswith("line 0\n")
    assert tail["text"].endswith("line 59999\n\ufffd end")
    link = f"{API}tasks/{quote(task.id)}/output"
    assert f'href="{link}"' in fold["data"]["text/html"]
    answer = server.ask("GET", f"tasks/{task.id}/output")
    assert (answer.status, answer.body) == (200, text)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    name = answer.headers["Content-Disposition"].removeprefix("attachment; filename*=UTF-8''")
    assert name == quote('task 1 größer_ä".txt')


def test_an_answer_has_only_cards_where_there_is_no_room_and_the_rest_follows(
    server: PlainServer, kept: TaskStore
) -> None:
    session = begin_session(kept, str(server.root / "big.ipynb"))
    tasks = [add_task(kept, session, printed=b"x" * 250_000, cell_id=f"{n}") for n in range(20)]
    cells = [{"id": f"{n}", "source": "%%background\nprint(1)"} for n in range(20)]
    answered = [server.cells("big.ipynb", *cells)["cells"][f"{n}"] for n in range(20)]
    sizes = [len(each["outputs"]) for each in answered]
    assert sizes == [2] * sizes.count(2) + [1] * sizes.count(1)
    assert 10 < sizes.count(2) < 19
    assert [each["complete"] for each in answered] == [size == 2 for size in sizes]
    page = server.open_page("big.ipynb", *cells)
    until(lambda: all(len(page.outputs[task.id]) == 2 for task in tasks), 30, "the rest")
    assert {page.text(task.id) for task in tasks} == {"x" * 250_000}
    told = {message["task"]["id"] for message in page.messages if "edits" in message}
    assert told == {task.id for task in tasks[sizes.count(2) :]}, "the others lacked nothing"


def test_a_thousand_tasks_are_listed_and_searched(server: PlainServer, kept: TaskStore) -> None:
    session = begin_session(kept, str(server.root / "many.ipynb"))
    add_tasks(kept, session, 1_000, name="one of many")
    add_task(kept, session, name="Needle", state=TaskState.RUNNING)
    add_tasks(kept, session, 3)
    found = server.listed(notebook="many.ipynb")
    assert len(found["tasks"]) == 1_000
    assert found["running"] == 1
    assert (found["tasks"][0]["name"], found["tasks"][0]["path"]) == ("Needle", "many.ipynb")
    assert found["tasks"][0].keys() == {
        "id", "number", "name", "own", "notebook", "state", "glyph", "is_live", "created",
        "started", "ended", "line", "fraction", "counts", "asked", "action", "pause", "again",
        "kind", "path", "cell_id", "source",
    }  # fmt: skip
    assert [task["name"] for task in server.listed(search="needle RUNNING")["tasks"]] == ["Needle"]
    few = server.listed(notebook="many.ipynb", limit="2")
    assert [task["number"] for task in few["tasks"]] == [1001, 1004], "what runs comes first"
    for path in ("unknown.ipynb", "../../etc/passwd", "a\0b", "x" * 5_000):
        assert server.listed(notebook=path) == {"tasks": [], "running": 0}


def test_the_server_itself_never_writes_the_store(server: PlainServer, directory: Path) -> None:
    """Its connections are only for reading, whatever a page asks."""
    code = (
        "import sys\n"
        "from ipytaskpersist.base.paths import StateDirectory\n"
        "from ipytaskpersist.server.hub import Hub\n"
        "from pathlib import Path\n"
        "hub = Hub(StateDirectory(Path(sys.argv[1])), Path(), lambda task: '')\n"
        "hub.listed(None, '', 9)\n"
        "try:\n    hub.store.tasks.clear(1)\nexcept Exception as error:\n    print(error)\n"
    )
    ended = run_python(code, directory, str(directory))
    assert "attempt to write a readonly database" in ended.stdout, ended.stderr


def test_jupyter_says_that_the_extension_is_there(server: PlainServer) -> None:
    import subprocess

    listed = subprocess.run(
        [sys.executable, "-m", "jupyter_server.extension.serverextension", "list"],
        env=server._env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    said = listed.stdout + listed.stderr
    assert "ipytaskpersist" in said
    about = said[said.index("ipytaskpersist") :].splitlines()
    assert "enabled" in about[0]
    assert any("OK" in line for line in about[:4]), said
    assert "ipytaskpersist | extension was successfully loaded." in server.log


def test_fill_is_refused_while_a_page_has_the_notebook_open(
    server: PlainServer, directory: Path, kept: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page is there for as long as it is connected to the notebook's kernel."""
    websocket = pytest.importorskip("websocket")
    path = server.root / "open.ipynb"
    add_task(kept, begin_session(kept, str(path)), cell_id="c")
    cell = nbformat.v4.new_code_cell("%%background\nprint(1)", id="c")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(server.folder / "runtime"))
    model = {"path": "open.ipynb", "name": "open.ipynb", "type": "notebook", "kernel": {}}
    session = server.ask("POST", "/api/sessions", model).json
    channels = f"{BASE_URL}api/kernels/{session['kernel']['id']}/channels?token={server.token}"
    page = websocket.create_connection(f"ws://127.0.0.1:{server.port}{channels}")
    try:
        refused = run_command(directory, "fill", str(path))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"{path} open, and shows its tasks by itself; close it, or add --anyway" in (
            refused.stderr
        )
        assert json.loads(path.read_text())["cells"][0]["outputs"] == []
        assert run_command(directory, "fill", "--anyway", str(path)).returncode == 0
    finally:
        page.close()
    until(lambda: run_command(directory, "fill", str(path)).returncode == 0, 30, "a closed page")
    server.ask("DELETE", f"/api/sessions/{session['id']}")
