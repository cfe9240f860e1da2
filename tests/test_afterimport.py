"""A function is called with a module as soon as that has been imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ipytaskpersist.afterimport import after_import
from ipytaskpersist.patches import Patches


def test_it_is_called_after_the_import_that_succeeds_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "imported_late.py"
    module.write_text("raise ImportError('not yet')\n")
    seen: list[ModuleType] = []
    patches = Patches()
    after_import({"imported_late": lambda found, _patches: seen.append(found)}, patches)
    try:
        assert importlib.util.find_spec("imported_late") is not None
        with pytest.raises(ImportError, match="not yet"):
            import imported_late
        assert seen == []
        module.write_text("value = 42  # and a size of its own\n")
        importlib.invalidate_caches()
        import imported_late  # type: ignore[import-not-found]

        assert seen == [imported_late]
    finally:
        patches.undo()
        sys.modules.pop("imported_late", None)
    assert not any("afterimport" in type(each).__module__ for each in sys.meta_path[:1])
