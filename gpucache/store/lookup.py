"""Find an entry that can be used: the check of every hit, and the stamp that tells of its use."""

from __future__ import annotations

import os
import time

from gpucache.store.manifest import MANIFEST, Manifest, intact, read_manifest, unchanged
from gpucache.store.recency import STAMP_S
from gpucache.store.stock import describe

_SKEW_S = 2.0


def sound(directory: str, verify: bool, boot: float, stamp_s: float = STAMP_S) -> Manifest | None:
    """The manifest of an entry or view that can be used; None for an absent or a damaged one.

    Sizes and times are checked always; digests on request, and at the first use since ``boot`` (a power cut may leave
    files of the right size with nothing in them). Damage that keeps size and time within one boot is not seen. The use
    is stamped, at most every ``stamp_s``, by the manifest's modification time, which all views share.

    Beside a removal (`gpucache.removal`): it renames the manifest and then looks at the stamp, we stamp by name. So
    either it sees our stamp, and puts the manifest back, or we see that the manifest is gone.
    """
    found = read_manifest(directory)
    if found is None:
        return None
    manifest, used = found
    same = unchanged(directory, manifest)
    if not same or verify or used < boot:
        if not intact(directory, manifest):
            return None
        if not same:
            return _renewed(directory, manifest)
    # a time ahead is that of a wrong clock
    if used < boot or not -_SKEW_S <= time.time() - used <= stamp_s:
        try:
            os.utime(f"{directory}/{MANIFEST}")
        except FileNotFoundError:
            return None  # it is being removed
        except OSError:
            return manifest  # read-only: it will look old, and is used all the same
    return manifest


def _renewed(directory: str, manifest: Manifest) -> Manifest | None:
    """The manifest of a directory that was copied with other times, and a group that names this place."""
    try:
        describe(directory, manifest.digests, manifest.facts, manifest.origin)
    except FileNotFoundError:
        return None  # it is being removed
    except OSError:
        return manifest  # read-only: the digests are checked again next time
    return manifest
