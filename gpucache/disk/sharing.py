"""With whom a root is shared: the mark that says so, and the modes of what is made below the root.

A root is *private* (0700, as all roots are unless somebody chose otherwise), *read* (others may read and execute what
its owner publishes: 0755 and 0644), or *group* (the members of its directory's group use it together: 2770 and 0660).
``gpucache provision --shared`` makes a root so, and writes the mark last.

New directories and files get their mode by the directory in which they are made, so that nobody who makes one has to
know the root's mark, and the umask has no say. `modes_in` tells these modes; `new_file` and `new_directory` make what
other members find with its mode from its first moment, since a member who came in between would be refused.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from gpucache.disk.door import SAFELY, open_regular
from gpucache.disk.files import STAGED
from gpucache.disk.vetting import is_groups
from gpucache.layout import paths
from gpucache.layout.keys import ASIDE
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from gpucache.disk.vetting import Trust

    Sharing = Literal["private", "read", "group"]


class Modes(Value):
    """The modes of what is made in a directory."""

    directory: int
    file: int


PRIVATE = Modes(0o700, 0o600)
READ = Modes(0o755, 0o644)
GROUP = Modes(0o2770, 0o660)
MODES: dict[Sharing, Modes] = {"private": PRIVATE, "read": READ, "group": GROUP}
"""The modes of a root's inside, by with whom the root is shared."""


def modes_in(directory: str | int) -> Modes:
    """The modes of what is made in a directory, which is named by its path or descriptor.

    Only for what lies in ``gpucache/v1``, or in a device directory of a root whose ``gpucache/v1`` has the same modes
    (`modes_of_view`): outside, a mode of 2770 or 0755 says nothing of how a cache is shared.

    Raises:
        OSError: the directory cannot be looked at.
    """
    mode = os.stat(directory).st_mode
    if is_groups(mode):
        return GROUP
    if stat.S_IMODE(mode) & 0o777 == READ.directory:
        return READ
    return PRIVATE


def modes_of_view(directory: str | int, own: str | int) -> Modes:
    """The modes of what is made in a root's directory, if what only gpucache writes there (``own``) has these as well.

    Raises:
        OSError: a directory cannot be looked at.
    """
    modes = modes_in(directory)
    return modes if modes == modes_in(own) else PRIVATE


def modes_like(directory: str | int) -> Modes:
    """The modes of what joins that which is in a directory already, or takes its place: those of the directory itself.

    What stock Triton has made for others to read stays so; nothing is made that everybody may write.

    Raises:
        OSError: the directory cannot be looked at.
    """
    mode = os.stat(directory).st_mode
    if is_groups(mode):
        return GROUP
    mode = (stat.S_IMODE(mode) & 0o775) | PRIVATE.directory
    return Modes(mode, mode & 0o666)


_OWN = "/gpucache/v1/"
READABLE: tuple[str, ...] = ("devices", "store")
"""The parts of ``gpucache/v1`` that others may read in a *read* root: whoever can read a file can hold a lock on it."""


def modes_for(path: str) -> Modes:
    """The modes of a new directory or file at a path below a root, and in it of what has no mode of its own.

    What would lie directly in a root, and in ``gpucache``, is private: only provisioning, which knows with whom the
    root is shared, makes it otherwise.
    """
    parent, name = os.path.split(path)
    _, own, part = path.partition(_OWN)
    try:
        if own:
            modes = modes_in(parent)
            is_hidden = part.partition("/")[0] not in (*READABLE, paths.MARK)
            return PRIVATE if modes == READ and is_hidden else modes
        above, device = os.path.split(parent)
        if device == "triton":
            return modes_of_view(parent, paths.ours(above))
        if os.path.basename(above) == "triton":  # a view in a device directory
            return modes_of_view(parent, paths.ours(os.path.dirname(above)))
        if name == os.path.basename(paths.tag_path(parent)):
            return modes_of_view(parent, paths.ours(parent))
    except OSError:
        return PRIVATE
    return PRIVATE


