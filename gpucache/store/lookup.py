"""Find an entry or view that can be used: the check that every hit makes, and the stamp that tells of the use."""

from __future__ import annotations

import os
import time

from gpucache.store.manifest import (
    MANIFEST,
    Manifest,
    intact,
    raise_unless_damage,
    read_manifest,
    unchanged_paths,
)
from gpucache.store.recency import SKEW_S, STAMP_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    Usable = tuple[Manifest, dict[str, str]]
    """The manifest of an entry or view that can be used, and the paths of its files by name."""

_DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


def find(directory: str, verify: bool, boot: float, stamp_s: float = STAMP_S) -> Usable | None:
    """Check whether the entry or view in a directory can be used, and stamp its use; None where it cannot.

    Sizes and times are checked always; digests on request, and at the first use since ``boot`` (a power cut may leave
    files of the right size with nothing in them). Damage that keeps size and time within one boot is not seen. The use
    is stamped, at most every ``stamp_s``, by the manifest's modification time, which all views share.

    Beside a removal (`gpucache.store.removal`): it renames the manifest and then looks at the stamp, we stamp by name.
    So either it sees our stamp, and puts the manifest back, or we see that the manifest is gone.
    """
    try:
        here = os.open(directory, _DIRECTORY)
    except OSError as error:
        raise_unless_damage(error)
        return None
    try:
        read = read_manifest(directory, MANIFEST, here)
        if read is None:
            return None
        manifest, used = read
        paths = unchanged_paths(directory, manifest, here)
    finally:
        os.close(here)
    if paths is None or verify or used < boot:
        if not intact(directory, manifest):
            return None
        if paths is None:
            return _renewed(directory, manifest)
    # The stamp comes last: by its name, so that it fails where a removal has renamed the manifest meanwhile. A use
    # that lies ahead was stamped by a wrong clock, and is stamped anew.
    if used < boot or not -SKEW_S <= time.time() - used <= stamp_s:
        try:
            os.utime(f"{directory}/{MANIFEST}")
        except FileNotFoundError:
            return None  # it is being removed
        except OSError:
            pass  # read-only: it will look old, and is used all the same
    return manifest, paths


def sound(directory: str, verify: bool, boot: float, stamp_s: float = STAMP_S) -> Manifest | None:
    """The manifest of the entry or view in a directory, checked and stamped as by `find`; None where it is unusable."""
    found = find(directory, verify, boot, stamp_s)
    if found is None:
        return None
    return found[0]


def _renewed(directory: str, manifest: Manifest) -> Usable | None:
    """Give a directory that was copied with other times a new manifest, and a group that names this place."""
    # Imported late: a hit in place never needs it.
    from gpucache.store.stock import describe

    try:
        describe(directory, manifest.digests, manifest.facts, manifest.origin)
    except FileNotFoundError:
        return None  # it is being removed
    except OSError:
        pass  # read-only: the digests are checked again next time
    paths = {}
    for name in manifest.files:
        paths[name] = f"{directory}/{name}"
    return manifest, paths
