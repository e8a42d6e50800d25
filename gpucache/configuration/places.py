"""Where files of settings are, and the parsed form of each, which processes read that start fast.

The system's file is in a directory of its own in ``/etc``: root alone can write there, so that no variable of the
environment and no other user can put another file in its place, and a package or a mounted volume can bring it. The
user's file and his cache directory are where `platformdirs` says. On Linux that is written out here, since the import
of `platformdirs` would take longer than the rest of a light command (`tests/test_configuration_files.py` compares).
"""

from __future__ import annotations

import errno
import os
import sys

from gpucache.layout import paths
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    Source = Literal["system", "user", "root"]

SYSTEM_FILE = "/etc/gpucache/gpucache.toml"


class Place(Value):
    """One file of settings: whose it is, and its path."""

    source: Source
    path: str
    form_at: str | None = None
    """The path of the parsed form of a user's or a root's file; None where there is no place for one."""

    @property
    def form(self) -> str | None:
        """The path of the parsed form, which need not be there; None where there is no place for one."""
        return _form_of_system() if self.source == "system" else self.form_at


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
"""No file; also where the way is closed to this user, as to the home of another user."""


def look(place: Place) -> os.stat_result | OSError | None:
    """The `os.stat` of a file of settings, or why there is none; None where there is no file, as mostly.

    Costs one system call. Never raises.
    """
    try:
        return os.stat(place.path, follow_symlinks=place.source != "root")
    except OSError as error:
        return None if error.errno in _ABSENT else error
    except ValueError:  # a NUL in the path
        return None


def system_place() -> Place:
    """The system's file."""
    return Place("system", SYSTEM_FILE)


def user_place(environ: Mapping[str, str]) -> Place | None:
    """The user's file; None for a user without a home."""
    directory = _directory(environ, "config")
    if directory is None:
        return None
    cache = _directory(environ, "cache")
    form = None if cache is None else f"{cache}/user.json"
    return Place("user", f"{directory}/{paths.SETTINGS}", form)


def _form_of_system() -> str | None:
    """The parsed form of the system's file: each user has one, as nobody but root can write beside the file.

    It is on the node, where what has been told in jobs is noted, and goes with that after a day: in a home that nodes
    share, each would replace the others'.
    """
    # Where there is no file, as on most machines, nobody asks.
    from gpucache.once import path_of_markers

    return f"{path_of_markers()}/system.json" if hasattr(os, "geteuid") else None


def root_place(root: str) -> Place:
    """The file of a root."""
    return Place("root", paths.settings_path(root), paths.parsed_settings_path(root))


def _directory(environ: Mapping[str, str], kind: Literal["config", "cache"]) -> str | None:
    """The directory of this user's settings or cached files; None for a user without a home.

    A relative path in a variable is passed over, as the XDG Base Directory Specification says: whose files it means
    would depend on where the process is.
    """
    if not sys.platform.startswith("linux"):
        import platformdirs

        if kind == "config":
            return platformdirs.user_config_dir("gpucache", appauthor=False)
        return platformdirs.user_cache_dir("gpucache", appauthor=False)
    above = environ.get(f"XDG_{kind.upper()}_HOME", "")
    if not os.path.isabs(above):
        home = home_in(environ)
        if home is None:
            return None
        above = os.path.join(home, f".{kind}")
    return os.path.join(above, "gpucache")


def home_in(environ: Mapping[str, str]) -> str | None:
    """The absolute path of this user's home; None for a user without one, such as any number in a container."""
    home = environ.get("HOME") or home_of_user()
    return home if os.path.isabs(home) else None


def home_of_user() -> str:
    """This user's home by the list of users, for a process without `HOME`; empty where he is not on the list."""
    import pwd  # most processes have HOME

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except (KeyError, OSError):
        return ""
