"""A function is called with a module as soon as that has been imported; imports go on as ever."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from kernels import NotebookKernel

from ipytaskpersist.base.import_hooks import after_import
from ipytaskpersist.base.patches import Patches

NAME = "imported_late"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module that nothing has imported, in a package as well as beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / f"{NAME}.py"
    sys.modules.pop(NAME, None)


@pytest.fixture
def patches() -> Iterator[Patches]:
    made = Patches()
    yield made
    made.undo()
    assert not any("afterimport" in type(each).__module__ for each in sys.meta_path)


def test_it_is_called_after_the_import_that_succeeds_and_only_then(
    module: Path, patches: Patches
) -> None:
    module.write_text("raise ImportError('not yet')\n")
    seen: list[ModuleType] = []
    after_import({NAME: lambda found, _patches: seen.append(found)}, patches)
    assert importlib.util.find_spec(NAME) is not None
    with pytest.raises(ImportError, match="not yet"):
        importlib.import_module(NAME)
    assert seen == []
    module.write_text("value = 42  # and a size of its own\n")
    importlib.invalidate_caches()
    assert seen == [importlib.import_module(NAME)]


def test_it_is_called_again_after_a_reload_and_after_another_import(
    module: Path, patches: Patches
) -> None:
    module.write_text("value = 1\n")
    first = importlib.import_module(NAME)
    seen: list[ModuleType] = []
    after_import({NAME: lambda found, _patches: seen.append(found)}, patches)
    importlib.reload(first)
    del sys.modules[NAME]
    again = importlib.import_module(NAME)
    assert again is not first
    assert seen == [first, first, again]


def test_a_module_that_another_thread_is_importing_is_waited_for(
    module: Path, patches: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "begun_for_test", begun, raising=False)
    monkeypatch.setattr(threading, "may_end_for_test", may_end, raising=False)
    module.write_text(
        "import threading\n"
        "threading.begun_for_test.set()\n"
        "assert threading.may_end_for_test.wait(60)\n"
        "value = 42\n"
    )
    seen: list[int] = []
    importing = threading.Thread(target=importlib.import_module, args=(NAME,))
    importing.start()
    assert begun.wait(60)
    threading.Timer(0.05, may_end.set).start()
    after_import({NAME: lambda found, _patches: seen.append(found.value)}, patches)
    importing.join()
    assert seen == [42]


IMPORTS = (
    "matplotlib.pyplot",
    "matplotlib._pylab_helpers",
    "matplotlib_inline.backend_inline",
    "tqdm.notebook",
    "tqdm.auto",
)

PROGRAM = """
import faulthandler, importlib, sys, threading
faulthandler.dump_traceback_later(45, exit=True)
from IPython.core.interactiveshell import InteractiveShell
from ipytaskpersist.capture import figures, progress
from ipytaskpersist.base.patches import Patches

patches = Patches()
figures.install(InteractiveShell.instance(), patches)
progress.install(patches)
failures = []
together = threading.Barrier(2)

def run(name):
    together.wait()
    try:
        importlib.import_module(name)
    except BaseException as error:
        failures.append(f"{name}: {error!r}")

threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in sys.argv[1:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
print("imported")
"""


@pytest.mark.parametrize("pair", [*itertools.permutations(IMPORTS, 2)], ids=" + ".join)
def test_two_imports_at_once_never_wait_for_each_other(pair: tuple[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *pair], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "imported\n", ended.stderr


@pytest.mark.parametrize(
    ("background", "foreground"),
    [
        ("%matplotlib inline", "import matplotlib.pyplot as plt"),
        ("import matplotlib.pyplot as plt", "%matplotlib inline"),
        ("import tqdm", "import tqdm.notebook"),
        ("import pandas.plotting; pandas.Series([1]).plot()", "import matplotlib.pyplot as plt"),
    ],
)
def test_a_cell_in_the_background_and_one_in_the_foreground_import_at_once(
    background: str, foreground: str, tmp_path: Path
) -> None:
    with NotebookKernel(tmp_path / "state") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        kernel.run("%background 1\n%bg_wait")
        launched = kernel.start(f"%%background\n{background}")
        ran = kernel.start(foreground)
        launched.wait()
        ran.wait(timeout=60)
        assert "completed" in kernel.run("%bg_wait --timeout 60").text
