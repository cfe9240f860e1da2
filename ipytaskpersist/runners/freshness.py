"""Make a forked process as fresh as a new interpreter: no two tasks may draw the same numbers.

`random`, OpenSSL, `secrets` and `uuid.uuid4` see to it themselves. What is the same in all tasks of
one fork server is the seed of string hashes.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any


def set_environment(changes: Mapping[str, str | None]) -> None:
    """Change this process's environment, for C libraries, too. None removes a variable."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "TZ" in changes:
        time.tzset()


def draw_anew() -> None:
    """Give every source of randomness that a library keeps a state of its own."""
    for name, renew in RENEWALS.items():
        module = sys.modules.get(name)
        if module is not None:
            with suppress(Exception):  # a library of another version
                renew(module)


def _numpy(random: Any) -> None:
    # Unlike a seed, this does not make the state one that was set on purpose.
    random.get_bit_generator().state = random.MT19937().state


def _tempfile(tempfile: Any) -> None:
    tempfile.tempdir = tempfile._name_sequence = None


def _uuid(uuid: Any) -> None:
    uuid._last_timestamp = None


def _multiprocessing(process: Any) -> None:
    process.current_process().authkey = os.urandom(32)


RENEWALS: dict[str, Callable[[Any], None]] = {
    "numpy.random": _numpy,
    "tempfile": _tempfile,
    "uuid": _uuid,
    "multiprocessing.process": _multiprocessing,
}
"""What to do in which module, if it is imported."""


def freeze() -> None:
    """Prepare for a fork: keep the garbage collector from touching, and so copying, what is there.

    `thaw` turns it on again in the forked process.
    """
    gc.disable()
    gc.collect()
    gc.freeze()


def thaw() -> None:
    """Collect garbage again, of what is created from now on."""
    gc.enable()
