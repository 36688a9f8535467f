"""Folders that tests read.

The problems of the examples are no part of the repository, see
`data/README.md`. Tests read them in the folder that the environment variable
`DISTIL_JAX_DATA` names, or in `data/`, and skip where a set is missing.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(os.environ.get("DISTIL_JAX_DATA") or ROOT / "data")
GOLDEN = ROOT / "tests/golden"
