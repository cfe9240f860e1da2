"""What these tests need and a machine may not have: Chromium, and two lines of ipykernel."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("jupyterlab", "notebook", "playwright")
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APPLICATIONS = ("lab", "notebook")
IPYKERNELS = ("7.4", "6.29")
OLDEST = "jupyterlab-4.2"


def pairs() -> list[tuple[str, str]]:
    """Each application and each line of ipykernel once; every pair of them if that is asked for."""
    if os.environ.get("IPYTASKPERSIST_EVERY_PAIR"):
        return list(product(APPLICATIONS, IPYKERNELS))
    return list(zip(APPLICATIONS, IPYKERNELS, strict=True))


def front_ends() -> list[str]:
    """What a server has beside its own packages: also the oldest front ends, if asked for."""
    return ["", OLDEST] if os.environ.get("IPYTASKPERSIST_EVERY_PAIR") else [""]


def chromium() -> str:
    """The browser to use: ``$CHROMIUM``, else the first on the PATH."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        _cannot(f"{', '.join(missing)} not installed: make test-browser installs what is missing")
    named = os.environ.get("CHROMIUM")
    if named and not shutil.which(named):
        _cannot(f"CHROMIUM={named} is no program")
    found = named or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if not found:
        _cannot(
            "no Chromium: install it (Debian, Ubuntu: apt-get install chromium), "
            "or name one with CHROMIUM=/path/to/chrome"
        )
    return found


def ipykernel(line: str) -> Path | None:
    """Where this line of ipykernel is, ``6.29``; None where it is the interpreter's own."""
    overlay = ROOT / ".venv" / f"ipykernel-{line}"
    if (overlay / "ipykernel").is_dir():
        return overlay
    try:
        own = version("ipykernel")
    except PackageNotFoundError:
        own = ""
    if not own.startswith(f"{line}."):
        _cannot(f"no ipykernel {line}: PYTHON={sys.executable} sh .ci/versions installs it")
    return None


def axe() -> Path:
    """The script of axe-core."""
    found = sorted((ROOT / ".venv").glob("axe-*/axe.min.js"))
    if not found:
        _cannot("no axe-core: sh .ci/axe fetches it")
    return found[-1]


def beside(packages: str) -> dict[str, str]:
    """The environment of a server that has what this folder of ``.ci/versions`` has."""
    folder = ROOT / ".venv" / packages
    if not folder.is_dir():
        _cannot(f"no {packages}: PYTHON={sys.executable} sh .ci/versions installs it")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {
        "PYTHONPATH": os.pathsep.join(paths),
        "JUPYTER_PATH": str(folder / "share" / "jupyter"),
        "JUPYTER_CONFIG_PATH": str(folder / "etc" / "jupyter"),
    }
    application = folder / "share" / "jupyter" / "lab"
    return found | ({"JUPYTERLAB_DIR": str(application)} if application.is_dir() else {})


def _cannot(reason: str) -> NoReturn:
    if os.environ.get("IPYTASKPERSIST_REQUIRE_BROWSER"):
        pytest.fail(f"the tests in a browser are asked for and cannot run: {reason}", pytrace=False)
    pytest.skip(reason)
