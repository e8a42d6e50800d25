"""Which metrics there are, what each means, and of which counters each is made.

Names and units are by Prometheus' rules (prometheus.io/docs/practices/naming): base units, ``_total`` behind counters,
which `exposition` adds. A name keeps its meaning; new ones may come.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge"]


class About(NamedTuple):
    """One metric."""

    name: str
    """Without ``_total``."""
    kind: Kind
    meaning: str
    labels: tuple[str, ...]


_OF_HOST = ("root", "host")
_OF_DIRECTORY = (*_OF_HOST, "directory")
_OF_LEVEL = (*_OF_DIRECTORY, "level")

HITS = About(
    "gpucache_hits",
    "counter",
    "Kernels that a level gave: own, the device directory; store; fallback; remote.",
    _OF_LEVEL,
)
MISSES = About(
    "gpucache_misses", "counter", "Kernels that a level was asked for and lacked.", _OF_LEVEL
)
LEVEL_ERRORS = About(
    "gpucache_level_errors",
    "counter",
    "Asks of a fallback or a remote that failed, or got what was refused.",
    _OF_LEVEL,
)
LEVEL_SECONDS = About(
    "gpucache_level_seconds", "counter", "Time of the asks of a fallback or a remote.", _OF_LEVEL
)
LEVEL_BYTES = About(
    "gpucache_level_bytes", "counter", "Bytes that a fallback or a remote gave.", _OF_LEVEL
)

OF_DIRECTORY: tuple[tuple[About, str], ...] = (
    (
        About(
            "gpucache_compiles", "counter", "Kernels that no level had, compiled.", _OF_DIRECTORY
        ),
        "misses",
    ),
    (
        About("gpucache_compile_seconds", "counter", "Time of these compiles.", _OF_DIRECTORY),
        "compiled_s",
    ),
    (
        About(
            "gpucache_saved_seconds",
            "counter",
            "Time that compiling took of what the store gave instead, each time it gave.",
            _OF_DIRECTORY,
        ),
        "saved_s",
    ),
    (
        About(
            "gpucache_waits",
            "counter",
            "Waits for a kernel that another process compiled or pulled.",
            _OF_DIRECTORY,
        ),
        "waits",
    ),
    (About("gpucache_wait_seconds", "counter", "Time of these waits.", _OF_DIRECTORY), "waited_s"),
    (
        About(
            "gpucache_degraded",
            "counter",
            "Failures of gpucache, after which a kernel was compiled as without it.",
            _OF_DIRECTORY,
        ),
        "errors_degraded",
    ),
    (
        About(
            "gpucache_refused",
            "counter",
            "Entries of a remote that no trusted key has signed, or with other bytes.",
            _OF_DIRECTORY,
        ),
        "remote_bad",
    ),
    (
        About(
            "gpucache_evictions",
            "counter",
            "Entries that processes of this directory have removed from the store for its limit.",
            _OF_DIRECTORY,
        ),
        "evicted",
    ),
    (
        About("gpucache_evicted_bytes", "counter", "Bytes of these entries.", _OF_DIRECTORY),
        "evicted_bytes",
    ),
)
"""The metrics of a device directory, and the counter of each (`store.counts`)."""

OF_HOST: tuple[tuple[About, str], ...] = (
    (
        About("gpucache_pulled_entries", "counter", "Entries that packs have brought.", _OF_HOST),
        "pulled",
    ),
    (About("gpucache_pulled_bytes", "counter", "Bytes of these packs.", _OF_HOST), "pulled_bytes"),
    (About("gpucache_pull_seconds", "counter", "Time of pulling packs.", _OF_HOST), "pull_s"),
    (
        About("gpucache_pushed_entries", "counter", "Entries given to the remote.", _OF_HOST),
        "pushed",
    ),
    (
        About("gpucache_push_errors", "counter", "Attempts at that that failed.", _OF_HOST),
        "push_errors",
    ),
    (
        About("gpucache_pushed_bytes", "counter", "Bytes given to the remote.", _OF_HOST),
        "pushed_bytes",
    ),
    (About("gpucache_push_seconds", "counter", "Time of giving.", _OF_HOST), "push_s"),
)
"""The metrics of a host that are of no device directory, and the counter of each."""

STORE_BYTES = About(
    "gpucache_store_bytes",
    "gauge",
    "What the store takes with its views, as its writers keep the sum; absent where nobody has counted.",
    ("root",),
)
STORE_LIMIT_BYTES = About(
    "gpucache_store_limit_bytes",
    "gauge",
    "What the store may take by the settings here; absent where that is not limited.",
    ("root",),
)
FINDINGS = About(
    "gpucache_findings",
    "gauge",
    "What the last doctor or verify of the host has found and left, by code.",
    (*_OF_HOST, "command", "level", "code"),
)
EXAMINED = About(
    "gpucache_examined_timestamp_seconds",
    "gauge",
    "When doctor or verify was last run on the host.",
    (*_OF_HOST, "command"),
)
VERSION = About(
    "gpucache_build_info", "gauge", "Always 1; which gpucache tells.", ("root", "host", "version")
)

ALL: tuple[About, ...] = (
    VERSION,
    HITS,
    MISSES,
    LEVEL_ERRORS,
    LEVEL_SECONDS,
    LEVEL_BYTES,
    *(about for about, _ in OF_DIRECTORY),
    *(about for about, _ in OF_HOST),
    STORE_BYTES,
    STORE_LIMIT_BYTES,
    FINDINGS,
    EXAMINED,
)
"""Every metric, in the order of the text."""
