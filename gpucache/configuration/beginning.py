"""Writes a file of settings to begin with, where there is none: what `gpucache config --init` does."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from gpucache.configuration.places import root_place, user_place
from gpucache.configuration.template import template
from gpucache.disk.files import make_directory, write_new
from gpucache.disk.refusal import refusal
from gpucache.errors import ConfigurationError, ProvisionError, UnsafeDirectoryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.configuration.places import Source


def write_for_user(environ: Mapping[str, str]) -> str:
    """Write this user's file, with the directories above it; return its path.

    Raises:
        ConfigurationError: the user has no home.
        UnsafeDirectoryError: the home is another user's, who would find a file there that he cannot change.
        ProvisionError: there is a file, which stays; or the disk refused.
    """
    place = user_place(environ)
    if place is None:
        hint = "set HOME to a directory of your own, or write the settings of a root (--root)"
        raise ConfigurationError("HOME", environ.get("HOME", ""), "the path of a home", hint)
    directory = os.path.dirname(place.path)
    _refuse_others_home(directory)
    make_directory(directory, above=0o700)
    path = _written("user", place.path)
    os.chmod(path, 0o600)  # the URL of a remote may hold a secret
    return path


def write_for_root(root: str) -> str:
    """Write the file of a root, which has been vetted; return its path.

    Raises:
        ProvisionError: there is a file, which stays; or the disk refused.
    """
    return _written("root", root_place(root).path)


def _written(source: Source, path: str) -> str:
    try:
        write_new(path, template(source).encode())
    except FileExistsError as error:
        hint = "edit the file that is there, or move it away"
        raise ProvisionError(path, error.errno or errno.EEXIST, hint, "write") from error
    except OSError as error:
        raise refusal(path, error, "write") from error
    return path


def _refuse_others_home(directory: str) -> None:
    """Refuse to make anything in a directory of another user, as root is told to by ``sudo`` that keeps `HOME`."""
    there = directory
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    if not hasattr(os, "geteuid"):
        return
    owner = os.stat(there).st_uid
    if owner != os.geteuid() and not os.access(there, os.W_OK):
        return  # the disk refuses, and says why
    if owner != os.geteuid():
        fact = f"belongs to uid {owner}, not to uid {os.geteuid()}"
        raise UnsafeDirectoryError(there, fact, "say it as that user, or `sudo -H` for root's own")
