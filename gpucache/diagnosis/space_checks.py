"""What `doctor` asks about space: what the disk has left, what the store takes, what torch keeps elsewhere.

The measures are in `gpucache.disk.fitness`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from gpucache import environment
from gpucache.configuration import in_force
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.looking import nearest
from gpucache.disk.files import inside, size_of
from gpucache.disk.fitness import fitness
from gpucache.environment import ROOT
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.store import limit
from gpucache.store.size import total_bytes
from gpucache.units import size


@tells(
    {
        "little-space": "the root's file system is nearly full",
        "few-inodes": "the root's file system has few inodes left",
    }
)
def room(case: Case) -> Iterator[Finding]:
    """Warn of too little space and too few inodes, by the measures by which `provision` warns.

    A read-only file system needs none: an image is always full.
    """
    root = case.root
    disk = fitness(nearest(root))
    if disk.read_only:
        return
    fix = f"make room (`gpucache prune`), or set {ROOT} to a directory on another disk"
    if disk.little_space_mib is not None:
        fact = f"its file system has {disk.little_space_mib} MiB left"
        yield Finding("little-space", "warning", root, fact, fix)
    if disk.few_inodes is not None:
        fact = f"its file system has {disk.few_inodes} inodes left, and a kernel takes nine"
        yield Finding("few-inodes", "warning", root, fact, fix)


@tells({"over-limit": "the store takes more than GPUCACHE_MAX_SIZE allows"})
def over_limit(case: Case) -> Iterator[Finding]:
    """Warn of a store that cannot keep its limit, since all that it has was used in the last minutes."""
    variable = environment.MAX_SIZE
    where = nearest(case.root)
    if fitness(where).read_only:
        return
    allowed = limit.max_size_bytes(where, case.environ)
    taken = total_bytes(case.root)
    if allowed and taken is not None and taken > allowed:
        by = variable.name
        if variable.name in in_force(case.environ, case.root).of_root:
            by = f"{variable.name_in_file} in {paths.settings_path(case.root)}"
        fact = f"the store takes {size(taken)}, and {by} allows {size(allowed)}"
        fix = f"raise {by}, or wait: what was used in the last minutes is not evicted"
        yield Finding("over-limit", "warning", case.root, fact, fix)


@tells({"headers-elsewhere": "torch keeps precompiled headers in its default directory"})
def headers(case: Case) -> Iterator[Finding]:
    """Warn of headers outside the root.

    Torch ignores `TORCHINDUCTOR_CACHE_DIR` for them (2.13.0 `_inductor/codecache.py`, ``_HEADER_DIR``).

    Raises:
        ConfigurationError: there is no temporary directory.
    """
    directory = f"{paths.default_root(case.environ)}/precompiled_headers"
    if not os.path.isdir(directory):
        return
    if inside(directory, case.root):
        return
    taken_mb = size_of(directory) / 1e6
    fact = (
        f"{taken_mb:.0f} MB of torch's precompiled headers, which it keeps here whatever the root"
    )
    fix = f"rm -r {shlex.quote(directory)} while no job runs; set TMPDIR to have them elsewhere"
    yield Finding("headers-elsewhere", "warning", directory, fact, fix)
