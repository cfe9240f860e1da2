"""Settings are found where a person puts them, nearest first; a wrong one is said plainly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from kernels import NotebookKernel
from layout import ROOT
from programs import TIMEOUT_S, Finished, environment, run_python
from shells import own_session, process_of, shell, supervisor

from ipytaskpersist.cells.shell_commands import usual_shell
from ipytaskpersist.session import manager
from ipytaskpersist.session.manager import BackgroundTasks

DOCUMENTATION = ROOT / "docs" / "configuration.md"


@dataclass(frozen=True)
class Project:
    """A project with a notebook, and a person with an IPython profile."""

    root: Path
    state_dir: Path

    @property
    def pyproject(self) -> Path:
        return self.root / "pyproject.toml"

    @property
    def notebook(self) -> Path:
        return self.root / "notebooks" / "analysis.ipynb"

    @property
    def profile(self) -> Path:
        return self.root / "ipython" / "profile_default" / "ipython_config.py"

    def configure(self, *lines: str) -> None:
        self.profile.write_text("\n".join(["c = get_config()", *lines]))

    def table(self, *lines: str) -> None:
        self.pyproject.write_text("\n".join(["[tool.ipytaskpersist]", *lines]))

    def ipython(self, *lines: str, cwd: Path | None = None, **env: str) -> Finished:
        """Run lines in IPython, as a person who types them."""
        script = self.root / "typed.ipy"
        script.write_text("\n".join(lines))
        return self._run("-m", "IPython", "--no-banner", str(script), cwd=cwd, **env)

    def command(self, *arguments: str, **env: str) -> Finished:
        """Run `python -m ipytaskpersist` in the notebook's folder."""
        return self._run("-m", "ipytaskpersist", *arguments, **env)

    def _run(self, *arguments: str, cwd: Path | None = None, **env: str) -> Finished:
        own = {"IPYTHONDIR": str(self.root / "ipython"), **env}
        return subprocess.run(
            [sys.executable, *arguments], cwd=cwd or self.notebook.parent,
            env=environment(self.state_dir, own), stdin=subprocess.DEVNULL, timeout=TIMEOUT_S,
            capture_output=True, text=True, encoding="utf-8", check=False,
        )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, state_dir: Path) -> Project:
    project = Project(tmp_path / "project", state_dir)
    project.notebook.parent.mkdir(parents=True)
    (project.root / ".git").mkdir()
    project.profile.parent.mkdir(parents=True)
    return project


@pytest.fixture
def problems(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What is wrong with the settings, for a program in the notebook's folder."""
    monkeypatch.setenv("IPYTHONDIR", str(project.root / "ipython"))
    monkeypatch.chdir(project.notebook.parent)
    return lambda: BackgroundTasks().setting_problems


def documents(shown: str) -> list[Any]:
    """The JSON documents in a text, one after the other."""
    decoder, found, text = json.JSONDecoder(), [], shown.lstrip()
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:].lstrip()
    return found


def values(shown: str) -> list[tuple[Any, str]]:
    """Value and source, for each document of `config NAME --json`."""
    settings = [setting for document in documents(shown) for setting in document["settings"]]
    return [(setting["value"], setting["source"]) for setting in settings]


# Where they are found.


def test_what_is_nearer_wins(project: Project) -> None:
    """%config goes before pyproject.toml, that before ipython_config.py, that before a default."""
    names = ("keep", "cancel_grace_s", "max_output_bytes", "runner")
    show = [f"%bg_config {name} --json" for name in names]
    project.configure(
        "c.BackgroundTasks.keep = 'mine'",
        *(f"c.BackgroundTasks.{name} = 1" for name in ("cancel_grace_s", "max_output_bytes")),
    )
    project.table("cancel_grace_s = 2", "max_output_bytes = 2")
    shown = project.ipython(
        "%load_ext ipytaskpersist", "%config BackgroundTasks.max_output_bytes = 3", *show
    )
    assert shown.stderr == ""
    said, _, documents = shown.stdout.partition("\n")
    assert said == f"Settings of {project.pyproject}: cancel_grace_s = 2.0, max_output_bytes = 2"
    assert values(documents) == [
        ("mine", "ipython_config.py"),
        (2, f"pyproject.toml ({project.pyproject})"),
        (3, "%config"),
        ("thread", "default"),
    ]


