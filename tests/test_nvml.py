from __future__ import annotations

import errno
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pynvml
import pytest

from gpucache import DeviceCacheRegistry
from gpucache.errors import ConfigurationError, DiscoveryError, NoDeviceError
from gpucache.machine import device_files, nvml
from gpucache.machine.device import Device, Status, Unavailable
from gpucache.machine.nvml import discover

# What a fresh process runs: `answer()` is a snapshot or an error as JSON.
ANSWER = """
import json, os, sys, threading
from gpucache.machine import device_files, nvml
from gpucache.errors import GpuCacheError

nvml._TEGRA_MARKS = ()

def answer(**options):
    try:
        return nvml.discover(**options).as_json()
    except GpuCacheError as error:
        return {"error": type(error).__name__, **vars(error)}
"""


@pytest.fixture(autouse=True)
def no_jetson(monkeypatch):
    """These tests run the same on a Jetson."""
    monkeypatch.setattr(nvml, "_TEGRA_MARKS", ())


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What NVML has been asked in this process, in order."""
    log = tmp_path / "nvml.log"
    log.touch()
    monkeypatch.setenv("FAKENVML_LOG", str(log))
    return lambda: log.read_text().split()[1::2]


@pytest.fixture
def loader_says(monkeypatch):
    """Put the loader of a machine without a usable NVML library under this process."""

    def say(error):
        def load(name):
            raise error

        monkeypatch.setattr(pynvml, "nvmlLib", None)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        monkeypatch.setattr(pynvml, "CDLL", load)

    return say


@pytest.fixture
def ask(python):
    """Run code after `ANSWER` in a fresh process and read the JSON that it prints."""

    def run(code, *args, env):
        done = python(ANSWER + code, *args, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def fifo(tmp_path):
    """As NVML's log: each call waits until somebody reads, so that a test needs no clock."""
    path = tmp_path / "nvml.fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def driver_files(tmp_path, monkeypatch):
    """A /dev with the driver's device files, as a container has it with the capability ``compute`` alone."""
    for name in ("nvidiactl", "nvidia0"):
        (tmp_path / "dev" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    monkeypatch.setattr(device_files, "DEV", str(tmp_path / "dev"))


# ---- healthy machines


def test_four_gpus_are_found_with_every_field(on_machine):
    on_machine("h100x4")
    snapshot = discover()
    assert (snapshot.status, snapshot.source, snapshot.detail, snapshot.advice) == (
        Status.OK,
        "nvml",
        "4 GPUs",
        "",
    )
    assert (snapshot.driver, snapshot.nvml, snapshot.cuda) == ("580.95.05", "13.580.95.05", 13000)
    assert snapshot.mig_parents == snapshot.lost == snapshot.hidden == ()
    assert snapshot.cuda_order is None
    assert not snapshot.fake
    assert snapshot.devices[0] == Device(
        uuid="GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1",
        index=0,
        minor=0,
        pci_bus_id="00000000:1b:00.0",
        name="NVIDIA H100 80GB HBM3",
        compute_capability=(9, 0),
        memory_bytes=80 << 30,
        core_count=16896,
    )
    assert [device.index for device in snapshot.devices] == [0, 1, 2, 3]
    assert len({device.uuid for device in snapshot.devices}) == 4


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (
            "uuid = GPU-a\nbus_id = 00000000:43:00.0",
            "GPU 0 at 00000000:1b:00.0 and GPU 1 at 00000000:43:00.0 have one UUID, GPU-a",
        ),
        ("uuid = \nbus_id = 00000000:43:00.0", "GPU 1 at 00000000:43:00.0 has no UUID"),
        ("uuid = \nbus_id = N/A", "GPU 1 at an unknown bus address has no UUID"),
        (
            "uuid = GPU-b\nmig = on\n[mig]\nuuid = GPU-a\nslot = 2",
            "have one UUID, GPU-a",
        ),
    ],
)
def test_devices_that_their_uuids_do_not_tell_apart_are_refused(second, problem, on_machine):
    on_machine(f"[gpu]\nuuid = GPU-a\nbus_id = 00000000:1B:00.0\n[gpu]\n{second}\n")
    with pytest.raises(DiscoveryError) as caught:
        discover()
    assert problem in caught.value.detail
    assert caught.value.status == "error"
    assert "nvidia-smi -L" in caught.value.advice


