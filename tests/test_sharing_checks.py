"""What `doctor` tells of a root that is shared: what its members cannot use, and what mends that."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.users import acting_as

from gpucache.diagnosis import sharing_checks
from gpucache.diagnosis.doctor import CODES, examine
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.disk.default_acl import remove_default_acl, set_default_acl
from gpucache.disk.files import STAGED
from gpucache.disk.shared_modes import GROUP_ACL
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.report.unfit import findings
from gpucache.upkeep.verify import verify

OURS = {"mixed-modes", "others-mixed-modes", "half-shared", "no-acls", "group-writable"}
BOB, TEAM = 54502, 54400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root of this user's group, in which nothing is wrong."""
    return provisioned(tmp_path / "root")


def provisioned(root: Path, sharing: str = "group") -> Path:
    environ = {"GPUCACHE_FAKE_DEVICES": "1"}
    DeviceCacheRegistry(str(root), environ=environ).provision(sharing=sharing)
    return root


def look(root: Path) -> list[Finding]:
    found = examine(str(root), {"GPUCACHE_FAKE_DEVICES": "1"}).findings
    return [finding for finding in found if finding.code in OURS]


def told(found: list[Finding], code: str) -> Finding:
    """The one finding, a warning of this code."""
    (finding,) = found
    assert (finding.code, finding.level) == (code, "warning")
    assert all(finding.as_json().values())
    return finding


def silent(found: list[Finding], *unwanted: str) -> None:
    assert not set(unwanted) - CODES.keys()
    assert found == []


def mended(finding: Finding) -> None:
    """Say the command that a finding names."""
    command = finding.fix.removeprefix("run `").removesuffix("`")
    program, *words = shlex.split(command)
    assert program == "gpucache"
    subprocess.run(
        [sys.executable, "-m", "gpucache", *words],
        env={**os.environ, "GPUCACHE_FAKE_DEVICES": "1"},
        check=True,
        capture_output=True,
    )


def closed_file(root: Path) -> Path:
    file = Path(paths.ours(str(root), "store", "AA", "file"))
    file.parent.mkdir()
    file.parent.chmod(0o2770)
    file.touch()
    file.chmod(0o600)
    return file


def directory_without_setgid(root: Path) -> Path:
    (root / "triton" / "0").chmod(0o770)
    return root / "triton" / "0"


def root_without_setgid(root: Path) -> Path:
    """As `cp -a` leaves the root."""
    root.chmod(0o770)
    return root


def root_closed(root: Path) -> Path:
    root.chmod(0o700)
    return root


def directory_without_acl(root: Path) -> Path:
    fd = os.open(root / "triton", os.O_RDONLY)
    remove_default_acl(fd)
    os.close(fd)
    return root / "triton"


def of_another_group(root: Path) -> Path:
    os.chown(root / "CACHEDIR.TAG", -1, TEAM)
    return root / "CACHEDIR.TAG"


def made_by_cp(root: Path) -> Path:
    place = root / "fxgraph"
    place.mkdir()
    place.chmod(0o755)
    return place


@pytest.mark.root
@pytest.mark.parametrize(
    "spoil",
    [
        closed_file,
        directory_without_setgid,
        root_without_setgid,
        root_closed,
        directory_without_acl,
        of_another_group,
        made_by_cp,
    ],
)
def test_what_members_cannot_use_is_told_until_the_command_has_mended_that(root, spoil, as_root):
    silent(look(root), "mixed-modes")
    path = spoil(root)
    finding = told(look(root), "mixed-modes")
    assert finding.subject == str(path)
    mended(finding)
    silent(look(root), "mixed-modes")


@pytest.mark.parametrize("mode", [0o771, 0o760, 0o664, 0o640, 0o600])
def test_a_library_is_the_members_whatever_a_linker_has_made_of_the_bits_to_run_it(root, mode):
    """Those of two umasks, of a linker that asks for the umask only, and not for a default ACL; and others."""
    library = root / "jit/tvm-ffi/add_01/add.so"
    library.parent.mkdir(parents=True)
    for directory in (library.parent, *library.parents[1:3]):
        directory.chmod(0o2770)
        fd = os.open(directory, os.O_RDONLY)
        set_default_acl(fd, GROUP_ACL)
        os.close(fd)
    library.touch()
    library.chmod(mode)
    codes = [finding.code for finding in look(root)]
    assert codes == ([] if mode in (0o771, 0o760) else ["mixed-modes"])


