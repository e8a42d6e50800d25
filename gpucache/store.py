"""One copy of each entry per host, hard-linked into the device directories.

An *entry* is a directory of files, as Triton made them, with `__entry__.json` beside them: size, modification time and
SHA-256 of each file. (Not ``entry.json``: a kernel named ``entry`` has a file of that name.) The *view* of an entry in
a device directory has the same inodes, the same `__entry__.json`, and a `__grp__*.json` of its own, which names the
view's paths, for Triton's own manager. Reading takes no lock. Directories appear and go whole, by rename; the first
complete writer wins, and nothing is rewritten in place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpucache import fs, paths
from gpucache.keys import is_key_of
from gpucache.staging import Staging, write

MANIFEST = "__entry__.json"
GROUP = "__grp__"
"""How the name begins of the file by which Triton's own manager knows that a kernel is whole."""
ASIDE = "tmp.gpucache-"
"""How a name begins, in a device directory, of what is not yet or no longer an entry."""
CONDEMNED = "__entry__.json.removed"
"""What a manifest is called from the moment on when its directory is to go: nobody takes the entry for one any more."""
STAMP_S = 300.0
"""The use of an entry is stamped again after so long."""
# A directory that another manager may be filling at this moment is left alone for so long.
_FOREIGN_S = 120.0
_SKEW_S = 2.0
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an entry beside its files."""

    kernel: str
    group: str | None
    """The name of the metadata file that stands for the group; None for a single file."""
    target: str | None = None
    triton_version: str | None = None
    compile_s: float | None = None
    tag: str = ""
    """What else must be equal for a file to be shared: a Python ABI, a kind of silicon."""


_FIELDS = Facts.__dataclass_fields__.keys()
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not hang anyone
_decode = json.JSONDecoder().raw_decode  # faster than json.loads, and on the path of every hit


def facts_of(manifest: Manifest) -> Facts:
    """What a manifest says of an entry beside its files."""
    return Facts(**{name: manifest[name] for name in _FIELDS})


def boot_time() -> float:
    """When this machine started, in seconds since the epoch."""
    return time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def entry_path(root: str, key: str) -> str:
    """The directory of a key's entry in the store."""
    return paths.own(root, "store", key[:2], key)


def single_key(key: str, filename: str, tag: str) -> str:
    """The key in the store of a file that stands for itself: Triton's, and what else must be equal."""
    digest = hashlib.sha256(f"{filename}\0{tag}".encode()).hexdigest()
    return f"{key}-{digest[:16]}"


def read_manifest(directory: str, name: str = MANIFEST) -> tuple[Manifest, float] | None:
    """An entry's manifest and when it was last used (seconds since the epoch); None without a sound one."""
    try:
        fd = os.open(f"{directory}/{name}", _READ)
    except OSError as error:
        _only_damage(error)
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return None
        manifest, _ = _decode(os.read(fd, found.st_size).decode())
        whole = manifest["version"] == 1 and type(manifest["files"]) is dict and manifest.keys() >= _FIELDS
        return (manifest, found.st_mtime) if whole and manifest["files"] else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        os.close(fd)


def _only_damage(error: OSError) -> None:
    """What is not there, or not a file, is damage; a disk that does not answer (EIO, ESTALE, EMFILE) is none."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO):
        raise error


def unchanged(directory: str, manifest: Manifest) -> bool:
    """Whether every file is there with the size and the modification time it was published with."""
    try:
        for name, (size, mtime_ns, _) in manifest["files"].items():
            found = os.stat(f"{directory}/{name}")
            if found.st_size != size or found.st_mtime_ns != mtime_ns:
                return False
    except OSError as error:
        _only_damage(error)
        return False
    except (ValueError, TypeError):
        return False
    return True


def intact(directory: str, manifest: Manifest) -> bool:
    """Whether every file's content is what was published."""
    try:
        return all(digest_of(f"{directory}/{name}") == sha256 for name, (_, _, sha256) in manifest["files"].items())
    except OSError as error:
        _only_damage(error)
        return False
    except (ValueError, TypeError):
        return False


