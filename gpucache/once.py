"""Says once for a job on a node what each of its processes would say: which of them is the first with a sentence.

The ranks of a job share nothing but the node: no root, where that is what the sentence is about. So the first leaves a
marker, a file that only one process can make, in a directory of this user's on this node. A job is what one launcher
has started (`job`); the next job is told again, and so is a job that goes on for hours. Where no marker can be left,
each process says it. What is true of the node, whatever the job, is said once a day there (`first_on_node`).

`gpucache/site/sitecustomize.py` runs this file in Pythons that cannot import gpucache: it imports nothing of gpucache,
and is Python 3.7.
"""

from __future__ import annotations

import os
import stat
import time
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PLACES = ("/dev/shm", "/tmp")
"""Where the directory of markers is: in the first of these that exists. Not in `TMPDIR`, which may differ per rank, nor
where a file system may hang as those of a network do, since a kernel launch may ask."""
_AGAIN_S = 3600
"""How long a sentence counts as said in a job, in seconds."""
_SWEEP_S = 86400.0
"""How long markers are kept, in seconds."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_RANK = ("LOCAL_RANK", "LOCALRANK", "LOCAL_ID", "LOCALID")
"""What is in the name of each variable by which a launcher tells a process its number on the node
(`gpucache.directories.local_rank`)."""
_PROC = "/proc"


def first_in_job(sentence: str, environ: Mapping[str, str]) -> bool:
    """Whether this process is the first of its job on this node to say a sentence in an hour; it should say it then.

    Never waits. Each process is first where no marker can be left, or another user may have planted it.
    """
    return _is_first(f"{job(environ)} {sentence}", _AGAIN_S)


def first_on_node(sentence: str) -> bool:
    """As `first_in_job`, of all processes of this user on this node in a day: for what no job changes."""
    return _is_first(f"node {sentence}", _SWEEP_S)


def _is_first(sentence: str, again_s: float) -> bool:
    """Whether no process has left a marker for a sentence within so many seconds; then this one has left it now."""
    said = sentence.encode("utf-8", "backslashreplace")
    marker = f"{zlib.crc32(said):08x}{zlib.adler32(said):08x}"
    try:
        directory = _directory()
    except (OSError, AttributeError):  # Windows has no user ids
        return True
    try:
        is_first = _is_made(directory, marker) or _is_made_anew(directory, marker, again_s)
        if is_first:
            _sweep(directory)
        return is_first
    except OSError:
        return True
    finally:
        os.close(directory)


def _is_made(directory: int, marker: str) -> bool:
    """Whether this process has made the marker; False where it is there."""
    try:
        os.close(os.open(marker, _NEW, 0o600, dir_fd=directory))
    except FileExistsError:
        return False
    return True


def _is_made_anew(directory: int, marker: str, again_s: float) -> bool:
    """Whether this process, and no other, has replaced a marker that is older than that."""
    aside = f"{marker}.{os.getpid()}"
    try:
        if not _is_over(directory, marker, again_s):
            return False
        os.rename(marker, aside, src_dir_fd=directory, dst_dir_fd=directory)
        if not _is_over(
            directory, aside, again_s
        ):  # another process was faster, and this one is new
            os.rename(aside, marker, src_dir_fd=directory, dst_dir_fd=directory)
            return False
        os.unlink(aside, dir_fd=directory)
    except FileNotFoundError:
        return False  # another process is at it
    return _is_made(directory, marker)


def _is_over(directory: int, marker: str, again_s: float) -> bool:
    found = os.stat(marker, dir_fd=directory, follow_symlinks=False)
    return time.time() - found.st_mtime > again_s


def path_of_markers() -> str:
    """The path of the directory for this user's markers on this node, which need not be there.

    Raises:
        AttributeError: this system has no user ids.
    """
    place = next(filter(os.path.isdir, PLACES), PLACES[-1])
    return os.path.join(place, f"gpucache-told-{os.geteuid()}")


def _directory() -> int:
    """A descriptor of the directory for this user's markers on this node, which is made if it is missing.

    Raises:
        OSError: it cannot be made, or another user may have planted markers in it.
    """
    user = os.geteuid()
    path = path_of_markers()
    if not os.path.isdir(path):
        os.makedirs(path, 0o700, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    found = os.fstat(directory)
    others = stat.S_IWGRP | stat.S_IWOTH
    if found.st_uid != user or found.st_mode & others:
        os.close(directory)
        raise PermissionError(path)
    return directory


def _sweep(directory: int) -> None:
    """Remove the markers of yesterday's jobs."""
    oldest = time.time() - _SWEEP_S
    try:
        for marker in os.listdir(directory):
            found = os.stat(marker, dir_fd=directory, follow_symlinks=False)
            if found.st_mtime < oldest:
                os.unlink(marker, dir_fd=directory)
    except OSError:
        return  # another process sweeps as well


# ---- the job


def job(environ: Mapping[str, str]) -> str:
    """What all processes of one job on this node have in common, and no other job: the process that started them.

    Of a rank that is its launcher: the nearest process above that has not this very rank (a shell between the two has).
    Of a process without a rank, the leader of its process group: a shell makes a group of each command.
    """
    ranks = _ranks(environ.items())
    if not ranks:
        return _identity(os.getpgrp())
    pid = os.getppid()
    while pid > 1 and _ranks(_environment(pid)) == ranks:
        pid = _parent(pid)
    return _identity(pid)


def _ranks(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The variables that give a rank. A step of one task of Slurm gives none: that may be a shell (``srun --pty``)."""
    environ = dict(items)
    if environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1":
        environ.pop("SLURM_LOCALID", None)
    return {name: value for name, value in environ.items() if any(part in name for part in _RANK)}


def _environment(pid: int) -> list[tuple[str, str]]:
    """The environment with which a process was started; empty if it is gone, or another user's."""
    found = []
    for item in _read(pid, "environ").split("\0"):
        name, _, value = item.partition("=")
        found.append((name, value))
    return found


def _parent(pid: int) -> int:
    return int(_stat(pid)[1] or 0)


def _identity(pid: int) -> str:
    """A process's number, and when it started, since numbers are used again."""
    return f"{pid}:{_stat(pid)[19]}"


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/<pid>/stat`` behind the name of the process, which may hold blanks (proc(5))."""
    _, _, fields = _read(pid, "stat").rpartition(") ")
    return [*fields.split(), *[""] * 20]


def _read(pid: int, name: str) -> str:
    try:
        with open(f"{_PROC}/{pid}/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
