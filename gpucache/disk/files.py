"""Make directories, write files whole, and sweep temporary files that have not changed for an hour.

A caller of `sweep_old` names a directory and how the temporary names in it begin: ``publish-`` for what `write_whole`
has not finished, ``tmp.gpucache-`` for entries on their way in or out (`layout.keys.ASIDE`). Where a lock tells
that the maker is dead, `disk.staging` sweeps at once.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

from gpucache.disk.door import DIRECTORY, SAFELY
from gpucache.disk.refusal import refusal
from gpucache.errors import ProvisionError

_NEW_FILE = os.O_WRONLY | os.O_CREAT | SAFELY
STALE_S = 3600.0
"""A temporary file that has not changed for so long is taken for a dead process's, where no lock tells."""
STAGED = "publish-"
"""How the name of a temporary file begins that `write_whole` has not renamed to its place yet."""


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, as far as the disk lets; what cannot be removed stays.

    `shutil.rmtree` with ``ignore_errors`` lets an error of ``fstat`` or ``close`` out all the same (Python 3.10 to
    3.12), and from a finalizer or a ``finally`` that would be told as a failure of what had been done before. Of what
    is a thousand directories deep, which nobody makes but to hurt, a part stays.
    """
    import shutil  # slow to import, and rarely needed

    with suppress(OSError, RecursionError):
        shutil.rmtree(path, ignore_errors=True)


_PRIVATE = 0o700
OPEN_ABOVE = 0o755
"""The mode of what a launch makes above a root or a device directory, as torch and Triton do: others may go through."""


def make_directory(path: str, above: int | None = None) -> bool:
    """Make a directory and its missing parents; return whether this call made it.

    Its mode is 0700, but for what lies in a root that others share (`disk.sharing.modes_for`). Any number of processes
    may make the same directory at once: exactly one of them is told True.

    Args:
        path: the directory.
        above: the mode of missing parents where that is not `disk.sharing`'s: `OPEN_ABOVE` where they may lie above a
            root. The umask applies.

    Raises:
        ProvisionError: the operating system refused.
    """
    made = _mkdir(path)
    missing = [path]
    parent = os.path.dirname(path)
    while made is None and parent != missing[-1]:
        made = _mkdir(parent, above)
        missing.append(parent)
        parent = os.path.dirname(parent)
    for step in reversed(missing[:-1]):
        made = _mkdir(step, None if step == path else above)
    if made is None:
        # The parent is there, and still nothing can be made in it: /proc and autofs answer so.
        raise ProvisionError(path, errno.ENOENT)
    return made


def make_below_root(path: str, above: int | None = None) -> bool:
    """As `make_directory`, of a directory below a root's: where root acts in another user's root, the new one is his.

    Else whatever root is the first to do there could be done by nobody else from then on. ``above`` is as there.

    Raises:
        ProvisionError: the operating system refused.
    """
    missing = []
    step = path
    while os.geteuid() == 0 and not os.path.lexists(step):
        missing.append(step)
        step = os.path.dirname(step)
    made = make_directory(path, above)
    for step in reversed(missing):
        with suppress(OSError):
            _give_to_owner_above(step)
    return made


def _give_to_owner_above(path: str) -> None:
    """Give a new directory of root's to the owner of the very directory in which it is, wherever the path leads."""
    above = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = os.fstat(above)
        fd = os.open(os.path.basename(path), DIRECTORY, dir_fd=above)
        try:
            if owner.st_uid != 0 and os.fstat(fd).st_uid == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
        finally:
            os.close(fd)
    finally:
        os.close(above)


def make_root(path: str) -> bool:
    """Make a root, with mode 0700, and nothing above it; return whether this call made it.

    What is missing above may be a mount point, which nobody else could use if it had that mode, and below which all
    that is cached would lie on another disk than was meant.

    Raises:
        ProvisionError: the operating system refused, or the directory above is not there.
    """
    made = _mkdir(path, _PRIVATE)
    if made is None:
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise refusal(path, missing)
    return made


def give_to_owner_of(directory: str | int, fd: int) -> None:
    """Give a new open file of root's to the owner of a directory, its path or descriptor; where that fails it stays."""
    if os.geteuid() == 0:
        with suppress(OSError):
            owner = os.stat(directory)
            os.fchown(fd, owner.st_uid, owner.st_gid)


