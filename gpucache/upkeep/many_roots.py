"""`prune_roots`: prunes the roots of many users, each with its owner's rights, in a child of its own.

Started by root, as from a timer, nothing below a root is ever opened or removed with root's rights: the child looks at
the directory itself, gives root's rights up for those of its owner (`owners_rights`), and only then looks in. So links,
hard links and swapped directories can lead it to nothing that the owner could not remove himself. What it costs is
bounded (`bounded_children`); what it answers is counted, and shown as anybody's text is.

Started by another user, it prunes what that user may prune, likewise each in a child.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from gpucache.configuration import for_all
from gpucache.disk.root import check_cache, refuse_device_directory
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.errors import GpuCacheError, NoRootError
from gpucache.layout.paths import our_directories
from gpucache.report.cache_report import scan
from gpucache.store.counter_fold import fold
from gpucache.store.recency import stamp_interval
from gpucache.upkeep.bounded_children import Ended, ended
from gpucache.upkeep.jit_prune import UnitPolicy
from gpucache.upkeep.owners_rights import become, is_of_system, rights_of, swappable
from gpucache.upkeep.plan import Plan, plan
from gpucache.upkeep.prune import PrunePolicy
from gpucache.upkeep.straight_way import Way, is_pattern, matches, walked

State = Literal[
    "pruned",
    "planned",
    "no-match",
    "no-cache",
    "system",
    "refused",
    "failed",
    "killed",
    "timed-out",
]
_ANSWERS: tuple[State, ...] = ("pruned", "planned", "no-cache", "system", "refused")
_MOST_LETTERS = 2000
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedRoot:
    """What came of one root, or of a pattern."""

    root: str
    state: State
    """``planned``: only looked at. ``no-match``: of a pattern that stands for no directory. ``no-cache``: a pattern
    stands for it, and no cache is in it. ``system``: a pattern stands for it, and it is a system user's. ``refused``:
    it is not safe, or the disk says no. ``failed``: for another reason. ``killed``, ``timed-out``: its child."""
    uid: int | None = None
    """The owner, if he is known."""
    entries: int = 0
    """How many went, or would go; so the next ones."""
    slimmed: int = 0
    strays: int = 0
    units: int = 0
    """Of other JIT caches."""
    physical_bytes: int = 0
    """How many were freed, or would be; with those of TorchInductor's files."""
    kept: int = 0
    """How many would go, and are in use or were used too recently."""
    problem: str = ""
    hint: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether something was not done that was asked for."""
        return self.state in ("refused", "failed", "killed", "timed-out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How roots are to be pruned."""

    policy: PrunePolicy | UnitPolicy
    grace_s: float | None = None
    """None: three times as long as a use may go unstamped in that root."""
    dry_run: bool = False
    limit_s: float = 600.0
    """How long the child of a root may take, and that which looks what a pattern matches."""


def prune_roots(
    patterns: Iterable[str], order: Order, environ: Mapping[str, str]
) -> Iterator[PrunedRoot]:
    """Prune each root that the absolute paths and patterns stand for, and yield what came of each, as they end.

    For root, ``environ`` must have no setting of another user's. A root that several patterns stand for is pruned once.
    Beside any readers, writers and removers; the calling process must have no threads.
    """
    _import_all()
    roots: dict[str, bool] = {}
    patterns = list(patterns)
    for path in patterns:
        if not is_pattern(path):
            roots[os.path.normpath(path)] = True
    for match in _found(list(filter(is_pattern, patterns)), order.limit_s):
        if isinstance(match, PrunedRoot):
            yield match
        else:
            roots.setdefault(match, False)
    paths = list(roots)
    acts = [partial(_prune, path, roots[path], order, environ) for path in paths]
    for number, how in ended(acts, order.limit_s):
        yield _outcome(paths[number], how, order.limit_s)


def _found(patterns: list[str], limit_s: float) -> Iterator[str | PrunedRoot]:
    """The directories that patterns stand for, by a child for each directory in which a part is looked up."""
    pending = [(pattern, "/", pattern.split("/")) for pattern in patterns]
    fruitless = dict.fromkeys(patterns)
    while pending:
        acts = [partial(matches, directory, rest) for _, directory, rest in pending]
        below: list[tuple[str, str, list[str]]] = []
        for number, how in ended(acts, limit_s):
            pattern, directory, rest = pending[number]
            if how.how != "answered":
                fruitless.pop(pattern, None)
                yield _not_looked(os.path.join(directory, *rest), how, limit_s)
                continue
            for path, left in how.answer:
                if left:
                    below.append((pattern, path, left))
                else:
                    fruitless.pop(pattern, None)
                    yield path
        pending = below
    for pattern in fruitless:
        yield PrunedRoot(root=pattern, state="no-match")


def _not_looked(pattern: str, how: Ended, limit_s: float) -> PrunedRoot:
    if how.how == "timed-out":
        return _timed_out(pattern, limit_s)
    state: State = "killed" if how.how == "killed" else "refused"
    return PrunedRoot(root=pattern, state=state, problem=how.detail)


def _timed_out(path: str, limit_s: float) -> PrunedRoot:
    problem = f"it took longer than {limit_s:g} s"
    hint = "look whether its mount answers, or say a longer --time-limit"
    return PrunedRoot(root=path, state="timed-out", problem=problem, hint=hint)


