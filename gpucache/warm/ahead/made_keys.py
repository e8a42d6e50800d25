"""The side file of recipes: which key was made for a recorded key on this Triton, for these targets, of these sources.

A recorded key says what was asked for then. By another Triton, for another architecture or of an edited source the
kernel has another key, which only a compile tells. So whoever has gone through all recipes of some files leaves here
what came of each; the next start of a program then knows whether anything is missing without importing Triton. It is
believed only as long as Triton and all source files that recipes name are what they were.

Limits: a function in a file that no recipe names (a helper of another module) may be edited unnoticed; the program then
compiles itself what it changed. A recipe that could not be compiled is tried again after a day, or once a source
changes.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress

from gpucache.disk.door import read_limited
from gpucache.disk.files import make_below_root, write_whole
from gpucache.disk.vetting import Trust, vet_child, vet_file
from gpucache.errors import GpuCacheError
from gpucache.layout.paths import ours
from gpucache.values import Value, replace
from gpucache.warm.ahead.installed_triton import installed_triton, stamp_of
from gpucache.warm.ahead.short_digest import short_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal, TypeGuard

    from gpucache.warm.ahead.recipe_summary import RecipeSummary
    from gpucache.warm.outcome import Outcome

ENDING = ".keys"
_FORMAT, _VERSION = "gpucache keys", 1
_MOST_BYTES = 64 * 2**20
AGAIN_S = 86400.0
"""A recipe that could not be compiled is tried again after so many seconds."""


def keys_path(root: str, what: Iterable[str], targets: Iterable[str]) -> str:
    """The path of the side file in a root for some recipes and these targets, which are none for the recorded ones.

    ``what`` names the recipes: the real paths of their files; or whatever else does, where each run writes a new file.
    """
    digest = short_digest([*what, "", *sorted(targets)])
    return ours(root, "recipes", f"{digest}{ENDING}")


class MadeKeys(Value):
    """What came of recipes."""

    keys: Mapping[str, Sequence[str]]
    """By recorded key: the keys under which the kernel was made or found, of each target one."""
    failed: int
    """So many could not be compiled, or not be imported."""
    triton: str
    sources: Mapping[str, str | None]
    """By path: what `stamp_of` said."""
    at: float
    """When, in seconds since the epoch."""

    def changed(self) -> Literal["another Triton", "source changed"] | None:
        """What is not as it was, so that nothing here holds any more."""
        if self.triton != _triton_stamp():
            return "another Triton"
        if any(stamp != stamp_of(path) for path, stamp in self.sources.items()):
            return "source changed"
        return None

    def covers(self, recipes: RecipeSummary) -> bool:
        """Whether all of these recipes were gone through, and none need be again."""
        if self.failed and time.time() - self.at > AGAIN_S:
            return False
        return all(key in self.keys for key in recipes.keys)


def nothing_made(recipes: RecipeSummary) -> MadeKeys:
    """What is known before any of these recipes was compiled: Triton and the sources as they are now."""
    sources = {path: stamp_of(path) for path in recipes.sources}
    keys: dict[str, list[str]] = {key: [] for key in recipes.keys}
    return MadeKeys(keys, 0, _triton_stamp(), sources, time.time())


def made_keys(outcomes: Sequence[Outcome], before: MadeKeys) -> MadeKeys:
    """What came of recipes; ``before`` is what was known then, so that an edit while they were compiled is noticed."""
    keys: dict[str, list[str]] = {key: [] for key in before.keys}
    # What looks like a recipe, and is none, has no outcome.
    ended = {outcome.recipe for outcome in outcomes}
    failed = len(before.keys.keys() - ended)
    for outcome in outcomes:
        made = keys.setdefault(outcome.recipe, [])
        if outcome.key is not None:
            made.append(outcome.key)
        elif outcome.end != "not for this target":
            failed += 1
    return replace(before, keys=keys, failed=failed)


def write(path: str, made: MadeKeys, root: str) -> None:
    """Leave the side file; of several writers the last wins.

    Raises:
        ProvisionError: the disk refused.
    """
    said = {
        "format": _FORMAT,
        "version": _VERSION,
        "triton": made.triton,
        "sources": dict(made.sources),
        "at": made.at,
        "failed": made.failed,
        "keys": dict(made.keys),
    }
    make_below_root(os.path.dirname(path))
    write_whole(path, json.dumps(said).encode(), ours(root, "tmp"))


def read(path: str, trust: Trust) -> MadeKeys | None:
    """The side file; None where there is none that can be believed. The root has been vetted. Never raises."""
    try:
        vet_child(os.path.dirname(path), trust)
        vet_file(path, trust)
        said = json.loads(read_limited(path, _MOST_BYTES))
        with suppress(OSError):
            _stamp_use(path)
        return _made(said)
    except (GpuCacheError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _made(said: dict[str, object]) -> MadeKeys | None:
    """What a side file says; None where that makes no sense."""
    if said["format"] != _FORMAT or said["version"] != _VERSION:
        return None
    keys = said["keys"]
    sources = said["sources"]
    at = said["at"]
    if not _are_made(keys) or not _are_stamps(sources) or type(at) is not float:
        return None
    failed = bool(said["failed"])
    return MadeKeys(keys, failed, str(said["triton"]), sources, at)


def _are_made(keys: object) -> TypeGuard[dict[str, list[str]]]:
    """Whether these are lists of keys, by recorded key."""
    if not isinstance(keys, dict):
        return False
    return all(map(_is_list_of_texts, keys.values()))


def _is_list_of_texts(made: object) -> bool:
    return type(made) is list and all(type(key) is str for key in made)


def _are_stamps(sources: object) -> TypeGuard[dict[str, str | None]]:
    """Whether these are what `stamp_of` says of files, by path."""
    if not isinstance(sources, dict):
        return False
    return all(stamp is None or type(stamp) is str for stamp in sources.values())


def _stamp_use(path: str) -> None:
    """Note once a day that a side file is used, so that it is not the oldest of the files in ``recipes``."""
    used = os.stat(path, follow_symlinks=False).st_mtime
    if time.time() - used > AGAIN_S:
        os.utime(path, follow_symlinks=False)


def _triton_stamp() -> str:
    found = installed_triton()
    return "" if found is None else f"{found.directory} {found.stamp}"
