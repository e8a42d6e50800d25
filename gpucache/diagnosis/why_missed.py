"""`why_missed`: tells why an entry is not a hit for a process, from what is wrong where that process looks. Reads only.

No lock is taken and no use stamped; Triton is not imported. Damage is judged as `gpucache verify` judges it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from gpucache import environment
from gpucache.diagnosis import environment_checks, fallback_checks, made_for, trust_checks
from gpucache.diagnosis.codes import codes_of, tells
from gpucache.diagnosis.where_looked import Looked, where_looked
from gpucache.disk.reading import quietly
from gpucache.disk.vetting import Trust, vet
from gpucache.findings import Finding
from gpucache.kernels.group import GROUP, STANDALONE, read_group
from gpucache.kernels.metadata import Metadata
from gpucache.report.directory_metadata import group_in, metadata_in
from gpucache.report.flaws import DAMAGE, UNTOUCHED, Flaw
from gpucache.report.judge import Judge
from gpucache.store.manifest import CONDEMNED, MANIFEST, entry_path
from gpucache.store.stock import stock_group


def why_missed(
    entry: str, root: str, environ: Mapping[str, str], directory: str | None = None
) -> tuple[Finding, ...]:
    """What keeps the entry of a key (or the one at a path) from being a hit for a process with this environment.

    ``directory`` is the device directory of that process; by default what `TRITON_CACHE_DIR` or the pinned device says,
    else where the path lies, else Triton's own default.

    An ``error`` makes it a miss, unless ``taken-elsewhere`` or ``in-fallback`` is told: then what is wrong with a copy
    does not matter, since the process looks at another one as well, which is whole. A ``warning`` alone makes no miss.
    Where nothing stands against a hit, the process asks for another key: `difference` between this entry and the one
    that it made tells why. The Triton meant is the one installed beside gpucache.
    """
    found = [*environment_checks.bad_values(environ)]
    environ = environment_checks.without_bad_values(environ, found)
    root = os.path.abspath(root)
    looked = where_looked(entry, root, environ, directory)
    found += environment_checks.always_compiling(environ)
    trust = Trust.parse(environ).in_root(root)
    for path in dict.fromkeys((root, looked.directory)):
        refused = trust_checks.refusal(path, trust, vet)
        if refused is not None:
            found.append(refused)
    found += _copies(looked)
    metadata = _metadata((*looked.places, *looked.others))
    if metadata is not None:
        found += made_for.other_architecture(metadata, looked.key, root, environ)
        found += made_for.other_triton(metadata)
        found += made_for.environment_differs(metadata, environ)
    return tuple(found)


def _metadata(directories: tuple[str, ...]) -> Metadata | None:
    """The metadata of the first directory that has any."""
    for directory in directories:
        found = metadata_in(directory)
        if found is not None:
            return found
    return None


# ---- the copies that the process looks at


@tells({"taken-elsewhere": "one copy of an entry is damaged, but the process finds another, whole"})
def _copies(looked: Looked) -> Iterator[Finding]:
    """Tell what is wrong with each copy that the process looks at, or that there is none."""
    judge = Judge()
    damaged: list[str] = []
    whole: list[str] = []
    for path in looked.places:
        if not os.path.exists(path):
            continue
        wrong = [*_wrong(path, looked, judge)]
        yield from wrong
        if _are_warnings(wrong):
            whole.append(path)
        else:
            damaged.append(path)
    if whole:
        if damaged:
            taken = whole[0]
            fact = "this copy is whole, so that the process takes it"
            yield Finding("taken-elsewhere", "warning", taken, fact, "nothing")
        return
    of_fallback = [] if looked.apart else [*_in_fallback(looked)]
    yield from of_fallback
    if not damaged and not any(finding.code == "in-fallback" for finding in of_fallback):
        yield _absent(looked)
    yield from _store_unused(looked)


def _in_fallback(looked: Looked) -> Iterator[Finding]:
    """Tell of the fallback, and of the entry there."""
    path = fallback_checks.fallback_of(looked.environ)
    if path is not None:
        yield from fallback_checks.refused(path, looked.root, looked.environ)
        yield from fallback_checks.entry_of(looked.key, looked.root, looked.environ)


def _are_warnings(findings: list[Finding]) -> bool:
    """Whether no finding is an error, so that the copy is taken nevertheless."""
    return all(finding.level == "warning" for finding in findings)


@tells({"store-unused": "a setting by which a process does not ask the store"})
def _store_unused(looked: Looked) -> Iterator[Finding]:
    for variable, fact, fix in looked.apart:
        fact = f"{fact}, so that the store is not asked"
        yield Finding("store-unused", "warning", variable, fact, fix)


@tells(
    {
        "elsewhere": "an entry is not where the process looks, but in another directory of the root",
        "absent": "an entry is nowhere where the process looks, nor in the rest of the root",
    }
)
def _absent(looked: Looked) -> Finding:
    places = list(looked.places)
    fallback = fallback_checks.fallback_of(looked.environ)
    if fallback is not None and not looked.apart:
        places.append(entry_path(fallback, looked.key))
    fact = f"it is not in {' nor in '.join(places)}"
    if not looked.others:
        fix = "compile it here, or bring it from where it was compiled"
        return Finding("absent", "error", looked.key, fact, fix)
    fact = f"{fact}, but in {', '.join(looked.others)}"
    is_in_store = any(looked.is_stored(path) for path in looked.others)
    if is_in_store:
        fix = "let the process ask the store"
    else:
        fix = f"set {environment.TRITON_DIRECTORY} to the directory that has it"
    return Finding("elsewhere", "error", looked.key, fact, fix)


def _wrong(path: str, looked: Looked, judge: Judge) -> Iterator[Finding]:
    """Tell what is wrong with one directory for the plug-in or, where that does not act, for Triton's own manager."""
    if os.path.islink(path):
        # A process follows the link, but no command of gpucache does.
        flaw = Flaw("link", path, "it is not followed", (0, 0))
        yield flaw.finding(looked.root)
        path = os.path.realpath(path)
    if os.path.lexists(f"{path}/{CONDEMNED}"):
        yield _being_removed(path)
        return
    judged = judge.directory(path, looked.is_stored(path))
    flaws = judged.flaws if judged is not None else ()
    found = [flaw.finding(looked.root) for flaw in flaws]
    yield from found
    if _are_warnings(found):
        yield from _incomplete(path)
        if looked.apart:
            yield from _group_gone(path)


