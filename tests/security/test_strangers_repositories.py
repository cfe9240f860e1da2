"""Asking where a task comes from runs nothing that the repository around it names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ipytaskpersist.session import provenance
from ipytaskpersist.session.git_repository import GitFolders, Head
from ipytaskpersist.session.provenance import git_in_words, git_state

if sys.platform == "win32":
    pytest.skip("the attacks are shell scripts", allow_module_level=True)


def git(folder: Path, *arguments: str) -> str:
    known = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    return subprocess.run(
        ["git", *known, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


class Repository:
    """A stranger's: with one commit, a file whose time has changed, and a program that tells."""

    def __init__(self, root: Path, marker: Path) -> None:
        self.root, self.marker = root, marker
        root.mkdir()
        git(root, "init", "--quiet", "--initial-branch=work")
        (root / "file").write_text("one\n")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "--message=first")
        self.commit = git(root, "rev-parse", "HEAD")
        self.program = marker.parent / "program"
        self.program.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
        self.program.chmod(0o755)
        os.utime(root / "file", (1, 1))  # so that its content is compared

    def config(self, name: str, value: str = "") -> None:
        git(self.root, "config", name, value or str(self.program))

    @property
    def config_file(self) -> Path:
        return self.root / ".git" / "config"

    def status(self) -> None:
        """Ask as one who trusts the repository does."""
        subprocess.run(
            ["git", "status"], cwd=self.root, capture_output=True, check=False, timeout=30
        )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "clone", tmp_path / "marker")


def attributes(repository: Repository) -> None:
    (repository.root / ".gitattributes").write_text("* filter=x diff=x\n")


def clean(repository: Repository) -> None:
    repository.config("filter.x.clean")
    attributes(repository)


def process(repository: Repository) -> None:
    repository.config("filter.x.process")
    attributes(repository)


def clean_by_info(repository: Repository) -> None:
    repository.config("filter.x.clean")
    (repository.root / ".git" / "info" / "attributes").write_text("* filter=x\n")


def clean_in_one_line(repository: Repository) -> None:
    with repository.config_file.open("a") as file:
        file.write(f'[core] bare = false\n[FILTER "x"] Clean = {repository.program}\n')
    attributes(repository)


def clean_in_the_old_form(repository: Repository) -> None:
    with repository.config_file.open("a") as file:
        file.write(f"[Filter.x]clean={repository.program}\n")
    attributes(repository)


def clean_in_a_working_trees_own(repository: Repository) -> None:
    repository.config("extensions.worktreeConfig", "true")
    git(repository.root, "config", "--worktree", "filter.x.clean", str(repository.program))
    attributes(repository)


def include(repository: Repository) -> None:
    more = repository.root / "more"
    more.write_text(f'[filter "x"]\nclean = {repository.program}\n')
    repository.config("include.path", "../more")
    attributes(repository)


def include_if(repository: Repository) -> None:
    include(repository)
    git(repository.root, "config", "--unset", "include.path")
    repository.config("includeIf.onbranch:work.path", "../more")


def monitor(repository: Repository) -> None:
    repository.config("core.fsmonitor")


def hooks(repository: Repository) -> None:
    folder = repository.root / "hooks"
    folder.mkdir()
    (folder / "post-index-change").symlink_to(repository.program)
    repository.config("core.hooksPath", str(folder))


def external(repository: Repository) -> None:
    repository.config("diff.external")
    repository.config("diff.x.command")
    repository.config("diff.x.textconv")
    (repository.root / "file").write_text("two\n")
    attributes(repository)


