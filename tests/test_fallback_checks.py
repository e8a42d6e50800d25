"""What `doctor` and `explain` tell of a fallback, and of a root that others read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.users import ADA, acting_as

from gpucache.diagnosis import fallback_checks
from gpucache.diagnosis.doctor import CODES, examine
from gpucache.diagnosis.why_missed import CODES as WHY_CODES
from gpucache.diagnosis.why_missed import why_missed
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.environment import OUR_MANAGER
from gpucache.findings import Finding
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.triton.manager import current_location

KEY, FILES = kernel("first")
FALLBACKS = {code for code in CODES if code.startswith("fallback-")} | {"no-access-times"}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return provisioned(tmp_path / "own")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that others may read, in which one kernel was compiled."""
    root = provisioned(tmp_path / "shared", "read")
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)
    launched(KEY, FILES)
    current_location().stats.leave()
    return root


def provisioned(root: Path, sharing: str = "private") -> Path:
    environ = {"GPUCACHE_FAKE_DEVICES": "1"}
    DeviceCacheRegistry(str(root), environ=environ).provision(sharing=sharing)
    return root


def look(own: Path, fallback: object, **more: str) -> list[Finding]:
    """What is told of the fallback of a process."""
    environ = {"GPUCACHE_FALLBACK": str(fallback), "GPUCACHE_FAKE_DEVICES": "1", **more}
    found = [found for found in examine(str(own), environ).findings if found.code in FALLBACKS]
    for finding in found:
        assert all(finding.as_json().values()), finding
    return found


def told(found: list[Finding], code: str) -> Finding:
    """The one finding, a warning of this code."""
    (finding,) = found
    assert (finding.code, finding.level) == (code, "warning")
    return finding


def silent(found: list[Finding], *unwanted: str) -> None:
    assert not set(unwanted) - FALLBACKS
    assert not set(unwanted) & {finding.code for finding in found}, found


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback_checks, "installed_triton", lambda: "3.9.0")


def test_of_one_that_has_something_for_this_triton_nothing_is_told(own, shared, triton):
    found = look(own, shared)
    silent(found, "fallback-missing", "fallback-same", "fallback-unsafe", "fallback-unreadable")
    silent(found, "fallback-empty", "fallback-other-triton", "no-access-times")
    assert found == []


def test_of_none_nothing_is_told(own):
    assert look(own, "") == []


def test_one_that_is_not_there(own, tmp_path):
    found = told(look(own, tmp_path / "gone"), "fallback-missing")
    assert found.subject == str(tmp_path / "gone")


def test_the_root_itself(own):
    told(look(own, own), "fallback-same")


def test_another_users_whom_nobody_trusts(own, shared, triton, as_root):
    os.chown(shared, ADA, ADA)
    found = told(look(own, shared), "fallback-unsafe")
    assert f"belongs to uid {ADA}" in found.fact
    silent(look(own, shared, GPUCACHE_TRUST_UIDS=str(ADA)), "fallback-unsafe")


def test_one_that_this_user_may_not_read_names_what_its_owner_has_to_do(everyones, as_root):
    private = provisioned(everyones / "private")
    with acting_as(ADA):
        found = [*fallback_checks.refused(str(private), str(everyones), {})]
    fix = told(found, "fallback-unreadable").fix
    assert f"`gpucache provision --root {private} --shared read --yes`" in fix


def test_an_empty_one(own, tmp_path):
    told(look(own, provisioned(tmp_path / "empty", "read")), "fallback-empty")


def test_one_of_another_triton_only(own, shared, monkeypatch):
    monkeypatch.setattr(fallback_checks, "installed_triton", lambda: "3.4.0")
    found = told(look(own, shared), "fallback-other-triton")
    assert "made by Triton 3.9.0; here is 3.4.0" in found.fact


def test_a_root_that_others_read_without_access_times(tmp_path, mount):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "noatime,mode=0755", "none")
    told(look(provisioned(disk / "read", "read"), ""), "no-access-times")
    silent(look(provisioned(disk / "private"), ""), "no-access-times")
    other = mount(tmp_path / "other", "-t", "tmpfs", "-o", "relatime,mode=0755", "none")
    silent(look(provisioned(other / "read", "read"), ""), "no-access-times")


# ---- why an entry is missed


def missed(own: Path, shared: object, **more: str) -> dict[str, Finding]:
    environ = {
        "GPUCACHE_DIR": str(own),
        "TRITON_CACHE_DIR": f"{own}/triton/0",
        "TRITON_CACHE_MANAGER": OUR_MANAGER,
        "GPUCACHE_FALLBACK": str(shared),
        **more,
    }
    found = {one.code: one for one in why_missed(KEY, str(own), environ)}
    assert found.keys() <= WHY_CODES.keys()
    return found


def test_what_the_fallback_has_whole_is_not_missed(own, shared):
    found = missed(own, shared)
    assert found["in-fallback"].subject == entry_path(str(shared), KEY)
    assert all(one.level == "warning" for one in found.values())


def test_what_it_has_not_is_absent_there_too(own, shared):
    shutil.rmtree(entry_path(str(shared), KEY))
    found = missed(own, shared)
    assert list(found) == ["absent"]
    assert found["absent"].fact.endswith(f" nor in {entry_path(str(shared), KEY)}")


def test_what_is_damaged_there_is_told(own, shared):
    os.truncate(f"{entry_path(str(shared), KEY)}/{MANIFEST}", 3)
    found = missed(own, shared)
    assert list(found) == ["fallback-refused", "absent"]
    assert "cannot be understood" in found["fallback-refused"].fact


def test_one_that_cannot_be_used_is_told(own, tmp_path):
    assert list(missed(own, tmp_path / "gone")) == ["fallback-missing", "absent"]


def test_a_process_that_does_not_ask_the_store_does_not_ask_the_fallback(own, shared):
    assert "in-fallback" not in missed(own, shared, GPUCACHE_SHARE="0")


@pytest.mark.parametrize("path", ["/dev/null", "/etc/passwd", "/dev/shm"])
def test_no_way_out_spoils_what_the_machine_needs(own, path):
    found = look(own, path)
    (finding,) = [one for one in found if one.code.startswith("fallback-un")]
    assert finding.fix == "correct GPUCACHE_FALLBACK, or unset GPUCACHE_FALLBACK"