def digest_of(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def sound(directory: str, verify: bool, boot: float, stamp_s: float = STAMP_S) -> Manifest | None:
    """The manifest of an entry or view that can be used; None for an absent or a damaged one.

    Sizes and times are checked always; digests on request, and at the first use since ``boot`` (a power cut may leave
    files of the right size with nothing in them). Damage that keeps size and time within one boot is not seen. The use
    is stamped, at most every ``stamp_s``, by the manifest's modification time, which all views share.

    Beside a removal (`gpucache.removal`): it renames the manifest and then looks at the stamp, we stamp by name. So
    either it sees our stamp, and puts the manifest back, or we see that the manifest is gone.
    """
    found = read_manifest(directory)
    if found is None:
        return None
    manifest, used = found
    same = unchanged(directory, manifest)
    if not same or verify or used < boot:
        if not intact(directory, manifest):
            return None
        if not same:
            return _renewed(directory, manifest)
    if used < boot or not -_SKEW_S <= time.time() - used <= stamp_s:  # a time ahead is that of a wrong clock
        try:
            os.utime(f"{directory}/{MANIFEST}")
        except FileNotFoundError:
            return None  # it is being removed
        except OSError:
            return manifest  # read-only: it will look old, and is used all the same
    return manifest


def _renewed(directory: str, manifest: Manifest) -> Manifest | None:
    """The manifest of a directory that was copied with other times, and a group that names this place."""
    try:
        files = {name: (f"{directory}/{name}", facts[2]) for name, facts in manifest["files"].items()}
        _describe(directory, files, manifest)
    except FileNotFoundError:
        return None  # it is being removed
    except OSError:
        return manifest  # read-only: the digests are checked again next time
    return manifest


def publish(
    root: str,
    key: str,
    files: Mapping[str, tuple[str, str]],
    facts: Facts,
    staging: Staging,
    repair: bool,
    used: float | None = None,
) -> bool:
    """Put files (name to path and SHA-256) into the store as one entry, unless a whole one is there.

    ``repair`` allows to move a damaged entry aside, and needs the key's lock. ``used`` is when it was last used, if not
    now (seconds since the epoch). Whether a whole entry is there now.

    Raises:
        OSError: the disk refused; the store is as it was.
    """
    target = entry_path(root, key)
    aside = staging.directory()
    try:
        facts_of = {name: _place(path, f"{aside}/{name}", sha256) for name, (path, sha256) in files.items()}
        _write_manifest(aside, facts_of, asdict(facts))
        if used is not None:  # now: once it is there, a reader may have stamped it
            os.utime(f"{aside}/{MANIFEST}", (used, used))
        fs.make_directory(os.path.dirname(target))
        return _put_in_place(root, aside, target, repair)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(root: str, made: str, target: str, repair: bool) -> bool:
    """Rename a finished directory to where it belongs; plain rename replaces an empty one, and only that."""
    wanted = set(os.listdir(made)) - {MANIFEST}
    wanted = {name for name in wanted if not name.startswith(GROUP)}
    for repairs in (repair, False):
        try:
            os.rename(made, target)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        there = sound(target, True, 0.0)  # with digests: the caller may have found it damaged by them
        if there is not None and there["files"].keys() == wanted:
            return True  # another writer was first
        if repairs:
            quarantine(root, target)
    return False


def elf_whole(path: str, opener: Callable[[str, int], int] | None = None) -> bool:
    """Whether a file is not empty and, if it is a 64-bit ELF object, as long as its header tables say.

    A cubin or library that was cut would otherwise be taken for good: Triton checks that it exists, no more.
    """
    with open(path, "rb", opener=opener) as file:
        head = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if head[:5] != b"\x7fELF\x02" or len(head) < 64:  # after a power cut a file may be zeros of the right size
        return head[:4] != b"\x7fELF" and bool(head.strip(b"\0"))
    programs, sections = struct.unpack_from("<QQ", head, 0x20)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", head, 0x36)
    return bool(max(programs + program_size * program_count, sections + section_size * section_count) <= size)


def stock_group(
    directory: str, filename: str, condemned: bool = False, opener: Callable[[str, int], int] | None = None
) -> dict[str, str] | None:
    """The whole group that Triton's own manager left in a directory: names to paths here; None where it is not whole.

    The paths in a ``__grp__`` file are absolute and may point to where the directory was copied from, so that only the
    names are taken. A metadata file that does not parse would crash Triton at every start. ``condemned``: also of a
    view whose manifest the caller has renamed. ``opener`` is `open`'s.
    """
    if os.path.lexists(f"{directory}/{MANIFEST}") or (not condemned and os.path.lexists(f"{directory}/{CONDEMNED}")):
        return None  # one of ours, and it was found damaged, or is to go
    try:
        with open(f"{directory}/{GROUP}{filename}", encoding="utf-8", opener=opener) as file:
            names = [os.path.basename(name) for name in json.load(file)["child_paths"]]
        files = {name: f"{directory}/{name}" for name in names}
        if filename not in files or not all(elf_whole(path, opener) for path in files.values()):
            return None
        with open(files[filename], encoding="utf-8", opener=opener) as file:
            known = json.load(file)
        own = is_key_of(os.path.basename(directory), str(known.get("hash")))  # else it is another kernel's
        return files if len(files) > 1 and known["target"] and known["name"] and own else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def describe(directory: str, files: Mapping[str, tuple[str, str]], facts: Facts) -> None:
    """Make a whole directory of Triton's own a view: give it a manifest, and a group that names this place.

    Raises:
        OSError: the disk refused; the directory is as it was.
    """
    _describe(directory, files, asdict(facts))


def _describe(directory: str, files: Mapping[str, tuple[str, str]], facts: Manifest) -> None:
    aside = tempfile.mkdtemp(prefix=ASIDE, dir=os.path.dirname(directory))
    try:
        found = {name: os.stat(path) for name, (path, _) in files.items()}
        known = {name: (found[name].st_size, found[name].st_mtime_ns, files[name][1]) for name in files}
        _write_manifest(aside, known, facts)
        write_group(aside, directory, facts["group"], known)
        for name in sorted(os.listdir(aside), reverse=True):  # the manifest last: it says that all is in order
            os.rename(f"{aside}/{name}", f"{directory}/{name}")
        if os.path.lexists(f"{directory}/{CONDEMNED}"):  # else the removal sees our manifest, and puts back the rest
            raise FileNotFoundError(errno.ENOENT, "it is being removed", directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def quarantine(root: str, path: str) -> bool:
    """Move something damaged out of the way, for whoever wants to look at it; whether it is kept.

    What lies on another file system than the quarantine is removed.

    Raises:
        OSError: it could not be moved.
    """
    directory = paths.own(root, "quarantine")
    fs.make_directory(directory)
    where = f"{directory}/{os.path.basename(path)}.{time.time_ns():x}.{os.getpid()}"
    try:
        os.rename(path, where)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        remove_in_place(path)
        return False


def remove_in_place(path: str) -> None:
    """Remove a directory that cannot be moved to elsewhere; aside where it is, if that can be.

    Of a directory in an image's layer, overlayfs refuses every rename (``EXDEV``, unless ``redirect_dir`` is on): then
    its manifest goes first, and its group, so that nobody takes the rest for an entry.

    Raises:
        OSError: it stays.
    """
    beside = f"{os.path.dirname(path)}/{ASIDE}{time.time_ns():x}.{os.getpid()}"
    try:
        os.rename(path, beside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = path
        for name in sorted(os.listdir(path)):  # names of ours and of groups begin with an underscore
            if name.startswith("__"):
                os.unlink(f"{path}/{name}")
    shutil.rmtree(beside, ignore_errors=True)


def quarantined(path: str) -> float | None:
    """When something came to the quarantine, by its name, in seconds since the epoch."""
    parts = path.rsplit(".", 2)
    try:
        return int(parts[1], 16) / 1e9
    except (IndexError, ValueError):
        return None


def link_view(root: str, source: str, target: str, manifest: Manifest, repair: bool) -> bool:
    """Make ``target`` a view of the store's entry ``source``, unless a whole one is there; whether one is there now.

    Without ``repair`` (which needs the key's lock) only an absent or empty directory is filled.

    Raises:
        OSError: the disk refused; the view is as it was.
    """
    directory = os.path.dirname(target)
    fs.make_directory(directory)
    aside = tempfile.mkdtemp(prefix=ASIDE, dir=directory)
    try:
        placed = {
            name: _place(f"{source}/{name}", f"{aside}/{name}", sha256)
            for name, (_, _, sha256) in manifest["files"].items()
        }
        _give_manifest(source, aside, manifest, placed)
        write_group(aside, target, manifest["group"], placed)
        if repair and _busy(target):
            return False
        return _put_in_place(root, aside, target, repair)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _busy(target: str) -> bool:
    """Whether another manager, which knows no lock of ours, may be filling the directory."""
    if os.path.exists(f"{target}/{MANIFEST}"):
        return False
    try:
        with os.scandir(target) as found:
            return any(time.time() - item.stat(follow_symlinks=False).st_mtime < _FOREIGN_S for item in found)
    except OSError:
        return False


def _place(source: str, target: str, sha256: str) -> tuple[int, int, str]:
    """Hard-link a file, or copy it where that cannot be; size, modification time and digest of what is there."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copy2(source, target)
    found = os.stat(target)
    return found.st_size, found.st_mtime_ns, sha256


def _write_manifest(directory: str, files: Mapping[str, tuple[int, int, str]], facts: Manifest) -> None:
    """``facts`` are those of `Facts`, or of the manifest that is written anew."""
    known = {name: facts[name] for name in _FIELDS}
    origin = facts.get("origin") or paths.host_name()
    manifest = {"version": 1, "files": files, **known, "origin": origin}
    write(f"{directory}/{MANIFEST}", json.dumps(manifest, separators=(",", ":")).encode())


def _give_manifest(source: str, target: str, manifest: Manifest, placed: Mapping[str, tuple[int, int, str]]) -> None:
    """The store's own manifest where the files are the store's own, so that a use of one stamps all."""
    if all(placed[name] == tuple(facts) for name, facts in manifest["files"].items()):
        _place(f"{source}/{MANIFEST}", f"{target}/{MANIFEST}", "")
    else:  # copied to a file system with coarser times
        _write_manifest(target, placed, manifest)


def write_group(directory: str, final: str, group: str | None, names: Iterable[str]) -> None:
    """What Triton's own manager reads: the group's files, by the paths they have once the directory is ``final``."""
    if group is not None:
        children = {name: f"{final}/{name}" for name in names}
        write(f"{directory}/{GROUP}{group}", json.dumps({"child_paths": children}).encode())
