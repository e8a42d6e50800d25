"""What access-control lists give others is seen, and refused, where no mode shows it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest
from support.acls import GROUP, USER, access_acl, set_access_acl
from support.users import ADA, BOB, acting_as, directory

from gpucache.disk.access_acl import NOBODY, NamedWriters, drop_list, named_writers
from gpucache.disk.vetting import Trust, vet, vet_file
from gpucache.errors import UnsafeDirectoryError

NOBODY_ELSE = Trust()


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A directory of this user's, on a file system that keeps lists."""
    made = tmp_path / "listed"
    made.mkdir(mode=0o700)
    try:
        set_access_acl(made, (USER, 1003, 0o7))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("this file system has no access-control lists")
    return made


class TestNamedWriters:
    @pytest.mark.parametrize(
        ("entries", "found"),
        [
            ([(USER, 1003, 0o7)], NamedWriters(uids=(1003,))),
            ([(GROUP, 3000, 0o2)], NamedWriters(gids=(3000,))),
            ([(USER, 1003, 0o5), (USER, 1004, 0o6)], NamedWriters(uids=(1004,))),
            ([(USER, 1003, 0o5)], NOBODY),
        ],
    )
    def test_whoever_may_write_is_named(self, listed, entries, found):
        set_access_acl(listed, *entries, mask=0o7)
        mode = listed.stat().st_mode
        assert mode & 0o070 == 0o070
        assert named_writers(str(listed), mode) == found

    def test_the_groups_bits_of_the_mode_bound_them(self, listed):
        listed.chmod(0o750)
        assert named_writers(str(listed), listed.stat().st_mode) == NOBODY

    def test_a_link_says_nothing_of_what_it_leads_to(self, listed, tmp_path):
        (tmp_path / "link").symlink_to(listed)
        assert named_writers(str(tmp_path / "link"), 0o777) == NOBODY

    def test_where_there_is_no_list_nobody_is_named(self, tmp_path):
        assert named_writers(str(tmp_path), 0o770) == NOBODY
        assert named_writers("/proc/self", 0o777) == NOBODY

    def test_a_list_can_be_dropped(self, listed):
        fd = os.open(listed, os.O_RDONLY)
        drop_list(fd)
        drop_list(fd)
        os.close(fd)
        assert named_writers(str(listed), 0o770) == NOBODY

    def test_a_directory_inherits_them_where_its_mode_is_opened(self, listed):
        """What provisioning drops: a default list of the directory above, and a mode of 2770 that brings it to life."""
        set_access_acl(listed, (USER, 1003, 0o7), default=True)
        inner = listed / "inner"
        inner.mkdir(mode=0o700)
        assert named_writers(str(inner), inner.stat().st_mode) == NOBODY
        inner.chmod(0o2770)
        assert named_writers(str(inner), inner.stat().st_mode) == NamedWriters(uids=(1003,))


class TestVetting:
    @pytest.mark.parametrize(
        ("entry", "who"),
        [((USER, 1003, 0o7), "uid 1003"), ((GROUP, 3000, 0o7), "the members of group 3000")],
    )
    def test_whom_the_mode_does_not_show_is_refused(self, listed, entry, who):
        set_access_acl(listed, entry, mask=0o7)
        with pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(listed), NOBODY_ELSE)
        assert caught.value.fact.startswith(f"{who} may write it by an access-control list (mode")

    @pytest.mark.parametrize(
        ("entry", "trust"),
        [
            ((USER, 1003, 0o7), Trust(uids=frozenset({1003}))),
            ((USER, 0, 0o7), NOBODY_ELSE),
            ((GROUP, 3000, 0o7), Trust(groups=frozenset({3000}))),
        ],
    )
    def test_whoever_is_trusted_may_be_named(self, listed, entry, trust):
        set_access_acl(listed, entry, mask=0o7)
        assert vet(str(listed), trust)

    def test_a_file_is_looked_at_too(self, listed):
        file = listed / "record"
        file.write_text("")
        set_access_acl(file, (USER, 1003, 0o6), mask=0o6)
        with pytest.raises(UnsafeDirectoryError, match="by an access-control list"):
            vet_file(str(file), NOBODY_ELSE)

    def test_the_command_of_the_refusal_mends_it(self, listed):
        set_access_acl(listed, (USER, 1003, 0o7), mask=0o7)
        with pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(listed), NOBODY_ELSE)
        subprocess.run(caught.value.hint.split("`")[1], shell=True, check=True)
        assert vet(str(listed), NOBODY_ELSE)


@pytest.mark.root
def test_who_does_not_own_it_is_told_what_to_set(as_root, everyones):
    shared = directory(everyones / "shared", 0o2770, 0)
    os.chown(shared, 0, ADA)
    set_access_acl(shared, (USER, BOB, 0o7), mask=0o7)
    with acting_as(ADA), pytest.raises(UnsafeDirectoryError) as caught:
        vet(str(shared), NOBODY_ELSE)
    assert f"or GPUCACHE_TRUST_UIDS={BOB} if you trust them" in caught.value.hint


def test_the_helper_of_these_tests_sets_what_the_kernel_follows(listed):
    assert access_acl(listed) is not None
    assert stat.S_IMODE(listed.stat().st_mode) & 0o070 == 0o070
