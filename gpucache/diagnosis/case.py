"""The `Case` that every check of `doctor` is given: the root, the environment, the record and the devices.

The checks themselves are in the modules whose names end in ``_checks``, and `doctor` lists them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from gpucache.directories.record import Record
from gpucache.machine.device import Snapshot
from gpucache.machine.visible import Visible


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known before the checks begin. Each check is a function that takes a case and yields findings."""

    root: str
    """The root's absolute path."""
    environ: Mapping[str, str]
    """The environment, without the variables whose values make no sense."""
    unsafe: bool
    """Whether somebody else could plant code in the root, so that its record is not believed."""
    known: Record | None
    """This host's record; None where there is none that can be used."""
    snapshot: Snapshot
    """The machine's devices; none where the node is sick."""
    shown: Visible
    """The devices that CUDA shows a process with this environment."""


def provision_fix(root: str) -> str:
    """What a finding advises where `gpucache provision` would put things right."""
    return f"run `gpucache provision --root {shlex.quote(root)}`"