def is_shared_by_group(root: str) -> bool:
    """Whether what gpucache makes in a root is made for the members of a group. Never raises."""
    try:
        return modes_in(paths.ours(root)) == GROUP
    except OSError:
        return False


# ---- making


def set_mode(fd: int, mode: int) -> None:
    """Give an open file or directory of this user's a mode, whatever the umask has made of it; another's stays.

    Raises:
        OSError: the disk refused; a mount without modes refuses nothing here.
    """
    found = os.fstat(fd)
    if stat.S_IMODE(found.st_mode) & 0o777 == mode & 0o777 and not mode & ~found.st_mode & 0o7000:
        return
    # Not by uid 0 either: a name may have been made to lead to another's file.
    if os.geteuid() != found.st_uid:
        return
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP):
            raise


def set_directory_mode(path: str, modes: Modes, here: int | None = None) -> None:
    """Give a new directory its mode; where that is 0700, it has it from `mkdir`, and nothing is done.

    ``here`` is a descriptor of the directory from which a relative path leads.

    Raises:
        OSError: the disk refused.
    """
    if modes == PRIVATE:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | SAFELY, dir_fd=here)
    try:
        set_mode(fd, modes.directory)
    finally:
        os.close(fd)


def new_directory(path: str, modes: Modes, here: int | None = None) -> None:
    """Make a directory, which others find with its mode from its first moment. ``here`` is as in `set_directory_mode`.

    An empty directory that another process makes at the same instant may be replaced by this one.

    Raises:
        FileExistsError: something is there.
        OSError: the disk refused.
    """
    if modes == PRIVATE and here is None:
        os.mkdir(path, modes.directory)
        return
    if modes != GROUP:
        os.mkdir(path, modes.directory, dir_fd=here)
        set_directory_mode(path, modes, here)  # only the owner of the root makes something there
        return
    with suppress(FileNotFoundError):
        os.stat(path, dir_fd=here, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    aside = _aside_of(path)
    os.mkdir(aside, modes.directory & 0o777, dir_fd=here)
    try:
        set_directory_mode(aside, modes, here)
        os.rename(aside, path, src_dir_fd=here, dst_dir_fd=here)
    except OSError as error:
        os.rmdir(aside, dir_fd=here)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EROFS):
            raise
        os.mkdir(path, modes.directory & 0o777, dir_fd=here)  # a mount that renames no directory
        set_directory_mode(path, modes, here)


def _aside_of(path: str) -> str:
    """A path at which a new directory gets its mode: in the root's ``tmp``, where all sweep, if there is one."""
    parent, name = os.path.split(path)
    beside = f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
    root = path.partition(_OWN)[0] if _OWN in path else os.path.dirname(parent)
    staging = paths.ours(root, "tmp")
    if os.path.isabs(path) and name != "tmp" and os.path.isdir(staging):
        return f"{staging}/{STAGED}{beside}"
    return os.path.join(parent, f"{ASIDE}{beside}")


def new_aside(directory: str, modes: Modes, prefix: str = ASIDE) -> str:
    """Make a directory of a new name with the mode of what is to become of it; its path.

    Also where it is only to be swept: what a killed process leaves, another member of a group can remove then.

    Raises:
        OSError: the disk refused.
    """
    import tempfile  # slow to import; most processes make nothing

    if modes == GROUP:
        path = f"{directory}/{prefix}{os.getpid()}.{os.urandom(8).hex()}"
        # Where the mount has a default ACL, the mode is right at once.
        os.mkdir(path, modes.directory & 0o777)
    else:
        path = tempfile.mkdtemp(prefix=prefix, dir=directory)
    set_directory_mode(path, modes)
    return path


