"""Sends the log of a process that caches kernels, or is about to, to stderr, as the settings say."""

from __future__ import annotations

from gpucache import environment
from gpucache.directories.local_rank import local_rank
from gpucache.stderr_log import configure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def log_as_set(environ: Mapping[str, str]) -> None:
    """Send the log to stderr as `GPUCACHE_LOG` and `GPUCACHE_LOG_FORMAT` say, once a process."""
    rank, _ = local_rank(environ)
    level = environment.LOG.read_or_default(environ)
    as_json = environment.LOG_FORMAT.read_or_default(environ) == "json"
    configure(level, as_json, rank)
