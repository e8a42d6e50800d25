"""Make ready a root into which somebody is about to publish: vetted, with the directories that the store needs."""

from __future__ import annotations

from gpucache.disk.files import OPEN_ABOVE, make_below_root, make_directory
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.layout import paths


def prepare(root: str, trust: Trust) -> None:
    """Vet the root, and make what the store needs, the root included. Beside any process.

    Raises:
        GpuCacheError: the root is not safe.
        OSError: the disk refused.
    """
    trust = trust.in_root(root)
    vet(root, trust)
    make_directory(root, OPEN_ABOVE)
    vet(root, trust)  # another user may have made it first
    for name in ("locks", "tmp", "store"):
        make_below_root(paths.ours(root, name))
    for path in paths.our_directories(root):
        vet_child(path, trust)
