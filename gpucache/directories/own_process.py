"""`use`: gives this very process the directories of its device, for workers that learn their device once they run.

Triton and torch read their variables at each use (`triton/knobs.py` of 3.4.0 to 3.9.0, `triton/runtime/cache.py` of
3.2.0, `torch/_inductor/runtime/cache_dir_utils.py` of 2.13.0), so that what is set here holds from the next kernel on.
"""

from __future__ import annotations

import os

from gpucache import configuration, environment
from gpucache.directories.already_cached import knob, late, written_by_torch
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.directories.settings import Change, marks, set_by_outer
from gpucache.errors import TooLateError
from gpucache.log import INFO, tell_in_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.directories.settings import Setting


def use(ordinal: int, *, plugin: bool = True) -> dict[str, str]:
    """Give this process the directories of the device with this CUDA ordinal, by setting ``os.environ``.

    For a worker that somebody else has started, before its first kernel: in the target of a process, the initializer of
    a pool, the constructor of an actor. The device is looked up in this host's record, as `DeviceCacheRegistry.load`
    does, without NVML and CUDA. Children of this process have the same directories.

    What the user or the program has set stays, and the log tells at `GPUCACHE_LOG=info`; what `gpucache run` has set,
    an earlier call, the parent of a forked process, or torch by itself, is replaced. Saying it again changes nothing.
    A process has one directory: one with several devices names the first, and caches the kernels of all there, which
    is safe. Not for threads that compile meanwhile. With `GPUCACHE_DISABLE=1` nothing is set.

    Args:
        ordinal: CUDA's number of the device, among those that this process sees.
        plugin: whether Triton is to use the plug-in, by which the node compiles each kernel once.

    Returns:
        The variables that hold as gpucache wants them. One that is missing, of those of `DeviceCacheRegistry.environ`,
        is the user's.

    Raises:
        TooLateError: a kernel or a graph was compiled or loaded in this process already, elsewhere. Nothing was set.
        DeviceIndexError: this process has no such device.
        RecordError, UnsafeDirectoryError: as `DeviceCacheRegistry.load`.
    """
    environ = os.environ
    if environment.DISABLE.read(configuration.environ(environ)):
        return {}
    before = _chosen_by_others(environ)
    wanted = _wanted(before, ordinal, plugin)
    by_gpucache = set_by_outer(environ)
    settings = [_setting(name, value, before, by_gpucache) for name, value in wanted.items()]
    held = {one.name: wanted[one.name] for one in settings if one.by == "gpucache"}
    found = late(environ, held)
    if found is not None:
        raise TooLateError(ordinal, found.what, found.where)
    _tell_of_kept(settings, wanted, ordinal)
    own = {name: environ[name] for name in by_gpucache}
    own |= {one.name: held[one.name] for one in settings if one.action in ("set", "replaced")}
    environ.update(held)
    environ[environment.SET_BY_RUN.name] = marks(own)
    return held


def _chosen_by_others(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what gpucache or torch has set for another device, or for none."""
    chosen = dict(environ)
    if environment.PINNED_DEVICE.name in set_by_outer(environ):
        del chosen[environment.PINNED_DEVICE.name]
    for name in written_by_torch(environ):
        del chosen[name]
    return chosen


def _wanted(environ: Mapping[str, str], ordinal: int, plugin: bool) -> dict[str, str]:
    registry = DeviceCacheRegistry.load(environ=environ)
    wanted = registry.environ(ordinal, plugin=plugin)
    if not os.access(registry.root, os.W_OK):
        # A compile of torch's fails where it cannot write.
        del wanted[environment.INDUCTOR_ROOT.name]
    return wanted


def _setting(name: str, wanted: str, before: Mapping[str, str], by_gpucache: set[str]) -> Setting:
    """What becomes of one variable, or of the setting of Triton's that stands for it."""
    change = Change(
        name=name,
        had=knob(name) or before.get(name),
        wanted=wanted,
        by_outer=name in by_gpucache,
        forced=False,
    )
    setting = change.setting("as gpucache.use says")
    assert setting is not None  # nothing is removed
    return setting


def _tell_of_kept(settings: list[Setting], wanted: Mapping[str, str], ordinal: int) -> None:
    """Tell what the user has chosen otherwise."""
    said = "kept %s=%s, which was set before gpucache.use(%d) would have set %s"
    for setting in settings:
        if setting.by == "user":
            tell_in_job(INFO, said, setting.name, setting.value, ordinal, wanted[setting.name])
