"""The process that asks object stores: what it knows, how it ends, and that it ends with whoever started it."""

from __future__ import annotations

import base64
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from support.bad_servers import bad_server, hangs, says
from support.processes import PATIENCE_S

from gpucache.errors import NotInstalledError
from gpucache.remote.errors import RemoteError
from gpucache.remote.object_names import entry_object
from gpucache.remote.opening import open_remote
from gpucache.remote.remote import Patience
from gpucache.remote.services import service
from gpucache.remote.url import RemoteUrl

SECRET = "word-of-this-user"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET}
SLOW = Patience(in_all_s=PATIENCE_S, silent_s=PATIENCE_S)


def url_of(port: int, more: str = "") -> str:
    return f"s3://bucket/prefix?endpoint=http://127.0.0.1:{port}{more}"


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run, or are zombies."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def until(is_so, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z" and len(threads) == 1  # the others hold its files until they have ended


def get(remote) -> bytes:
    with remote.get("v1/packs/a", 2**20) as file:
        return file.read()


def test_it_goes_with_the_remote_and_leaves_no_zombie():
    before = set(children(os.getpid()))
    with bad_server(says("200 OK", b"12345")) as server:
        remote = open_remote(RemoteUrl.parse(url_of(server.port)), CREDENTIALS, SLOW)
        assert get(remote) == b"12345"
        assert len(set(children(os.getpid())) - before) == 1
        del remote
        gc.collect()
    assert set(children(os.getpid())) <= before


@pytest.mark.parametrize("is_asked", [True, False], ids=["while it waits", "idle"])
def test_it_ends_with_a_starter_that_is_killed(is_asked):
    with bad_server(hangs) as server:
        code = f"""
import sys
from gpucache.remote.object_names import entry_object
from gpucache.remote.opening import open_remote
from gpucache.remote.remote import Patience
from gpucache.remote.url import RemoteUrl
remote = open_remote(RemoteUrl.parse({url_of(server.port)!r}), {CREDENTIALS!r}, Patience(60, 60))
print("open", flush=True)
if {is_asked}:
    with remote.get("v1/packs/a", 100):
        pass
sys.stdin.read()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as starter:
            assert starter.stdout is not None
            assert starter.stdout.readline() == b"open\n"
            (process,) = children(starter.pid)
            if is_asked:
                until(lambda: server.requests, "it asks nothing")
            starter.kill()
        until(lambda: is_gone(process), "it is still there")


def test_one_that_was_killed_is_replaced():
    with bad_server(says("200 OK", b"12345")) as server:
        before = set(children(os.getpid()))
        remote = open_remote(RemoteUrl.parse(url_of(server.port)), CREDENTIALS, SLOW)
        assert get(remote) == b"12345"
        (process,) = set(children(os.getpid())) - before
        os.kill(process, signal.SIGKILL)
        until(lambda: is_gone(process), "it was killed")
        assert get(remote) == b"12345"


def test_one_that_dies_while_it_is_asked_fails_that_request_only():
    answers = threading.Event()

    def behave(connection, over):
        (says("200 OK", b"12345") if answers.is_set() else hangs)(connection, over)

    with bad_server(behave) as server:
        before = set(children(os.getpid()))
        remote = open_remote(RemoteUrl.parse(url_of(server.port)), CREDENTIALS, SLOW)
        (process,) = set(children(os.getpid())) - before

        def kill() -> None:
            until(lambda: server.requests, "it asks nothing")
            os.kill(process, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(RemoteError) as failed:
            get(remote)
        killer.join()
        assert failed.value.kind == "bad-answer"
        answers.set()
        assert get(remote) == b"12345"


def test_neither_its_command_line_nor_its_streams_hold_a_secret():
    with bad_server(says("200 OK", b"12345")) as server:
        before = set(children(os.getpid()))
        remote = open_remote(RemoteUrl.parse(url_of(server.port)), CREDENTIALS, SLOW)
        assert get(remote) == b"12345"
        (process,) = set(children(os.getpid())) - before
        assert SECRET.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
        for stream in (0, 1, 2):
            assert os.readlink(f"/proc/{process}/fd/{stream}") == "/dev/null"
        assert Path(f"/proc/{process}/cwd").resolve() == Path("/")
        limits = Path(f"/proc/{process}/limits").read_text().splitlines()
        (core,) = [line for line in limits if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        del remote


@pytest.mark.parametrize(("library", "url"), [("opendal", "s3://bucket"), ("redis", "redis://h")])
def test_without_its_library_the_extra_is_named(library, url, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(NotInstalledError) as missing:
        open_remote(RemoteUrl.parse(url), {})
    assert missing.value.module == library
    assert "pip install opendal redis zstandard cryptography" in missing.value.hint


def test_a_process_that_asks_never_imports_the_library():
    with bad_server(says("200 OK", b"12345")) as server:
        code = f"""
