"""The names of files of buffers, which say how large each file is.

A supervisor needs no more of them: what is in them it never loads.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

NAME = re.compile(r"(\d+)-[0-9a-f]{32}\.buffers")
"""A file's size and the digest of its content."""


def cut_files(folder: Path) -> list[Path]:
    """Return the files in a task's folder that are shorter than their names say."""
    cut = []
    for path in sorted(folder.glob("*.buffers")):
        found = NAME.fullmatch(path.name)
        with suppress(OSError):
            if found is not None and path.stat().st_size < int(found[1]):
                cut.append(path)
    return cut
