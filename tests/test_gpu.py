"""On a machine with a real NVIDIA GPU: what the fakes stand for is so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu


def discovered(python):
    """In a process of its own, since the fake library may be loaded in this one."""
    done = python(
        "import json, gpucache; print(json.dumps(gpucache.discover(require_gpu=True).as_json()))"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_devices_are_those_of_nvidia_smi(python):
    if shutil.which("nvidia-smi") is None:
        pytest.skip("needs nvidia-smi")
    listed = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    snapshot = discovered(python)
    seen = {device["uuid"] for device in snapshot["devices"] + snapshot["mig_parents"]}
    assert seen == set(re.findall(r"UUID: ([\w-]+)", listed))
    assert snapshot["status"] == "ok"
    for device in snapshot["devices"]:
        assert len(device["compute_capability"]) == 2
        assert re.fullmatch(r"[0-9a-f]{8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", device["pci_bus_id"])


def test_libcuda_names_the_same_devices(python):
    code = """if True:
        import os
        from gpucache import discover
        from gpucache.machine.libcuda import ask_order
        snapshot = discover(require_gpu=True)
        assert set(ask_order(snapshot, os.environ)) <= {device.uuid for device in snapshot.devices}
    """
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_run_gives_a_command_the_real_devices_directory(gpucache, tmp_path):
    show = "import os; print(os.environ['GPUCACHE_DEVICE'], os.environ['TRITON_CACHE_DIR'])"
    done = gpucache(
        "run", "--root", tmp_path / "r", "--device", 0, "--strict", "--", sys.executable, "-c", show
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"(GPU|MIG)-\S+ {re.escape(str(tmp_path))}/r/triton/[0-9.]+\n", done.stdout
    )
