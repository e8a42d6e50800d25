"""In a user namespace that does not know the owner of something, commands name the fact and do the rest.

A container without root maps a few users; every other one is shown as uid 65534 (user_namespaces(7)).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.trees import KEY, Tree, aged

THEIRS = 61235
OTHER = "B" * 52
STRANGER = "C" * 52
WHO = "a user whom this container does not map (shown as uid 65534)"

Inside = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def base(as_root: None, everyones: Path) -> Path:
    return everyones


@pytest.fixture
def inside(base: Path) -> Inside:
    """Run gpucache in a user namespace that knows uid 0 alone."""
    probed = subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True)
    if probed.returncode:
        pytest.skip("no user namespace can be made here")

    def run(*words: str, root: Path) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--user", "--map-root-user", sys.executable, "-m", "gpucache", *words]
        environ = {**os.environ, "GPUCACHE_DIR": str(root)}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    return run


def give(path: Path) -> None:
    inner = [] if path.is_symlink() else path.rglob("*")
    for found in (path, *inner):
        os.chown(found, THEIRS, THEIRS, follow_symlinks=False)


@pytest.fixture
def root(base: Path) -> Path:
    """An entry of one's own; another with a view of theirs; and links of theirs wherever a command may come."""
    trees = [Tree(base, key) for key in (KEY, OTHER)]
    root = trees[0].root
    outside = base / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    give(trees[1].view)
    for name in (f"triton/0/{STRANGER}", "triton/9", "triton/0/tmp.gpucache-planted", "fxgraph"):
        (root / name).symlink_to(outside)
        give(root / name)
    (root / "gpucache/v1/locks/planted.lock").symlink_to(outside / "file")
    give(root / "gpucache/v1/locks/planted.lock")
    aged(root)
    return root


@pytest.mark.root
class TestCommands:
    @pytest.mark.parametrize(
        "words", [("prune", "--max-entries", "0", "--yes"), ("clean", "--force", "--yes")]
    )
    def test_what_is_ones_own_goes_and_what_links_lead_to_stays(self, inside, root, base, words):
        done = inside(*words, root=root)
        assert done.returncode == 0, done.stderr
        assert not list(root.glob(f"**/{KEY}"))
        assert (base / "outside/file").read_text() == "mine"
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("repairing", [(), ("--repair",)])
    def test_verify_tells_of_links_and_of_what_it_cannot_read(self, inside, root, repairing):
        done = inside("verify", *repairing, root=root)
        assert done.returncode == 1
        told = {tuple(line.split("\t")[1:3]) for line in done.stdout.splitlines()}
        assert ("link", f"{root}/triton/9") in told
        assert ("link", f"{root}/triton/0/{STRANGER}") in told
        assert ("unreadable", f"{root}/triton/0/{OTHER}") in told
        others = (f"gpucache/v1/store/{OTHER[:2]}/{OTHER}", f"triton/1/{OTHER}")
        for place in others:  # links of files that are theirs now
            assert ("unreadable", f"{root}/{place}/__entry__.json") in told
        assert len(told) == 6

    @pytest.mark.parametrize("words", [("ls",), ("du",), ("doctor",), ("stats",)])
    def test_who_only_looks_goes_on(self, inside, root, words):
        done = inside(*words, root=root)
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr


@pytest.mark.root
class TestRoot:
    def test_one_of_theirs_is_refused_by_what_is_known(self, inside, root):
        give(root)
        done = inside("prune", "--yes", root=root)
        assert done.returncode == 1
        assert (
            f"{root}: belongs to {WHO}, not to uid 0 (mode 0755), and a cache is executed"
            in done.stderr
        )
        assert "GPUCACHE_TRUST_UIDS" not in done.stderr, "it would be to trust any number of users"

    def test_a_link_of_theirs_to_one_is_refused_by_what_is_known(self, inside, root, base):
        (base / "link").symlink_to(root)
        give(base / "link")
        done = inside("prune", "--yes", root=base / "link")
        assert done.returncode == 1
        assert f"{base}/link: is a symbolic link of {WHO}, who can point it anywhere" in done.stderr
