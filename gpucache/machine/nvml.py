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
from gpucache.log import WARNING, tell
from gpucache.machine.device import (
    Device,
    Snapshot,
    Status,
    Unavailable,
    fake_devices,
    requested_fakes,
)

# NVML's return codes (nvml.h 13.3.29). Compared as numbers: pynvml's errors are unhashable and compare badly.
_NO_PERMISSION, _NOT_FOUND, _NO_DRIVER, _NO_LIBRARY, _NO_FUNCTION = 4, 6, 9, 12, 13
_BLOCKED, _VERSION_MISMATCH, _NO_GPUS = 17, 18, 28

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
_NO_GPU_HERE = {Status.NO_BINDINGS, Status.NO_LIBRARY, Status.NO_DRIVER, Status.NO_DEVICES}


class _Failure(Exception):
    """Why there are no devices; becomes fakes or an error at the door."""

    def __init__(self, status: Status, detail: str, advice: str, code: int | None = None) -> None:
        super().__init__(status, detail, advice, code)
        self.status, self.detail, self.advice, self.code = status, detail, advice, code


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
    if not require_gpu and (requested := requested_fakes(environ)) is not None:
        return requested
    if timeout_s is None:
        timeout_s = NVML_TIMEOUT.read(environ)
    try:
        return _within(timeout_s)
    except _Failure as failure:
        return _without_gpu(failure, require_gpu)


def _without_gpu(failure: _Failure, require_gpu: bool) -> Snapshot:
    if failure.status is Status.NO_LIBRARY and any(mark.exists() for mark in _TEGRA_MARKS):
        return Snapshot(
            status=Status.TEGRA,
            source="tegra",
            detail="a Jetson without NVML (before JetPack 6)",
            devices=(Device(uuid="TEGRA-0", index=0, name="Tegra"),),
        )
    if failure.status not in _NO_GPU_HERE:
        raise DiscoveryError(
            failure.status.value, failure.detail, failure.advice, failure.code
        ) from failure
    if require_gpu:
        raise NoDeviceError(failure.status.value, failure.detail, failure.advice) from failure
    tell(
        WARNING, "no GPU here (%s): %s; using one fake device", failure.status.value, failure.detail
    )
    return Snapshot(
        status=failure.status,
        source="fake",
        detail=failure.detail,
        advice=failure.advice,
        devices=fake_devices(1),
    )


# ---- one NVML thread per process, with a time limit


class _Attempt(threading.Thread):
    """One look through NVML. A daemon: a hung driver must not keep the interpreter from exiting."""

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
    """Callers at the same moment share one attempt; a stuck one is waited for, never doubled."""
    global _running
    with _lock:
        attempt = _running
        if attempt is None or attempt.outcome is not None:
            attempt = _Attempt()
            attempt.start()
            # only now: one that could not start would be waited for by everyone after
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
    status, advice = _HOPELESS.get(code, (Status.ERROR, "check `nvidia-smi` and `dmesg`"))
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
    """Whether the loader found no file: in the words of glibc (which it may translate), musl, macOS or Windows."""
    if isinstance(cause, FileNotFoundError):
        return True
    text = str(cause)
    return os.strerror(errno.ENOENT) in text or "no such file" in text.lower()


