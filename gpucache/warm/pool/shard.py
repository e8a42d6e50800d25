"""A shard of the recipes: what one of several machines compiles, chosen by each recipe's key alone.

Nothing else counts: not the order of files, nor what lies in the store by now, into which other shards publish. All
shards of one count are therefore complete and disjoint, also where they start hours apart. They are not quite even: of
100 recipes in 8 shards the largest has about 18.
"""

from __future__ import annotations

import re
import zlib

from gpucache.errors import ConfigurationError
from gpucache.values import Value

MOST_SHARDS = 100_000
_SHARD = r"([0-9]{1,6})/([0-9]{1,6})"


class Shard(Value):
    """Shard ``number`` of ``count``; the first is 1, as in a Slurm job with ``--array=1-8``."""

    number: int
    count: int

    def has(self, key: str) -> bool:
        """Whether the recipe with this key (Triton's, as recorded) belongs to this shard."""
        return zlib.crc32(key.encode()) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard(1, 1)
"""All recipes."""


def parse_shard(text: str) -> Shard:
    """The shard that a text like ``3/8`` means, the third of eight.

    Raises:
        ConfigurationError: the text is no such shard; shards are numbered from 1.
    """
    match = re.fullmatch(_SHARD, text.strip(), re.ASCII)
    if match is not None:
        number, count = (int(digits) for digits in match.groups())
        if 1 <= number <= count <= MOST_SHARDS:
            return Shard(number, count)
    expected = "a shard like 1/8, the first of eight, or 8/8, the last"
    raise ConfigurationError("--shard", text, expected)
