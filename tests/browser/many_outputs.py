"""A notebook whose tasks have left much output: 20 small ones, 50 MB of text, 200 figures."""

from __future__ import annotations

from pathlib import Path

import nbformat
from kernels import NotebookKernel

from browser.server import JupyterServer

TASKS = 20
SMALL = "%%background\nfor each in range(50):\n    print(each)\nprint('all of {}')"
LINES = 850_000
LINE = "a line of text as programs print it, epoch 3 loss=0.1234"
TEXT = f"%%background --shell\nyes '{LINE}' | head -n {LINES}"
FIGURES = """%%background
import io, os
from IPython.display import Image, display
from PIL import Image as Pixels
for each in range(200):
    picture = io.BytesIO()
    Pixels.frombytes("RGB", (100, 100), os.urandom(30000)).save(picture, "PNG")
    display(Image(picture.getvalue()))
"""
SOURCES = [*(SMALL.format(each) for each in range(TASKS)), TEXT, FIGURES]


def notebook_with_much(server: JupyterServer, state_dir: Path) -> Path:
    """Write a notebook whose cells were run by a kernel that is gone, and never saved since."""
    path = server.add_notebook("many", "own")
    with NotebookKernel(state_dir, notebook=path) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        for source in SOURCES:
            kernel.run(source)
        kernel.run("%bg_wait --timeout 100 " + " ".join(map(str, range(1, 1 + len(SOURCES)))), 120)
    document = nbformat.read(path, as_version=4)
    document.cells = [nbformat.v4.new_code_cell(source) for source in SOURCES]
    nbformat.write(document, path)
    return path
