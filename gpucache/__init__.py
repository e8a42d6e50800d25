"""Per-GPU cache directories: found through NVML, provisioned safely, resolved in nanoseconds.

The public names are imported when they are first used, so that ``import gpucache`` costs next to nothing.

The modules, by subject; imports only point downward in `pyproject.toml`'s list of layers:

- the machine: `device`, `discovery` (NVML), `visible` (`CUDA_VISIBLE_DEVICES`), `libcuda`, `nodes`
- directories for devices: `registry`, `provision`, `record`, `launch`, `dropin`
- the Triton plug-in: `triton`, `place`, `compiling`, `single`, `compile_lock`, `staging`, `store`, `stats`, `limit`
- what is there: `report`, `entries`, `strays`, `inodes`, `keys`, `metadata`, `cubin`, `inductor`
- removing: `prune`, `clean`, `slim`, `removal`
- what is wrong: `findings`; `verify`, `damage`, `flaws`, `contents`, `mending`, `reading`; `doctor`, `disk_checks`,
  `environment_checks`; `explain`, `missed`; `config`, `log`
- the command line: `cli`, `cli_caches`, `cli_diagnosis`, `terminal`, `formats`, `cache_formats`
- under all of them: `paths`, `fs`, `mounts`, `vetting`, `units`, `errors`
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for it would double the cost of this module
if TYPE_CHECKING:
    from typing import Any

    from gpucache.device import Device, Snapshot, Status, Unavailable
    from gpucache.discovery import discover
    from gpucache.dropin import cache_dir, default_cache_dir, temporary_cache_dir, triton_cache_dir
    from gpucache.errors import (
        CacheMissError,
        ConfigurationError,
        DeviceIndexError,
        DiscoveryError,
        GpuCacheError,
        LockTimeoutError,
        NoDeviceError,
        ProvisionError,
        RecordError,
        UnsafeDirectoryError,
    )
    from gpucache.launch import LaunchReport, Setting, launch_environ
    from gpucache.provision import Provision
    from gpucache.registry import DeviceCacheRegistry
    from gpucache.visible import Visible, visible_devices

__version__ = "0.1.0"

_HOME = {
    "Device": "device",
    "Snapshot": "device",
    "Status": "device",
    "Unavailable": "device",
    "discover": "discovery",
    "cache_dir": "dropin",
    "default_cache_dir": "dropin",
    "temporary_cache_dir": "dropin",
    "triton_cache_dir": "dropin",
    "CacheMissError": "errors",
    "ConfigurationError": "errors",
    "DeviceIndexError": "errors",
    "DiscoveryError": "errors",
    "GpuCacheError": "errors",
    "LockTimeoutError": "errors",
    "NoDeviceError": "errors",
    "ProvisionError": "errors",
    "RecordError": "errors",
    "UnsafeDirectoryError": "errors",
    "LaunchReport": "launch",
    "Setting": "launch",
    "launch_environ": "launch",
    "Provision": "provision",
    "DeviceCacheRegistry": "registry",
    "Visible": "visible",
    "visible_devices": "visible",
}

__all__ = [
    "CacheMissError",
    "ConfigurationError",
    "Device",
    "DeviceCacheRegistry",
    "DeviceIndexError",
    "DiscoveryError",
    "GpuCacheError",
    "LaunchReport",
    "LockTimeoutError",
    "NoDeviceError",
    "Provision",
    "ProvisionError",
    "RecordError",
    "Setting",
    "Snapshot",
    "Status",
    "Unavailable",
    "UnsafeDirectoryError",
    "Visible",
    "__version__",
    "cache_dir",
    "default_cache_dir",
    "discover",
    "launch_environ",
    "temporary_cache_dir",
    "triton_cache_dir",
    "visible_devices",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
