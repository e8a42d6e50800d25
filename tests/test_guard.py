from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import gpucache


def test_the_real_home_is_out_of_reach():
    """A test that forgets to choose a directory fails instead of writing the user's."""
    with pytest.raises(NotADirectoryError):
        Path.home().mkdir(parents=True)


def test_the_default_cache_is_the_sessions_own(guard):
    assert Path(gpucache.default_cache_dir()).is_relative_to(guard)
    assert not [
        name for name in os.environ if name.startswith(("GPUCACHE_", "TRITON_", "TORCHINDUCTOR_"))
    ]


def test_the_map_of_the_package_has_the_sentence_of_every_folder():
    """A newcomer reads it first, so that it must not be out of date."""
    text = " ".join((gpucache.__doc__ or "").split())
    folders = sorted(path.parent for path in Path(gpucache.__file__).parent.glob("*/__init__.py"))
    for folder in folders:
        (sentence, _, _) = ast.get_docstring(
            ast.parse((folder / "__init__.py").read_text())
        ).partition("\n")
        assert f"`{folder.name}`: {sentence.rstrip('.')}".lower() in text.lower()
    assert len(folders) == 18
