"""The documentation is true: every link leads somewhere, every example runs, nothing is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kernels import NotebookKernel
from pages import (
    ROOT,
    RUN,
    Block,
    Restart,
    anchors,
    blocks,
    is_shown,
    links,
    loosely,
    name_of,
    pages,
    steps,
)
from programs import environment

import ipytaskpersist
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.base.vocabulary import VERBS
from ipytaskpersist.commands import definition
from ipytaskpersist.commands.launching import background
from ipytaskpersist.session.manager import BackgroundTasks

DOCS = ROOT / "docs"
WINGS = sorted(
    page.name
    for page in Path(ipytaskpersist.__file__).parent.iterdir()
    if (page / "__init__.py").exists()
)
REFERENCE = DOCS / "reference.md"
COMMANDS = DOCS / "commands.md"
GLOSSARY = DOCS / "glossary.md"
PAGES = {name_of(page): page for page in pages()}
WRITTEN = [page for page in PAGES.values() if page != REFERENCE]
"""The pages that are written by hand."""
RUNNING = {
    name: page
    for name, page in PAGES.items()
    if page != REFERENCE
    and any(block.language in RUN and not block.not_run for block in blocks(page))
}

LANGUAGES = {*RUN, "html", "ini", "json", "markdown", "text", "toml", "yaml"}
"""Those that are run, and those in which there is nothing to run."""
NOT_RUN_AT_MOST = 21
COMMAND_TIMEOUT_S = 60


# The generated reference.


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_definitions_give(generator: Any) -> None:
    written = REFERENCE.read_text(encoding="utf-8")
    assert written == generator.reference(), "run `make docs`"


@pytest.mark.parametrize("wing", WINGS)
def test_the_page_of_a_wing_names_its_modules_as_they_are(generator: Any, wing: str) -> None:
    page = DOCS / "internals" / f"{wing}.md"
    written = page.read_text(encoding="utf-8")
    assert f"]({page.relative_to(DOCS)})" in (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert "| module |" in written
    assert written == generator.wing_page(page), "run `make docs`"


def test_the_reference_names_every_command_option_setting_and_state(generator: Any) -> None:
    text = generator.reference()
    for verb, command in definition.every_verb().items():
        assert f"### {verb}\n" in text
        assert [name for name in long_options(command) if f"`{name}" not in text] == []
    for name in BackgroundTasks.class_traits(config=True):
        assert f"### {name}\n" in text
    assert [state for state in TaskState if f"| `{state.value}` |" not in text] == []


def test_every_environment_variable_of_the_code_is_explained(generator: Any) -> None:
    sources = (ROOT / "ipytaskpersist").rglob("*.py")
    used = {
        name
        for path in sources
        for name in re.findall(r"[\"'$](IPYTASKPERSIST_[A-Z_]+)", path.read_text(encoding="utf-8"))
    }
    assert used == set(generator.VARIABLES)


def long_options(command: Any) -> list[str]:
    names = [name for parameter in command.params for name in parameter.opts]
    return [name for name in names if name.startswith("--")]


# What is written by hand.


def all_of(written: list[Path]) -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in written)


@pytest.mark.parametrize("option", long_options(background))
def test_every_option_of_a_launch_is_documented_by_hand(option: str) -> None:
    assert f"`{option}" in COMMANDS.read_text(encoding="utf-8")


@pytest.mark.parametrize("trait", BackgroundTasks.class_traits(config=True))
def test_every_setting_is_documented_by_hand(trait: str) -> None:
    assert f"`{trait}`" in all_of([page for page in WRITTEN if DOCS in page.parents])


@pytest.mark.parametrize("state", list(TaskState))
def test_every_state_is_in_the_glossary(state: TaskState) -> None:
    assert f"`{state.value}`" in GLOSSARY.read_text(encoding="utf-8")


def test_every_file_of_the_state_directory_is_in_its_table(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    text = (DOCS / "internals" / "store.md").read_text(encoding="utf-8")
    properties = [name for name, kind in vars(StateDirectory).items() if isinstance(kind, property)]
    files = [value for name in properties if isinstance(value := getattr(directory, name), Path)]
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    assert "tasks.db" in names
    assert [name for name in names if f"`{name}" not in text] == []


def test_every_page_can_be_reached_from_the_index() -> None:
    reached: set[Path] = set()
    ahead = [DOCS / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        targets = {(page.parent / link.split("#")[0]).resolve() for link in links(page)}
        ahead += targets.intersection(PAGES.values()) - reached
    assert [name for name, page in PAGES.items() if page not in reached] == []


# Links.


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    dead = [link for link in links(PAGES[name]) if not leads_somewhere(PAGES[name], link)]
    assert dead == []


def leads_somewhere(page: Path, link: str) -> bool:
    """A page or anchor of the project must be there; an address of another must be one."""
    if re.match(r"[a-z]+:", link):
        parts = urlsplit(link)
        return parts.scheme in {"http", "https"} and "." in parts.netloc
    path, _hash, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or ROOT not in [target, *target.parents]:
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(target))


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("commands.md", True),
        ("commands.md#naming-a-task", True),
        ("#the-words", True),
        ("../README.md#what-survives-what", True),
        ("https://sqlite.org/wal.html#walresetbug", True),
        ("missing.md", False),
        ("commands.md#missing", False),
        ("#missing", False),
        ("../../elsewhere.md", False),
        ("https://nowhere", False),
        ("file:///etc/passwd", False),
    ],
)
def test_a_dead_link_is_found(link: str, leads: bool) -> None:
    assert leads_somewhere(DOCS / "architecture.md", link) is leads


# Examples.

PAGE = """\
Some words. <!-- of no meaning -->

