"""Which device directories are fresh on purpose, by name alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gpucache.disk.fresh import fresh_part

ROOT = "/cache/root"


def test_what_tempfile_makes_is_fresh_wherever_it_is(tmp_path):
    for directory in (None, str(tmp_path)):
        made = tempfile.mkdtemp(dir=directory)
        try:
            assert fresh_part(f"{made}/triton/0", ROOT) == os.path.basename(made)
        finally:
            os.rmdir(made)


@pytest.mark.parametrize("prefix", ["helion_autotune_", "helion_cute_autotune_"])
def test_so_is_what_a_listed_tool_makes(tmp_path, prefix):
    with tempfile.TemporaryDirectory(prefix=prefix, dir=tmp_path) as made:
        assert fresh_part(made, ROOT) == os.path.basename(made)


def test_so_is_what_a_link_leads_to(tmp_path):
    with tempfile.TemporaryDirectory(dir=tmp_path) as made:
        (tmp_path / "cache").symlink_to(made)
        assert fresh_part(str(tmp_path / "cache"), ROOT) == os.path.basename(made)


@pytest.mark.parametrize(
    "directory",
    [
        "/tmp/triton-cache-ada-4711",  # a published recipe: $USER-$SLURM_JOB_ID
        "/tmp/vllm/torch_compile_cache/rank_0/triton",
        "/tmp/tmp.Xk29dPq0aZ/cache",  # mktemp -d
        "/var/tmp/triton",
        "/tmp/tmpabcdefg",  # one letter less, and one more
        "/tmp/tmpabcdefghi",
        "/tmp/tmpABCDEFGH",
        "/tmp/my_tmpabcdefgh",
        "/tmp/other_tool_abcdefgh",
        "/tmp/tmp",
        "/tmp",
    ],
)
def test_everything_else_in_the_temporary_directory_is_kept(directory):
    assert fresh_part(directory, ROOT) is None


def test_what_is_below_the_root_is_kept(tmp_path):
    with tempfile.TemporaryDirectory(dir=tmp_path) as root:
        assert fresh_part(f"{root}/triton/0", root) is None
        assert fresh_part(root, root) is None
        (tmp_path / "link").symlink_to(root)
        assert fresh_part(f"{tmp_path}/link/triton/0", root) is None
        assert fresh_part(f"{root}-beside/tmpabcdefgh", root) == "tmpabcdefgh"
        assert Path(root).exists()
