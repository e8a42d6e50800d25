"""What `doctor` asks about the remote: whether it can be used as things are set up, answers, and is of use here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from gpucache.archive.signature import SigningKey
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.made_for import installed_triton
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.node import DAY_S
from gpucache.environment import REMOTE, SIGN_KEY, TRUST_KEYS
from gpucache.errors import GpuCacheError, NotInstalledError
from gpucache.findings import Finding
from gpucache.kernels.metadata import arch_of
from gpucache.layout import paths
from gpucache.remote import outbox
from gpucache.remote.breaker import Breaker
from gpucache.remote.clock import skew_s
from gpucache.remote.errors import NotThere, RemoteError, RemoteUrlError
from gpucache.remote.libraries import missing
from gpucache.remote.meeting import Meeting
from gpucache.remote.object_names import entries_prefix, entry_name, pack_object
from gpucache.remote.opening import open_remote
from gpucache.remote.pusher_lock import push_breaker
from gpucache.remote.remote import Patience, Remote
from gpucache.remote.setting import reading_for_launch
from gpucache.remote.trusting import judge_of
from gpucache.remote.url import RemoteUrl
from gpucache.store.pulled import PulledEntry, pulls
from gpucache.store.stats import hours
from gpucache.units import age

_PATIENCE = Patience(in_all_s=3.0, silent_s=3.0)
"""Of each of four requests at most, so that all of them are over in twelve seconds."""
_PROBE = pack_object("gpucache-doctor")
"""An object that nobody puts: that it is not there is an answer."""
_PROBE_BYTES = 2**20
_SAMPLE = 500
_SKEW_S = 60.0
_MANY_MARKERS = 100
_LONG_S = 3600.0


def _url_of(environ: Mapping[str, str]) -> RemoteUrl | None:
    """The remote that is set; None where none is, or it makes no sense, which `setting` tells."""
    try:
        return RemoteUrl.configured(environ)
    except GpuCacheError:
        return None


# ---- as things are set up


@tells(
    {
        "remote-url": "GPUCACHE_REMOTE makes no sense, so that no remote is used",
        "remote-not-installed": "a library is missing that the remote needs",
        "remote-no-trusted-key": "nobody is trusted, so that nothing is read from the remote",
        "remote-no-sign-key": "the remote is to be written, and nothing can be signed",
    }
)
def setting(case: Case) -> Iterator[Finding]:
    """Find what keeps this node from reading the remote, or from writing to it, before it is asked anything."""
    try:
        url = RemoteUrl.configured(case.environ)
    except RemoteUrlError as error:
        yield Finding("remote-url", "error", REMOTE.name, error.fact, error.hint)
        return
    if url is None:
        return
    lacks = missing(url)
    for name in lacks:
        lacking = NotInstalledError(name)
        yield Finding("remote-not-installed", "error", name, lacking.problem, lacking.hint)
    if "cryptography" in lacks or url.is_by_owner:
        return
    yield from _trust(url, case.environ)
    if url.mode == "write":
        yield from _signing(case.environ)


def _trust(url: RemoteUrl, environ: Mapping[str, str]) -> Iterator[Finding]:
    subject = TRUST_KEYS.name
    try:
        if judge_of(url, environ) is not None:
            return
    except GpuCacheError as error:
        yield Finding("remote-no-trusted-key", "error", subject, error.problem, error.hint)
        return
    fact = f"no key is trusted: nothing is read from {url.shown}, since what it has is executed"
    fix = f"set {TRUST_KEYS} to the public key that `gpucache keygen` printed, or unset {REMOTE}"
    yield Finding("remote-no-trusted-key", "warning", subject, fact, fix)


def _signing(environ: Mapping[str, str]) -> Iterator[Finding]:
    subject = SIGN_KEY.name
    try:
        if SigningKey.from_environ(environ) is not None:
            return
    except GpuCacheError as error:
        yield Finding("remote-no-sign-key", "error", subject, error.problem, error.hint)
        return
    fact = "the remote is to be written (mode=write), and there is no key to sign with"
    fix = f"set {SIGN_KEY} to the file that `gpucache keygen` wrote, or leave mode=write out"
    yield Finding("remote-no-sign-key", "warning", subject, fact, fix)


# ---- as the remote answers


@tells(
    {
        "remote-unreachable": "the remote cannot be reached, or does not answer in time",
        "remote-refused": "the remote refuses these credentials, or has nothing of that name, or there are none",
        "remote-fails": "the remote fails, or its answers make no sense",
        "remote-clock": "the clocks of the remote and of this machine differ",
        "remote-other-triton": "the remote has entries, and none for the Triton that is installed",
    }
)
def answers(case: Case) -> Iterator[Finding]:
    """Ask the remote for what nobody has put there, and what it has; over in twelve seconds, whatever it does."""
    url = _url_of(case.environ)
    if url is None or missing(url):
        return
    try:
        remote = open_remote(url, case.environ, _PATIENCE)
        _ask(remote)
        yield from _other_triton(remote)
    except RemoteError as error:
        yield Finding(_code(error), "warning", url.shown, error.problem, error.hint)
    yield from _clock(url, case.environ)


def _ask(remote: Remote) -> None:
    """Ask for one object; that it is not there is as good as any answer."""
    try:
        with remote.get(_PROBE, _PROBE_BYTES) as file:
            file.read(1)
    except NotThere:
        return


def _code(error: RemoteError) -> str:
    if error.kind in ("unreachable", "timeout"):
        return "remote-unreachable"
    return "remote-refused" if error.kind in ("refused", "misconfigured") else "remote-fails"


def _clock(url: RemoteUrl, environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        ahead_s = skew_s(url, environ, _PATIENCE.in_all_s)
    except RemoteError:
        return  # told by now
    if ahead_s is None or abs(ahead_s) <= _SKEW_S:
        return
    which = "ahead of" if ahead_s > 0 else "behind"
    fact = f"the server's clock is {abs(ahead_s):.0f} s {which} this machine's"
    fact += ": a service refuses what seems to be signed long ago"
    fix = "synchronise this machine's clock (chronyc tracking, timedatectl), or the server's"
    yield Finding("remote-clock", "warning", url.shown, fact, fix)


def _other_triton(remote: Remote) -> Iterator[Finding]:
    """Look whether a remote that can list has an entry for the installed Triton, where it has any.

    Raises:
        RemoteError: the remote failed.
    """
    installed = installed_triton()
    if installed is None or "list" not in remote.can:
        return
    if any(True for _ in islice(remote.list(entries_prefix(installed)), 1)):
        return
    there = set()
    for one in islice(remote.list(entries_prefix(None)), _SAMPLE):
        named = entry_name(one.name)
        if named is not None:
            there.add(named.triton_version)
    if there:
        fact = f"it has entries for Triton {', '.join(sorted(there))}, and none for {installed}"
        fix = f"push from a machine with triton=={installed}, or install a Triton that it has"
        yield Finding("remote-other-triton", "warning", remote.shown, fact, fix)


# ---- as this node has found


@tells({"remote-paused": "the remote has failed lately, and is left alone for a while"})
def pauses(case: Case) -> Iterator[Finding]:
    """Tell of a remote that this node asks, or gives, nothing for now."""
    url = _url_of(case.environ)
    if url is None:
        return
    locks = LockPlace(case.root).found()
    reading = reading_for_launch(case.root, case.environ)
    if reading is not None:
        state = Meeting.of(locks, reading.root, reading.url, reading.trust).state
        yield from _pause(url, Breaker(state), "asked for nothing")
    if url.mode == "write":
        yield from _pause(url, push_breaker(locks, url.text), "given nothing")


def _pause(url: RemoteUrl, breaker: Breaker, what: str) -> Iterator[Finding]:
    state = breaker.read()
    now = time.monotonic()
    if state.has_failed(now):
        fact = f"it is {what} for {state.closed_until - now:.0f} s more: {state.said or state.why}"
        fix = "`gpucache remote check` tries it; once it works again, so does this node by itself"
        yield Finding("remote-paused", "warning", url.shown, fact, fix)


@tells(
    {"remote-bad-entries": "the remote has given what no trusted key has signed, or other bytes"}
)
def bad_entries(case: Case) -> Iterator[Finding]:
    """Tell of what was refused in the last day."""
    lately = hours(case.root, time.time() - DAY_S)
    count = sum(values.get("remote_bad", 0) for values in lately.values())
    if count:
        fact = f"{count:.0f} times in the last day the remote gave what no trusted key has signed, or other bytes"
        fix = f"add the key of whoever pushes to {TRUST_KEYS}; if nobody of yours does, find out who writes there"
        yield Finding("remote-bad-entries", "error", case.root, fact, fix)


@tells({"outbox-grows": "what this node is to give to the remote piles up"})
def outboxes(case: Case) -> Iterator[Finding]:
    """Warn of markers that nobody takes away."""
    count, oldest = outbox.count(case.root)
    if oldest is None:
        return
    age_s = time.time() - oldest
    if count <= _MANY_MARKERS and age_s <= _LONG_S:
        return
    fact = f"{count} entries wait to be pushed, the oldest for {age(age_s)}"
    now = "`gpucache push --since 30d` pushes now"
    fix = f"`gpucache remote check` tries the remote, {now}; or rm -r {_outbox(case.root)}"
    yield Finding("outbox-grows", "warning", paths.ours(case.root, "outbox"), fact, fix)


def _outbox(root: str) -> str:
    import shlex

    return shlex.quote(paths.ours(root, "outbox"))


@tells({"pulled-for-others": "a pack was pulled of which nothing can be used on this node"})
def pulled_for_others(case: Case) -> Iterator[Finding]:
    """Warn of the last pull of a pack where no entry is for a device on record here, and for the installed Triton."""
    archs = _archs(case)
    installed = installed_triton()
    last = {pulled.name: pulled for pulled in pulls(case.root)}
    for name, pulled in last.items():
        entries = set(pulled.entries.values())
        if any(_is_for(entry, archs, installed) for entry in entries):
            continue
        what = sorted(map(_shown, entries))
        here = f"devices of {' and '.join(sorted(archs)) or 'unknown kind'}, and Triton {installed}"
        fact = f"all {len(pulled.entries)} entries are for {', '.join(what[:5])}; here are {here}"
        fix = "pull a pack for these, or `gpucache pull --arch` what can be used"
        yield Finding("pulled-for-others", "warning", name or "a pack", fact, fix)


def _archs(case: Case) -> set[str]:
    """The architectures of the devices on record here; none where that of one is not known."""
    found = set()
    for device in case.known.present if case.known is not None else ():
        if device.compute_capability is None:
            return set()
        major, minor = device.compute_capability
        found.add(arch_of(f"cuda:{major}{minor}"))
    return found


def _is_for(entry: PulledEntry, archs: set[str], installed: str | None) -> bool:
    """Whether an entry may be used here; True where that is not known."""
    if entry.target is not None and archs and arch_of(entry.target) not in archs:
        return False
    return None in (entry.triton_version, installed) or entry.triton_version == installed


def _shown(entry: PulledEntry) -> str:
    arch = "any architecture" if entry.target is None else arch_of(entry.target)
    return f"{arch} with Triton {entry.triton_version or 'of any version'}"
