"""Write entries in the layout of MCV and GKM images (*compat*), which extract into Triton's own cache directory.

Model Cache Vault's ``mcv/docs/spec-compat.md`` and ``mcv/docs/design.md`` of github.com/redhat-et/GKM (2026-06): one
gzip layer with ``io.triton.cache/<KEY>/…`` and ``io.triton.manifest/manifest.json``, and labels in the image's
configuration by which MCV tells whether a node's GPUs fit. In ``__grp__`` files the paths begin with ``.triton/cache``,
in whose place extraction puts the directory that it fills.

Nothing of that is signed: who wrote an image is told by its registry, or by cosign.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from gpucache.archive.collect import Collected
from gpucache.disk.door import METADATA_BYTES
from gpucache.disk.reading import read
from gpucache.kernels.group import GROUP

if TYPE_CHECKING:
    from gpucache.archive.statement import Kind

CACHE = "io.triton.cache"
MANIFEST = "io.triton.manifest/manifest.json"
KINDS: tuple[Kind, ...] = ("kernel", "library")
"""What the layout has a place for: an autotuner's result is worth something on one kind of device alone, and MCV does
not ask for which."""
_EXTRACTED = ".triton/cache"
_LABELS = "cache.triton.image"
_COMPRESSION = 6

Progress = Callable[[int, int], object]
"""Is told how many bytes are done, and how many there are."""


class Layer(NamedTuple):
    """What was written, as the labels of its image tell it."""

    kernels: int
    cache_bytes: int
    """Of all files below ``io.triton.cache``: extraction compares."""
    targets: tuple[Mapping[str, Any], ...]
    """Each ``backend``, ``arch`` and ``warp_size``, once."""

    @property
    def labels(self) -> dict[str, str]:
        """The labels that the image's configuration is to have."""
        summary = json.dumps({"targets": self.targets}, separators=(",", ":"))
        return {
            f"{_LABELS}/entry-count": str(self.kernels),
            f"{_LABELS}/summary": summary,
            f"{_LABELS}/cache-size-bytes": str(self.cache_bytes),
        }

    def dockerfile(self, layer: str) -> str:
        """What builds the image of a layer, which is the file of this name beside it."""
        labels = [f"LABEL {name}={json.dumps(value)}" for name, value in self.labels.items()]
        return "\n".join(["FROM scratch", *labels, f"ADD {json.dumps([layer, '/'])}", ""])


def write_layer(
    out: BinaryIO, entries: Sequence[Collected], on_progress: Progress | None = None
) -> Layer:
    """Write a layer to a stream, which may be a pipe and stays open; for equal entries equal bytes.

    The entries are of `KINDS`. A library that another entry has by the same name, for another Python, is passed over.

    Raises:
        OSError: a file cannot be read, or ``out`` not be written.
    """
    total = sum(one.entry.size_bytes for one in entries)
    metadata = [_metadata(one) for one in entries if one.entry.kind == "kernel"]
    cache_bytes = done = 0
    # No name and no time in the header of gzip, or equal entries would not give equal bytes.
    with (
        gzip.GzipFile("", "wb", _COMPRESSION, out, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        _add_directory(tar, CACHE)
        for name, size_bytes, opened in _members(tar, entries):
            if on_progress is not None:
                on_progress(done, total)
            with opened() as content:
                tar.addfile(_member(name, size_bytes), content)
            cache_bytes += size_bytes
            done += size_bytes
        _add_directory(tar, MANIFEST.partition("/")[0])
        manifest = json.dumps({"triton": metadata}, indent=2).encode()
        tar.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
    return Layer(len(metadata), cache_bytes, _targets(metadata))


_Member = tuple[str, int, Callable[[], BinaryIO]]


def _members(tar: tarfile.TarFile, entries: Iterable[Collected]) -> Iterator[_Member]:
    """Each file below ``io.triton.cache``: its name, its size, and what opens it. Adds their directories."""
    seen: set[str] = set()
    for one in sorted(entries, key=lambda one: one.entry.store_key):
        key = one.entry.key
        if key not in seen:
            seen.add(key)
            _add_directory(tar, f"{CACHE}/{key}")
        for name, size_bytes, opened in _files(one):
            path = f"{CACHE}/{key}/{name}"
            if path not in seen:
                seen.add(path)
                yield path, size_bytes, opened


def _files(one: Collected) -> Iterator[_Member]:
    """The files of an entry as Triton's own manager has them, with the group file."""
    for file in one.entry.files:
        yield file.name, file.size_bytes, lambda file=file: one.opened(file)  # type: ignore[misc]
    group = one.entry.facts.group
    if group is not None:
        names = [file.name for file in one.entry.files]
        children = {name: f"{_EXTRACTED}/{one.entry.key}/{name}" for name in names}
        content = json.dumps({"child_paths": children}).encode()
        yield f"{GROUP}{group}", len(content), lambda: io.BytesIO(content)


def _add_directory(tar: tarfile.TarFile, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(info)


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """A file of nobody's and of no time, which everybody may read."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info


# ---- what the manifest says


_SAME = "num_stages", "num_warps", "debug", "ptx_version"
"""What the manifest says of a kernel in the words of Triton's metadata, where these say it."""


def _metadata(one: Collected) -> dict[str, Any]:
    """A kernel as the manifest lists it: MCV's `TritonCacheMetadata`, without ``dummy_key``, which may be left out."""
    said = json.loads(read(one.paths[one.entry.facts.group or ""], METADATA_BYTES))
    target = said.get("target") or {}
    listed = {"hash": said.get("hash")}
    listed |= {name: said[name] for name in _SAME if said.get(name) is not None}
    listed |= {name: target.get(name) for name in ("backend", "arch", "warp_size")}
    listed["arch"] = str(listed["arch"])
    return listed


def _targets(metadata: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    different = []
    for listed in metadata:
        target = {name: listed[name] for name in ("backend", "arch", "warp_size")}
        if target not in different:
            different.append(target)
    return tuple(sorted(different, key=str))
