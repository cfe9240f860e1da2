"""All tests, on every Python and both lines of ipykernel that are supported: `make test-matrix`.

A Python that is not installed is skipped, and the summary says so.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
IPYKERNELS = ["6.29.*", "7.4.*"]

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"


def runs(python: str) -> bool:
    """Whether a command of this name starts: a pyenv shim can be there and still refuse."""
    found = shutil.which(python)
    return found is not None and subprocess.run([found, "--version"], check=False).returncode == 0


def pyenv_folder(version: str) -> Path | None:
    """Where pyenv keeps its newest Python of this version, if it has one."""
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = [path.parent for path in root.glob(f"versions/{version}*/bin/python{version}")]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def find_pythons() -> None:
    """Put every Python that only pyenv knows on the PATH, where nox looks."""
    for version in PYTHONS:
        if not runs(f"python{version}") and (folder := pyenv_folder(version)):
            os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


find_pythons()


@nox.session(python=PYTHONS)
@nox.parametrize("ipykernel", IPYKERNELS)
def tests(session: nox.Session, ipykernel: str) -> None:
    """The test suite; words after `--` go to pytest."""
    session.install("--editable", ".[test]", f"ipykernel=={ipykernel}")
    session.run("python", "-m", "pytest", "--numprocesses", "auto", *session.posargs)
