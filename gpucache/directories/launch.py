"""Which device a command of `gpucache run` gets, by option or by local rank, and the environment that gives it.

`gpucache.directories.local_rank` reads the rank from the launcher's variables. The report of a launch tells which
variables were set, kept and replaced, and why.
"""

from __future__ import annotations

import errno
import os

from gpucache import environment
from gpucache.configuration import changeable
from gpucache.directories.local_rank import local_rank
from gpucache.directories.provision import Provision
from gpucache.directories.python_path import is_on_path, unnamable, with_site, without_site
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.directories.settings import VARIABLES, Change, Setting, marks, set_by_outer
from gpucache.directories.visible_by_record import contradiction
from gpucache.disk.members import base_of_others
from gpucache.environment import SET_BY_RUN
from gpucache.errors import ConfigurationError, DeviceIndexError, ProvisionError, RecordError
from gpucache.layout.paths import ours
from gpucache.machine.device import architectures as known_architectures
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpucache.directories.jit_launch import JitLaunch


class LaunchReport(Value):
    """Which device was chosen, what became of each variable, and what will hurt later."""

    choice: str
    """How the device was chosen, or why none was."""
    device: int | None = None
    """The CUDA ordinal of the device; None where only the root is set, or nothing."""
    device_count: int = 0
    """How many devices there are to choose from."""
    architectures: tuple[str, ...] = ()
    """What they are, as Triton names it (``sm_90``); empty where that is not known of each."""
    has_own_workers: bool = False
    """Whether no device was chosen since there are several and no launcher has stated a rank: the command, if it uses
    more than one, starts its workers itself."""
    settings: tuple[Setting, ...] = ()
    warnings: tuple[str, ...] = ()
    of_node: tuple[str, ...] = ()
    """Those of ``warnings`` that stay true of this node and its root: whoever was told once knows it."""
    created: tuple[str, ...] = ()
    """Names of the device directories that this call made."""
    jit: JitLaunch | None = None
    """What became of JIT caches; None where none was chosen."""


def launch_environ(
    base: Mapping[str, str],
    *,
    device: int | str | None = None,
    force: bool = False,
    root: str | None = None,
    plugin: bool = True,
    caches: Sequence[str] | str | None = None,
    program: str | None = None,
) -> tuple[dict[str, str], LaunchReport]:
    """The environment that gives a command its device's directories, provisioned; and a report of every change.

    ``device`` is a CUDA ordinal under ``base``'s mask, or a UUID, or what only one UUID begins with. Without it: the
    one visible device; else the one that the local rank of torchrun, mpirun or srun says; else none, and only the root
    is set. ``root`` wins over `GPUCACHE_DIR`.
    ``plugin`` turns the Triton plug-in on in each Python that the command starts and that can import gpucache, by
    `PYTHONPATH` (`gpucache.directories.python_path`); without it, an outer call's plug-in is turned off.
    ``caches`` are the JIT caches that are put into the root as well (`gpucache.layout.jit_caches`), ``all`` or names;
    without it, `GPUCACHE_CACHES` in ``base`` says. ``program`` is what will be executed, whose torch names the place of
    its extensions. What the user set is kept unless ``force``; what an outer call set,
    and nobody changed since (`GPUCACHE_SET` tells), is replaced. The record is used where the kernel shows exactly its
    GPUs, and NVML asked otherwise.

    Raises:
        GpuCacheError: discovery, vetting or provisioning failed, the device does not exist, or a word of ``caches`` is
            no cache's name.
    """
    environ = changeable(base, root)  # never handed on: the command reads the files itself
    if environment.DISABLE.read(environ):
        return dict(base), LaunchReport(f"{environment.DISABLE}=1: nothing is set")
    by_outer = set_by_outer(base)
    is_asked_over_pin = force and device is not None
    if environment.PINNED_DEVICE.name in by_outer or is_asked_over_pin:
        # The outer call's pin was for the outer command; its root still holds.
        environ.pop(environment.PINNED_DEVICE.name, None)
    if root is not None:
        environ[environment.ROOT.name] = root
    registry, done = _provisioned(environ, may_be_refused=plugin and device is None)
    warnings = [*done.warnings, *_contradictions(registry, environ)]
    problem = unnamable() if plugin else None
    if problem is not None:
        warnings.append(f"each rank compiles each kernel: {problem}; install gpucache elsewhere")
    device_count = 0
    architectures: tuple[str, ...] = ()
    if done.refused:
        ordinal, choice = None, "no device has a directory here: the root only"
    elif done.unrecorded:
        ordinal, choice = _without_record(device)
    else:
        registry = _pinned(registry, environ)
        device_count, architectures = len(registry), known_architectures(registry.visible.devices)
        ordinal, choice = _ordinal(registry, base, device)
    forced: tuple[str, ...] = VARIABLES if force else ()
    if root is not None:
        forced += (environment.ROOT.name,)
    wanted = _wanted(registry, ordinal)
    if not os.access(registry.root, os.W_OK):
        del wanted[
            environment.INDUCTOR_ROOT.name
        ]  # a compile of torch's fails where it cannot write
        warnings.append(
            f"torch caches where it does by default: it could not write {registry.root}"
        )
    settings = [
        *_device_settings(base, wanted, choice, forced),
        *_plugin_settings(base, plugin and problem is None, force),
    ]
    jit = _jit_launch(registry, ordinal, base, environ, caches, force, program, warnings)
    if jit is not None:
        settings += jit.settings
    several = ordinal is None and device_count > 1
    report = LaunchReport(
        choice=choice,
        device=ordinal,
        device_count=device_count,
        architectures=architectures,
        has_own_workers=several and local_rank(base)[0] is None,
        settings=tuple(settings),
        warnings=tuple(warnings),
        of_node=done.of_node,
        created=done.created,
        jit=jit,
    )
    return _applied(base, settings, by_outer, jit), report


