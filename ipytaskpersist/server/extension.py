"""Load the extension into a Jupyter server."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from ipytaskpersist.base.paths import SERVED, StateDirectory, default_directory
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.server.handlers import NAME, absolute, handlers
from ipytaskpersist.server.hub import Hub

READERS = 2
"""Number of threads that read the store for answers."""
COMMANDS = 4
"""Number of commands that run at once. Each takes a second or more."""


def _load_jupyter_server_extension(server: Any) -> None:
    """Add the addresses to a server."""
    application = server.web_app
    base_url = application.settings["base_url"]
    root = absolute(getattr(server.contents_manager, "root_dir", ""))

    def save_link(task: TaskRecord) -> str:
        return f"{base_url.rstrip('/')}/{NAME}/api/tasks/{quote(task.id)}/output"

    directory = StateDirectory(default_directory())
    made = {
        "hub": Hub(directory, root, save_link),
        "readers": ThreadPoolExecutor(READERS, thread_name_prefix="ipytaskpersist-reader"),
        "commands": ThreadPoolExecutor(COMMANDS, thread_name_prefix="ipytaskpersist-command"),
    }
    os.environ[SERVED] = str(directory.root)
    application.add_handlers(".*$", [(path, kind, made) for path, kind in handlers(base_url)])
