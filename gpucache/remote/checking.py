"""`checked`: try what is needed of a remote, step by step, with one small object that is made for that."""

from __future__ import annotations

import secrets
import tempfile
import time
from itertools import islice
from typing import TYPE_CHECKING

from gpucache.errors import GpuCacheError
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.object_names import FORMAT, PACKS, pack_name
from gpucache.remote.remote import CheckReport, CheckStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpucache.remote.remote import Remote, Step
    from gpucache.remote.url import Mode

PROBES = f"{FORMAT}/probes/"
"""How the names of all probes begin."""
_CONTENT = b"gpucache remote check\n"
_MOST_LISTED = 1000
_IGNORES = "the server ignores the condition: of two writers at once the last one's object stays"


def checked(remote: Remote, mode: Mode) -> CheckReport:
    """Try a remote, as `Remote.check`; ``mode`` is how its URL says it is used."""
    name = f"{PROBES}{secrets.token_hex(8)}"
    steps = [_step("reach", lambda: _reach(remote, name))]
    if steps[0].outcome == "works":
        if mode == "write":
            steps += _written(remote, name)
        steps.append(_listed(remote))
    return CheckReport(remote.shown, tuple(steps))


def _written(remote: Remote, name: str) -> list[CheckStep]:
    """The steps of a check that need the probe."""
    with tempfile.NamedTemporaryFile(prefix="gpucache-probe-") as file:
        file.write(_CONTENT)
        file.flush()
        put = _step("put", lambda: _put(remote, name, file.name))
        if put.outcome == "failed":
            return [put]
        again = _step("put-if-absent", lambda: _put_again(remote, name, file.name))
        if again.fact == _IGNORES:
            again = again._replace(outcome="cannot")
    got = _step("get", lambda: _get(remote, name))
    return [put, again, got, _deleted(remote, name)]


def _step(step: Step, act: Callable[[], str]) -> CheckStep:
    """Try one thing, which returns what follows from it; an error of ours tells how it failed."""
    began = time.monotonic()
    try:
        fact = act()
    except GpuCacheError as error:
        seconds = time.monotonic() - began
        return CheckStep(step, "failed", seconds, error.problem, error.hint)
    return CheckStep(step, "works", time.monotonic() - began, fact)


def _reach(remote: Remote, name: str) -> str:
    """Ask for what cannot be there: whoever says so has been reached, and lets this user read."""
    try:
        _content(remote, name)
    except NotThere:
        return ""
    raise RemoteError(remote.shown, "bad-answer", "get", name)


def _put(remote: Remote, name: str, path: str) -> str:
    if not remote.put_new(name, path):
        raise RemoteError(remote.shown, "bad-answer", "put", name)
    return ""


def _put_again(remote: Remote, name: str, path: str) -> str:
    """Put the probe again, which must change nothing."""
    was_put = remote.put_new(name, path)
    if "put-if-absent" in remote.can:
        return _IGNORES if was_put else ""
    if was_put:
        detail = "an object that was there was replaced"
        raise RemoteError(remote.shown, "bad-answer", "put", name, detail)
    return "by looking first: of two writers at once the last one's object stays"


def _get(remote: Remote, name: str) -> str:
    if _content(remote, name) != _CONTENT:
        detail = "what came back is not what was put"
        raise RemoteError(remote.shown, "bad-answer", "get", name, detail)
    return ""


def _content(remote: Remote, name: str) -> bytes:
    with remote.get(name, 2 * len(_CONTENT)) as file:
        return file.read()


def _deleted(remote: Remote, name: str) -> CheckStep:
    if "delete" not in remote.can:
        return CheckStep("delete", "left", 0.0, f"{name} stays there")
    return _step("delete", lambda: _delete(remote, name))


def _delete(remote: Remote, name: str) -> str:
    remote.delete(name)
    return ""


def _listed(remote: Remote) -> CheckStep:
    if "list" not in remote.can:
        return CheckStep("list", "cannot", 0.0, "packs are found by their names only")
    return _step("list", lambda: _list(remote))


def _list(remote: Remote) -> str:
    listed = [one.name for one in islice(remote.list(PACKS), _MOST_LISTED)]
    count = sum(pack_name(name) is not None for name in listed)
    packs = "1 pack" if count == 1 else f"{count} packs"
    return f"{packs} or more" if len(listed) == _MOST_LISTED else packs
