"""Read and write the settings that libraries keep for a process or for a thread.

`LIBRARIES` has an entry for each supported library, by the module that holds its settings.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.base.redaction import is_secret
from ipytaskpersist.isolation import random_states

Settings = dict[str, Any]
GONE = "<not set>"
"""Stands for a missing setting, such as an unset environment variable."""


@dataclass(frozen=True, slots=True)
class Library:
    """How the settings of a library are read and written."""

    shown: str
    """Name of the library in messages."""
    read: Callable[[Any], Settings]
    """Returns the settings, given the module."""
    write: Callable[[Any, Settings], None]
    """Changes some of the settings."""
    is_of_thread: bool = False
    """Whether the settings are kept for each thread rather than for the process."""
    is_added_to: bool = False
    """Whether the settings are lists to which both sides add entries."""
    may_be_new: bool = False
    """Whether a process may be given settings that it does not have yet."""
    is_quiet: bool = False
    """Whether nothing is said of its settings: they change with everything that is drawn."""


def _read_pandas(pandas: Any) -> Settings:
    return _flat(object.__getattribute__(pandas.options, "d"))


def _flat(options: Mapping[str, Any], before: str = "") -> Settings:
    found: Settings = {}
    for name, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


def _write_pandas(pandas: Any, settings: Settings) -> None:
    for name, value in settings.items():
        pandas.set_option(name, value)


OF_A_PROCESS = ("backend", "backend_fallback", "interactive", "toolbar")
"""matplotlib settings about where figures are shown, which differ between processes."""


def _read_matplotlib(matplotlib: Any) -> Settings:
    # Copy first, because reading the backend from the original would choose one.
    settings = dict(matplotlib.rcParams.copy())
    return {name: value for name, value in settings.items() if name not in OF_A_PROCESS}


def _write_matplotlib(matplotlib: Any, settings: Settings) -> None:
    matplotlib.rcParams.update(settings)


INLINE = ("figure_formats", "print_figure_kwargs", "close_figures", "rc")


def _inline(module: Any) -> Any:
    """Return the backend's settings object, which may exist before the backend does."""
    shell = sys.modules["IPython.core.getipython"].get_ipython()
    return module.InlineBackend.instance(parent=shell)


def _read_inline(module: Any) -> Settings:
    backend = _inline(module)
    return {name: getattr(backend, name) for name in INLINE}


def _write_inline(module: Any, settings: Settings) -> None:
    for name, value in settings.items():
        setattr(_inline(module), name, value)


def _read_numpy(numpy: Any) -> Settings:
    return {**numpy.get_printoptions(), **{f"err.{k}": v for k, v in numpy.geterr().items()}}


def _write_numpy(numpy: Any, settings: Settings) -> None:
    errors = {name[4:]: value for name, value in settings.items() if name.startswith("err.")}
    printing = {name: value for name, value in settings.items() if not name.startswith("err.")}
    numpy.seterr(**errors)
    if printing:
        numpy.set_printoptions(**printing)


DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def _read_decimal(decimal: Any) -> Settings:
    context = decimal.getcontext()
    traps = {signal for signal, is_trapped in context.traps.items() if is_trapped}
    return {**{name: getattr(context, name) for name in DECIMAL}, "traps": traps}


def _write_decimal(decimal: Any, settings: Settings) -> None:
    context = decimal.getcontext().copy()
    for name, value in settings.items():
        if name == "traps":
            context.traps.update({signal: signal in value for signal in context.traps})
        else:
            setattr(context, name, value)
    decimal.setcontext(context)


def _read_sklearn(sklearn: Any) -> Settings:
    settings: Settings = sklearn.get_config()
    return settings


def _write_sklearn(sklearn: Any, settings: Settings) -> None:
    sklearn.set_config(**settings)


def _read_ipython(module: Any) -> Settings:
    shell = module.get_ipython()
    text = shell.display_formatter.formatters["text/plain"]
    return {
        "ast_node_interactivity": shell.ast_node_interactivity,
        "xmode": shell.InteractiveTB.mode,
        "precision": text.float_precision,
        "pprint": text.pprint,
        **_configured(shell.config),
    }


