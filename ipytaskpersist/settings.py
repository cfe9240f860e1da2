"""Settings: where each value comes from, and what is said when one makes no sense.

Every setting is a trait. ``%config`` goes before the ``pyproject.toml`` next to the notebook, that
before ``ipython_config.py``, and that before the default: what is nearer to the work wins.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import Bool, Enum, Float, Int, List, TraitError
from traitlets.config import Config, Configurable
from traitlets.config.loader import DeferredConfig, LazyConfigValue, PyFileConfigLoader

from ipytaskpersist.errors import InvalidSetting
from ipytaskpersist.identity import notebook_folder
from ipytaskpersist.paths import user_directory
from ipytaskpersist.safetext import legible

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

TABLE = "ipytaskpersist"
NONE = "none"
"""How ``pyproject.toml`` says None, for which TOML has no word."""
SHOWN_CHARACTERS = 60
DEFAULT = "default"
PROGRAM = "program"
COMMAND = "%config"

DIRECTORY, NOTEBOOK = "IPYTASKPERSIST_DIR", "IPYTASKPERSIST_NOTEBOOK"
VARIABLES = {
    DIRECTORY: "The state directory: the store, its archives and backups, and pickled values. "
    "Default: the user's state directory.",
    NOTEBOOK: "The notebook's path, for those in which the setting 'notebook' is empty. In a "
    "terminal: the notebook whose tasks the commands are about. Default: none.",
}
"""The environment variables, and what each means."""

_chosen: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""What was set by ``%config`` in a shell. Kept when the extension is loaded anew."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where settings are given."""

    source: str
    """What `Setting.source` says of them."""
    section: str
    """How messages begin that are about one of them."""
    is_toml: bool = False

    def unknown(self, name: str, known: Mapping[str, Any]) -> InvalidSetting:
        """The error for a name that no setting has."""
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "the verb 'config' lists them"
        return InvalidSetting(f"{self.section} has no setting '{name}'; {hint}")

    def not_of_a_project(self, name: str) -> InvalidSetting:
        """The error for a setting by which a project would decide about the tasks of others."""
        return InvalidSetting(
            f"{self.section} cannot set {name}, which concerns the tasks of all notebooks; set it "
            "in ipython_config.py or with %config"
        )

    def refused(self, name: str, value: Any, trait: Any) -> InvalidSetting:
        """The error for a value that a setting cannot have."""
        given = f": {name} = " if self.is_toml else f".{name} = "
        return InvalidSetting(
            f"{self.section}{given}{self._shown(_harmless(trait, value))} is not allowed; "
            f"it must be {_allowed(trait, self.is_toml)}"
        )

    def _shown(self, value: Any) -> str:
        is_simple = isinstance(value, str | int | float)
        text = json.dumps(value, ensure_ascii=False) if self.is_toml and is_simple else repr(value)
        return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


AT_PROMPT = Place(COMMAND, "BackgroundTasks")
IN_PROGRAM = Place(PROGRAM, "BackgroundTasks")
IN_IPYTHON = Place(
    # A value that %config was given and that was refused is there too when we are loaded again.
    "ipython_config.py",
    "IPython's configuration (ipython_config.py or %config): BackgroundTasks",
)


def _in_file(file: Path) -> Place:
    return Place(f"ipython_config.py ({file})", f"{file}: BackgroundTasks")


def _in_pyproject(file: Path) -> Place:
    return Place(f"pyproject.toml ({file})", f"[tool.{TABLE}] in {file}", is_toml=True)


def _allowed(trait: Any, is_toml: bool) -> str:
    """What a trait takes, in words."""
    none = "" if not trait.allow_none else f' or "{NONE}"' if is_toml else " or None"
    if isinstance(trait, Enum):
        return " or ".join(map(repr, trait.values or ())) + none
    if isinstance(trait, Bool):
        return ("true or false" if is_toml else "True or False") + none
    if isinstance(trait, Int | Float):
        kind = "a whole number" if isinstance(trait, Int) else "a number"
        return kind + ("" if trait.min in (None, -math.inf) else f" of at least {trait.min}") + none
    if isinstance(trait, Places):
        return "a list of places, each 'desktop' or an address such as mailto://…"
    if isinstance(trait, Patterns):
        return "a list of texts, each a pattern of names such as '*_DSN'"
    return f"a text{none}"