<!-- before:
given = 1
-->

```python
given
```

<!-- shows -->
```text
1
```

<!-- restart -->

1. In a list:

   <!-- not run: no network -->
   ```console
   $ curl example.org
   ```

<!-- needs: search -->

A passage about search.

<!-- needs: search, tag -->
<!-- fails -->
```python
%bg_search
```
"""


def test_a_page_is_read_in_order_with_what_its_comments_say(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    assert list(steps(page)) == [
        Block("python", "given = 1\n", 3),
        Block("python", "given\n", 7),
        Block("text", "1\n", 12, shows=True),
        Restart(),
        Block("console", "$ curl example.org\n", 21, not_run="no network"),
        Block("python", "%bg_search\n", 31, fails=True, needs=("search", "tag")),
    ]


def test_a_comment_that_stands_before_no_block_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- shows -->\n\nWords.\n\n```text\n1\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="shows"):
        list(steps(page))


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_its_language(name: str) -> None:
    strange = [f"line {b.line}: {b.language!r}" for b in blocks(PAGES[name])
               if b.language not in LANGUAGES]  # fmt: skip
    assert strange == []


def test_few_examples_are_not_run_and_each_says_why() -> None:
    given = [(name, block) for name, page in PAGES.items() for block in blocks(page)]
    not_run = Counter(block.not_run for _name, block in given if block.not_run)
    assert sum(not_run.values()) <= NOT_RUN_AT_MOST, not_run
    assert [f"{name}, line {b.line}" for name, b in given if b.needs and not b.needs[0]] == []


class Reader:
    """Does what a page says, with one kernel, in a folder of its own."""

    def __init__(self, kernel: NotebookKernel, state_dir: Path) -> None:
        self.kernel = kernel
        self.cwd = kernel.cwd
        self.shell_environment = environment(
            state_dir,
            {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "COLUMNS": "100",
                "HOME": str(kernel.folder / "home"),
            },
        )
        self.shown = ""
        """What the last block has shown."""

    def do(self, step: Block | Restart) -> None:
        if isinstance(step, Restart):
            self.kernel.restart()
        elif step.not_run or missing(step):
            return
        elif step.file:
            self.write(self.cwd / step.file, step)
        elif step.language == "text" and step.shows:
            self.check_shown(step.text, self.shown)
        elif step.language in RUN:
            getattr(self, f"run_{step.language}")(step)

    def check_shown(self, expected: str, shown: str) -> None:
        if not is_shown(expected, shown):
            raise AssertionError(
                f"the page shows:\n{loosely(expected)}\n\nreally shown:\n{loosely(shown)}"
            )

    def write(self, path: Path, block: Block) -> None:
        if block.language == "python":
            compile(block.text, str(path), "exec")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")

    def run_python(self, block: Block) -> None:
        self.shown = self.cell(block.text, block.fails)

    def run_ipython(self, block: Block) -> None:
        for _number, code, expected in split(block.text, r"^In \[\d+\]: "):
            shown = self.cell(code, block.fails)
            if block.shows:
                self.check_shown(expected, shown)

    def run_console(self, block: Block) -> None:
        for _prompt, command, expected in split(block.text, r"^\$ "):
            shown = self.command(command, block.fails)
            if block.shows:
                self.check_shown(expected, shown)

    def cell(self, source: str, fails: bool) -> str:
        cell = self.kernel.run(source, check=not fails)
        assert not fails or cell.error, f"this was to fail and did not:\n{source}"
        return "".join(map(as_text, cell.outputs))

    def command(self, line: str, fails: bool) -> str:
        ended = subprocess.run(
            ["bash", "-c", line], cwd=self.cwd, env=self.shell_environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=COMMAND_TIMEOUT_S, encoding="utf-8", check=False,
        )  # fmt: skip
        assert (ended.returncode != 0) is fails, f"$ {line}\n{ended.stdout}"
        return ended.stdout


def as_text(output: Any) -> str:
    """An output as a front end without pictures shows it."""
    if output.output_type == "stream":
        return str(output.text)
    return str(output.get("data", {}).get("text/plain", "")) + "\n"


def missing(block: Block) -> set[str]:
    return set(block.needs) - set(VERBS)


def split(text: str, prompt: str) -> Iterator[tuple[str, str, str]]:
    """Each line that begins with a prompt: the prompt, the rest of it, and the lines below."""
    parts = re.split(rf"({prompt})", text, flags=re.MULTILINE)
    for mark, rest in zip(parts[1::2], parts[2::2], strict=True):
        command, _newline, below = rest.partition("\n")
        yield mark, command, below


@pytest.mark.skipif(sys.platform == "win32", reason="the examples are for a POSIX shell")
@pytest.mark.parametrize("name", RUNNING)
def test_every_example_of_a_page_runs(
    name: str, make_kernel: Callable[..., NotebookKernel], state_dir: Path
) -> None:
    reader = Reader(make_kernel(load=False, notebook="analysis.ipynb"), state_dir)
    for step in steps(RUNNING[name]):
        try:
            reader.do(step)
        except AssertionError as error:
            place = f"line {step.line}" if isinstance(step, Block) else "a restart"
            pytest.fail(f"{name}, {place}: {error}", pytrace=False)


@pytest.mark.parametrize(
    ("expected", "shown", "same"),
    [
        ("1  train  ✓ completed  0:01", "1 train ✓ completed 1:02:03", True),
        ("session 41aab0e2: 3 tasks", "session deadbeef: 3 tasks", True),
        ("first\n…\nlast", "first\na\nb\nlast", True),
        ("session 41aab0e2: 3 tasks", "session deadbeef: 2 tasks", False),
        ("1  train  ✓ completed", "1  train  ✕ failed", False),
        ("first", "first\nand more", False),
    ],
)
def test_what_a_page_shows_is_compared_but_for_times_and_ids(
    expected: str, shown: str, same: bool
) -> None:
    assert is_shown(expected, shown) is same
