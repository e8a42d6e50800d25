"""Remotes of every kind, as tests open them: real servers, and a directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from gpucache.remote.opening import open_remote
from gpucache.remote.remote import Patience, Remote
from gpucache.remote.url import RemoteUrl
from support import servers

PATIENT = Patience(in_all_s=60.0, silent_s=60.0)
"""For tests that mean no fault, on a machine that has much to do."""


class Place(NamedTuple):
    """Where a remote is, apart from what other tests put on the same server."""

    url: Callable[[str], str]
    """The remote's URL, of a mode."""
    environ: Mapping[str, str] = {}
    """The environment of whoever may write there."""

    def open(self, mode: str = "write", patience: Patience = PATIENT) -> Remote:
        return open_remote(RemoteUrl.parse(self.url(mode)), self.environ, patience)


def _file(request: pytest.FixtureRequest) -> Place:
    directory: Path = request.getfixturevalue("tmp_path") / "shared"
    directory.mkdir()
    return Place(lambda mode: f"file://{directory}?mode={mode}")


def _s3(request: pytest.FixtureRequest) -> Place:
    server, prefix = request.getfixturevalue("s3_server"), servers.apart()
    return Place(lambda mode: server.url(prefix, mode), server.writer)


def _webdav(request: pytest.FixtureRequest) -> Place:
    server, prefix = request.getfixturevalue("dav_server"), servers.apart()
    return Place(lambda mode: server.closed_url(prefix, mode), server.writer)


def _redis(request: pytest.FixtureRequest) -> Place:
    server, prefix = request.getfixturevalue("redis_server"), servers.apart()
    return Place(lambda mode: server.url(prefix, mode))


KINDS: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "file": _file,
    "s3": _s3,
    "webdav": _webdav,
    "redis": _redis,
}
EVERY_KIND = [
    pytest.param(kind, marks=[] if kind == "file" else pytest.mark.servers) for kind in KINDS
]
"""The parameters of a fixture by which a test runs once with each kind of remote."""
