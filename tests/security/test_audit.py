"""`make lint` never takes an audit that was none for a good one, and never hides what is found."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "click", "version": "8.3", "vulns": []}
BAD = {"name": "rich", "version": "1.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "numpy", "skip_reason": "Dependency not found on PyPI"}


def of(*dependencies: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": [*dependencies], "fixes": []}


def run(audit: Any, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> int:
    """The exit status when the services give these answers: a report, or why there is none."""
    left = iter(answers)

    # A stand-in, because no vulnerability is there at will, nor a service that does not answer.
    def ask(_asking: Any, _timeout_s: float) -> Any:
        answer = next(left)
        return (None, answer) if isinstance(answer, str) else (answer, "")

    monkeypatch.setattr(audit, "ask", ask)
    return int(audit.main())


def test_what_is_found_fails_and_is_named(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However little else the service knows."""
    assert run(audit, monkeypatch, of(GOOD, UNKNOWN, BAD)) == 1
    assert "rich 1.0: CVE-2026-1 (fixed in 1.1)" in capsys.readouterr().out


def test_a_service_that_knows_nothing_is_no_good_audit(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mirror says of every package that it is not there."""
    assert run(audit, monkeypatch, of(UNKNOWN, UNKNOWN), "cannot be reached") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "NOT audited" in line
    assert "cannot be reached" in line


def test_another_service_is_asked_then(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(audit, monkeypatch, of(UNKNOWN), of(BAD)) == 1
    assert run(audit, monkeypatch, "cannot be reached", of(GOOD, UNKNOWN)) == 0
    assert "no known vulnerabilities in 1 packages; of 1 more" in capsys.readouterr().out


def test_one_that_does_not_answer_is_given_up(audit: Any) -> None:
    report, why = audit.ask([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    assert report is None
    assert "no answer" in why


def test_one_that_breaks_off_is_given_up_with_its_last_word(audit: Any) -> None:
    report, why = audit.ask([sys.executable, "-c", "raise SystemExit('no such host')"], 30)
    assert report is None
    assert "no such host" in why
