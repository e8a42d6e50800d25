"""Enumerate the machine's GPUs through NVML. The only module that imports pynvml.

CUDA is never touched. NVML is initialised once per call, in a thread with a time limit, and shut down again in the same
thread; no handle outlives the call, so that nothing dangles after ``fork`` or a driver reload.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gpucache.environment import NVML_TIMEOUT
from gpucache.errors import DiscoveryError, NoDeviceError
from gpucache.forks import after_fork
from gpucache.log import WARNING, tell_in_job
from gpucache.machine import device_files
from gpucache.machine.device import (
    Device,
    Snapshot,
    Status,
    Unavailable,
    fake_devices,
    requested_fakes,
)
from gpucache.threads import start

# NVML's return codes (nvml.h 13.3.29). Compared as numbers: pynvml's errors are unhashable and compare badly.
_NOT_SUPPORTED = 3
_NO_PERMISSION = 4
_NOT_FOUND = 6
_NO_DRIVER = 9
_NO_LIBRARY = 12
_BLOCKED = 17
_VERSION_MISMATCH = 18
_NO_GPUS = 28

# Files that only a Jetson has (JetPack 5 and 6, jetson_stats).
_TEGRA_MARKS = (Path("/etc/nv_tegra_release"), Path("/sys/class/tegra-firmware"))

_HOPELESS = {
    _NO_LIBRARY: (
        Status.NO_LIBRARY,
        "install the NVIDIA driver, or start the container with its NVIDIA runtime",
    ),
    _NO_DRIVER: (Status.NO_DRIVER, "load the NVIDIA kernel module"),
    _NO_GPUS: (Status.NO_DEVICES, "check `nvidia-smi -L`"),
    _VERSION_MISMATCH: (
        Status.VERSION_MISMATCH,
        "the driver was updated under a running kernel module: reboot, or reload the nvidia modules",
    ),
    _NO_PERMISSION: (
        Status.NO_PERMISSION,
        "give this user access to /dev/nvidiactl and /dev/nvidia*",
    ),
    _BLOCKED: (
        Status.NO_PERMISSION,
        "the operating system blocks /dev/nvidiactl: check the cgroup or container",
    ),
}
_UNEXPLAINED = (Status.ERROR, "check `nvidia-smi` and `dmesg`")
_NO_GPU_HERE = {Status.NO_BINDINGS, Status.NO_LIBRARY, Status.NO_DRIVER, Status.NO_DEVICES}
_DRIVER_IS_HERE_ADVICE = {
    Status.NO_BINDINGS: "install nvidia-ml-py, by which gpucache asks the driver",
    Status.NO_LIBRARY: (
        "start the container with the driver capability `utility` beside `compute` "
        "(NVIDIA_DRIVER_CAPABILITIES=compute,utility), or install the driver's libnvidia-ml.so.1"
    ),
    Status.NO_DRIVER: "load the NVIDIA kernel module, or remove the device files that it left",
}
"""What to do where NVML says that there is no driver, and the driver's device files say that there is one.

That is a sick node, since a record of fake devices would be refused there.
"""


class _Failure(Exception):
    """Why there are no devices; `discover` makes it fake devices, or an error of the public kind."""

    def __init__(self, status: Status, detail: str, advice: str, code: int | None = None) -> None:
        super().__init__(status, detail, advice, code)
        self.status = status
        self.detail = detail
        self.advice = advice
        self.code = code


def discover(
    environ: Mapping[str, str] | None = None,
    *,
    timeout_s: float | None = None,
    require_gpu: bool = False,
) -> Snapshot:
    """Enumerate every GPU and MIG instance of this machine, whatever `CUDA_VISIBLE_DEVICES` says.

    Where there is no GPU (no bindings, no library, no driver, no device) the devices are fake: one, or what
    `GPUCACHE_FAKE_DEVICES` asks for (which gives fakes anywhere). A GPU that is lost, or hidden from this process,
    is left out and told in the snapshot; every field but the UUID may be unknown.

    Args:
        environ: where `GPUCACHE_FAKE_DEVICES` and `GPUCACHE_NVML_TIMEOUT_S` are read; by default ``os.environ``.
        timeout_s: limit for NVML, which can hang with a sick GPU; by default 10 s. A call that times out leaves its
            thread behind; later calls wait for that thread instead of starting another.
        require_gpu: raise instead of making up devices.

    Raises:
        NoDeviceError: there is no GPU and ``require_gpu`` is set.
        DiscoveryError: the node is sick (driver mismatch, permission, time-out, all GPUs lost, unknown error).
        ConfigurationError: a variable makes no sense.
    """
    environ = os.environ if environ is None else environ
    if not require_gpu:
        requested = requested_fakes(environ)
        if requested is not None:
            return requested
    if timeout_s is None:
        timeout_s = NVML_TIMEOUT.read(environ)
    try:
        return _within(timeout_s)
    except _Failure as failure:
        return _without_gpu(failure, require_gpu)


def _without_gpu(failure: _Failure, require_gpu: bool) -> Snapshot:
    """What `discover` answers after a failure: a Jetson's one GPU, one fake device, or an error."""
    if failure.status is Status.NO_LIBRARY and _is_jetson():
        integrated = Device(uuid="TEGRA-0", index=0, name="Tegra")
        return Snapshot(
            status=Status.TEGRA,
            source="tegra",
            detail="a Jetson without NVML (before JetPack 6)",
            devices=(integrated,),
        )
    status, detail, advice = failure.status.value, failure.detail, failure.advice
    sick = failure.status not in _NO_GPU_HERE
    if failure.status in _DRIVER_IS_HERE_ADVICE and device_files.driver_loaded():
        sick = True
        detail = f"{detail}, but {device_files.control_file()} is there: this machine has the NVIDIA driver"
        advice = _DRIVER_IS_HERE_ADVICE[failure.status]
    if sick:
        raise DiscoveryError(status, detail, advice, failure.code) from failure
    if require_gpu:
        raise NoDeviceError(status, detail, advice) from failure
    tell_in_job(WARNING, "no GPU here (%s): %s; using one fake device", status, detail)
    return Snapshot(
        status=failure.status,
        source="fake",
        detail=failure.detail,
        advice=failure.advice,
        devices=fake_devices(1),
    )


