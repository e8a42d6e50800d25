"""What will hurt before it hurts: `examine` looks at the machine, the environment and the disk, and changes nothing.

The checks are in the modules whose names end in ``_checks``. Each takes the `Case`, and declares the codes of its
findings beside its name (`codes.tells`). A new check is to be listed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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

_MACHINE = (
    machine_checks.lost,
    machine_checks.fake,
    machine_checks.mask,
    machine_checks.pin,
    machine_checks.order_guess,
    machine_checks.mixed_gpus,
)
_RECORD = (record_checks.record,)
_ENVIRONMENT = (
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
)
_REMOTE = (
    remote_checks.setting,
    remote_checks.answers,
)
_FALLBACK = (
    fallback_checks.usable,
    fallback_checks.of_use,
)
_DISK = (
    trust_checks.own_directory,
    trust_checks.group_writable,
    sharing_checks.modes,
    sharing_checks.unfinished,
    sharing_checks.no_acls,
    mount_checks.file_system,
    mount_checks.mount_options,
    mount_checks.refused,
    mount_checks.shared_by_nodes,
    space_checks.room,
    space_checks.over_limit,
    space_checks.headers,
    lock_checks.kernel_locks,
    lock_checks.provision_lock,
    lock_checks.pulls,
    jit_checks.units,
    time_checks.clock_skew,
    time_checks.future_times,
    fallback_checks.access_times,
    remote_checks.pauses,
    remote_checks.bad_entries,
    remote_checks.outboxes,
    remote_checks.pulled_for_others,
)


def examine(
    root: str, environ: Mapping[str, str], probe: bool = False, named: str | None = None
) -> tuple[Finding, ...]:
    """Find what hurts, or will hurt, processes with this environment and this absolute root; empty when all is well.

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
    found = [*bad, *sick, *of_root, *unsafe]
    if probe and is_cache and not unsafe:
        found += mount_checks.tried(root)
    checks = [*_MACHINE, *_ENVIRONMENT, *_FALLBACK, *_REMOTE]
    if is_cache:
        checks = [*_MACHINE, *_RECORD, *_ENVIRONMENT, *_FALLBACK, *_REMOTE, *_DISK]
    for check in checks:
        found += _told(root, check(case))
    return tuple(_without_repeats(found))


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
    *_MACHINE,
    *_RECORD,
    root_check.root,
    environment_checks.bad_values,
    *_ENVIRONMENT,
    *_FALLBACK,
    *_REMOTE,
    trust_checks.unsafe,
    mount_checks.tried,
    *_DISK,
    _told,
)
"""Every code that a finding of `examine` may have, and what the code means."""
