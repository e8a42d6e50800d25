"""The environment for a command that uses a GPU: what `gpucache run` sets, keeps and replaces, and why."""

from __future__ import annotations

import os
import re
import sys

from gpucache import environment
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.environment import SET_BY_RUN, mark, was_set_by_run
from gpucache.errors import RecordError
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal


# Local rank, and the variable by which that launcher states how many tasks it put on this node. torchrun always
# means it; mpirun and srun set a rank for a single task too, which may itself be a launcher.
_RANKS = (
    ("LOCAL_RANK", ()),
    ("OMPI_COMM_WORLD_LOCAL_RANK", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    ("MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),
    ("PMI_LOCAL_RANK", ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")),
    ("SLURM_LOCALID", ("SLURM_STEP_TASKS_PER_NODE",)),
)


class Setting(Value):
    """What happened to one variable."""

    name: str
    action: Literal["set", "kept", "replaced", "removed"]
    value: str | None
    """What the command will see; None when it is unset."""
    reason: str
    by: Literal["gpucache", "user"] = "gpucache"
    """Whose choice the value is: the user's where it is kept although gpucache would give another, which wins."""


class LaunchReport(Value):
    """Which device was chosen, what became of each variable, and what will hurt later."""

    choice: str
    """How the device was chosen, or why none was."""
    device: int | None = None
    """The CUDA ordinal of the device; None where only the root is set, or nothing."""
    settings: tuple[Setting, ...] = ()
    warnings: tuple[str, ...] = ()


def launch_environ(
    base: Mapping[str, str],
    *,
    device: int | None = None,
    force: bool = False,
    root: str | None = None,
    plugin: bool = False,
) -> tuple[dict[str, str], LaunchReport]:
    """The environment that gives a command its device's directories, provisioned; and a report of every change.

    ``device`` is a CUDA ordinal under ``base``'s mask. Without it: the one visible device; else the one that the
    local rank of torchrun, mpirun or srun says; else none, and only the root is set. ``root`` wins over `GPUCACHE_DIR`.
    ``plugin`` adds the Triton plug-in, for a command whose Python can import gpucache (see `runs_our_python`).
    What the user set is kept unless ``force``; what an outer call set, and nobody changed since (`GPUCACHE_SET` tells),
    is replaced. The record is used where the kernel shows exactly its GPUs, and NVML asked otherwise.

    Raises:
        GpuCacheError: discovery, vetting or provisioning failed, or the device does not exist.
    """
    if environment.DISABLE.read(base):
        return dict(base), LaunchReport(f"{environment.DISABLE}=1: nothing is set")
    ours = _set_by_outer(base)
    # The outer call's pin was for the outer command; its root still holds.
    environ = {
        name: value
        for name, value in base.items()
        if name != environment.PINNED_DEVICE.name or name not in ours
    }
    if root is not None:
        environ[environment.ROOT.name] = root
    registry, warnings = _provisioned(environ)
    ordinal, choice = _ordinal(registry, base, device)
    wanted = _root_only(registry) if ordinal is None else registry.environ(ordinal)
    if plugin:
        wanted[environment.MANAGER.name] = environment.OUR_MANAGER
    force_of = {
        name: force or (name == environment.ROOT.name and root is not None) for name in _VARIABLES
    }
    considered = (
        _setting(name, base, wanted.get(name), ours, force_of[name], choice) for name in _VARIABLES
    )
    settings = [setting for setting in considered if setting is not None]
    return _applied(base, settings, ours), LaunchReport(choice, ordinal, tuple(settings), warnings)


_VARIABLES = (
    environment.ROOT.name,
    environment.PINNED_DEVICE.name,
    environment.INDUCTOR_ROOT.name,
    environment.TRITON_DIRECTORY.name,
    environment.MANAGER.name,
)


def runs_our_python(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command is this very interpreter, or a script whose first line names it (as torchrun's does)."""
    found = which(command[0], environ)
    return found is not None and (_is_ours(found) or _is_ours(_interpreter(found, environ)))


def which(command: str, environ: Mapping[str, str]) -> str | None:
    """The file that executing this command in this environment runs; None where there is none."""
    if os.path.dirname(command):
        candidates = [command]
    else:
        candidates = [os.path.join(place, command) for place in os.get_exec_path(environ)]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def _is_ours(executable: str | None) -> bool:
    """The same file and the same directory: the latter is what makes a virtual environment."""
    if not executable or not sys.executable:
        return False
    ours = os.path.dirname(os.path.abspath(sys.executable)) == os.path.dirname(
        os.path.abspath(executable)
    )
    return ours and os.path.realpath(executable) == os.path.realpath(sys.executable)


def _interpreter(script: str, environ: Mapping[str, str]) -> str | None:
    """What the ``#!`` line of a script names, through ``env`` if need be."""
    try:
        with open(script, "rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    if len(words) > 1 and os.path.basename(words[0]) == "env":
        return which(words[1], environ)
    return words[0] if words else None


def _provisioned(environ: Mapping[str, str]) -> tuple[DeviceCacheRegistry, tuple[str, ...]]:
    registry = _current(environ)
    if registry is None:  # not `or`: a registry without devices is false
        registry = DeviceCacheRegistry(environ=environ)
    warnings = registry.provision().warnings
    if environment.PINNED_DEVICE.text(environ):  # the user's
        registry = DeviceCacheRegistry.load(environ=environ)
    return registry, warnings


def _current(environ: Mapping[str, str]) -> DeviceCacheRegistry | None:
    """The registry from the record, or None where NVML must be asked.

    The kernel must show exactly the recorded GPUs. A MIG layout changes under a running machine and nothing cheap
    tells, so those are always looked up; so is a UUID that is not on record.
    """
    try:
        registry = DeviceCacheRegistry.load(environ=environ)
    except RecordError:
        return None
    snapshot, visible = registry.snapshot, registry.visible
    unsure = snapshot.mig_parents or snapshot.lost or visible.how == "guess"
    unknown = visible.how == "uuid" and visible.cut is not None
    return registry if registry.checked and not unsure and not unknown else None


def _root_only(registry: DeviceCacheRegistry) -> dict[str, str]:
    return {environment.ROOT.name: registry.root, environment.INDUCTOR_ROOT.name: registry.root}


def _ordinal(
    registry: DeviceCacheRegistry, environ: Mapping[str, str], device: int | None
) -> tuple[int | None, str]:
    """The ordinal to pin, or None for the root only; and the reason."""
    count = len(registry)
    if device is not None:
        registry.path(device)  # raises for one that does not exist, naming a pin
        return device, f"device {device}, as asked"
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


def local_rank(environ: Mapping[str, str]) -> tuple[int | None, str | None]:
    """The rank of this process on its node, and the variable that says so.

    All but `LOCAL_RANK` count only where their launcher states that it put more than one task on this node:
    ``srun --ntasks-per-node=1 gpucache run -- torchrun …`` must not pin every rank to device 0.
    """
    for name, sizes in _RANKS:
        text = environ.get(name, "")
        if not re.fullmatch(r"[0-9]{1,6}", text):
            continue
        if not sizes or any(_tasks(environ, size) > 1 for size in sizes):
            return int(text), name
    return None, None


def _tasks(environ: Mapping[str, str], name: str) -> int:
    """How many tasks the launcher states for this node; 0 where it states nothing.

    Slurm lists all nodes of the step, as in ``4(x2),1``; `SLURM_NODEID` counts into that list.
    """
    node = environ.get("SLURM_NODEID", "0")
    left = int(node) if re.fullmatch(r"[0-9]{1,6}", node) else 0
    parts = [
        re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        for part in environ.get(name, "").split(",")
    ]
    if len(parts) == 1 and parts[0] is not None and parts[0][2] is None:
        return int(parts[0][1])  # one number is about this node
    for part in parts:
        if part is None:
            return 0
        if left < int(part[2] or 1):
            return int(part[1])
        left -= int(part[2] or 1)
    return 0


def _setting(
    name: str, base: Mapping[str, str], wanted: str | None, ours: set[str], force: bool, choice: str
) -> Setting | None:
    """What becomes of one variable; None when it was and stays unset."""
    had = base.get(name)
    if wanted is None:
        return (
            Setting(name, "removed", None, f"an outer gpucache run set it; {choice}")
            if name in ours and had
            else None
        )
    if not had:
        return Setting(name, "set", wanted, choice)
    if had == wanted:
        return Setting(name, "kept", had, "it has the right value")
    if (
        name not in (environment.PINNED_DEVICE.name, environment.MANAGER.name)
        and os.path.abspath(had) == wanted
    ):
        return Setting(
            name, "replaced", wanted, f"the same as {had}, for a process that is elsewhere"
        )
    if name in ours:
        return Setting(name, "replaced", wanted, f"an outer gpucache run set it; {choice}")
    if force:
        return Setting(name, "replaced", wanted, f"as asked, over {had}")
    return Setting(name, "kept", had, f"you set it; with --force it would be {wanted}", by="user")


def _applied(base: Mapping[str, str], settings: list[Setting], ours: set[str]) -> dict[str, str]:
    environ = dict(base)
    for setting in settings:
        if setting.value is None:
            environ.pop(setting.name, None)
        else:
            environ[setting.name] = setting.value
    made = {setting.name for setting in settings if setting.action in ("set", "replaced")}
    made |= {
        setting.name for setting in settings if setting.action == "kept" and setting.name in ours
    }
    environ[SET_BY_RUN.name] = marks({name: environ[name] for name in made})
    return environ


def marks(variables: Mapping[str, str]) -> str:
    """The value of `GPUCACHE_SET` that tells an inner call which variables are ours to replace."""
    return ",".join(mark(name, variables[name]) for name in _VARIABLES if name in variables)


def _set_by_outer(environ: Mapping[str, str]) -> set[str]:
    """The variables that an outer call set and that still have its value."""
    return {name for name in _VARIABLES if was_set_by_run(name, environ)}
