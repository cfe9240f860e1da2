"""The far end of a place: starts a task on another machine, keeps its output, answers about it.

It needs Python 3.9 and its standard library, nothing of this package, and is sent as text. The
text is run in one of three ways: ``serve`` answers requests on its standard streams, ``answer``
is the same as a function, and ``keep FOLDER`` is the keeper of one task, in the foreground.
A program that executes the text itself sets the global ``TEXT`` to it beforehand.

Each task has a folder of its own on the far end:

* ``brief``: what to run. Only of a task that is stored for a keeper in the foreground, which
  removes it: it may hold secret values of environment variables.
* ``claim``: the identity of the task's keeper. There is one at most, for ever.
* ``state``: when the task was started, and how it ended. The keeper touches it every few seconds.
* ``asked``: a line for each signal that was asked for.
* ``spool``: what the task sends, one frame after another, only appended to. A frame is one byte
  for its kind, four for its length, the data, and the CRC-32 of all these. The kinds are those of
  the channel, and ``Z`` for the end, as JSON: exit code, reason, usage.
* ``log``: what went wrong in the keeper itself.

On a full disk the keeper keeps what it has read in memory and reads no more until there is room,
so that the task waits in its next write: nothing is lost, and the spool is never damaged.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ipytaskpersist.places.far.files import (
    LARGEST_JSON,
    Json,
    Refused,
    append_line,
    in_words,
    make_folder,
    open_private,
    place,
    read_fresh,
    read_json,
    write_all,
    write_once,
)
from ipytaskpersist.places.far.keeper import LOOK_S, PIPE_BYTES, keep, withdraw
from ipytaskpersist.places.far.looks import LOCAL, is_ours, look_at, read_claim, size_of
from ipytaskpersist.places.far.processes import MARK, SHARE_OF_TIME, end_left, identity, is_there

GREETING = b"\nipytaskpersist agent\n"
"""What `serve` writes first. A login shell may have printed something before it."""
MESSAGE = struct.Struct(">II")
LARGEST_DATA = 64 * 1024 * 1024
PIECE_BYTES = 8 * 1024 * 1024
"""Most bytes of a file in one answer."""
MOST_FILES = 10_000
FIRST_SENT = "sent"
"""The first file that is sent to a task, and empty. A folder with it is that of a task."""
SHARED = "buffers"
"""Folder beside those of the tasks, with the files that several of them were given."""
START_S = 60.0
DETACHED_LOOK_S = 1.0
"""How often a detached keeper looks. Its server, on the same machine, wakes it for a signal."""
BOOT = "import marshal, sys; exec(marshal.loads(sys.stdin.buffer.read(int(sys.argv.pop()))))"
LIVING = ("claimed", "running")
PARTS = ("far/files", "far/processes", "far/spool", "far/keeper", "far/looks", "agent")
"""The modules of which the text is made. Each imports from those before it."""
ANNOTATIONS = "from __future__ import annotations"
IMPORTED = ("ipytaskpersist.", "__future__")
Pause = Callable[[float], object]


def own_text() -> str:
    """Return the text of this program: that which is executed, or of the modules together."""
    if "TEXT" in globals():
        return str(globals()["TEXT"])
    if "__file__" in globals():
        modules = [Path(__file__).parent / f"{name}.py" for name in PARTS]
        return "\n\n".join([ANNOTATIONS, *map(without_imports, modules)])
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return arguments[arguments.index(b"-c") + 1].decode()


def without_imports(module: Path) -> str:
    """Return the text of a module without what it imports from the others."""
    import ast

    text = module.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(IMPORTED):
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)


@cache
def own_code() -> bytes:
    """Return the compiled text, for this interpreter. To compile it takes as long as a start."""
    import marshal

    return marshal.dumps(compile(own_text(), "agent", "exec", dont_inherit=True))


def hello(request: Json) -> Json:
    """Return what this end is, and which versions its Python has of some packages."""
    import hashlib

    return {
        **identity(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "user": os.environ.get("USER") or str(os.geteuid()),
        "home": str(Path.home()),
        "time": time.time(),
        "version": hashlib.sha256(own_text().encode()).hexdigest()[:16],
        "packages": versions_of(request.get("packages") or ()),
    }


def versions_of(packages: Iterable[str]) -> Json:
    """Return the versions of packages, without those that are not installed."""
    from importlib import metadata

    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def start(request: Json) -> Json:
    """Start a task, or with `detach` false store it for a keeper in the foreground. Once."""
    folder, brief = place(request["folder"]), request["brief"]
    if not isinstance(brief["task_id"], str) or not brief["command"]:
        raise Refused("a task needs an id and a command")
    make_folder(folder)
    is_new = not (folder / "claim").exists()
    if not request.get("detach", True):
        is_new = is_new and write_once(folder / "brief", brief)
        outcome = {"stored": True} if is_new else {"already": True}
    else:
        outcome = detach(folder, brief) if is_new else {"already": True}
    return {**outcome, **look_at(folder)}


def detach(folder: Path, brief: Json) -> Json:
    """Start a keeper that outlives this process and everything that started it."""
    code = own_code()
    # A process of its own instead of a fork of this one, which may have threads and much memory.
    keeper = subprocess.Popen(
        [sys.executable or "python3", "-S", "-c", BOOT, "detached", str(folder), str(len(code))],
        env={**os.environ, MARK: ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = keeper.communicate(code + json.dumps(brief).encode(), timeout=START_S)
        return json.loads(said.splitlines()[-1])  # type: ignore[no-any-return]
    except subprocess.TimeoutExpired:
        raise Refused(f"the keeper has not answered within {START_S:g} s") from None
    except (ValueError, IndexError):
        raise Refused(f"the keeper did not start: {said.decode(errors='replace')}") from None


def look(request: Json) -> Json:
    """Return what is known of some tasks."""
    return {"looks": [look_at(place(each)) for each in request["folders"]]}


def read(request: Json, pause: Pause) -> tuple[Json, bytes]:
    """Return what some tasks have sent beyond an offset each, as soon as one has news.

    The answer has for each task how many of the bytes are its own, and a look at it: 0 and None
    for one without news. To have ended, to be lost or out of reach is news each time.
    """
    tasks = [(place(folder), int(offset)) for folder, offset in request["tasks"]]
    until = time.monotonic() + float(request.get("wait_s") or 0.0)
    look_at_s = 0.0
    while True:
        began_at = time.monotonic()
        news = [has_more(folder, offset) for folder, offset in tasks]
        if not any(news) and began_at >= look_at_s:
            news = [look_at(folder)["state"] not in LIVING for folder, _offset in tasks]
            look_at_s = time.monotonic() + max(1.0, share_of_time(began_at))
        left_s = until - time.monotonic()
        if any(news) or left_s <= 0 or pause(min(left_s, share_of_time(began_at))):
            break
    most = min(int(request.get("at_most") or LARGEST_DATA), LARGEST_DATA) // max(1, sum(news))
    answers: list[list[Any]] = []
    pieces = []
    for number, (folder, offset) in enumerate(tasks):
        found = look_at(folder) if news[number] else None
        pieces.append(piece_of(folder, offset, most) if news[number] else b"")
        answers.append([len(pieces[-1]), found])
    return {"tasks": answers}, b"".join(pieces)


def share_of_time(began_at: float) -> float:
    """Return how long to wait until what began then is done again."""
    return max(0.01, SHARE_OF_TIME * (time.monotonic() - began_at))


def has_more(folder: Path, offset: int) -> bool:
    """Return whether a spool has another size than the reader knows."""
    try:
        if folder in LOCAL:
            return os.stat(folder / "spool").st_size != offset  # noqa: PTH116 - in the hot path
        return size_of(folder) != offset
    except OSError:
        return False  # a look says why


def piece_of(folder: Path, offset: int, at_most: int) -> bytes:
    """Return a piece of a spool."""
    with suppress(OSError):
        return read_fresh(folder / "spool", offset, at_most)[1]
    return b""


def signal_task(request: Json) -> Json:
    """Ask a task to end, to stop or to continue: through a file, which works from any machine."""
    folder, what = place(request["folder"]), request["what"]
    if what not in ("end", "kill", "stop", "continue"):
        raise Refused(f"there is no signal {what!r}")
    found = look_at(folder)
    if found["state"] in ("absent", "unknown"):
        raise Refused(found.get("error") or f"there is no task in {folder}")
    if found["state"] == "lost" and what in ("end", "kill"):
        end_left(found["task_id"])
    elif found["state"] in LIVING:
        ask(folder, what)
    return look_at(folder)


def ask(folder: Path, what: str) -> None:
    """Leave word for the keeper. A task that has none yet will have none."""
    append_line(folder / "asked", what)
    wake(read_claim(folder))
    brief = read_json(folder / "brief")
    if brief and what in ("end", "kill"):
        withdraw(folder, brief)


def wake(claim: Json | None) -> None:
    """Let a keeper on this machine look at once."""
    if (
        claim
        and not claim.get("withdrawn")
        and is_ours(claim)
        and is_there(claim["pid"], claim["start"])
    ):
        with suppress(OSError):
            os.kill(claim["pid"], signal.SIGHUP)


def put(request: Json, data: bytes) -> Json:
    """Write a piece of a file, which gets its name when it is `done`.

    Folders are made only below the one that `within` names.
    """
    path, offset = place(request["path"]), int(request.get("offset") or 0)
    if request.get("within") and place(request["within"]) in path.parents:
        make_folder(path.parent)
    part = path.with_name(f"{path.name}.part")
    descriptor = open_private(part, 0 if offset else os.O_TRUNC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size != offset:
            raise Refused(f"{part} has {size} bytes, not {offset}")
        write_all(descriptor, data)
        if request.get("done"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if request.get("done"):
        part.chmod(0o700 if request.get("executable") else 0o600)
        part.replace(path)
    return {"size": offset + len(data)}


def link(request: Json) -> Json:
    """Give a file another name. ``linked`` says whether it has that now.

    It has not if there is no such file, or if the file system has no links.
    """
    path, to = place(request["path"]), place(request["to"])
    if request.get("within") and place(request["within"]) in to.parents:
        make_folder(to.parent)
    with suppress(OSError):
        os.link(path, to)
    return {"linked": to.exists()}


def get(request: Json) -> tuple[Json, bytes]:
    """Return a piece of a file, and the file's size."""
    path = place(request["path"])
    if not stat.S_ISREG(path.stat().st_mode):
        raise Refused(f"{path} is no regular file")
    most = min(int(request.get("at_most") or PIECE_BYTES), PIECE_BYTES)
    size, data = read_fresh(path, int(request.get("offset") or 0), most)
    return {"size": size}, data


