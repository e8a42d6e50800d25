"""`docs/what-a-pack-tells.md`: which files of a real kernel have the path of its source, and which parts of a pack."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from support.ranks import KERNELS, PLUGIN, PYTHON

PAGE = (Path(__file__).parents[1] / "docs/what-a-pack-tells.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`\..*?) \| (yes|no) \| (yes|no) \|$", PAGE, re.MULTILINE)
SAID = {
    ending: (by_default == "yes", without == "yes")
    for endings, by_default, without in ROWS
    for ending in re.findall(r"`(\.[a-z]+)`", endings)
}
SECRET = "a-secret-directory"

pytestmark = pytest.mark.compiles


def compiled(place: Path, **more: str) -> Path:
    """A root with a real kernel whose source lies in a directory that nobody should know."""
    program = place / SECRET / "kernels.py"
    program.parent.mkdir(exist_ok=True)
    program.write_bytes(KERNELS.read_bytes())
    root = place / f"root{len(more)}"
    env = {**os.environ, "GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": f"{root}/triton/0"}
    command = [PYTHON, "-W", "ignore", f"{SECRET}/kernels.py", "1", "90"]
    done = subprocess.run(
        command,
        env={**env, **PLUGIN, **more},
        cwd=place,
        input="\n",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return root


def tells(root: Path) -> dict[str, bool]:
    """Whether the files of the root's kernel have the path, by their endings."""
    found = {}
    for path in root.glob("gpucache/v1/store/*/*/scaled.*"):
        found[path.suffix] = SECRET.encode() in path.read_bytes()
    assert found
    return found


def packed(root: Path, *words: str) -> bytes:
    """The tar of a root's pack."""
    file = root.parent / "pack.tar.zst"
    command = [sys.executable, "-m", "gpucache", "pack", "-o", file, "--root", root, *words]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120)
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(file.read_bytes())).read()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Path:
    return compiled(tmp_path_factory.mktemp("tells"))


def test_the_page_says_which_files_have_the_path_of_the_source(root, tmp_path):
    by_default = tells(root)
    without = tells(compiled(tmp_path, TRITON_DISABLE_LINE_INFO="1"))
    assert {".cubin", ".ptx", ".ttir", ".json"} <= by_default.keys() == without.keys()
    for ending in by_default:
        assert SAID[ending] == (by_default[ending], without[ending]), ending


def test_kernels_without_that_information_have_another_key(root, tmp_path):
    other = compiled(tmp_path, TRITON_DISABLE_LINE_INFO="1")
    keys = [
        {path.parent.name for path in one.glob("gpucache/v1/store/*/*/scaled.json")}
        for one in (root, other)
    ]
    assert keys[0].isdisjoint(keys[1])


def test_a_slim_pack_has_the_path_in_the_binary_alone(root):
    tar = packed(root, "--slim")
    names = set(re.findall(rb"scaled\.[a-z]+", tar))
    assert names >= {b"scaled.cubin", b"scaled.json"}
    assert b"scaled.ptx\0" not in tar
    assert SECRET.encode() in tar


def test_all_but_the_kernels_files_names_no_path(root):
    """Headers, the statement, the recipe: nothing of this machine, also where the root and the source lie."""
    tar = packed(root)
    inside = re.compile(rb"/(?:scaled\.[a-z]+)\0")
    told = []
    at = 0
    while tar[at : at + 1] != b"\0":
        header = tar[at : at + 512]
        size = int(header[124:135], 8)
        content = tar[at + 512 : at + 512 + size]
        told.append(header)
        if not inside.search(header):
            told.append(content)
        at += 512 + size + -size % 512
    text = b"".join(told)
    for secret in (SECRET, str(root), str(root.parent), os.uname().nodename, "__grp__"):
        assert secret.encode() not in text
    assert b'"kernels.py"' in text


def test_metadata_name_the_library_of_triton_and_nothing_else(root):
    (path,) = root.glob("gpucache/v1/store/*/*/scaled.json")
    said = json.loads(path.read_text())
    with_paths = {name for name, value in said.items() if "/" in str(value)}
    assert with_paths <= {"extern_libs"}
