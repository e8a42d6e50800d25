"""What the tests of the campaign share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faults import TESTS
from support.processes import unmeasured
from support.warm import WarmPython

import gpucache


@pytest.fixture(scope="session")
def soaking(triton: None) -> Iterator[WarmPython]:
    """A warm Python whose processes launch kernels of known bytes: those of `support.soak`."""
    paths = [str(Path(gpucache.__file__).parents[1]), str(TESTS), *filter(None, sys.path)]
    environ = {**unmeasured(), "PYTHONPATH": os.pathsep.join(paths)}
    python = WarmPython([sys.executable], "import support.soak", environ)
    yield python
    python.close()