def _is_jetson() -> bool:
    return any(mark.exists() for mark in _TEGRA_MARKS)


# ---- one NVML thread per process, with a time limit


class _Attempt(threading.Thread):
    """A thread that enumerates the GPUs once. A daemon: a hung driver must not keep the interpreter from exiting."""

    def __init__(self) -> None:
        super().__init__(name="gpucache-nvml", daemon=True)
        self.outcome: Snapshot | BaseException | None = None

    def run(self) -> None:
        try:
            self.outcome = _look()
        except BaseException as error:  # handed to the waiting thread, which raises it
            self.outcome = error


_lock = threading.Lock()
_running: _Attempt | None = None


@after_fork
def _forget() -> None:
    # The child of a fork has neither the thread nor, perhaps, a lock that anyone will release.
    global _lock, _running
    _lock, _running = threading.Lock(), None


def _within(timeout_s: float) -> Snapshot:
    """What one attempt finds within the time limit. Callers at the same moment share an attempt.

    An attempt that is stuck is waited for again by the next caller; no second one is started beside it.

    Raises:
        _Failure: there are no devices, or NVML did not answer in time.
    """
    global _running
    with _lock:
        attempt = _running
        if attempt is None or attempt.outcome is not None:
            attempt = _Attempt()
            _start(attempt)
            # only now: every later caller would wait for an attempt that could not start
            _running = attempt
    attempt.join(timeout_s)
    if attempt.outcome is None:
        raise _Failure(
            Status.TIMEOUT,
            f"NVML did not answer within {timeout_s:g} s",
            f"look for a lost GPU in `dmesg`, or raise {NVML_TIMEOUT}",
        )
    if isinstance(attempt.outcome, Snapshot):
        return attempt.outcome
    raise attempt.outcome


def _start(attempt: _Attempt) -> None:
    try:
        start(attempt)
    except OSError as error:
        advice = "raise the limit of processes, or end some"
        raise _Failure(Status.ERROR, f"NVML was not asked: {error.strerror}", advice) from error


# ---- what NVML says


def _bindings() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # The deprecated distribution `pynvml` warns at import, which is an exception under `-W error`.
            warnings.simplefilter("ignore", FutureWarning)
            import pynvml
    except ImportError as error:
        raise _Failure(
            Status.NO_BINDINGS, f"pynvml cannot be imported ({error})", "pip install nvidia-ml-py"
        ) from error
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        raise _Failure(
            Status.WRONG_BINDINGS,
            f"{pynvml.__file__} is an old package that hides nvidia-ml-py",
            "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py",
        )
    module: ModuleType = pynvml
    return module


def _look() -> Snapshot:
    nvml = _bindings()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise _init_failure(error) from error
    try:
        return _snapshot(nvml)
    except nvml.NVMLError as error:
        raise _Failure(
            Status.ERROR,
            f"NVML failed while enumerating: {error} (code {error.value})",
            "check `nvidia-smi`",
            error.value,
        ) from error
    finally:
        _field(nvml, nvml.nvmlShutdown)  # a failing shutdown takes nothing from what was read


