"""The files in ``stats/`` that hold counters: what they are called, how one is written, and how one is read.

Each process has a file of its own (``.counts``), which it rewrites. Files of ended processes are folded into one
(``.folded``) by `counter_fold`, which is never rewritten: the next fold makes another file. A folded file names the
files that it has taken in until these are gone. A name is never used twice. Files of a gpucache before that
(``.json``) are read where they lie. All of them at once are read by `counter_look`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gpucache.disk.door import COUNTERS_BYTES, DIRECTORY, open_regular, read_some
from gpucache.disk.files import STAGED, give_to_owner_of, make_below_root
from gpucache.disk.locks import NO_FLOCK
from gpucache.disk.node import mark_of, node_id
from gpucache.disk.sharing import new_file
from gpucache.layout import paths
from gpucache.layout.keys import unlinked
from gpucache.store.counts import ANY_HOST, Sums, Where, add, encoded, parsed, parsed_hour
from gpucache.values import Value

OWN, FOLDED, OLD, OLD_CLAIMED = ".counts", ".folded", ".json", ".old"
OLD_FOLDED = "folded.json"
"""The sums that a gpucache before this format has folded."""
OLD_LOCK = "lock"
"""What that gpucache locks while it folds or sums."""
CLAIM = "~"
"""Parts what a file was called at first from what it was called when another process claimed it."""

_NO_NODE = "unlocked"
"""Stands for the node in the name of a file that cannot be locked, so that everyone judges it by its age."""
_SLOT = 2048  # more than the longest label and host with all counters, each at its longest
_MOST_LABEL = 820
_SUMS_BYTES = COUNTERS_BYTES // 2
_READ_TRIES = 10
_GONE = (errno.ENOENT, errno.ESTALE)


# ---- names


def identity(here: int, name: str) -> str | None:
    """What a file of counters is known by, whoever has claimed it; None for any other file, or one that is gone."""
    stem, suffix = os.path.splitext(name)
    if suffix not in (OWN, FOLDED, OLD, OLD_CLAIMED):
        return None
    if name != OLD_FOLDED:
        return stem.rpartition(CLAIM)[2]
    # This name is used again and again.
    try:
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
    except OSError:
        return None
    return f"folded-{found.st_ino}-{found.st_mtime_ns}"


def new_name(here: int, node: str, what: str) -> str:
    """The beginning of a name that no file in a directory had or will have; the name tells who can see its lock."""
    mark = mark_of(os.fstat(here).st_dev)
    return f"{node}.{what}.{os.getpid()}.{time.time_ns():x}{mark}"


def is_first_of_a_process(name: str) -> bool:
    """Whether a file of this name, where there was none, holds only what was counted since."""
    return CLAIM not in name and not name.endswith(FOLDED) and name != OLD_FOLDED


# ---- the directory


@contextmanager
def opened(root: str) -> Iterator[int]:
    """A descriptor of the directory ``stats/`` of a root; no link is followed on the way below the root.

    Raises:
        OSError: the directory is not there, or cannot be opened.
    """
    path = unlinked(root, "stats")
    if path is None:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), paths.ours(root, "stats"))
    here = os.open(path, DIRECTORY)
    try:
        yield here
    finally:
        os.close(here)


def make_file(here: int, name: str) -> int:
    """Make a file for reading and writing in a directory, for the owner of the directory where root makes it.

    Raises:
        OSError: the disk refused.
    """
    fd = new_file(name, os.O_RDWR, here)
    give_to_owner_of(here, fd)
    return fd


# ---- the file of a process


class OwnFile:
    """The file of one process, for one device directory and one hour: its counters, twice.

    The two copies are written in turn, so that one of them is whole at any moment, also where a write is cut short. The
    process holds ``flock`` on the file for life, which tells its node that the counters are not to be folded.
    """

    def __init__(self, directory: str) -> None:
        """Make the file.

        The file gets the name that a fold looks for only once it is locked, or it could be folded away before.

        Raises:
            OSError: the disk refused.
        """
        make_below_root(directory)
        self._turn = 0
        here = os.open(directory, DIRECTORY)
        try:
            self._begin(here, directory)
        finally:
            os.close(here)

    def _begin(self, here: int, directory: str) -> None:
        host = host_label()
        staged = STAGED + new_name(here, node_id(), host)
        fd = make_file(here, staged)
        try:
            node = node_id() if _locked(fd) else _NO_NODE
            name = new_name(here, node, host) + OWN
            os.rename(staged, name, src_dir_fd=here, dst_dir_fd=here)
            self._inode = os.fstat(fd).st_ino
        except OSError:
            os.close(fd)
            with suppress(OSError):
                os.unlink(staged, dir_fd=here)
            raise
        self._fd = fd
        self._path = f"{directory}/{name}"

    def is_in_place(self) -> bool:
        """Whether nobody has folded the file, as another node does after a day of silence, or swept it.

        Raises:
            OSError: the disk does not answer.
        """
        try:
            return os.lstat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def write(self, where: Where, values: dict[str, float]) -> None:
        """Replace the counters.

        Raises:
            OSError: the disk refused; the counters before stay.
        """
        turn = self._turn + 1
        said = {**where._asdict(), "turn": turn, "values": values}
        text = json.dumps(said).encode().ljust(_SLOT - 9)
        slot = b"%08x %b" % (zlib.crc32(text), text)
        if os.pwrite(self._fd, slot, (turn - 1) % 2 * _SLOT) != len(slot):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        self._turn = turn

    def close(self) -> None:
        """Let the file be folded, as the death of the process does."""
        with suppress(OSError):
            os.close(self._fd)


def host_label() -> str:
    """This host's name as files say it: 64 characters at most, and none that means something in a name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", paths.host_name())[:64]


