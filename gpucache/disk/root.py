"""What tells the root of a cache from any other directory, and a device directory from a root. Follows no link below.

Whoever asks whether a path is a root, or the directory of a device, asks here: commands before they look at a root,
`doctor`, and the report.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from gpucache.disk.door import read_limited
from gpucache.disk.refusal import may, refusal
from gpucache.errors import NoRootError
from gpucache.layout import inductor
from gpucache.layout.keys import KEY, directories_in, has_keys
from gpucache.layout.paths import (
    SETTINGS,
    TAG,
    is_device_directory_name,
    ours,
    tag_path,
    triton_directory,
)

_TAG_BYTES = 4096
_VERSION = re.compile(r"v[0-9]+")
_INDUCTORS = ("fxgraph", "aotautograd")
"""Directories of TorchInductor's whose names nothing else has."""
_PERHAPS_INDUCTORS = re.compile(r"[a-z2-7]{2}|locks|precompiled_headers")
"""Directories of TorchInductor's whose names may be anybody's, but the files in them have names of its own."""


def check_there(root: str, named: str | None = None) -> None:
    """Refuse a root that is not there, or is no directory. ``named`` is the option or variable that says so, if any.

    Raises:
        NoRootError: the root is missing, or no directory.
        ProvisionError: the operating system does not say.
    """
    try:
        found = os.stat(root)
    except FileNotFoundError:
        if os.path.islink(root):
            raise NoRootError(root, "dangling", named) from None
        raise NoRootError(root, "missing", named) from None
    except NotADirectoryError:
        raise NoRootError(root, "no-directory", named) from None
    except OSError as error:
        raise refusal(root, error, "look at") from error
    if not stat.S_ISDIR(found.st_mode):
        raise NoRootError(root, "no-directory", named)


def check_cache(root: str, named: str | None = None) -> None:
    """Refuse, beside what `check_there` refuses, a directory in which something lies, but nothing of a cache.

    Raises:
        NoRootError: as `check_there`, and the directory is no cache.
        ProvisionError: as `check_there`, and this user may not enter the directory.
    """
    check_there(root, named)
    if not may(root, os.X_OK):
        closed = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise refusal(root, closed, "look at")
    if not is_empty(root) and not is_cache(root):
        raise NoRootError(root, "no-cache", named)


def is_empty(directory: str) -> bool:
    """Whether nothing lies in a directory but perhaps a root's settings, as far as this user may list it."""
    try:
        with os.scandir(directory) as items:
            return all(item.name == SETTINGS for item in items)
    except OSError:
        return False  # one may enter a directory that one may not list


def is_cache(root: str) -> bool:
    """Whether something of gpucache's, Triton's or TorchInductor's lies in a directory, as far as names tell.

    Stops at the first sign; of a directory without any, it looks at all names, and into few of them.
    """
    root = os.path.realpath(root)
    if _is_provisioned(root) or _has_tag(root):
        return True
    if any(_is_tritons(root, name) for name in directories_in(triton_directory(root))):
        return True
    return any(_is_sign(root, name) for name in directories_in(root))


def _is_provisioned(root: str) -> bool:
    """Whether gpucache, of any version, has written into a root; a directory of that name alone may be a checkout."""
    return any(map(_VERSION.fullmatch, directories_in(f"{root}/gpucache")))


def _has_tag(root: str) -> bool:
    try:
        return read_limited(tag_path(root), _TAG_BYTES) == TAG
    except OSError:
        return False


def _is_tritons(root: str, name: str) -> bool:
    """Whether a directory in the root's ``triton`` is one that Triton caches in, or a kernel's."""
    is_named_so = is_device_directory_name(name) or KEY.fullmatch(name) is not None
    return is_named_so or has_keys(f"{triton_directory(root)}/{name}")


def _is_sign(root: str, name: str) -> bool:
    """Whether a directory in the root is a kernel's, or TorchInductor's."""
    if KEY.fullmatch(name) or name in _INDUCTORS:
        return True
    if not _PERHAPS_INDUCTORS.fullmatch(name):
        return False
    try:
        files = os.listdir(f"{root}/{name}")
    except OSError:
        return False
    return any(inductor.is_cache(f"{name}/{file}") for file in files)


def root_above(directory: str) -> str | None:
    """The root that a path is a device directory of, by its names alone: ``<root>/triton/<name>``; else None."""
    parent, name = os.path.split(os.path.normpath(directory))
    if is_device_directory_name(name) and os.path.basename(parent) == "triton":
        return os.path.dirname(parent)
    return None


def refuse_device_directory(root: str, named: str | None = None) -> None:
    """Refuse a device directory in the place of a root: its locks and its store are those of the root above it.

    Raises:
        NoRootError: the path is the device directory of a root that gpucache has provisioned.
    """
    above = root_above(os.path.realpath(root))
    if above is not None and os.path.isdir(ours(above)):
        raise NoRootError(root, "device-directory", named, above)