import sys
from gpucache.remote.opening import open_remote
from gpucache.remote.url import RemoteUrl
remote = open_remote(RemoteUrl.parse({url_of(server.port)!r}), {CREDENTIALS!r})
with remote.get("v1/packs/a", 100) as file:
    assert file.read() == b"12345"
open_remote(RemoteUrl.parse("redis://127.0.0.1:{server.port}"), {{}}).come_up()
assert not {{"opendal", "redis", "asyncio"}} & set(sys.modules)
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


SERVICES = [
    ("s3://b/p", {}, {"bucket": "b", "root": "/p", "region": "us-east-1"}),
    (
        "s3://b?region=eu-1&endpoint=http://h:1&anonymous=1",
        {"AWS_REGION": "x", "AWS_ENDPOINT_URL": "http://other"},
        {"region": "eu-1", "endpoint": "http://h:1", "skip_signature": "true"},
    ),
    (
        "s3://b",
        {
            "AWS_DEFAULT_REGION": "y",
            "AWS_ENDPOINT_URL": "http://a",
            "AWS_ENDPOINT_URL_S3": "http://b",
        },
        {"region": "y", "endpoint": "http://b"},
    ),
    (
        "s3://b",
        {**CREDENTIALS, "AWS_SESSION_TOKEN": "t"},
        {"access_key_id": "me", "secret_access_key": SECRET, "session_token": "t"},
    ),
    ("gs://b/p", {"GOOGLE_APPLICATION_CREDENTIALS": "/k"}, {"credential_path": "/k"}),
    (
        "az://c/p?account=a",
        {"AZURE_STORAGE_KEY": "k"},
        {"endpoint": "https://a.blob.core.windows.net", "account_key": "k", "container": "c"},
    ),
    (
        "az://c",
        {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_SAS_TOKEN": "s"},
        {"account_name": "a", "sas_token": "s"},
    ),
    (
        "hf://datasets/o/n@v1/p/q",
        {"HF_TOKEN": "t"},
        {"repo_type": "dataset", "repo_id": "o/n", "revision": "v1", "root": "/p/q", "token": "t"},
    ),
    ("hf://o/n", {}, {"repo_type": "model", "repo_id": "o/n", "revision": "main", "root": "/"}),
    (
        "webdav+https://me@h:8/p",
        {"WEBDAV_PASSWORD": "w"},
        {"endpoint": "https://h:8", "username": "me", "password": "w", "root": "/p"},
    ),
    ("webdav://h/p", {"WEBDAV_TOKEN": "t"}, {"endpoint": "http://h", "token": "t"}),
    (
        "rediss://me@h:7000/2?prefix=p",
        {"REDISCLI_AUTH": "w"},
        {"host": "h", "port": "7000", "database": "2", "username": "me", "password": "w"},
    ),
    ("redis://[::1]", {}, {"host": "::1", "port": "6379", "database": "0", "prefix": "gpucache"}),
]


@pytest.mark.parametrize(
    ("url", "environ", "expected"), SERVICES, ids=lambda value: str(value)[:30]
)
def test_each_service_is_told_its_address_and_its_own_credentials(url, environ, expected, tmp_path):
    environ = {"HF_HOME": str(tmp_path), **environ}
    settings = service(RemoteUrl.parse(url), environ).settings
    assert expected.items() <= settings.items()


WITH_ENDS_OF_LINES = [
    ("s3://b", {name: f"{value}\n" for name, value in CREDENTIALS.items()}),
    ("hf://o/n", {"HF_TOKEN": "t\n"}),
    ("webdav://h/p", {"WEBDAV_TOKEN": " t\r\n"}),
    ("redis://h", {"REDISCLI_AUTH": "t\n"}),
]


@pytest.mark.parametrize(("url", "environ"), WITH_ENDS_OF_LINES, ids=lambda value: str(value)[:8])
def test_an_end_of_a_line_is_no_part_of_a_credential(url, environ):
    """A secret that comes from a file, as Kubernetes mounts them, often has one."""
    settings = service(RemoteUrl.parse(url), environ).settings
    for value in environ.values():
        assert value.strip() in settings.values()
    assert all(value == value.strip() for value in settings.values())


@pytest.mark.parametrize(
    ("url", "environ"),
    [
        ("webdav://127.0.0.1:{}/p", {"WEBDAV_TOKEN": "a\nb"}),
        ("s3://b", {**CREDENTIALS, "AWS_ENDPOINT_URL": "http://h:99999"}),
        ("s3://b", {**CREDENTIALS, "AWS_ENDPOINT_URL": "http://"}),
    ],
    ids=["token", "port", "no host"],
)
def test_a_variable_of_which_no_request_can_be_made_is_misconfigured(url, environ):
    with bad_server(says("200 OK", b"12345")) as server:
        with pytest.raises(RemoteError) as refused:
            get(open_remote(RemoteUrl.parse(url.format(server.port)), environ, SLOW))
        assert not server.requests
    assert refused.value.kind == "misconfigured"


def test_no_password_goes_to_a_server_for_which_no_user_is_named():
    settings = service(RemoteUrl.parse("webdav://h/p"), {"WEBDAV_PASSWORD": SECRET}).settings
    assert SECRET not in settings.values()


ASKED = [
    (
        "hf://datasets/o/n@v1/p?endpoint={}",
        {"HF_TOKEN": "t"},
        "/datasets/o/n/resolve/v1/p/{}",
        b"Bearer t",
    ),
    ("hf://o/n?endpoint={}", {}, "/o/n/resolve/main/{}", b""),
    ("gs://b/p?endpoint={}&anonymous=1", {}, "/storage/v1/b/b/o/p%2F{}?alt=media", b""),
    (
        "az://c/p?account=a&endpoint={}/a",
        {"AZURE_STORAGE_KEY": "a2V5"},
        "/a/c/p/{}",
        b"SharedKey a:",
    ),
    (
        "az://c/p?endpoint={}/a",
        {"AZURE_STORAGE_SAS_TOKEN": "se=1&sig=2"},
        "/a/c/p/{}?se=1&sig=2",
        b"",
    ),
    ("s3://b/p?endpoint={}&anonymous=1", {}, "/b/p/{}", b""),
    ("s3://b/p?endpoint={}", CREDENTIALS, "/b/p/{}", b"AWS4-HMAC-SHA256 Credential=me/"),
]


@pytest.mark.parametrize(
    ("url", "environ", "path", "who"), ASKED, ids=lambda value: str(value)[:20]
)
def test_each_service_is_asked_where_it_has_objects_and_as_whom(url, environ, path, who, tmp_path):
    with bad_server(says("200 OK", b"12345")) as server:
        parsed = RemoteUrl.parse(url.format(f"http://127.0.0.1:{server.port}"))
        assert get(open_remote(parsed, {"HF_HOME": str(tmp_path), **environ}, SLOW)) == b"12345"
    (request,) = server.requests
    name = "v1%2Fpacks%2Fa" if parsed.scheme == "gs" else "v1/packs/a"
    assert request.split(b" ")[1] == path.format(name).encode()
    shown = [line for line in request.split(b"\r\n") if line.lower().startswith(b"authorization:")]
    assert [line.partition(b": ")[2][: len(who)] for line in shown] == ([who] if who else [])


ECHOED = [
    ("s3://b?mode=write&endpoint={}", {**CREDENTIALS, "AWS_SESSION_TOKEN": "session-word"}),
    ("az://c?mode=write&endpoint={}", {"AZURE_STORAGE_SAS_TOKEN": "se=1234567&sig=signature-word"}),
    ("webdav://me@{}/d?mode=write", {"WEBDAV_PASSWORD": "password-word"}),
    ("webdav://{}/d?mode=write", {"WEBDAV_TOKEN": "token-word"}),
    ("hf://o/n?endpoint={}", {"HF_TOKEN": "token-word"}),
    ("redis://me@{}/0", {"REDISCLI_AUTH": "password-word"}),
]


@pytest.mark.parametrize(("url", "environ"), ECHOED, ids=lambda value: str(value)[:12])
def test_what_a_server_sends_back_of_credentials_is_not_even_at_debug_level(url, environ, caplog):
    """Each form of them: as they are, in a header of HTTP, in the query of a URL."""
    caplog.set_level(logging.DEBUG, "gpucache")
    secrets = [value for name, value in environ.items() if name != "AWS_ACCESS_KEY_ID"]
    if "SAS" in str(environ):
        secrets.append("signature-word")
    basic = base64.b64encode(b"me:password-word").decode()
    said = " ".join([*secrets, basic])

    def behave(connection, over):
        body = f"<Error><Code>{said}</Code><Message>{said}</Message></Error>"
        if url.startswith("redis"):
            connection.sendall(f"-ERR {said}\r\n".encode())
        else:
            says("403 Forbidden", body.encode(), X_Said=said)(connection, over)

    with bad_server(behave, end=b"\r\n" if url.startswith("redis") else b"\r\n\r\n") as server:
        where = f"127.0.0.1:{server.port}"
        at = url.format(f"http://{where}" if "endpoint" in url else where)
        remote = open_remote(RemoteUrl.parse(at), environ, SLOW)
        act = partial(get, remote)
        if "put" in remote.can:  # of which opendal shows first what the server says
            act = partial(remote.put_new, entry_object("3.9.0", "A" * 52), "/etc/hostname")
        with pytest.raises(RemoteError) as refused:
            act()
        assert server.requests
    assert any("opendal: " in line or "redis: " in line for line in caplog.messages)
    for text in (caplog.text, str(refused.value)):
        for secret in secrets:
            assert secret not in text
        assert basic not in text or not url.startswith("webdav://me@")


def says_what_it_was_sent(header: bytes, requests: list[bytes]):
    """A server whose first words are the value of a request's header: of an error, 200 letters are told."""

    def behave(connection, over):
        value = requests[-1].lower().index(header) + len(header)
        said = requests[-1][value:].partition(b"\r\n")[0].rpartition(b" ")[2]
        connection.sendall(b"HTTP/1.1 403 No\r\nx: " + said + b"\r\ncontent-length: 0\r\n\r\n")

    return behave


@pytest.mark.parametrize("word", ["proxy-word", "proxy%2Fword"])
def test_what_a_proxy_sends_back_of_its_password_is_not_even_at_debug_level(word, caplog):
    caplog.set_level(logging.DEBUG, "gpucache")
    requests: list[bytes] = []
    with bad_server(says_what_it_was_sent(b"proxy-authorization: ", requests)) as server:
        server.requests = requests
        environ = {**CREDENTIALS, "http_proxy": f"http://me:{word}@127.0.0.1:{server.port}"}
        with pytest.raises(RemoteError) as refused:
            get(open_remote(RemoteUrl.parse("s3://b?endpoint=http://s.invalid"), environ, SLOW))
        sent = base64.b64encode(f"me:{word}".replace("%2F", "/").encode())
        assert sent in requests[0]
    assert refused.value.kind == "refused"
    assert "opendal: " in caplog.text
    assert sent.decode()[:12] not in caplog.text


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT"])
def test_a_password_in_a_variable_for_an_endpoint_is_not_even_at_debug_level(variable, caplog):
    caplog.set_level(logging.DEBUG, "gpucache")
    url = RemoteUrl.parse("hf://o/n" if variable.startswith("HF") else "s3://b")
    with bad_server(says("403 Forbidden")) as server:
        environ = {**CREDENTIALS, variable: f"http://me:password-word@127.0.0.1:{server.port}"}
        with pytest.raises(RemoteError) as refused:
            get(open_remote(url, environ, SLOW))
    assert "password-word" not in str(refused.value)
    assert "opendal: " in caplog.text
    assert "password-word" not in caplog.text


def test_a_token_that_the_library_has_found_itself_is_not_told_if_it_is_sent_back(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "gpucache")
    token = base64.b64encode(os.urandom(300)).decode()
    kept = tmp_path / "credentials"
    kept.write_text(
        "[default]\naws_access_key_id = me\naws_secret_access_key = x\n"
        f"aws_session_token = {token}\n"
    )
    requests: list[bytes] = []
    with bad_server(says_what_it_was_sent(b"x-amz-security-token: ", requests)) as server:
        server.requests = requests
        environ = {"AWS_SHARED_CREDENTIALS_FILE": str(kept)}
        url = RemoteUrl.parse(f"s3://b?endpoint=http://127.0.0.1:{server.port}")
        with pytest.raises(RemoteError):
            get(open_remote(url, environ, SLOW))
        assert token.encode() in requests[0]
    assert "opendal: " in caplog.text
    assert token[:10] not in caplog.text


def test_the_kept_token_of_the_hub_is_read_and_nothing_large(tmp_path):
    url, environ = RemoteUrl.parse("hf://o/n"), {"HF_HOME": str(tmp_path)}
    (tmp_path / "token").write_text("kept\n")
    assert service(url, environ).settings["token"] == "kept"
    (tmp_path / "token").write_text("x" * 100_000)
    assert "token" not in service(url, environ).settings


def test_the_region_of_a_profile_is_that_of_the_file_of_the_aws_cli(tmp_path):
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-1\n[profile other]\nregion=ap-2\n[profile bare]\n")
    url, file = RemoteUrl.parse("s3://b"), {"AWS_CONFIG_FILE": str(config)}
    for environ, region in (
        ({}, "eu-1"),
        ({"AWS_PROFILE": "other"}, "ap-2"),
        ({"AWS_PROFILE": "bare"}, "us-east-1"),
        ({"AWS_PROFILE": "none"}, "us-east-1"),
        ({"AWS_PROFILE": "other", "AWS_REGION": "x"}, "x"),
    ):
        assert service(url, file | environ).settings["region"] == region
    config.write_bytes(b"\xff[[")
    assert service(url, file).settings["region"] == "us-east-1"


@pytest.mark.parametrize(
    "url", ["az://container", "hf://owner", "hf://datasets/owner", "redis://h/x"]
)
def test_a_url_that_lacks_something_is_told_before_anything_is_asked(url):
    with pytest.raises(RemoteError) as refused:
        open_remote(RemoteUrl.parse(url), {})
    assert refused.value.kind == "misconfigured"


def test_a_process_that_comes_up_late_takes_nothing_of_the_limit(tmp_path):
    """Else a busy machine would kill each one before it has asked anything."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(1.5)")
    environ = {**CREDENTIALS, "PYTHONPATH": str(tmp_path)}
    with bad_server(says("200 OK", b"12345")) as server:
        url = RemoteUrl.parse(url_of(server.port))
        assert get(open_remote(url, environ, Patience(in_all_s=1.0, silent_s=1.0))) == b"12345"


def test_a_process_that_never_comes_up_is_told(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(1)")
    remote = open_remote(
        RemoteUrl.parse("s3://bucket"), {**CREDENTIALS, "PYTHONPATH": str(tmp_path)}, SLOW
    )
    for _ in range(2):
        with pytest.raises(RemoteError) as failed:
            get(remote)
        assert failed.value.kind == "unreachable"
        assert "cannot be started" in str(failed.value)


def test_the_limit_of_opendal_is_a_timeout_whatever_it_was_asked(python):
    """It is over before the asker's own where that was not let run: on a busy machine."""
    code = """
import sys
from gpucache.remote.opendal_errors import meaning
from gpucache.remote.opendal_store import OpendalStore
store = OpendalStore("webdav", {"endpoint": f"http://127.0.0.1:{sys.argv[1]}"}, limit_s=0.1)
for act in (lambda: store.stat("x"), lambda: store.get("x", 1), lambda: store.list("")):
    try:
        act()
    except Exception as error:
        print(meaning(error))
"""
    with bad_server(hangs) as server:
        done = python(code, server.port)
    assert (done.stdout.split(), done.stderr) == (["timeout"] * 3, "")
