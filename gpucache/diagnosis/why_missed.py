"""Why an entry is not a hit for a process: where that process looks, and what it finds there. Reads only.

No lock is taken and no use stamped; Triton is not imported.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gpucache import environment
from gpucache.diagnosis.environment_checks import always_compiling
from gpucache.directories.record import recorded
from gpucache.disk.reading import digest, read
from gpucache.disk.vetting import Trust, vet
from gpucache.environment import SHARE
from gpucache.errors import GpuCacheError
from gpucache.findings import Finding
from gpucache.kernels.group import GROUP
from gpucache.kernels.metadata import Metadata, arch_of, key_environment
from gpucache.layout import paths
from gpucache.layout.keys import device_directories, view_key
from gpucache.report.directory import group_in, manifest_in, metadata_in
from gpucache.store.manifest import CONDEMNED, MANIFEST, Published, entry_path
from gpucache.store.stock import stock_group
from gpucache.triton.location import default_directory, is_fresh

_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm")


def why_missed(
    entry: str, root: str, environ: Mapping[str, str], directory: str | None = None
) -> tuple[Finding, ...]:
    """What keeps the entry of a key (or the one at a path) from being a hit for a process with this environment.

    ``directory`` is the device directory of that process; by default what `TRITON_CACHE_DIR` or the pinned device says,
    else where the path lies, else Triton's own default. An ``error`` makes it a miss; a ``warning`` does not, or not
    alone. Without an error nothing stands against a hit, so that the process asks for another key: `difference` between
    this entry and the one that it made tells why. The Triton meant is the one installed beside gpucache.
    """
    here = _here(entry, os.path.abspath(root), environ, directory)
    found = [*always_compiling(environ, "error"), *_places(here)]
    metadata = next(filter(None, map(metadata_in, (*here.looked, *here.others))), None)
    if metadata is not None:
        found += [
            *_architecture(metadata, here),
            *_versions(metadata),
            *_variables(metadata, environ),
        ]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Here:
    """Where a process looks for a key, and where it does not."""

    key: str
    root: str
    environ: Mapping[str, str]
    directory: str
    apart: tuple[tuple[str, str, str], ...]
    """Why the store is not asked: variable, fact and fix of each reason."""
    looked: tuple[str, ...]
    others: tuple[str, ...]


def _here(entry: str, root: str, environ: Mapping[str, str], directory: str | None) -> _Here:
    path = os.path.abspath(entry)
    key, named = view_key(os.path.basename(path)), path if "/" in entry else None
    stored = paths.ours(root, "store") + "/"
    directory = directory or _own_directory(root, environ)
    if directory is None and named is not None and not named.startswith(stored):
        directory = os.path.dirname(named)
    directory = directory or default_directory(root, None, environ)
    apart = tuple(_apart(root, environ, directory))
    looked: tuple[str, ...] = (f"{directory}/{key}",)
    copies = _copies(root, key)
    others = [
        other
        for other in dict.fromkeys((*copies, named))
        if other is not None and os.path.isdir(other)
    ]
    if not apart:
        looked += tuple(other for other in others if other.startswith(stored)) or (
            entry_path(root, key),
        )
    return _Here(
        key,
        root,
        environ,
        directory,
        apart,
        looked,
        tuple(path for path in others if path not in looked),
    )


def _own_directory(root: str, environ: Mapping[str, str]) -> str | None:
    directory = environment.TRITON_DIRECTORY.text(environ)
    pinned = environment.PINNED_DEVICE.text(environ)
    if directory or not pinned:
        return os.path.abspath(directory) if directory else None
    record = recorded(root)
    name = record.names.get(pinned) if record is not None else None
    return None if name is None else paths.device_directory(root, name)


def _copies(root: str, key: str) -> Iterator[str]:
    """Where the key may lie below the root: the store, where a library has a longer name, and the devices'."""
    bucket = os.path.dirname(entry_path(root, key))
    yield from (f"{bucket}/{name}" for name in _names(bucket) if view_key(name) == key)
    yield from (f"{path}/{key}" for _, path in device_directories(root))


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _apart(root: str, environ: Mapping[str, str], directory: str) -> Iterator[tuple[str, str, str]]:
    """The settings by which Triton's own manager acts, which knows no store."""
    manager = environment.MANAGER.text(environ)
    if manager != environment.OUR_MANAGER:
        fact = f"the cache manager is {manager or 'the one of Triton'}"
        yield (
            environment.MANAGER.name,
            fact,
            f"set {environment.MANAGER}={environment.OUR_MANAGER}, as gpucache run does; and ask under it",
        )
    off = []
    if environment.DISABLE.read_or_default(environ):
        off.append(environment.DISABLE.name)
    if SHARE.read_or_default(environ) is False:
        off.append(SHARE.name)
    if environment.USE_IR_LOC.read(environ):
        off.append(environment.USE_IR_LOC.name)
    for name in off:
        yield name, f"{name}={environ[name]}", f"unset {name}"
    if not SHARE.read_or_default(environ) and is_fresh(directory, root):
        fact = f"{directory} is a fresh cache in the temporary directory"
        yield (
            environment.TRITON_DIRECTORY.name,
            fact,
            f"set {SHARE}=1, or another {environment.TRITON_DIRECTORY}",
        )