def _outcome(path: str, how: Ended, limit_s: float) -> PrunedRoot:
    """What a child has answered, or how else it ended."""
    if how.how == "timed-out":
        return _timed_out(path, limit_s)
    if how.how == "killed":
        return PrunedRoot(
            root=path, state="killed", problem=f"its process was killed by {how.detail}"
        )
    if how.how == "failed":
        return PrunedRoot(root=path, state="failed", problem=how.detail)
    said = how.answer
    if not isinstance(said, dict) or said.get("state") not in _ANSWERS:
        return PrunedRoot(root=path, state="failed", problem="what its process says makes no sense")
    return PrunedRoot(
        root=path,
        state=said["state"],
        uid=_number(said, "uid", None),
        entries=_number(said, "entries", 0),
        slimmed=_number(said, "slimmed", 0),
        strays=_number(said, "strays", 0),
        units=_number(said, "units", 0),
        physical_bytes=_number(said, "physical_bytes", 0),
        kept=_number(said, "kept", 0),
        problem=str(said.get("problem", ""))[:_MOST_LETTERS],
        hint=str(said.get("hint", ""))[:_MOST_LETTERS],
    )


def _number(said: Mapping[str, Any], name: str, default: T) -> int | T:
    value = said.get(name)
    return value if isinstance(value, int) and value >= 0 else default


def owner_of(path: str, limit_s: float = 10.0) -> int | None:
    """The uid of whoever owns a directory; None where there is none, or it does not answer in time."""
    for _, how in ended([partial(_owner_of, path)], limit_s):
        return how.answer if how.how == "answered" else None
    return None


# ---- in the child


def _owner_of(path: str) -> int:
    return os.stat(path).st_uid


def _prune(path: str, is_named: bool, order: Order, environ: Mapping[str, str]) -> dict[str, Any]:
    """Prune one root; the fields of a `PrunedRoot`."""
    try:
        way = walked(path)
    except OSError as error:
        return _refused(None, error)
    found = os.fstat(way.fd)
    is_root = os.geteuid() == 0
    uid = found.st_uid
    if is_root and is_of_system(uid) and not is_named:
        problem = f"it belongs to uid {uid}, a user of the system's"
        return {"state": "system", "uid": uid, "problem": problem}
    try:
        if is_root:
            _give_up(way, found)
        os.close(way.fd)
        return {"uid": uid, **_pruned(way.path, is_named, order, environ)}
    except (GpuCacheError, OSError) as error:
        return _refused(uid, error)


def _give_up(way: Way, found: os.stat_result) -> None:
    """Give up root's rights for those of the owner.

    Raises:
        OSError: somebody else could put another directory there, or the rights cannot be given up.
    """
    why = swappable(way.above, found)
    if why is not None:
        raise PermissionError(why)
    become(rights_of(found))


def _refused(uid: int | None, error: Exception) -> dict[str, Any]:
    problem, hint = str(error), ""
    if isinstance(error, GpuCacheError):
        problem, hint = error.problem, error.hint
    elif isinstance(error, OSError) and error.strerror:
        problem = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return {"state": "refused", "uid": uid, "problem": problem, "hint": hint}


def _pruned(root: str, is_named: bool, order: Order, environ: Mapping[str, str]) -> dict[str, Any]:
    """Plan, and carry the plan out, with the rights that this process has now."""
    try:
        check_cache(root, "--root")
    except NoRootError as error:
        if is_named or error.reason != "no-cache":
            raise
        return {"state": "no-cache"}
    trust = Trust.parse(environ).in_root(root)
    vet(root, trust)
    for directory in our_directories(root):
        vet_child(directory, trust)
    refuse_device_directory(root, "--root")
    if not order.dry_run:
        fold(root)
    made = _planned(root, order, for_all(root, environ))
    if order.dry_run:
        return {
            "state": "planned",
            "entries": len(made.removing),
            "slimmed": len(made.slimming),
            "strays": len(made.strays),
            "units": len(made.jit_units),
            "physical_bytes": made.physical_bytes,
            "kept": len(made.kept),
        }
    done = made.execute()
    return {
        "state": "pruned",
        "entries": done.entries,
        "slimmed": done.slimmed,
        "strays": done.strays,
        "units": done.units,
        "physical_bytes": done.freed.physical_bytes,
        "kept": len(made.kept) + len(done.skipped),
    }


def _planned(root: str, order: Order, settings: Mapping[str, str]) -> Plan:
    grace_s = 3 * stamp_interval(settings) if order.grace_s is None else order.grace_s
    policy = order.policy
    if isinstance(policy, UnitPolicy):
        return replace(policy, grace_s=grace_s).planned(root)
    return plan(scan(root), replace(policy, grace_s=grace_s), settings)


_ROOMS = (
    "gpucache.upkeep",
    "gpucache.report",
    "gpucache.configuration",
    "gpucache.store",
    "gpucache.disk",
    "gpucache.layout",
)
_LATE = (
    "packaging.specifiers",
    "packaging.version",
    "tempfile",
    "zlib",
    "encodings.ascii",
    "encodings.utf_8_sig",
    "encodings.idna",
)


def _import_all() -> None:
    """Import all that a child may need: with its owner's rights it may not be able to read root's Python.

    Nor is a module looked for on a path that the owner could have filled.
    """
    for room in _ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(package.__path__, f"{room}."):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)
