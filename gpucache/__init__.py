"""A cache for Triton kernels: one directory for each GPU, one copy of each kernel.

GPUs are found through NVML; their directories are provisioned safely and resolved in nanoseconds.

The public names are imported when they are first used, so that ``import gpucache`` costs next to nothing.

The folders, from the top. An import only points downward (`pyproject.toml` has the contracts); folders
joined by ``|`` do not know each other:

- `cli`: what the terminal says and asks; the only door to click and rich
- `watch`: what is seen of a cache as it changes
  | `demo`: shows on any machine what gpucache saves: ranks that compile the same kernels, by stock Triton and by the
  plug-in
- `diagnosis`: why something is slow, missing or dangerous; changes nothing
  | `upkeep`: keep a cache small and whole: prune, clean, slim, verify --repair
  | `warm`: compiles what recipes say, into the store, before a program asks for it
  | `transfer`: what carries entries to other machines and back: packs as files, and pushes and pulls of remotes
- `triton`: Triton's cache manager: each kernel compiled once per node
  | `report`: what lies in a root and what is wrong with it, as values; reads only
- `remote`: entries and packs on other machines: where they lie, how they are got and put, and what goes wrong on the
  way
- `archive`: entries as one stream of bytes, whose statement is signed and whose reader believes nothing that the
  stream says
- `store`: one whole copy of each entry: publish, find, lock, remove, bound, count
- `directories`: which device has which directory: made once, on record, resolved free
  | `kernels`: what Triton writes for one kernel: metadata, group, binary
- `configuration`: settings from files: the system's, the user's and a root's, over the defaults and under the
  environment
- `disk`: files, locks, mounts, trust: file-system work that knows no kernel
- `machine`: which GPUs there are and which a process sees; touches no cache
  | `layout`: where everything is in a root, and what names look like
- `environment`: every environment variable: its name, and how its value is read
- `errors`, `forks`, `threads`, `log` (with `stderr_log`), `units`, `findings`; `values` (frozen values that start
  fast), `once`, `escapes` (texts of anybody's, made safe to show)
- `site`: no package; on `PYTHONPATH` under `gpucache run`, where it turns the plug-in on in any Python of a job
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for it would double the cost of this module
if TYPE_CHECKING:
    from typing import Any

    from gpucache.directories.dropin import (
        cache_dir,
        default_cache_dir,
        temporary_cache_dir,
        triton_cache_dir,
    )
    from gpucache.directories.launch import LaunchReport, launch_environ
    from gpucache.directories.own_process import use
    from gpucache.directories.provision import Provision
    from gpucache.directories.registry import DeviceCacheRegistry
    from gpucache.directories.settings import Setting
    from gpucache.errors import (
        CacheMissError,
        ConfigurationError,
        DeviceIndexError,
        DeviceNameError,
        DiscoveryError,
        GpuCacheError,
        LockTimeoutError,
        NoDeviceError,
        NoRootError,
        ProvisionError,
        RecipesError,
        RecordError,
        TooLateError,
        UnsafeDirectoryError,
    )
    from gpucache.machine.device import Device, Snapshot, Status, Unavailable
    from gpucache.machine.nvml import discover
    from gpucache.machine.visible import Visible, visible_devices
    from gpucache.report import scan
    from gpucache.upkeep.plan import plan
    from gpucache.upkeep.prune import PrunePolicy

__version__ = "0.1.0"

_HOME = {
    "Device": "machine.device",
    "Snapshot": "machine.device",
    "Status": "machine.device",
    "Unavailable": "machine.device",
    "discover": "machine.nvml",
    "cache_dir": "directories.dropin",
    "default_cache_dir": "directories.dropin",
    "temporary_cache_dir": "directories.dropin",
    "triton_cache_dir": "directories.dropin",
    "CacheMissError": "errors",
    "ConfigurationError": "errors",
    "DeviceIndexError": "errors",
    "DeviceNameError": "errors",
    "DiscoveryError": "errors",
    "GpuCacheError": "errors",
    "LockTimeoutError": "errors",
    "NoDeviceError": "errors",
    "NoRootError": "errors",
    "ProvisionError": "errors",
    "RecipesError": "errors",
    "RecordError": "errors",
    "TooLateError": "errors",
    "UnsafeDirectoryError": "errors",
    "LaunchReport": "directories.launch",
    "Setting": "directories.settings",
    "launch_environ": "directories.launch",
    "use": "directories.own_process",
    "Provision": "directories.provision",
    "DeviceCacheRegistry": "directories.registry",
    "Visible": "machine.visible",
    "visible_devices": "machine.visible",
    "scan": "report.cache_report",
    "PrunePolicy": "upkeep.prune",
    "plan": "upkeep.plan",
}

__all__ = [
    "CacheMissError",
    "ConfigurationError",
    "Device",
    "DeviceCacheRegistry",
    "DeviceIndexError",
    "DeviceNameError",
    "DiscoveryError",
    "GpuCacheError",
    "LaunchReport",
    "LockTimeoutError",
    "NoDeviceError",
    "NoRootError",
    "Provision",
    "ProvisionError",
    "PrunePolicy",
    "RecipesError",
    "RecordError",
    "Setting",
    "Snapshot",
    "Status",
    "TooLateError",
    "Unavailable",
    "UnsafeDirectoryError",
    "Visible",
    "__version__",
    "cache_dir",
    "default_cache_dir",
    "discover",
    "launch_environ",
    "plan",
    "scan",
    "temporary_cache_dir",
    "triton_cache_dir",
    "use",
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
