"""Members of a group: processes of other users, for whom the interpreter and this checkout can be read.

Both may lie below a directory that only root may enter, such as root's home. So the processes are in a mount namespace
of their own, in which such a directory has nothing but what leads to these, and may be entered.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import gpucache
from support.processes import PATIENCE_S, unmeasured
from support.warm import WarmProcess, WarmPython

TEAM = 54300
"""The group."""
MEMBERS = (54301, 54302, 54303)
STRANGER = 54304
"""A user who is no member."""

_TREE = Path(gpucache.__file__).parents[1]
_BECOME = """
import os, sys
uid, gid, umask = map(int, sys.argv.pop(1).split(","))
os.setgroups([gid] if gid else [])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.umask(umask)
"""


class Members:
    """Starts processes of users. Ended by `close`."""

    def __init__(self, place: Path, python: Sequence[str] = (sys.executable,)) -> None:
        """``place`` is an empty directory that anybody can enter."""
        self.place = place
        shared_memory = "mount -t tmpfs -o mode=1777 none /dev/shm"
        script = "\n".join(["set -e", *_opened(place), shared_memory, "echo ready", "cat"])
        self._namespace = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._namespace.stdout is not None
        assert self._namespace.stdout.readline() == "ready\n"
        self._python = list(python)
        self._warm: WarmPython | None = None

    @property
    def shared_memory(self) -> Path:
        """The directory that is the processes' ``/dev/shm``, theirs alone."""
        return Path(f"/proc/{self._namespace.pid}/root/dev/shm")

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._namespace.pid}", "--mount"]

    def words(self, uid: int, umask: int, *words: object, gid: int = TEAM) -> list[str]:
        """The words of a command as a user runs it, whose supplementary group is ``gid``; root stays root."""
        become: list[str] = []
        if uid:
            groups = f"--groups={gid}" if gid else "--clear-groups"
            become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", groups]
        shell = f'umask {umask:o}; cd /; exec "$@"'
        return [*self._inside(), *become, "sh", "-c", shell, "sh", *map(str, words)]

    def gpucache(
        self, uid: int, umask: int, *words: object, env: Mapping[str, str], gid: int = TEAM
    ) -> subprocess.CompletedProcess[str]:
        """Run gpucache's command line as a user, to its end."""
        command = self.words(uid, umask, *self._python, "-m", "gpucache", *words, gid=gid)
        return subprocess.run(
            command,
            env=self.environ(uid, env),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )

    def start(
        self,
        uid: int,
        umask: int,
        code: str,
        *words: object,
        env: Mapping[str, str],
        gid: int = TEAM,
    ) -> WarmProcess:
        """Start a process with a warm Triton in which a user runs code, as `WarmPython.start`."""
        if self._warm is None:
            preload = "import kernels; kernels.hash_triton()"
            self._warm = WarmPython(
                [*self._inside(), *self._python], preload, {**unmeasured(), **_paths()}
            )
        who = f"{uid},{gid},{umask}"
        return self._warm.start(_BECOME + code, who, *words, env=self.environ(uid, env))

    def environ(self, uid: int, more: Mapping[str, str]) -> dict[str, str]:
        """The environment of a user, who has a home of his own."""
        home = self.place / f"home-{uid}"
        if not home.is_dir():
            home.mkdir(mode=0o755)
            os.chown(home, uid, uid)
        return {
            **_paths(),
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GPUCACHE_FAKE_DEVICES": "2xH100:9.0",
            **more,
        }

    def close(self) -> None:
        if self._warm is not None:
            self._warm.close()
        assert self._namespace.stdin is not None
        self._namespace.stdin.close()
        self._namespace.wait(PATIENCE_S)
        assert self._namespace.stdout is not None
        self._namespace.stdout.close()


@contextmanager
def members_at(place: Path) -> Iterator[Members]:
    """Members for the length of a ``with`` block."""
    made = Members(place)
    try:
        yield made
    finally:
        made.close()


def _paths() -> dict[str, str]:
    tests = _TREE / "tests"
    found = [str(_TREE), str(tests), str(tests / "support"), *filter(None, sys.path)]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(found))}


def _opened(place: Path) -> Iterator[str]:
    """Lines of shell by which what the processes need can be reached by all users."""
    needed = {sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), str(_TREE)}
    needed |= {path for path in sys.path if os.path.isdir(path)}
    closed: dict[str, set[str]] = {}
    for path in needed:
        for above in Path(path).parents:
            if not above.stat().st_mode & stat.S_IXOTH:
                below = Path(path).relative_to(above).parts[0]
                closed.setdefault(str(above), set()).add(below)
    for number, (above, names) in enumerate(sorted(closed.items())):
        kept = place / f"kept-{number}"
        kept.mkdir(mode=0o700)
        yield f"mount --rbind {shlex.quote(above)} {kept}"
        yield f"mount -t tmpfs -o mode=755 none {shlex.quote(above)}"
        for name in sorted(names):
            there, here = shlex.quote(f"{kept}/{name}"), shlex.quote(f"{above}/{name}")
            yield f"mkdir {here}; mount --rbind {there} {here}"


def flawed_modes(root: Path | str, gid: int = TEAM) -> list[str]:
    """What in a root of a group has not the group or the mode that each member needs, or is open to others."""
    found = []
    for path, directories, files in os.walk(root):
        for name in (".", *files):
            found.append(os.path.normpath(os.path.join(path, name)))
        for name in directories:
            if os.path.islink(os.path.join(path, name)):
                found.append(os.path.join(path, name))
    return [line for path in found if (line := _flaw(path, gid)) is not None]


def _flaw(path: str, gid: int) -> str | None:
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return None  # a pusher or a courier that ends
    expected = 0o2770 if stat.S_ISDIR(seen.st_mode) else 0o660
    if (stat.S_IMODE(seen.st_mode), seen.st_gid) == (expected, gid):
        return None
    return f"{stat.S_IMODE(seen.st_mode):o} {seen.st_uid}:{seen.st_gid} {path}"