def promisor(repository: Repository) -> None:
    """The file's old content is missing, and would be fetched from a remote by a program."""
    repository.program.write_text(f"#!/bin/sh\ntouch {repository.marker}\nexit 1\n")
    git(repository.root, "config", "extensions.partialClone", "o")
    repository.config("remote.o.url", str(repository.root))
    repository.config("remote.o.promisor", "true")
    repository.config("remote.o.uploadpack")
    blob = git(repository.root, "rev-parse", "HEAD:file")
    (repository.root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    git(repository.root, "mv", "file", "moved")
    (repository.root / "moved").write_text("one\nand more\n")
    git(repository.root, "add", "moved")


ATTACKS = {
    each.__name__: each
    for each in (
        clean, process, clean_by_info, clean_in_one_line, clean_in_the_old_form,
        clean_in_a_working_trees_own, include, include_if, monitor, hooks, external, promisor,
    )
}  # fmt: skip
RUN_BY_STATUS = set(ATTACKS) - {"external"}
"""What a plain `git status` runs. Another command, or another git, runs the others."""


@pytest.mark.parametrize("name", ATTACKS)
def test_no_program_that_a_repository_names_is_run(repository: Repository, name: str) -> None:
    """Commit and branch are known; whether files have been changed is said not to be."""
    ATTACKS[name](repository)
    repository.marker.unlink(missing_ok=True)  # what prepares an attack may have run it
    found = git_state(repository.root)
    assert not repository.marker.exists()
    assert found == {
        "root": str(repository.root), "commit": repository.commit, "branch": "work",
        "is_dirty": None,
    }  # fmt: skip
    expected = f"{repository.commit[:12]} on work, uncommitted changes not known"
    assert git_in_words(found) == expected
    if name in RUN_BY_STATUS:
        repository.status()
        assert repository.marker.exists(), "the attack proves nothing"


@pytest.mark.parametrize("name", ATTACKS)
def test_nor_where_its_configuration_has_not_been_understood(
    repository: Repository, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What git is told is a second wall, but for a filter, which only the first one keeps out."""
    ATTACKS[name](repository)
    repository.marker.unlink(missing_ok=True)
    monkeypatch.setattr(GitFolders, "names_programs", lambda self: False)
    git_state(repository.root)
    assert not repository.marker.exists()


def test_a_filter_of_yours_is_not_run_for_a_strangers_files(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository's attributes choose one that your own configuration has, such as git-lfs."""
    own = tmp_path / "gitconfig"
    own.write_text(f'[filter "x"]\nclean = {repository.program}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(own))
    attributes(repository)
    found = git_state(repository.root)
    assert found is not None
    assert found["is_dirty"] is None
    assert not repository.marker.exists()
    (repository.root / ".gitattributes").write_text("* text=auto -filter\n*.png diff=x\n")
    found = git_state(repository.root)
    assert found is not None
    assert found["is_dirty"] is False


def test_a_program_named_git_in_the_project_is_not_run(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.root / "git").symlink_to(repository.program)
    monkeypatch.chdir(repository.root)
    monkeypatch.setenv("PATH", f".{os.pathsep}{os.pathsep}{os.environ['PATH']}")
    found = git_state(repository.root)
    assert found is not None
    assert found["is_dirty"] is False
    assert not repository.marker.exists()


def test_variables_of_git_lead_to_no_other_repository(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel may have been started by a hook, which git gives them."""
    other = Repository(tmp_path / "other", tmp_path / "marker")
    (other.root / "file").write_text("two\n")
    monkeypatch.setenv("GIT_DIR", str(other.root / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.root / ".git" / "index"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(repository.program))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(repository.program))
    found = git_state(repository.root)
    assert found is not None
    assert (found["root"], found["is_dirty"]) == (str(repository.root), False)
    assert not repository.marker.exists()


# Where the files of git are elsewhere.


def test_a_submodule_and_a_second_working_tree_are_known(
    repository: Repository, tmp_path: Path
) -> None:
    """What git keeps for them is in the main repository."""
    inner = Repository(tmp_path / "inner", tmp_path / "marker")
    git(repository.root, "-c", "protocol.file.allow=always", "submodule", "add", str(inner.root))
    second = tmp_path / "second"
    git(repository.root, "worktree", "add", "-b", "other", str(second))
    for root, commit, branch in (
        (repository.root / "inner", inner.commit, "work"),
        (second, repository.commit, "other"),
    ):
        expected = {"root": str(root), "commit": commit, "branch": branch, "is_dirty": False}
        assert git_state(root) == expected
        (root / "file").write_text("two\n")
        assert git_state(root) == {**expected, "is_dirty": True}


def test_the_configuration_of_a_submodule_runs_nothing(
    repository: Repository, tmp_path: Path
) -> None:
    inner = Repository(tmp_path / "inner", tmp_path / "marker")
    git(repository.root, "-c", "protocol.file.allow=always", "submodule", "add", str(inner.root))
    submodule = repository.root / "inner"
    git(submodule, "config", "core.fsmonitor", str(repository.program))
    os.utime(submodule / "file", (1, 1))
    repository.marker.unlink(missing_ok=True)
    for root, expected in ((repository.root, True), (submodule, None)):
        found = git_state(root)
        assert found is not None
        assert found["is_dirty"] is expected  # in the outer one a submodule has been added
    assert not repository.marker.exists()


def test_a_git_file_that_leads_to_a_strangers_folder_runs_nothing(
    repository: Repository, tmp_path: Path
) -> None:
    clean(repository)
    project = tmp_path / "project"
    project.mkdir()
    (project / ".git").write_text(f"gitdir: {repository.root / '.git'}\n")
    (project / "file").write_text("two\n")
    found = git_state(project)
    assert found is not None
    assert (found["commit"], found["is_dirty"]) == (repository.commit, None)
    assert not repository.marker.exists()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("kind", [pipe, endless, huge])
@pytest.mark.parametrize(
    "name", [".git", ".git/HEAD", ".git/config", ".git/refs/heads/work",
             ".git/commondir"]
)  # fmt: skip
def test_no_file_is_waited_for_or_read_without_end(
    repository: Repository, name: str, kind: Callable[[Path], None]
) -> None:
    path = repository.root / name
    if path.is_dir():
        path.rename(repository.root / "away")
    path.unlink(missing_ok=True)
    kind(path)
    begun = time.monotonic()
    found = git_state(repository.root)
    assert found is None or found["is_dirty"] is None
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", [".gitattributes", ".git/index", ".git/packed-refs"])
def test_a_pipe_that_git_itself_opens_is_given_up(
    repository: Repository, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread waits for it, and no launch."""
    monkeypatch.setattr(provenance, "GIT_S", 1)
    (repository.root / name).unlink(missing_ok=True)
    os.mkfifo(repository.root / name)
    found = git_state(repository.root)
    assert found is not None
    assert (found["commit"], found["is_dirty"]) == (repository.commit, None)


@pytest.mark.parametrize(
    "head", ["", "nothing", "ref: ../../file", "ref: refs/heads/../../config", "ref: /etc/passwd",
             "ref: refs/heads/.invalid", "ref: refs/heads/a\x1b[31m", "\udcff"]
)  # fmt: skip
def test_a_head_that_names_nothing_of_git_is_not_known(repository: Repository, head: str) -> None:
    (repository.root / ".git" / "HEAD").write_text(head, errors="surrogateescape")
    assert git_state(repository.root) is None


def test_a_branch_that_names_itself_ends(repository: Repository) -> None:
    (repository.root / ".git" / "refs" / "heads" / "work").write_text("ref: refs/heads/work\n")
    folders = GitFolders.around(repository.root)
    assert folders is not None
    assert folders.head() == Head(None, "work")


def test_packed_branches_and_old_links_are_known(repository: Repository) -> None:
    git(repository.root, "branch", "workshop")
    git(repository.root, "pack-refs", "--all")
    assert not (repository.root / ".git" / "refs" / "heads" / "work").exists()
    head = repository.root / ".git" / "HEAD"
    folders = GitFolders.around(repository.root)
    assert folders is not None
    assert folders.head() == Head(repository.commit, "work")
    head.unlink()
    head.symlink_to("refs/heads/workshop")
    assert folders.head() == Head(repository.commit, "workshop")


# Whose it is.


@pytest.mark.skipif(os.getuid() != 0, reason="only an administrator gives files away")
@pytest.mark.parametrize("path", [".", ".git", ".git/config"])
def test_in_a_repository_of_another_user_no_git_is_asked(
    repository: Repository, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where git is told that all folders are safe."""
    config = repository.root.parent / "gitconfig"
    config.write_text("[safe]\ndirectory = *\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    os.chown(repository.root / path, 12345, 12345)
    asked: list[object] = []
    monkeypatch.setattr(provenance, "_asked", lambda *question: asked.append(question) or b"")
    found = git_state(repository.root)
    assert found is not None
    assert (found["commit"], found["is_dirty"]) == (repository.commit, None)
    assert asked == []


def test_in_a_repository_that_others_can_change_no_git_is_asked(repository: Repository) -> None:
    """They could name a program after its configuration was looked at."""
    (repository.root / ".git").chmod(0o777)
    found = git_state(repository.root)
    assert found is not None
    assert found["is_dirty"] is None


def test_without_git_commit_and_branch_are_known(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = git_state(repository.root)
    assert found is not None
    assert (found["commit"], found["is_dirty"]) == (repository.commit, None)
