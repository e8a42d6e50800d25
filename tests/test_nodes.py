from __future__ import annotations

import os

import pytest

from gpucache import nodes


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """Make the nodes that the kernel shows."""
    monkeypatch.setattr(nodes, "DEV", str(tmp_path))

    def make(*names, mode=0o666):
        for name in names:
            (tmp_path / name).touch()
            (tmp_path / name).chmod(mode)
        return tmp_path

    return make


def test_each_node_that_can_be_opened_is_a_gpu(dev):
    dev("nvidia0", "nvidia1", "nvidia7", "nvidia12")
    assert nodes.openable_gpus() == 4


def test_other_nodes_are_no_gpus(dev):
    path = dev(
        "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidiax", "xnvidia0", "null"
    )
    (path / "nvidia-caps").mkdir()
    assert nodes.openable_gpus() == 1


def test_without_nodes_nothing_can_be_counted(dev):
    dev("nvidiactl", "dxg")
    assert nodes.openable_gpus() is None


def test_without_a_device_directory_nothing_can_be_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "DEV", str(tmp_path / "absent"))
    assert nodes.openable_gpus() is None
    assert not nodes.driver_loaded()


def test_the_driver_is_there_when_its_control_node_is(dev):
    dev("nvidia0")
    assert not nodes.driver_loaded()
    dev("nvidiactl")
    assert nodes.driver_loaded()


def test_counting_opens_nothing(dev, monkeypatch):
    """Opening a node can wake a GPU for seconds."""

    def refuse(*args, **options):
        raise AssertionError("a node was opened")

    dev("nvidia0", "nvidia1")
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    assert nodes.openable_gpus() == 2


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
from gpucache import nodes
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
nodes.DEV = "."
print(nodes.openable_gpus())
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
from gpucache import nodes
os.setuid(65534)
nodes.DEV = "."
print(nodes.openable_gpus())
"""
    done = python(code, cwd=path)
    assert done.stdout == "0\n", done.stderr
