"""What a hit reads whole."""

from __future__ import annotations

import pytest

from gpucache.store import manifest


def digests_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of which digests are made from now on."""
    read: list[str] = []
    digest_of = manifest.digest_of

    def noted(path: str) -> str:
        read.append(path)
        return digest_of(path)

    monkeypatch.setattr(manifest, "digest_of", noted)
    return read