@pytest.mark.parametrize(
    "odd",
    [
        "name = ",
        "name = " + "x" * 4096,
        "name_hex = f8a0b1",
        "name_hex = 00",
        "bus_id = 00000000:00:00.0",  # of both
        "bus_id = N/A",
        "cc = 0.0",
        "mem_total = 0",
        "minor = 4294967295",
        "error.nvmlDeviceGetName = UNKNOWN",
    ],
)
def test_what_nvml_says_oddly_is_on_record_as_it_says_it(odd, on_machine, tmp_path):
    on_machine(f"[gpu]\nbus_id = 00000000:00:00.0\n[gpu]\n{odd}\n")
    found = discover()
    root = tmp_path / "root"
    DeviceCacheRegistry(root, found, {}).provision()
    assert DeviceCacheRegistry.load(root, {}).snapshot.devices == found.devices


def test_different_gpus_keep_their_own_fields_in_nvmls_order(on_machine):
    on_machine("mixed")
    found = [
        (gpu.name, gpu.compute_capability, gpu.memory_bytes, gpu.core_count)
        for gpu in discover().devices
    ]
    assert found == [
        ("NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30, 6912),
        ("NVIDIA H200", (9, 0), 150754820096, 16896),
    ]


def test_the_visible_devices_of_this_process_do_not_matter(on_machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    on_machine("h100x4")
    assert len(discover().devices) == 4


def test_a_gpu_in_mig_mode_gives_its_instances_also_behind_a_hole(on_machine):
    on_machine("mig")
    snapshot = discover()
    assert snapshot.detail == "1 GPU, 2 MIG instances on 2 GPUs"
    assert [device.directory_name for device in snapshot.devices] == ["0", "1.0", "1.2"]
    assert [device.multiprocessor_count for device in snapshot.devices] == [None, 14, 42]
    assert snapshot.devices[2] == Device(
        uuid="MIG-22222222-c95f-5ef2-a935-195bd0094fbd",
        index=1,
        minor=1,
        pci_bus_id="00000000:0b:00.0",
        name="NVIDIA A100-SXM4-80GB MIG",
        compute_capability=(8, 0),
        memory_bytes=10 << 30,
        parent_uuid="GPU-bbbbbbbb-0000-4000-8000-000000000001",
        slot=2,
        gpu_instance=5,
        compute_instance=0,
        multiprocessor_count=42,
    )


def test_the_parents_of_mig_instances_are_told_apart(on_machine):
    """In a MIG container the parent's memory is forbidden; the empty parent is told too."""
    on_machine("mig")
    parents = discover().mig_parents
    assert [(gpu.uuid, gpu.index) for gpu in parents] == [
        ("GPU-bbbbbbbb-0000-4000-8000-000000000001", 1),
        ("GPU-cccccccc-0000-4000-8000-000000000002", 2),
    ]
    assert [(gpu.memory_bytes, gpu.core_count) for gpu in parents] == [
        (None, 6912),
        (80 << 30, 6912),
    ]


def test_an_instance_that_knows_little_takes_its_parents_name_and_capability(on_machine):
    on_machine(
        "[gpu]\nname = A100\ncc = 8.0\nmig = on\n[mig]\n"
        "error.nvmlDeviceGetName = NOT_SUPPORTED\nerror.nvmlDeviceGetCudaComputeCapability = NOT_SUPPORTED\n"
        "error.nvmlDeviceGetAttributes_v2 = NOT_SUPPORTED\n"
    )
    [instance] = discover().devices
    assert (instance.name, instance.compute_capability) == ("A100", (8, 0))
    assert instance.multiprocessor_count is None


@pytest.mark.parametrize(
    ("code", "warnings"), [("UNKNOWN", 1), ("NO_PERMISSION", 0), ("NOT_FOUND", 0)]
)
def test_an_unreadable_mig_slot_is_left_out(on_machine, caplog, code, warnings):
    on_machine(
        f"[gpu]\nmig = on\n[mig]\nslot = 0\nerror.nvmlDeviceGetUUID = {code}\n[mig]\nslot = 3\n"
    )
    assert [device.slot for device in discover().devices] == [3]
    assert caplog.text.count("MIG slot 0 of GPU 0 cannot be read") == warnings


# ---- machines with something missing


def test_a_lost_gpu_is_left_out_and_told(on_machine, caplog):
    on_machine("odd")
    snapshot = discover()
    assert snapshot.lost == (Unavailable(1, 15, "GPU is lost"),)
    assert "GPU 1 is lost: GPU is lost (code 15)" in caplog.messages
    assert "reset or reboot" in snapshot.advice
    assert snapshot.detail == "3 GPUs, 1 lost, 1 hidden"


def test_the_others_keep_their_index_beside_a_lost_gpu(on_machine):
    on_machine("odd")
    assert [device.index for device in discover().devices] == [0, 3, 4]


def test_a_gpu_this_process_may_not_open_is_hidden_without_a_warning(on_machine, caplog):
    on_machine("[gpu]\n[gpu]\nerror.nvmlDeviceGetHandleByIndex_v2 = NO_PERMISSION\n")
    snapshot = discover()
    assert snapshot.hidden == (Unavailable(1, 4, "Insufficient Permissions"),)
    assert (snapshot.lost, snapshot.advice) == ((), "")
    assert [device.index for device in snapshot.devices] == [0]
    assert caplog.messages == []


def test_memory_that_nvml_does_not_support_is_unknown(on_machine):
    """As on a GB10, where system memory is the GPU's."""
    on_machine("odd")
    [gb10] = [device for device in discover().devices if device.index == 3]
    assert (gb10.name, gb10.memory_bytes, gb10.pci_bus_id) == (
        "NVIDIA GB10",
        None,
        "0000000f:01:00.0",
    )


def test_an_undecodable_name_is_unknown(on_machine):
    """As the WSL driver 555.85 answered."""
    on_machine("odd")
    [garbled] = [device for device in discover().devices if device.index == 4]
    assert garbled.name is None
    assert garbled.memory_bytes == 80 << 30


def test_a_gpu_with_an_undecodable_uuid_is_lost(on_machine):
    on_machine("[gpu]\n[gpu]\nuuid_hex = f8ffff\n")
    snapshot = discover()
    assert [device.index for device in snapshot.devices] == [0]
    [lost] = snapshot.lost
    assert (lost.index, lost.code) == (1, None)
    assert "its UUID cannot be read" in lost.text


def test_only_the_uuid_is_required(on_machine):
    symbols = (
        "Name",
        "PciInfo_v3",
        "CudaComputeCapability",
        "MemoryInfo",
        "MemoryInfo_v2",
        "NumGpuCores",
        "MigMode",
    )
    symbols += ("MinorNumber",)
    on_machine(
        "error.nvmlSystemGetDriverVersion = UNKNOWN\nerror.nvmlSystemGetNVMLVersion = UNKNOWN\n"
        "error.nvmlSystemGetCudaDriverVersion_v2 = LIBRARY_NOT_FOUND\n[gpu]\nuuid = GPU-1\n"
        + "".join(f"error.nvmlDeviceGet{symbol} = NOT_SUPPORTED\n" for symbol in symbols)
    )
    snapshot = discover()
    assert snapshot.devices == (Device(uuid="GPU-1", index=0),)
    assert (snapshot.driver, snapshot.nvml, snapshot.cuda) == (None, None, None)


@pytest.mark.parametrize(
    ("spelling", "bus_id"),
    [
        ("00000000:1B:00.0", "00000000:1b:00.0"),
        ("0000:C1:00.0", "00000000:c1:00.0"),
        ("0000000F:01:00.0", "0000000f:01:00.0"),
        ("N/A", None),
        ("bus:01", None),
    ],
)
def test_a_bus_id_has_one_spelling(on_machine, spelling, bus_id):
    on_machine(f"[gpu]\nbus_id = {spelling}\n")
    assert discover().devices[0].pci_bus_id == bus_id


@pytest.mark.parametrize("code", ["FUNCTION_NOT_FOUND", "UNKNOWN"])
def test_memory_falls_back_to_the_first_version_of_the_call(on_machine, calls, code):
    """An old driver lacks the second; WSL answers it with an unknown error."""
    on_machine(f"[gpu]\nerror.nvmlDeviceGetMemoryInfo_v2 = {code}\n")
    assert discover().devices[0].memory_bytes == 80 << 30
    assert calls().count("nvmlDeviceGetMemoryInfo") == 1


def test_memory_is_read_beside_gpustat(on_machine, monkeypatch):
    """`import gpustat` puts a function of one argument in place of pynvml's."""
    real = pynvml.nvmlDeviceGetMemoryInfo
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: real(handle))
    on_machine("h100x4")
    assert {device.memory_bytes for device in discover().devices} == {80 << 30}


# ---- no GPU here: a fake device, plainly told


@pytest.mark.parametrize(
    ("machine_text", "status", "words"),
    [
        ("init_error = 9\n", Status.NO_DRIVER, "NVML: Driver Not Loaded (code 9), from /"),
        (
            "init_error = 12\n",
            Status.NO_LIBRARY,
            "NVML: NVML Shared Library Not Found (code 12), from /",
        ),
        ("init_error = 28\n", Status.NO_DEVICES, "(code 28), from /"),
        ("cuda_version = 13000\n", Status.NO_DEVICES, "NVML counts no GPU"),
        (
            "all_hidden",
            Status.NO_DEVICES,
            "this process may open none of the 2 GPUs of this machine",
        ),
        ("[gpu]\nmig = on\n", Status.NO_DEVICES, "all GPUs are in MIG mode, without an instance"),
    ],
)
def test_a_machine_without_a_gpu_gives_one_fake_device(
    on_machine, caplog, machine_text, status, words
):
    on_machine(machine_text)
    snapshot = discover()
    assert (snapshot.status, snapshot.source, snapshot.fake) == (status, "fake", True)
    assert [device.uuid for device in snapshot.devices] == ["FAKE-0"]
    assert words in snapshot.detail
    assert snapshot.advice
    assert caplog.messages == [
        f"no GPU here ({status.value}): {snapshot.detail}; using one fake device"
    ]

    with pytest.raises(NoDeviceError) as caught:
        discover(require_gpu=True)
    assert (caught.value.status, caught.value.detail) == (status.value, snapshot.detail)
    assert caught.value.advice == snapshot.advice


def test_a_driver_without_its_library_is_a_sick_node_and_no_fake(loader_says, driver_files):
    loader_says(
        OSError("libnvidia-ml.so.1: cannot open shared object file: No such file or directory")
    )
    for required in (False, True):
        with pytest.raises(DiscoveryError, match="nvidiactl is there") as raised:
            discover(require_gpu=required)
        assert raised.value.status == "no-library"
        assert "capability `utility`" in raised.value.advice


@pytest.mark.parametrize("init_error", [9, 12])
def test_a_driver_that_nvml_does_not_find_is_a_sick_node(on_machine, driver_files, init_error):
    on_machine(f"init_error = {init_error}\n")
    with pytest.raises(DiscoveryError, match="this machine has the NVIDIA driver"):
        discover()


def test_a_driver_without_gpus_is_none(on_machine, driver_files):
    on_machine("init_error = 28\n")
    assert discover().source == "fake"


def test_a_machine_without_the_library_tells_the_loaders_own_words(ask, machine):
    env = {name: value for name, value in machine("h100x4").items() if name != "LD_LIBRARY_PATH"}
    elsewhere = (
        "import ctypes, pynvml; pynvml.CDLL = lambda name: ctypes.CDLL('/nowhere/' + name)\n"
    )
    answer = ask(elsewhere + "print(json.dumps(answer()))", env=env)
    assert (answer["status"], answer["source"]) == ("no-library", "fake")
    assert (
        "/nowhere/libnvidia-ml.so.1: cannot open shared object file: No such file or directory"
        in answer["detail"]
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError("libnvidia-ml.so.1: cannot open shared object file: No such file or directory"),
        OSError("Error loading shared library libnvidia-ml.so.1: No such file or directory"),
        OSError(
            "dlopen(libnvidia-ml.so.1, 0x0006): tried: '/usr/lib/libnvidia-ml.so.1' (no such file)"
        ),
        FileNotFoundError(
            "Could not find module 'C:/Windows/System32/nvml.dll' (or one of its dependencies)."
        ),
    ],
    ids=["glibc", "musl", "macos", "windows"],
)
def test_no_library_is_no_sickness_on_any_system(loader_says, error):
    loader_says(error)
    assert discover().status is Status.NO_LIBRARY


