from __future__ import annotations

import os

import pytest

from gpucache.machine import device_files
from gpucache.machine.device_files import DeviceFile


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """Make the nodes that the kernel shows."""
    monkeypatch.setattr(device_files, "DEV", str(tmp_path))
    monkeypatch.setattr(device_files, "PROC", str(tmp_path / "proc"))

    def make(*names, mode=0o666):
        for name in names:
            (tmp_path / name).touch()
            (tmp_path / name).chmod(mode)
        return tmp_path

    return make


def test_each_node_that_can_be_opened_is_a_gpu(dev):
    dev("nvidia0", "nvidia1", "nvidia7", "nvidia12")
    assert [node.minor for node in device_files.openable_gpus()] == [0, 1, 7, 12]


def test_other_nodes_are_no_gpus(dev):
    path = dev(
        "nvidia3",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-modeset",
        "nvidia3x",
        "xnvidia0",
        "null",
    )
    (path / "nvidia-caps").mkdir()
    assert device_files.openable_gpus() == (DeviceFile(3, None),)


def test_without_nodes_nothing_can_be_counted(dev):
    dev("nvidiactl", "dxg")
    assert device_files.openable_gpus() is None


def test_without_a_device_directory_nothing_can_be_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(device_files, "DEV", str(tmp_path / "absent"))
    assert device_files.openable_gpus() is None
    assert not device_files.driver_loaded()


def test_the_driver_is_there_when_its_control_node_is(dev):
    dev("nvidia0")
    assert not device_files.driver_loaded()
    dev("nvidiactl")
    assert device_files.driver_loaded()


def test_looking_opens_no_node(dev, monkeypatch):
    """Opening a node can wake a GPU for seconds."""
    opened = []
    dev("nvidia0", "nvidia1")
    monkeypatch.setattr("builtins.open", lambda path, *_, **__: opened.append(path))
    monkeypatch.setattr(os, "open", lambda path, *_, **__: opened.append(path))
    assert len(device_files.openable_gpus()) == 2
    assert opened == []


INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 16
GPU UUID: \t {uuid}
Video BIOS: \t 96.00.74.00.01
Bus Type: \t PCIe
Bus Location: \t 0000:{minor:02x}:00.0
Device Minor: \t {minor}
GPU Excluded:\t No
"""


def test_the_kernel_module_tells_the_uuid_of_a_minor(dev):
    path = dev("nvidia0", "nvidia1", "nvidia2")
    uuid = "GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1"
    for minor, text in ((1, uuid), (2, "GPU-????????-????-????-????-????????????"), (5, uuid)):
        place = path / "proc" / f"0000:{minor:02x}:00.0"
        place.mkdir(parents=True)
        (place / "information").write_text(INFORMATION.format(uuid=text, minor=minor))
    (path / "proc" / "empty").mkdir()
    assert device_files.openable_gpus() == (
        DeviceFile(0, None),
        DeviceFile(1, uuid),
        DeviceFile(2, None),
    )


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(("mode", "count"), [(0o660, 1), (0o664, 1), (0o662, 1), (0o666, 3)])
def test_a_node_that_may_not_be_read_and_written_is_not_counted(dev, python, mode, count):
    """As in a container or a job that has been given one GPU."""
    dev("nvidia1", mode=0o666)
    path = dev("nvidia0", "nvidia2", mode=mode)
    path.chmod(0o755)
    code = """
import os
from gpucache.machine import device_files
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
device_files.DEV = "."
print(len(device_files.openable_gpus()))
"""
    done = python(code, cwd=path)
    assert done.stdout == f"{count}\n", done.stderr


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_a_process_that_may_open_no_node_counts_none_of_them(dev, python):
    path = dev("nvidia0", "nvidia1", mode=0o600)
    path.chmod(0o755)
    code = """
import os
from gpucache.machine import device_files
os.setuid(65534)
device_files.DEV = "."
print(len(device_files.openable_gpus()))
"""
    done = python(code, cwd=path)
    assert done.stdout == "0\n", done.stderr
