"""Places of kind ssh: the agent runs on another machine, through a connection of the user's ssh.

The user's settings of ssh apply: `~/.ssh/config`, keys, agent, ProxyJump, known hosts. There is no
terminal for a password or for confirming a key, so ssh must log in without one. Connections to a
host share a master connection: the user's own if ssh is set to have one, otherwise one of ours. It
stays for a minute after its last use, so that the next connection takes 0.15 s instead of 0.5 s.

A command line is limited in length, and a login shell of any kind parses it. So it only starts a
Python that reads the agent from its standard input.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import selectors
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_private
from ipytaskpersist.errors import StoreError
from ipytaskpersist.places import agent
from ipytaskpersist.places.bridge import (
    Json,
    Message,
    Streams,
    Unreachable,
    arguments,
    last_line,
    unreachable,
)
from ipytaskpersist.places.messages import MessageDamaged, MessageReader, agent_text, pack

CONNECT_S = 60.0
SILENCE_S = 120.0
"""How long a request may take beyond the time that it asks for, while no byte moves."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Pauses between attempts to connect: servers lock out clients that try too often."""
NEVER_S = 86400.0
END_S = 5.0
PREFACE_BYTES = 64 * 1024
"""How much a login shell may print before the agent begins."""
PIECE_BYTES = 256 * 1024
SAID_BYTES = 4096
SOCKET_PATH_BYTES = 104 - 18
"""Longest path of a socket on macOS, less what ssh adds to it while it makes the socket."""
SSH_FAILED = 255
OWN_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=20",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    # What the host's settings ask for an interactive login is in the way here.
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "EscapeChar=none",
    "LogLevel=ERROR",
)
BOOT = (
    "import sys;"
    "sys.version_info<(3,9)and sys.exit({old!r}+sys.version.split()[0]);"
    # A module in the home directory must not stand in for one of the standard library.
    "sys.path=[p for p in sys.path if p];"
    "TEXT=sys.stdin.buffer.read({size}).decode();"
    "exec(TEXT)"
)
TOO_OLD = "ipytaskpersist needs Python 3.9 there and found "


# The command.


def ssh_command(spec: Json, state_directory: Path, text: bytes) -> list[str]:
    """Return the command that starts the agent on the host. Raises `Unreachable` without an ssh."""
    login = login_command(spec, OWN_OPTIONS, state_directory)
    return [*login, "--", spec["host"], far_command(spec["python"], len(text))]


def login_command(spec: Json, options: Sequence[str], state_directory: Path) -> list[str]:
    """Return the command of a login to a place, but for the host. Raises `Unreachable`."""
    program = shutil.which("ssh")
    if program is None:
        raise Unreachable("there is no program 'ssh' here; install OpenSSH's client")
    login = [*spec["options"]]
    login += ["-p", str(spec["port"])] if spec["port"] else []
    login += ["-l", spec["user"]] if spec["user"] else []
    shared = master_options(program, login, spec["host"], state_directory)
    # Of several values of an option ssh takes the first: the user's.
    settings = [word for option in (*options, *shared) for word in ("-o", option)]
    return [program, *login, *settings]


def far_command(python: str, size: int) -> str:
    """Return what the login shell is to run: quoted alike in sh, bash, zsh, fish and csh."""
    boot = BOOT.format(old=TOO_OLD, size=size).replace("'", '"')
    return f"{python} -c '{boot}' serve"


def master_options(program: str, login: list[str], host: str, state_directory: Path) -> list[str]:
    """Return the options for a master connection of ours.

    There are none when ssh is set to have one, and when no path is short enough for its socket.
    Where a login needs a second factor, a connection opened by hand may be the only way in.
    """
    asked = [program, *login, "-G", "--", host]
    with suppress(OSError, subprocess.SubprocessError):
        settings = subprocess.run(
            asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=CONNECT_S, check=True
        ).stdout
        if re.search(rb"^controlpath (?!none$)", settings, re.MULTILINE):
            return []
    # Two that log in differently must not share a connection.
    name = hashlib.blake2b(json.dumps([login, host]).encode(), digest_size=8).hexdigest()
    folder = socket_folder(state_directory, name)
    if folder is None:
        return []
    # A percent sign begins a token of ssh's.
    path = str(folder / name).replace("%", "%%")
    return ["ControlMaster=auto", f'ControlPath="{path}"', "ControlPersist=60"]