def short_label(device: str) -> str:
    """The label of a device directory, cut at its beginning where it would not fit into a file."""
    if len(json.dumps(device)) <= _MOST_LABEL:
        return device
    checksum = zlib.crc32(os.fsencode(device))
    return f"/...{checksum:08x}...{device[-70:]}"  # of up to 12 bytes each


def fit(sums: Sums) -> bool:
    """Whether sums are short enough for a file that has them all, which is read up to twice that size."""
    return len(json.dumps(encoded(sums))) <= _SUMS_BYTES


def _locked(fd: int) -> bool:
    """Lock a file of our own; False where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise


# ---- reading


class File(Value):
    """What is in one file of counters."""

    sums: Sums
    absorbed: frozenset[str] = frozenset()
    """The identities of the files that were folded into this one, and that may still be there."""
    readable: bool = True
    """Whether the file could be read, whatever was in it."""


def read(here: int, name: str) -> File | None:
    """Read a file of counters; nothing where it makes no sense, and None where it is gone."""
    try:
        if name.endswith(OWN):
            return File(_read_own(here, name))
        said = json.loads(_content(here, name))
    except OSError as error:
        return None if error.errno in _GONE else File({}, readable=False)
    except (ValueError, RecursionError):
        return File({})
    if name.endswith((OLD, OLD_CLAIMED)):
        return File(_old_sums(said))
    if not isinstance(said, dict):
        return File({})
    absorbed = said.get("absorbed")
    names = absorbed if isinstance(absorbed, list) else []
    return File(parsed(said.get("sums")), frozenset(map(str, names)))


def _content(here: int, name: str) -> bytes:
    fd, found = open_regular(name, here=here)
    with open(fd, "rb") as file:
        if found.st_size > COUNTERS_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
        return read_some(file, COUNTERS_BYTES)


def _read_own(here: int, name: str) -> Sums:
    """The newer of the two copies of a process's counters.

    Where only one is whole, the other may be one that is being written, or this one may have been overtaken while the
    other was read: so it must be the newest twice.
    """
    before: object = "nothing was read"
    newest = None
    for _ in range(_READ_TRIES):
        content = _content(here, name)
        slots = [_slot(content[:_SLOT]), _slot(content[_SLOT : 2 * _SLOT])]
        whole = [slot for slot in slots if slot is not None]
        newest = max(whole, key=lambda slot: slot[0], default=None)
        if len(whole) == 2 or newest == before:
            break
        before = newest
    return {} if newest is None else newest[1]


def _slot(text: bytes) -> tuple[int, Sums] | None:
    """Which copy this is, counted from 1, and its counters; None where the copy is not whole."""
    if len(text) != _SLOT or text[:9] != b"%08x " % zlib.crc32(text[9:]):
        return None
    sums: Sums = {}
    try:
        said = json.loads(text[9:])
        where = Where(str(said["host"]), str(said["device"]), parsed_hour(said["hour"]))
        add(sums, where, said["values"])
        return int(said["turn"]), sums
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _old_sums(said: object) -> Sums:
    """The counters in a file of the format before: those of one device, or, of an old fold, a list of such."""
    sums: Sums = {}
    for item in said if isinstance(said, list) else [said]:
        if isinstance(item, dict) and isinstance(item.get("device"), str):
            add(sums, Where(ANY_HOST, item["device"]), item.get("values"))
    return sums
