"""Who is running: processes, hosts, kernels and notebooks, each told apart from its successors.

A pid alone says nothing after it has been given to another process, and a clock may be set. So
a process is its pid together with when it started and the boot it belongs to; on Linux the start
is the raw ``starttime`` of ``/proc/PID/stat``, in clock ticks since the boot, which no change of
the clock can move (psutil's ``create_time`` does move: psutil issues 2526 and 2544).

Nor does a pid say anything outside its PID namespace. Containers have one each, and share the boot
with their host, often its name and a store, too; so the namespace belongs to a process as well.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import sys
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipytaskpersist import processes

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.records import SessionRecord, SupervisorRecord

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@cache
def host_name() -> str:
    """This machine's name, as it can be stored: escaped where it is not UTF-8."""
    return socket.gethostname().encode("utf-8", "backslashreplace").decode()


@cache
def boot_id() -> str:
    """What tells this boot of the machine from every other; empty where the system does not say.

    When the machine was booted is no substitute: that time moves with the clock.
    """
    if sys.platform == "darwin":
        return _boot_session()
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _boot_session() -> str:
    """What macOS calls this boot: ``sysctl kern.bootsessionuuid``."""
    import ctypes

    found = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(found))
    failed = ctypes.CDLL(None).sysctlbyname(
        b"kern.bootsessionuuid", found, ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return "" if failed else found.value.decode("ascii")


def _names_boot(recorded: str) -> bool:
    """Whether what was recorded names a boot. Earlier versions recorded its time as ``boot-…``."""
    return bool(recorded) and not recorded.startswith("boot-")


@cache
def pid_namespace() -> int | None:
    """What tells this process's PID namespace from all others that there are at the same time.

    None where there are none. The number of one that has ended may be given to another, in which
    no process has both the pid and the start time of one of the earlier.
    """
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None


def process_start(pid: int) -> str | None:
    """When the process with this pid started, as a string to compare; None when it is gone.

    A zombie counts as gone: it has ended, and only its parent has not noticed. Raises `OSError`
    where this process cannot look.
    """
    process = processes.find(pid)
    return None if process is None or process.is_zombie else process.start


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same pid."""

    host: str
    boot_id: str
    pid: int
    start: str
    """When it started; empty when that could not be found out."""
    namespace: int | None = None
    """Its `pid_namespace`; None where there are none, and in rows from before it was recorded."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of a process of this machine that is alive now, or None."""
        try:
            start = process_start(pid)
        except OSError:
            start = ""
        return None if start is None else cls(host_name(), boot_id(), pid, start, pid_namespace())

    @classmethod
    def own(cls) -> ProcessIdentity:
        """The identity of the process that asks."""
        found = cls.of(os.getpid())
        return found or cls(host_name(), boot_id(), os.getpid(), "", pid_namespace())

    @classmethod
    def recorded(cls, row: SessionRecord | SupervisorRecord) -> ProcessIdentity:
        """The process of which a row tells."""
        return cls(row.host, row.boot_id, row.pid, row.process_start, row.pid_namespace)

    @property
    def is_of_other_boot(self) -> bool:
        """Whether it certainly belongs to another boot than this one."""
        is_known = _names_boot(self.boot_id) and _names_boot(boot_id())
        return is_known and self.boot_id != boot_id()

    @property
    def is_local(self) -> bool:
        """Whether its pid is one that this process could look at, were it alive."""
        if self.namespace is not None and _names_boot(self.boot_id) and _names_boot(boot_id()):
            # Whatever the host is called: two in one namespace of one boot are in the same.
            return self.boot_id == boot_id() and self.namespace == pid_namespace()
        return self.host == host_name() and self.namespace in (None, pid_namespace())

    def is_of_earlier_boot(self, *, shared: bool) -> bool:
        """Whether this machine was booted anew since.

        `shared` says that other hosts use the store too: one of them may have the same name.
        """
        if self.host != host_name() or not self.is_of_other_boot:
            return False
        return self.namespace is None or not shared

    def is_out_of_sight(self, *, shared: bool) -> bool:
        """Whether this process cannot tell by its pid whether it is alive."""
        return not self.is_of_earlier_boot(shared=shared) and not (self.is_local and self.start)

    def has_ended(self, *, shared: bool) -> bool:
        """Whether it has certainly ended. One that is out of sight never has."""
        if self.is_out_of_sight(shared=shared):
            return False
        return self.is_of_earlier_boot(shared=shared) or not self.may_be_alive

    @property
    def is_alive(self) -> bool:
        """Whether the very process runs now. Only for a local one. Raises `OSError`, as above."""
        namespaces = {self.namespace, pid_namespace()} - {None}
        if self.is_of_other_boot or len(namespaces) > 1:
            return False
        start = process_start(self.pid)
        if start is not None and not self.start:
            raise OSError(errno.ENODATA, "when the process started was not recorded")
        return start == self.start

    @property
    def may_be_alive(self) -> bool:
        """The same, and true where this process cannot look."""
        try:
            return self.is_alive
        except OSError:
            return True


@dataclass(frozen=True, slots=True)
class SessionIdentity:
    """What a kernel knows of itself when the extension is loaded."""

    id: str
    front_end: str
    """``kernel``, ``terminal`` or ``program``."""
    path: str
    """The notebook's path; a directory where there is no notebook."""
    has_path: bool
    """Whether the path names a notebook, so that it may join sessions to one."""
    kernel_uuid: str | None
    """What stays the same through kernel restarts; None outside a kernel."""
    process: ProcessIdentity


def session_identity(shell: InteractiveShell | None, notebook: str = "") -> SessionIdentity:
    """Find out which session this is.

    `notebook` is the path that the user set by hand, or an empty string.
    """
    kernel = _kernel_of_this_process(shell)
    path = notebook or _notebook_path(shell)
    uuid_of_kernel = _kernel_uuid(kernel) if kernel is not None else None
    front_end = "kernel" if kernel is not None else "terminal" if shell is not None else "program"
    return SessionIdentity(
        id=_session_id(shell, kernel),
        front_end=front_end,
        path=str(Path(path).absolute() if path else Path.cwd()),
        # A kernel without a known path must not join all others that were started in its folder.
        has_path=bool(path) or uuid_of_kernel is None,
        kernel_uuid=uuid_of_kernel,
        process=ProcessIdentity.own(),
    )


def _kernel_of_this_process(shell: InteractiveShell | None) -> Any:
    """The kernel; None also in a process that a kernel has forked, which is another session."""
    kernel = getattr(shell, "kernel", None)
    is_forked = getattr(getattr(kernel, "session", None), "pid", os.getpid()) != os.getpid()
    return None if is_forked else kernel


def _session_id(shell: InteractiveShell | None, kernel: Any) -> str:
    if kernel is not None:
        return str(kernel.session.session)
    # A terminal has no id of its own: it is made once and kept on the shell, so that unloading
    # and loading the extension does not begin another session.
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
    """The directory of the notebook; the working directory where no notebook is known."""
    path = Path(notebook or _notebook_path(shell) or Path.cwd()).absolute()
    return path if path.is_dir() else path.parent


def _kernel_uuid(kernel: Any) -> str | None:
    """What the kernel shares with the processes that were restarted in its place.

    A Jupyter server names the connection file after the kernel's uuid. Other front ends use a
    pid or a random name, which may come again; the connection's secret key does not.
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
