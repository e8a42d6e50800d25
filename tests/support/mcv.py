"""Read a layer as MCV's `extract` does, by what its documents say: ``mcv/docs/spec-compat.md`` of redhat-et/GKM.

Of the layer's members those below ``io.triton.cache/`` go to Triton's cache directory, and the manifest beside. In each
``__grp__*.json`` a path that begins with ``.triton/cache`` gets that directory in its place. The bytes that were
written must be those of the label.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LABELS = "cache.triton.image"


def extract(layer: bytes, labels: Mapping[str, str], cache: Path) -> dict[str, Any]:
    """Extract a layer into a cache directory; the manifest."""
    written = 0
    manifest: dict[str, Any] = {}
    with tarfile.open(fileobj=_Pieces(gzip.decompress(layer)), mode="r|") as tar:
        for member in tar:
            name = member.name
            if name == "io.triton.manifest/manifest.json":
                manifest = json.load(tar.extractfile(member))
            below = name.removeprefix("io.triton.cache/")
            if below == name:
                continue
            path = cache / below
            if member.isdir():
                path.mkdir(parents=True)
            elif member.isreg():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
                written += member.size
    assert written == int(labels[f"{_LABELS}/cache-size-bytes"])
    assert len(manifest["triton"]) == int(labels[f"{_LABELS}/entry-count"])
    for group in cache.rglob("__grp__*.json"):
        _restore(group, cache)
    return manifest


def _restore(group: Path, cache: Path) -> None:
    said = json.loads(group.read_text())
    for name, path in said["child_paths"].items():
        if path.startswith(".triton/cache"):
            said["child_paths"][name] = str(cache / path.removeprefix(".triton/cache/"))
    group.write_text(json.dumps(said))


class _Pieces:
    """Bytes as a stream that cannot go back."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, size: int) -> bytes:
        piece, self._data = self._data[:size], self._data[size:]
        return bytes(piece)


def labels_of(dockerfile: str) -> dict[str, str]:
    """The labels that a Dockerfile gives its image."""
    labels = {}
    for line in dockerfile.splitlines():
        if line.startswith("LABEL "):
            name, _, value = line.removeprefix("LABEL ").partition("=")
            labels[name] = json.loads(value)
    return labels
