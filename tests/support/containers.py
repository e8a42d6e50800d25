"""Containers for tests: an image of layers, a root file system, volumes, a user; by mounts and ids of the kernel's.

A container here is what a container runtime makes of the same words: an overlay of the image's layers with a writable
one on top, mounts below it, and a process without any right of root's that its user has not. The bottom layer is this
machine, so that its Python is there; its ``/tmp`` and home directories are empty.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import gpucache
from support.processes import PATIENCE_S

PROGRAM = Path(__file__).with_name("contained_program.py")
_TREE = Path(gpucache.__file__).parents[1]
_OPAQUE = "trusted.overlay.opaque"

_START = """
set -e
root="$1" options="$2" binds="$3" read_only="$4"
shift 4
mount -t overlay -o "$options" overlay "$root"
mount --bind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 none "$root/dev/shm"
eval "$binds"
[ -z "$read_only" ] || mount -o remount,ro,bind "$root"
mount --rbind "$root" /mnt
exec "$@"
"""


@contextmanager
def own_disk(point: Path) -> Iterator[Path]:
    """A file system of its own, for layers and volumes, at a directory that is there; skips where none can be laid."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", point], check=True)
    try:
        _check_overlay(point)
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def _check_overlay(disk: Path) -> None:
    """Skip the test where this machine's own file system can be no layer, as in containers of containers."""
    parts = [new_directory(disk, "trial") for _ in range(3)]
    options = f"lowerdir=/,upperdir={parts[0]},workdir={parts[1]}"
    words = ["unshare", "--mount", "mount", "-t", "overlay", "-o", options, "overlay", parts[2]]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot make containers here: {done.stderr.strip()}")


class Image:
    """The layers of an image, the bottom one first, and directories in which containers are made."""

    def __init__(self, disk: Path, layers: Sequence[Path] = ()) -> None:
        """``disk`` is on a file system of its own: no layer of an overlay may lie in another one."""
        self.disk = disk
        self.layers = tuple(layers) or (_machine(disk),)

    def run(
        self,
        command: str,
        *,
        uid: int = 0,
        gid: int = 0,
        groups: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        volumes: Mapping[str, Path] | None = None,
        read_only: bool = False,
        layer: Path | None = None,
        become: Sequence[str] = (),
        timeout: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in a new container of this image, as a user, and wait for its end.

        ``volumes`` are mounted at their names; ``layer`` keeps what is written elsewhere; ``become`` are words before
        the last step, which becomes the user in the container's root.
        """
        words = self.words(
            command,
            uid=uid,
            gid=gid,
            groups=groups,
            volumes=volumes,
            read_only=read_only,
            layer=layer,
            become=become,
        )
        return subprocess.run(
            words,
            env=container_environ(env or {}),
            text=True,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def words(
        self,
        command: str,
        *,
        uid: int = 0,
        gid: int = 0,
        groups: Sequence[int] = (),
        volumes: Mapping[str, Path] | None = None,
        read_only: bool = False,
        layer: Path | None = None,
        become: Sequence[str] = (),
    ) -> list[str]:
        """The words of a command that makes a container, as `run` does."""
        work = new_directory(self.disk, "container")
        upper = layer or work / "upper"
        for directory in (work / "root", work / "work", upper):
            directory.mkdir(exist_ok=True)
        lower = ":".join(str(path) for path in (*self.layers[::-1], "/"))
        options = f"lowerdir={lower},upperdir={upper},workdir={work}/work"
        binds = []
        shown = dict(volumes or {})
        for path in _needed():  # what a volume would hide
            if any(path.startswith(f"{at}/") for at in volumes or {}):
                shown[path] = Path(path)
        for at, source in shown.items():
            here = shlex.quote(f"{work}/root{at}")
            binds.append(f"mkdir -p {here}; mount --bind {shlex.quote(str(source))} {here}")
        return [
            *("unshare", "--mount", "--ipc", "sh", "-c", _START, "sh"),
            *(str(work / "root"), options, "\n".join(binds), "1" if read_only else ""),
            *become,
            *("chroot", f"--userspec={uid}:{gid}", f"--groups={','.join(map(str, groups))}"),
            *("/mnt", "/bin/sh", "-c", command),
        ]

    def built(self, *commands: str, **options: object) -> Image:
        """The image with one more layer: what the commands have written as root, as ``RUN`` in a Dockerfile."""
        layer = new_directory(self.disk, "layer")
        for command in commands:
            done = self.run(command, layer=layer, **options)  # type: ignore[arg-type]
            assert done.returncode == 0, done.stderr
        return Image(self.disk, (*self.layers, layer))


def with_users(
    image: Image, users: Mapping[str, int], groups: Mapping[str, tuple[int, str]]
) -> Image:
    """The image with users of these ids, each of a group of his own; and groups, of whom these are members."""
    lines = [f"{name}:x:{uid}:{uid}::/nonexistent:/bin/sh" for name, uid in users.items()]
    of_groups = [f"{name}:x:{uid}:" for name, uid in users.items()]
    of_groups += [f"{name}:x:{gid}:{members}" for name, (gid, members) in groups.items()]
    passwd, group = "\n".join(lines), "\n".join(of_groups)
    return image.built(f"echo '{passwd}' >> /etc/passwd; echo '{group}' >> /etc/group")


def container_environ(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process in a container: what the image says, and more."""
    paths = [str(_TREE), str(_TREE / "tests"), *filter(None, sys.path)]
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",  # what Triton says of its own defaults
        "GPUCACHE_FAKE_DEVICES": "1xH100:9.0",
        **more,
    }


