"""Find an entry or view that can be used: the check that every hit makes, and the stamp that tells of the use."""

from __future__ import annotations

import errno
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
    from typing import Any

    Usable = tuple[Manifest, dict[str, str]]
    """The manifest of an entry or view that can be used, and the paths of its files by name."""

_DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)

_checked: dict[str, Any] = {}
"""By directory: what would tell of a change since this process has checked the digests there, as `_state` gives it.

It stands in for the stamp and for the new manifest where neither can be written: on a read-only image.
"""


def find(
    directory: str, key: str, verify: bool, boot: float, stamp_s: float = STAMP_S
) -> Usable | None:
    """Check whether the entry or view of a key in a directory can be used, and stamp its use; None where it cannot.

    The manifest must be that of ``key``, which is Triton's: the directory may have been renamed. Sizes and times are
    checked always; digests on request, and at the first use since ``boot`` (a power cut may leave files of the right
    size with nothing in them), which is the first of each process where no use can be stamped. Damage that keeps size
    and time within one boot is not seen; of a time in whole seconds, only the second is compared. The use is stamped,
    at most every ``stamp_s``, by the manifest's modification time, which all views share.

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
        if manifest.key != key and not _is_identified(directory, manifest):
            return None
        paths = unchanged_paths(directory, manifest, here)
    finally:
        os.close(here)
    if paths is None or verify or used < boot:
        return _looked_into(directory, manifest, paths, used, verify)
    # The stamp comes last: by its name, so that it fails where a removal has renamed the manifest meanwhile. A use
    # that lies ahead was stamped by a wrong clock, and is stamped anew.
    if not -SKEW_S <= time.time() - used <= stamp_s and not _stamped(directory, manifest, used):
        return None
    return manifest, paths


def sound(directory: str, verify: bool, boot: float, stamp_s: float = STAMP_S) -> Manifest | None:
    """The manifest of the entry or view in a directory, checked and stamped as by `find`; None where it is unusable.

    The key is the one by which the directory is named.
    """
    # Imported late: a hit knows its key.
    from gpucache.layout.keys import view_key

    key = view_key(os.path.basename(directory))
    found = find(directory, key, verify, boot, stamp_s)
    if found is None:
        return None
    return found[0]


def whole(directory: str, boot: float) -> Manifest | None:
    """As `sound`, for whoever looks whether an entry is there and does not use it: no use is stamped.

    Digests are checked where the last use is older than ``boot``, each time.
    """
    # Imported late, as there.
    from gpucache.layout.keys import view_key

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
        if unchanged_paths(directory, manifest, here) is None:
            return None
    finally:
        os.close(here)
    if manifest.key != view_key(os.path.basename(directory)):
        return None
    if used < boot and not intact(directory, manifest):
        return None
    return manifest


def _stamped(directory: str, manifest: Manifest, used: float) -> bool:
    """Stamp a use by the manifest's name, if it can be; return whether the manifest still has that name.

    ``used`` is the stamp that the manifest had. A mount that cannot set times may say that it did.
    """
    path = f"{directory}/{MANIFEST}"
    try:
        os.utime(path)
        if os.stat(path).st_mtime != used:
            return True
    except FileNotFoundError:
        return False  # it is being removed
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES):
            return True  # it will look old, and is used all the same
    # Imported late: most mounts set times.
    from gpucache.store.stamping import written_anew

    return written_anew(directory, manifest)


def _is_identified(directory: str, manifest: Manifest) -> bool:
    """Whether a manifest that does not say its key was found to be that by which its directory is named."""
    if manifest.key is not None:
        return False
    # Imported late: only what an older gpucache has written gets here.
    from gpucache.store.identity import is_identified

    return is_identified(directory, manifest)


def _looked_into(
    directory: str,
    manifest: Manifest,
    paths: dict[str, str] | None,
    used: float,
    verify: bool,
) -> Usable | None:
    """Check the digests, unless this process has done so, and write down that they are right, where that can be.

    ``paths`` is None where the files have other times than were published. ``verify`` checks in any case.
    """
    state = None if verify else _state(directory, manifest)
    known = state is not None and _checked.get(directory) == state
    if not known:
        if not intact(directory, manifest):
            return None
        # The state is older than the digests: what was changed in between differs from it.
        _checked[directory] = state
    if paths is None and known:
        return manifest, _paths(directory, manifest)  # it was tried before to write that down
    if paths is None:
        return _renewed(directory, manifest)
    if not _stamped(directory, manifest, used):
        return None
    return manifest, paths


def _state(directory: str, manifest: Manifest) -> Any:
    """What would tell of a change of the files or of what is said of them; None where that cannot be asked."""
    state = []
    try:
        for name in manifest.listed:
            found = os.stat(f"{directory}/{name}")
            inode = (found.st_dev, found.st_ino)
            state.append((*inode, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    except (OSError, ValueError):
        return None
    return manifest.listed, state


def _renewed(directory: str, manifest: Manifest) -> Usable | None:
    """Give a directory that was copied with other times a new manifest, and a group that names this place."""
    # Imported late: a hit in place never needs it.
    from gpucache.store.stock import describe

    try:
        describe(
            directory,
            manifest.digests,
            manifest.facts,
            manifest.origin,
            manifest.key,
            manifest.recipe,
        )
    except FileNotFoundError:
        return None  # it is being removed
    except OSError:
        pass  # read-only: the digests are checked again by the next process
    return manifest, _paths(directory, manifest)


def _paths(directory: str, manifest: Manifest) -> dict[str, str]:
    return {name: f"{directory}/{name}" for name in manifest.listed}