def _loaded_library() -> str | None:
    """The NVML library really loaded; on WSL and Jetson a wrong one may come first."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return None
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libnvidia-ml" in line)
    return next(paths, None)


def _snapshot(nvml: Any) -> Snapshot:
    devices: list[Device] = []
    parents: list[Device] = []
    lost: list[Unavailable] = []
    hidden: list[Unavailable] = []
    count = nvml.nvmlDeviceGetCount()
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except nvml.NVMLError as error:
            unavailable = hidden if error.value == _NO_PERMISSION else lost
            unavailable.append(Unavailable(index, error.value, str(error)))
            continue
        except UnicodeDecodeError as error:
            lost.append(Unavailable(index, None, f"its UUID cannot be read: {error}"))
            continue
        device = _gpu(nvml, handle, uuid, index)
        if _mig_enabled(nvml, handle):
            parents.append(device)
            devices.extend(_instances(nvml, handle, device))
        else:
            devices.append(device)
    if not devices:
        raise _nothing(count, parents, lost, hidden)
    for gone in lost:
        tell(WARNING, "GPU %d is lost: %s (code %s)", gone.index, gone.text, gone.code)
    return Snapshot(
        status=Status.OK,
        source="nvml",
        detail=_summary(devices, parents, lost, hidden),
        advice="reset or reboot to get the lost GPUs back" if lost else "",
        devices=tuple(devices),
        mig_parents=tuple(parents),
        lost=tuple(lost),
        hidden=tuple(hidden),
        driver=_field(nvml, nvml.nvmlSystemGetDriverVersion),
        nvml=_field(nvml, nvml.nvmlSystemGetNVMLVersion),
        cuda=_field(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2),
    )


def _nothing(
    count: int, parents: list[Device], lost: list[Unavailable], hidden: list[Unavailable]
) -> _Failure:
    """Why none of the GPUs that NVML counts is a device of this process."""
    if lost:
        worst = lost[0]
        return _Failure(
            Status.ERROR,
            f"no usable GPU: {len(lost)} of {count} lost ({worst.text})",
            "look at `dmesg`, then reset or reboot",
            worst.code,
        )
    if parents:
        return _Failure(
            Status.NO_DEVICES,
            "all GPUs are in MIG mode, without an instance that this process may use",
            "create one with `nvidia-smi mig -cgi … -C`",
        )
    if hidden:
        return _Failure(
            Status.NO_DEVICES,
            f"this process may open none of the {count} GPUs of this machine",
            "ask the scheduler for a GPU",
            _NO_PERMISSION,
        )
    return _Failure(Status.NO_DEVICES, "NVML counts no GPU", "check `nvidia-smi -L`")


def _summary(
    devices: list[Device], parents: list[Device], lost: list[Unavailable], hidden: list[Unavailable]
) -> str:
    """What was found, as one line: ``7 GPUs, 1 lost``."""
    instances = [device for device in devices if device.parent_uuid is not None]
    gpus = len(devices) - len(instances)
    parts = []
    if gpus or not parents:
        parts.append("1 GPU" if gpus == 1 else f"{gpus} GPUs")
    if parents:
        parts.append(f"{len(instances)} MIG instances on {len(parents)} GPUs")
    if lost:
        parts.append(f"{len(lost)} lost")
    if hidden:
        parts.append(f"{len(hidden)} hidden")
    return ", ".join(parts)


def _gpu(nvml: Any, handle: Any, uuid: str, index: int) -> Device:
    return Device(
        uuid=uuid,
        index=index,
        minor=_field(nvml, nvml.nvmlDeviceGetMinorNumber, handle),
        pci_bus_id=_field(nvml, lambda: _bus_id(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        name=_field(nvml, nvml.nvmlDeviceGetName, handle),
        compute_capability=_capability(nvml, handle),
        memory_bytes=_memory_bytes(nvml, handle),
        core_count=_field(nvml, nvml.nvmlDeviceGetNumGpuCores, handle),
    )


def _instances(nvml: Any, parent_handle: Any, parent: Device) -> list[Device]:
    """The MIG instances in their slots; a slot may be empty (NOT_FOUND) before one that is not."""
    found = []
    for slot in range(_field(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, parent_handle) or 0):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent_handle, slot)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except (nvml.NVMLError, UnicodeDecodeError) as error:
            if getattr(error, "value", None) not in (_NOT_FOUND, _NO_PERMISSION):
                tell(WARNING, "MIG slot %d of GPU %s cannot be read: %s", slot, parent.index, error)
            continue
        found.append(_instance(nvml, handle, uuid, slot, parent))
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
        multiprocessor_count=_field(
            nvml, lambda: nvml.nvmlDeviceGetAttributes(handle).multiprocessorCount
        ),
    )


def _field(nvml: Any, query: Callable[..., Any], *args: Any) -> Any:
    """The answer, or None: not supported, not permitted, not decodable, or not what the caller expects of pynvml."""
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
        if error.value in (3, _NO_PERMISSION):
            return None
    total: int | None = _field(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
    return total


def _bus_id(text: str | bytes) -> str | None:
    """``0000:1B:00.0`` or ``00000000:1B:00.0`` as ``00000000:1b:00.0``; None for ``N/A``."""
    plain = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    domain, _, rest = plain.lower().partition(":")
    return f"{int(domain, 16):08x}:{rest}" if rest else None