def _init_failure(error: Any) -> _Failure:
    code = error.value
    status, advice = _HOPELESS.get(code, _UNEXPLAINED)
    detail = f"NVML: {error} (code {code})"
    cause = error.__context__
    if code == _NO_LIBRARY and cause is not None:
        detail = f"{detail}: {cause}"  # pynvml says "not found" of a corrupt library too
        if not _absent(cause):
            status, advice = (
                Status.ERROR,
                "reinstall the driver's libnvidia-ml.so.1: it is there but cannot be loaded",
            )
    elif library := _loaded_library():
        detail = f"{detail}, from {library}"
    return _Failure(status, detail, advice, code)


def _absent(cause: BaseException) -> bool:
    """Whether the loader found no file, as glibc (which may translate that), musl, macOS or Windows puts it."""
    if isinstance(cause, FileNotFoundError):
        return True
    text = str(cause)
    translated = os.strerror(errno.ENOENT)
    return translated in text or "no such file" in text.lower()


def _loaded_library() -> str | None:
    """The path of the NVML library that is loaded; on WSL and Jetson a wrong one may come first."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return None
    for line in maps.splitlines():
        if "libnvidia-ml" in line:
            return line.split(maxsplit=5)[-1]
    return None


class _Found:
    """What an attempt has found so far."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.parents: list[Device] = []
        """The GPUs in MIG mode."""
        self.lost: list[Unavailable] = []
        self.hidden: list[Unavailable] = []


def _snapshot(nvml: Any) -> Snapshot:
    found = _Found()
    count = nvml.nvmlDeviceGetCount()
    for index in range(count):
        _add_gpu(nvml, index, found)
    if not found.devices:
        raise _nothing(count, found)
    _refuse_twins([*found.devices, *found.parents])
    for gone in found.lost:
        tell_in_job(WARNING, "GPU %d is lost: %s (code %s)", gone.index, gone.text, gone.code)
    return Snapshot(
        status=Status.OK,
        source="nvml",
        detail=_summary(found),
        advice="reset or reboot to get the lost GPUs back" if found.lost else "",
        devices=tuple(found.devices),
        mig_parents=tuple(found.parents),
        lost=tuple(found.lost),
        hidden=tuple(found.hidden),
        driver=_field(nvml, nvml.nvmlSystemGetDriverVersion),
        nvml=_field(nvml, nvml.nvmlSystemGetNVMLVersion),
        cuda=_field(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2),
    )


