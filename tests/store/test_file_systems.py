"""The journal is chosen by what really holds the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from histories import add_task, begin_session
from programs import TIMEOUT_S, environment, run_python

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.file import file_systems
from ipytaskpersist.store.file.file_systems import journal_mode_for, may_be_on_network, mount_in
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

if sys.platform != "linux":
    pytest.skip("only Linux has such a table", allow_module_level=True)

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /proc rw - proc proc rw
30 22 8:2 / /home rw - xfs /dev/sdb1 rw
31 30 0:40 / /home/me rw - nfs4 server:/me rw
32 22 0:41 / /twice rw - ext4 /dev/sdc1 rw
33 32 0:42 / /twice rw - cifs //server/share rw
40 22 0:50 / /auto rw - autofs systemd-1 rw,fd=30
41 40 0:51 / /auto rw - nfs server:/auto rw
50 22 0:60 / /with\040space\011tab\134slash rw - fuse.sshfs me@host: rw
60 22 0:70 / /covered rw - ext4 /dev/sdd1 rw
61 60 0:71 / /covered/below rw - nfs server:/below rw
62 60 0:72 / /covered rw - btrfs /dev/sde1 rw
70 22 0:80 /sub /bound rw master:3 propagate_from:2 - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/homely", "ext4"),
        ("/home", "xfs"),
        ("/home/you", "xfs"),
        ("/home/me/work", "nfs4"),
        ("/twice/a", "cifs"),
        ("/auto/a", "nfs"),
        ("/with space\ttab\\slash/a", "fuse.sshfs"),
        ("/covered/below/a", "btrfs"),
        ("/bound", "tmpfs"),
    ],
)
def test_the_mount_in_effect_counts(folder: str, kind: str) -> None:
    """The deepest, of several on one point the last, and none that another one covers."""
    mount = mount_in(TABLE, Path(folder))
    assert mount is not None
    assert mount.kind == kind


@pytest.mark.parametrize("table", ["", "\n", "nonsense", "22 1 8:1 / / rw", "1 2 3 4 5 - "])
def test_a_table_that_says_nothing_says_nothing(table: str) -> None:
    assert mount_in(table, Path("/home")) is None


def test_a_table_without_a_root_is_read(tmp_path: Path) -> None:
    """As in a chroot, where the root is no mount."""
    table = TABLE.replace("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n", "")
    assert mount_in(table, Path("/other")) is None
    mount = mount_in(table, Path("/home/me"))
    assert mount is not None
    assert mount.kind == "nfs4"


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ocfs2", "gfs2", "lustre", "ceph", "autofs",
     "fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.s3fs", "fuse.rclone",
     "fuse.juicefs", "fuse.nobody-knows-it"],
)  # fmt: skip
def test_these_may_be_written_by_other_hosts(kind: str) -> None:
    assert may_be_on_network(kind)


@pytest.mark.parametrize(
    "kind",
    ["", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "ecryptfs", "fuseblk", "fuse.ext4",
     "fuse.ntfs-3g", "fuse.gocryptfs", "fuse.fuse-overlayfs"],
)  # fmt: skip
def test_these_are_this_hosts(kind: str) -> None:
    assert not may_be_on_network(kind)


def test_what_is_mounted_when_it_is_looked_into_is_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An automounter's own mount says nothing of what it mounts."""
    table = tmp_path / "mountinfo"
    before = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / {tmp_path} rw - autofs m rw\n"
    monkeypatch.setattr(file_systems, "MOUNTS", table)
    opened: list[object] = []
    plain = os.open

    def trigger(path: object, *arguments: int) -> int:
        opened.append(path)
        table.write_text(f"{before}3 2 0:6 / {tmp_path} rw - ext4 /dev/sdb1 rw\n")
        return plain(path, *arguments)  # type: ignore[call-overload, no-any-return]

    table.write_text(before)
    monkeypatch.setattr(os, "open", trigger)  # no automounter runs here
    assert file_systems.file_system_of(tmp_path) == "ext4"
    assert opened[0] == tmp_path
    monkeypatch.setattr(os, "open", plain)
    table.write_text(before)
    assert journal_mode_for(tmp_path) == "TRUNCATE"


