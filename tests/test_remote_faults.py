"""What a bad server does to a request: it costs one limit and little memory, tells its kind, and shows no secret."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial

import pytest
from support.bad_servers import BEHAVIOURS, ESCAPES, SECRET, bad_server, floods_as, says
from support.processes import PATIENCE_S
from support.servers import nginx, redis
from support.tls import certificate

from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.opening import open_remote
from gpucache.remote.remote import Patience
from gpucache.remote.url import RemoteUrl

LIMIT_S = 0.5
PATIENCE = Patience(in_all_s=LIMIT_S, silent_s=LIMIT_S)
SLOW = Patience(in_all_s=PATIENCE_S, silent_s=PATIENCE_S)
PASSWORD = "word-of-this-user"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "me",
    "AWS_SECRET_ACCESS_KEY": PASSWORD,
    "WEBDAV_PASSWORD": PASSWORD,
    "REDISCLI_AUTH": PASSWORD,
}
URLS = {
    "s3": "s3://bucket/prefix?endpoint=http://127.0.0.1:{}&region=us-east-1&mode=write",
    "webdav": "webdav://me@127.0.0.1:{}/there?mode=write",
    "redis": "redis://127.0.0.1:{}/0?mode=write",
}
NAME = "v1/packs/nightly"
ENTRY = f"v1/3.9.0/AA/{'A' * 52}"
HTTP = BEHAVIOURS | {
    "401": says("401 Unauthorized"),
    "403 for a quota": says("403 Forbidden", b"<Error><Code>QuotaExceeded</Code></Error>"),
    "409": says("409 Conflict", b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
    "413": says("413 Payload Too Large"),
    "507": says("507 Insufficient Storage"),
    "redirects to a closed port": says("302 Found", Location="http://127.0.0.1:1/x"),
}
KINDS = {
    "hangs": ("timeout", "timeout", "timeout"),
    "drips": ("timeout", "timeout", "timeout"),
    "drips headers": ("timeout", "timeout", "timeout"),
    "cuts in the middle": ("bad-answer", "bad-answer", "bad-answer"),
    "closes": ("unreachable", "unreachable", "unreachable"),
    "sends 400 MB": ("too-large", "bad-answer", "bad-answer"),
    "403 of 400 MB": ("bad-answer", "bad-answer", "bad-answer"),
    "sends without end": ("bad-answer", "bad-answer", "bad-answer"),
    "sends another thing": (None, None, "bad-answer"),
    "sends nothing": (None, None, "bad-answer"),
    "401": ("refused", "refused", "refused"),
    "403": ("refused", "refused", "refused"),
    "403 for a quota": ("full", "full", "full"),
    "404": (None, "misconfigured", None),
    "409": ("bad-answer", None, "bad-answer"),
    "412": ("bad-answer", None, "bad-answer"),
    "413": ("too-large", "too-large", "too-large"),
    "429": ("rate-limited", "rate-limited", "rate-limited"),
    "500": ("server", "server", "server"),
    "503": (None, None, None),
    "507": ("full", "full", "full"),
    "redirects to itself": (None, "bad-answer", None),
    "redirects to a closed port": (None, "bad-answer", None),
    "no HTTP": ("unreachable", "unreachable", "unreachable"),
}
"""The kinds of failure of a get, a put and a list; None where they differ by service, or where nothing fails."""


@pytest.fixture(autouse=True)
def all_is_logged(caplog):
    caplog.set_level(logging.DEBUG, "gpucache")


def opened(kind, port, patience=PATIENCE):
    return open_remote(RemoteUrl.parse(URLS[kind].format(port)), CREDENTIALS, patience)


def get(remote, limit_bytes=2**20):
    with remote.get(NAME, limit_bytes) as file:
        return file.read()


def outcome(act) -> str | None:
    """The kind of failure with which an act ends; ``not-there`` is none, nor is an end without one."""
    began = time.monotonic()
    try:
        act()
        kind = None
    except NotThere:
        kind = None
    except RemoteError as error:
        kind = error.kind
        assert_shown(f"{error}{error!r}{error.hint}{pickle.loads(pickle.dumps(error))}")
    # The server would go on for `PATIENCE_S`; the rest is for a busy machine, which starts processes in seconds.
    assert time.monotonic() - began < PATIENCE_S / 4
    return kind


def assert_shown(text: str) -> None:
    assert SECRET not in text
    assert PASSWORD not in text
    assert not any(letter in text for letter in "\x1b\x07\n")


@pytest.mark.parametrize("kind", ["s3", "webdav"])
@pytest.mark.parametrize("behaviour", HTTP)
def test_each_request_ends_by_the_limit_with_its_kind_and_no_secret(
    behaviour, kind, tmp_path, caplog
):
    content = tmp_path / "content"
    content.write_bytes(b"12345")
    acts = (get, lambda of: of.put_new(ENTRY, str(content)), lambda of: list(of.list("v1/packs/")))
    with bad_server(HTTP[behaviour]) as server:
        remote = opened(kind, server.port)
        for expected, act in zip(KINDS[behaviour], acts, strict=True):
            found = outcome(partial(act, remote))
            if found == "timeout" and expected not in (None, "timeout"):
                # A busy machine takes longer than the limit.
                found = outcome(partial(act, opened(kind, server.port, SLOW)))
            assert expected in (None, found)
        assert server.requests
    assert KINDS.keys() == HTTP.keys()
    for record in caplog.records:
        text = record.getMessage()
        assert not any(letter in text for letter in "\x1b\x07\n")
        assert len(text) < 300
        assert PASSWORD not in text


def test_what_a_server_says_is_at_debug_level_only(caplog):
    said = f"<Error><Code>AccessDenied</Code><Message>{ESCAPES}said</Message></Error>"
    with bad_server(says("403 Forbidden", said.encode())) as server:
        with pytest.raises(RemoteError):
            opened("s3", server.port, SLOW).put_new(ENTRY, "/etc/hostname")
    (record,) = [record for record in caplog.records if "opendal" in record.getMessage()]
    assert record.levelno == logging.DEBUG
    assert "said" in record.getMessage()
    assert len(record.getMessage()) <= 220


def replies(data: bytes, then=None):
    def behave(connection, over):
        connection.sendall(data)
        if then is not None:
            then(connection, over)

    return behave


def _drips(connection, over):
    while not over.wait(0.2):
        connection.sendall(b"x")


def _endless(connection, over):
    while not over.is_set():
        connection.sendall(b"x" * 65536)


MEASURED = """
import json, resource, sys
from pathlib import Path
from gpucache.remote.errors import RemoteError
from gpucache.remote.opening import open_remote
from gpucache.remote.remote import Patience
from gpucache.remote.url import RemoteUrl
url, act = sys.argv[1:]
remote = open_remote(RemoteUrl.parse(url), {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, Patience(30, 30))
try:
    if act == "get":
        with remote.get("v1/packs/a", 2**20) as file:
            file.read()
    elif act == "put":
        remote.put_new("v1/packs/a", "/etc/hostname")
    else:
        list(remote.list("v1/packs/"))
    kind = None
except RemoteError as error:
    kind = error.kind
del remote
lines = Path("/proc/self/status").read_text().splitlines()
(here_kb,) = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]  # getrusage's has the starter's too
print(json.dumps([kind, here_kb, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


@pytest.mark.parametrize("act", ["get", "put", "list"])
@pytest.mark.parametrize("kind", ["s3", "webdav"])
@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
def test_400_mb_take_little_memory_here_and_in_the_process_that_asks(status, kind, act, python):
    with bad_server(floods_as(status)) as server:
        done = python(MEASURED, URLS[kind].format(server.port), act)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    _, here_kb, there_kb = json.loads(done.stdout)
    assert here_kb < 100 * 1024
    assert there_kb < 250 * 1024


@pytest.mark.parametrize(
    ("act", "begins"),
    [("get", b"$419430400\r\n"), ("list", b"*100000000\r\n"), ("put", b"")],
    ids=["get", "list", "put"],
)
def test_a_redis_without_end_takes_little_memory(begins, act, python):
    with bad_server(replies(begins, _endless), end=b"\r\n") as server:
        done = python(
            MEASURED.replace("Patience(30, 30)", "Patience(3, 3)"),
            URLS["redis"].format(server.port),
            act,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    kind, here_kb, there_kb = json.loads(done.stdout)
    assert kind in ("bad-answer", "timeout")
    assert here_kb < 100 * 1024
    assert there_kb < 250 * 1024


def test_a_closed_port_is_told_at_once_by_each_kind_of_remote():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for kind in URLS:
        began = time.monotonic()
        with pytest.raises(RemoteError) as refused:
            get(opened(kind, port, SLOW))
        assert refused.value.kind == "unreachable"
        assert time.monotonic() - began < PATIENCE_S / 2


def test_a_host_that_no_name_service_knows_is_unreachable():
    for url in ("redis://no-such-host.invalid/0", "webdav://no-such-host.invalid/x"):
        with pytest.raises(RemoteError) as refused:
            get(open_remote(RemoteUrl.parse(url), {}, SLOW))
        assert refused.value.kind == "unreachable"


def test_credentials_do_not_follow_a_redirect_to_another_server():
    with bad_server(says("200 OK", b"elsewhere")) as other:
        away = says("307 Temporary Redirect", Location=f"http://127.0.0.1:{other.port}/x")
        with bad_server(away) as server:
            for kind in ("s3", "webdav"):
                outcome(lambda kind=kind: get(opened(kind, server.port)))
            assert all(b"uthorization" in request for request in server.requests)
        assert not any(b"uthorization" in request for request in other.requests)


def test_a_request_after_one_that_was_killed_is_as_good_as_the_first(tmp_path):
    """Each has a process of its own then."""
    served = threading.Event()
    hang = HTTP["hangs"]
    answer = says("200 OK", b"12345")

    def first_hangs(connection, over):
        (answer if served.is_set() else hang)(connection, over)

    with bad_server(first_hangs) as server:
        remote = opened("s3", server.port)
        assert outcome(lambda: get(remote)) == "timeout"
        served.set()
        assert get(opened("s3", server.port, SLOW)) == b"12345"
        for _ in range(10):  # a busy machine may take longer than the limit
            if outcome(lambda: get(remote)) is None:
                break
        else:
            pytest.fail("never answered again")


def test_a_request_in_a_forked_child_works(s3_server, tmp_path):
    """What opendal gives would wait for ever there."""
    path = tmp_path / "content"
    path.write_bytes(b"12345")
    remote = open_remote(RemoteUrl.parse(s3_server.url("forked", "write")), s3_server.writer, SLOW)
    remote.put_new(NAME, str(path), replace=True)
    assert get(remote) == b"12345"
    child = os.fork()
    if child == 0:
        os._exit(0 if get(remote) == b"12345" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert get(remote) == b"12345"


def test_two_conditional_writes_at_once_are_tried_again(tmp_path):
    """409 says that another one is being done; the documents of S3 ask for another try."""
    answers = iter(["409 Conflict", "404 Not Found", "409 Conflict", "404 Not Found", "200 OK"])

    def behave(connection, over):
        says(next(answers))(connection, over)

    path = tmp_path / "content"
    path.write_bytes(b"12345")
    with bad_server(behave) as server:
        assert opened("s3", server.port, SLOW).put_new(ENTRY, str(path)) is True
    verbs = [request.split(b" ")[0] for request in server.requests]
    assert verbs == [b"PUT", b"HEAD", b"PUT", b"HEAD", b"PUT"]


def test_a_server_that_ignores_the_condition_replaces_no_pack_unasked(tmp_path):
    """And the check tells; to replace an entry by the same one does no harm."""
    there: dict[bytes, bytes] = {}

    def behave(connection, over):
        verb, path, _ = server.requests[-1].split(b" ", 2)
        if verb == b"PUT":
            there[path] = b"gpucache remote check\n"
        status = "200 OK" if path in there or b"list-type" in path else "404 Not Found"
        body = there.get(path, b"") if verb == b"GET" else b""
        if b"list-type" in path:
            body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        says(status, body)(connection, over)

    content = tmp_path / "content"
    content.write_bytes(b"12345")
    with bad_server(behave) as server:
        remote = opened("s3", server.port, SLOW)
        assert [remote.put_new(NAME, str(content)) for _ in range(2)] == [True, False]
        assert [remote.put_new(ENTRY, str(content)) for _ in range(2)] == [True, True]
        outcomes = {step.step: (step.outcome, step.fact) for step in remote.check().steps}
    assert outcomes["put"][0] == "works"
    assert outcomes["put-if-absent"][0] == "cannot"
    assert "ignores the condition" in outcomes["put-if-absent"][1]


def test_who_may_write_and_not_look_can_put_a_pack(tmp_path):
    """A policy of S3 with PutObject alone answers a look with 403."""
    content = tmp_path / "content"
    content.write_bytes(b"12345")

    def behave(connection, over):
        is_look = server.requests[-1].startswith(b"HEAD")
        says("403 Forbidden" if is_look else "200 OK")(connection, over)

    with bad_server(behave) as server:
        assert opened("s3", server.port, SLOW).put_new(NAME, str(content)) is True


@pytest.mark.parametrize("kind", URLS)
def test_a_large_file_may_be_taken_slowly(kind, tmp_path):
    """Nothing comes back meanwhile: a limit without a byte would forbid each pack that takes longer."""
    content = tmp_path / "content"
    content.write_bytes(bytes(2**22))
    is_slow = Patience(in_all_s=PATIENCE_S, silent_s=1.0)

    done = replies(b"+OK\r\n") if kind == "redis" else says("201 Created")

    def behave(connection, over):
        verb = server.requests[-1].split(b" ")[0]
        if kind != "redis" and verb != b"PUT":  # of WebDAV a directory is looked for, and made
            says("201 Created" if verb == b"MKCOL" else "404 Not Found")(connection, over)
            return
        taken = 0
        while taken < 2**22 - 2**16:  # the beginning came with the request
            taken += len(connection.recv(2**16))
        over.wait(2.0)
        done(connection, over)

    with bad_server(behave, end=b"\r\n" if kind == "redis" else b"\r\n\r\n") as server:
        url = RemoteUrl.parse(URLS[kind].format(server.port))
        remote = open_remote(url, {} if kind == "redis" else CREDENTIALS, is_slow)
        assert remote.put_new(NAME, str(content), replace=True) is True


# ---- Redis


REDIS = {
    "hangs": (HTTP["hangs"], "timeout"),
    "drips a line": (_drips, "timeout"),
    "drips a value": (replies(b"$1000\r\n", _drips), "timeout"),
    # Where the process that asks is full: a busy machine may need longer for that than the limit.
    "has a line without end": (_endless, "bad-answer", "timeout"),
    "announces 400 MB": (replies(b"$419430400\r\n", _endless), "bad-answer", "timeout"),
    "announces less than nothing": (replies(b"$-5\r\n"), "bad-answer", "unreachable"),
    "announces what Python reads for hours": (replies(b"$" + b"9" * 4000 + b"\r\n"), "bad-answer"),
    "nests": (replies(b"*1\r\n" * 1000), "bad-answer"),
    "speaks HTTP": (says("400 Bad Request"), "bad-answer"),
    "gives a number": (replies(b":5\r\n"), "bad-answer"),
    "gives more than was asked for": (replies(b"$200000\r\n" + b"x" * 200_002), "bad-answer"),
    "closes in a value": (replies(b"$1000\r\nabc"), "unreachable"),
    "wants a password": (replies(b"-NOAUTH " + SECRET.encode() + b"\x1b[2J\r\n"), "refused"),
    "is full": (replies(b"-OOM command not allowed\r\n"), "full"),
    "starts": (replies(b"-LOADING Redis is loading\r\n"), "server"),
    "is one of a cluster": (replies(b"-MOVED 3999 127.0.0.1:6381\r\n"), "unsupported"),
}


@pytest.mark.parametrize("behaviour", REDIS)
def test_a_bad_redis_ends_by_the_limit_with_its_kind(behaviour, caplog):
    behave, *expected = REDIS[behaviour]
    with bad_server(behave, end=b"\r\n") as server:
        url = RemoteUrl.parse(URLS["redis"].format(server.port))
        remote = open_remote(url, {}, PATIENCE)
        assert outcome(lambda: get(remote)) in expected
        outcome(lambda: list(remote.list("v1/")))
        outcome(lambda: remote.put_new(NAME, "/etc/hostname"))
    for record in caplog.records:
        assert "\x1b" not in record.getMessage()


def test_a_scan_without_end_is_ended_by_the_limit():
    page = b"*2\r\n$1\r\n7\r\n*0\r\n"

    def behave(connection, over):
        connection.sendall(page)
        while connection.recv(65536):
            connection.sendall(page)

    with bad_server(behave, end=b"\r\n") as server:
        remote = open_remote(RemoteUrl.parse(URLS["redis"].format(server.port)), {}, PATIENCE)
        assert outcome(lambda: list(remote.list("v1/"))) == "timeout"


@pytest.mark.servers
def test_a_redis_with_a_password_is_reached_by_the_variable_alone(tmp_path):
    with redis(tmp_path, "--requirepass", "word-of-redis") as server:
        url = RemoteUrl.parse(server.url("x", "write"))
        works = open_remote(url, {"REDISCLI_AUTH": "word-of-redis"}, SLOW)
        assert works.check().works
        for environ in ({}, {"REDISCLI_AUTH": "wrong"}):
            with pytest.raises(RemoteError) as refused:
                get(open_remote(url, environ, SLOW))
            assert refused.value.kind == "refused"


@pytest.mark.servers
def test_a_database_that_a_redis_does_not_have_is_told(redis_server):
    url = redis_server.url("x", "write").replace("/0?", "/999?")
    with pytest.raises(RemoteError) as failed:
        get(open_remote(RemoteUrl.parse(url), {}, SLOW))
    assert failed.value.kind == "misconfigured"


@pytest.mark.servers
def test_a_redis_that_is_full_says_so(tmp_path):
    with redis(tmp_path, "--maxmemory", "100kb", "--maxmemory-policy", "noeviction") as server:
        remote = open_remote(RemoteUrl.parse(server.url("x", "write")), {}, SLOW)
        with pytest.raises(RemoteError) as refused:
            remote.put_new(NAME, "/etc/hostname")
        assert refused.value.kind == "full"


@pytest.mark.servers
def test_a_connection_that_the_server_has_closed_meanwhile_is_made_anew(tmp_path):
    content = tmp_path / "content"
    content.write_bytes(b"12345")
    with redis(tmp_path) as server:
        remote = open_remote(RemoteUrl.parse(server.url("x", "write")), {}, SLOW)
        assert remote.put_new(NAME, str(content)) is True
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            other.sendall(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
            assert other.recv(100).startswith(b":")
        assert get(remote) == b"12345"


# ---- TLS


TLS = {
    "rediss": "rediss://localhost:{}/0?mode=write",
    "webdav": "webdav+https://localhost:{}/open/x?mode=write",
}


@pytest.mark.servers
@pytest.mark.parametrize("kind", TLS)
def test_a_certificate_is_believed_of_its_host_only_where_its_authority_is(
    kind, tmp_path, monkeypatch
):
    own = certificate(tmp_path / "tls")
    with ExitStack() as stack:
        if kind == "rediss":
            port = stack.enter_context(redis(tmp_path, certificate=own)).port
        else:
            host = stack.enter_context(nginx(tmp_path, certificate=own)).host
            port = int(host.rpartition(":")[2])
        url = RemoteUrl.parse(TLS[kind].format(port))
        with pytest.raises(RemoteError) as refused:
            get(open_remote(url, {}, SLOW))
        assert refused.value.kind == "unreachable"
        assert "SSL_CERT_FILE" in refused.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(own.authority))
        assert open_remote(url, os.environ, SLOW).check().works
        another = RemoteUrl.parse(TLS[kind].format(port).replace("localhost", "127.0.0.1"))
        with pytest.raises(RemoteError) as refused:
            get(open_remote(another, os.environ, SLOW))
        assert refused.value.kind == "unreachable", "it is another host's certificate"
        if kind == "rediss":
            bare = RemoteUrl.parse(f"redis://localhost:{port}/0")
            assert outcome(lambda: get(open_remote(bare, os.environ, SLOW))) is not None


# ---- full disks


def test_a_full_disk_under_a_directory_or_a_server_is_told(mount, tmp_path):
    """And what was begun there is gone."""
    content = tmp_path / "content"
    content.write_bytes(b"x" * 2**20)
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "none")
    (disk / "open").mkdir()
    remote = open_remote(RemoteUrl.parse(f"file://{disk}/open?mode=write"), {}, SLOW)
    with pytest.raises(RemoteError) as refused:
        remote.put_new(NAME, str(content))
    assert refused.value.kind == "full"
    assert os.strerror(errno.ENOSPC) in str(refused.value)
    assert [path for path in disk.rglob("*") if path.is_file()] == []


@pytest.mark.servers
def test_a_webdav_server_on_a_full_disk_has_failed(mount, tmp_path):
    content = tmp_path / "content"
    content.write_bytes(b"x" * 2**20)
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "none")
    with nginx(tmp_path, disk) as server:
        remote = open_remote(RemoteUrl.parse(server.url("x", "write")), {}, SLOW)
        with pytest.raises(RemoteError) as refused:
            remote.put_new(NAME, str(content))
        assert refused.value.kind in ("server", "full")