def sizes(request: Json) -> Json:
    """Return the path, the size and the time of the last change of the files of a pattern.

    Refuses a pattern with more than `MOST_FILES`.
    """
    import glob

    pattern = str(place(request["pattern"]))
    found = []
    for path in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - as a shell does
        with suppress(OSError):
            file = Path(path).stat()
            if stat.S_ISREG(file.st_mode):
                found.append([path, file.st_size, file.st_mtime])
        if len(found) > MOST_FILES:
            raise Refused(f"{pattern} is more than {MOST_FILES} files")
    return {"files": sorted(found)}


def forget(request: Json) -> Json:
    """Remove the folders of tasks that are over, or never were. Returns why others were kept.

    What they shared goes, too, when no task has had it for `unused_s`.
    """
    import shutil

    kept = {}
    for each in request["folders"]:
        folder = place(each)
        found = look_at(folder)
        is_absent = found["state"] == "absent"
        if is_absent and not (folder / FIRST_SENT).exists():
            continue
        if not is_absent and (found["state"] not in ("ended", "lost") or found.get("left")):
            kept[each] = f"the task is {found['state']}"
            continue
        try:
            shutil.rmtree(folder)
            forget_shared(folder.parent / SHARED, float(request.get("unused_s") or 0.0))
        except OSError as error:
            kept[each] = in_words(error)
    return {"kept": kept}


