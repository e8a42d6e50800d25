"""TorchInductor's code and graphs as entries of a pack: collected from a root, and told where they may be used.

An entry of kind ``inductor`` is one unit (`gpucache.layout.inductor.carried_unit`): the files of one hash among the
code, or one file of a graph. All of it is code, or is unpickled by torch, so that whoever wrote it runs what he likes.

Torch's keys cover torch, Triton, the kind of GPU and its number, and Inductor's settings, so that most units fit
wherever they are asked for. What its keys leave out is the processor (`gpucache.archive.processor`): of a graph with
C++ in it, and of a library, which also has to fit the Python, the libc and the very torch that loads it.
"""

from __future__ import annotations

import errno
import json
from typing import Literal

from gpucache.archive.collect import Collected, NotCollected
from gpucache.archive.fits import Here, here
from gpucache.archive.fits import Unfit as UnfitHere
from gpucache.archive.processor import instructions
from gpucache.archive.statement import ArchivedEntry, ArchivedFile
from gpucache.disk.door import read_some
from gpucache.disk.files import remove_tree
from gpucache.disk.members import base_of_others
from gpucache.disk.reading import digest, quietly, read, read_head
from gpucache.disk.staging import Staging
from gpucache.disk.within import Straight
from gpucache.kernels.elf import HEAD_BYTES, is_whole
from gpucache.layout.inductor import carried_unit, is_graph
from gpucache.layout.paths import below_base
from gpucache.store.inductor_units import Unit, find, held
from gpucache.store.manifest import Facts
from gpucache.store.removal import InUse

Unfit = Literal["cpu", "torch"] | UnfitHere

_CPP = b"cpp_pybinding", b"cpp_wrapper/", b"#include"
"""What a graph has in its bytes whose code is C++ for the processor (`torch/_inductor/codegen/cpp_wrapper_cpu.py`,
`async_compile.py`, 2.13.0)."""
_MACHINE_CODE = ".so", ".o"
_TEXTS = ".py", ".best_config"
_MOST_TEXT_BYTES = 2**24
_MOST_PARSED_BYTES = 2**20
"""A longer text is not parsed: of each byte of a source Python may make a kilobyte."""
_PART_BYTES = 2**20
_OF_MACHINE_CODE = frozenset(("machine", "abi", "libc", "cpu", "torch"))


def units_in(root: str, used_since: float | None = None) -> list[Unit]:
    """The units of a root, a real path, that a pack may carry, sorted; with ``used_since`` those used since that time.

    ``used_since`` is in seconds since the epoch. Follows no link. Where members have own directories for such files,
    those are of this user's.
    """
    units = find(base_of_others(root)).units
    if used_since is not None:
        units = tuple(unit for unit in units if unit.used >= used_since)
    return sorted(unit for unit in units if unit.files)


def collect_unit(root: str, unit: Unit, pins: Staging | None) -> Collected:
    """Pin a unit under the lock by which torch builds libraries, and read it.

    ``root`` is a real path. Beside any torch and any remover; changes nothing. What is empty, cut or no source is not
    packed: torch asks only whether a file exists, and would fail of this one on each node that gets it.

    Raises:
        NotCollected: it is gone, damaged, being made, or cannot be read.
    """
    directory = None if pins is None else pins.directory()
    try:
        with Straight() as disk, held(unit, disk):
            paths = _pinned(root, unit, directory, disk)
        return _collected(unit, paths, directory)
    except InUse as error:
        raise _gone(directory, unit, str(error)) from error
    except (FileNotFoundError, NotADirectoryError):
        raise _gone(directory, unit, "it was removed meanwhile") from None
    except OSError as error:
        _unpin(directory)
        raise NotCollected(unit.path, "damaged", error.strerror or str(error)) from error
    except BaseException:
        _unpin(directory)
        raise


def _unpin(directory: str | None) -> None:
    if directory is not None:
        remove_tree(directory)


def _gone(directory: str | None, unit: Unit, fact: str) -> NotCollected:
    _unpin(directory)
    return NotCollected(unit.path, "gone", fact)


def _pinned(root: str, unit: Unit, directory: str | None, disk: Straight) -> dict[str, str]:
    """Give the files second names in a private directory; where each is read, by its path below the root."""
    paths = {}
    for file in unit.files:
        name = below_base(file.path[len(root) + 1 :])
        if carried_unit(name) is None:
            continue  # a header, which is found by its path
        paths[name] = file.path
        if directory is not None:
            paths[name] = _pin(file.path, f"{directory}/{len(paths)}", disk)
    return paths


