"""What goes wrong between this machine and a remote, as values: what was tried, of which object, and how it failed.

RemoteUrlError      a remote's URL makes no sense, or has a password in it
NotThere            the remote has no object of that name: a miss
RemoteError         all else, by its `kind`
NoRemoteError       no remote is named where one is needed
NothingSignsError   what is put there would be taken by no reader
NobodyTrustedError  what a remote has is executed, and nobody is trusted about that

No text that a server has written is in any of them.
"""

from __future__ import annotations

from typing import Literal

from gpucache.errors import GpuCacheError

RemoteKind = Literal[
    "unreachable",
    "timeout",
    "refused",
    "full",
    "rate-limited",
    "server",
    "too-large",
    "bad-answer",
    "unsupported",
    "misconfigured",
]
Tried = Literal["reach", "get", "put", "list", "delete"]

_FACTS: dict[RemoteKind, str] = {
    "unreachable": "no connection could be made",
    "timeout": "no whole answer within the time limit",
    "refused": "the server refuses the credentials, or this access",
    "full": "the remote is full",
    "rate-limited": "the server asks for fewer requests",
    "server": "the server failed",
    "too-large": "the object is larger than anything that may be there",
    "bad-answer": "the answer is none that such a server gives",
    "unsupported": "this kind of remote cannot do that",
    "misconfigured": "there is no such bucket, the URL lacks something, or there are no credentials",
}
_HINTS: dict[RemoteKind, str] = {
    "unreachable": "check host and port, and that the server runs; SSL_CERT_FILE names certificates of your own",
    "timeout": "try again, or from a machine that is nearer; `gpucache remote check` times each step",
    "refused": "check the credentials in the environment, and whether these may read (and for mode=write, write) there",
    "full": "make room there",
    "rate-limited": "try again later; a pack takes one request where single entries take one each",
    "server": "look at the server's log: it may be full, or restarting",
    "too-large": "something else lies there: look at it, and remove it",
    "bad-answer": "check that the URL leads to a server of this kind, and not to a proxy or a login page",
    "unsupported": "choose another kind of remote for that",
    "misconfigured": "look whether the bucket is there, complete the URL, or set that service's credentials",
}
_HINTS_OF_A_DIRECTORY: dict[RemoteKind, str] = {
    "unreachable": "check the path, and that the directory is mounted on this machine; gpucache does not make it",
    "refused": "have its owner let this user read (and for mode=write, write) there",
    "full": "make room there (`df -h` and `df -i` tell what is full)",
    "server": "look at `dmesg`, and at the file server",
    "timeout": "the file server does not answer: mount it anew",
    "bad-answer": "something else lies there, where gpucache puts a plain file: look at it, and remove it",
}


class RemoteUrlError(GpuCacheError, ValueError):
    """The URL of a remote makes no sense, or has something in it that must not be there."""

    error_kind = "remote-url"

    def __init__(self, shown: str, fact: str, hint: str) -> None:
        super().__init__(f"remote {shown!r}: {fact}", hint, shown, fact, hint)
        self.shown = shown
        """The URL, without what may be secret in it."""
        self.fact = fact


class NotThere(GpuCacheError, LookupError):
    """A remote has no object of this name."""

    error_kind = "not-there"

    def __init__(self, remote: str, name: str) -> None:
        super().__init__(f"{remote} has no {name}", "look at `gpucache remote ls`", remote, name)
        self.remote = remote
        self.name = name


class RemoteError(GpuCacheError):
    """A request to a remote failed. What the server said is never part of this error."""

    error_kind = "remote"

    def __init__(
        self,
        remote: str,
        kind: RemoteKind,
        tried: Tried,
        name: str = "",
        detail: str = "",
    ) -> None:
        what = f"{tried} {name} at" if name else tried
        problem = f"could not {what} {remote}: {detail or _FACTS[kind]}"
        hint = _HINTS[kind]
        if remote.startswith("file:"):
            hint = _HINTS_OF_A_DIRECTORY.get(kind, hint)
        super().__init__(problem, hint, remote, kind, tried, name, detail)
        self.remote = remote
        """The remote's URL, without what may be secret in it."""
        self.kind = kind
        self.tried = tried
        self.name = name
        """The object's name; empty where the request was about none."""
        self.detail = detail
        """More than the kind says, in gpucache's own or the operating system's words; often empty."""


class NoRemoteError(GpuCacheError, LookupError):
    """No remote is named where one is needed."""

    error_kind = "no-remote"

    def __init__(self) -> None:
        super().__init__(
            "no remote is named",
            "set GPUCACHE_REMOTE to its URL, such as s3://bucket/prefix or file:///shared/directory, or say --remote",
        )


class NothingSignsError(GpuCacheError, PermissionError):
    """What is to be put to a remote would be signed by nobody, so that no reader would take it."""

    error_kind = "nothing-signs"

    def __init__(self, shown: str) -> None:
        super().__init__(
            f"nothing signs what is put to {shown}, so that no reader would take it",
            "set GPUCACHE_SIGN_KEY to the file that `gpucache keygen` has written",
            shown,
        )
        self.shown = shown


class NobodyTrustedError(GpuCacheError, PermissionError):
    """Nobody is trusted about what a remote has, which would be executed: nothing is read from there."""

    error_kind = "nobody-trusted"

    def __init__(self, shown: str) -> None:
        super().__init__(
            f"nobody is trusted about what {shown} has, and it is executed",
            "set GPUCACHE_TRUST_KEYS to the line that `gpucache keygen` has printed where packs are made",
            shown,
        )
        self.shown = shown
