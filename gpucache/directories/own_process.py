"""`use`: gives this very process the directories of its device, for workers that learn their device once they run.

Triton and torch read their variables at each use (`triton/knobs.py` of 3.4.0 to 3.9.0, `triton/runtime/cache.py` of
3.2.0, `torch/_inductor/runtime/cache_dir_utils.py` of 2.13.0), so that what is set here holds from the next kernel on.
"""

from __future__ import annotations

import os

from gpucache import configuration, environment
from gpucache.directories.already_cached import knob, late, read_at_import, written_by_torch
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.directories.settings import VARIABLES, Change, marks, set_by_outer
from gpucache.errors import TooLateError
from gpucache.log import INFO, tell_in_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpucache.directories.settings import Setting


def use(ordinal: int, *, plugin: bool = True, caches: Sequence[str] | str = ()) -> dict[str, str]:
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
        caches: the JIT caches that are put into the root as well, as for `DeviceCacheRegistry.environ`. Of ``all``,
            those are left out whose software was imported already, and reads its variable then only.

    Returns:
        The variables that hold as gpucache wants them. One that is missing, of those of `DeviceCacheRegistry.environ`,
        is the user's.

    Raises:
        TooLateError: a kernel or a graph was compiled or loaded in this process already, elsewhere, or a cache that is
            named belongs to software that was imported. Nothing was set.
        DeviceIndexError: this process has no such device.
        RecordError, UnsafeDirectoryError: as `DeviceCacheRegistry.load`.
    """
    environ = os.environ
    as_set = configuration.environ(environ)
    if environment.DISABLE.read(as_set):
        return {}
    if caches and isinstance(caches, str):
        caches = _named(caches)
    before = _chosen_by_others(environ)
    wanted = _wanted(before, ordinal, plugin, caches)
    by_gpucache = set_by_outer(environ)
    settings = [_setting(name, value, before, by_gpucache) for name, value in wanted.items()]
    held = {one.name: wanted[one.name] for one in settings if one.by == "gpucache"}
    found = late(environ, held)
    if found is not None:
        raise TooLateError(ordinal, found.what, found.where)
    if any(one.by == "user" for one in settings):
        _tell_of_kept(settings, wanted, ordinal, as_set)
    own = {name: environ[name] for name in by_gpucache}
    own |= {one.name: held[one.name] for one in settings if one.action in ("set", "replaced")}
    environ.update(held)
    also = sorted(own.keys() - {*VARIABLES, environment.MANAGER.name})
    environ[environment.SET_BY_RUN.name] = marks(own, also)
    return held


def _named(text: str) -> tuple[str, ...]:
    from gpucache.directories.jit_launch import ARGUMENT
    from gpucache.layout.jit_caches import named

    return named(text, ARGUMENT)


def _chosen_by_others(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what gpucache or torch has set for another device, or for none."""
    chosen = dict(environ)
    others = {environment.PINNED_DEVICE.name, environment.CACHES.name}
    for name in others & set_by_outer(environ) | written_by_torch(environ):
        del chosen[name]
    return chosen


def _wanted(
    environ: Mapping[str, str], ordinal: int, plugin: bool, caches: Sequence[str]
) -> dict[str, str]:
    """The variables that this process is to have.

    Raises:
        TooLateError: a cache that is named is one of software that was imported.
    """
    registry = DeviceCacheRegistry.load(environ=environ)
    wanted = registry.environ(ordinal, plugin=plugin, caches=caches, given=environ)
    if not os.access(registry.root, os.W_OK):
        # A compile of torch's fails where it cannot write.
        del wanted[environment.INDUCTOR_ROOT.name]
    if caches:
        _leave_out_imported(wanted, environ, ordinal, caches)
    return wanted


def _leave_out_imported(
    wanted: dict[str, str], environ: Mapping[str, str], ordinal: int, caches: Sequence[str]
) -> None:
    """Take out of ``wanted`` the variables that are read no more, but for those that have their values already."""
    from gpucache.directories.jit_launch import ARGUMENT
    from gpucache.layout.jit_caches import chosen

    for cache in read_at_import(row.name for row in chosen(caches, ARGUMENT)):
        names = [name for name, _ in cache.variables if name in wanted]
        unread = [name for name in names if environ.get(name) != wanted[name]]
        if unread and cache.name in caches:
            raise TooLateError(ordinal, "jit-cache", cache.module)
        for name in unread:
            del wanted[name]


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


def _tell_of_kept(
    settings: list[Setting], wanted: Mapping[str, str], ordinal: int, as_set: Mapping[str, str]
) -> None:
    """Tell what the user has chosen otherwise."""
    from gpucache.directories.logging_as_set import log_as_set  # logging is a third of a start

    log_as_set(as_set)
    said = "kept %s=%s, which was set before gpucache.use(%d) would have set %s"
    for setting in settings:
        if setting.by == "user":
            tell_in_job(INFO, said, setting.name, setting.value, ordinal, wanted[setting.name])
