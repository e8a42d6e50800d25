"""Which files of settings are believed: what they say decides whose code this user runs.

The system's file must be root's, a user's file his own, a root's that of somebody who is trusted in the root. Root's
own is always believed, as root can do anything; so is a user's file that came with an image. Not believed is what
another user can write, or can put another file in the place of; and what is no plain file, or too large for settings.
"""

from __future__ import annotations

import os
import stat

from gpucache.disk.door import SETTINGS_BYTES
from gpucache.disk.vetting import Trust, vet_way
from gpucache.errors import ProvisionError, UnsafeDirectoryError
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.configuration.places import Place


class Refused(Value):
    """Why a whole file is passed over, and the way out."""

    fact: str
    fix: str


def refused(place: Place, found: os.stat_result, trust: Trust) -> Refused | None:
    """Why a file with this `os.stat` is not believed; None where it is. Nothing else is looked at but a root's mark.

    ``trust`` is whom this user believes in a root; of the other files only root's and his own are.
    """
    path = place.path
    if not stat.S_ISREG(found.st_mode):
        return Refused("it is no plain file", f"move {path} away")
    if not _is_of_trusted(place, found, trust):
        mode = stat.S_IMODE(found.st_mode)
        fact = f"it belongs to uid {found.st_uid}, not to uid {os.geteuid()} (mode {mode:04o})"
        return Refused(fact, _own(place))
    if found.st_mode & stat.S_IWOTH:
        mode = stat.S_IMODE(found.st_mode)
        return Refused(f"everybody may write it (mode {mode:04o})", f"`chmod o-w {path}`")
    if found.st_size > SETTINGS_BYTES:
        fact = f"it has {found.st_size} bytes, and settings {SETTINGS_BYTES} at most"
        return Refused(fact, f"move {path} away")
    return None


def _is_of_trusted(place: Place, found: os.stat_result, trust: Trust) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    if place.source != "root":
        return Trust().covers(found.st_uid)
    root = os.path.dirname(place.path)
    return trust.covers(found.st_uid) or trust.in_root(root).accepts(found)


def _own(place: Place) -> str:
    """The way out where a file is another user's."""
    if place.source == "user" and os.geteuid() == 0:
        return "root has settings in its own home, as with `sudo -H`, and in variables"
    owner = "root" if place.source == "system" else f"uid {os.geteuid()}, or to root"
    if place.source == "root":
        owner += "; in a root of a group to the group, with mode 0660"
    return f"have {place.path} belong to {owner}"


def refused_way(place: Place) -> Refused | None:
    """Why the way to a file is not believed, which others could lead elsewhere; None where it is.

    Links of root's and of this user's are followed, as those in mounted volumes of Kubernetes are. The way to a root's
    file is the root's, which is vetted by whoever uses the root.
    """
    if place.source == "root" or not hasattr(os, "geteuid"):
        return None
    try:
        _vet_way(place.path)
    except UnsafeDirectoryError as error:
        command = "rm" if os.path.islink(error.path) else "chmod o-w"
        return Refused(error.problem, f"`{command} {error.path}`")
    except ProvisionError as error:
        return Refused(error.problem, f"look what is on the way to {place.path}")
    return None


def _vet_way(path: str) -> None:
    """Refuse a way as `disk.vetting.vet_way`, but for the mode of a directory that is mounted read-only.

    Kubernetes mounts a ConfigMap so: everybody may write its directory by the mode (0777), and nobody by the mount.

    Raises:
        UnsafeDirectoryError, ProvisionError: as there.
        OSError: the disk refused.
    """
    try:
        vet_way(path, Trust())
    except UnsafeDirectoryError as error:
        # What is above was vetted before, and what is below cannot be written either.
        if os.path.islink(error.path) or not _is_read_only(path, error.path):
            raise
        vet_way(path, Trust(world_writable=True))


def _is_read_only(path: str, directory: str) -> bool:
    """Whether a file lies below a directory, and nothing can be written in the mount of either."""
    inner, outer = os.path.realpath(path), os.path.join(os.path.realpath(directory), "")
    if not inner.startswith(outer):
        return False
    return all(os.statvfs(place).f_flag & os.ST_RDONLY for place in (inner, outer))


def is_safe_directory(found: os.stat_result) -> bool:
    """Whether nobody but this user and root can have put a file into a directory with this `os.stat`."""
    if not stat.S_ISDIR(found.st_mode):
        return False
    if not hasattr(os, "geteuid"):
        return True
    return Trust().covers(found.st_uid) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
