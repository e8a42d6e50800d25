"""Autotune results are shared by devices that time alike, and by no others: not on this node, nor by the root."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.launches import another_process, kernel

from gpucache import DeviceCacheRegistry
from gpucache.disk import node
from gpucache.layout import paths
from gpucache.machine.device import Device, Snapshot, Status
from gpucache.triton.manager import DeviceCacheManager
from gpucache.upkeep.verify import verify

KEY, _ = kernel("tuned")
NAME = "add.autotune.json"
H100 = Device(
    uuid="GPU-0", index=0, name="NVIDIA H100", compute_capability=(9, 0), core_count=16896
)
H200 = dataclasses.replace(H100, uuid="GPU-1", name="NVIDIA H200")
UNKNOWN = dataclasses.replace(H100, core_count=None)


class Node:
    """A node on the root, with the devices that its record lists; its processes cache in ``triton/0``."""

    def __init__(self, root: Path, name: str, *devices: Device) -> None:
        self.root, self.name, self.devices = root, name, devices

    def manager(self, patch: pytest.MonkeyPatch) -> DeviceCacheManager:
        patch.setattr(paths, "host_name", lambda: self.name)
        patch.setattr("gpucache.triton.own_device.node_id", lambda: f"{hash(self.name):016x}"[-8:])
        patch.setenv("GPUCACHE_DIR", str(self.root))
        patch.setenv("TRITON_CACHE_DIR", str(self.root / "triton/0"))
        another_process(patch)
        record = paths.record_path(str(self.root), self.name)
        if self.devices and not os.path.exists(record):
            snapshot = Snapshot(status=Status.OK, source="nvml", devices=self.devices)
            DeviceCacheRegistry(self.root, snapshot, {}).provision()
        return DeviceCacheManager(KEY)


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Put a result on one node, and what another node then gets."""

    def tuned(first: Node, second: Node) -> Any:
        said = {"key": [first.name], "configs_timings": []}
        first.manager(monkeypatch).put(json.dumps(said), NAME, binary=False)
        path = second.manager(monkeypatch).get_file(NAME)
        return json.loads(Path(path).read_text())["key"] if path else None

    return tuned


def test_two_nodes_with_one_kind_of_device_share(root, tuned):
    other = dataclasses.replace(H100, uuid="GPU-7")
    assert tuned(Node(root, "one", H100), Node(root, "two", other)) == ["one"]


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "NVIDIA H200"},
        {"name": None},
        {"core_count": None},
        {"core_count": 14592},
        {"compute_capability": None},
    ],
)
@pytest.mark.parametrize("forwards", [True, False])
def test_another_kind_of_device_shares_nothing(changed, forwards, root, tuned):
    one = Node(root, "one", H100)
    two = Node(root, "two", dataclasses.replace(H100, uuid="GPU-7", **changed))
    assert tuned(*((one, two) if forwards else (two, one))) is None


def test_a_device_that_tells_little_shares_with_itself_alone(root, tuned):
    node = Node(root, "one", UNKNOWN)
    assert tuned(node, node) == ["one"]
    assert tuned(node, Node(root, "two", dataclasses.replace(UNKNOWN, uuid="GPU-7"))) is None
    assert not verify(str(root)).findings


@pytest.mark.parametrize("devices", [(), (H100, H200)], ids=["no record", "unlike devices"])
def test_what_is_not_known_is_shared_within_the_node_and_directory(devices, root, tuned):
    node = Node(root, "one", *devices)
    assert tuned(node, node) == ["one"]
    assert tuned(node, Node(root, "two", *devices)) is None
    assert tuned(node, Node(root, "two", H100)) is None


def test_two_nodes_of_one_host_name_are_two(root, tuned, monkeypatch):
    """Two pods may have one."""
    one, two = Node(root, "one"), Node(root, "one")
    boots = iter(["00000000", "11111111"])
    manager = Node.manager

    def started(self: Node, patch: pytest.MonkeyPatch) -> DeviceCacheManager:
        made = manager(self, patch)
        boot = next(boots)
        patch.setattr("gpucache.triton.own_device.node_id", lambda: boot)
        another_process(patch)
        return DeviceCacheManager(made.key)

    monkeypatch.setattr(Node, "manager", started)
    assert tuned(one, two) is None
    assert node.node_id() not in ("00000000", "11111111")


def test_what_stock_triton_left_in_a_shared_directory_is_nobodys(root, monkeypatch):
    """Its device is not known."""
    for devices in ((), (H100,), (UNKNOWN,)):
        manager = Node(root, f"node{len(devices)}", *devices).manager(monkeypatch)
        left = root / "triton/0" / KEY / NAME
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_text(json.dumps({"key": ["stock"], "configs_timings": []}))
        assert manager.get_file(NAME) is None
