"""What starts waiting tasks after a reboot, with stand-ins for systemd and cron.

A test may not touch the timers of the person who runs it, and a container has no systemd. The
stand-ins keep what they are told, and answer as the real ones do.
"""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.service import MARK, Service

SYSTEMCTL = """#!/bin/sh
echo "$*" >> "{folder}/told"
case "$2" in
    show) echo Version=252 ;;
    enable) touch "{folder}/enabled" ;;
    disable) rm "{folder}/enabled" ;;
    is-active) [ -e "{folder}/enabled" ] && echo active || {{ echo inactive; exit 3; }} ;;
esac
"""
CRONTAB = """#!/bin/sh
case "$1" in
    -l) cat "{folder}/tab" 2>/dev/null || {{ echo "no crontab for me" >&2; exit 1; }} ;;
    -) cat > "{folder}/tab" ;;
esac
"""
OTHERS = "0 3 * * * backup --all"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, but for a shell's own needs; and a private home."""
    folder = tmp_path / "bin 100%"
    folder.mkdir()
    for name in ("sh", "cat", "touch", "rm"):
        (folder / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def add(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(script.format(folder=folder))
    program.chmod(0o755)


def unit(path: Path) -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(strict=False)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(path)
    return found


def test_systemd_has_a_timer_that_looks_once_a_minute(programs: Path, tmp_path: Path) -> None:
    add(programs, "systemctl", SYSTEMCTL)
    add(programs, "crontab", CRONTAB)
    service = Service(StateDirectory(tmp_path / "state 100%"))
    assert service.status().in_words().startswith("nothing starts waiting tasks")
    kept = service.install()
    assert (kept.by, kept.is_active) == ("systemd", True)
    units = tmp_path / "config" / "systemd" / "user"
    timer, job = unit(units / "ipytaskpersist.timer"), unit(units / "ipytaskpersist.service")
    assert timer["Timer"]["OnUnitActiveSec"] == "60"
    assert timer["Install"]["WantedBy"] == "timers.target"
    # What it starts goes on after its end.
    assert dict(job["Service"]) == {
        "Type": "oneshot",
        "Environment": f'"IPYTASKPERSIST_DIR={tmp_path}/state 100%%"',
        "ExecStart": " ".join(f'"{word}"' for word in service.command),
        "KillMode": "process",
    }
    assert "enable --now ipytaskpersist.timer" in (programs / "told").read_text()
    (programs / "enabled").unlink()
    assert "not active; jupyter bg service install mends it" in service.status().in_words()
    assert service.install().is_active
    assert service.remove()
    assert not (programs / "enabled").exists()
    assert [*units.iterdir()] == []
    assert not service.remove()


def test_cron_has_a_line_beside_those_of_others(programs: Path, tmp_path: Path) -> None:
    add(programs, "crontab", CRONTAB)
    tab = programs / "tab"
    service = Service(StateDirectory(tmp_path / "state 100%"))
    service.install()
    tab.write_text(f"{OTHERS}\n{tab.read_text()}")
    service.install()
    others, line = tab.read_text().splitlines()
    assert others == OTHERS
    assert line.startswith("* * * * * env ")
    assert line.endswith(MARK)
    # To cron, a percent sign that is not escaped ends the line.
    words = shlex.split(line.replace(r"\%", "%").partition(" >/dev/null")[0])[5:]
    assert words == ["env", f"IPYTASKPERSIST_DIR={tmp_path}/state 100%", *service.command]
    assert "cron looks once a minute" in service.status().in_words()
    assert service.remove()
    assert tab.read_text() == f"{OTHERS}\n"


def test_without_both_or_with_one_that_refuses_the_reason_is_said(
    programs: Path, tmp_path: Path
) -> None:
    service = Service(StateDirectory(tmp_path / "state"))
    with pytest.raises(InvalidRequest, match="neither systemd nor cron answers here"):
        service.install()
    add(programs, "crontab", "#!/bin/sh\necho 'you are not allowed to use cron' >&2; exit 1\n")
    with pytest.raises(InvalidRequest, match="crontab -: you are not allowed to use cron"):
        service.install()


def test_the_verb_in_a_terminal(programs: Path, tmp_path: Path) -> None:
    add(programs, "crontab", CRONTAB)

    def say(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ipytaskpersist", "service", *words],
            env=environment(tmp_path / "state"), capture_output=True, text=True, check=False,
        )  # fmt: skip
        return (done.stdout + done.stderr).strip()

    assert "cron looks once a minute" in say("install")
    assert say("run") == ""
    assert say("remove") == "removed"
    assert say("remove") == "there was nothing to remove"
    assert "'install', 'status', 'remove', 'run'" in say("start")