# Real mounts.

SHOW = """
import sys
from pathlib import Path
from ipytaskpersist.store.file.file_systems import mount_of
for name in sys.argv[1:]:
    mount = mount_of(Path(name))
    print(mount.kind, mount.point)
"""


def mounted(script: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that may mount, which nobody else sees."""
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script], env=environment(state_dir), check=False,
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip(f"this machine lets nobody mount: {ended.stderr}")
    return ended


def test_real_mounts_are_found(tmp_path: Path, state_dir: Path) -> None:
    """Two on one point, one with a space in its name, one that covers another, and a bind."""
    twice, spaced, bound = tmp_path / "twice", tmp_path / "a b", tmp_path / "bound"
    covered = tmp_path / "covered"
    for each in (twice, spaced, bound, covered):
        each.mkdir()
    ended = mounted(
        f"""
        mount -t tmpfs one {twice}; mount -t proc two {twice}
        mount -t tmpfs three '{spaced}'; mkdir '{spaced}/inner'
        mount --bind '{spaced}/inner' {bound}
        mount -t tmpfs four {covered}; mkdir {covered}/x; mount -t proc five {covered}/x
        mount -t tmpfs six {covered}; mkdir {covered}/x
        {sys.executable} -c '{SHOW}' {twice} '{spaced}/inner' {bound} {covered}/x {tmp_path}
        """,
        state_dir,
    )
    lines = ended.stdout.splitlines()
    assert ended.stderr == ""
    assert lines[:4] == [
        f"proc {twice}", f"tmpfs {spaced}", f"tmpfs {bound}", f"tmpfs {covered}"
    ]  # fmt: skip
    assert lines[4].split()[0] not in ("tmpfs", "proc") or tmp_path.is_relative_to("/tmp")


def test_a_real_mount_of_an_unknown_program_is_one_of_the_network(
    tmp_path: Path, state_dir: Path
) -> None:
    """The system shows its type as soon as it is mounted, though no program answers yet."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no FUSE")
    point = tmp_path / "point"
    point.mkdir()
    code = f"""
import ctypes, os
from pathlib import Path
from ipytaskpersist.store.file.file_systems import MOUNTS, may_be_on_network, mount_in
fuse = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={{fuse}},rootmode=40000,user_id=0,group_id=0".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"me@host:", {str(point)!r}.encode(), b"fuse.sshfs", 0, data):
    raise SystemExit("mount: " + os.strerror(ctypes.get_errno()))
mount = mount_in(MOUNTS.read_text(), Path({str(point)!r}) / "state")
print(mount.kind, may_be_on_network(mount.kind))
"""
    (tmp_path / "code.py").write_text(code)
    ended = mounted(f"{sys.executable} {tmp_path / 'code.py'}", state_dir)
    assert (ended.stdout, ended.stderr) == ("fuse.sshfs True\n", "")


# Without shared memory.