def _places(here: _Here) -> Iterator[Finding]:
    """What is wrong with the copies that the process looks at; no error where one of them is whole."""
    for path in dict.fromkeys((here.root, here.directory)):
        yield from _unsafe(path, here.environ)
    wrong = {path: [*_wrong(path, bool(here.apart))] for path in here.looked if os.path.isdir(path)}
    whole = any(all(finding.level == "warning" for finding in found) for found in wrong.values())
    for finding in (finding for found in wrong.values() for finding in found):
        yield replace(finding, level="warning") if whole else finding
    if whole:
        return
    if not wrong:
        yield _absent(here)
    for name, fact, fix in here.apart:
        yield Finding(
            "store-unused", "warning", name, f"{fact}, so that the store is not asked", fix
        )


def _wrong(path: str, stock: bool) -> Iterator[Finding]:
    """What is wrong with one directory for us, or for ``stock`` Triton."""
    yield from _ours(path) if os.path.lexists(f"{path}/{MANIFEST}") else _stock(path)
    group = group_in(path)
    if group is not None:
        yield from _elsewhere(path, group, stock)


def _unsafe(path: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        vet(path, Trust.parse(environ))
    except GpuCacheError as error:
        yield Finding("unsafe-directory", "error", path, error.problem, error.hint)


def _absent(here: _Here) -> Finding:
    looked = " nor in ".join(here.looked)
    if here.others:
        fact = f"it is not in {looked}, but in {', '.join(here.others)}"
        stored = any(path.startswith(paths.ours(here.root, "store")) for path in here.others)
        fix = (
            "let the process ask the store"
            if stored
            else f"set {environment.TRITON_DIRECTORY} to the directory that has it"
        )
        return Finding("elsewhere", "error", here.key, fact, fix)
    fact = f"it is not in {looked}"
    return Finding(
        "absent", "error", here.key, fact, "compile it here, or bring it from where it was compiled"
    )


def _ours(path: str) -> Iterator[Finding]:
    """An entry or view of ours: its manifest, then each of its files."""
    fix = "nothing: the next process that asks for it compiles it again and puts this aside"
    manifest = manifest_in(path)
    if manifest is None:
        yield Finding(
            "manifest-damaged", "error", path, f"{MANIFEST} cannot be read or understood", fix
        )
        return
    changed = []
    for name, published in manifest.files.items():
        said = _changed(f"{path}/{name}", published)
        if said is not None:
            changed.append(said)
    if changed:
        yield Finding("files-changed", "error", path, "; ".join(changed), fix)


def _changed(path: str, published: Published) -> str | None:
    """What became of a file since it was published; its time alone does not matter."""
    name = os.path.basename(path)
    try:
        found = os.stat(path)
        if found.st_size != published.size_bytes:
            return f"{name} has {found.st_size} bytes, not {published.size_bytes}"
        same = digest(path)[0] == published.sha256
        return None if same else f"{name} has another content"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def _stock(path: str) -> Iterator[Finding]:
    """What Triton's own manager left, or nothing of a kernel yet."""
    group = group_in(path)
    if os.path.lexists(f"{path}/{CONDEMNED}"):
        yield Finding(
            "being-removed", "error", path, "a removal of it began", "nothing: it is compiled again"
        )
    elif group is None:
        if not any(name.endswith((".so", ".autotune.json")) for name in _names(path)):
            fact = "it has no group file: its compile failed, was killed, or goes on"
            yield Finding("stock-incomplete", "error", path, fact, "nothing: it is compiled again")
    elif stock_group(path, group) is None:
        fact = "a file of the group is missing, empty or cut, or its metadata cannot be read"
        yield Finding(
            "stock-incomplete", "error", path, fact, f"remove {path}: stock Triton may fail on it"
        )


def _elsewhere(path: str, group: str, stock: bool) -> Iterator[Finding]:
    """Where a group sends stock Triton: to other files, or nowhere."""
    try:
        children = json.loads(read(f"{path}/{GROUP}{group}"))["child_paths"]
        homes = {os.path.dirname(os.path.abspath(child)) for child in children.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    for home in sorted(homes - {path}):
        there = os.path.isdir(home)
        fact = f"its group names files in {home}, {'where' if there else 'which is gone:'} stock Triton "
        fact += "reads them" if there else "compiles again"
        plugin = f"{environment.MANAGER}={environment.OUR_MANAGER}"
        fix = f"`gpucache verify --repair`, or set {plugin}, which reads them where they lie"
        yield Finding(
            "group-elsewhere", "error" if stock and not there else "warning", path, fact, fix
        )


def _architecture(metadata: Metadata, here: _Here) -> Iterator[Finding]:
    """Whether any device of this host, as recorded, runs the code."""
    record = recorded(here.root)
    if record is None or not metadata.target.startswith("cuda:"):
        return
    devices = record.present
    pinned = [
        device for device in devices if device.uuid == environment.PINNED_DEVICE.text(here.environ)
    ]
    known = {device.compute_capability for device in pinned or devices}
    present = {arch_of(f"cuda:{one[0]}{one[1]}") for one in known if one is not None}
    if present and metadata.arch not in present and None not in known:
        fact = f"it was made for {metadata.arch}; this host has {', '.join(sorted(present))}"
        yield Finding("other-architecture", "error", here.key, fact, "compile it on this host")


def _versions(metadata: Metadata) -> Iterator[Finding]:
    installed = _installed()
    if installed is None or metadata.triton_version == installed:
        return
    if metadata.triton_version is None and _numbers(installed) < (3, 3):
        return  # it does not say either
    made = metadata.triton_version or "a version before 3.3, which does not say"
    fact = f"it was made by Triton {made}; in {sys.prefix} is {installed}"
    yield Finding(
        "other-triton", "error", "triton", fact, f"install triton=={made}, or compile it again"
    )


def _installed() -> str | None:
    """The version of Triton beside this gpucache, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    for name in _DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _variables(metadata: Metadata, environ: Mapping[str, str]) -> Iterator[Finding]:
    here = key_environment(environ)
    for name in sorted(metadata.environment.keys() | here.keys()):
        made, now = metadata.environment.get(name), here.get(name)
        if made != now:
            fact = f"{name} is part of the key: it was {made or 'not set'} then, and is {now or 'not set'} here"
            yield Finding(
                "environment-differs",
                "error",
                name,
                fact,
                f"set {name}={made}" if made else f"unset {name}",
            )
