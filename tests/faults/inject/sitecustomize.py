"""Arms the fault points of an interpreter that is started with this folder on its path.

Python imports a module of this name by itself when it starts. Nothing of the package knows of it.
"""

import importlib.util
import os
from pathlib import Path

if os.environ.get("FAULTS_ARMED"):
    _spec = importlib.util.spec_from_file_location(
        "fault_points", Path(__file__).parent.parent / "points.py"
    )
    _points = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_points)
    _points.arm()
