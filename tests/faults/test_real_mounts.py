"""Launches of kernels of known bytes on real file systems: read-only, full, and another user's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faults import built
from support.processes import PATIENCE_S
from support.soak import KEYS
from support.users import ADA, BOB, directory
from support.warm import WarmPython

pytestmark = [pytest.mark.faults, pytest.mark.compiles]

Ran = Callable[..., tuple[str, str]]
EVERYTHING = 2 * len(KEYS) + 2


@pytest.fixture
def ran(soaking: WarmPython, tmp_path: Path, everyones: Path) -> Ran:
    """Run a program of `support.soak` on a root; what it said on stdout and on stderr."""
    library = built(everyones)
    everyones.chmod(0o1777)

    def run(
        root: Path, *words: object, allowed: tuple[int, ...] = (0,), **env: str
    ) -> tuple[str, str]:
        environ = {
            "HOME": "/nowhere",
            "PATH": os.environ["PATH"],
            "TMPDIR": str(everyones),
            "FAULTS_LIBRARY": str(library),
            "GPUCACHE_DIR": str(root),
            "GPUCACHE_FAKE_DEVICES": "2xH100:9.0",
            **env,
        }
        process = soaking.start("from support import soak; soak.main()", *words, env=environ)
        try:
            out, err = process.communicate("", PATIENCE_S)
        finally:
            process.end()
        assert process.returncode in allowed, err
        assert "Traceback" not in err
        return out, err

    return run


@pytest.fixture
def squashed(ran: Ran, mount: Callable[..., Path], tmp_path: Path) -> Path:
    """A whole cache in a read-only image, whose times are whole seconds, mounted where it was made."""
    if shutil.which("mksquashfs") is None:
        pytest.skip("needs mksquashfs: the package squashfs-tools")
    root = tmp_path / "root"
    ran(root, "command", "provision")
    ran(root, "all")
    image = tmp_path / "image"
    subprocess.run(["mksquashfs", root, image, "-quiet", "-no-progress"], check=True)
    shutil.rmtree(root)
    return mount(root, "-t", "squashfs", "-o", "loop,ro", str(image))


class TestAReadOnlyImage:
    def test_each_kernel_is_a_hit(self, ran, squashed):
        assert ran(squashed, "all")[0] == "0\n"

    def test_verify_finds_nothing(self, ran, squashed):
        out, err = ran(squashed, "command", "verify")
        assert out == "", err

    @pytest.mark.parametrize(
        "words",
        [("prune", "--max-entries", "0", "--yes"), ("clean", "--force", "--yes"), ("stats",)],
    )
    def test_a_command_that_cannot_write_ends_without_a_defect(self, ran, squashed, words):
        ran(squashed, "command", *words, allowed=(0, 1))
        assert ran(squashed, "all")[0] == "0\n"


@pytest.mark.parametrize("options", ["size=100k", "size=4m,nr_inodes=120"])
def test_on_a_full_disk_every_launch_has_its_bytes_and_clean_frees_it(
    ran, mount, tmp_path, options
):
    root = mount(tmp_path / "root", "-t", "tmpfs", "-o", f"mode=0700,{options}", "none")
    ran(root, "command", "provision")
    assert int(ran(root, "all")[0]) > len(KEYS), "not all of them found a place"
    assert int(ran(root, "all")[0]) > 0
    ran(root, "command", "verify", "--repair", allowed=(0, 1))
    out, err = ran(root, "command", "verify")
    assert out == "", err
    ran(root, "command", "clean", "--force", "--yes")
    subprocess.run(["mount", "-o", "remount,size=40m,nr_inodes=10000", root], check=True)
    ran(root, "all")
    assert ran(root, "all")[0] == "0\n"


class TestAnotherUser:
    @pytest.fixture
    def theirs(self, ran: Ran, as_root: None, everyones: Path) -> Path:
        """A root of Ada's, which everybody may read, with every kernel in it."""
        root = directory(everyones / "root", 0o755, ADA)
        ran(root, "as", ADA)
        subprocess.run(["chmod", "-R", "a+rX", root], check=True)
        return root

    def test_who_is_not_trusted_compiles_alone_and_changes_nothing(self, ran, theirs):
        before = sorted(theirs.rglob("*"))
        out, err = ran(theirs, "as", BOB)
        assert int(out) == EVERYTHING
        assert f"belongs to uid {ADA}" in err or "another user" in err
        assert sorted(theirs.rglob("*")) == before

    def test_who_trusts_reads_what_the_other_has_compiled(self, ran, theirs):
        assert ran(theirs, "as", BOB, GPUCACHE_TRUST_UIDS=str(ADA))[0] == "0\n"
