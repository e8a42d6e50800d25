"""What `doctor` asks about the fallback, the root from which misses are copied; and about a root that others read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from itertools import islice

from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.made_for import installed_triton
from gpucache.disk.fitness import statvfs
from gpucache.disk.reading import listed
from gpucache.disk.refusal import may
from gpucache.disk.sharing import sharing_of
from gpucache.disk.vetting import Trust
from gpucache.disk.ways_out import of_fallback
from gpucache.environment import FALLBACK
from gpucache.errors import ConfigurationError, GpuCacheError
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.layout.keys import view_key
from gpucache.store.counting import stored_entries
from gpucache.store.fallback import looked_at, read_entry
from gpucache.store.fallback_entry import Fallback
from gpucache.store.manifest import entry_path, read_manifest

_SAMPLE = 500
"""So many entries of a fallback are asked for the Triton that made them."""
_UNSET = f"unset {FALLBACK}"


def fallback_of(environ: Mapping[str, str]) -> str | None:
    """The absolute path of the fallback that is set; None where none is, or none that makes sense."""
    try:
        path = FALLBACK.read(environ)
        return None if path is None else paths.absolute(path)
    except ConfigurationError:
        return None  # told with the other bad values


@tells(
    {
        "fallback-missing": "the root that GPUCACHE_FALLBACK names is not there",
        "fallback-same": "GPUCACHE_FALLBACK names the root itself",
        "fallback-unsafe": "somebody who is not trusted could plant code in the fallback",
        "fallback-unreadable": "this user may not read the fallback",
    }
)
def usable(case: Case) -> Iterator[Finding]:
    """Find what keeps this user from every entry of the fallback, as far as its directories tell."""
    path = fallback_of(case.environ)
    if path is not None:
        yield from refused(path, case.root, case.environ)


def refused(path: str, root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Why nothing is taken of a fallback; nothing where that can be."""
    trust = Trust.parse(environ)
    answer = looked_at(Fallback.at(path, trust), root)
    way_out = of_fallback(path, trust.uids)
    fix = f"{way_out}, or {_UNSET}" if way_out else f"correct {FALLBACK}, or {_UNSET}"
    if answer.did == "no-root":
        fix = f"correct {FALLBACK}, mount what it names, or {_UNSET}"
        yield Finding("fallback-missing", "warning", path, "it is not there", fix)
    elif answer.did == "same":
        fact = "it is the root itself, which is searched before"
        yield Finding("fallback-same", "warning", path, fact, f"correct {FALLBACK}, or {_UNSET}")
    elif answer.did == "unsafe":
        yield Finding("fallback-unsafe", "warning", path, answer.said, fix)
    elif answer.did not in ("hit", "miss"):
        yield Finding("fallback-unreadable", "warning", path, answer.said, fix)


@tells(
    {
        "fallback-empty": "the fallback has no entry",
        "fallback-other-triton": "no entry of the fallback was made by the Triton that is installed here",
    }
)
def of_use(case: Case) -> Iterator[Finding]:
    """Warn of a fallback that can be read, and has nothing for the Triton that is installed beside gpucache."""
    path = fallback_of(case.environ)
    if path is None or any(refused(path, case.root, case.environ)):
        return
    made_by = _versions(path)
    if not made_by:
        fact = "nothing is in its store: only what was compiled under gpucache is"
        fix = f"compile into it, `gpucache unpack --root {shlex.quote(path)}` a pack, or {_UNSET}"
        yield Finding("fallback-empty", "warning", path, fact, fix)
        return
    installed = installed_triton()
    made_by.discard(None)  # before 3.3 none says it
    if installed is None or not made_by or installed in made_by:
        return
    versions = ", ".join(sorted(filter(None, made_by)))
    fact = f"its kernels were made by Triton {versions}; here is {installed}, which has other keys"
    fix = f"compile into it with triton=={installed}, or {_UNSET}"
    yield Finding("fallback-other-triton", "warning", path, fact, fix)


def _versions(path: str) -> set[str | None]:
    """Which Tritons have made the entries of a root, as far as a sample of them tells."""
    found = set()
    for entry in islice(stored_entries(path), _SAMPLE):
        try:
            read = read_manifest(entry)
        except OSError:
            continue
        if read is not None:
            found.add(read[0].facts.triton_version)
    return found


@tells(
    {
        "in-fallback": "the fallback has an entry, which the next miss copies",
        "fallback-refused": "the fallback has an entry that is refused",
    }
)
def entry_of(key: str, root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Tell what a miss of one of Triton's keys would come upon in the fallback; nothing if it has no such entry.

    Reads what that reads, with the same checks.
    """
    path = fallback_of(environ)
    if path is None:
        return
    fallback = Fallback.at(path, Trust.parse(environ))
    for store_key in _store_keys(path, key):
        answer = read_entry(fallback, root, store_key)
        where = entry_path(path, store_key)
        if answer.did == "hit":
            fact = "it is whole there, and the next process that misses it copies it"
            yield Finding("in-fallback", "warning", where, fact, "nothing")
        elif answer.did not in ("miss", "same", "no-root"):
            fix = f"`gpucache verify --root {shlex.quote(path)}` as its owner"
            yield Finding("fallback-refused", "warning", where, answer.said, fix)


def _store_keys(root: str, key: str) -> list[str]:
    """The keys in the store of a root, under which it may have the entry of one of Triton's keys."""
    shard = os.path.dirname(entry_path(root, key))
    names = map(os.path.basename, listed(shard))
    return [name for name in names if view_key(name) == key] or [key]


@tells({"no-access-times": "others read the root, and its mount does not tell what they use"})
def access_times(case: Case) -> Iterator[Finding]:
    """Warn of a mount without access times under a root that others read: what only they use is the first to go."""
    try:
        is_read = sharing_of(case.root, Trust.parse(case.environ)) == "read"
    except GpuCacheError:
        return
    if not is_read or not may(case.root, os.W_OK):
        return
    disk = statvfs(case.root)
    if disk is None or not disk.f_flag & getattr(os, "ST_NOATIME", 0):
        return
    fact = "others read it, and its file system is mounted noatime: what only they use looks unused"
    fix = "mount it relatime, or raise GPUCACHE_MAX_SIZE so that nothing they need is evicted"
    yield Finding("no-access-times", "warning", case.root, fact, fix)