def test_what_a_jit_has_made_by_its_umask_is_behind_the_mode_of_jit_in_a_root_for_readers(tmp_path):
    root = provisioned(tmp_path / "root", "read")
    library = root / "jit/tvm-ffi/add_01/add.so"
    library.parent.mkdir(parents=True)
    for directory in library.parents[1:3]:
        directory.chmod(0o700)
    library.parent.chmod(0o755)
    library.touch()
    library.chmod(0o755)
    silent(look(root), "mixed-modes")
    for path, mode in ((library.parents[2], 0o755), (library, 0o664), (library.parent, 0o2770)):
        was = path.stat().st_mode
        path.chmod(mode)
        assert "--shared read" in told(look(root), "mixed-modes").fix
        path.chmod(was)


@pytest.mark.root
def test_verify_tells_the_same_and_changes_nothing(root, as_root):
    assert verify(str(root)).findings == ()
    path = made_by_cp(root)
    (checked,) = verify(str(root), repair=True).findings
    assert (checked.finding.code, checked.finding.subject) == ("mixed-modes", str(path))
    assert (checked.repaired, checked.note) == (False, "a repair changes no modes")
    mended(checked.finding)
    assert verify(str(root)).findings == ()


def test_a_reader_who_cannot_read_is_told_as_well(tmp_path):
    root = provisioned(tmp_path / "root", "read")
    silent(look(root), "mixed-modes")
    (root / "triton" / "0").chmod(0o700)
    finding = told(look(root), "mixed-modes")
    assert "--shared read" in finding.fix
    mended(finding)
    silent(look(root), "mixed-modes")


def test_modes_of_a_private_root_are_nobodys_business(tmp_path):
    root = provisioned(tmp_path / "root", "private")
    (root / "triton" / "0").chmod(0o750)
    silent(look(root), "mixed-modes", "half-shared", "no-acls")


@pytest.mark.root
def test_what_another_user_must_mend_is_told_of_that_user(root, as_root):
    silent(look(root), "others-mixed-modes")
    directory = root / "triton" / "7"
    directory.mkdir()
    directory.chmod(0o700)
    os.chown(directory, BOB, 0)
    finding = told(look(root), "others-mixed-modes")
    assert finding.subject == str(directory)
    assert finding.fix.startswith(f"have uid {BOB} run `gpucache provision --shared group")


@pytest.mark.root
def test_what_a_member_left_in_a_root_that_others_read_its_owner_takes_out(tmp_path, as_root):
    root = provisioned(tmp_path / "root", "read")
    silent(look(root), "others-mixed-modes")
    for path in (root / "triton" / "0" / "key", Path(paths.ours(str(root), "locks", "file"))):
        path.mkdir(mode=0o755)
        os.chown(path, BOB, 0)
    finding = told(look(root), "others-mixed-modes")
    assert finding.fact.startswith("1 ")
    mended(finding)
    silent(look(root), "others-mixed-modes")


@pytest.mark.root
def test_a_reader_finds_nothing_odd_in_what_the_owner_has_made(tmp_path, everyones, as_root):
    root = provisioned(everyones / "root", "read")
    for path in (root, *root.rglob("*")):
        os.chown(path, BOB, 0)
    with acting_as(BOB + 1):
        silent(list(findings(str(root), "read")), "others-mixed-modes")


def test_what_is_still_being_written_is_its_writers(root):
    fd, _ = tempfile.mkstemp(prefix=STAGED, dir=paths.ours(str(root), "tmp"))
    os.close(fd)
    silent(look(root), "mixed-modes")


def test_of_a_huge_root_a_part_is_looked_at(root, monkeypatch):
    monkeypatch.setattr(sharing_checks, "_MOST", 12)
    for path in root.rglob("*"):
        path.chmod(0o700)
    assert "at least" in told(look(root), "mixed-modes").fact


def test_a_change_that_was_not_finished_is_told_with_both_ways_on(root):
    silent(look(root), "half-shared")
    Path(paths.mark_path(str(root))).unlink()
    finding = told(look(root), "half-shared")
    assert "--shared group" in finding.fix
    assert "--shared private" in finding.fix


@pytest.mark.mounts
def test_a_mount_without_acls_is_told(tmp_path, mount, root):
    silent(look(root), "no-acls")
    disk = mount(tmp_path / "disk", "-t", "ramfs", "none")
    disk.chmod(0o755)
    told(look(provisioned(disk / "root")), "no-acls")