def test_no_library_is_no_sickness_in_any_language(loader_says, monkeypatch):
    """What glibc's `dlopen` says is translated once a program has called `setlocale`."""
    absent = "Datei oder Verzeichnis nicht gefunden"
    monkeypatch.setattr(os, "strerror", {errno.ENOENT: absent}.__getitem__)
    loader_says(OSError(f"libnvidia-ml.so.1: Kann die Shared-Object-Datei nicht öffnen: {absent}"))
    assert discover().status is Status.NO_LIBRARY


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_loader_out_of_something_is_no_missing_library(loader_says, number):
    loader_says(
        OSError(f"libnvidia-ml.so.1: cannot open shared object file: {os.strerror(number)}")
    )
    with pytest.raises(DiscoveryError, match=os.strerror(number)):
        discover()


def test_a_machine_without_the_bindings_gives_a_fake_device(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    snapshot = discover()
    assert (snapshot.status, snapshot.source) == (Status.NO_BINDINGS, "fake")
    assert snapshot.advice == "pip install nvidia-ml-py"
    with pytest.raises(NoDeviceError):
        discover(require_gpu=True)


def test_a_jetson_without_nvml_is_one_real_device(loader_says, tmp_path, monkeypatch):
    monkeypatch.setattr(nvml, "_TEGRA_MARKS", (tmp_path / "absent", tmp_path))
    loader_says(
        OSError("libnvidia-ml.so.1: cannot open shared object file: No such file or directory")
    )
    snapshot = discover(require_gpu=True)
    assert (snapshot.status, snapshot.source, snapshot.fake) == (Status.TEGRA, "tegra", False)
    assert snapshot.devices == (Device(uuid="TEGRA-0", index=0, name="Tegra"),)


def test_a_jetson_with_nvml_is_an_ordinary_machine(on_machine, tmp_path, monkeypatch):
    monkeypatch.setattr(nvml, "_TEGRA_MARKS", (tmp_path,))
    on_machine("h100x4")
    assert discover().status is Status.OK
    on_machine("init_error = 9\n[gpu]\n")
    assert discover().status is Status.NO_DRIVER
    on_machine("init_error = 18\n[gpu]\n")
    with pytest.raises(DiscoveryError):
        discover()


# ---- a sick node: an error, never a fake device


@pytest.mark.parametrize(
    ("code", "status", "advice"),
    [
        (18, Status.VERSION_MISMATCH, "reboot, or reload the nvidia modules"),
        (4, Status.NO_PERMISSION, "access to /dev/nvidiactl"),
        (17, Status.NO_PERMISSION, "cgroup or container"),
        (999, Status.ERROR, "nvidia-smi"),
        (15, Status.ERROR, "dmesg"),
        (1, Status.ERROR, "nvidia-smi"),
        (2, Status.ERROR, "nvidia-smi"),
        (10, Status.ERROR, "nvidia-smi"),
        (16, Status.ERROR, "nvidia-smi"),
        (20, Status.ERROR, "nvidia-smi"),
        (27, Status.ERROR, "nvidia-smi"),
        (12345, Status.ERROR, "nvidia-smi"),
    ],
)
@pytest.mark.parametrize("require_gpu", [False, True])
def test_a_sick_driver_is_an_error_that_says_what_to_do(
    on_machine, fakenvml, code, status, advice, require_gpu
):
    on_machine(f"init_error = {code}\n[gpu]\n")
    with pytest.raises(DiscoveryError) as caught:
        discover(require_gpu=require_gpu)
    assert (caught.value.status, caught.value.code) == (status.value, code)
    assert advice in caught.value.advice
    assert f"(code {code}), from {fakenvml}/libnvidia-ml.so.1" in caught.value.detail


def test_a_node_whose_gpus_are_all_lost_is_sick(on_machine):
    on_machine("all_lost")
    with pytest.raises(
        DiscoveryError, match=r"no usable GPU: 2 of 2 lost \(GPU is lost\)"
    ) as caught:
        discover()
    assert (caught.value.status, caught.value.code) == ("error", 15)
    assert "reset or reboot" in caught.value.advice


def test_a_lost_gpu_among_hidden_ones_is_sickness_too(on_machine):
    on_machine(
        "[gpu]\nerror.nvmlDeviceGetHandleByIndex_v2 = NO_PERMISSION\n"
        "[gpu]\nerror.nvmlDeviceGetHandleByIndex_v2 = GPU_IS_LOST\n"
    )
    with pytest.raises(DiscoveryError, match="1 of 2 lost"):
        discover()


def test_a_driver_that_cannot_count_is_sick(on_machine, calls):
    on_machine("error.nvmlDeviceGetCount_v2 = UNKNOWN\n[gpu]\n")
    with pytest.raises(DiscoveryError, match="while enumerating") as caught:
        discover()
    assert (caught.value.status, caught.value.code) == ("error", 999)
    assert calls()[-1] == "nvmlShutdown"


def test_a_library_that_cannot_be_loaded_is_named(ask, tmp_path):
    library = tmp_path / "libnvidia-ml.so.1"
    library.write_text(
        "This is not a shared object; it is longer than the header of one would be, though.\n" * 4
    )
    answer = ask(
        "print(json.dumps(answer()))", env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    )
    assert (answer["error"], answer["status"], answer["code"]) == ("DiscoveryError", "error", 12)
    assert f"{library}: invalid ELF header" in answer["detail"]
    assert "reinstall" in answer["advice"]


def test_an_old_package_that_hides_the_bindings_is_named(ask, machine, tmp_path):
    package = tmp_path / "pynvml"
    package.mkdir()
    (package / "__init__.py").write_text("def nvmlInit(): pass\n")
    answer = ask(
        "print(json.dumps(answer()))", env={**machine("h100x4"), "PYTHONPATH": str(tmp_path)}
    )
    assert (answer["error"], answer["status"]) == ("DiscoveryError", "wrong-bindings")
    assert str(package / "__init__.py") in answer["detail"]
    assert answer["advice"].startswith("pip uninstall pynvml")


def test_the_warning_of_the_deprecated_package_is_no_error(ask, machine, tmp_path):
    """Under `-W error` a warning at import is an exception."""
    (tmp_path / "pynvml.py").write_text(
        "import importlib.util, sys, warnings\n"
        "warnings.warn('The pynvml package is deprecated.', FutureWarning, stacklevel=2)\n"
        f"spec = importlib.util.spec_from_file_location('pynvml', {pynvml.__file__!r})\n"
        "sys.modules['pynvml'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(sys.modules['pynvml'])\n"
    )
    env = {**machine("h100x4"), "PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "error"}
    assert ask("print(json.dumps(answer()))", env=env)["detail"] == "4 GPUs"


def test_a_repaired_node_is_found_by_the_same_process(on_machine):
    on_machine("init_error = 18\n[gpu]\n")
    with pytest.raises(DiscoveryError):
        discover()
    on_machine("h100x4")
    assert len(discover().devices) == 4


# ---- one NVML, balanced


@pytest.mark.parametrize("name", ["h100x4", "mig", "odd", "all_hidden"])
def test_each_init_has_its_shutdown(on_machine, calls, name):
    on_machine(name)
    discover()
    assert calls()[0] == "nvmlInitWithFlags"
    assert calls()[-1] == "nvmlShutdown"
    assert (calls().count("nvmlInitWithFlags"), calls().count("nvmlShutdown")) == (1, 1)


def test_a_failed_enumeration_is_shut_down_too(on_machine, calls):
    on_machine("all_lost")
    with pytest.raises(DiscoveryError):
        discover()
    assert (calls().count("nvmlInitWithFlags"), calls().count("nvmlShutdown")) == (1, 1)


def test_a_failed_init_is_not_shut_down(on_machine, calls):
    """A surplus shutdown would take NVML from somebody else in this process."""
    on_machine("init_error = 999\n")
    with pytest.raises(DiscoveryError):
        discover()
    assert calls() == ["nvmlInitWithFlags"]


def test_another_user_of_nvml_in_this_process_keeps_its_handles(on_machine):
    on_machine("h100x4")
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(2)
        assert len(discover().devices) == 4
        assert pynvml.nvmlDeviceGetUUID(handle) == "GPU-e429a63e-c61c-4795-b757-5132caeb8e70"
    finally:
        pynvml.nvmlShutdown()


def test_a_shutdown_that_fails_takes_nothing_from_what_was_read(on_machine, monkeypatch):
    real = pynvml.nvmlShutdown

    def fail():
        real()
        raise pynvml.NVMLError(999)

    monkeypatch.setattr(pynvml, "nvmlShutdown", fail)
    on_machine("h100x4")
    assert len(discover().devices) == 4


def test_libcuda_is_never_loaded(ask, machine, fakenvml):
    maps = ask("answer()\nprint(json.dumps(open('/proc/self/maps').read()))", env=machine("mig"))
    assert str(fakenvml / "libnvidia-ml.so.1") in maps
    assert "libcuda" not in maps


# ---- threads, hangs, forks


def test_threads_may_discover_at_once(on_machine, calls):
    on_machine("h100x4")
    start = threading.Barrier(8)

    def look(_):
        start.wait()
        return discover()

    with ThreadPoolExecutor(8) as pool:
        snapshots = list(pool.map(look, range(8)))
    assert {len(snapshot.devices) for snapshot in snapshots} == {4}
    assert len({snapshot.devices for snapshot in snapshots}) == 1
    assert 1 <= calls().count("nvmlInitWithFlags") == calls().count("nvmlShutdown") <= 8
    assert "gpucache-nvml" not in [thread.name for thread in threading.enumerate()]


def test_a_hanging_driver_is_an_error_and_is_never_asked_twice(ask, machine, fifo):
    """The interpreter then exits all the same, the hanging call notwithstanding."""
    code = """
log = os.open(sys.argv[1], os.O_RDWR)
errors = [answer(), answer()]
seen = ""
while "hang" not in seen:
    seen += os.read(log, 65536).decode()
attempts = [thread.name for thread in threading.enumerate()].count("gpucache-nvml")
print(json.dumps([errors, seen.split()[1::2], attempts]))
"""
    env = {
        **machine("init_sleep_ms = -1\n"),
        "FAKENVML_LOG": str(fifo),
        "GPUCACHE_NVML_TIMEOUT_S": "0.1",
    }
    errors, calls, attempts = ask(code, fifo, env=env)
    assert [(error["error"], error["status"], error["code"]) for error in errors] == [
        ("DiscoveryError", "timeout", None)
    ] * 2
    assert errors[0]["detail"] == "NVML did not answer within 0.1 s"
    assert "GPUCACHE_NVML_TIMEOUT_S" in errors[0]["advice"]
    assert calls == ["nvmlInitWithFlags", "hang"]
    assert attempts == 1


def test_a_late_answer_serves_the_next_call(ask, machine, fifo):
    code = """
early = answer(timeout_s=0.1)
log = os.open(sys.argv[1], os.O_RDWR)  # NVML waited for this reader
late = answer(timeout_s=60)
print(json.dumps([early["status"], late["detail"], os.read(log, 65536).decode().split()[1::2]]))
"""
    early, late, calls = ask(code, fifo, env={**machine("h100x4"), "FAKENVML_LOG": str(fifo)})
    assert (early, late) == ("timeout", "4 GPUs")
    assert calls.count("nvmlInitWithFlags") == 1


def test_a_thread_that_cannot_start_is_no_lasting_harm(on_machine, monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    on_machine("h100x4")
    with monkeypatch.context() as patch:
        patch.setattr(nvml._Attempt, "start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            discover()
    assert len(discover().devices) == 4


IN_CHILD = """
def in_child(act):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = json.load(stream)
    assert os.waitpid(pid, 0) == (pid, 0)
    return answer
"""


@pytest.mark.parametrize(
    "before",
    ["answer()", "import pynvml; pynvml.nvmlInit()", "nvml._lock.acquire()"],
    ids=["after-a-discovery", "while-nvml-is-up", "while-our-lock-is-held"],
)
def test_a_forked_child_discovers_for_itself(ask, machine, conf, before):
    """The parent's NVML is dead in the child, and nobody there releases the parent's lock."""
    env = machine("fork_uninit = 1\n" + conf("h100x4").read_text())
    answer = ask(f"{IN_CHILD}\n{before}\nprint(json.dumps(in_child(answer)))", env=env)
    assert answer.get("detail") == "4 GPUs"


def test_a_forked_child_does_not_wait_for_its_parents_hanging_driver(ask, machine, conf, fifo):
    code = """
log = os.open(sys.argv[1], os.O_RDWR)
parent = answer(timeout_s=0.1)
seen = ""
while "hang" not in seen:
    seen += os.read(log, 65536).decode()
os.environ["FAKENVML_CONFIG"] = sys.argv[2]
del os.environ["FAKENVML_LOG"]
print(json.dumps([parent, in_child(answer)]))
"""
    env = {**machine("init_sleep_ms = -1\n"), "FAKENVML_LOG": str(fifo)}
    parent, child = ask(IN_CHILD + code, fifo, conf("h100x4"), env=env)
    assert parent["status"] == "timeout"
    assert child.get("detail") == "4 GPUs"


# ---- the environment


def test_fakes_that_are_asked_for_need_no_nvml(on_machine, calls, caplog):
    on_machine("h100x4")
    snapshot = discover({"GPUCACHE_FAKE_DEVICES": "8xH100:9.0"})
    assert (snapshot.status, snapshot.source, len(snapshot.devices)) == (
        Status.REQUESTED,
        "fake",
        8,
    )
    assert {(gpu.name, gpu.compute_capability) for gpu in snapshot.devices} == {("H100", (9, 0))}
    assert len(discover({"GPUCACHE_FAKE_DEVICES": "8"}).devices) == 8
    assert calls() == caplog.messages == []


@pytest.mark.parametrize("text", ["0", "many", "8xH100:9"])
def test_fakes_that_make_no_sense_are_an_error(text):
    with pytest.raises(ConfigurationError, match="GPUCACHE_FAKE_DEVICES"):
        discover({"GPUCACHE_FAKE_DEVICES": text})


def test_a_required_gpu_is_never_a_requested_fake(on_machine):
    on_machine("h100x4")
    assert discover({"GPUCACHE_FAKE_DEVICES": "8"}, require_gpu=True).detail == "4 GPUs"
    on_machine("init_error = DRIVER_NOT_LOADED\n")
    with pytest.raises(NoDeviceError):
        discover({"GPUCACHE_FAKE_DEVICES": "8"}, require_gpu=True)


@pytest.mark.parametrize("text", ["", "60", "2.5", "1e3"])
def test_the_time_limit_is_a_number_of_seconds(on_machine, text):
    on_machine("h100x4")
    assert len(discover({"GPUCACHE_NVML_TIMEOUT_S": text}).devices) == 4


@pytest.mark.parametrize("text", ["0", "-1", "soon", "10s", "nan", "inf", "1e400", "1e18"])
def test_a_time_limit_that_makes_no_sense_is_an_error(text):
    with pytest.raises(ConfigurationError, match="a number of seconds above 0") as caught:
        discover({"GPUCACHE_NVML_TIMEOUT_S": text})
    assert (caught.value.name, caught.value.value) == ("GPUCACHE_NVML_TIMEOUT_S", text)


def test_nothing_is_written_to_the_environment(on_machine):
    on_machine("h100x4")
    before = dict(os.environ)
    discover()
    assert dict(os.environ) == before