NO_SHARED_MEMORY = r"""
import ctypes, platform, struct, sys

def refuse_shared_memory():
    # As on 9p, or FUSE with direct_io: a file can be no memory that is shared and written to.
    numbers = {"x86_64": (0xC000003E, 9), "aarch64": (0xC00000B7, 222)}
    if platform.machine() not in numbers:
        raise SystemExit("skip: this machine's system calls are not known here")
    architecture, number = numbers[platform.machine()]
    LOAD, EQUAL, SET, RETURN = 0x20, 0x15, 0x45, 0x06
    filters = [
        (LOAD, 0, 0, 4), (EQUAL, 0, 8, architecture),
        (LOAD, 0, 0, 0), (EQUAL, 0, 6, number),
        (LOAD, 0, 0, 16 + 8 * 2), (SET, 0, 4, 2),  # PROT_WRITE
        (LOAD, 0, 0, 16 + 8 * 3), (SET, 0, 2, 1),  # MAP_SHARED
        (RETURN, 0, 0, 0x00050000 | 19), (RETURN, 0, 0, 0x7FFF0000),  # ENODEV, or allowed
        (RETURN, 0, 0, 0x7FFF0000),
    ]
    code = b"".join(struct.pack("HBBI", *each) for each in filters)
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
        raise SystemExit("skip: no filter of system calls can be had")

refuse_shared_memory()
from ipytaskpersist.store.file.file_systems import journal_mode_for, shares_memory
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
store = TaskStore(StateDirectory(default_directory()))
store.open()
session = store.sessions.begin(session_identity(None))
store.tasks.insert(NewTask(session.notebook_key, session.id, "b", "python", "thread", "pass"))
print(store.database.row("PRAGMA journal_mode")[0], store.tasks.count(Selection()))
print(store.notice)
store.close()
"""


def without_shared_memory(state_dir: Path) -> list[str]:
    """The journal and the number of tasks of a store where a task has been added."""
    ended = run_python(NO_SHARED_MEMORY, state_dir)
    if ended.stderr.startswith("skip"):
        pytest.skip(ended.stderr)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_where_no_memory_is_shared_the_rollback_journal_is_used(state_dir: Path) -> None:
    """WAL would fail at its first use, with a disk I/O error."""
    first, notice = without_shared_memory(state_dir)
    assert first == "truncate 1"
    assert "is on a file system without shared memory, so the store uses" in notice
    assert sorted(path.suffix for path in state_dir.iterdir() if "-" in path.name) == [
        ".db-journal"
    ]


def test_a_store_that_was_made_elsewhere_is_used_there(state_dir: Path) -> None:
    """With what only its log has, as a killed process leaves it."""
    killed = run_python(
        "import os\n"
        "from ipytaskpersist.session.notebook_identity import session_identity\n"
        "from ipytaskpersist.base.paths import StateDirectory, default_directory\n"
        "from ipytaskpersist.store.task_store import NewTask, TaskStore\n"
        "store = TaskStore(StateDirectory(default_directory())).open()\n"
        "session = store.sessions.begin(session_identity(None))\n"
        "store.tasks.insert("
        "NewTask(session.notebook_key, session.id, 'a', 'python', 'thread', 'pass'))\n"
        "os.kill(os.getpid(), 9)",
        state_dir,
    )
    assert killed.returncode == -9
    assert (state_dir / "tasks.db-wal").stat().st_size > 0
    assert without_shared_memory(state_dir)[0] == "truncate 2"
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        assert store.tasks.count(Selection()) == 2
        add_task(store, begin_session(store))


def test_the_doctor_names_the_mount_its_type_and_what_follows(state_dir: Path) -> None:
    """Of the folder that the store is in, or would be in."""
    table = state_dir.parent / "mountinfo"
    ask = (
        "import sys\nfrom pathlib import Path\nfrom ipytaskpersist.store.file import file_systems\n"
        f"file_systems.MOUNTS = Path({str(table)!r})\nsys.argv = ['bg', 'doctor', '--json']\n"
        "from ipytaskpersist.__main__ import main\nmain()"
    )

    def finding(kind: str) -> tuple[str, str]:
        table.write_text(
            f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / {state_dir.parent} rw - {kind} x rw\n"
        )
        found = json.loads(run_python(ask, state_dir).stdout)["findings"]
        (one,) = [each for each in found if each["check"] == "file system"]
        return one["level"], one["message"]

    level, message = finding("xfs")
    assert level == "ok"
    assert message.startswith(f"xfs, mounted on {state_dir.parent}, with ")
    assert message.endswith("; its processes share memory, so the journal is WAL")
    assert finding("fuse.glusterfs") == (
        "warning",
        f"fuse.glusterfs, mounted on {state_dir.parent}: a network file system, so the store uses "
        "the rollback journal, slower and only as safe as its locks",
    )
