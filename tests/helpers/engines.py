"""Real engines on this machine for the tests of places, each with everything of its own."""

from __future__ import annotations

import getpass
import os
import select
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from kernels import PATIENCE, until

from ipytaskpersist.places.connecting import connection_command
from ipytaskpersist.places.messages import (
    FarEnd,
    Frame,
    MessageReader,
    SpoolReader,
    as_end,
    pack,
)

ANSWER_S = 60
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def program(name: str) -> str | None:
    """Find a program, also among those for administrators."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *SBIN]))


def need(engine: str, *programs: str) -> None:
    """Skip a test for which programs are missing, or fail where none may be skipped."""
    missing = [name for name in programs if program(name) is None]
    if missing:
        words = f"{engine} is missing here: no {', '.join(missing)} (see .ci/engines)"
        if os.environ.get("IPYTASKPERSIST_REQUIRE_ENGINES"):
            pytest.fail(words, pytrace=False)
        pytest.skip(words)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that a test has started."""
    process.terminate()
    try:
        process.wait(10 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# The other side of a connection.


class Link:
    """Asks a place, as a supervisor does it: through the standard streams of its command."""

    def __init__(
        self, spec: Mapping[str, Any], state_dir: Path, hidden: str = "", **changed: Any
    ) -> None:
        """`changed` are constants of the command's module; `hidden` cannot be imported there."""
        command = connection_command(spec, state_dir)
        code = command.index("-c") + 1
        if hidden:
            command[code] = f"import sys; sys.modules[{hidden!r}] = None; {command[code]}"
        command[code] = command[code].replace(
            "main()",
            f"import sys; vars(sys.modules[main.__module__]).update({changed}); main()",
        )
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._messages = MessageReader()
        self._answers: list[tuple[dict[str, Any], bytes]] = []
        self._spools: dict[str, SpoolReader] = {}
        self._frames: dict[str, list[Frame]] = {}

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()  # type: ignore[union-attr]

    def ask(self, verb: str, data: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the answer."""
        self.send(verb, data, **request)
        return self.receive()

    def send(self, verb: str, data: bytes = b"", **request: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(pack({"verb": verb, **request}, data))

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Wait for the answer to the first request that has none yet."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + ANSWER_S * PATIENCE
        while not self._answers:
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], left_s)[0], "no answer"
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            assert data, f"the command ended instead of answering: {self.process.wait()}"
            self._answers += self._messages.feed(data)
        return self._answers.pop(0)

    def brief(self, script: str, **more: Any) -> dict[str, Any]:
        """What a task is for the agent. Its id is one of its own: by it processes are ended."""
        return {
            "task_id": f"{uuid.uuid4().hex[:8]}-1", "command": ["sh", "-c", script], "script": None,
            "script_as": None, "pty": False, "directory": "", "environment": {},
            "timeout_s": None, "memory_bytes": None, "grace_s": 1.0, "channel": False, **more,
        }  # fmt: skip

    def start(self, folder: str, script: str, **brief: Any) -> dict[str, Any]:
        """Have a shell script run in a folder of its own, as soon as the place has room for it."""
        task = self.brief(script, **brief)

        def ask() -> dict[str, Any]:
            answer, _ = self.ask("start", folder=folder, brief=task, detach=True)
            return {} if answer.get("pending") else answer

        return until(ask, message="a start")

    def read_on(self, folder: str) -> bytes:
        """Wait for more of a spool, or its end, through whatever happens on the way."""
        spool = self._spools.setdefault(folder, SpoolReader())
        answer, data = self.ask("read", tasks=[[folder, spool.wanted]], at_most=1 << 20, wait_s=2)
        if "error" in answer:
            assert answer.get("unreachable"), answer
            time.sleep(0.05)
        self.frames(folder).extend(spool.feed(data))
        return data

    def frames(self, folder: str) -> list[Frame]:
        """What has been read of a spool."""
        return self._frames.setdefault(folder, [])

    def end_of(self, folder: str) -> FarEnd:
        """Read a spool to its end, and return what it says there."""

        def has_end() -> bool:
            self.read_on(folder)
            return any(frame.kind == b"Z" for frame in self.frames(folder))

        until(has_end, ANSWER_S, f"the end of {folder}")
        return as_end(self.frames(folder)[-1].data)

    def printed(self, folder: str, stream: bytes = b"o") -> bytes:
        return b"".join(frame.data for frame in self.frames(folder) if frame.kind == stream)

    def look(self, folder: str) -> dict[str, Any]:
        answer, _ = self.ask("look", folders=[folder])
        assert "error" not in answer, answer
        return dict(answer["looks"][0])

    def state_of(self, folder: str) -> str:
        return str(self.look(folder)["state"])


# ssh.


def _is_sshd(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.name().startswith("sshd"))
    return False


class SshServer:
    """An ssh server on loopback, with keys and settings of its own on both sides."""

    def __init__(self, folder: Path, shell: str = "", home: Path | None = None) -> None:
        need("an ssh server", "ssh", "sshd", "ssh-keygen", *([shell] if shell else []))
        folder.mkdir(mode=0o700, parents=True)
        self.folder = folder
        self.port = free_port()
        for name in ("host", "user", "stranger"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / f"{name}_key"],
                check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        lines = [
            f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host_key",
            f"AuthorizedKeysFile {folder}/authorized_keys", f"PidFile {folder}/pid",
            "StrictModes no", "UsePAM no", "PasswordAuthentication no", "PermitRootLogin yes",
            "KbdInteractiveAuthentication no", "PrintMotd no", "MaxStartups 100", "MaxSessions 100",
        ]  # fmt: skip
        if home is not None:
            lines.append(f"SetEnv HOME={home}")
        if shell:
            # A login shell reads a command in the same way.
            lines.append(f'ForceCommand {program(shell)} -c "$SSH_ORIGINAL_COMMAND"')
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self.trust("host_key.pub")
        self.config = folder / "config"
        self.write_config()
        self.server: subprocess.Popen[bytes] | None = None
        self.start()

    def trust(self, key: str) -> None:
        """Write down which key the host has, as one who has confirmed it."""
        words = (self.folder / key).read_text().split()[:2]
        known = f"[127.0.0.1]:{self.port} {' '.join(words)}\n"
        (self.folder / "known_hosts").write_text(known)

    def write_config(self, *more: str, key: str = "user_key") -> None:
        lines = [
            "Host far", "HostName 127.0.0.1", f"Port {self.port}", f"User {getpass.getuser()}",
            f"IdentityFile {self.folder}/{key}", "IdentitiesOnly yes", "IdentityAgent none",
            f"UserKnownHostsFile {self.folder}/known_hosts", "GlobalKnownHostsFile /dev/null",
            *more,
        ]  # fmt: skip
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "name": "far", "kind": "ssh", "host": "far", "options": ["-F", str(self.config)],
        }  # fmt: skip

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.server = subprocess.Popen(
            [str(program("sshd")), "-D", "-f", str(self.folder / "sshd_config"),
             "-E", str(self.folder / "log")],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: accepts(self.port), message="an ssh server")

    def stop(self) -> None:
        """End the server. Its connections go on, in processes of their own."""
        if self.server is not None:
            end(self.server)
            self.server = None

    def connections(self) -> list[psutil.Process]:
        """The server's processes that serve connections, without what was started through them."""
        assert self.server is not None
        below = psutil.Process(self.server.pid).children(recursive=True)
        return [process for process in below if _is_sshd(process)]

    def cut(self) -> None:
        """Kill all connections, as a network that fails does it."""
        for process in self.connections():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        if self.server is not None:
            self.cut()
        self.stop()


# Dask.


class DaskCluster:
    """A scheduler and workers of Dask on loopback, each a process."""

    def __init__(self, folder: Path) -> None:
        need_dask()
        folder.mkdir(parents=True)
        self.folder = folder
        self.port = free_port()
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start_scheduler()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": "cluster", "kind": "dask", "address": self.address}

    def _start(self, kind: str, *words: str, before: str = "") -> subprocess.Popen[bytes]:
        """Start a program of Dask's, in which our package cannot be imported."""
        code = (
            f"import sys; sys.modules['ipytaskpersist'] = None\n{before}\n"
            f"from distributed.cli.dask_{kind} import main; main()"
        )
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code, *words, "--no-dashboard", "--host", "127.0.0.1"],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def start_scheduler(self, before: str = "") -> None:
        self.scheduler = self._start("scheduler", "--port", str(self.port), before=before)
        until(lambda: accepts(self.port), message="a Dask scheduler")

    def stop_scheduler(self) -> None:
        if self.scheduler is not None:
            end(self.scheduler)
            self.scheduler = None

    def add_worker(self, *words: str, name: str = "") -> subprocess.Popen[bytes]:
        """Start a worker of one thread, without a nanny, which would start it again."""
        name = name or f"worker-{len(self.workers)}"
        worker = self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--name", name,
            "--local-directory", str(self.folder / name), *words,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            end(worker)
        self.workers.clear()

    def close(self) -> None:
        self.end_workers()
        self.stop_scheduler()


def need_dask() -> None:
    """Skip a test without Dask, or fail where none may be skipped."""
    if find_spec("distributed") is None:
        need("Dask", "the package distributed")


# Slurm.

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
KillWait=2
MinJobAge={min_job_age}
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=100
"""


class Slurm:
    """A Slurm cluster of this machine alone, with settings and a munge of its own."""

    def __init__(self, folder: Path, min_job_age: int = 300) -> None:
        need("Slurm", "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
        for each in (folder, folder / "state", folder / "spool"):
            each.mkdir(mode=0o755)
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.config = folder / "slurm.conf"
        self.config.write_text(
            SLURM_CONF.format(
                folder=folder, host=self.host, ctld=free_port(), slurmd=free_port(),
                user=getpass.getuser(), min_job_age=min_job_age,
            )
        )  # fmt: skip
        self.environment = {**os.environ, "SLURM_CONF": str(self.config)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
            f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log",
        )  # fmt: skip
        until((folder / "munge.socket").exists, message="munged")
        self.start_controller()
        self._start("slurmd", "-D", "-f", str(self.config), "-N", self.host)
        until(self.is_ready, 60, "a node of Slurm")

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": "cluster", "kind": "slurm"}

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(program(name)), *words],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def start_controller(self) -> None:
        self._start("slurmctld", "-D", "-f", str(self.config))

    def stop(self, name: str) -> None:
        end(self.processes.pop(name))

    def run(self, *command: str) -> str:
        """Run one of Slurm's programs, and return what it printed."""
        ended = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return ended.stdout + ended.stderr

    def is_ready(self) -> bool:
        return "idle" in self.run("sinfo", "--noheader", "--format=%T")

    def close(self) -> None:
        """End all jobs, and then what runs them."""
        self.run("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
        self.run("scancel", f"--user={getpass.getuser()}")
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self.processes:
                self.stop(name)
