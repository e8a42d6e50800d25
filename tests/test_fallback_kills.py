"""A copy from a fallback that is killed at any system call leaves the own store whole, and the fallback as it was."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.launches import kernel
from support.trees import aged

from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust
from gpucache.layout.paths import ours
from gpucache.report.cache_report import scan
from gpucache.store.fallback import copy_entry
from gpucache.store.fallback_entry import Fallback
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, Facts, entry_path
from gpucache.store.preparing import prepare
from gpucache.store.publish import publish_entry
from gpucache.upkeep.verify import verify

KEY, FILES = kernel("first")
COPY = (
    SCRIPT
    + """
from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust
from gpucache.store.fallback import copy_entry
from gpucache.store.fallback_entry import Fallback
import gpucache.disk.capabilities, gpucache.disk.lock_token, gpucache.disk.sharing, shutil, tempfile
tempfile.gettempdir()  # which tries whether it can be written
shared, own, key = sys.argv[2:]
staging = Staging(f"{own}/gpucache/v1/tmp")
mark("begin")
answer = copy_entry(Fallback.at(shared, Trust()), own, key, staging, repair=True)
mark("end")
assert answer.did == "hit", answer
os._exit(0)
"""
)


def filled(root: Path) -> None:
    """A root with one kernel, which has a recipe."""
    prepare(str(root), Trust())
    staging = Staging(ours(str(root), "tmp"))
    sources = {}
    for name, data in FILES.items():
        path = Path(staging.directory()) / name
        path.write_bytes(data)
        sources[name] = (str(path), sha256(data).hexdigest())
    facts = Facts("add", "add.json", "cuda:90", "3.9.0", 1.0)
    assert publish_entry(str(root), KEY, sources, facts, staging, repair=True, recipe=b"{}")


def state(root: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for path in [root, *root.rglob("*")]:
        seen = path.lstat()
        found[str(path)] = (seen.st_ino, seen.st_mode, seen.st_nlink, seen.st_mtime_ns)
    return found


@pytest.mark.parametrize("sharing", ["private", "read"])
def test_killed_at_any_system_call(every_call, sharing):
    before: dict[Path, dict[str, tuple[int, ...]]] = {}

    def start(home: Path) -> list[object]:
        filled(home / "shared")
        prepare(str(home / "own"), Trust())
        if sharing == "read":
            for path in (home / "own", *(home / "own/gpucache").rglob("*")):
                path.chmod(0o755)
            (home / "own/gpucache").chmod(0o755)
        before[home] = state(home / "shared")
        return [home / "shared", home / "own", KEY]

    def check(home: Path, line: str) -> None:
        own, entry = str(home / "own"), entry_path(str(home / "own"), KEY)
        assert state(home / "shared") == before[home], line
        if Path(entry, MANIFEST).exists():
            assert sound(entry, True, 0.0) is not None, line
        aged(Path(own))
        fallback = Fallback.at(str(home / "shared"), Trust())
        answer = copy_entry(fallback, own, KEY, Staging(ours(own, "tmp")), repair=True)
        assert answer.did == "hit", line
        found = sound(entry, True, 0.0)
        assert found is not None, line
        assert found.recipe is not None, line
        assert not verify(own).findings, line
        dead = {stray.kind for stray in scan(own).strays if stray.dead}
        assert dead <= {"staging"}, (line, dead)

    every_call.killed_everywhere(COPY, start, check, least=15)
