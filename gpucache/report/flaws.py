"""`Flaw`: what was found wrong in one directory of an entry, before people are told of it by a `Finding`.

All codes of flaws are here: what each means, how bad it is, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from gpucache.findings import Finding, Level, repair_command

FlawCode = Literal[
    "manifest-missing",
    "manifest-torn",
    "digest-mismatch",
    "times-changed",
    "view-apart",
    "recipe-damaged",
    "file-missing",
    "not-a-directory",
    "metadata-torn",
    "key-mismatch",
    "group-torn",
    "group-elsewhere",
    "group-dangling",
    "binary-cut",
    "autotune-torn",
    "link",
    "unreadable",
]

DAMAGE: Mapping[FlawCode, str] = {
    # the store, and its views in device directories
    "manifest-missing": "an entry or view of ours has no __entry__.json",
    "manifest-torn": "the __entry__.json of an entry or view cannot be understood",
    "digest-mismatch": "a file's content is not what was published",
    "times-changed": "a file's content is what was published, its time is not: it was copied",
    "view-apart": "a view has copies of what the store has, and could have hard links",
    "recipe-damaged": "the __recipe__.json of an entry is not what was published; the entry is whole without it",
    # stock Triton's directories too
    "file-missing": "a file of an entry is not there, or is no file",
    "not-a-directory": "something else is where a key's directory belongs",
    "metadata-torn": "K.json is not a kernel's metadata: stock Triton crashes at every start",
    "key-mismatch": "a key's directory has another kernel, which would be launched in its place",
    "group-torn": "a __grp__ file is missing or torn: Triton before 3.7 crashes at every start",
    "group-elsewhere": "a __grp__ file names another directory, though the files are here: it was moved or copied",
    "group-dangling": "a __grp__ file names files that are not here",
    "binary-cut": "a file of a kernel is empty or zeros, or a binary shorter than its ELF header says",
    "autotune-torn": "an autotune result does not parse: stock Triton crashes at every start",
}
"""What `gpucache verify --repair` can repair, or move to the quarantine: each code with its meaning."""

UNTOUCHED: Mapping[FlawCode, str] = {
    "link": "a symbolic link lies in the cache: it is not followed",
    "unreadable": "something could not be read",
}
"""What a repair leaves as it is: each code with its meaning."""

SPOILING: frozenset[FlawCode] = frozenset(
    (
        "manifest-missing",
        "manifest-torn",
        "file-missing",
        "digest-mismatch",
        "metadata-torn",
        "key-mismatch",
        "binary-cut",
        "autotune-torn",
        "group-dangling",
        "not-a-directory",
    )
)
"""The codes after which a directory is of no use as it is."""

# What costs time or space, and no hit.
_WARNINGS: frozenset[FlawCode] = frozenset(
    ("times-changed", "view-apart", "recipe-damaged", "group-elsewhere", "link")
)
_FIXES: Mapping[FlawCode, str] = {
    "link": "put what it leads to in its place, or remove it",
    "unreadable": "look at it as its owner",
}


NO_MARK = (0, 0)
"""The mark of a flaw that no repair looks at."""


class Flaw(NamedTuple):
    """One thing that is wrong with a directory of an entry."""

    code: FlawCode
    subject: str
    """The path of what is wrong."""
    fact: str
    mark: tuple[int, int]
    """Inode of the directory and of the subject: they tell whether it is still the one that was judged."""

    def finding(self, root: str) -> Finding:
        """Make the finding in which `gpucache verify` and `gpucache explain` tell of this flaw in a root."""
        level: Level = "warning" if self.code in _WARNINGS else "error"
        fix = _FIXES.get(self.code) or repair_command(root)
        return Finding(self.code, level, self.subject, self.fact, fix)
