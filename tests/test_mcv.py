"""A layer for MCV and GKM: read back by what their documents say of it, and a hit for stock Triton."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from support.mcv import extract, labels_of
from support.ranks import PLUGIN, compile_kernels

from gpucache.archive.collect import Collected
from gpucache.archive.statement import ArchivedEntry, ArchivedFile
from gpucache.store.manifest import Facts
from gpucache.transfer.mcv import write_layer

COUNT = 3


class Packed(NamedTuple):
    """A root with real kernels, and a layer of it."""

    root: Path
    layer: Path
    dockerfile: str

    @property
    def labels(self) -> dict[str, str]:
        return labels_of(self.dockerfile)


def pack(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpucache", "pack", "--format", "mcv", "--root", root, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Packed:
    place = tmp_path_factory.mktemp("mcv")
    root, layer = place / "root", place / "layer.tar.gz"
    env = {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": f"{root}/triton/0", **PLUGIN}
    compile_kernels(env, COUNT, 80, 90)
    done = pack(root, "-o", layer)
    assert done.returncode == 0, done.stderr
    return Packed(root, layer, done.stdout)


@pytest.mark.compiles
class TestALayer:
    def test_that_is_extracted_is_a_hit_for_stock_triton(self, packed, tmp_path):
        """Wherever it was packed, and wherever it is extracted."""
        cache = tmp_path / "home/.triton/cache"
        extract(packed.layer.read_bytes(), packed.labels, cache)
        said = compile_kernels({"TRITON_CACHE_DIR": str(cache)}, COUNT, 80, 90)
        assert said["compiled"] == 0

    def test_says_for_which_targets_it_is(self, packed):
        targets = json.loads(packed.labels["cache.triton.image/summary"])["targets"]
        expected = [{"backend": "cuda", "arch": arch, "warp_size": 32} for arch in ("80", "90")]
        assert targets == expected

    def test_lists_each_kernel_in_its_manifest(self, packed, tmp_path):
        listed = extract(packed.layer.read_bytes(), packed.labels, tmp_path / "cache")["triton"]
        found = {}
        for path in packed.root.glob("triton/0/*/scaled.json"):
            said = json.loads(path.read_text())
            found[said["hash"]] = said
        assert len(found) == 2 * COUNT
        for one in listed:
            said = found.pop(one["hash"])
            assert one["arch"] == str(said["target"]["arch"])
            assert one["warp_size"] == said["target"]["warp_size"]
            assert one["num_warps"] == said["num_warps"]
        assert found == {}

    def test_names_nobody_and_no_directory_of_this_machine(self, packed):
        """Its members are anybody's, of no time; what a kernel's debug information says is another matter."""
        with tarfile.open(packed.layer) as tar:
            members = tar.getmembers()
            owners = {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in members}
            groups = [tar.extractfile(one).read() for one in members if "__grp__" in one.name]
        assert owners == {(0, 0, "", "", 0)}
        assert len(groups) == 2 * COUNT
        said = packed.dockerfile.encode() + b"".join(groups)
        assert str(packed.root).encode() not in said

    def test_of_equal_entries_is_equal(self, packed, tmp_path):
        again = pack(packed.root, "-o", tmp_path / "layer.tar.gz")
        assert again.stdout == packed.dockerfile
        assert (tmp_path / "layer.tar.gz").read_bytes() == packed.layer.read_bytes()

    def test_goes_to_stdout_too(self, packed):
        command = [sys.executable, "-m", "gpucache", "pack", "--format", "mcv", "-o", "-"]
        done = subprocess.run([*command, "--root", packed.root], capture_output=True, timeout=120)
        assert done.stdout == packed.layer.read_bytes()

    def test_tells_its_labels_to_programs(self, packed, tmp_path):
        done = pack(packed.root, "-o", tmp_path / "layer.tar.gz", "--json", "--arch", "sm_80")
        row = json.loads(done.stdout)
        assert row["kernels"] == COUNT
        assert row["labels"]["cache.triton.image/entry-count"] == str(COUNT)
        assert row["labels"]["cache.triton.image/cache-size-bytes"] == str(row["bytes"])


@pytest.mark.parametrize("words", [["--inductor"], ["--name", "x"], ["--number", "0"]])
def test_what_no_layer_has_a_place_for_is_refused(root, words):
    done = pack(root, "-o", root.parent / "layer.tar.gz", *words)
    assert done.returncode == 2
    assert f"{words[0]} and --format mcv do not go together" in done.stderr


def test_of_two_libraries_of_one_name_a_layer_has_one(tmp_path):
    """They are for two Pythons, which Triton's own directory does not tell apart."""
    files = {}
    entries = []
    for tag in ("cpython-310-glibc-2.36", "cpython-311-glibc-2.36"):
        path = tmp_path / tag
        path.write_bytes(tag.encode())
        file = ArchivedFile("launcher.so", len(tag), "0" * 64)
        facts = Facts("launcher.so", None, tag=tag)
        entry = ArchivedEntry("A" * 52, "library", facts, (file,))
        entries.append(Collected(entry, {"launcher.so": str(path)}, None, None))
        files[tag] = path
    with (tmp_path / "layer").open("wb") as out:
        layer = write_layer(out, entries)
    extract((tmp_path / "layer").read_bytes(), layer.labels, tmp_path / "cache")
    (found,) = (tmp_path / "cache").rglob("*.so")
    assert found.read_text() in files
