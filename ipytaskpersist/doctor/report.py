"""All checks: each examines one thing, changes nothing, and reports what it found.

A new check is a function in `CHECKS`, or in `CONTENT_CHECKS` if it needs a readable store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.doctor import content, files, programs
from ipytaskpersist.doctor.findings import (
    BROKEN,
    GLYPHS,
    LEVELS,
    OK,
    WARNING,
    Check,
    Examined,
    Finding,
    broken,
    warning,
)
from ipytaskpersist.errors import StoreBusy, StoreDamaged, StoreError
from ipytaskpersist.store.examination import ExaminedStore
from ipytaskpersist.text import formatting


def examine(
    directory: StateDirectory, own_session: str = "", setting_problems: Sequence[str] = ()
) -> list[Finding]:
    """Run every check. A check that fails is a finding too; nothing is raised or changed."""
    store = ExaminedStore(directory)
    refusal = disk_errors.trial(disk_errors.nearest_folder(directory.root))
    now = datetime.now(UTC)
    examined = Examined(directory, store, own_session, setting_problems, now, refusal)
    try:
        findings = [finding for check in CHECKS for finding in _run(check, examined)]
        if store.is_readable:
            findings.extend(each for check in CONTENT_CHECKS for each in _run(check, examined))
    finally:
        store.close()
    return findings


def _run(check: Check, examined: Examined) -> list[Finding]:
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        found = list(check(examined))
    except StoreDamaged as error:
        found = [broken(str(error), files.how_to_repair(examined.directory))]
    except StoreBusy as error:
        found = [files.locked(examined, str(error))]
    except (StoreError, OSError) as error:
        found = [broken(str(error), "see what the other lines say of the state directory")]
    except Exception as error:  # a mistake in one check must not hide the findings of the others
        text = f"could not be checked ({type(error).__name__}: {error})"
        found = [warning(text, "please report this, with what %bg_doctor --json says")]
    return [replace(finding, check=name) for finding in found]


def worst(findings: Iterable[Finding]) -> str:
    """Return the worst level among findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default=OK)


def as_text(findings: Sequence[Finding]) -> str:
    """Return the findings as text: one line each, the advice below it, and finally the sum."""
    lines = []
    for finding in findings:
        lines.append(f"{GLYPHS[finding.level]} {finding.check}: {finding.message}")
        if finding.advice:
            lines.append(f"    {finding.advice}")
    return "\n".join([*lines, "", _sum(findings)])


def _sum(findings: Sequence[Finding]) -> str:
    counts = {level: sum(each.level == level for each in findings) for level in LEVELS}
    warnings = formatting.counted(counts[WARNING], "warning")
    if counts[BROKEN]:
        return f"{counts[BROKEN]} broken, {warnings}"
    return warnings if counts[WARNING] else "all is well"


CHECKS: list[Check] = [
    *(
        programs.check_versions,
        programs.check_sqlite,
        programs.check_widgets,
        programs.check_settings,
    ),
    *(
        files.check_state_directory,
        files.check_file_system,
        files.check_room,
        files.check_permissions,
        files.check_folders_above,
    ),
    *(
        files.check_store,
        files.check_archives,
        files.check_backups,
        files.check_leftover_files,
        files.check_problems,
    ),
]
"""Checks that work whatever the state of the store."""

CONTENT_CHECKS: list[Check] = [
    *(
        content.check_content,
        content.check_journal,
        content.check_lock,
        content.check_sessions,
        content.check_supervisors,
        content.check_interpreters,
        content.check_kept_aside,
        content.check_checkpoints,
        content.check_left_processes,
    ),
]
"""Checks that need a store that this version can read."""


def as_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the document of `doctor --json`."""
    return {"status": worst(findings), "findings": [finding.as_json() for finding in findings]}
