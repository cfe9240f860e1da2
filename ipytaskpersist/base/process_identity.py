"""The identity of processes, hosts, kernels and notebooks, distinct from their successors.

A pid alone means nothing after it has been reused, and a clock may be set. So a process is
identified by its pid, its start time and its boot. On Linux the start time is the raw ``starttime``
of ``/proc/PID/stat``, in clock ticks since boot, which no change of the clock affects (psutil's
``create_time`` is affected: psutil issues 2526 and 2544).

A pid also means nothing outside its PID namespace. Each container has one, but shares the boot with
its host, and often its name and a store, too. So the namespace is part of a process's identity.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ipytaskpersist.base import process_tree


@cache
def host_name() -> str:
    """Return this machine's name, escaped where it is not UTF-8, so that it can be stored."""
    return socket.gethostname().encode("utf-8", "backslashreplace").decode()


@cache
def boot_id() -> str:
    """Return the id of the machine's current boot; empty when the system has none.

    The boot time is no substitute: it moves with the clock.
    """
    if sys.platform == "darwin":
        return _boot_session()
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _boot_session() -> str:
    """Return macOS's id of this boot: ``sysctl kern.bootsessionuuid``."""
    import ctypes

    found = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(found))
    failed = ctypes.CDLL(None).sysctlbyname(
        b"kern.bootsessionuuid", found, ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return "" if failed else found.value.decode("ascii")


def _names_boot(recorded: str) -> bool:
    """Return whether a boot was recorded. Earlier versions recorded its time as ``boot-…``."""
    return bool(recorded) and not recorded.startswith("boot-")


@cache
def pid_namespace() -> int | None:
    """Return the id of this process's PID namespace, unique among those that exist now.

    None when there are none. The number of an ended namespace may be reused, but no process in the
    new one has both the pid and the start time of one in the old.
    """
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None


def process_start(pid: int) -> str | None:
    """Return the start time of the process with this pid, to compare; None when it is gone.

    A zombie counts as gone: it has ended, but its parent has not reaped it. Raises `OSError` when
    this process cannot look.
    """
    process = process_tree.find(pid)
    return None if process is None or process.is_zombie else process.start


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, distinct from a later one with the same pid."""

    host: str
    boot_id: str
    pid: int
    start: str
    """Start time; empty when it could not be determined."""
    namespace: int | None = None
    """Its `pid_namespace`; None when there are none, and in rows from before it was recorded."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the identity of a process of this machine that is alive now, or None."""
        try:
            start = process_start(pid)
        except OSError:
            start = ""
        return None if start is None else cls(host_name(), boot_id(), pid, start, pid_namespace())

    @classmethod
    def own(cls) -> ProcessIdentity:
        """Return the identity of the calling process."""
        found = cls.of(os.getpid())
        return found or cls(host_name(), boot_id(), os.getpid(), "", pid_namespace())

    @property
    def is_of_other_boot(self) -> bool:
        """Whether it certainly belongs to another boot than this one."""
        is_known = _names_boot(self.boot_id) and _names_boot(boot_id())
        return is_known and self.boot_id != boot_id()

    @property
    def is_local(self) -> bool:
        """Whether this process could look at its pid, if it were alive."""
        if self.namespace is not None and _names_boot(self.boot_id) and _names_boot(boot_id()):
            # Whatever the host is called: within one boot the number identifies the namespace.
            return self.boot_id == boot_id() and self.namespace == pid_namespace()
        return self.host == host_name() and self.namespace in (None, pid_namespace())

    def is_of_earlier_boot(self, *, shared: bool) -> bool:
        """Return whether this machine was rebooted since.

        `shared` says that other hosts use the store, too: one of them may have the same name.
        """
        if self.host != host_name() or not self.is_of_other_boot:
            return False
        return self.namespace is None or not shared

    def is_out_of_sight(self, *, shared: bool) -> bool:
        """Return whether this process cannot tell by its pid whether it is alive."""
        return not self.is_of_earlier_boot(shared=shared) and not (self.is_local and self.start)

    def has_ended(self, *, shared: bool) -> bool:
        """Return whether it has certainly ended. False when it is out of sight."""
        if self.is_out_of_sight(shared=shared):
            return False
        return self.is_of_earlier_boot(shared=shared) or not self.may_be_alive

    @property
    def is_alive(self) -> bool:
        """Whether exactly this process runs now. Only for local ones. Raises `OSError`."""
        namespaces = {self.namespace, pid_namespace()} - {None}
        if self.is_of_other_boot or len(namespaces) > 1:
            return False
        start = process_start(self.pid)
        if start is not None and not self.start:
            raise OSError(errno.ENODATA, "when the process started was not recorded")
        return start == self.start

    @property
    def may_be_alive(self) -> bool:
        """The same, but True when this process cannot look."""
        try:
            return self.is_alive
        except OSError:
            return True


@dataclass(frozen=True, slots=True)
class SessionIdentity:
    """What a kernel knows about itself when the extension is loaded."""

    id: str
    front_end: str
    """``kernel``, ``terminal`` or ``program``."""
    path: str
    """Path of the notebook; a directory when there is none."""
    has_path: bool
    """Whether the path names a notebook, so that it may connect sessions."""
    kernel_uuid: str | None
    """Identity that survives kernel restarts; None outside a kernel."""
    process: ProcessIdentity
