"""Checks of versions, SQLite, widgets and settings."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from ipytaskpersist.doctor.findings import (
    Examined,
    Finding,
    broken,
    ok,
    warning,
)
from ipytaskpersist.store.file.database import SQLITE_VERSION

PACKAGES = ("ipytaskpersist", "ipython", "ipykernel", "sqlite-utils")


def check_versions(_examined: Examined) -> Iterator[Finding]:
    """Report the versions of the packages."""
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, number in found.items() if not number]
    if missing:
        yield broken(f"{', '.join(missing)} not installed", f"pip install {' '.join(missing)}")
    there = [f"{name} {number}" for name, number in found.items() if number]
    yield ok(", ".join([*there, f"Python {platform.python_version()}"]))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def check_sqlite(_examined: Examined) -> Iterator[Finding]:
    """Report the version of SQLite, and whether it is too old."""
    if (3, 7, 0) <= _numbers(SQLITE_VERSION) < (3, 51, 3):
        yield warning(
            f"SQLite {SQLITE_VERSION} has the WAL-reset bug: two programs that write at the same "
            "moment can, very rarely, damage the store (https://sqlite.org/wal.html#walresetbug)",
            "'pip install pysqlite3' brings one without it where there is a wheel; else use a "
            "Python with SQLite 3.51.3 or later, and %bg_backup now and then",
        )
    else:
        yield ok(f"SQLite {SQLITE_VERSION}")


def check_widgets(_examined: Examined) -> Iterator[Finding]:
    """Check that the front end can show widgets."""
    number = _version("ipykernel")
    if not number:
        return
    if (7, 1) <= _numbers(number) < (7, 4):
        yield ok(f"ipykernel {number} answers buttons also while a cell runs")
    elif _numbers(number) < (7, 1):
        yield ok(
            f"ipykernel {number} answers buttons when the running cell has ended; "
            "jupyter bg cancel does not wait for that"
        )
    elif _numbers(number) == (7, 4, 0):
        yield ok(
            f"ipykernel {number} answers buttons when the running cell has ended, because it "
            "replies where the button was made (7.1 to 7.3 answer at once); jupyter bg cancel "
            "does not wait for that"
        )
    else:
        yield ok(f"ipykernel {number}; nothing special is known of it")


def check_settings(examined: Examined) -> Iterator[Finding]:
    """Report settings that were ignored."""
    for problem in examined.setting_problems:
        yield warning(problem, "it was left out; correct it, then %reload_ext ipytaskpersist")
    if not examined.setting_problems:
        yield ok("all make sense; %bg_config shows them")
