"""`Judged`: one directory of an entry with all its flaws, as the judge hands it to `gpucache.upkeep.repair`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpucache.report.flaws import SPOILING, Flaw, FlawCode
from gpucache.store.manifest import MANIFEST, Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A directory of an entry as it was when the judge looked at it."""

    path: str
    stored: bool
    """Whether it is the store's; else it lies in a device directory."""
    found: os.stat_result | None = None
    """The directory itself; None where it could not be looked into."""
    files: Mapping[str, os.stat_result] = field(default_factory=dict)
    manifest: Manifest | None = None
    """The manifest of an entry or a view; None where it is damaged, or stock Triton made the directory."""
    flaws: tuple[Flaw, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether gpucache made the directory, as an entry or a view, though its manifest may be damaged."""
        if self.stored or MANIFEST in self.files:
            return True
        return "manifest-missing" in self.codes

    @property
    def codes(self) -> set[FlawCode]:
        """The codes of all flaws found in this directory."""
        return {flaw.code for flaw in self.flaws}

    @property
    def spoiled(self) -> bool:
        """Whether the directory is of no use. A torn group file spoils stock Triton's only: a view has its manifest."""
        if self.codes & SPOILING:
            return True
        return not self.ours and "group-torn" in self.codes

    @property
    def whole(self) -> bool:
        """Whether every published file is there as it was published."""
        if self.manifest is None or self.spoiled:
            return False
        return "unreadable" not in self.codes

    @property
    def digests(self) -> dict[str, str]:
        """The published files by name, with the SHA-256 of each; none without a manifest."""
        if self.manifest is None:
            return {}
        return self.manifest.digests

    @property
    def store_key(self) -> str | None:
        """The key under which the store has the entry, or would; None where no manifest tells it."""
        key = os.path.basename(self.path)
        if self.stored:
            return key
        if self.manifest is None:
            return None
        return self.manifest.facts.store_key(key)
