"""Why the operating system refused something below a root, and the way out that fits the cause.

The way out of each error number is in `gpucache.errors`. Of a refusal for want of permission, the directory that is in
the way is looked for here, since the path that was refused may be deep below.
"""

from __future__ import annotations

import errno
import os
import stat

from gpucache.errors import ProvisionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.errors import Tried


def refusal(path: str, error: OSError, tried: Tried = "make") -> ProvisionError:
    """The error for what the operating system refused to do at a path, with the way out."""
    number = error.errno or errno.EIO
    hint = None
    if number in (errno.EACCES, errno.EPERM):
        hint = _opening(path, tried)
    elif number == errno.ENOENT:
        hint = _making_parent(path)
    return ProvisionError(path, number, hint, tried)


def _opening(path: str, tried: Tried) -> str | None:
    """The command that opens the directory in the way; None where none is found."""
    for directory, wanted in _steps(path, tried):
        try:
            found = os.stat(directory)
        except OSError:
            return None
        if not may(directory, wanted):
            return _chmod(path, directory, found)
    return None


def _steps(path: str, tried: Tried) -> list[tuple[str, int]]:
    """The directories on the way to a path, outermost first, and what this user must be allowed to do in each."""
    steps = [(path, os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK)]
    parent = os.path.dirname(path)
    if tried != "look at":
        there = os.path.isdir(path)
        steps = [(path, os.R_OK | os.W_OK | os.X_OK)] if there else [(parent, os.W_OK | os.X_OK)]
        parent = path if there else parent
        parent = os.path.dirname(parent)
    while True:
        steps.append((parent, os.X_OK))
        above = os.path.dirname(parent)
        if above == parent:
            return steps[::-1]
        parent = above


def may(path: str, mode: int) -> bool:
    """Whether the effective user may do this with a path, as `os.access`."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _chmod(path: str, directory: str, found: os.stat_result) -> str:
    mode = stat.S_IMODE(found.st_mode)
    wanted = "u+rwx" if stat.S_ISDIR(found.st_mode) else "u+rw"
    if not hasattr(os, "geteuid") or found.st_uid == os.geteuid():
        return f"`chmod {wanted} {quoted(directory)}`, which has mode {mode:04o}"
    from gpucache.disk.ways_out import past_anothers, user  # which only errors need

    whose = f"belongs to {user(found.st_uid)} (mode {mode:04o}) and not to uid {os.geteuid()}"
    return f"{directory} {whose}: {past_anothers(path, directory, found)}"


def quoted(path: str) -> str:
    """The path as a shell takes it."""
    import shlex  # only errors need it

    return shlex.quote(path)


def _making_parent(path: str) -> str | None:
    """What to do where a directory above is missing: it may be a mount point, which is nobody's to make unasked.

    None where none is missing: a kernel's own file system has no such name, and makes none.
    """
    parent = os.path.dirname(path)
    if os.path.exists(parent):
        return None
    missing = parent
    above = os.path.dirname(missing)
    while not os.path.exists(above) and above != missing and above:
        missing = above
        above = os.path.dirname(missing)
    what = f"{missing} is not there"
    if os.path.islink(missing):
        what = f"{missing} is a link to {os.path.realpath(missing)}, which is not there"
        parent = os.path.realpath(parent)
    return (
        f"{what}: mount it, or `mkdir -p {quoted(parent)}`, or choose another root "
        "(--root, GPUCACHE_DIR)"
    )
