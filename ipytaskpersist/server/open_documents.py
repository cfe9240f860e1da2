"""Whether a page has a notebook open, as far as the Jupyter servers of this user can tell."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

TIMEOUT_S = 3.0
_opener = build_opener(ProxyHandler({}))  # the servers are on this machine


def server_with_page(path: Path) -> str | None:
    """Return the address of a running server on which a page has this notebook open.

    A server knows the pages that are connected to the notebook's kernel. Of a notebook without a
    kernel, and of a server that asks for a password, nothing can be known.
    """
    try:
        from jupyter_server.serverapp import list_running_servers
    except ImportError:
        return None
    for server in list_running_servers():
        for session in _sessions(server):
            if _is_open(session, Path(server["root_dir"]), path):
                return str(server["url"])
    return None


def _sessions(server: dict[str, Any]) -> list[dict[str, Any]]:
    url = str(server["url"])
    if not url.startswith(("http://", "https://")):
        return []
    request = Request(
        f"{url.rstrip('/')}/api/sessions", headers={"Authorization": f"token {server['token']}"}
    )
    with suppress(OSError, ValueError):  # it is just ending, or does not let us in
        with _opener.open(request, timeout=TIMEOUT_S) as answer:
            sessions: list[dict[str, Any]] = json.loads(answer.read())
        return sessions
    return []


def _is_open(session: dict[str, Any], root: Path, path: Path) -> bool:
    kernel = session.get("kernel") or {}
    is_same = (root.expanduser() / str(session.get("path", ""))).resolve() == path.resolve()
    return is_same and bool(kernel.get("connections"))
