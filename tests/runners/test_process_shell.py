"""Libraries find in a process the shell that they find in the notebook."""

from __future__ import annotations

import json

import pytest
from kernels import NotebookKernel
from processcells import Notebook

ASKED = """
import os, sys
def decisions():
    from IPython import get_ipython
    import tqdm.autonotebook
    from pandas.io.formats.console import in_ipython_frontend
    from rich.console import Console
    ip = get_ipython()
    kind = type(ip)
    plotly = kind.__name__ == 'ZMQInteractiveShell' and kind.__module__.startswith('ipykernel.')
    return [
        str(kind), plotly, ip.has_trait('kernel'), 'IPKernelApp' in ip.config,
        Console().is_jupyter, tqdm.autonotebook.tqdm.__name__, in_ipython_frontend(),
        'ipykernel' in sys.modules, 'JPY_PARENT_PID' in os.environ, hasattr(ip, 'kernel'),
        ip.display_formatter.active_types, str(ip).split(' object')[0],
    ]
import warnings
warnings.simplefilter('ignore')
"""


def test_what_libraries_ask_is_answered_as_in_the_notebook(kernel: NotebookKernel) -> None:
    notebook = Notebook(kernel)
    notebook.cell(ASKED)
    here = notebook.cell("print(decisions())")
    assert notebook.printed("print(decisions())") == here
    notebook.cell("%%background --thread\nprint(decisions())")
    notebook.cell("%bg_wait")
    assert notebook.cell("%bg_output --raw") == here


def test_plotly_stores_what_it_sends_in_a_cell(kernel: NotebookKernel) -> None:
    """By its own rule, of which a figure of a process once was 4.8 MB."""
    pytest.importorskip("plotly")
    notebook = Notebook(kernel)
    notebook.cell("import plotly.graph_objects as go\nfigure = go.Figure([go.Bar(y=[1, 2])])")
    shown = notebook.foreground("figure.show()").outputs
    notebook.process("figure.show()")
    stored = json.loads(notebook.cell("%bg_output --json"))
    assert [each["data"].keys() for each in stored] == [each["data"].keys() for each in shown]
    assert len(json.dumps(stored)) < 2 * len(json.dumps(shown)) + 1000
