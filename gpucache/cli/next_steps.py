"""What a person may do next: a line on stderr where a person reads it, after a beginning or where there is nothing yet.

In scripts it would be noise: where stderr is no terminal nothing is said.
"""

from __future__ import annotations

import shlex
import sys

from gpucache.cli.terminal import has_person, say

_RUN = "gpucache run{root} -- python train.py"
_RANKS = "torchrun --no-python --nproc-per-node {count} gpucache run{root} -- python train.py"


def tell_next(text: str, fact: str = "") -> None:
    """Say what comes next, and before that the fact because of which it does."""
    if not has_person(sys.stderr):
        return
    if fact:
        say(fact)
    say(f"next: {text}")


def after_provision(root: str | None, devices: int, are_fake: bool) -> None:
    """Say how a program is started in the directories that are there now; ``root`` is what ``--root`` said."""
    tell_next(f"`{_run(root, devices)}`")
    if are_fake:
        tell_next("`gpucache demo` shows what that saves, without a GPU")


def where_nothing_is_cached(root: str | None) -> None:
    """Say it of a root without entries, and how they come."""
    tell_next(f"`{_run(root)}` caches what it compiles", "nothing is cached here yet")


def _run(root: str | None, devices: int = 1) -> str:
    named = f" --root {shlex.quote(root)}" if root else ""
    return (_RANKS if devices > 1 else _RUN).format(root=named, count=devices)
