"""Records of hosts that are gone go, those in use stay, and no device directory or total goes with one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gpucache import DeviceCacheRegistry
from gpucache.directories.record import parse_record
from gpucache.disk.record_use import unused_records
from gpucache.layout import paths
from gpucache.machine.device import Device, Snapshot, Status, fake_devices
from gpucache.triton.location import locate
from gpucache.values import replace

DAY_S = 86400.0


def machine_of(*uuids: str) -> Snapshot:
    devices = []
    for index, uuid in enumerate(uuids):
        device = Device(uuid=uuid, index=index, name="NVIDIA H100", compute_capability=(9, 0))
        devices.append(device)
    return Snapshot(status=Status.OK, source="nvml", devices=tuple(devices))


FAKE = Snapshot(status=Status.NO_DRIVER, source="fake", detail="none", devices=fake_devices(1))


def provision(root: Path, snapshot: Snapshot) -> None:
    DeviceCacheRegistry(root, snapshot, {}).provision()


def of_pod(root: Path, host: str, snapshot: Snapshot, days: float) -> Path:
    """The record that a pod of this name left so many days ago."""
    mine = Path(paths.record_path(str(root), paths.host_name()))
    provision(root, snapshot)
    record = replace(parse_record(mine.read_bytes()), host=host)
    path = mine.with_name(f"{host}.json")
    path.write_bytes(record.dumps())
    mine.unlink()
    when = time.time() - days * DAY_S
    os.utime(path, (when, when))
    return path


def names_in(root: Path) -> set[str]:
    names = {path.stem for path in (root / "gpucache/v1/devices").iterdir()}
    return names - {paths.host_name()}


def test_a_new_host_removes_the_records_of_those_that_are_gone(root):
    of_pod(root, "gone", machine_of("GPU-a", "GPU-b"), 31)
    of_pod(root, "live", machine_of("GPU-c"), 29)
    before = sorted((root / "triton").iterdir())
    provision(root, machine_of("GPU-d"))
    assert names_in(root) == {"live"}
    assert sorted((root / "triton").iterdir()) == before, "a directory is a view, and stays"


def test_of_a_former_pod_of_the_node_the_record_goes_sooner(root):
    """The same devices are on the record of the pod that has them now."""
    of_pod(root, "former", machine_of("GPU-a", "GPU-b"), 8)
    of_pod(root, "yesterday", machine_of("GPU-a"), 1)
    of_pod(root, "elsewhere", machine_of("GPU-a", "GPU-x"), 8)
    provision(root, machine_of("GPU-b", "GPU-a"))
    assert names_in(root) == {"yesterday", "elsewhere"}


def test_fake_devices_are_nobodys_successors(root):
    """They have the same UUIDs everywhere."""
    of_pod(root, "desk", FAKE, 8)
    provision(root, FAKE)
    assert names_in(root) == {"desk"}


def test_a_device_that_comes_back_gets_nvmls_number_again(root):
    of_pod(root, "gone", machine_of("GPU-a", "GPU-b"), 31)
    provision(root, machine_of("GPU-b"))
    registry = DeviceCacheRegistry.load(root, {"CUDA_VISIBLE_DEVICES": "GPU-b"})
    assert registry.directories["GPU-b"] == f"{root}/triton/0"


@pytest.mark.parametrize("command", ["prune", "clean"])
def test_prune_and_clean_remove_them_and_say_so(command, here, root):
    live = of_pod(root, "live", machine_of("GPU-a"), 8)
    gone = of_pod(root, "gone", machine_of("GPU-b"), 31)
    (gone.parent / "notes.txt").touch()
    os.utime(gone.parent / "notes.txt", (1, 1))
    planned = here(command, "--dry-run", "--root", root)
    assert [row[:2] for row in planned.rows] == [["sweep", "record"]]
    assert gone.exists()
    assert here(command, "--yes", "--root", root).code == 0
    assert not gone.exists()
    assert live.exists()
    assert (gone.parent / "notes.txt").exists()


def test_the_record_of_this_host_never_goes(here, root):
    provision(root, machine_of("GPU-a"))
    mine = Path(paths.record_path(str(root), paths.host_name()))
    os.utime(mine, (1, 1))
    assert list(unused_records(str(root))) == []
    here("clean", "--yes", "--force", "--root", root)
    assert mine.exists()


def test_links_and_directories_of_others_are_passed_over(root, tmp_path):
    provision(root, machine_of("GPU-a"))
    devices = root / "gpucache/v1/devices"
    (devices / "d.json").mkdir()
    (devices / "l.json").symlink_to(tmp_path)
    for path in devices.iterdir():
        os.utime(path, (1, 1), follow_symlinks=False)
    assert list(unused_records(str(root))) == []


@pytest.mark.parametrize("use", ["provision", "load", "launch"])
def test_a_use_is_stamped_once_a_day(use, root):
    provision(root, machine_of("GPU-a"))
    mine = Path(paths.record_path(str(root), paths.host_name()))
    content = mine.read_bytes()
    for age_s, is_stamped in ((2 * DAY_S, True), (DAY_S / 2, False)):
        when = time.time() - age_s
        os.utime(mine, (when, when))
        if use == "provision":
            provision(root, machine_of("GPU-a"))
        elif use == "load":
            DeviceCacheRegistry.load(root, {"CUDA_VISIBLE_DEVICES": "GPU-a"})
        else:
            assert locate(f"{root}/triton/0", {"GPUCACHE_DIR": str(root)}).mode == "shared"
        assert (mine.stat().st_mtime > when + 1) == is_stamped
    assert mine.read_bytes() == content
