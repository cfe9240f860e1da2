"""docs/openapi.json says what the addresses of the server's extension are and answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from histories import add_task, begin_session, open_store
from plain_servers import PlainServer

import ipytaskpersist
from ipytaskpersist.server.command_line import VERBS
from ipytaskpersist.server.handlers import Handler, handlers

DOCUMENT = json.loads(
    (Path(ipytaskpersist.__file__).parents[1] / "docs" / "openapi.json").read_text("utf-8")
)
PATHS = DOCUMENT["paths"]
EXAMPLES = {"task_id": "x-1", "verb": "cancel"}


BASE = "/ipytaskpersist/api"


def handler_of(path: str) -> type[Handler]:
    example = re.sub(r"{(\w+)}", lambda found: EXAMPLES[found[1]], path)
    found = [kind for pattern, kind in handlers("/") if re.fullmatch(pattern, f"{BASE}{example}")]
    return found[0]  # the server takes the first that matches


def test_the_documented_paths_and_methods_are_those_of_the_handlers() -> None:
    documented = {(handler_of(path), method) for path, item in PATHS.items() for method in item}
    real = {
        (kind, method)
        for _pattern, kind in handlers("/")
        for method in ("get", "post", "put", "patch", "delete")
        if method in vars(kind)
    }
    assert documented == real
    verb = PATHS["/tasks/{task_id}/{verb}"]["post"]["parameters"][1]
    assert verb["schema"]["enum"] == [*VERBS]


@pytest.fixture(scope="module")
def task_id(server: PlainServer, directory: Path) -> str:
    store = open_store(directory)
    session = begin_session(store, str(server.root / "a.ipynb"))
    return add_task(store, session, printed=b"hello\n", cell_id="one").id


def test_a_real_server_answers_as_documented(server: PlainServer, task_id: str) -> None:
    cells = {"path": "a.ipynb", "cells": [{"id": "one", "source": "1"}]}
    for method, path, asked, body, status in (
        ("get", "/list", "list", None, 200),
        ("get", "/list", "list?notebook=a.ipynb&search=hello&limit=1", None, 200),
        ("get", "/list", "list?limit=1000000", None, 400),
        ("post", "/notebook", "notebook", cells, 200),
        ("post", "/notebook", "notebook", {}, 400),
        ("get", "/tasks/{task_id}/output", f"tasks/{task_id}/output", None, 200),
        ("get", "/tasks/{task_id}/output", "tasks/nothing-1/output", None, 404),
        ("post", "/tasks/{task_id}/{verb}", f"tasks/{task_id}/resume", None, 409),
        ("post", "/tasks/{task_id}/{verb}", "tasks/nothing-1/cancel", None, 404),
        ("get", "/panel.js", "panel.js", None, 200),
        ("get", "/panel.css", "panel.css", None, 200),
    ):
        answer = server.ask(method.upper(), asked, body)
        assert answer.status == status, (asked, answer.body)
        check(answer.headers["Content-Type"], answer.body, PATHS[path][method], status)


def check(kind: str, body: bytes, operation: Any, status: int) -> None:
    """Compare an answer with what its operation documents."""
    ((documented, content),) = operation["responses"][str(status)]["content"].items()
    assert kind.startswith(documented)
    if documented == "application/json":
        schema = {**content["schema"], "components": DOCUMENT["components"]}
        jsonschema.validate(json.loads(body), schema)
