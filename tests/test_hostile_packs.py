"""Packs that were made to hurt: each is refused with its reason, in bounded memory and time, and nothing is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.hostile_packs import cases, large
from support.hostile_parts import Case
from support.packs import Source, read_all
from support.processes import PATIENCE_S

from gpucache.archive.signature import SigningKey, make_key
from gpucache.archive.trusted_keys import TrustedKeys

MOST_PEAK = 200e6
MOST_CPU_S = 20.0


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[SigningKey, SigningKey]:
    directory = tmp_path_factory.mktemp("keys")
    return make_key("ci", str(directory / "ci.key")), make_key("mallory", str(directory / "m.key"))


def read_in_child(here, made: list[Case], signing: SigningKey) -> dict[str, dict]:
    """What a process that reads these packs says of each, by the case's name."""
    packs, empty = here / "packs", here / "empty"
    packs.mkdir()
    empty.mkdir()
    paths = []
    for number, case in enumerate(made):
        path = packs / f"{number}.tar.zst"
        path.write_bytes(case.make())
        paths.append(str(path))
    before = sorted(os.listdir(packs))
    child = subprocess.run(
        [sys.executable, "-m", "support.read_packs", signing.public_text],
        input="\n".join(paths),
        cwd=empty,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(empty)},
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE_S,
    )
    assert child.stderr == ""
    assert child.returncode == 0
    assert os.listdir(empty) == []
    assert sorted(os.listdir(packs)) == before
    told = map(json.loads, child.stdout.splitlines())
    return dict(zip([case.name for case in made], told, strict=True))


def wrong(made: list[Case], told: dict[str, dict]) -> list[str]:
    """What the process has not said as it should have."""
    found = []
    for case in made:
        said = told[case.name]
        if said["code"] != case.code or case.fact not in said["fact"]:
            found.append(f"{case.name}: {said['code']!r}, {said['fact']!r}; not {case.code!r}")
        if not said["fact"].isprintable() or len(said["fact"]) > 500:
            found.append(f"{case.name}: cannot be shown")
        if said["peak"] > MOST_PEAK or said["cpu_s"] > MOST_CPU_S:
            found.append(f"{case.name}: {said['peak'] / 1e6:.0f} MB, {said['cpu_s']:.1f} s")
    return found


def test_each_of_hundreds_of_hostile_packs_is_refused_with_its_reason(tmp_path, keys):
    made = list(cases(*keys))
    assert len({case.name for case in made}) == len(made) > 300
    assert "\n".join(wrong(made, read_in_child(tmp_path, made, keys[0]))) == ""


def test_no_size_that_is_said_and_no_bomb_takes_200_mb(tmp_path, keys):
    made = list(large(keys[0]))
    assert "\n".join(wrong(made, read_in_child(tmp_path, made, keys[0]))) == ""


def test_the_pack_of_which_they_are_made_is_sound(keys):
    signing, _ = keys
    reader, _ = read_all(
        Source().add().packed(signing), TrustedKeys.parse(signing.public_text).judge
    )
    assert reader.signer == "ci"