def _pin(path: str, pin: str, disk: Straight) -> str:
    """Give a file a second name; where it can have none, its first one is as good until it goes."""
    try:
        disk.link(path, pin)
    except FileNotFoundError:
        raise
    except OSError:
        return path
    return pin


def _collected(unit: Unit, paths: dict[str, str], directory: str | None) -> Collected:
    files = []
    fits: dict[str, str] = {}
    for name, path in sorted(paths.items()):
        sha256, found = digest(path)
        flaw = flaw_in(name, path) or _flaw_in_text(name, path)
        if flaw is not None:
            raise NotCollected(unit.path, "damaged", f"{name} {flaw}")
        files.append(ArchivedFile(name, found.st_size, sha256))
        fits |= fits_of(name, path)
    if "" in fits.values():
        fact = "nobody can tell for which processor and torch it is: pack with torch's own Python"
        raise NotCollected(unit.path, "unknown library", f"{unit.path}: {fact}")
    if not files:
        raise NotCollected(unit.path, "gone", "it has no file that a pack may carry")
    name = carried_unit(files[0].name) or ""
    entry = ArchivedEntry("", "inductor", Facts(name, None), tuple(files), None, fits)
    return Collected(entry, paths, None, directory)


# ---- content


def flaw_in(name: str, path: str) -> str | None:
    """What is wrong with a file of Inductor's, as far as its size and its first bytes tell.

    ``name`` is its path below a root, ``path`` where it is now. A graph that cannot be unpickled is a miss to torch.

    Raises:
        OSError: it cannot be read.
    """
    head, size = read_head(path, HEAD_BYTES)
    if not size:
        return "is empty"
    if name.endswith(_MACHINE_CODE) and not is_whole(head, size):
        return "is not whole"
    return None


def _flaw_in_text(name: str, path: str) -> str | None:
    """What is wrong with a source or a list of settings that this node is about to vouch for.

    Who takes them relies on that: to parse what anybody may have packed would take gigabytes.
    """
    if not name.endswith(_TEXTS):
        return None
    try:
        content = read(path, _MOST_TEXT_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return "is longer than any that torch writes"
    return None if _is_sound_text(name, content) else "is cut, or no source"


def _is_sound_text(name: str, content: bytes) -> bool:
    if len(content) > _MOST_PARSED_BYTES:
        return b"\0" not in content  # which a power cut leaves
    try:
        if name.endswith(".py"):
            import ast  # few packs have any source
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(content)
        else:
            json.loads(content)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def fits_of(name: str, path: str) -> dict[str, str]:
    """Where a file of Inductor's may be used beside its key: everywhere, if empty. The names are as of `flaw_in`.

    It is taken to have been made on this node, by this Python and the torch of this Python: of a root that several
    kinds of processors share, torch itself would use it on all.

    Raises:
        OSError: it cannot be read.
    """
    if name.endswith(_MACHINE_CODE):
        there = here()
        fits = {"machine": there.machine, "abi": there.abi, "libc": there.libc}
        return {**fits, "cpu": instructions(), "torch": torch_version()}
    if is_graph(name) and _has_cpp(path):
        return {"cpu": instructions()}
    return {}


def _has_cpp(path: str) -> bool:
    """Whether a graph has C++ for the processor."""
    overlap = b""
    with open(path, "rb", opener=quietly) as file:
        while part := read_some(file, _PART_BYTES):
            if any(marker in overlap + part for marker in _CPP):
                return True
            overlap = part[-max(map(len, _CPP)) :]
    return False


def torch_version() -> str:
    """The version of this Python's torch, which is not imported; empty where there is none."""
    import importlib.metadata  # slow to import, and of no use to kernels

    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def unfit(entry: ArchivedEntry, there: Here) -> Unfit | None:
    """In what an entry of Inductor's differs from what can be used here; None if it fits."""
    fits = entry.fits
    is_code = any(file.name.endswith(_MACHINE_CODE) for file in entry.files)
    if is_code and not fits.keys() >= _OF_MACHINE_CODE:
        return "machine"
    if fits.get("cpu") not in (None, instructions() or None):
        return "cpu"
    if fits.get("torch") not in (None, torch_version() or None):
        return "torch"
    return there.unfit(fits, "")
