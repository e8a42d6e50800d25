"""Files of keys: who may own, read and write them, since whoever writes one decides what is executed.

Links are followed, as Kubernetes mounts secrets; what is looked at is the open file.
"""

from __future__ import annotations

import os
import stat

from gpucache.archive.errors import BadKey
from gpucache.disk.door import open_regular, read_some
from gpucache.disk.vetting import Trust
from gpucache.environment import SIGN_KEY

_MOST_KEY_BYTES = 2**12
_MOST_TRUSTED_BYTES = 2**20


def write_secret(path: str, line: bytes) -> None:
    """Write a new file that its owner alone can read, whole or not at all; never over another, nor through a link.

    Raises:
        OSError: something is there, or the disk refuses.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)  # whatever the umask took
        view = memoryview(line)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def read_secret(path: str) -> str:
    """Read a small file that nobody else can read or write.

    A group may read what root owns, as Kubernetes mounts a secret with ``fsGroup``.

    Raises:
        BadKey: others can; another user owns it; or it cannot be read.
    """
    hint = f"have {SIGN_KEY.name} name a file that this user can read"
    text, found = _read_text(path, _MOST_KEY_BYTES, hint)
    _refuse_owner(path, found, Trust())
    is_own = found.st_uid == os.geteuid()
    allowed = 0o700 if is_own else 0o750
    mode = stat.S_IMODE(found.st_mode)
    if mode & ~allowed & 0o777:
        fact = f"others can read or write this secret key (mode {mode:04o})"
        raise BadKey(
            "readable",
            path,
            fact,
            f"chmod 600 {path}, and make a new key if others may have read it",
        )
    return text


def _read_text(path: str, most_bytes: int, hint: str) -> tuple[str, os.stat_result]:
    """The text of a small regular file, and the file's `os.stat`; ``hint`` is for one that cannot be read."""
    try:
        fd, found = open_regular(os.path.realpath(path))
        with open(fd, "rb") as file:
            data = read_some(file, most_bytes + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)  # a NUL in the path
        raise BadKey("unreadable", path, f"it cannot be read: {why}", hint) from None
    if len(data) > most_bytes:
        raise BadKey(
            "too-long", path, f"it has more than {most_bytes} bytes", "name a file of keys"
        )
    return data.decode("ascii", "replace"), found


def _refuse_owner(path: str, found: os.stat_result, trust: Trust) -> None:
    if not trust.covers(found.st_uid):
        fact = f"it belongs to the user {found.st_uid}, who could change it"
        raise BadKey("owner", path, fact, "copy it to a file of your own")


def read_trusted(path: str, trust: Trust, named: str) -> str:
    """Read a small file that belongs to this user, to root, or to whom ``trust`` covers, and that others cannot write.

    ``named`` is what names the file, for an error: who meant a key has left out the colon.

    Limits: its group is trusted, and so are the owners of the directories on the way.

    Raises:
        BadKey: it is another user's, everybody can write it, or it cannot be read.
    """
    hint = (
        f"have {named} be NAME:KEY, or the path of one file with such lines that this user can read"
    )
    text, found = _read_text(path, _MOST_TRUSTED_BYTES, hint)
    _refuse_owner(path, found, trust)
    if found.st_mode & stat.S_IWOTH:
        fact = "everybody can write it, and so say whom to believe"
        raise BadKey("writable", path, fact, f"chmod o-w {path}, after a look into it")
    return text
