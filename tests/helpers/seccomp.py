"""Run a program whose kernel seems not to know, or not to allow, descriptors of processes.

``python seccomp.py ENOSYS program …`` becomes the program under a seccomp filter, which all that it
starts has too: pidfd_open(2) and pidfd_send_signal(2) fail with that error. ENOSYS is what kernels
before 5.3 say and what some containers' filters say, EPERM what others say. With ``--kill``
kill(2) of a single process fails, too, as that of another user's does; that of a group does not.
With ``--unshare`` unshare(2) fails instead of those for descriptors, as in many containers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

IS_POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"

KILL, PIDFD_SEND_SIGNAL, PIDFD_OPEN = 62, 424, 434
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
AUDIT_ARCH_X86_64 = 0xC000003E
LOAD, JUMP_EQUAL, JUMP_GREATER, RETURN = 0x20, 0x15, 0x25, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
ARCHITECTURE_OFFSET, NUMBER_OFFSET, FIRST_ARGUMENT_OFFSET = 4, 0, 16
UNSHARE = 272
HIGHEST_PID = 0x7FFFFFFF
"""As an unsigned number; what is higher is a group, whose number is negative."""


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def command(error: str, *, kill: bool = False, unshare: bool = False) -> list[str]:
    """What to put before a command that is to run under the filter."""
    options = ["--kill"] if kill else ["--unshare"] if unshare else ["--"]
    return [sys.executable, str(Path(__file__).resolve()), error, *options]


def refuse(number: int, *, kill: bool, unshare: bool) -> None:
    """Have the system calls fail with this error, for this process and all that it starts."""
    calls = (UNSHARE, UNSHARE) if unshare else (PIDFD_OPEN, PIDFD_SEND_SIGNAL)
    refused_kill = KILL if kill else -1 & 0xFFFFFFFF
    filter_ = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (LOAD, 0, 0, ARCHITECTURE_OFFSET),
            (JUMP_EQUAL, 0, 7, AUDIT_ARCH_X86_64),
            (LOAD, 0, 0, NUMBER_OFFSET),
            (JUMP_EQUAL, 4, 0, calls[0]),
            (JUMP_EQUAL, 3, 0, calls[1]),
            (JUMP_EQUAL, 0, 3, refused_kill),
            (LOAD, 0, 0, FIRST_ARGUMENT_OFFSET),
            (JUMP_GREATER, 1, 0, HIGHEST_PID),
            (RETURN, 0, 0, ERRNO | number),
            (RETURN, 0, 0, ALLOW),
        )
    )
    program = Program(len(filter_) // 8, filter_)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    option = sys.argv[2]
    refuse(getattr(errno, sys.argv[1]), kill=option == "--kill", unshare=option == "--unshare")
    os.execvp(sys.argv[3], sys.argv[3:])
