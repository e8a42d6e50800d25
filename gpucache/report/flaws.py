"""What was found in one directory of an entry, as values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gpucache.store.manifest import MANIFEST, Manifest, single_key

SPOILING = frozenset(
    (
        *("manifest-missing", "manifest-torn", "file-missing", "digest-mismatch"),
        *(
            "metadata-torn",
            "key-mismatch",
            "binary-cut",
            "autotune-torn",
            "group-dangling",
            "not-a-directory",
        ),
    )
)
"""The codes after which a directory is of no use as it is."""


class Flaw(NamedTuple):
    """One thing that is wrong."""

    code: str
    subject: str
    """The path."""
    fact: str
    mark: tuple[int, int]
    """Inode of the directory and of the subject: they tell whether it is still the one that was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A directory of an entry as it was when looked at."""

    path: str
    stored: bool
    """Whether it is the store's; else it lies in a device directory."""
    found: os.stat_result | None = None
    files: Mapping[str, os.stat_result] = field(default_factory=dict)
    manifest: Manifest | None = None
    """Of one of ours, where it can be understood."""
    flaws: tuple[Flaw, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is an entry or a view of ours, though its manifest may be damaged."""
        return self.stored or MANIFEST in self.files or "manifest-missing" in self.codes

    @property
    def codes(self) -> set[str]:
        """Of its flaws."""
        return {flaw.code for flaw in self.flaws}

    @property
    def spoiled(self) -> bool:
        """Whether it is of no use; a group file tells stock Triton alone what belongs to a kernel."""
        return bool(self.codes & SPOILING) or (not self.ours and "group-torn" in self.codes)

    @property
    def whole(self) -> bool:
        """Whether its files are what was published, every one of them."""
        return self.manifest is not None and not self.spoiled and "unreadable" not in self.codes

    @property
    def digests(self) -> dict[str, str]:
        """What was published: names to SHA-256."""
        return {} if self.manifest is None else self.manifest.digests

    @property
    def store_key(self) -> str | None:
        """The key under which the store has it, or would."""
        key = os.path.basename(self.path)
        if self.manifest is None or self.stored:
            return key if self.stored else None
        facts = self.manifest.facts
        return key if facts.group is not None else single_key(key, facts.kernel, facts.tag)
