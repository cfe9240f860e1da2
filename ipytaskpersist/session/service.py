"""What starts waiting tasks after a reboot: a timer of systemd's, or a line of cron's.

Once a minute it runs ``service run``, which looks at the store as every command does: tasks that
wait and have lost their supervisor, after a reboot above all, get another one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipytaskpersist.base.detached import interpreter
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import InvalidRequest

NAME = "ipytaskpersist"
MARK = "# starts background tasks that wait (ipytaskpersist)"
"""The end of our line in a crontab, by which it is found again."""
ASK_S = 20

SERVICE = """[Unit]
Description=Starts background tasks of notebooks that wait (ipytaskpersist)

[Service]
Type=oneshot
Environment={environment}
ExecStart={command}
# The tasks and what supervises them outlive the program that has started them.
KillMode=process
"""
TIMER = """[Unit]
Description=Looks once a minute for background tasks that wait (ipytaskpersist)

[Timer]
OnStartupSec=30
OnUnitActiveSec=60

[Install]
WantedBy=timers.target
"""


class ServiceRefused(InvalidRequest):
    """A program of the system has refused what it was asked for."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Whether something starts waiting tasks, and what."""

    by: str = ""
    """``systemd`` or ``cron``; empty for nothing."""
    where: str = ""
    """The file, or what lists the line."""
    is_active: bool = False
    """Whether it will run, not only stands there."""

    def in_words(self) -> str:
        """Return what ``service status`` prints."""
        if not self.by:
            return (
                "nothing starts waiting tasks after a reboot; jupyter bg service install has "
                "systemd or cron do so"
            )
        state = "active" if self.is_active else "not active; jupyter bg service install mends it"
        return f"{self.by} looks once a minute for tasks that wait ({self.where}): {state}"


class Service:
    """The timer or the line, for the tasks of one state directory."""

    def __init__(self, directory: StateDirectory, environ: Mapping[str, str] = os.environ) -> None:
        self._directory = directory
        home = environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        self._units = Path(home) / "systemd" / "user"

    def status(self) -> Kept:
        """Return what starts waiting tasks now."""
        if self._timer.exists():
            active = _has_systemd() and _ask(["systemctl", "--user", "is-active", self._timer.name])
            return Kept("systemd", str(self._timer), is_active=active == "active")
        if any(line.endswith(MARK) for line in _crontab()):
            return Kept("cron", "crontab -l", is_active=True)
        return Kept()

    def install(self) -> Kept:
        """Have systemd, or else cron, run `command` once a minute. Raises `InvalidRequest`."""
        if _has_systemd():
            self._install_timer()
        elif shutil.which("crontab"):
            _write_crontab([*_without_ours(_crontab()), f"* * * * * {self._cron_line}  {MARK}"])
        else:
            raise InvalidRequest(
                "neither systemd nor cron answers here, so nothing can start tasks after "
                "a reboot; have something else run this now and then: " + shlex.join(self.command)
            )
        return self.status()

    def remove(self) -> bool:
        """Undo `install`. Returns whether there was anything."""
        kept = self.status()
        if kept.by == "systemd":
            if _has_systemd():
                _tell(["systemctl", "--user", "disable", "--now", self._timer.name])
            for unit in (self._timer, self._service):
                unit.unlink(missing_ok=True)
        elif kept.by == "cron":
            _write_crontab(_without_ours(_crontab()))
        return bool(kept.by)

    @property
    def command(self) -> list[str]:
        """What is run once a minute."""
        return [interpreter(), "-P", "-m", "ipytaskpersist", "service", "run"]

    @property
    def _timer(self) -> Path:
        return self._units / f"{NAME}.timer"

    @property
    def _service(self) -> Path:
        return self._units / f"{NAME}.service"

    @property
    def _setting(self) -> str:
        return f"IPYTASKPERSIST_DIR={self._directory.root}"

    @property
    def _cron_line(self) -> str:
        # To cron, a percent sign is the end of the line.
        words = shlex.join(["env", self._setting, *self.command]).replace("%", r"\%")
        return f"{words} >/dev/null 2>&1"

    def _install_timer(self) -> None:
        command = " ".join(map(_for_systemd, self.command))
        self._units.mkdir(parents=True, exist_ok=True)
        self._service.write_text(
            SERVICE.format(environment=_for_systemd(self._setting), command=command)
        )
        self._timer.write_text(TIMER)
        _tell(["systemctl", "--user", "daemon-reload"])
        _tell(["systemctl", "--user", "enable", "--now", self._timer.name])


def _for_systemd(word: str) -> str:
    """Return a word of a command or of a setting as a unit has it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _has_systemd() -> bool:
    """Return whether a systemd of this user answers."""
    return bool(shutil.which("systemctl")) and bool(
        _ask(["systemctl", "--user", "show", "--property=Version"])
    )


def _crontab() -> list[str]:
    return _ask(["crontab", "-l"]).splitlines() if shutil.which("crontab") else []


def _without_ours(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if not line.endswith(MARK)]


def _write_crontab(lines: Sequence[str]) -> None:
    _tell(["crontab", "-"], "".join(f"{line}\n" for line in lines))


def _ask(command: Sequence[str]) -> str:
    """Return what a program answers; nothing if it cannot, or does not in time."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _tell(command: Sequence[str], said: str = "") -> None:
    """Have a program do something. Raises `ServiceRefused` with its words if it does not."""
    try:
        done = subprocess.run(
            command, input=said, capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceRefused(f"{shlex.join(command)}: {error}") from None
    if done.returncode:
        why = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise ServiceRefused(f"{shlex.join(command)}: {why}")
