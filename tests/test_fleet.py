"""A fleet: what one machine has compiled, the next one takes over, with all its ranks.

Each machine is a node of its own (`support.fleet`), with four GPUs and a rank for each. The kernels are those of the
package `corpus`, more than 100 of all kinds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from support.corpus_runs import SUPPORT, launched
from support.fleet import CORPUS, Machine, compiled, failures, machines
from support.processes import PATIENCE_S, python_path
from support.servers import apart
from support.stand_in_commands import stand_in_commands

from gpucache.remote.outbox import LEAST_COMPILE_S
from gpucache.store.manifest import MANIFEST, parse_manifest

pytestmark = [pytest.mark.usefixtures("triton", "can_mount"), pytest.mark.mounts]

TWELVE = (
    "softmax",
    "vector add",
    "dropout",
    "attention, causal",
    "a product of halves",
    "a constant named tuple",
    "a tuple of tensors and one of integers",
    "descriptors of the host",
    "functions of Triton's library",
    "a function of libdevice",
    "num_warps and num_stages",
    "layer norm, helpers of another module, one not inlined",
)
"""Launches of twelve kernels."""


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose four ranks have compiled all kernels; do not change its root."""
    with machines(tmp_path_factory.mktemp("fleet"), "builder") as (machine,):
        ranks = machine.launch()
        assert failures(ranks) == []
        assert len(compiled(ranks)) == len(set(compiled(ranks))) >= 100
        assert set(compiled(ranks)) == machine.stored()
        yield machine


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Machine]:
    """A machine that has compiled nothing."""
    with machines(tmp_path, "node") as (machine,):
        yield machine


@pytest.fixture(scope="session")
def key(builder: Machine) -> dict[str, str]:
    """What a machine trusts that takes what the builder signs with the key that is made here."""
    return {"GPUCACHE_TRUST_KEYS": builder.gpucache("keygen", "ci").said.strip()}


def compiles_nothing(node: Machine, *cases: str) -> set[str]:
    """None of the four ranks does, with the plug-in; the keys of what they launched."""
    ranks = node.launch(*cases)
    assert failures(ranks) == []
    assert compiled(ranks) == []
    return {key for rank in ranks for key in rank.keys}


def stock_compiles_nothing(node: Machine, device: int, *cases: str) -> None:
    stock = node.launch_stock(device, *cases)
    assert not stock.failed
    assert not stock.compiled


