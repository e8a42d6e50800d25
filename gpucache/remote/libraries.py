"""`missing`: the libraries of the extra ``remote`` that a remote needs, and that are not installed."""

from __future__ import annotations

from importlib.util import find_spec

from gpucache.errors import NotInstalledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.remote.url import RemoteUrl


def missing(url: RemoteUrl) -> list[str]:
    """What cannot be imported, by its name there. None of it is imported, which would take long."""
    needed = ["zstandard"]
    if not url.is_by_owner:
        needed.append("cryptography")
    if url.library is not None:
        needed.append(url.library)
    return [name for name in needed if find_spec(name) is None]


def require(url: RemoteUrl) -> None:
    """Refuse to begin what would fail for want of a library.

    Raises:
        NotInstalledError: the first that is missing.
    """
    for name in missing(url):
        raise NotInstalledError(name)
