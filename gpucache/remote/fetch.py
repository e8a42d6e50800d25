"""Takes one entry of a remote into the store: got, verified, and published, or an answer that says why not.

What the remote has under a key's name must be a pack of just that entry, signed by a trusted key: a valid entry that is
served under another key is refused as any other forgery is.
"""

from __future__ import annotations

import time

from gpucache.archive.errors import BadPack
from gpucache.archive.read import PackReader
from gpucache.archive.unpack import unpack
from gpucache.configuration import changeable
from gpucache.environment import TRUST_KEYS
from gpucache.errors import GpuCacheError, UnsafeDirectoryError
from gpucache.escapes import printable
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.libraries import require
from gpucache.remote.object_names import entry_object
from gpucache.remote.opening import open_remote
from gpucache.remote.question import Answer
from gpucache.remote.remote import Patience
from gpucache.remote.single_entry import ENTRY_BYTES, LIMITS, single_entry
from gpucache.remote.trusting import judge_of
from gpucache.remote.url import RemoteUrl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from gpucache.archive.read import Judge
    from gpucache.remote.question import Did, Question
    from gpucache.remote.remote import Remote


class _NotWaitedFor(Exception):
    """Nobody waits for the entry any more: its time is over, or whoever asked has gone on."""


class _Source:
    """An object as it comes, which counts its bytes and ends once nobody waits for them any more."""

    def __init__(self, file: BinaryIO, is_waited_for: Callable[[], bool]) -> None:
        self._file = file
        self._is_waited_for = is_waited_for
        self.size_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """As `BinaryIO.read`."""
        if not self._is_waited_for():
            raise _NotWaitedFor
        data = self._file.read(size)
        self.size_bytes += len(data)
        return data


def opened_fetch(
    root: str, url: str, trust: str, timeout_s: float
) -> Callable[[Question, Callable[[], bool]], Answer]:
    """Open a remote for a root; `fetch` with all but the question. ``url`` and ``trust`` are the environment's.

    Raises:
        GpuCacheError: the remote cannot be asked as things are set up: a URL or a key that makes no sense, or a package
            that is not installed.
    """
    environ = changeable(root=root)
    environ[TRUST_KEYS.name] = trust
    parsed = RemoteUrl.parse(url)
    patience = Patience(in_all_s=timeout_s, silent_s=timeout_s)
    require(parsed)
    remote = open_remote(parsed, environ, patience)
    remote.come_up()
    judge_of(parsed, environ)

    def asked(question: Question, is_waited_for: Callable[[], bool]) -> Answer:
        # Whom to believe is read anew each time: a file of keys may have lost one.
        judge = judge_of(parsed, environ)
        if judge is None:
            return Answer("closed", "untrusted")
        return fetch(remote, judge, root, question, is_waited_for)

    return asked


def fetch(
    remote: Remote,
    judge: Judge,
    root: str,
    question: Question,
    is_waited_for: Callable[[], bool],
) -> Answer:
    """Take the entry that a question is about into the store of a root, and tell what came of it.

    The asker holds the key's lock while ``is_waited_for`` says so; from then on nothing is published, for whoever
    holds it next.
    """
    source: _Source | None = None
    end = time.monotonic() + question.timeout_s
    try:
        name = entry_object(question.triton_version, question.store_key)
        with remote.get(name, ENTRY_BYTES) as file:
            source = _Source(file, is_waited_for)
            answer = _taken(source, judge, root, question, f"{remote.shown} {name}")
    except NotThere:
        return Answer("miss")
    except _NotWaitedFor:
        is_slow = time.monotonic() >= end
        return Answer("timeout" if is_slow else "closed", "", "", _came(source))
    except RemoteError as error:
        return _failed(error)._replace(size_bytes=_came(source))
    except BadPack as error:
        # The name of the object would make each a text of its own.
        said = f"{remote.shown}: {error.fact}; {error.hint}"
        return Answer("bad", error.code, said, _came(source))
    except UnsafeDirectoryError as error:
        return Answer("bad", "owner", printable(str(error)), _came(source))
    except (OSError, GpuCacheError) as error:
        return Answer("disk", "disk", printable(str(error)), _came(source))
    except ValueError as error:
        return Answer("miss", "name", printable(str(error)))
    return answer._replace(size_bytes=_came(source))


def _taken(
    source: _Source,
    judge: Judge,
    root: str,
    question: Question,
    called: str,
) -> Answer:
    with PackReader(source, judge, source_name=called, limits=LIMITS) as reader:
        entry = single_entry(reader, question.triton_version, question.store_key)
        unpacked = unpack(reader, root, locked_key=entry.store_key)
    if unpacked.skipped:
        return Answer("miss", unpacked.skipped[0].why)
    return Answer("hit")


def _failed(error: RemoteError) -> Answer:
    if error.kind == "timeout":
        return Answer("timeout", error.kind, str(error))
    # What is too large lies there: no failure of the server's.
    did: Did = "bad" if error.kind == "too-large" else "error"
    return Answer(did, error.kind, str(error))


def _came(source: _Source | None) -> int:
    return 0 if source is None else source.size_bytes
