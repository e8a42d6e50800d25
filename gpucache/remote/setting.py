"""What the environment says of the remote that a root's entries are read from; the way out where it says nonsense."""

from __future__ import annotations

import os

from gpucache.environment import REMOTE, REMOTE_TIMEOUT, TRUST_KEYS, is_key_file
from gpucache.log import INFO, tell_in_job, warn_once
from gpucache.remote.ask import Reading
from gpucache.remote.url import RemoteUrl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_UNTRUSTED = "no key is trusted, and what a remote has is executed"
_WAY_OUT = (
    f"nothing is read from there: set {TRUST_KEYS} to the public key that `gpucache keygen` printed, "
    "or unset GPUCACHE_REMOTE"
)


def reading_for_launch(root: str, environ: Mapping[str, str]) -> Reading | None:
    """The remote that a launch asks for what the store of ``root`` has not; None where none is set or can be asked.

    Never raises: what makes no sense, and that no key is trusted, is told once, with the way out.
    """
    url = RemoteUrl.for_launch(environ)
    if url is None:
        return None
    trust = TRUST_KEYS.text(environ) or ""
    if url.trust is None and not trust:
        if url.mode == "read":
            warn_once(f"{REMOTE}", _UNTRUSTED, _WAY_OUT)
        else:  # it is set to be written, as where a whole fleet's kernels are compiled
            tell_in_job(INFO, "%s: %s; %s", REMOTE, _UNTRUSTED, _WAY_OUT)
        return None
    timeout_s = REMOTE_TIMEOUT.read_or_default(environ)
    return Reading(root, url.text, _from_anywhere(trust), timeout_s)


def _from_anywhere(trust: str) -> str:
    """A list of keys as it is; the path of a file of keys, which may be relative, as an absolute one."""
    return os.path.abspath(trust.strip()) if trust and is_key_file(trust) else trust
