"""What every remote can do, whatever lies behind its URL: `Remote`, and the values that its methods take and give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Literal, NamedTuple, Protocol

Ability = Literal["list", "put", "put-if-absent", "delete"]
Step = Literal["reach", "put", "put-if-absent", "get", "list", "delete"]
Outcome = Literal["works", "cannot", "failed", "left"]


class Patience(NamedTuple):
    """For how long a request may take, by the caller's own clock. Both limits are in seconds."""

    in_all_s: float
    """For a whole request: to connect, to ask, and to take the last byte of the answer."""
    silent_s: float
    """Without one byte more."""


FOR_A_COMMAND = Patience(in_all_s=600.0, silent_s=30.0)
"""How long a person's command waits who looks at its progress."""


FOR_A_CHECK = Patience(in_all_s=30.0, silent_s=15.0)
"""How long each step of a check may take."""


class Listed(NamedTuple):
    """An object as a remote lists it."""

    name: str
    size_bytes: int | None
    """None where the remote does not tell."""
    modified_s: float | None
    """When the object was put, in seconds since 1970 by the remote's clock; None where the remote does not tell."""


class CheckStep(NamedTuple):
    """One thing that a check has tried."""

    step: Step
    outcome: Outcome
    """``cannot``: such a remote has no way to do that, and none is needed. ``left``: what was put stays there."""
    seconds: float
    fact: str = ""
    """What went wrong, or what follows; empty where the step just works."""
    hint: str = ""
    """The way out of what went wrong."""


class CheckReport(NamedTuple):
    """What a probe of a remote has shown."""

    remote: str
    steps: tuple[CheckStep, ...]

    @property
    def works(self) -> bool:
        """Whether nothing failed that this remote should be able to do."""
        return all(step.outcome != "failed" for step in self.steps)


class Remote(Protocol):
    """A place on other machines with objects by name (`object_names`), which are written once and read often.

    Any number of threads may call one remote; a process that was forked after the first request must open its own.
    Names come from `object_names`. Every method that asks the remote raises `RemoteError` by its kind, within the
    limits of `Patience` that the remote was opened with, and no server can make a caller hold more memory than a part
    of an object.
    """

    @property
    def shown(self) -> str:
        """The remote's URL, as may be shown to anybody."""

    @property
    def can(self) -> frozenset[Ability]:
        """What this kind of remote can do. Without ``put-if-absent``, `put_new` looks and then puts."""

    def come_up(self) -> None:
        """Do what a first request would wait for on this machine, however slow that is; no server is asked.

        Raises:
            RemoteError: no request will ever succeed as things are set up.
            NotInstalledError: a library is needed that cannot be imported.
        """

    def get(self, name: str, limit_bytes: int) -> AbstractContextManager[BinaryIO]:
        """Open an object to be read once, from the beginning, in parts.

        Both this call and each read of the file may raise.

        Raises:
            NotThere: there is no such object.
            RemoteError: the request failed; ``too-large`` once more than ``limit_bytes`` have come.
            UnsafeDirectoryError: the remote is a directory that is trusted by its owners, and another user could have
                written the object.
        """

    def put_new(self, name: str, path: str, replace: bool = False) -> bool:
        """Put the content of a file; return False where an object of this name is there already, which then stays.

        Readers find the whole object or none. Of several writers at once one is told True where the remote can put if
        absent; else each may be, and the last one's stays. ``replace`` puts in any case.

        Raises:
            RemoteError: the request failed.
            OSError: the file cannot be read.
        """

    def list(self, prefix: str) -> Iterator[Listed]:
        """The objects whose names begin with ``prefix``, which ends with ``/``, in no order.

        What a server says there is may be endless: the caller bounds how many are taken.

        Raises:
            RemoteError: the request failed, at the call or at any step; ``unsupported`` without the ability ``list``.
        """

    def delete(self, name: str) -> None:
        """Remove an object, as a check does with its probe; that there is none is fine.

        Raises:
            RemoteError: the request failed; ``unsupported`` without the ability ``delete``.
        """

    def check(self) -> CheckReport:
        """Try everything that is needed of this remote, with one small probe object. Never raises `RemoteError`.

        A remote that is opened to be read (`RemoteUrl.mode`) is not written.
        """
