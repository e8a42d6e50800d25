"""Where the processes of a node meet the courier of a remote: names beside the locks, and whose process is at an end.

There is one courier for each remote, trust, root, user and pid namespace. Its socket lies in the directory of the
locks, which nobody else may write, and is reached through a descriptor of that directory: the address of a socket has
108 bytes at most (unix(7)), and a root's path may be longer.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import time
from contextlib import contextmanager, suppress

from gpucache.disk.lock_place import open_lock_directory
from gpucache.disk.locks import REMOTE_FILES, is_free
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.processes import pid_namespace
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = 1
"""Couriers of a gpucache that asks in other words are others."""
_STATE, _SOCKET, _LOCK = ".state", ".socket", ".courier"
_CREDENTIALS = struct.Struct("3i")
"""The numbers of process, user and group of the other end (``struct ucred``, unix(7))."""


class Meeting(Value):
    """One remote as the processes of this node and user ask it for one root."""

    directory: str
    """That of the root's locks on this node."""
    remote: str
    """The digest that stands for the remote on this node: its breaker is that of all roots' processes here."""
    courier: str
    """The digest that stands for the courier."""

    @classmethod
    def of(cls, directory: str, root: str, url: str, trust: str) -> Meeting:
        """The meeting for a remote's URL and the keys that are trusted, both as the environment says them."""
        user = str(os.geteuid())
        remote = _digest(node_id(), user, url, trust, root)
        courier = _digest(remote, str(pid_namespace()), str(PROTOCOL))
        return cls(directory, remote, courier)

    @property
    def state(self) -> str:
        """The path of the breaker's file."""
        return f"{self.directory}/{REMOTE_FILES}{self.remote}{_STATE}"

    @property
    def lock(self) -> str:
        """The path of the file that the courier keeps locked for life."""
        return f"{self.directory}/{REMOTE_FILES}{self.courier}{_LOCK}"

    @property
    def socket(self) -> str:
        """The name of the socket in `directory`."""
        return f"{REMOTE_FILES}{self.courier}{_SOCKET}"


def _digest(*words: str) -> str:
    data = "\0".join(words).encode("utf-8", "surrogateescape")
    return hashlib.sha256(data).hexdigest()[:16]


@contextmanager
def address(meeting: Meeting) -> Iterator[str]:
    """The address of the socket, for the length of a ``with`` block.

    Raises:
        OSError: there is no such directory, or it is another user's; or there is no ``/proc``.
    """
    here = open_lock_directory(meeting.directory)
    try:
        yield f"/proc/self/fd/{here}/{meeting.socket}"
    finally:
        os.close(here)


def is_served(meeting: Meeting) -> bool:
    """Whether a courier runs, as its lock tells."""
    return os.path.lexists(meeting.lock) and not is_free(meeting.lock)


def is_own(end: socket.socket) -> bool:
    """Whether the process at the other end of a connection is this user's."""
    try:
        found = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return False
    _, user, _ = _CREDENTIALS.unpack(found)
    return bool(user == os.geteuid())


def is_over(end: socket.socket) -> bool:
    """Whether the process at the other end of a connection, which says nothing more, has closed that."""
    try:
        return is_readable(end, 0) and not end.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def is_readable(end: socket.socket, timeout_s: float) -> bool:
    """Whether something has come, or the other end is closed, or does so in time.

    Not by `select.select`, which takes no descriptor above 1,023: a rank may have more files open.
    """
    poll = select.poll()
    poll.register(end, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def forget_old(directory: str) -> None:
    """Remove the files of couriers and breakers that nobody has used for a day, such as those of an earlier boot."""
    with suppress(OSError):
        here = open_lock_directory(directory)
        try:
            for name in os.listdir(here):
                if name.startswith(REMOTE_FILES):
                    _forget(here, directory, name)
        finally:
            os.close(here)


def _forget(here: int, directory: str, name: str) -> None:
    with suppress(OSError):
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
        if time.time() - found.st_mtime < DAY_S:
            return
        courier = f"{directory}/{name.partition('.')[0]}{_LOCK}"
        if os.path.lexists(courier) and not is_free(courier):
            return
        os.unlink(name, dir_fd=here)