def socket_folder(state_directory: Path, name: str) -> Path | None:
    """Return a private folder in which the path of a socket is short enough, or None."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folders = [StateDirectory(state_directory).ssh]
    folders += [Path(runtime) / "ipytaskpersist-ssh"] if runtime else []
    for folder in folders:
        if len(os.fsencode(folder / name)) <= SOCKET_PATH_BYTES and '"' not in str(folder):
            with suppress(OSError, StoreError):
                return make_private(folder)
    return None


# The connection.


class Connection:
    """One ssh, with the agent at its other end."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._input: Any = self._process.stdin
        self._output: Any = self._process.stdout
        self._errors: Any = self._process.stderr
        self._open: set[Any] = {self._output, self._errors}
        for stream in (self._input, *self._open):
            os.set_blocking(stream.fileno(), False)
        self._unsent = bytearray()
        self._received = bytearray()
        self._said = bytearray()
        """The end of what ssh and the far end printed as errors."""
        self._messages = MessageReader()

    @property
    def is_over(self) -> bool:
        """Whether nothing will be received any more."""
        return self._output not in self._open

    def send(self, data: bytes) -> None:
        """Have something sent by the next turns."""
        self._unsent += data

    def turn(self, seconds: float, requests: int | None = None) -> bool:
        """Wait until something can be sent or received, and do that. Returns whether there was.

        Ends as well when a descriptor with requests has one.
        """
        with selectors.DefaultSelector() as selector:
            for stream in self._open:
                selector.register(stream, selectors.EVENT_READ)
            if self._unsent:
                selector.register(self._input, selectors.EVENT_WRITE)
            if requests is not None:
                selector.register(requests, selectors.EVENT_READ)
            ready = [key.fileobj for key, _events in selector.select(seconds)]
        for stream in ready:
            if stream is self._input:
                self._send_some()
            elif stream != requests:
                self._receive(stream)
        return bool(ready)

    def _send_some(self) -> None:
        with suppress(BlockingIOError):
            try:
                sent = os.write(self._input.fileno(), self._unsent[:PIECE_BYTES])
            except BrokenPipeError:
                sent = len(self._unsent)  # the end of the output follows, and tells why
            del self._unsent[:sent]

    def _receive(self, stream: Any) -> None:
        try:
            data = os.read(stream.fileno(), PIECE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._open.discard(stream)
        elif stream is self._output:
            self._received += data
        else:
            self._said += data
            del self._said[:-SAID_BYTES]

    def begin(self, text: bytes) -> None:
        """Send the agent, and wait until it runs. Raises `Unreachable`."""
        self.send(text)
        while agent.GREETING not in self._received:
            if len(self._received) > PREFACE_BYTES:
                raise Unreachable(
                    "its login shell prints without end, instead of starting the agent"
                )
            if self.is_over:
                raise Unreachable
            if not self.turn(CONNECT_S):
                raise Unreachable(f"it has not started the agent within {CONNECT_S:.0f} s")

    def answers(self) -> Iterator[Message]:
        """Return the answers that have arrived. Raises `MessageDamaged`."""
        received, self._received = bytes(self._received), bytearray()
        return self._messages.feed(received)

    def close(self) -> tuple[int, str]:
        """End ssh. Returns its exit status, and its last errors or, without any, its output."""
        self._input.close()
        # The master connection may keep the error stream open, so its end is not waited for.
        try:
            status = self._process.wait(END_S if self.is_over else 0.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._receive(self._errors)
        self._output.close()
        self._errors.close()
        said = self._said if self._said.strip() else self._received
        return status, said.decode(errors="replace")


# Words.


def failure_words(spec: Json, status: int, said: str) -> str:
    """Return why there is no connection to the host, and what to do about it."""
    host = spec["host"]
    last = last_line(said)
    hint = f"type 'ssh {host}' in a terminal"
    # Some shells show the command with their error, so the text alone is no sign.
    if old := re.search(rf"{TOO_OLD}\d\S*", said):
        return f"{host}: {old[0]}; set 'python' to another one"
    if status == SSH_FAILED:
        for pattern, words in _SSH_SAYS:
            if re.search(pattern, said, re.IGNORECASE):
                return f"{words.format(host=host, hint=hint)} (ssh: {last})"
        return f"{host} cannot be reached; {hint} to see why (ssh: {last})"
    missing = re.search(r".*(not found|unknown command|no such file).*", said, re.IGNORECASE)
    if missing or status in (126, 127):
        last = last_line(missing[0]) if missing else last
        return (
            f"{host} has no {spec['python']!r} that a login shell finds; set 'python' to the path "
            f"of a Python 3.9 or newer over there ({last})"
        )
    return f"{host} did not start the agent, exit status {status} ({last or 'it said nothing'})"


_SSH_SAYS = (
    (
        r"IDENTIFICATION HAS CHANGED",
        "{host} shows another host key than the one that is known, so it may not be that host; "
        "{hint} to see what to do",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "the host key of {host} is not known here; {hint}, and confirm its key",
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "{host} does not let you in without a password; set up a key, or open a connection by hand "
        "that ssh is set to share (ControlMaster, ControlPath)",
    ),
    (r"Could not resolve hostname", "there is no host of the name {host}; correct 'host'"),
    (r"Connection refused", "{host} is there, but no ssh server answers; correct 'port'"),
    (
        r"timed out|not responding|No route to host|Network is unreachable",
        "{host} does not answer; is it on, and is this network the one to reach it from?",
    ),
)


def lost_words(spec: Json, why: str, said: str) -> str:
    """Return how a connection that worked was lost."""
    reasons = [why, last_line(said)]
    more = "; ".join(reason for reason in reasons if reason)
    return f"the connection to {spec['host']} was lost" + (f" ({more})" if more else "")


# The program.


class SshBridge:
    """Passes requests and answers on, through a connection that is made when it is needed.

    Requests are passed on as they come, because the next one ends the agent's wait for news.
    """

    def __init__(self, spec: Json, state_directory: Path) -> None:
        self._spec, self._state_directory = spec, state_directory
        self._text = agent_text().encode()
        self._streams = Streams()
        self._connection: Connection | None = None
        self._waits: deque[float] = deque()
        """How long each request that has no answer yet may wait for news, in seconds."""
        self._failure = ""
        self._pause_s = FIRST_PAUSE_S
        self._next_attempt_at = 0.0

    def run(self) -> None:
        """Pass on until there are no more requests, or the supervisor has gone."""
        try:
            with suppress(EOFError, BrokenPipeError):
                while True:
                    self._turn()
        finally:
            if self._connection is not None:
                self._connection.close()

    def _turn(self) -> None:
        requests = self._streams.requests
        if requests.wait(0.0 if self._connection is not None else NEVER_S):
            self._pass_on(*requests.take())
        if self._connection is not None:
            try:
                self._exchange(self._connection)
            except (Unreachable, MessageDamaged) as error:
                self._lose(str(error))

    def _exchange(self, connection: Connection) -> None:
        silence_s = max(self._waits) + SILENCE_S if self._waits else NEVER_S
        if not connection.turn(silence_s, requests=0):
            raise Unreachable(f"it has not answered for {silence_s:.0f} s")
        for answer in connection.answers():
            self._waits.popleft()
            self._streams.write(answer)
        if connection.is_over:
            raise Unreachable

    def _pass_on(self, request: Json, data: bytes) -> None:
        try:
            self._connect().send(pack(request, data))
        except Unreachable as error:
            self._streams.write(unreachable(str(error), is_unsent=True))
        else:
            self._waits.append(float(request.get("wait_s") or 0.0))

    def _connect(self) -> Connection:
        if self._connection is not None:
            return self._connection
        if time.monotonic() < self._next_attempt_at:
            raise Unreachable(self._failure)
        try:
            self._connection = self._new_connection()
        except Unreachable as error:
            self._failure = str(error)
            self._next_attempt_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            raise
        self._pause_s = FIRST_PAUSE_S
        return self._connection

    def _new_connection(self) -> Connection:
        connection = Connection(ssh_command(self._spec, self._state_directory, self._text))
        try:
            connection.begin(self._text)
        except Unreachable as error:
            status, said = connection.close()
            words = f"{self._spec['host']}: {error}" if str(error) else ""
            raise Unreachable(words or failure_words(self._spec, status, said)) from None
        return connection

    def _lose(self, why: str) -> None:
        """Answer every request that is under way: whether it was carried out is unknown."""
        assert self._connection is not None
        _status, said = self._connection.close()
        self._connection = None
        words = lost_words(self._spec, why, said)
        for _ in range(len(self._waits)):
            self._waits.popleft()
            self._streams.write(unreachable(words))


def main() -> None:
    """Connect the standard streams with the agent on the host."""
    SshBridge(*arguments()).run()