@pytest.fixture
def some(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Cases for a test that differs from another by nothing but its remote: twelve kernels, or all (no names)."""
    return () if request.config.getoption("--all-kernels") else TWELVE


class Way(NamedTuple):
    """A remote, as those have it in their environments who write it and who read it."""

    writer: dict[str, str]
    reader: dict[str, str]


@pytest.fixture
def way(
    request: pytest.FixtureRequest, builder: Machine, key: dict[str, str], tmp_path: Path
) -> Way:
    """The remote of the kind that the test is about, with nothing in it."""
    kind, prefix = request.param, apart()
    signs = {"GPUCACHE_SIGN_KEY": str(builder.directory / "ci.key")}
    if kind in DIRECTORIES:
        (tmp_path / "remote").mkdir(mode=0o700)
        url = f"file://{tmp_path}/remote"
        if kind == "directory of the same owner":
            return way_by(f"{url}?trust=owner", {}, {})
        return way_by(url, signs, key)
    server = request.getfixturevalue(SERVERS[kind])
    url = server.url(prefix)
    if kind == "S3":
        return way_by(url, signs | server.writer, key | server.reader)
    return way_by(url, signs, key)


def way_by(url: str, writer: dict[str, str], reader: dict[str, str]) -> Way:
    remote = {"GPUCACHE_REMOTE": url, "GPUCACHE_REMOTE_TIMEOUT_S": str(PATIENCE_S)}
    return Way(writer | remote, reader | remote)


SERVERS = {"S3": "s3_server", "WebDAV": "dav_server", "Redis": "redis_server"}
DIRECTORIES = ("shared directory", "directory of the same owner")


def test_a_file_brings_all_kernels(builder: Machine, key: dict[str, str], node: Machine) -> None:
    builder.gpucache("pack", "-o", node.directory / "kernels.tar.zst", **signing(builder))
    node.environ |= key
    node.gpucache("provision")
    node.gpucache("unpack", "kernels.tar.zst")
    assert node.stored() == builder.stored()
    compiles_nothing(node)
    stock_compiles_nothing(node, 3)


def signing(builder: Machine) -> dict[str, str]:
    return {"GPUCACHE_SIGN_KEY": str(builder.directory / "ci.key")}


def test_stock_triton_alone_compiles_nothing_where_views_are_asked_for(
    builder: Machine, key: dict[str, str], node: Machine
) -> None:
    builder.gpucache("pack", "-o", node.directory / "kernels.tar.zst", **signing(builder))
    node.environ |= key
    node.gpucache("provision")
    assert node.json("unpack", "kernels.tar.zst", "--views")["views"] == 4 * len(builder.stored())
    stock_compiles_nothing(node, 0)


def test_ranks_that_start_together_with_the_pull_of_all_kernels_compile_none(
    builder: Machine, key: dict[str, str], node: Machine, tmp_path: Path
) -> None:
    """Each asks for them in the order of the corpus, while they come in the order of the pack."""
    (tmp_path / "remote").mkdir()
    remote = {"GPUCACHE_REMOTE": f"file://{tmp_path}/remote"}
    builder.gpucache("pack", "-o", tmp_path / "all.tar.zst", **signing(builder))
    builder.gpucache("push", tmp_path / "all.tar.zst", **remote)
    node.environ |= key | remote | {"GPUCACHE_PACK": "all"}
    ranks = node.launch()
    assert failures(ranks) == []
    assert compiled(ranks) == []
    assert node.stored() == builder.stored()
    counted = node.json("stats")["all"]
    assert counted["pulled"] == len(builder.stored())
    assert counted["remote_hits"] == counted["remote_misses"] == 0


@pytest.mark.parametrize("way", [DIRECTORIES[1], "S3", "WebDAV"], indirect=True)
def test_what_one_machine_has_pushed_the_next_one_pulls(
    way: Way, builder: Machine, node: Machine, some: tuple[str, ...]
) -> None:
    builder.gpucache("pack", "-o", node.directory / "all.tar.zst", **way.writer)
    builder.gpucache("push", node.directory / "all.tar.zst", **way.writer)
    node.environ |= way.reader
    node.gpucache("provision")
    node.gpucache("pull", "all")
    assert node.stored() == builder.stored()
    compiles_nothing(node, *some)
    stock_compiles_nothing(node, 0, *some)


@pytest.mark.parametrize("way", ["S3"], indirect=True)
def test_the_next_machine_takes_kernel_by_kernel_all_that_it_misses(
    way: Way, builder: Machine, node: Machine
) -> None:
    builder.gpucache("push", "--since", "1d", **way.writer)
    node.environ |= way.reader
    compiles_nothing(node)
    assert node.stored() == builder.stored()


@pytest.mark.parametrize("way", [DIRECTORIES[0], "WebDAV", "Redis"], indirect=True)
def test_the_next_machine_takes_kernel_by_kernel_what_it_misses_from_any_remote(
    way: Way, builder: Machine, node: Machine, some: tuple[str, ...]
) -> None:
    builder.gpucache("push", "--since", "1d", **way.writer)
    node.environ |= way.reader
    assert compiles_nothing(node, *some) == node.stored()


@pytest.fixture(scope="session")
def recipes(builder: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the recipes of twelve kernels."""
    keys = builder.launch_stock(0, *TWELVE).keys
    assert len(keys) == len(TWELVE)
    lines = builder.gpucache("recipe").said.splitlines()
    head, *every = lines
    chosen = [line for line in every if json.loads(line)["key"] in keys]
    assert len(chosen) == len(TWELVE)
    file = tmp_path_factory.mktemp("recipes") / "recipes.jsonl"
    file.write_text("\n".join([head, *chosen]) + "\n")
    return file


def warmed(machine: Machine, recipes: Path, *words: str) -> int:
    """How many recipes are compiled on the machine, by a warm with these words; all others are for other machines."""
    said = machine.json("warm", recipes, "--main", CORPUS, "-j1", *words, PYTHONPATH=PROGRAM)
    counts = said["counts"]
    assert isinstance(counts, dict)
    assert counts.keys() <= {"made"}
    return sum(counts.values())


PROGRAM = python_path(SUPPORT)
"""Where modules are found on a machine that warms."""


def test_what_ranks_compile_is_there_for_the_next_machine_without_a_command(
    tmp_path: Path,
) -> None:
    """Each kernel that took 0.1 s or longer, by a process that outlives the ranks; the rest is compiled there again."""
    (tmp_path / "remote").mkdir(mode=0o700)
    url = f"file://{tmp_path}/remote"
    with machines(tmp_path, "canary", "next") as (canary, other):
        line = canary.gpucache("keygen", "ci").said.strip()
        writes = {
            "GPUCACHE_REMOTE": f"{url}?mode=write",
            "GPUCACHE_SIGN_KEY": str(canary.directory / "ci.key"),
        }
        reads = {
            "GPUCACHE_REMOTE": url,
            "GPUCACHE_TRUST_KEYS": line,
            "GPUCACHE_REMOTE_TIMEOUT_S": str(PATIENCE_S),
        }
        assert failures(canary.launch(*TWELVE, **writes)) == []
        slow = {key for key, seconds in compile_times(canary).items() if seconds >= LEAST_COMPILE_S}
        assert slow
        end = time.monotonic() + PATIENCE_S
        while any(canary.root.glob("gpucache/v1/outbox/*/*")):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert {path.name for path in tmp_path.glob("remote/v1/*/*/*")} == slow
        ranks = other.launch(*TWELVE, **reads)
        assert failures(ranks) == []
        assert set(compiled(ranks)) == canary.stored() - slow


def compile_times(machine: Machine) -> dict[str, float]:
    """How long the compile of each kernel in a machine's store took, in seconds."""
    times = {}
    for path in machine.root.glob(f"gpucache/v1/store/*/*/{MANIFEST}"):
        manifest = parse_manifest(path.read_bytes())
        assert manifest is not None
        times[path.parent.name] = manifest.facts.compile_s or 0.0
    return times


@pytest.mark.parametrize("way", ["S3"], indirect=True)
def test_four_machines_compile_a_quarter_each_and_then_none_compiles_anything(
    way: Way, recipes: Path, tmp_path: Path
) -> None:
    with (
        machines(tmp_path / "fleet", "one", "two", "three", "four", "five") as fleet,
        ThreadPoolExecutor(4) as at_once,
    ):
        four, fifth = fleet[:4], fleet[4]
        for machine in fleet:
            machine.environ |= way.reader
            machine.gpucache("provision")
        shards = [f"--shard={number}/4" for number in range(1, 5)]
        made = list(at_once.map(warmed, four, [recipes] * 4, shards))
        assert sum(made) == len(TWELVE)
        for machine in four:
            machine.gpucache("push", "--since", "1d", **way.writer)
        ranks = list(at_once.map(lambda machine: machine.launch(*TWELVE), four))
        assert [compiled(of_machine) for of_machine in ranks] == [[]] * 4
        assert not compiled(fifth.launch(*TWELVE))
        assert all(len(machine.stored()) == len(TWELVE) for machine in fleet)


TRAIN = f"""
import runpy, sys
sys.path.insert(0, {str(SUPPORT)!r})
sys.argv = ["run_corpus.py", "sm_90", *{TWELVE!r}]
runpy.run_path({str(CORPUS)!r}, run_name="__main__")
"""


PAGE = (Path(__file__).parents[1] / "docs/packs.md").read_text(encoding="utf-8")
(FIVE_LINES,) = re.findall(r"```sh\n(gpucache keygen .*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("way", ["S3"], indirect=True)
def test_five_lines_of_the_page_bring_a_container_that_compiles_nothing(
    way: Way, recipes: Path, tmp_path: Path
) -> None:
    """`warm` gets ``--main`` too: here some kernels are those of a script."""
    said = FIVE_LINES.replace("s3://bucket/kernels", f"'{way.reader['GPUCACHE_REMOTE']}'")
    once, warm, *signed, run = [line.partition("  #")[0] for line in said.splitlines()]
    with machines(tmp_path / "fleet", "ci", "container") as (ci, container):
        for machine in (ci, container):
            machine.environ["PATH"] = f"{stand_in_commands(tmp_path)}:{os.environ['PATH']}"
        public = ci.run("bash", "-c", once).said.strip()
        shutil.copy(recipes, ci.directory)
        ci.run("bash", "-c", f"{warm} --main {CORPUS}", PYTHONPATH=PROGRAM)
        for line in signed:
            ci.run("bash", "-c", line, **way.writer)
        assert len(ci.stored()) == len(TWELVE)
        container.environ |= way.reader | {"GPUCACHE_TRUST_KEYS": public}
        (container.directory / "train.py").write_text(TRAIN)
        ranks = [launched(ran.said) for ran in container.each_rank("bash", "-c", run)]
        assert failures(ranks) == []
        assert compiled(ranks) == []
        assert [len(rank.keys) for rank in ranks] == [len(TWELVE)] * len(ranks)