def new_file(path: str, flags: int, here: int | None = None, modes: Modes | None = None) -> int:
    """Make a file, which others find with its mode from its first moment; its descriptor.

    ``flags`` are those of `os.open`, without ``O_CREAT``; ``here`` is a descriptor of the directory from which a
    relative path leads. ``modes`` are by default those of the file's directory, but nothing for others.

    Raises:
        FileExistsError: something is there.
        OSError: the disk refused.
    """
    modes = _modes_at(path, here) if modes is None else modes
    if modes == PRIVATE:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | SAFELY, modes.file, dir_fd=here)
    fd = _unnamed(path, flags, here, modes)
    if fd is not None:
        try:
            # An unnamed file has its name by this link alone, so that it is never seen half made.
            os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=here, follow_symlinks=True)
            return fd
        except FileExistsError:
            os.close(fd)
            raise
        except OSError:
            os.close(fd)  # no /proc, or a mount without links
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | SAFELY, modes.file, dir_fd=here)
    set_mode(fd, modes.file)
    return fd


def _modes_at(path: str, here: int | None) -> Modes:
    """The modes of a lock, a counter and the like at a path: nothing for others, who could hold a lock on the file."""
    modes = modes_in(here if here is not None else os.path.dirname(path) or ".")
    return GROUP if modes == GROUP else PRIVATE


def _unnamed(path: str, flags: int, here: int | None, modes: Modes) -> int | None:
    """Make a file without a name for a path's directory; None where the mount has none (NFS, FUSE)."""
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is None:
        return None
    flags = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    if not flags & (os.O_WRONLY | os.O_RDWR):
        flags |= os.O_RDWR  # a file without a name can only be opened to be written
    directory = os.path.dirname(path) or "."
    try:
        fd = os.open(directory, flags | unnamed | os.O_CLOEXEC, modes.file, dir_fd=here)
    except OSError:
        return None
    set_mode(fd, modes.file)
    return fd


def open_or_new(path: str, flags: int, here: int | None = None) -> int:
    """Open a file, which is made as by `new_file` if it is not there; its descriptor. ``flags`` are as there.

    Raises:
        OSError: the disk refused.
    """
    modes = _modes_at(path, here)
    if modes == PRIVATE:
        return os.open(path, flags | os.O_CREAT | SAFELY, modes.file, dir_fd=here)
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return os.open(path, flags | SAFELY, dir_fd=here)
        with suppress(FileExistsError):  # another process made it meanwhile
            return new_file(path, flags, here, modes)
    raise OSError(errno.EBUSY, "it comes and goes", path)


_TRIES = 100


# ---- the mark

_MARK_BYTES = 4096


class Mark(Value):
    """What the mark of a root says, and whose word that is."""

    sharing: Sharing
    uid: int
    gid: int
    mode: int


def mark_of(root: str) -> Mark | None:
    """What the mark of a root says; None where there is none, or none that makes sense. It may be anybody's word."""
    import json

    try:
        fd, found = open_regular(paths.mark_path(root))
    except OSError:
        return None
    try:
        said = json.loads(os.read(fd, _MARK_BYTES))
        sharing, version = said["sharing"], said["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        os.close(fd)
    if version != 1 or sharing not in tuple(MODES) or found.st_nlink != 1:
        return None
    return Mark(sharing, found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))


def mark_text(sharing: Sharing) -> bytes:
    """The content of a mark."""
    return f'{{"format": 1, "sharing": "{sharing}"}}\n'.encode()


def sharing_of(root: str, trust: Trust) -> Sharing:
    """With whom a root is shared, as far as this user believes its mark (`Trust.in_root`)."""
    try:
        found = os.stat(root)
    except OSError:
        return "private"
    mark = mark_of(root)
    if mark is None:
        return "private"
    if mark.sharing == "group":
        return "private" if trust.in_root(root).shared_gid is None else "group"
    is_believed = trust.covers(found.st_uid) and trust.covers(mark.uid)
    if mark.sharing == "read" and is_believed and not mark.mode & stat.S_IWOTH:
        return "read"
    return "private"
