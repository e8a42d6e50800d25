from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import gpucache


def test_the_real_home_is_out_of_reach():
    """A test that forgets to choose a directory fails instead of writing the user's."""
    with pytest.raises(NotADirectoryError):
        Path.home().mkdir(parents=True)


def test_the_default_cache_is_the_sessions_own(guard):
    assert Path(gpucache.default_cache_dir()).is_relative_to(guard)
    assert not [name for name in os.environ if name.startswith(("GPUCACHE_", "TRITON_", "TORCHINDUCTOR_"))]


def test_the_map_of_the_package_names_every_module():
    """A newcomer reads it first, so that it must not be out of date."""
    named = set(re.findall(r"`(\w+)`", gpucache.__doc__ or ""))
    modules = {path.stem for path in Path(gpucache.__file__).parent.glob("*.py")} - {"__init__", "__main__"}
    assert modules - named == set()