def _machine(disk: Path) -> Path:
    """The layer that makes an image of this machine: whoever may run its Python, and nothing in ``/tmp``."""
    layer = disk / "machine"
    if layer.exists():
        return layer
    layer.mkdir()
    for path in (sys.executable, os.path.realpath(sys.executable), str(_TREE), *sys.path):
        for above in Path(path).parents:
            (layer / str(above).lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("home", 0o755)):
        empty = layer / name
        empty.mkdir(parents=True, exist_ok=True)
        empty.chmod(mode)
        if not _lies_in(f"/{name}"):
            os.setxattr(empty, _OPAQUE, b"y")
    commands = layer / "usr/local/bin"
    commands.mkdir(parents=True, exist_ok=True)
    _script(commands / "python", f'exec {sys.executable} "$@"')
    _script(commands / "gpucache", f'exec {sys.executable} -m gpucache "$@"')
    (layer / "app").mkdir()
    _script(layer / "app/serve.py", "", PROGRAM.read_text(encoding="utf-8"))
    return layer


def _needed() -> list[str]:
    """The directories that this machine's Python needs."""
    interpreter = os.path.dirname(os.path.realpath(sys.executable))
    found = [str(_TREE), sys.prefix, sys.base_prefix, interpreter, *filter(os.path.isdir, sys.path)]
    return sorted({os.path.abspath(path) for path in found})


def _lies_in(directory: str) -> bool:
    """Whether this machine's Python needs something there."""
    return any(path.startswith(f"{directory}/") for path in _needed())


def _script(path: Path, line: str, text: str = "") -> None:
    path.write_text(text or f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def new_directory(disk: Path, kind: str) -> Path:
    """A new empty directory on a disk, which all may enter."""
    for number in range(1000):
        path = disk / f"{kind}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        path.chmod(0o755)
        return path
    raise AssertionError("too many")


# ---- what the kubelet makes


def empty_dir(disk: Path, fs_group: int | None = None) -> Path:
    """An ``emptyDir`` as the kubelet makes it: everybody may write it, whether or not the pod has an ``fsGroup``.

    After Kubernetes 1.31 `pkg/volume/emptydir/empty_dir.go` (``perm os.FileMode = 0777``) and
    `pkg/volume/volume_linux.go` (`SetVolumeOwnership`).
    """
    volume = new_directory(disk, "volume")
    volume.chmod(0o777)
    if fs_group is not None:
        set_volume_ownership(volume, fs_group)
    return volume


def set_volume_ownership(volume: Path, fs_group: int) -> None:
    """What the kubelet does to a volume of a pod with an ``fsGroup``, before any of its containers starts.

    Files and directories get the group, and ``rw`` for the group, directories ``x`` and the setgid bit as well
    (Kubernetes 1.31 `pkg/volume/volume_linux.go`, `changeFilePermission`).
    """
    for path in (volume, *volume.rglob("*")):
        os.chown(path, -1, fs_group, follow_symlinks=False)
        if path.is_symlink():
            continue
        added = 0o2770 if path.is_dir() else 0o660
        path.chmod(path.stat().st_mode & 0o7777 | added)
