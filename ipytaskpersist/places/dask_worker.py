"""What runs on a Dask worker besides the agent. It is sent as text, like the agent.

The worker needs nothing of this package: the text may use the standard library and distributed.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

LOOK_S = 0.5
OVER = ("ended", "lost")
RELEASED: set[str] = set()
"""Folders of tasks for which no worker is to be occupied any more."""


def install(name: str, agent_text: str) -> ModuleType:
    """Make the agent and these functions a module of the worker, unless that has been done."""
    if name not in sys.modules:
        module = ModuleType(name)
        vars(module).update({**globals(), "__name__": name})
        module.AGENT = agent = ModuleType(f"{name}_agent")  # type: ignore[attr-defined]
        agent.TEXT = agent_text  # type: ignore[attr-defined]
        sys.modules[agent.__name__] = agent  # dataclasses look for their module there
        exec(agent_text, vars(agent))  # this text is sent by the same bridge  # nosec B102
        sys.modules[name] = module
    return sys.modules[name]


def answer_all(agent: Any, requests: list[tuple[dict[str, Any], bytes]]) -> bytes:
    """Return the agent's answers, as messages. Never raises: the worker would log the requests."""
    messages = []
    for request, data in requests:
        content, binary = agent.answer(request, data)
        text = json.dumps(content).encode()
        messages += [struct.pack(">II", len(text), len(binary)), text, binary]
    return b"".join(messages)


def hold(agent: Any, folder: str, topic: str, patience_s: float) -> None:
    """Occupy a thread of the worker, and the resources asked for, until a task has ended.

    Dask does not know of the task's processes, and would give their share of the worker to others.
    Until the task is started, the bridge is told which worker it is. Ends as well when for some
    time the task has not been started, and no file has arrived for it: the bridge may have gone.
    """
    from distributed import get_worker

    worker = get_worker()
    RELEASED.discard(folder)
    changed_at = time.time()
    while folder not in RELEASED and worker.status.name in ("running", "paused"):
        state = agent.look_at(agent.place(folder))["state"]
        if state == "absent":
            # Said again and again: a worker that is just connecting loses what it says.
            worker.log_event(topic, {"folder": folder, "worker": worker.address})
        with suppress(OSError):
            changed_at = max(changed_at, agent.place(folder).stat().st_mtime)
        is_abandoned = state == "absent" and time.time() - changed_at > patience_s
        if state in OVER or is_abandoned:
            break
        time.sleep(LOOK_S)


def release(agent: Any, folder: str) -> None:
    """Occupy the worker no longer for a task, unless the task has been started on its host."""
    if agent.look_at(agent.place(folder))["state"] == "absent":
        RELEASED.add(folder)


def own_text() -> str:
    """Return the text of this module."""
    return Path(__file__).read_text(encoding="utf-8")