def _configured(config: Mapping[str, Any]) -> Settings:
    """Return settings from ``%config`` and configuration files, except possible secrets."""
    return {
        f"{section}.{name}": value
        for section, settings in config.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
        if name != "notify" and not is_secret(name)
    }


def _write_ipython(module: Any, settings: Settings) -> None:
    shell = module.get_ipython()
    text = shell.display_formatter.formatters["text/plain"]
    for name, value in settings.items():
        if "." in name:
            _configure(shell, name, value)
        elif name == "ast_node_interactivity":
            shell.ast_node_interactivity = value
        elif name == "xmode":
            shell.InteractiveTB.set_mode(mode=value)
        else:
            setattr(text, {"precision": "float_precision"}.get(name, name), value)


def _configure(shell: Any, trait: str, value: Any) -> None:
    """Set ``Class.trait`` as ``%config`` does, for present and future instances."""
    from traitlets.config import Config

    section, _, name = trait.partition(".")
    change = Config({section: {name: value}})
    for configurable in shell.configurables:
        configurable.update_config(change)


def _read_warnings(warnings: Any) -> Settings:
    return {"filters": list(warnings.filters)}


def _write_warnings(warnings: Any, settings: Settings) -> None:
    warnings.filters[:] = settings["filters"]
    warnings._filters_mutated()


def _read_path(_sys: Any) -> Settings:
    return {"path": list(sys.path)}


def _write_path(_sys: Any, settings: Settings) -> None:
    sys.path[:] = settings["path"]


def _read_environment(_os: Any) -> Settings:
    """Return the environment. A secret is replaced by a hash, which only shows a change."""
    return {name: hash(value) if is_secret(name) else value for name, value in os.environ.items()}


def _write_environment(_os: Any, settings: Settings) -> None:
    for name, value in settings.items():
        if value == GONE:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "TZ" in settings:
        time.tzset()


def _read_logging(logging: Any) -> Settings:
    loggers = logging.root.manager.loggerDict.items()
    levels = {name: getattr(logger, "level", 0) for name, logger in loggers}
    named = {name: level for name, level in levels.items() if level}
    return {"root": logging.root.level, **named}


def _write_logging(logging: Any, settings: Settings) -> None:
    for name, level in settings.items():
        logger = logging.root if name == "root" else logging.getLogger(name)
        logger.setLevel(0 if level == GONE else level)


LIBRARIES = {
    "pandas": Library("pandas", _read_pandas, _write_pandas),
    "matplotlib": Library("matplotlib", _read_matplotlib, _write_matplotlib),
    "matplotlib_inline.config": Library("InlineBackend", _read_inline, _write_inline),
    "numpy": Library("numpy", _read_numpy, _write_numpy),
    "decimal": Library("decimal", _read_decimal, _write_decimal),
    "sklearn": Library("scikit-learn", _read_sklearn, _write_sklearn, is_of_thread=True),
    "IPython.core.getipython": Library("IPython", _read_ipython, _write_ipython),
    "warnings": Library("warnings", _read_warnings, _write_warnings, is_added_to=True),
    "logging": Library("logging", _read_logging, _write_logging, may_be_new=True),
    "random": Library(
        "random",
        random_states.read_random,
        random_states.write_random,
        may_be_new=True,
        is_quiet=True,
    ),
    "numpy.random": Library(
        "numpy.random",
        random_states.read_numpy,
        random_states.write_numpy,
        may_be_new=True,
        is_quiet=True,
    ),
    "sys": Library("sys", _read_path, _write_path, is_added_to=True),
    "os": Library("os.environ", _read_environment, _write_environment),
}


def read(name: str) -> Settings:
    """Return the settings of an imported library. Empty if its version stores them differently."""
    try:
        return LIBRARIES[name].read(sys.modules[name])
    except Exception:
        return {}


def write(name: str, settings: Settings) -> None:
    """Change settings of an imported library, as far as its version knows them."""
    for setting, value in settings.items():
        with suppress(Exception):  # an unknown setting must not affect the others
            LIBRARIES[name].write(sys.modules[name], {setting: value})