def _jit_launch(
    registry: DeviceCacheRegistry,
    ordinal: int | None,
    base: Mapping[str, str],
    environ: Mapping[str, str],
    caches: Sequence[str] | str | None,
    force: bool,
    program: str | None,
    warnings: list[str],
) -> JitLaunch | None:
    """What becomes of JIT caches, where some are chosen now, or were by an outer call; else None.

    A mistake in `GPUCACHE_CACHES` is a warning, and no cache is chosen.

    Raises:
        ConfigurationError: a word of ``caches`` is no cache's name.
    """
    was_chosen = set_by_outer(base) - set(VARIABLES)
    if caches is None and not environment.CACHES.text(environ) and not was_chosen:
        return None
    from gpucache.directories.jit_launch import jit_launch  # most launches choose none

    devices = registry.visible.devices if ordinal is None else (registry.devices[ordinal],)
    try:
        return jit_launch(
            base_of_others(registry.root), devices, base, caches, environ, force, program
        )
    except ConfigurationError as error:
        if error.name != environment.CACHES.name:
            raise
        warnings.append(f"{error.problem}: no JIT cache is put into the root")
        return None


def _provisioned(
    environ: Mapping[str, str], may_be_refused: bool
) -> tuple[DeviceCacheRegistry, Provision]:
    """The registry of all devices, and what provisioning has made for them.

    Where ``may_be_refused``, nothing in a root that takes nothing and has a store, which the plug-in then uses: as one
    that was unpacked into an image, whose containers have host names of their own.
    """
    registry = _from_record(environ)
    if registry is None:  # not `or`: a registry without devices is false
        registry = DeviceCacheRegistry(environ=environ)
    try:
        return registry, registry.provision()
    except ProvisionError as error:
        root = registry.root
        is_refused = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        if not may_be_refused or not is_refused or not os.path.isdir(ours(root, "store")):
            raise
        fact = f"{root} takes no directories of devices ({error.problem})"
        used = "what is cached there is used, nothing new is kept there"
        devices = registry.snapshot.devices
        return registry, Provision(
            root=root, devices=devices, refused=True, warnings=(f"{fact}: {used}",)
        )


def _pinned(registry: DeviceCacheRegistry, environ: Mapping[str, str]) -> DeviceCacheRegistry:
    """The registry of the one device that the user has pinned; the same registry where no device is pinned."""
    if environment.PINNED_DEVICE.text(environ):
        return DeviceCacheRegistry.load(environ=environ)
    return registry


def _contradictions(registry: DeviceCacheRegistry, environ: Mapping[str, str]) -> Iterator[str]:
    """The warning of a mask that contradicts the user's pin, if there is one."""
    against = contradiction(registry.snapshot, environ, registry.checked)
    if against is not None:
        yield f"{against.fact}: {against.fix}"


def _from_record(environ: Mapping[str, str]) -> DeviceCacheRegistry | None:
    """The registry from the record, or None where NVML must be asked.

    The kernel must show exactly the recorded GPUs. A MIG layout changes under a running machine and nothing cheap
    tells, so those are always looked up; so is a UUID that is not on record.
    """
    try:
        registry = DeviceCacheRegistry.load(environ=environ)
    except RecordError:
        return None
    snapshot, visible = registry.snapshot, registry.visible
    may_have_changed = snapshot.mig_parents or snapshot.lost
    is_guess = visible.how == "guess"
    unknown_uuid = visible.how == "uuid" and visible.cut is not None
    if not registry.checked or may_have_changed or is_guess or unknown_uuid:
        return None
    return registry


