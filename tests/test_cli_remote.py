"""`remote ls` and `remote check` as people and scripts call them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from support.servers import apart
from support.terminals import at_width, table_of
from support.users import ADA, acting_as

from gpucache.remote.opening import open_remote
from gpucache.remote.url import RemoteUrl

KEY = "A" * 52


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A shared directory with two packs, an entry, and what is neither."""
    directory = tmp_path / "shared"
    for name, content in (
        ("v1/packs/nightly", b"12345"),
        ("v1/packs/llama-3", b"123"),
        ("v1/packs/not a name", b"1"),
        (f"v1/3.9.0/AA/{KEY}", b"1234"),
        ("v1/3.9.0/AA/no-key", b"1"),
        (f"v1/3.9.0/BB/{KEY}", b"1"),
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_000_000, 1_000_000))
    return directory


def test_the_packs_are_listed(here, shared):
    done = here("remote", "ls", "--remote", f"file://{shared}")
    assert done.code == 0
    assert done.out == "llama-3\t3\t1000000\nnightly\t5\t1000000\n"
    assert done.err == ""


def test_a_terminal_gets_a_total(shared):
    shown = at_width(["remote", "ls", "--remote", f"file://{shared}"], 80)
    assert table_of(shown)[-1] == "2 in all   8 B"


def test_the_entries_are_listed_where_that_is_asked_for(here, shared):
    done = here("remote", "ls", "--entries", "--remote", f"file://{shared}")
    assert done.out == f"{KEY}\t3.9.0\t4\t1000000\n"


def test_the_json_has_names_bytes_and_times(here, shared):
    done = here("remote", "ls", "--json", "--remote", f"file://{shared}?mode=write")
    nightly = {"name": "nightly", "bytes": 5, "put": 1_000_000.0}
    assert done.json["remote"] == f"file://{shared}"
    assert done.json["packs"][1] == nightly
    assert list(done.json) == ["remote", "packs"]
    entries = here("remote", "ls", "--json", "--entries", "--remote", f"file://{shared}")
    (entry,) = entries.json["entries"]
    assert entry == {"key": KEY, "triton_version": "3.9.0", "bytes": 4, "put": 1_000_000.0}


def test_the_remote_of_the_environment_is_meant_without_an_option(here, shared, monkeypatch):
    monkeypatch.setenv("GPUCACHE_REMOTE", f"file://{shared}")
    assert here("remote", "ls").out.startswith("llama-3\t")


def test_without_a_remote_both_say_how_one_is_named(here):
    for command in ("ls", "check"):
        done = here("remote", command)
        assert done.code == 1
        assert done.out == ""
        assert "no remote is named" in done.err
        assert "GPUCACHE_REMOTE" in done.err


def test_a_directory_that_is_not_there_is_not_made(here, tmp_path):
    done = here("remote", "check", "--remote", f"file://{tmp_path}/nowhere?mode=write")
    assert done.code == 1
    assert done.rows[0][:2] == ["reach", "failed"]
    assert "No such file or directory" in done.out
    assert "mounted" in done.err
    assert not (tmp_path / "nowhere").exists()


def test_a_check_leaves_what_is_there_as_it_was(here, shared):
    before = sorted(path for path in shared.rglob("*") if path.is_file())
    done = here("remote", "check", "--remote", f"file://{shared}?mode=write")
    assert done.code == 0
    assert [row[:2] for row in done.rows] == [
        ["reach", "works"],
        ["put", "works"],
        ["put-if-absent", "works"],
        ["get", "works"],
        ["delete", "works"],
        ["list", "works"],
    ]
    assert done.rows[-1][3] == "2 packs"
    assert sorted(path for path in shared.rglob("*") if path.is_file()) == before


def test_a_check_without_the_mode_writes_nothing_and_says_so(here, shared):
    shared.chmod(0o555)
    done = here("remote", "check", "--json", "--remote", f"file://{shared}")
    shared.chmod(0o755)
    assert done.code == 0
    assert [step["step"] for step in done.json["steps"]] == ["reach", "list"]
    assert done.json["works"] is True
    assert "mode=write" in done.err


@pytest.mark.root
def test_a_directory_that_may_not_be_written_fails_the_check(as_root, everyones, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    with acting_as(ADA):
        report = open_remote(RemoteUrl.parse(f"file://{everyones}?mode=write"), {}).check()
    assert [(step.step, step.outcome) for step in report.steps] == [
        ("reach", "works"),
        ("put", "failed"),
        ("list", "works"),
    ]
    assert "Permission denied" in report.steps[1].fact
    assert not report.works


@pytest.mark.parametrize("command", ["ls", "check"])
def test_a_password_in_the_url_is_refused_unshown_with_the_way_out(command, here, monkeypatch):
    for text in ("redis://me:hunter2@host/0", "redis://:hunter2@host/0"):
        for done in (here("remote", command, "--remote", text),):
            assert done.code == 1
            assert "hunter2" not in done.out + done.err
            assert "REDISCLI_AUTH" in done.err
        monkeypatch.setenv("GPUCACHE_REMOTE", text)
        assert "hunter2" not in here("remote", command).err
        shown = here("config")
        assert "hunter2" not in shown.out + shown.err


def test_wrong_credentials_fail_the_check_and_are_not_shown(here, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "writer")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-word")
    done = here("remote", "check", "--remote", s3_server.url(apart(), "write"))
    assert done.code == 1
    assert done.rows[0][:2] == ["reach", "failed"]
    assert "credentials" in done.rows[0][3]
    assert "not-the-secret-word" not in done.out + done.err


def test_who_may_only_read_learns_that_by_the_check(here, s3_server, monkeypatch):
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    done = here("remote", "check", "--remote", s3_server.url(apart(), "write"))
    assert done.code == 1
    assert [row[:2] for row in done.rows] == [
        ["reach", "works"],
        ["put", "failed"],
        ["list", "works"],
    ]


def test_a_bucket_that_is_not_there_fails_the_check(here, s3_server, monkeypatch):
    for name, value in s3_server.writer.items():
        monkeypatch.setenv(name, value)
    done = here("remote", "check", "--remote", s3_server.url("", bucket=apart()))
    assert done.code == 1
    assert done.rows[0][:2] == ["reach", "failed"]
    assert "no such bucket" in done.rows[0][3]
