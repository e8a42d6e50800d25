"""Users of one machine who have files in common: a victim, a mate of his group, and a stranger who plants things."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

from support.containers import Image, container_environ, new_directory
from support.pods import Done
from support.processes import PATIENCE_S

VICTIM, MATE, MALLORY = 1001, 1002, 1003
TEAM, COMMON = 2000, 3000
"""Groups: of victim and mate; and of all three, as ``users`` is."""
USERS = {"victim": VICTIM, "mate": MATE, "mallory": MALLORY}
GROUPS = {"team": (TEAM, "victim,mate"), "common": (COMMON, "victim,mate,mallory")}
_GROUPS = {VICTIM: (TEAM, COMMON), MATE: (TEAM, COMMON), MALLORY: (COMMON,)}

PLANTING = """
import base64, fcntl, hashlib, json, os, pathlib, shutil, socket, stat, struct, sys, threading
VICTIM, MATE, MALLORY, TEAM, COMMON = {ids}
P = pathlib.Path
os.umask(0)

def mark(root, sharing="group"):
    \"\"\"Say of a root that its group shares it.\"\"\"
    file = P(root, "gpucache/v1/sharing.json")
    file.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
    file.write_text(json.dumps({{"format": 1, "sharing": sharing}}))
    file.chmod(0o660)
    return file

def poisoned(root):
    \"\"\"Fill a root with kernels of the victim's keys and another content, as if they had been published.\"\"\"
    os.environ["GPUCACHE_DIR"] = str(root)
    os.environ["TRITON_CACHE_DIR"] = f"{{root}}/triton/0"
    os.environ["GPUCACHE_TRUST_WORLD_WRITABLE"] = "1"
    from gpucache.triton.manager import DeviceCacheManager
    for seed in ("first", "second", "third"):
        digest = hashlib.sha256(seed.encode())
        key = base64.b32encode(digest.digest()).decode().rstrip("=")
        said = {{"name": "add", "target": {{"backend": "cuda", "arch": 90}}, "hash": digest.hexdigest(),
                "triton_version": "3.9.0"}}
        manager = DeviceCacheManager(key)
        files = {{"add.json": json.dumps(said).encode(), "add.ptx": b"poison"}}
        manager.put_group("add.json", {{name: manager.put(data, name) for name, data in files.items()}})
        del manager
    for thread in threading.enumerate():
        if thread.name == "gpucache-limit":
            thread.join()

def opened(root, directory=0o2770, file=0o660):
    \"\"\"Give all in a root the modes of a shared one, unless it has them.\"\"\"
    for path in (P(root), *P(root).rglob("*")):
        mode = directory if path.is_dir() else file
        if path.stat().st_mode & 0o7777 != mode:
            path.chmod(mode)

def given(root, gid):
    \"\"\"Give a root to a group, and share it.\"\"\"
    for path in (P(root), *P(root).rglob("*")):
        os.chown(path, -1, gid)
    opened(root)

def marks():
    \"\"\"What is no mark, by name, each made at a path.\"\"\"
    real = P("/scratch/real.json")
    real.write_text(json.dumps({{"format": 1, "sharing": "group"}}))
    def huge(path):
        with open(path, "w") as file:
            file.truncate(2**40)
    return {{"link": lambda path: os.symlink(real, path), "fifo": os.mkfifo, "huge": huge, "dir": os.mkdir}}

def link_to_mine(path):
    os.symlink("/scratch", path)

def bound_socket(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)

def linked(root, beside):
    \"\"\"Give each file of a root that can be linked a second name.\"\"\"
    os.mkdir(beside)
    for number, path in enumerate(P(root).rglob("*")):
        try:
            os.link(path, f"{{beside}}/{{number}}")
        except OSError:
            pass

def grants(path, uid):
    \"\"\"Let a user write a directory, and all that is made in it, by its lists.\"\"\"
    none = 0xFFFFFFFF
    entries = [(1, 7, none), (2, 7, uid), (4, 7, none), (16, 7, none), (32, 0, none)]
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", data)
    os.setxattr(path, "system.posix_acl_default", data)

def writable(root):
    \"\"\"What of a root this user may write.\"\"\"
    for path in (P(root), *P(root).rglob("*")):
        if os.access(path, os.W_OK):
            yield path
"""


def planting(script: str) -> str:
    """A script after what `PLANTING` defines."""
    ids = (VICTIM, MATE, MALLORY, TEAM, COMMON)
    return PLANTING.format(ids=ids) + textwrap.dedent(script)


class Machine:
    """Directories that all users see: ``/tmp``, ``/dev/shm``, ``/var/tmp`` and ``/scratch``, sticky and open to all."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.base = new_directory(image.disk, "machine")
        self.volumes: dict[str, Path] = {}
        for at in ("/tmp", "/var/tmp", "/dev/shm", "/scratch"):
            here = self.base / at.strip("/").replace("/", "-")
            here.mkdir(parents=True)
            here.chmod(0o1777)
            self.volumes[at] = here

    def act(self, uid: int, command: str, **env: str) -> Done:
        """Run a line of shell as a user, with his groups."""
        words = self.words(uid, command)
        return subprocess.run(
            words,
            env=container_environ(env),
            text=True,
            capture_output=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )

    def words(self, uid: int, command: str) -> list[str]:
        """The words of a command by which a user runs a line of shell."""
        groups = _GROUPS.get(uid, ())
        return self.image.words(command, uid=uid, gid=uid, groups=groups, volumes=self.volumes)

    def plants(self, script: str, uid: int = MALLORY) -> None:
        """Run Python code of a stranger's, or of ``uid``, with what `PLANTING` defines."""
        if not script:
            return
        code = planting(script)
        done = self.act(uid, 'exec python -c "$CODE"', CODE=code)
        assert done.returncode == 0, done.stderr

    def serve(self, uid: int = VICTIM, **env: str) -> Done:
        """Start the program, whose kernels have the content that was compiled, or it fails."""
        return self.act(uid, "gpucache run -- python /app/serve.py", **env)

    def owned(self, uid: int) -> set[str]:
        """The paths below all directories that belong to a user."""
        return {
            str(path.relative_to(self.base))
            for path in self.base.rglob("*")
            if os.lstat(path).st_uid == uid
        }
