"""Hostile packs before a root: nothing outside of it is touched, and nothing in it is what was not vouched for."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.hostile_packs import cases
from support.hostile_parts import Parts, member, zst
from support.packs import METADATA, Source
from support.processes import PATIENCE_S

from gpucache.archive.errors import BadPack
from gpucache.archive.read import PackReader
from gpucache.archive.signature import make_key
from gpucache.archive.trusted_keys import TrustedKeys
from gpucache.archive.unpack import unpack
from gpucache.disk.vetting import Trust
from gpucache.store.manifest import entry_path
from gpucache.store.preparing import prepare
from gpucache.upkeep.verify import verify


@pytest.fixture
def keys(tmp_path):
    return make_key("ci", str(tmp_path / "ci.key")), make_key("mallory", str(tmp_path / "m.key"))


@pytest.fixture
def root(tmp_path):
    where = str(tmp_path / "outside/root")
    os.mkdir(tmp_path / "outside")
    prepare(where, Trust())
    return where


def refused(root: str, data: bytes, trusted: TrustedKeys) -> str:
    with pytest.raises(BadPack) as error:
        with PackReader(io.BytesIO(data), trusted.judge, source_name="a pack") as reader:
            unpack(reader, root)
    return error.value.code


def new_files(root: str, before: dict[str, bytes]) -> list[str]:
    """What is there that was not, but for the size of the store, and what its mount was found to do."""
    parts = [name.split("/gpucache/v1/")[1] for name in files_below(root) if name not in before]
    return [part for part in parts if not part.startswith(("stats/", "mounts/"))]


def files_below(path: str | Path) -> dict[str, bytes]:
    return {str(found): found.read_bytes() for found in Path(path).rglob("*") if found.is_file()}


def test_of_a_hostile_pack_nothing_is_published_but_what_was_sound_before_the_flaw(
    tmp_path, root, keys
):
    trusted = TrustedKeys.parse(keys[0].public_text)
    sound = Parts(keys[0]).source.statement.entries
    places = [Path(entry_path(root, entry.store_key)) for entry in sound]
    before = files_below(root)
    first_came = 0
    for case in cases(*keys):
        assert refused(root, case.make(), trusted) == case.code, case.name
        assert not places[1].exists(), case.name
        if places[0].exists():
            first_came += 1
            assert not verify(root).findings, case.name
            for file in places[0].iterdir():
                file.unlink()
            places[0].rmdir()
        assert new_files(root, before) == [], case.name
    assert sorted(os.listdir(tmp_path / "outside")) == ["root"]
    assert first_came > 0


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        (member("evil", b"x"), "trailing-member"),
        (b"\0", "end"),
        (bytes(512) + b"x", "end"),
        (bytes(1024) + b"x", "trailing-bytes"),
        (b"", "end"),
    ],
)
def test_of_an_object_with_one_entry_nothing_is_published_if_anything_follows(
    root, keys, rest, code
):
    trusted = TrustedKeys.parse(keys[0].public_text)
    before = files_below(root)
    parts = Parts(keys[0], Source().add())
    whole = parts.tar()[:-1024]
    assert refused(root, zst(whole + rest), trusted) == code
    assert refused(root, zst(parts.tar()) + b"x", trusted) == "trailing-bytes"
    assert refused(root, zst(parts.tar()) + zst(b""), trusted) == "second-frame"
    assert files_below(root) == before


CODE = f"c{'ab' + 'c' * 50}"
BOMBS = {
    "metadata": Source().add(
        {
            "add.json": METADATA[:-1] + b',"x":[' + b"{}," * (15 * 2**20 // 3) + b"0]}",
            "add.cubin": b"binary",
        }
    ),
    "source": Source().add_unit({f"ab/{CODE}.py": b"x\n" * 2**20}),
    "settings": Source().add_unit({f"ab/{CODE}.best_config": b"[" + b"{}," * 2**22 + b"0]"}),
}
"""Packs of which a few KB come, and whose files are gigabytes to a parser."""


@pytest.mark.parametrize("name", BOMBS)
def test_no_file_that_a_trusted_key_has_signed_takes_200_mb(root, keys, tmp_path, name):
    pack = tmp_path / "n.tar.zst"
    pack.write_bytes(BOMBS[name].packed(keys[0]))
    assert pack.stat().st_size < 100_000
    script = """
import re, sys
from gpucache.cli.main import main
sys.argv[1:] = ["unpack", sys.argv[1], "--root", sys.argv[2]]
try:
    main()
finally:
    # and not of `getrusage`, which begins with what the parent had
    print(re.search("VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1])
"""
    environ = {**os.environ, "GPUCACHE_TRUST_KEYS": keys[0].public_text}
    command = [sys.executable, "-c", script, str(pack), root]
    done = subprocess.run(command, env=environ, stdout=-1, timeout=PATIENCE_S)
    assert int(done.stdout) < 200_000
