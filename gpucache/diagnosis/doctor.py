"""What will hurt before it hurts: `examine` looks at the machine, the environment and the disk, and changes nothing.

The checks are in the modules whose names end in ``_checks``. Each takes the `Case`, and declares the codes of its
findings beside its name (`codes.tells`). A new check is to be listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from gpucache import environment
from gpucache.diagnosis import (
    environment_checks,
    fallback_checks,
    jit_checks,
    lock_checks,
    machine_checks,
    mount_checks,
    record_checks,
    remote_checks,
    root_check,
    sharing_checks,
    space_checks,
    time_checks,
    trust_checks,
)
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import codes_of, tells
from gpucache.directories.record import recorded
from gpucache.disk.refusal import refusal
from gpucache.errors import GpuCacheError
from gpucache.findings import Finding
from gpucache.machine.visible import visible_devices


class Area(NamedTuple):
    """Checks of one subject, and what people are told of it where none of them has found anything."""

    name: str
    checks: tuple[Callable[[Case], Iterable[Finding]], ...]
    if_set: str | None = None
    """The variable without which there is nothing to check."""
    of_root: bool = True
    """Whether the checks look into the root, and are left out where that is no cache."""


_AREAS = (
    Area(
        "GPUs",
        (
            machine_checks.lost,
            machine_checks.fake,
            machine_checks.mask,
            machine_checks.pin,
            machine_checks.order_guess,
            machine_checks.mixed_gpus,
        ),
        of_root=False,
    ),
    Area("the record of this host", (record_checks.record,)),
    Area(
        "environment and settings",
        (
            environment_checks.files_of_settings,
            environment_checks.empty_variables,
            environment_checks.odd_variables,
            environment_checks.hijacked,
            environment_checks.other_device,
            environment_checks.plugin,
            environment_checks.always_compile,
            environment_checks.unknown,
            environment_checks.switched_off,
            environment_checks.fresh_directory,
            environment_checks.triton_version,
        ),
        of_root=False,
    ),
    Area(
        "the fallback",
        (fallback_checks.usable, fallback_checks.of_use),
        if_set=environment.FALLBACK.name,
        of_root=False,
    ),
    Area(
        "the remote",
        (remote_checks.setting, remote_checks.answers),
        if_set=environment.REMOTE.name,
        of_root=False,
    ),
    Area(
        "owners and modes",
        (
            trust_checks.own_directory,
            trust_checks.group_writable,
            sharing_checks.modes,
            sharing_checks.unfinished,
            sharing_checks.no_acls,
        ),
    ),
    Area(
        "the mount",
        (
            mount_checks.file_system,
            mount_checks.mount_options,
            mount_checks.refused,
            mount_checks.shared_by_nodes,
        ),
    ),
    Area("space", (space_checks.room, space_checks.over_limit, space_checks.headers)),
    Area("locks", (lock_checks.kernel_locks, lock_checks.provision_lock, lock_checks.pulls)),
    Area("other JIT caches", (jit_checks.units,)),
    Area(
        "clocks and times",
        (time_checks.clock_skew, time_checks.future_times, fallback_checks.access_times),
    ),
    Area(
        "what was pulled and is to be pushed",
        (
            remote_checks.pauses,
            remote_checks.bad_entries,
            remote_checks.outboxes,
            remote_checks.pulled_for_others,
        ),
    ),
)


class Examination(NamedTuple):
    """What `examine` has found."""

    findings: tuple[Finding, ...]
    """What hurts, or will; empty when all is well."""
    well: tuple[str, ...]
    """The names of what was checked without a finding, such as ``GPUs``."""


def examine(
    root: str, environ: Mapping[str, str], probe: bool = False, named: str | None = None
) -> Examination:
    """Find what hurts, or will hurt, processes with this environment and this absolute root, and what is well.

    Nothing that is examined makes it raise. It writes nothing but a file that is there for an instant, in the root's
    own temporary directory, to ask the file system's clock. It asks NVML as `discover` does, with its time limit, a
    remote that is set for twelve seconds at most, and CUDA nothing. It may run beside any process: it tries a lock only
    after the lock stood still for long. An ``error`` hurts now, or is unsafe; a ``warning`` will hurt, or costs time.
    Of a directory that is no cache nothing else is told. ``named`` is the option or the variable that names the root,
    if any.

    With ``probe`` it tries again what the root's mount can do, and keeps the answer in a safe root.
    """
    bad = tuple(environment_checks.bad_values(environ))
    environ = environment_checks.without_bad_values(environ, bad)
    of_root = tuple(_told(root, root_check.root(root, named)))
    is_cache = not any(finding.code == "root-no-cache" for finding in of_root)
    unsafe: tuple[Finding, ...] = ()
    if is_cache:
        unsafe = tuple(_told(root, trust_checks.unsafe(root, environ)))
    snapshot, sick = machine_checks.discovered(environ)
    known = recorded(root) if is_cache and not unsafe else None
    ordered = snapshot.with_order(known.cuda_order if known else None)
    shown = visible_devices(ordered, {} if sick else environ)
    case = Case(
        root=root,
        environ=environ,
        unsafe=bool(unsafe),
        known=known,
        snapshot=snapshot,
        shown=shown,
    )
    before = {"GPUs": sick, "environment and settings": bad, "owners and modes": unsafe}
    found = [*bad, *sick, *of_root, *unsafe]
    if probe and is_cache and not unsafe:
        before["the mount"] = tuple(mount_checks.tried(root))
        found += before["the mount"]
    well = []
    for area in _AREAS:
        if is_cache or not area.of_root:
            told = _findings_of(area, case)
            found += told
            is_set = area.if_set is None or environ.get(area.if_set)
            if is_set and not told and not before.get(area.name):
                well.append(area.name)
    return Examination(tuple(_without_repeats(found)), tuple(well))


def _findings_of(area: Area, case: Case) -> list[Finding]:
    found: list[Finding] = []
    for check in area.checks:
        found += _told(case.root, check(case))
    return found


@tells({"unreadable": "something could not be examined"})
def _told(root: str, check: Iterable[Finding]) -> Iterator[Finding]:
    """The findings of a check; and where something kept the check from looking, a finding that says what."""
    try:
        yield from check
    except GpuCacheError as error:
        yield Finding("unreadable", "warning", root, error.problem, error.hint)
    except OSError as error:
        where = str(error.filename or root)
        fact = error.strerror or str(error)
        yield Finding("unreadable", "warning", where, fact, refusal(where, error, "look at").hint)


def _without_repeats(found: list[Finding]) -> Iterator[Finding]:
    """The findings, without those of paths that cannot be read only because a directory above them cannot be."""
    unreadable = [finding.subject for finding in found if finding.code == "unreadable"]
    closed = tuple(f"{path}/" for path in unreadable)
    for finding in found:
        is_repeat = finding.code == "unreadable" and finding.subject.startswith(closed)
        if not is_repeat:
            yield finding


CODES = codes_of(
    machine_checks.discovered,
    root_check.root,
    environment_checks.bad_values,
    *(check for area in _AREAS for check in area.checks),
    trust_checks.unsafe,
    mount_checks.tried,
    _told,
)
"""Every code that a finding of `examine` may have, and what the code means."""