def forget_shared(folder: Path, unused_s: float) -> None:
    """Remove the files that are linked into no task's folder, and have not been for a while."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                # The removal of a link changes the status.
                if found.st_nlink == 1 and time.time() - found.st_ctime >= unused_s:
                    path.unlink()


def answer(request: Json, data: bytes, pause: Pause = time.sleep) -> tuple[Json, bytes]:
    """Answer a request: what was found, and bytes. What cannot be done is an ``error`` in words."""
    try:
        verb = request.get("verb")
        if verb == "read":
            return read(request, pause)
        if verb == "get":
            return get(request)
        if verb == "put":
            return put(request, data), b""
        if verb not in VERBS:
            raise Refused(f"there is no request {verb!r}")
        return VERBS[verb](request), b""
    except Refused as refused:
        return {"error": str(refused)}, b""
    except OSError as error:
        return {"error": in_words(error)}, b""
    except KeyError as missing:
        return {"error": f"the request lacks {missing}"}, b""
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}, b""


VERBS: dict[str, Callable[[Json], Json]] = {
    "hello": hello,
    "start": start,
    "look": look,
    "signal": signal_task,
    "sizes": sizes,
    "link": link,
    "forget": forget,
}


# The ways in.


class Requests:
    """The requests on the standard input."""

    def __init__(self) -> None:
        # The program that executes this text may have read more than the text.
        os.set_blocking(0, False)
        self._received = bytearray(sys.stdin.buffer.peek())  # type: ignore[union-attr]
        os.set_blocking(0, True)

    def wait(self, seconds: float) -> bool:
        """Wait for the next request. Returns whether there is one, or there will be none."""
        return bool(self._received or select.select([0], [], [], seconds)[0])

    def take(self) -> tuple[Json, bytes]:
        """Return the next request. Raises `Refused` for what is none, and `EOFError`."""
        lengths = MESSAGE.unpack(self._exactly(MESSAGE.size))
        if lengths[0] > LARGEST_JSON or lengths[1] > LARGEST_DATA:
            self._skip(sum(lengths))
            raise Refused("the request is too large")
        text, data = map(self._exactly, lengths)
        try:
            request = json.loads(text)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            raise Refused("the request is no JSON object")
        return request, data

    def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._read(size - len(self._received))
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._exactly(min(size, PIPE_BYTES)))

    def _read(self, size: int) -> None:
        data = os.read(0, min(size, PIPE_BYTES))
        if not data:
            raise EOFError
        self._received += data


def serve() -> int:
    """Answer requests on the standard streams, in order, until there are no more."""
    requests = Requests()
    write_all(1, GREETING)
    with suppress(EOFError, BrokenPipeError):
        while True:
            try:
                content, data = answer(*requests.take(), pause=requests.wait)
            except Refused as refused:
                content, data = {"error": str(refused)}, b""
            text = json.dumps(content).encode()
            write_all(1, MESSAGE.pack(len(text), len(data)) + text + data)
    return 0


def keep_stored(folder: Path) -> int:
    """Keep a task that was stored, in the foreground."""
    brief = read_json(folder / "brief")
    if not brief:
        print(json.dumps({"already": True, "error": f"no task is stored in {folder}"}), flush=True)
        return os.EX_TEMPFAIL
    return keep(folder, brief, LOOK_S)


def keep_detached(folder: Path) -> int:
    """Keep the task that the standard input describes, detached from its starter."""
    brief = json.loads(sys.stdin.buffer.read())
    if os.fork():
        os._exit(0)
    return keep(folder, brief, DETACHED_LOOK_S)


def main() -> int:
    """Do what the command line says. Returns the exit code."""
    verb, *folder = sys.argv[1:]
    if verb == "serve":
        return serve()
    ways = {"keep": keep_stored, "detached": keep_detached}
    return ways[verb](place(folder[0]))


if __name__ == "__main__":
    sys.exit(main())
