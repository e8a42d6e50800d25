"""Images and a registry by its HTTP interface (OCI's image and distribution specifications, 1.1); `docker` and `oras`.

``python oci.py docker build -t NAME .``, ``docker push NAME``: stands in for Docker as far as FROM, ENV, LABEL, COPY
and ADD of a tar go, with a real registry. ``python oci.py oras push|pull …``: the command's words, done by oras-py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shlex
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Image(NamedTuple):
    """Layers of gzipped tar, and what the configuration says of environment and labels."""

    layers: list[bytes]
    env: dict[str, str]
    labels: dict[str, str]

    def extract(self, place: Path) -> None:
        """Lay the layers over one another in a directory, as a container's file system."""
        place.mkdir()
        for layer in self.layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
                tar.extractall(place, filter="tar")


# ---- a registry


def push(name: str, image: Image) -> None:
    """Put an image into the registry that its name begins with."""
    host, repository, tag = _parts(name)
    base = f"http://{host}/v2/{repository}"
    diffs = [_digest(gzip.decompress(layer)) for layer in image.layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": [f"{key}={value}" for key, value in image.env.items()],
            "Labels": image.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": diffs},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put_blob(base, json.dumps(config).encode(), CONFIG),
        "layers": [_put_blob(base, layer, LAYER) for layer in image.layers],
    }
    _ask("PUT", f"{base}/manifests/{tag}", json.dumps(manifest).encode(), MANIFEST)


def pull(name: str) -> Image:
    """Get an image, and check what comes by its digests."""
    host, repository, tag = _parts(name)
    base = f"http://{host}/v2/{repository}"
    manifest = json.loads(_ask("GET", f"{base}/manifests/{tag}"))
    config = json.loads(_get_blob(base, manifest["config"], CONFIG))
    layers = [_get_blob(base, layer, LAYER) for layer in manifest["layers"]]
    env = dict(one.split("=", 1) for one in config["config"]["Env"])
    return Image(layers, env, config["config"]["Labels"])


def _parts(name: str) -> tuple[str, str, str]:
    host, _, rest = name.partition("/")
    repository, _, tag = rest.partition(":")
    return host, repository, tag or "latest"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _ask(method: str, url: str, data: bytes | None = None, kind: str = "") -> bytes:
    headers = {"Content-Type": kind} if kind else {}
    headers["Accept"] = MANIFEST
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def _put_blob(base: str, data: bytes, kind: str) -> dict[str, Any]:
    digest = _digest(data)
    request = urllib.request.Request(f"{base}/blobs/uploads/", b"", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        place = answer.headers["Location"]
    separator = "&" if "?" in place else "?"
    _ask("PUT", f"{place}{separator}digest={digest}", data, "application/octet-stream")
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def _get_blob(base: str, said: dict[str, Any], kind: str) -> bytes:
    assert said["mediaType"] == kind
    data = _ask("GET", f"{base}/blobs/{said['digest']}")
    assert (len(data), _digest(data)) == (said["size"], said["digest"])
    return data


# ---- images


def layer_of(files: dict[str, Path]) -> bytes:
    """A layer of files and directories by their names in the image: root's, with their modes and times (in seconds)."""

    def roots(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = int(info.mtime)
        return info

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, path in files.items():
            tar.add(path, name, filter=roots)
    return out.getvalue()


def built(context: Path) -> Image:
    """The image that the Dockerfile of a directory says."""
    image = Image([], {}, {})
    for line in (context / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM" and rest != "scratch":
            image = pull(rest)
        elif word in ("ENV", "LABEL"):
            name, _, value = rest.partition("=")
            said = image.env if word == "ENV" else image.labels
            said[name] = json.loads(value) if value.startswith('"') else value
        elif word == "COPY":
            source, target = shlex.split(rest)
            image.layers.append(layer_of({target.lstrip("/"): context / source}))
        elif word == "ADD":
            source, target = json.loads(rest)
            assert target == "/"
            image.layers.append((context / source).read_bytes())
    return image


# ---- commands


def docker(command: str, *words: str) -> None:
    """Build an image, or push it, which is then built again: a Dockerfile of a directory says the same twice."""
    built_file = Path(os.environ["HOME"]) / "docker-built.json"
    known = json.loads(built_file.read_text()) if built_file.exists() else {}
    if command == "build":
        option, name, context = words
        assert option == "-t"
        known[name] = str(Path(context).resolve())
        built_file.write_text(json.dumps(known))
    else:
        (name,) = words
        push(name, built(Path(known[name])))


def oras(command: str, target: str, *files: str) -> None:
    """Push or pull by oras-py."""
    import oras.client

    client = oras.client.OrasClient(insecure=True)
    if command == "push":
        client.push(target=target, files=list(files), quiet=True)
    else:
        client.pull(target=target, outdir=str(Path.cwd()))


def commands(place: Path) -> Path:
    """A directory with commands `docker` and `oras`, for a PATH."""
    place.mkdir()
    for name in ("docker", "oras"):
        path = place / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)
    return place


def blocks(text: str, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


if __name__ == "__main__":
    {"docker": docker, "oras": oras}[sys.argv[1]](*sys.argv[2:])