class Places(List):  # type: ignore[type-arg]
    """Places where the end of tasks is told. They are not shown with their secrets."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Only texts that have the form of places."""
        found = super().validate(obj, value) or []
        if not found:
            return []
        from ipytaskpersist.places import Place as NotifyPlace
        from ipytaskpersist.places import looks_right

        if not all(isinstance(each, str) and looks_right(each) for each in found):
            raise TraitError("not a list of places")
        return [NotifyPlace(each) for each in found]


class Patterns(List):  # type: ignore[type-arg]
    """Patterns of names."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Only texts that say something."""
        found = super().validate(obj, value) or []
        if not all(isinstance(each, str) and each.strip() for each in found):
            raise TraitError("not a list of patterns")
        return found


def _harmless(trait: Any, value: Any) -> Any:
    """A value as it may be shown."""
    from ipytaskpersist.places import masked

    if not isinstance(trait, Places):
        return value
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list | tuple):
        return [masked(each) if isinstance(each, str) else each for each in value]
    return value


def _is_no_number(value: Any) -> bool:
    """What traitlets takes for a number, and nobody means as one: True is not one day."""
    return isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))


# Files.


def find_pyproject(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest ``pyproject.toml`` that has our table, in a folder or its parents, and the table.

    Raises `InvalidSetting` when it, or one that is nearer and speaks of us, cannot be understood.
    """
    for each in (folder, *folder.parents):
        file = each / "pyproject.toml"
        table = _table(file)
        if table is not None:
            return file, table
    return None


def _table(file: Path) -> dict[str, Any] | None:
    try:
        data = file.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return None
        raise InvalidSetting(f"{file} cannot be read ({error.strerror})") from error
    if TABLE.encode() not in data:
        return None  # whatever is wrong with it is not our concern
    import tomllib

    try:
        document = tomllib.loads(data.decode())
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InvalidSetting(f"{file} is not valid TOML, so it sets nothing ({reason})") from error
    tools = document.get("tool", {})
    table = tools.get(TABLE) if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise InvalidSetting(f"[tool.{TABLE}] in {file} must be a table of settings")
    return table


def _with_paths_from(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """The table with its path where the file means it: beside the file."""
    notebook = table.get("notebook")
    if isinstance(notebook, str) and notebook:
        return {**table, "notebook": str(folder / notebook)}
    return table


def profile_file() -> Path:
    """The configuration of IPython's default profile."""
    named = os.environ.get("IPYTHONDIR")
    folder = Path(named).expanduser() if named else Path.home() / ".ipython"
    return folder / "profile_default" / "ipython_config.py"


def read_profile(file: Path) -> Config:
    """What an ``ipython_config.py`` says. Runs it, but only one that speaks of us.

    Raises `InvalidSetting` when it fails.
    """
    try:
        if "BackgroundTasks" not in file.read_text(encoding="utf-8", errors="replace"):
            return Config()
    except OSError:
        return Config()
    try:
        return PyFileConfigLoader(file.name, str(file.parent)).load_config()
    except Exception as error:  # it is somebody's program, which may do anything
        raise InvalidSetting(
            f"{file} fails, so it sets nothing ({type(error).__name__}: {error})"
        ) from error


# The settings of a manager.


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is now."""

    name: str
    value: Any
    default: Any
    source: str
    """``default``, ``%config``, ``program``, an environment variable, or the file that sets it."""
    help: str

    @property
    def is_trait(self) -> bool:
        """Whether it is set like all others; else it is an environment variable."""
        return self.name not in VARIABLES

    def as_json(self) -> dict[str, Any]:
        """The document of `config --json`."""
        return {
            "name": self.name,
            "value": self.value,
            "default": self.default,
            "source": self.source,
            "help": self.help,
        }


def find_setting(settings: Sequence[Setting], name: str) -> Setting:
    """The one of this name. Raises `InvalidSetting` with the nearest when there is none."""
    by_name = {setting.name: setting for setting in settings}
    if name not in by_name:
        raise AT_PROMPT.unknown(name, by_name)
    return by_name[name]


def _variable(name: str, default: str) -> Setting:
    """An environment variable, as it is in effect."""
    value = os.environ.get(name)
    return Setting(
        name, value or default, default, f"${name}" if value else DEFAULT, VARIABLES[name]
    )


class Configured(Configurable):
    """Reads its traits from every place where they may be set, and remembers which it was.

    A trait's metadata `takes_effect` says when a change takes effect that is made at run time;
    without it the value is read whenever it is needed.
    """

    notebook: Any

    def __init__(self, shell: InteractiveShell | None = None, **options: Any) -> None:
        """`options` are traits, and `parent`, whose configuration is taken over.

        Nothing that is wrong in a file is an error here: `setting_problems` has it.
        """
        self.shell = shell
        self.setting_problems: list[str] = []
        """What is wrong with the settings, one line each. It was left out."""
        self._sources: dict[str, str] = {}
        super().__init__(**options)
        if shell is None:
            self._read_profile()
        self._read_pyproject()
        for name in set(options) & set(self.traits(config=True)):
            self._set(name, options[name], IN_PROGRAM)
        for name, value in _chosen.get(shell, {}).items() if shell is not None else ():
            self._set(name, value, AT_PROMPT)

    # traitlets calls this one for IPython's configuration, and at every change of it.
    def _load_config(self, cfg: Config, section_names: Any = None, traits: Any = None) -> None:
        self._take(self._find_my_config(cfg), IN_IPYTHON)

    def update_config(self, config: Config) -> None:
        """Set what ``%config`` was given. Raises `InvalidSetting`."""
        for name, value in _values(self._find_my_config(config)):
            self._set(name, value, AT_PROMPT)
            if self.shell is not None:
                _chosen.setdefault(self.shell, {})[name] = value
            when = self.traits()[name].metadata.get("takes_effect")
            if when:
                print(f"BackgroundTasks.{name} takes effect {when}", file=sys.stderr)

    def _read_profile(self) -> None:
        try:
            file = profile_file()
            self._take(self._find_my_config(read_profile(file)), _in_file(file))
        except (InvalidSetting, RuntimeError) as error:  # RuntimeError: there is no home folder
            self.setting_problems.append(str(error))

    def _read_pyproject(self) -> None:
        try:
            found = find_pyproject(notebook_folder(self.shell, self.notebook))
        except FileNotFoundError:
            return  # the working directory was deleted
        except InvalidSetting as error:
            self.setting_problems.append(str(error))
            return
        if found is not None:
            file, table = found
            self._take(_with_paths_from(file.parent, table), _in_pyproject(file))

    def _take(self, given: Mapping[str, Any], place: Place) -> None:
        """Set what makes sense, and keep in mind what is wrong with the rest."""
        for name, value in _values(given):
            try:
                self._set(name, value, place)
            except InvalidSetting as error:
                self.setting_problems.append(str(error))

    def _set(self, name: str, value: Any, place: Place) -> None:
        traits = self.traits(config=True)
        if name not in traits:
            raise place.unknown(name, traits)
        trait = traits[name]
        if place.is_toml and trait.metadata.get("concerns_all"):
            raise place.not_of_a_project(name)
        if place.is_toml and trait.allow_none and value == NONE:
            value = None
        try:
            if isinstance(value, DeferredConfig):  # a text from IPython's command line
                value = value.get_value(trait)
            if isinstance(trait, Int | Float) and _is_no_number(value):
                raise place.refused(name, value, trait)
            setattr(self, name, value)
        except (TraitError, ValueError, TypeError):
            raise place.refused(name, value, trait) from None
        self._sources[name] = place.source

    # Telling.

    def say_setting_problems(self) -> None:
        """Say on standard error what is wrong with the settings."""
        for problem in self.setting_problems:
            print(legible(problem), file=sys.stderr)

    def settings(self) -> list[Setting]:
        """Every setting as it is now, and at last the environment variables."""
        traits = [self._setting(name) for name in sorted(self.traits(config=True))]
        return [*traits, _variable(DIRECTORY, str(user_directory())), _variable(NOTEBOOK, "")]

    def _setting(self, name: str) -> Setting:
        trait, value = self.traits()[name], getattr(self, name)
        default = trait.default()
        source = self._sources.get(name, DEFAULT if value == default else PROGRAM)
        return Setting(name, _harmless(trait, value), default, source, str(trait.help))


def _values(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is set in a section: not what is a section of it, nor what was only looked at."""
    for name, value in given.items():
        if not isinstance(value, Config | LazyConfigValue):
            yield name, value
