"""The manifest ``__entry__.json`` of an entry: what was published, file by file, and what is known of the kernel.

Everybody reads a manifest by `parse_manifest`, so that a hit, `gpucache verify`, a report and an explanation agree on
which manifests are sound.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from gpucache.disk.door import HASHED_BYTES, opener, read_some
from gpucache.disk.files import write_new
from gpucache.kernels.group import are_plain
from gpucache.layout import paths

MANIFEST = paths.MANIFEST

CONDEMNED = "__entry__.json.removed"
"""The name that a manifest gets when its directory is to be removed: from then on nobody takes that for an entry."""

RECIPE = paths.RECIPE

MOST_BYTES = 2**20
"""A longer file is no manifest, and is not read."""


class Published(NamedTuple):
    """One file of an entry as it was when the entry was published."""

    size_bytes: int
    mtime_ns: int
    """Modification time, in nanoseconds since the epoch."""
    sha256: str
    """Digest of the content, in hexadecimal."""


class Facts(NamedTuple):
    """What is known of an entry beside its files."""

    kernel: str
    group: str | None
    """The name of the metadata file that stands for the group; None for a single file."""
    target: str | None = None
    triton_version: str | None = None
    compile_s: float | None = None
    tag: str = ""
    """What else must be equal for a file to be shared: a Python ABI, a kind of silicon."""

    def store_key(self, key: str) -> str:
        """The key under which the store has the entry of one of Triton's keys: that key, for a kernel."""
        if self.group is not None:
            return key
        return single_key(key, self.kernel, self.tag)


class Manifest(NamedTuple):
    """A sound manifest. The names of its files are plain, and its texts can be shown."""

    facts: Facts
    listed: Mapping[str, Sequence[Any]]
    """The files as they stand in the manifest: by name, the three values of `Published`.

    Never empty, and with the group's metadata file among them if there is a group. Each hit compares these; everybody
    else takes `files`.
    """
    origin: str | None
    """The host on which the entry was compiled; None where the manifest does not say."""
    key: str | None = None
    """Triton's key. None where an older gpucache wrote it: `gpucache.store.identity` finds out which it is."""
    root: object = None
    """Of a view that is a copy, as it could not be linked to the files of the store: the real path of the root."""
    recipe: str | None = None
    """The SHA-256 of the stored entry's recipe, in hexadecimal; None where it has none.

    Whatever text the manifest has is kept: `gpucache.store.recipe_file` takes only a digest for one, so that what a
    newer gpucache may write here costs neither the entry nor, when the manifest is written anew, that text.
    """

    @property
    def files(self) -> dict[str, Published]:
        """Each file as it was published, by its name."""
        return {name: Published(*listed) for name, listed in self.listed.items()}

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file, by the file's name."""
        return {name: published.sha256 for name, published in self.files.items()}

    def encoded(self) -> bytes:
        """The content of the file that `parse_manifest` reads."""
        said = {
            "version": 1,
            "files": self.listed,
            **self.facts._asdict(),
            "origin": self.origin,
        }
        if self.key is not None:
            said["key"] = self.key
        if self.root is not None:
            said["root"] = self.root
        if self.recipe is not None:
            said["recipe"] = self.recipe
        return json.dumps(said, separators=(",", ":")).encode()


# A FIFO must not hang anyone, and a link may lead to another user's file.
_READ = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
)

_decode = json.JSONDecoder().raw_decode  # faster than json.loads, and on the path of every hit
_facts_in = itemgetter(*Facts._fields)
_made = tuple.__new__  # a third of the time that a call of the class takes
_FOREVER = float("inf")
_SECOND_NS = 1_000_000_000
_DAMAGE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.EINVAL,  # not a regular file, says `disk.door`
    errno.EFBIG,  # longer than any kernel's, says `digest_of`
    errno.ENAMETOOLONG,  # a name that no file has
)


def parse_manifest(data: bytes) -> Manifest | None:
    """Read a manifest from the content of its file; None where that is torn, or says what no manifest says.

    Unsound is one with a value of another type, a file's name that leads out of the directory, a text that a terminal
    could not show, or a group that is none of the files.
    """
    try:
        text = data.decode()
        said, end = _decode(text)
        if said["version"] != 1:
            return None
        if end != len(text) and text[end:].strip():
            return None
        listed, origin, facts = said["files"], said.get("origin"), _facts_in(said)
        key, recipe = said.get("key"), said.get("recipe")
        kernel, group, target, version, compile_s, tag = facts
        if not _are_files(listed) or not are_plain(listed):
            return None
        shown: str = "".join(listed) + kernel + tag  # what is no text raises TypeError
        for text_or_none in (target, version, origin, key):
            if text_or_none is not None:
                shown += text_or_none
        if not shown.isprintable():
            return None
        if group is not None and group not in listed:
            return None
        if compile_s is not None and not _is_duration(compile_s):
            return None
        if type(recipe) is not str:
            recipe = None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # no JSON, or JSON of another shape
    return _made(Manifest, (_made(Facts, facts), listed, origin, key, said.get("root"), recipe))


