"""Has what was compiled here given to the remote by another process, where the remote is to be written.

Nothing of `gpucache.remote` is imported where no remote is set.
"""

from __future__ import annotations

from gpucache import configuration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.remote.write_behind import WriteBehind
    from gpucache.triton.location import Location

_writing: dict[str, WriteBehind | None] = {}
"""By the root: what gives its entries to the remote; None where none is to be written, or nothing can be signed."""


def compiled(location: Location, store_key: str, compile_s: float) -> None:
    """Leave word of an entry that is in the store, after a compile of so many seconds. Never raises, never waits."""
    if not location.has_remote:
        return
    writing = _of_root(location)
    if writing is not None:
        writing.compiled(store_key, compile_s)


def _of_root(location: Location) -> WriteBehind | None:
    root = location.root
    try:
        return _writing[root]
    except KeyError:
        from gpucache.remote.write_behind import write_behind

        _writing[root] = write_behind(root, location.locks, configuration.environ(root=root))
        return _writing[root]