def _mkdir(path: str, mode: int | None = None) -> bool | None:
    """Make one directory; return whether this call made it, or None where its parent is missing.

    Without a ``mode`` it has the one by which its root is shared.
    """
    try:
        if mode is not None:
            os.mkdir(path, mode)
        elif not os.path.isdir(path):  # as a rule it is there
            from gpucache.disk.sharing import modes_for, new_directory

            new_directory(path, modes_for(path))
        else:
            return False
        return True
    except FileExistsError:
        if os.path.isdir(path):
            return False
        hint = "choose another root, or move that away"
        raise ProvisionError(path, errno.ENOTDIR, hint) from None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(path, error) from error


def write_whole(path: str, data: bytes, staging: str) -> None:
    """Write a file so that readers find the old one or the whole new one.

    Atomic for readers, also when this process is killed; not durable across a power cut (the file is synced, its
    directory is not). Of several writers at once the last wins. What root writes belongs to the directory's owner.
    ``staging`` is a directory on the same file system; what killed writers left there is removed after an hour.

    Raises:
        ProvisionError: the operating system refused; the old file is untouched.
    """
    import tempfile  # where everything is there, nothing is written

    from gpucache.disk.sharing import modes_for, set_mode

    try:
        fd, temporary = tempfile.mkstemp(prefix=STAGED, dir=staging)
        try:
            with os.fdopen(fd, "wb") as file:
                set_mode(fd, modes_for(path).file)
                give_to_owner_of(os.path.dirname(path), fd)
                sweep_old(staging, STAGED, os.fstat(fd).st_mtime)
                file.write(data)
                file.flush()
                _sync(fd)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise refusal(path, error, "write") from error


def _sync(fd: int) -> None:
    """Bring a file to the disk, unless its mount has no such call (fsync(2): ``EINVAL``).

    Raises:
        OSError: the disk refused otherwise.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def sweep_old(directory: str, prefix: str, now: float | None = None) -> None:
    """Remove from a directory what has a name with this prefix and has not changed for an hour: files and folders.

    Any number of processes may sweep the same directory at once. ``now`` is the time by the clock of the disk, in
    seconds since the epoch, where the caller knows that, as of a file that was written just now: by a clock of its own
    that goes wrong, this node would take away what another one is writing.

    Raises:
        OSError: the directory cannot be listed.
    """
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(here):
            if name.startswith(prefix):
                # another sweeper was faster, or it is another user's
                with suppress(FileNotFoundError, PermissionError):
                    _sweep_if_old(here, name, time.time() if now is None else now)
    finally:
        os.close(here)


def _sweep_if_old(here: int, name: str, now: float) -> None:
    # There is rarely something to sweep.
    from gpucache.disk.within import remove_tree_in

    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    if now - found.st_mtime <= STALE_S:
        return
    if stat.S_ISDIR(found.st_mode):
        remove_tree_in(here, name)
    else:
        os.unlink(name, dir_fd=here)


def inside(path: str, directory: str) -> bool:
    """Whether a path is this directory or lies below it, once all links are followed."""
    outer = os.path.join(os.path.realpath(directory), "")
    inner = os.path.join(os.path.realpath(path), "")
    return inner.startswith(outer)


def write_new(path: str, data: bytes, replace: bool = False) -> None:
    """Write a whole new file; ``replace`` the content of the one that is there, if there is one. No link is followed.

    Its mode is as its directory's (`disk.sharing.modes_like`), whatever the umask.

    Raises:
        OSError: the disk refused, and no file is left; or something is there, and stays.
    """
    from gpucache.disk.sharing import modes_like, set_mode

    how = os.O_TRUNC if replace else os.O_EXCL
    mode = modes_like(os.path.dirname(path) or ".").file
    fd = os.open(path, _NEW_FILE | how, mode)
    try:
        set_mode(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def size_of(path: str) -> int:
    """Add up the bytes of all files at a path, links not followed; what vanishes meanwhile counts nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    size = 0
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        with suppress(OSError), os.scandir(directory) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    waiting.append(item.path)
                else:
                    with suppress(OSError):
                        size += item.stat(follow_symlinks=False).st_size
    return size