def test_a_kernel_reads_the_project_of_its_notebook(
    project: Project, make_kernel: Callable[..., NotebookKernel]
) -> None:
    """Not that of its working directory."""
    project.table("runner = 'process'")
    kernel = make_kernel(notebook=project.notebook, load=False)
    (kernel.cwd / "pyproject.toml").write_text("[tool.ipytaskpersist]\nrunner = 'thread'")
    kernel.run("%load_ext ipytaskpersist")
    ((value, source),) = values(kernel.run("%bg_config runner --json").stream("stdout"))
    assert (value, source) == ("process", f"pyproject.toml ({project.pyproject})")
    kernel.run("%%background\nx = 1").wait()
    kernel.run("%bg_wait")
    (task,) = documents(kernel.run("%bg_list --json").stream("stdout"))[0]["tasks"]
    assert task["runner"] == "process"


def test_the_nearest_file_with_a_table_counts(project: Project) -> None:
    """One that says nothing of us hides none that is further up; one that does hides it wholly."""
    project.table("cancel_grace_s = 77")
    near = project.notebook.parent / "pyproject.toml"
    near.write_text("[project]\nname = 'other'")
    names = ("cancel_grace_s", "runner")
    assert values(project.command("config", names[0], "--json").stdout)[0][0] == 77
    near.write_text("[tool.ipytaskpersist]\nrunner = 'process'")
    shown = [project.command("config", name, "--json").stdout for name in names]
    assert [values(text)[0][0] for text in shown] == [5, "process"]


def test_programs_read_the_default_profile(project: Project) -> None:
    project.configure("c.BackgroundTasks.keep = 'precious'")
    found = project.command("config", "keep", "--json")
    assert values(found.stdout) == [("precious", f"ipython_config.py ({project.profile})")]


def test_programs_run_no_profile_that_is_not_about_us(project: Project) -> None:
    project.configure("raise SystemExit('this was run')")
    found = project.command("config", "keep", "--json")
    assert (found.stderr, values(found.stdout)) == ("", [("keep", "default")])


