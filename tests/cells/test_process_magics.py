"""The magics, aliases and extensions of a notebook are there in its processes, or say why not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernels import NotebookKernel
from processcells import Notebook

NOTEBOOK = """
import threading
from IPython.core.magic import (
    Magics, cell_magic, line_magic, magics_class, needs_local_scope, register_cell_magic,
    register_line_cell_magic, register_line_magic,
)
factor, lock = 3, threading.Lock()
@register_line_magic
def thrice(line):
    return int(line) * factor
@register_cell_magic
def shout(line, cell):
    print(cell.strip().upper() + line)
@register_line_cell_magic
def both(line, cell=None):
    print('both', line, cell)
@needs_local_scope
def scoped(line, local_ns=None):
    print(sorted(name for name in local_ns if name == line))
get_ipython().register_magic_function(scoped)
@register_line_magic
def locked(line):
    with lock:
        pass
@register_line_magic
def pwd(line):
    with lock:
        return 'not the folder'
@magics_class
class Mine(Magics):
    def __init__(self, shell):
        super().__init__(shell)
        self.count = 0
    @line_magic
    def counted(self, line):
        self.count += 1
        return self.count
    @cell_magic
    def runs(self, line, cell):
        print(self.shell.magics_manager.registry['Mine'] is self)
        self.shell.run_cell(cell)
get_ipython().register_magics(Mine)
%alias greet echo hello %s
%alias_magic tripled thrice
%load_ext autoreload
%autoreload 2
%load_ext itsown
%load_ext onlyhere
def uses_a_magic():
    value = %thrice 5
    return value
%counted
"""
EXTENSION = """
print('is loaded')
def load_ipython_extension(shell):
    shell.register_magic_function(lambda line: print('of an extension', line), 'line', 'extended')
    shell.display_formatter.formatters['text/plain'].for_type(complex, lambda c, p, _: p.text('C'))
"""
ONLY_HERE = """
from IPython import get_ipython
if get_ipython().kernel is None:
    raise ImportError('not in a process')
def load_ipython_extension(shell):
    shell.register_magic_function(lambda line: None, 'line', 'absent')
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with NotebookKernel(tmp_path_factory.mktemp("magics")) as kernel:
        (kernel.cwd / "itsown.py").write_text(EXTENSION)
        (kernel.cwd / "onlyhere.py").write_text(ONLY_HERE)
        kernel.run("%load_ext ipytaskpersist")
        kernel.run(NOTEBOOK)
        yield Notebook(kernel)


def test_magics_aliases_and_extensions_are_there(notebook: Notebook) -> None:
    printed = notebook.printed(
        "value = %thrice 4\nprint(value)\nprint(uses_a_magic())\n%both here\n%greet you\n"
        "%extended it\n%tripled 2\nprint(get_ipython().run_line_magic('counted', ''))\n"
        "%scoped factor\nget_ipython().run_cell_magic('shout', '!', 'loud')\n"
        "get_ipython().run_cell_magic('runs', '', 'print(2)')\n"
        "reloader = get_ipython().magics_manager.registry['AutoreloadMagics']._reloader\n"
        "print(reloader.enabled, reloader.check_all)\n%autoreload 0\n%store factor\ndisplay(1j)\n"
        "factor"
    ).replace("\r", "")
    # An extension that cannot be loaded is named; what another one prints is none of the cell's.
    said, *lines = printed.splitlines()
    assert said.startswith("the notebook's extension onlyhere is not loaded here (ImportError")
    assert lines[:10] == [
        *("12", "15", "both here None", "hello you", "of an extension it"),
        *("2", "['factor']", "LOUD!", "True", "2"),
    ]
    assert lines[10:12] == ["True True", "Stored 'factor' (int)"]
    assert notebook.cell("%bg_output").rstrip().endswith("C3")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("%locked", "%locked of the notebook is not in this process: TypeError: cannot pickle"),
        # It replaces one of IPython's, which is not run in its place.
        ("%pwd", "%pwd of the notebook is not in this process: TypeError: cannot pickle"),
        ("%absent", "%absent of the notebook is not in this process: no extension"),
        ("%load_ext ipytaskpersist\n%bg_list", "%bg_list is for cells of the notebook"),
        ("get_ipython().run_cell_magic('background', '', '1')", "%%background is for cells"),
        ("get_ipython().run_line_magic('bg', 'list')", "%bg is for cells"),
    ],
)
def test_what_is_not_there_says_so_in_one_line(notebook: Notebook, cell: str, said: str) -> None:
    *_extension, line = notebook.printed(cell).splitlines()
    assert line.startswith(f"UsageError: {said}")