def _wanted(registry: DeviceCacheRegistry, ordinal: int | None) -> dict[str, str]:
    """The variables that a command should have, with their values; without an ordinal, what is the same for all."""
    if ordinal is not None:
        return registry.environ(ordinal)
    # The command's own ranks find their directories.
    return {
        environment.ROOT.name: registry.root,
        environment.INDUCTOR_ROOT.name: base_of_others(registry.root),
    }


def _without_record(device: int | str | None) -> tuple[int | None, str]:
    """As `_ordinal`, where no directory was made for the fake device of a host among those with GPUs.

    Raises:
        DeviceIndexError: a device was asked for.
    """
    choice = "no GPU here, among hosts with GPUs: the root only"
    if device is not None:
        raise DeviceIndexError(device, 0, choice)
    return None, choice


def _ordinal(
    registry: DeviceCacheRegistry,
    environ: Mapping[str, str],
    device: int | str | None,
) -> tuple[int | None, str]:
    """The ordinal of the device to pin, or None where only the root is set; and how that was decided."""
    count = len(registry)
    if device is not None:
        ordinal = registry.ordinal(device)  # raises for one that does not exist, naming a pin
        return ordinal, f"device {device}, as asked"
    if count == 1:
        return 0, "the one visible device"
    if count == 0:
        return None, f"no visible device ({registry.visible.cut}): the root only"
    rank, source = local_rank(environ)
    if rank is None:
        return None, f"{count} visible devices and no local rank: the root only"
    if rank >= count:
        return None, f"{source}={rank}, but {count} visible devices: the root only"
    return rank, f"device {rank}, from {source}"


def _device_settings(
    base: Mapping[str, str],
    wanted: Mapping[str, str],
    choice: str,
    forced: tuple[str, ...],
) -> Iterator[Setting]:
    """What becomes of the variables that give a device's directories, of which ``forced`` are replaced in any case."""
    by_outer = set_by_outer(base)
    for name in VARIABLES:
        change = Change(
            name=name,
            had=base.get(name),
            wanted=wanted.get(name),
            by_outer=name in by_outer,
            forced=name in forced,
        )
        setting = change.setting(choice)
        if setting is not None:
            yield setting


def _plugin_settings(base: Mapping[str, str], plugin: bool, force: bool) -> Iterator[Setting]:
    """What becomes of the two variables by which the plug-in is turned on, or off for the command of an inner call."""
    name = environment.PYTHON_PATH.name
    had = environment.PYTHON_PATH.text(base)
    if is_on_path(base) and environment.MANAGER.text(base) == environment.OUR_MANAGER:
        # By no choice of the user's: a program that has imported Triton hands it on.
        reason = "each Python that can import gpucache sets it"
        yield Setting(environment.MANAGER.name, "removed", None, reason)
    if plugin:
        yield from _manager_setting(base, force)
        value = with_site(had)
        reason = "the directory in front turns the plug-in on"
        yield Setting(name, "kept" if value == had else "set", value, reason)
    elif had is not None and is_on_path(base):
        left = without_site(had)
        reason = "an outer gpucache run turned the plug-in on"
        yield Setting(name, "removed" if left is None else "replaced", left, reason)


def _manager_setting(base: Mapping[str, str], force: bool) -> Iterator[Setting]:
    """What becomes of another cache manager than gpucache's, which the user has chosen."""
    name = environment.MANAGER.name
    chosen = environment.MANAGER.text(base)
    if chosen in (None, environment.OUR_MANAGER):
        return
    if force:
        yield Setting(name, "removed", None, f"as asked, over {chosen}")
    else:
        reason = "you set it, and gpucache's plug-in is off; --force turns the plug-in on"
        yield Setting(name, "kept", chosen, reason, by="user")


def _applied(
    base: Mapping[str, str],
    settings: list[Setting],
    by_outer: set[str],
    jit: JitLaunch | None,
) -> dict[str, str]:
    """The base with every setting carried out, and with the marks of all that gpucache has set."""
    environ = dict(base)
    ours: dict[str, str] = {}
    for setting in settings:
        name, value = setting.name, setting.value
        if value is None:
            environ.pop(name, None)
            continue
        environ[name] = value
        if setting.action != "kept" or name in by_outer:
            ours[name] = value
    also = [] if jit is None else [setting.name for setting in jit.settings]
    environ[SET_BY_RUN.name] = marks(ours, also)
    return environ