@tells({"being-removed": "a removal of the entry began"})
def _being_removed(path: str) -> Finding:
    fix = "nothing: it is compiled again"
    return Finding("being-removed", "error", path, "a removal of it began", fix)


@tells({"stock-incomplete": "what Triton's own manager left of a compile is no whole kernel"})
def _incomplete(path: str) -> Iterator[Finding]:
    """Tell if a file of the entry is missing that nothing in the directory names."""
    is_listed = os.path.lexists(f"{path}/{MANIFEST}")
    if is_listed or not os.path.isdir(path):
        return
    group = group_in(path)
    if group is None:
        is_standalone = any(name.endswith(STANDALONE) for name in os.listdir(path))
        if not is_standalone:
            fact = "it has no group file: its compile failed, was killed, or goes on"
            fix = "nothing: it is compiled again"
            yield Finding("stock-incomplete", "error", path, fact, fix)
    elif stock_group(path, group, opener=quietly) is None:
        fact = "a file of the group is missing, empty or cut, or its metadata cannot be read"
        fix = f"remove {path}: stock Triton may fail on it"
        yield Finding("stock-incomplete", "error", path, fact, fix)


@tells({"group-gone": "a __grp__ file names files that are gone: stock Triton compiles again"})
def _group_gone(path: str) -> Iterator[Finding]:
    """Tell if the group names files that are gone: stock Triton follows its paths wherever they lead."""
    group = group_in(path)
    if group is None:
        return
    try:
        children = read_group(f"{path}/{GROUP}{group}") or {}
    except OSError:
        return
    gone = [child for child in children.values() if not os.path.exists(child)]
    if gone:
        where = os.path.dirname(gone[0])
        fact = f"its group names files in {where}, which are gone: stock Triton compiles again"
        wanted = f"{environment.MANAGER}={environment.OUR_MANAGER}"
        fix = f"`gpucache verify --repair`, or set {wanted}, which reads them where they lie"
        yield Finding("group-gone", "error", path, fact, fix)


CODES = codes_of(
    environment_checks.bad_values,
    environment_checks.always_compile,
    trust_checks.unsafe,
    _absent,
    _copies,
    _store_unused,
    _being_removed,
    _incomplete,
    _group_gone,
    fallback_checks.usable,
    fallback_checks.entry_of,
)
"""Every code that a finding of `why_missed` may have, and what it means. `gpucache verify` has the same for damage."""
CODES.update(DAMAGE.items())
CODES.update(UNTOUCHED.items())
CODES |= codes_of(
    made_for.other_architecture,
    made_for.other_triton,
    made_for.environment_differs,
)