def _add_gpu(nvml: Any, index: int, found: _Found) -> None:
    """Add to ``found`` what NVML says of the GPU with this number."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml.nvmlDeviceGetUUID(handle)
    except nvml.NVMLError as error:
        unavailable = Unavailable(index, error.value, str(error))
        if error.value == _NO_PERMISSION:
            found.hidden.append(unavailable)
        else:
            found.lost.append(unavailable)
        return
    except UnicodeDecodeError as error:
        text = f"its UUID cannot be read: {error}"
        found.lost.append(Unavailable(index, None, text))
        return
    gpu = _gpu(nvml, handle, uuid, index)
    if _mig_enabled(nvml, handle):
        found.parents.append(gpu)
        found.devices.extend(_instances(nvml, handle, gpu))
    else:
        found.devices.append(gpu)


def _refuse_twins(devices: list[Device]) -> None:
    """Refuse devices that their UUIDs do not tell apart, which are the one identity that a device has.

    Raises:
        _Failure: a device has no UUID, or that of another.
    """
    first: dict[str, Device] = {}
    for device in devices:
        if not device.uuid:
            problem = f"{_named(device)} has no UUID"
        elif device.uuid in first:
            problem = (
                f"{_named(first[device.uuid])} and {_named(device)} have one UUID, {device.uuid}"
            )
        else:
            first[device.uuid] = device
            continue
        raise _Failure(
            Status.ERROR,
            f"NVML: {problem}",
            "look at `nvidia-smi -L` and `dmesg`, then reset the GPU or update its driver",
        )


def _named(device: Device) -> str:
    """A device by what a person finds it by: ``GPU 1 at 00000000:1b:00.0``."""
    name = f"GPU {device.index}"
    if device.slot is not None:
        name = f"MIG slot {device.slot} of {name}"
    return f"{name} at {device.pci_bus_id or 'an unknown bus address'}"


def _nothing(count: int, found: _Found) -> _Failure:
    """Why none of the GPUs that NVML counts is a device of this process."""
    if found.lost:
        worst = found.lost[0]
        return _Failure(
            Status.ERROR,
            f"no usable GPU: {len(found.lost)} of {count} lost ({worst.text})",
            "look at `dmesg`, then reset or reboot",
            worst.code,
        )
    if found.parents:
        return _Failure(
            Status.NO_DEVICES,
            "all GPUs are in MIG mode, without an instance that this process may use",
            "create one with `nvidia-smi mig -cgi … -C`",
        )
    if found.hidden:
        return _Failure(
            Status.NO_DEVICES,
            f"this process may open none of the {count} GPUs of this machine",
            "ask the scheduler for a GPU",
            _NO_PERMISSION,
        )
    return _Failure(Status.NO_DEVICES, "NVML counts no GPU", "check `nvidia-smi -L`")


def _summary(found: _Found) -> str:
    """What was found, as one line: ``7 GPUs, 1 lost``."""
    instances = [device for device in found.devices if device.parent_uuid is not None]
    gpus = len(found.devices) - len(instances)
    parts = []
    if gpus or not found.parents:
        parts.append("1 GPU" if gpus == 1 else f"{gpus} GPUs")
    if found.parents:
        parts.append(f"{len(instances)} MIG instances on {len(found.parents)} GPUs")
    if found.lost:
        parts.append(f"{len(found.lost)} lost")
    if found.hidden:
        parts.append(f"{len(found.hidden)} hidden")
    return ", ".join(parts)


def _gpu(nvml: Any, handle: Any, uuid: str, index: int) -> Device:
    return Device(
        uuid=uuid,
        index=index,
        minor=_field(nvml, nvml.nvmlDeviceGetMinorNumber, handle),
        pci_bus_id=_field(nvml, _pci_bus_id, nvml, handle),
        name=_field(nvml, nvml.nvmlDeviceGetName, handle),
        compute_capability=_capability(nvml, handle),
        memory_bytes=_memory_bytes(nvml, handle),
        core_count=_field(nvml, nvml.nvmlDeviceGetNumGpuCores, handle),
    )


def _instances(nvml: Any, parent_handle: Any, parent: Device) -> list[Device]:
    """The MIG instances of a GPU, in the order of their slots. Empty slots (NOT_FOUND) may lie between filled ones."""
    found = []
    slot_count = _field(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, parent_handle) or 0
    for slot in range(slot_count):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent_handle, slot)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except (nvml.NVMLError, UnicodeDecodeError) as error:
            code = getattr(error, "value", None)
            if code not in (_NOT_FOUND, _NO_PERMISSION):
                said = "MIG slot %d of GPU %s cannot be read: %s"
                tell_in_job(WARNING, said, slot, parent.index, error)
            continue
        instance = _instance(nvml, handle, uuid, slot, parent)
        found.append(instance)
    return found


def _instance(nvml: Any, handle: Any, uuid: str, slot: int, parent: Device) -> Device:
    return Device(
        uuid=uuid,
        index=parent.index,
        minor=parent.minor,
        pci_bus_id=parent.pci_bus_id,
        parent_uuid=parent.uuid,
        slot=slot,
        name=_field(nvml, nvml.nvmlDeviceGetName, handle) or parent.name,
        compute_capability=_capability(nvml, handle) or parent.compute_capability,
        memory_bytes=_memory_bytes(nvml, handle),
        gpu_instance=_field(nvml, nvml.nvmlDeviceGetGpuInstanceId, handle),
        compute_instance=_field(nvml, nvml.nvmlDeviceGetComputeInstanceId, handle),
        multiprocessor_count=_field(nvml, _multiprocessor_count, nvml, handle),
    )


def _field(nvml: Any, query: Callable[..., Any], *args: Any) -> Any:
    """The answer to a query; None where it is not supported, not permitted, not decodable, or not of the usual form."""
    try:
        return query(*args)
    except (nvml.NVMLError, UnicodeDecodeError, TypeError, ValueError):
        return None


def _mig_enabled(nvml: Any, handle: Any) -> bool:
    mode = _field(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return bool(mode and mode[0] == 1)


def _capability(nvml: Any, handle: Any) -> tuple[int, int] | None:
    pair = _field(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return tuple(pair) if pair else None


def _memory_bytes(nvml: Any, handle: Any) -> int | None:
    """Total memory: version 2 of the call where the driver has it, else version 1 (also where gpustat patched it)."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).total)
    except TypeError:
        pass
    except nvml.NVMLError as error:
        if error.value in (_NOT_SUPPORTED, _NO_PERMISSION):
            return None
    total: int | None = _field(nvml, _memory_bytes_in_version_1, nvml, handle)
    return total


def _memory_bytes_in_version_1(nvml: Any, handle: Any) -> int:
    return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)


def _multiprocessor_count(nvml: Any, handle: Any) -> int:
    count: int = nvml.nvmlDeviceGetAttributes(handle).multiprocessorCount
    return count


def _pci_bus_id(nvml: Any, handle: Any) -> str | None:
    """``0000:1B:00.0`` or ``00000000:1B:00.0`` as ``00000000:1b:00.0``; None for ``N/A``."""
    text = nvml.nvmlDeviceGetPciInfo(handle).busId
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    domain, _, rest = text.lower().partition(":")
    if not rest:
        return None
    return f"{int(domain, 16):08x}:{rest}"
