"""A device by its UUID, wherever a command takes a device: as CUDA reads `CUDA_VISIBLE_DEVICES`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.cli import told

from gpucache import DeviceCacheRegistry
from gpucache.errors import DeviceIndexError, DeviceNameError

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

A100 = "GPU-aaaaaaaa-0000-4000-8000-000000000000"
MIG = "MIG-11111111-df4c-5451-979d-3231ccb0822e"


@pytest.fixture
def mig(gpucache: Run, machine: Callable[[str], dict[str, str]], root: Path) -> dict[str, str]:
    """A machine with a plain A100 and one in MIG mode with two instances, provisioned."""
    environ = {**machine("mig"), "GPUCACHE_DIR": str(root)}
    done = gpucache("provision", env=environ)
    assert done.returncode == 0, done.stderr
    return environ


@pytest.mark.parametrize(
    ("name", "directory"),
    [(A100, "0"), ("GPU-aaaaaaaa", "0"), (MIG, "1.0"), ("MIG-2", "1.2")],
)
def test_path_and_env_take_a_uuid_or_its_beginning(
    name: str, directory: str, gpucache: Run, mig: dict[str, str], root: Path
) -> None:
    environ = {**mig, "CUDA_VISIBLE_DEVICES": name}
    done = gpucache("path", name, env=environ)
    assert (done.stdout, done.returncode) == (f"{root}/triton/{directory}\n", 0), done.stderr
    variables = told(gpucache("env", name, "--json", env=environ).stdout)["variables"]
    assert variables["TRITON_CACHE_DIR"] == f"{root}/triton/{directory}"
    assert told(gpucache("path", name, "--json", env=environ).stdout)["directory"] == directory


def test_run_takes_a_uuid(gpucache: Run, root: Path) -> None:
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "12", "GPUCACHE_DIR": str(root)}
    words = ("--", "sh", "-c", "echo $TRITON_CACHE_DIR")
    done = gpucache("run", "--device", "FAKE-3", *words, env=environ)
    assert done.stdout == f"{root}/triton/3\n"
    done = gpucache("run", "--device", "FAKE-1", *words, env=environ)
    assert done.stdout == f"{root}/triton/1\n"  # whole, though FAKE-10 and FAKE-11 begin so


def test_a_uuid_of_no_device_is_an_error_that_lists_what_there_is(
    gpucache: Run, root: Path
) -> None:
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "2", "GPUCACHE_DIR": str(root)}
    done = gpucache("run", "--device", "GPU-zzz", "--", "echo", "ran", env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: no device has the UUID 'GPU-zzz', or one that begins so\n" in done.stderr
    assert "hint: there is FAKE-0, FAKE-1\n" in done.stderr
    assert gpucache("path", "GPU-zzz", env=environ).returncode == 1
    done = gpucache("run", "--no-strict", "--device", "GPU-z", "--", "echo", "ran", env=environ)
    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_a_beginning_of_two_is_refused_and_so_is_a_gpu_of_two_instances(
    mig: dict[str, str], root: Path
) -> None:
    # A process of the driver of that time sees one instance only; the record knows all.
    registry = DeviceCacheRegistry(root, environ={**os.environ, "GPUCACHE_FAKE_DEVICES": "12"})
    with pytest.raises(DeviceNameError, match="12 devices have UUIDs that begin with 'FAKE-'"):
        registry.ordinal("FAKE-")
    assert registry.ordinal("FAKE-11") == 11
    assert registry.ordinal(11) == 11
    with pytest.raises(DeviceIndexError):
        registry.ordinal(12)


def test_a_device_that_the_mask_hides_is_told_as_hidden(gpucache: Run, mig: dict[str, str]) -> None:
    done = gpucache("path", A100, env={**mig, "CUDA_VISIBLE_DEVICES": MIG})
    assert done.returncode == 1
    assert done.stderr == (
        f"error: this process does not see the device {A100!r}\n"
        f"hint: there is {MIG}; CUDA_VISIBLE_DEVICES and GPUCACHE_DEVICE decide which devices a "
        "process has\n"
    )


@pytest.mark.parametrize("words", [["path"], ["env"], ["run", "--device"]], ids=" ".join)
def test_what_is_no_device_is_wrong_usage(words: list[str], gpucache: Run) -> None:
    done = gpucache(*words, "abc", *(["--", "true"] if words[0] == "run" else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "'abc' is not an ordinal like 0, or a UUID like GPU-8a56a4bc (`gpucache devices` lists them)"
    ) in done.stderr
