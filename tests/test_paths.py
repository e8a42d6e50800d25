from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpucache.layout import paths


class TestRoot:
    def test_the_argument_wins_over_the_environment(self):
        environ = {"GPUCACHE_DIR": "/ours", "TORCHINDUCTOR_CACHE_DIR": "/torch"}
        assert paths.resolve_root("/argument", environ) == "/argument"

    def test_our_variable_wins_over_torchs(self):
        environ = {"GPUCACHE_DIR": "/ours", "TORCHINDUCTOR_CACHE_DIR": "/torch"}
        assert paths.resolve_root(None, environ) == "/ours"

    def test_torchs_variable_wins_over_the_default(self):
        assert paths.resolve_root(None, {"TORCHINDUCTOR_CACHE_DIR": "/torch"}) == "/torch"

    def test_the_default_comes_last(self):
        assert paths.resolve_root(None, {"USER": "ada"}) == paths.default_root({"USER": "ada"})

    @pytest.mark.parametrize("argument", [None, ""])
    def test_empty_counts_as_unset_at_every_step(self, argument):
        environ = {"GPUCACHE_DIR": "", "TORCHINDUCTOR_CACHE_DIR": "", "USER": "ada"}
        assert paths.resolve_root(argument, environ) == paths.default_root({"USER": "ada"})
        assert (
            paths.resolve_root(argument, {**environ, "TORCHINDUCTOR_CACHE_DIR": "/torch"})
            == "/torch"
        )

    @pytest.mark.parametrize(
        "environ", [{}, {"GPUCACHE_DIR": "cache"}, {"TORCHINDUCTOR_CACHE_DIR": "cache"}]
    )
    def test_a_relative_root_becomes_absolute(self, environ, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert paths.resolve_root(None if environ else "cache", environ) == str(tmp_path / "cache")

    def test_a_path_object_will_do(self):
        assert paths.resolve_root(Path("/a/b"), {}) == "/a/b"

    def test_dots_and_slashes_are_cleared_away(self):
        assert paths.resolve_root("/a/./b//c/../d/", {}) == "/a/b/d"

    def test_the_process_environment_is_not_read(self, monkeypatch):
        monkeypatch.setenv("GPUCACHE_DIR", "/of-the-process")
        assert paths.resolve_root(None, {"GPUCACHE_DIR": "/given"}) == "/given"


class TestDefaultRoot:
    def test_it_lies_in_the_temporary_directory_of_the_process(self, guard):
        assert paths.default_root({"USER": "ada"}) == str(guard / "tmp" / "torchinductor_ada")

    def test_the_user_is_named_as_getuser_names_him(self):
        names = {"LOGNAME": "log", "USER": "user", "LNAME": "lname", "USERNAME": "username"}
        for name in list(names):
            assert paths.default_root(names).endswith("/torchinductor_" + names.pop(name))

    def test_an_empty_name_is_passed_over(self):
        assert paths.default_root({"LOGNAME": "", "USER": "ada"}).endswith("/torchinductor_ada")

    def test_characters_that_a_path_cannot_have_become_underscores(self):
        assert paths.default_root({"USER": 'a\\b/c:d*e?f"g<h>i|j'}).endswith(
            "/torchinductor_a_b_c_d_e_f_g_h_i_j"
        )

    def test_a_user_without_a_passwd_entry_is_named_by_number(self, monkeypatch):
        monkeypatch.setattr(os, "getuid", lambda: 987654321)
        assert paths.default_root({}).endswith("/torchinductor_uid_987654321")

    def test_without_variables_the_passwd_entry_names_the_user(self):
        pwd = pytest.importorskip("pwd")
        try:
            name = pwd.getpwuid(os.getuid())[0]
        except KeyError:
            name = f"uid_{os.getuid()}"
        assert paths.default_root({}).endswith(f"/torchinductor_{name}")


class TestTree:
    def test_everything_lies_below_the_root(self):
        assert paths.device_directory("/r", "1.2") == "/r/triton/1.2"
        assert paths.ours("/r") == "/r/gpucache/v1"
        assert paths.ours("/r", "locks", "a.lock") == "/r/gpucache/v1/locks/a.lock"
        assert paths.tag_path("/r") == "/r/CACHEDIR.TAG"
        assert paths.record_path("/r", "node3") == "/r/gpucache/v1/devices/node3.json"

    @pytest.mark.parametrize(
        ("host", "file"),
        [
            ("gpu-07.cluster_a.example", "gpu-07.cluster_a.example.json"),
            ("../../etc/passwd", ".._.._etc_passwd.json"),
            ("a b\n\0c", "a_b__c.json"),
            ("hôte", "h_te.json"),
            ("..", "...json"),
            ("", ".json"),
        ],
    )
    def test_no_host_name_leads_out_of_the_directory_of_records(self, host, file):
        assert paths.record_path("/r", host) == f"/r/gpucache/v1/devices/{file}"

    def test_the_host_is_the_kernels(self):
        assert paths.host_name() == os.uname().nodename


def test_a_member_of_a_group_has_a_directory_of_its_own_in_the_root():
    assert paths.member_directory("/root", 1001) == "/root/members/1001"
