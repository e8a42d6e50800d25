"""The recipes of a root's store: which kernels have one, where and when these were used last, and what each says.

Reads only, follows no link, and waits for nobody, whatever has been planted below the root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

from gpucache.disk.vetting import Trust, vet_child, vet_file
from gpucache.errors import ProvisionError, UnsafeDirectoryError
from gpucache.kernels import metadata
from gpucache.kernels.recipe import BadRecipe, Recipe, from_text
from gpucache.layout.keys import device_directories
from gpucache.report.selection import EVERYTHING, Selection
from gpucache.store import recipe_file
from gpucache.store.counting import stored_entries
from gpucache.store.foreign import Foreign, foreign_directories, view_at
from gpucache.store.manifest import MANIFEST, RECIPE, Manifest, read_manifest

Why = Literal["none", "missing", "changed", "unreadable", "no recipe", "another key", "unsafe"]


class StoredKernel(NamedTuple):
    """A kernel of the store, by its manifest."""

    key: str
    path: str
    """Of its entry."""
    manifest: Manifest
    used: float
    """Seconds since the epoch, by the latest stamp in any of its directories."""
    directories: tuple[str, ...]
    """The names of the device directories that have a view; of one outside the root its path."""

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.manifest.facts.kernel

    @property
    def arch(self) -> str | None:
        """The architecture, as `Entry.arch` has it."""
        target = self.manifest.facts.target
        return None if target is None else metadata.arch_of(target)


class StoredRecipe(NamedTuple):
    """The recipe of a kernel of the store."""

    recipe: Recipe
    text: bytes
    """As it is stored: one line of ASCII."""
    of: StoredKernel


class Unusable(NamedTuple):
    """A kernel of the store without a recipe that can be replayed."""

    of: StoredKernel
    why: Why
    """As `gpucache.store.recipe_file.NoRecipe` has it; or ``no recipe``: the file says what no recipe says;
    ``another key``: it is that of another kernel; ``unsafe``: somebody could have planted it who is not trusted."""
    fact: str


def stored_recipes(
    root: str, trust: Trust, selection: Selection = EVERYTHING, *, now: float = 0.0
) -> Iterator[StoredRecipe | Unusable]:
    """Read the recipes of the selected kernels of a root's store, and for each without one why there is none.

    ``trust`` is in users: what another one could have planted is no recipe, since to replay one imports, and so runs,
    what it names. ``now``, in seconds since the epoch, is for a selection by the last use. Beside any writers and
    removers; what vanishes meanwhile is left out.
    """
    for kernel in stored_kernels(root):
        if selection.chooses(kernel, now):
            found = recipe_of(kernel, trust)
            if found is not None:
                yield found


def stored_kernels(root: str) -> Iterator[StoredKernel]:
    """List the kernels of a root's store, as far as their manifests can be understood: `verify` tells of others."""
    root = os.path.realpath(root)
    devices = device_directories(root)
    foreign = foreign_directories(root)
    for path in stored_entries(root):
        with suppress(OSError):
            found = read_manifest(path)
            if found is None:
                continue
            manifest, used = found
            key = os.path.basename(path)
            if manifest.facts.group is None or manifest.facts.store_key(key) != key:
                continue
            views = _views(key, devices, foreign, root)
            latest = max([used, *views.values()])
            yield StoredKernel(key, path, manifest, latest, tuple(views))


def _views(
    key: str, devices: list[tuple[str, str]], foreign: list[Foreign], root: str
) -> dict[str, float]:
    """The device directories that have a view of a key, each with its last use in seconds since the epoch."""
    views = {}
    for name, directory in devices:
        with suppress(OSError):
            views[name] = os.lstat(f"{directory}/{key}/{MANIFEST}").st_mtime
    for one in foreign:
        seen = view_at(one, root, key)
        if seen is not None:
            views[one.path] = seen.mark[1] / 1e9
    return views


def recipe_of(kernel: StoredKernel, trust: Trust) -> StoredRecipe | Unusable | None:
    """Read the recipe of a kernel of the store; None where the entry is gone."""
    found = recipe_file.recipe_in(kernel.path, kernel.manifest)
    if isinstance(found, recipe_file.NoRecipe):
        is_there = os.path.lexists(f"{kernel.path}/{MANIFEST}")
        return Unusable(kernel, found.why, found.fact) if is_there else None
    unsafe = _unsafe(kernel.path, trust)
    if unsafe is not None:
        return Unusable(kernel, "unsafe", unsafe)
    try:
        recipe = from_text(found)
    except BadRecipe as error:
        return Unusable(kernel, "no recipe", error.reason)
    if not found.isascii() or b"\n" in found or b"\r" in found:  # it goes into files of lines
        return Unusable(kernel, "no recipe", "it is not one line of ASCII")
    if recipe.key != kernel.key:
        return Unusable(kernel, "another key", f"it is of the key {recipe.key}")
    return StoredRecipe(recipe, found, kernel)


def _unsafe(entry: str, trust: Trust) -> str | None:
    """Tell how somebody who is not trusted could have planted a recipe, in a root that has been vetted; or None."""
    try:
        vet_child(os.path.dirname(entry), trust)
        vet_child(entry, trust)
        vet_file(f"{entry}/{RECIPE}", trust)
    except (UnsafeDirectoryError, ProvisionError) as error:
        return error.problem
    return None