def _are_files(listed: dict[str, Any]) -> bool:
    """Whether there is a file, and each has what `Published` has: two whole numbers and a text.

    Raises:
        ValueError: a file has more or fewer values.
    """
    for size_bytes, mtime_ns, sha256 in listed.values():
        if type(size_bytes) is not int or type(mtime_ns) is not int:
            return False
        if type(sha256) is not str:
            return False
    return bool(listed)


def _is_duration(value: object) -> bool:
    """Whether something is a number of seconds; a truth value, which Python takes for a number, is none."""
    if type(value) is not float and type(value) is not int:
        return False
    return 0 <= value < _FOREVER


def entry_path(root: str, key: str) -> str:
    """The directory of a key's entry in the store."""
    return paths.ours(root, "store", key[:2], key)


def single_key(key: str, filename: str, tag: str) -> str:
    """The key in the store of a file without a group: Triton's key, and a digest of what else must be equal."""
    said = f"{filename}\0{tag}"
    digest = hashlib.sha256(said.encode()).hexdigest()
    return f"{key}-{digest[:16]}"


def read_manifest(
    directory: str, name: str = MANIFEST, here: int | None = None
) -> tuple[Manifest, float] | None:
    """Read an entry's manifest, and when the entry was last used (seconds since the epoch); None if it is not sound.

    ``here`` is a descriptor of the directory, if the caller has one.

    Raises:
        OSError: the disk does not answer.
    """
    path = f"{directory}/{name}" if here is None else name
    try:
        fd = os.open(path, _READ, dir_fd=here)
    except OSError as error:
        error.filename = f"{directory}/{name}"  # for people, who do not know what is open
        raise_unless_damage(error)
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            return None
        data = os.read(fd, found.st_size)
    finally:
        os.close(fd)
    manifest = parse_manifest(data)
    return None if manifest is None else (manifest, found.st_mtime)


def raise_unless_damage(error: OSError) -> None:
    """Raise an error again, unless it says that something is not there or no file, which is damage to an entry.

    A disk that does not answer (EIO, ESTALE, EMFILE) has damaged nothing.
    """
    if error.errno not in _DAMAGE:
        raise error


def unchanged_paths(directory: str, manifest: Manifest, here: int) -> dict[str, str] | None:
    """The path of each file by its name, if each has the size and the modification time it was published with.

    ``here`` is a descriptor of the directory: to ask by it costs a quarter less than by paths. None if a file is
    missing or has changed.
    """
    paths = {}
    stat_of, beginning = os.stat, f"{directory}/"  # each hit comes by here, with each of the files
    try:
        for name, (size_bytes, mtime_ns, _) in manifest.listed.items():
            found = stat_of(name, dir_fd=here)
            if found.st_size != size_bytes:
                return None
            if found.st_mtime_ns != mtime_ns and not is_rounded(found.st_mtime_ns, mtime_ns):
                return None
            paths[name] = beginning + name
    except OSError as error:
        raise_unless_damage(error)
        return None
    except ValueError:
        return None  # a name that the encoding of this process's file names does not have
    return paths


def is_rounded(found_ns: int, published_ns: int) -> bool:
    """Whether a file's time may be the published one, as a coarse file system or an archive keeps that.

    Whole seconds (squashfs, tar, ext3), or even seconds (FAT, zip), rounded down. On a file system with finer times
    no file that is written anew gets such a time, but for one in 250 million.

    >>> is_rounded(7_000_000_000, 7_900_000_000), is_rounded(7_000_000_000, 8_000_000_000)
    (True, False)
    """
    seconds, rest = divmod(found_ns, _SECOND_NS)
    if rest:
        return False
    step_ns = _SECOND_NS if seconds % 2 else 2 * _SECOND_NS
    return 0 <= published_ns - found_ns < step_ns


def intact(directory: str, manifest: Manifest) -> bool:
    """Whether the content of every file has the digest that was published."""
    try:
        for name, published in manifest.files.items():
            if digest_of(f"{directory}/{name}") != published.sha256:
                return False
    except OSError as error:
        raise_unless_damage(error)
        return False
    except ValueError:
        return False  # as in `unchanged_paths`
    return True


def digest_of(path: str) -> str:
    """SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: the file cannot be read, is no regular file, or is longer than any kernel's.
    """
    with open(path, "rb", opener=opener) as file:
        if os.fstat(file.fileno()).st_size > HASHED_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        digest = hashlib.sha256(read_some(file))
    return digest.hexdigest()


def write_manifest(directory: str, manifest: Manifest) -> None:
    """Write the manifest of a directory that is not an entry yet.

    Raises:
        OSError: the disk refused, or no reader would take the manifest, so that the entry would be compiled again for
            ever; nothing is left.
    """
    path = f"{directory}/{MANIFEST}"
    data = manifest.encoded()
    if len(data) > MOST_BYTES or parse_manifest(data) is None:
        raise OSError(errno.EINVAL, "a manifest with these names could not be read again", path)
    write_new(path, data)
