"""Which files of a kernel's entry a launch needs, and which only people read: the stages before the binary.

A group of the metadata and the binary alone is a hit to Triton 3.2 to 3.9 (tests/test_slim.py asks each). What then is
missing is ``kernel.asm["ptx"]`` and its like.
"""

from __future__ import annotations

DROPPED = (".source", ".ttir", ".ttgir", ".llir", ".ptx")
"""How the names of files end that no launch needs."""


def kept(name: str) -> bool:
    """Whether a file of an entry stays when the entry is made smaller.

    >>> kept("add.cubin"), kept("add.ptx")
    (True, False)
    """
    return not name.endswith(DROPPED)
