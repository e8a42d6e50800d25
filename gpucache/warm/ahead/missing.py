"""Whether anything of some recipes is missing in a store: what is asked before a program starts, in milliseconds."""

from __future__ import annotations

import os
from itertools import chain

from gpucache.layout.keys import STORE_KEY
from gpucache.layout.paths import MANIFEST, ours
from gpucache.values import Value
from gpucache.warm.ahead import made_keys
from gpucache.warm.ahead.installed_triton import installed_triton
from gpucache.warm.ahead.recipe_summary import summary_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

    from gpucache.disk.vetting import Trust
    from gpucache.warm.ahead.recipe_summary import RecipeSummary

    Why = Literal[
        "nothing is missing", "missing", "another Triton", "another target", "source changed"
    ]


class Missing(Value):
    """What is missing of some recipes."""

    why: Why
    """Why a pool should go through them; ``nothing is missing`` where none need."""
    missing: int
    """So many have surely no entry. Where Triton, target or source are other ones, their new keys are not known yet."""
    total: int
    """So many recipes there are."""


def look_for_missing(
    paths: Sequence[str], what: Sequence[str], root: str, targets: Iterable[str], trust: Trust
) -> Missing:
    """Look in a vetted root for what recipes made when they were last gone through, else for the recorded keys.

    ``targets`` are the architectures that are wanted, none where those that were recorded are; ``what`` is as for
    `made_keys.keys_path`. Without a side file
    (`made_keys`) recipes are believed to be as recorded if the installed Triton has the recorded version, the targets
    are the recorded ones, and no source file has changed since the recipes were written.

    Raises:
        RecipesError, ConfigurationError: as `summary_of`.
    """
    found = summary_of(paths)
    total = len(found.keys)
    made = made_keys.read(made_keys.keys_path(root, what, targets), trust)
    why = _changed(found, frozenset(targets)) if made is None else made.changed()
    if made is not None and why is None and made.covers(found):
        wanted = chain.from_iterable(made.keys[key] for key in found.keys)
        return _counted(wanted, root, total)
    counted = _counted(found.keys, root, total)
    if why is None or not total:
        return counted
    return Missing(why, counted.missing, total)


def _changed(found: RecipeSummary, targets: frozenset[str]) -> Why | None:
    """Why the recorded keys are not those that a program would ask for now; None where they are."""
    installed = installed_triton()
    if installed is not None and found.versions != {installed.version}:
        return "another Triton"
    if targets and found.targets != targets:
        return "another target"
    if any(_is_newer(path, found.written) for path in found.sources):
        return "source changed"
    return None


def _is_newer(path: str, than: float) -> bool:
    try:
        return os.stat(path).st_mtime > than
    except OSError:
        return False


def _counted(keys: Iterable[str], root: str, total: int) -> Missing:
    """Count the keys that have no entry in the store."""
    store = ours(root, "store")
    missing = 0
    for key in keys:
        path = f"{store}/{key[:2]}/{key}/{MANIFEST}"
        if STORE_KEY.fullmatch(key) is None or not os.access(path, os.F_OK):
            missing += 1
    return Missing("missing" if missing else "nothing is missing", missing, total)