def test_a_command_needs_no_ipython(project: Project) -> None:
    """Reading the settings must not make the command line slow."""
    project.configure("c.BackgroundTasks.keep = 'precious'")
    project.table("runner = 'process'")
    ended = run_python(
        "import sys; sys.argv = ['bg', 'list']\n"
        "from ipytaskpersist.__main__ import main\nmain()\n"
        "assert 'traitlets' in sys.modules and 'IPython' not in sys.modules",
        project.state_dir,
        env={"IPYTHONDIR": str(project.root / "ipython")},
        cwd=project.notebook.parent,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_environment_says_where_things_are(project: Project) -> None:
    found = project.command("config", "--json", IPYTASKPERSIST_NOTEBOOK=str(project.notebook))
    settings = {each["name"]: each for each in documents(found.stdout)[0]["settings"]}
    directory = settings["IPYTASKPERSIST_DIR"]
    assert directory["value"] == str(project.state_dir)
    assert directory["source"] == "$IPYTASKPERSIST_DIR"
    assert settings["IPYTASKPERSIST_NOTEBOOK"]["value"] == str(project.notebook)
    assert project.command("config", "IPYTASKPERSIST_NOTEBOOK").stdout.startswith(
        "IPYTASKPERSIST_NOTEBOOK = ''  (default)\n"
    )


def test_none_can_be_said_in_toml(project: Project) -> None:
    project.configure("c.BackgroundTasks.max_output_bytes = 5")
    project.table('max_output_bytes = "none"')
    found = values(project.command("config", "max_output_bytes", "--json").stdout)
    assert found == [(None, f"pyproject.toml ({project.pyproject})")]


def test_a_notebook_is_named_relative_to_the_file(project: Project) -> None:
    project.table('notebook = "notebooks/all.ipynb"')
    found = values(project.command("config", "notebook", "--json").stdout)
    assert found[0][0] == str(project.root / "notebooks" / "all.ipynb")


# What is wrong.

PLACE = "[tool.ipytaskpersist] in {file}"
WRONG = {
    "a value": (
        'runner = "fork"',
        PLACE + ": runner = \"fork\" is not allowed; it must be 'thread' or 'process'",
    ),
    "a number": (
        "cancel_grace_s = -1",
        PLACE + ": cancel_grace_s = -1 is not allowed; it must be a number of at least 0",
    ),
    "a name": (
        "archive_after_day = 3",
        PLACE + " has no setting 'archive_after_day'; did you mean 'archive_after_days'?",
    ),
    "a strange name": (
        "colour = 'blue'",
        PLACE + " has no setting 'colour'; the verb 'config' lists them",
    ),
    "a truth for a number": (
        "max_output_bytes = false",
        PLACE + ": max_output_bytes = false is not allowed; "
        'it must be a whole number of at least 1 or "none"',
    ),
    "no number at all": (
        "cancel_grace_s = nan",
        PLACE + ": cancel_grace_s = NaN is not allowed; it must be a number of at least 0",
    ),
    "a table": (
        "notebook = { tag = 'x' }",
        PLACE + ": notebook = {{'tag': 'x'}} is not allowed; it must be a text",
    ),
    "a number that no store takes": (
        f"cancel_grace_s = 0x{'f' * 400}",
        PLACE + f": cancel_grace_s = {str(int('f' * 400, 16))[:59]}… is not allowed; "
        "it must be a number of at least 0",
    ),
    "a number that Python does not write": (
        f"max_output_bytes = 0x{'f' * 9000}",
        PLACE + ": max_output_bytes = … is not allowed; "
        'it must be a whole number of at least 1 or "none"',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_the_rest_holds(
    case: str, project: Project, problems: Callable[[], list[str]]
) -> None:
    line, expected = WRONG[case]
    project.table(line, "synchronous = 'full'")
    assert problems() == [expected.format(file=project.pyproject)]
    assert BackgroundTasks().synchronous == "full"


def test_a_file_that_is_no_toml_is_said(
    project: Project, problems: Callable[[], list[str]]
) -> None:
    project.pyproject.write_text("[tool.ipytaskpersist\nrunner = 'process'")
    (problem,) = problems()
    assert problem.startswith(f"{project.pyproject} is not valid TOML, so it sets nothing (")
    assert "\n" not in problem


def test_another_projects_broken_file_is_not_our_concern(
    project: Project, problems: Callable[[], list[str]]
) -> None:
    project.pyproject.write_text("[project\nname = 'other'")
    assert problems() == []


def test_something_else_in_the_place_of_the_table_is_said(
    project: Project, problems: Callable[[], list[str]]
) -> None:
    project.pyproject.write_text("[tool]\nipytaskpersist = 3")
    expected = f"[tool.ipytaskpersist] in {project.pyproject} must be a table of settings"
    assert problems() == [expected]


def test_a_profile_that_fails_is_said(project: Project, problems: Callable[[], list[str]]) -> None:
    project.configure("c.BackgroundTasks.keep = undefined")
    assert problems() == [
        f"{project.profile} fails, so it sets nothing (NameError: name 'undefined' is not defined)"
    ]


def test_loading_says_it_once_and_goes_on(project: Project) -> None:
    """Each mistake is one line on standard error; the extension works with all that is right."""
    project.table('runner = "fork"', "cancel_grace_s = 2")
    project.configure("c.BackgroundTasks.auto_resum = True")
    shown = project.ipython(
        "%load_ext ipytaskpersist", "%bg_config cancel_grace_s --json", "%bg_list"
    )
    assert shown.stderr.splitlines() == [
        "IPython's configuration (ipython_config.py or %config): BackgroundTasks has no setting "
        "'auto_resum'; did you mean 'auto_resume'?",
        WRONG["a value"][1].format(file=project.pyproject),
    ]
    assert '"value": 2.0' in shown.stdout
    assert shown.stdout.endswith("no background tasks\n")


def test_a_command_says_it_once_and_goes_on(project: Project) -> None:
    project.table('runner = "fork"')
    listed = project.command("list", "--json")
    assert listed.stderr == WRONG["a value"][1].format(file=project.pyproject) + "\n"
    assert (listed.returncode, json.loads(listed.stdout)["count"]) == (0, 0)


# At run time.


def test_config_refuses_what_makes_no_sense_in_one_line(project: Project) -> None:
    shown = project.ipython(
        "%load_ext ipytaskpersist",
        '%config BackgroundTasks.runner = "fork"',
        "%config BackgroundTasks.runer = 1",
        "%config BackgroundTasks.archive_after_days = True",
        "%bg_config runner --json",
        "print(hasattr(get_ipython()._ipytaskpersist.manager, 'runer'))",
    )
    assert [line.removeprefix("ERROR:root:") for line in shown.stderr.splitlines()] == [
        "BackgroundTasks.runner = 'fork' is not allowed; it must be 'thread' or 'process'",
        "BackgroundTasks has no setting 'runer'; did you mean 'runner'?",
        "BackgroundTasks.archive_after_days = True is not allowed; "
        "it must be a number of at least 0 or None",
    ]
    assert '"value": "thread"' in shown.stdout
    assert shown.stdout.endswith("False\n")


def test_the_verb_config_sets_a_value_as_it_is_typed(project: Project) -> None:
    shown = project.ipython(
        "%load_ext ipytaskpersist", "%bg_config settings_apart pandas numpy",
        "%bg_config max_output_bytes none", "%bg_config cancel_grace_s = 2.5",
        "%reload_ext ipytaskpersist",
        "m = get_ipython()._ipytaskpersist.manager",
        "print(m.settings_apart, m.max_output_bytes, m.cancel_grace_s, m.runner)",
        "%bg_config runner=fork",
    )  # fmt: skip
    said, *_, values = shown.stdout.splitlines()
    assert said.startswith(
        "settings_apart = ['pandas', 'numpy'] in this session; for later ones, write "
        "c.BackgroundTasks.settings_apart = ['pandas', 'numpy'] into "
    )
    assert values == "['pandas', 'numpy'] None 2.5 thread"
    assert "'fork' is not allowed; it must be 'thread' or 'process'" in shown.stderr
    refused = project.command("config", "runner", "process")
    assert refused.returncode == 1
    assert "write c.BackgroundTasks.runner = 'process' into " in refused.stderr


def test_config_finds_the_class_and_shows_its_settings(project: Project) -> None:
    shown = project.ipython("%load_ext ipytaskpersist", "%config", "%config BackgroundTasks")
    assert "    BackgroundTasks\n" in shown.stdout
    assert "BackgroundTasks.cancel_grace_s=<Float>" in shown.stdout


def test_a_change_holds_from_the_next_launch(project: Project) -> None:
    task = ["bg.background('echo $0', shell=True)", "%bg_wait", "%bg_output"]
    shown = project.ipython(
        "%load_ext ipytaskpersist", "import ipytaskpersist as bg", *task,
        "%config BackgroundTasks.shell_path = '/bin/sh'", *task,
    )  # fmt: skip
    assert [line for line in shown.stdout.splitlines() if line.endswith("sh")] == [
        usual_shell(), "/bin/sh"
    ]  # fmt: skip


def test_what_needs_a_reload_says_so_and_holds_after_it(project: Project) -> None:
    """Also where the project says otherwise."""
    project.table('synchronous = "normal"')
    ask = "print(get_ipython()._ipytaskpersist.manager.store.open().database.row(%r))"
    shown = project.ipython(
        "%load_ext ipytaskpersist", "%config BackgroundTasks.synchronous = 'full'",
        "%reload_ext ipytaskpersist", ask % "PRAGMA synchronous", "%bg_config synchronous --json",
    )  # fmt: skip
    expected = "BackgroundTasks.synchronous takes effect with %reload_ext ipytaskpersist\n"
    assert shown.stderr == expected
    assert shown.stdout.startswith("(2,)\n")  # what SQLite calls FULL
    assert values(shown.stdout.partition("\n")[2]) == [("full", "%config")]


def test_a_supervisor_writes_as_its_session_does(project: Project) -> None:
    """What `synchronous = full` promises, it promises for process tasks too."""
    project.profile.write_text("c = get_config()\nc.BackgroundTasks.synchronous = 'full'")
    with pytest.MonkeyPatch.context() as patch, own_session(project.state_dir):
        patch.setenv("IPYTHONDIR", str(project.root / "ipython"))
        patch.setattr(manager, "_current", own := BackgroundTasks())
        process_of(shell("sleep 1000"))
        assert psutil.Process(supervisor().pid).cmdline()[-1] == "full"
        own.close()


# Telling.


def test_the_table_names_every_setting(project: Project) -> None:
    project.table("runner = 'process'")
    lines = project.command("config").stdout.splitlines()
    names = set(BackgroundTasks.class_traits(config=True))
    assert {line.split()[0] for line in lines if line[0].islower()} == names
    (line,) = [line for line in lines if line.startswith("runner ")]
    assert line.split(maxsplit=2)[1:] == ["'process'", f"pyproject.toml ({project.pyproject})"]
    assert lines[-1] == f"Settings of {project.pyproject}: runner = 'process'"


def test_one_setting_is_explained(project: Project) -> None:
    shown = project.command("config", "cancel_grace_s").stdout
    assert shown.startswith("cancel_grace_s = 5.0  (default)\nSeconds between SIGTERM and SIGKILL")


def test_a_name_that_no_setting_has_is_an_error(project: Project) -> None:
    ended = project.command("config", "cancel_grace")
    assert ended.returncode == 1
    assert "did you mean 'cancel_grace_s'?" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", sorted(BackgroundTasks.class_traits(config=True)))
def test_every_setting_explains_itself_here_and_in_the_documentation(name: str) -> None:
    trait = BackgroundTasks.class_traits()[name]
    assert trait.help
    assert f"| `{name}` | " in DOCUMENTATION.read_text(encoding="utf-8")
