"""`open_remote`: what a remote's URL leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpucache.remote.remote import FOR_A_COMMAND

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.remote.remote import Patience, Remote
    from gpucache.remote.url import RemoteUrl


def open_remote(
    url: RemoteUrl,
    environ: Mapping[str, str],
    patience: Patience = FOR_A_COMMAND,
) -> Remote:
    """What a URL leads to. Nothing is asked of a server yet.

    Credentials come from ``environ``, and from where each service keeps them besides (``~/.aws``, an instance's role).
    ``patience`` bounds each request.

    Raises:
        RemoteError: ``misconfigured``: the URL lacks what the service needs.
        NotInstalledError: the URL needs a library that is not installed.
    """
    if url.library is None:
        from gpucache.remote.shared_directory import SharedDirectory

        return SharedDirectory(url, patience, environ)
    from gpucache.remote.object_store import ObjectStore

    return ObjectStore(url, patience, environ)
