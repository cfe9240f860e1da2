"""Determine the session and the notebook of this process."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def session_identity(shell: InteractiveShell | None, notebook: str = "") -> SessionIdentity:
    """Determine the session of this process.

    `notebook` is the path from the user's settings, or an empty string.
    """
    kernel = _kernel_of_this_process(shell)
    path = notebook or _notebook_path(shell)
    uuid_of_kernel = _kernel_uuid(kernel) if kernel is not None else None
    front_end = "kernel" if kernel is not None else "terminal" if shell is not None else "program"
    return SessionIdentity(
        id=_session_id(shell, kernel),
        front_end=front_end,
        path=str(Path(path).absolute() if path else Path.cwd()),
        # Kernels without a known path must not all be joined by their starting folder.
        has_path=bool(path) or uuid_of_kernel is None,
        kernel_uuid=uuid_of_kernel,
        process=ProcessIdentity.own(),
    )


def _kernel_of_this_process(shell: InteractiveShell | None) -> Any:
    """Return the kernel; None also in a process forked from it, which is another session."""
    kernel = getattr(shell, "kernel", None)
    is_forked = getattr(getattr(kernel, "session", None), "pid", os.getpid()) != os.getpid()
    return None if is_forked else kernel


def _session_id(shell: InteractiveShell | None, kernel: Any) -> str:
    if kernel is not None:
        return str(kernel.session.session)
    # A terminal has no id of its own. Generate one once and keep it on the shell, so that reloading
    # the extension does not begin another session.
    owner: Any = shell if shell is not None else sys.modules[__name__]
    existing = getattr(owner, "_ipytaskpersist_session", None)
    if existing is None:
        existing = str(uuid.uuid4())
        owner._ipytaskpersist_session = existing
    return str(existing)


def _notebook_path(shell: InteractiveShell | None) -> str:
    named = os.environ.get("IPYTASKPERSIST_NOTEBOOK", "")
    if named or shell is None:
        return named
    vscode = shell.user_ns.get("__vsc_ipynb_file__")
    return str(vscode) if vscode else os.environ.get("JPY_SESSION_NAME", "")


def notebook_folder(shell: InteractiveShell | None, notebook: str = "") -> Path:
    """Return the directory of the notebook; the working directory if no notebook is known."""
    path = Path(notebook or _notebook_path(shell) or Path.cwd()).absolute()
    return path if path.is_dir() else path.parent


def _kernel_uuid(kernel: Any) -> str | None:
    """Return an identity that the kernel shares with its restarts.

    A Jupyter server names the connection file after the kernel's uuid. Other front ends use a pid
    or a random name, which may recur; the connection's secret key does not.
    """
    name = _connection_file_name(kernel)
    found = UUID.search(name)
    if found:
        return found.group()
    key = getattr(kernel.session, "key", b"")
    return hashlib.sha256(os.fsencode(name) + b"\0" + key).hexdigest()[:32] if key else None


def _connection_file_name(kernel: Any) -> str:
    application = getattr(kernel, "parent", None)
    return Path(getattr(application, "connection_file", "") or "").name
