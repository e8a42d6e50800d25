"""What a remote's URL may say, and that nothing secret comes out of one that says too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucache.environment import REMOTE
from gpucache.errors import ConfigurationError, GpuCacheError
from gpucache.escapes import without_secrets
from gpucache.remote.errors import RemoteUrlError
from gpucache.remote.url import RemoteUrl

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "scheme", "host", "path"),
    [
        ("s3://bucket", "s3", "bucket", ""),
        ("s3://bucket/a/b/", "s3", "bucket", "a/b"),
        ("s3://bucket//a///b", "s3", "bucket", "a/b"),
        ("gcs://bucket/a", "gs", "bucket", "a"),
        ("azblob://container/a?account=x", "az", "container", "a"),
        ("redis://host:7000/2", "redis", "host:7000", "2"),
        ("rediss://[::1]:7000", "rediss", "[::1]:7000", ""),
        ("webdav+https://me@host/a%20b", "webdav+https", "host", "a b"),
        ("webdav+http://host/a", "webdav", "host", "a"),
        ("davs://host/a", "webdav+https", "host", "a"),
        ("hf://datasets/owner/name@v1/a", "hf", "datasets", "owner/name@v1/a"),
        ("file:///shared/dir", "file", "", "/shared/dir"),
        ("file://localhost/shared/dir/", "file", "", "/shared/dir"),
    ],
)
def test_the_parts_of_a_url(text, scheme, host, path):
    url = RemoteUrl.parse(text)
    assert (url.scheme, url.host, url.path) == (scheme, host, path)
    assert url.mode == "read"
    assert url.trust is None


def test_mode_and_trust_are_read_and_are_not_shown():
    key = "ci:AAAA-_AAAA"
    url = RemoteUrl.parse(f"s3://bucket/p?mode=write&trust={key}&endpoint=http://h:1")
    assert url.mode == "write"
    assert url.trust is not None
    assert url.trust.keys == key
    assert not url.trust.owner
    assert url.option("endpoint") == "http://h:1"
    assert url.shown == "s3://bucket/p?endpoint=http://h:1"


def test_a_path_is_told_how_it_is_written():
    with pytest.raises(RemoteUrlError) as caught:
        RemoteUrl.parse("/shared/dir")
    assert caught.value.hint == "of a directory write file:// and its absolute path"


def test_owners_are_trusted_of_files_only():
    url = RemoteUrl.parse("file:///shared?trust=owner")
    assert url.trust is not None
    assert url.trust.owner
    with pytest.raises(RemoteUrlError, match="owners"):
        RemoteUrl.parse("s3://bucket?trust=owner")


WITH_SECRETS = {
    f"redis://me:{SECRET}@host/0": "REDISCLI_AUTH",
    f"redis://:{SECRET}@host": "REDISCLI_AUTH",
    f"rediss://me:{SECRET}@x@host/0": "REDISCLI_AUTH",
    f"redis://me:/{SECRET}@host/0": "REDISCLI_AUTH",
    f"webdav://me:80/{SECRET}@host/0": "WEBDAV_PASSWORD",
    f"redis://:a/{SECRET}?b#c@host/0": "REDISCLI_AUTH",
    f"redis://me:{SECRET}": "REDISCLI_AUTH",
    f"redis://me%3A{SECRET}@host-a/0": "REDISCLI_AUTH",
    f"redis://me%3a%2F{SECRET}@host-b/0": "REDISCLI_AUTH",
    f"webdav+https://me:{SECRET}@host/a": "WEBDAV_PASSWORD",
    f"webdav://host/a?token={SECRET}": "WEBDAV_TOKEN",
    f"s3://AKIA:{SECRET}@bucket/p": "AWS_SECRET_ACCESS_KEY",
    f"s3://bucket/p?secret_access_key={SECRET}": "AWS_SECRET_ACCESS_KEY",
    f"s3://bucket/p?mode=read&X-Amz-Signature={SECRET}": "AWS_SECRET_ACCESS_KEY",
    f"s3://bucket/p?endpoint=http://me:{SECRET}@host": "endpoint",
    f"s3://bucket/p?endpoint=http%3A%2F%2Fme%3A{SECRET}%40host&region=x": "endpoint",
    f"az://container?account=a&sig={SECRET}": "AZURE_STORAGE_SAS_TOKEN",
    f"gs://bucket?token={SECRET}": "GOOGLE_APPLICATION_CREDENTIALS",
    f"hf://owner/name?token={SECRET}": "HF_TOKEN",
    f"https://me:{SECRET}@host/a": "webdav+https://",
    f"ftp://me:{SECRET}@host/a": "choose one of",
}


@pytest.mark.parametrize("text", WITH_SECRETS)
def test_a_secret_in_a_url_is_refused_unshown_with_the_way_out(text):
    with pytest.raises(RemoteUrlError) as refused:
        RemoteUrl.parse(text)
    shown = f"{refused.value} {refused.value!r} {refused.value.args}"
    assert SECRET not in shown
    assert WITH_SECRETS[text] in shown


@pytest.mark.parametrize("text", WITH_SECRETS)
def test_nor_does_the_variable_show_it_in_a_launch(text, caplog):
    assert RemoteUrl.for_launch({"GPUCACHE_REMOTE": text}) is None
    assert SECRET not in caplog.text
    (record,) = caplog.records
    assert "GPUCACHE_REMOTE" in record.getMessage()


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3:///prefix",
        "s3://bucket:80/p",
        "s3://bucket/../other",
        "s3://bucket/%2e%2e/other",
        "s3://bucket/a/./b",
        "s3://bucket/%00",
        "s3://bucket/%1b[2J",
        "s3://bucket/%ff",
        "s3://bucket/a#b",
        "s3://bucket/a b",
        "s3://bucket?mode=append",
        "s3://bucket?mode=read&mode=write",
        "s3://bucket?mode=",
        "s3://bucket?endpoint=host:80",
        "s3://bucket?endpoint=ftp://host",
        "s3://bucket?endpoint=http://host:99999",
        "s3://bucket?endpoint=http://host%23a",
        "s3://bucket?region=%00",
        "s3://bucket?anonymous=0",
        "redis://host:port/0",
        "redis://host:99999999/0",
        "redis://[::1/0",
        "file://host/shared",
        "file://shared/dir",
        "file:///",
        "file:///a/../b",
        "file:relative",
        "hf://owner/name?mode=write",
        "bucket/prefix",
        "s3://" + "x" * 5000,
    ],
)
def test_what_makes_no_sense_is_refused_with_a_way_out(text):
    with pytest.raises(RemoteUrlError) as refused:
        RemoteUrl.parse(text)
    assert refused.value.hint
    assert len(str(refused.value)) < 600
    assert str(refused.value).isprintable()


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_refusal_that_is_safe_to_show(rest):
    for text in (rest, f"s3://{rest}", f"redis://{rest}", f"file:///{rest}"):
        try:
            shown = RemoteUrl.parse(text).shown
        except RemoteUrlError as error:
            shown = str(error)
        assert shown.isprintable()


@given(st.text(alphabet="aA0-._~%!$&'()*+,;=/?#@:", min_size=1, max_size=20))
def test_no_password_is_shown_whatever_its_letters(word):
    password = f"qZ{word}Zq"
    for text in (f"redis://me:{password}@host/0", f"redis://:{password}@host/0?mode=read"):
        assert password not in without_secrets(text)
        with pytest.raises(RemoteUrlError) as refused:
            RemoteUrl.parse(text)
        assert password not in str(refused.value)


def test_without_the_variable_there_is_no_remote():
    assert RemoteUrl.configured({}) is None
    assert RemoteUrl.configured({"GPUCACHE_REMOTE": ""}) is None


def test_a_variable_that_is_no_url_is_an_error_to_a_command():
    with pytest.raises(ConfigurationError, match="GPUCACHE_REMOTE"):
        RemoteUrl.configured({"GPUCACHE_REMOTE": "bucket"})
    with pytest.raises(GpuCacheError, match="ftp"):
        RemoteUrl.configured({"GPUCACHE_REMOTE": "ftp://host/a"})
    assert REMOTE.shown(f"s3://a:{SECRET}@b") == "s3://a:***@b"
