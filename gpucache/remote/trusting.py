"""`judge_of`: who is believed about what comes from a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpucache.archive.signature import anyone
from gpucache.archive.trusted_keys import TrustedKeys
from gpucache.disk.vetting import Trust

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.archive.read import Judge
    from gpucache.remote.url import RemoteUrl


def judge_of(url: RemoteUrl, environ: Mapping[str, str]) -> Judge | None:
    """Who judges what comes from a remote; None where nobody is trusted, and so nothing is read from there.

    The keys of the URL's ``trust=`` are believed there, else those of `GPUCACHE_TRUST_KEYS`. With ``trust=owner`` what
    is unsigned is taken, since such a remote gives only what trusted users alone could write (`shared_directory`).

    Raises:
        BadKey: what should be trusted makes no sense.
        ConfigurationError: a variable makes no sense.
    """
    if url.trust is None:
        keys = TrustedKeys.from_environ(environ)
    elif url.trust.owner:
        return anyone
    else:
        keys = TrustedKeys.parse(url.trust.keys, f"trust= of {url.shown}", Trust.parse(environ))
    return None if keys is None else keys.judge
