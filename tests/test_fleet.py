"""A fleet: what one machine has compiled, the next one takes over, with all its ranks.

Each machine is a node of its own (`support.fleet`), with four GPUs and a rank for each. The kernels are those of the
package `corpus`, more than 100 of all kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fleet import Machine, compiled, failures, machines

pytestmark = pytest.mark.usefixtures("triton", "can_mount")

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
    """What a machine trusts that takes what the builder signs; the builder has the secret key from now on."""
    public = builder.gpucache("keygen", "ci").said.strip()
    builder.environ["GPUCACHE_SIGN_KEY"] = str(builder.directory / "ci.key")
    return {"GPUCACHE_TRUST_KEYS": public}


def compiles_nothing(node: Machine, *cases: str) -> None:
    """Neither do the four ranks, with the plug-in, nor stock Triton afterwards."""
    ranks = node.launch(*cases)
    assert failures(ranks) == []
    assert compiled(ranks) == []
    stock = [node.launch_stock(device, *cases) for device in (0, 3)]
    assert failures(stock) == []
    assert compiled(stock) == []


def test_a_file_brings_all_kernels(builder: Machine, key: dict[str, str], node: Machine) -> None:
    builder.gpucache("pack", "-o", node.directory / "kernels.tar.zst")
    node.environ |= key
    node.gpucache("provision")
    node.gpucache("unpack", "kernels.tar.zst")
    assert node.stored() == builder.stored()
    compiles_nothing(node)


def test_stock_triton_alone_compiles_nothing_where_views_are_asked_for(
    builder: Machine, key: dict[str, str], node: Machine
) -> None:
    builder.gpucache("pack", "-o", node.directory / "kernels.tar.zst")
    node.environ |= key
    node.gpucache("provision")
    assert node.json("unpack", "kernels.tar.zst", "--views")["views"] == 4 * len(builder.stored())
    for device in (0, 3):
        assert not node.launch_stock(device).compiled


def test_ranks_that_start_together_with_the_pull_of_all_kernels_compile_none(
    builder: Machine, key: dict[str, str], node: Machine, tmp_path: Path
) -> None:
    """Each asks for them in the order of the corpus, while they come in the order of the pack."""
    (tmp_path / "remote").mkdir()
    remote = {"GPUCACHE_REMOTE": f"file://{tmp_path}/remote"}
    signs = {"GPUCACHE_SIGN_KEY": str(builder.directory / "ci.key")}
    builder.gpucache("pack", "-o", tmp_path / "all.tar.zst", **signs)
    builder.gpucache("push", tmp_path / "all.tar.zst", **remote)
    node.environ |= key | remote | {"GPUCACHE_PACK": "all"}
    ranks = node.launch()
    assert failures(ranks) == []
    assert compiled(ranks) == []
    assert node.stored() == builder.stored()
    counted = node.json("stats")["all"]
    assert counted["pulled"] == len(builder.stored())
    assert counted["remote_hits"] == counted["remote_misses"] == 0
