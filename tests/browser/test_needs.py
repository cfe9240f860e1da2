"""Where there is no browser, a run of the tests says so at its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from browser import needs


def test_the_last_line_says_how_many_tests_did_not_run(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("IPYTASKPERSIST_")
    }
    environment["CHROMIUM"] = str(tmp_path / "missing")
    one = "tests/browser/test_saved_notebooks.py"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses=1", one],
        cwd=needs.ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    *_before, last = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stdout
    assert last.endswith("in a browser did not run; make test-browser runs them")
