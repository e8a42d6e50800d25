"""What `gpucache metrics --serve` answers, to whom, and to a real Prometheus."""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from support.metrics import count, counted_root, of, series
from support.processes import PATIENCE_S
from support.servers import prometheus

from gpucache.store import stats
from gpucache.watch.metrics.address import Address
from gpucache.watch.metrics.families import families
from gpucache.watch.metrics.serving import MetricsServer

HERE = Path(__file__).parents[1]


@pytest.fixture
def root(root: Path) -> Path:
    return counted_root(root)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9400", ("127.0.0.1", 9400)),
        (":9400", ("127.0.0.1", 9400)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9400", ("::1", 9400)),
        ("localhost:1", ("localhost", 1)),
        ("0", ("127.0.0.1", 0)),
    ],
)
def test_an_address_is_this_machine_unless_another_is_named(text, address):
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text", ["", ":", "x", "1.2.3.4", "::1:9400", "a:-1", "a:65536", "a:\u0661"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="is not an address like"):
        Address.parse(text)


@contextmanager
def served(root: Path) -> Iterator[Address]:
    """A server of a root's metrics in this process."""
    server = MetricsServer(Address("127.0.0.1", 0), lambda: families(str(root), {}))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(PATIENCE_S)


def scraped(address: Address, **headers: str) -> tuple[str, bytes, Mapping[str, str]]:
    request = Request(address.url, headers=headers)
    with urlopen(request, timeout=PATIENCE_S) as answer:
        return answer.headers["Content-Type"], answer.read(), answer.headers


def answered(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


class TestServer:
    def test_by_itself_it_answers_in_text_and_looks_anew_each_time(self, root):
        with served(root) as address:
            for hits in (2, 5):
                count(root, hits=hits)
                kind, body, _ = scraped(address)
                assert kind.startswith("text/plain; version=0.0.4")
                found = series(body.decode())
                expected = stats.totals(str(root))["0"]["hits"]
                assert of(found, "gpucache_hits_total", level="own") == expected

    def test_it_speaks_openmetrics_to_whoever_asks_for_it(self, root):
        count(root, hits=5, saved_s=1.5)
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        with served(root) as address:
            kind, body, _ = scraped(address, Accept=accept)
            assert kind.startswith("application/openmetrics-text; version=1.0.0")
            assert body.endswith(b"# EOF\n")
            found = series(body.decode(), parse_openmetrics)
            assert of(found, "gpucache_hits_total", level="own") == 5

    def test_it_compresses_for_whoever_asks_for_it(self, root):
        with served(root) as address:
            _, body, headers = scraped(address, **{"Accept-Encoding": "gzip"})
            assert headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(body).startswith(b"# HELP")

    def test_clients_that_say_nothing_keep_nobody_waiting(self, root):
        silent = []
        with served(root) as address:
            try:
                for _ in range(8):
                    silent.append(socket.create_connection(address, PATIENCE_S))
                assert scraped(address)[1].startswith(b"# HELP")
            finally:
                for one in silent:
                    one.close()

    def test_nonsense_is_answered_and_no_end_of_it(self, root, capfd):
        with served(root) as address:
            for sent in (
                b"\x16\x03\x01\n\n",
                b"GET / HTTP/9.9\r\n\r\n",
                b"POST / HTTP/1.0\r\n\r\n",
                b"",
            ):
                with socket.create_connection(address, PATIENCE_S) as one:
                    one.sendall(sent)
            assert scraped(address)[1].startswith(b"# HELP")
        assert capfd.readouterr().err == ""

    def test_the_command_says_where_it_is_and_ends_by_an_interrupt(self, root):
        command = [sys.executable, "-m", "gpucache", "metrics", "--serve", "0", "--root", root]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                line = process.stderr.readline()
                (url,) = re.findall(r"http://127\.0\.0\.1:\d+/metrics", line)
                with urlopen(url, timeout=PATIENCE_S) as answer:
                    assert b"gpucache_build_info" in answer.read()
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE_S) == 130
                assert "Traceback" not in process.stderr.read()
            finally:
                process.kill()

    def test_of_a_root_that_goes_or_is_unsafe_no_number_is_told(self, root):
        count(root, hits=5)
        away = root.with_name("away")
        command = [sys.executable, "-m", "gpucache", "metrics", "--serve", "0", "--root", root]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                (url,) = re.findall(r"http://127\.0\.0\.1:\d+/metrics", process.stderr.readline())
                assert answered(url)[0] == 200
                root.rename(away)
                assert answered(url) == (503, f"there is no {root}\n")
                assert answered(url)[0] == 503
                root.mkdir(mode=0o700)  # the mount point, without its mount
                assert answered(url)[0] == 503
                root.rmdir()
                away.rename(root)
                assert answered(url)[0] == 200
                root.chmod(0o777)
                code, said = answered(url)
                assert (code, str(root) in said) == (503, True)
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE_S) == 130
                gone, unsafe = process.stderr.read().splitlines()[:2]
                assert gone == f"warning: no metrics now: there is no {root}"
                assert unsafe.startswith(f"warning: no metrics now: {said.strip()}")
            finally:
                process.kill()

    def test_a_port_that_is_taken_is_told_with_the_way_out(self, here, root):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = here("metrics", "--serve", port, "--root", root)
        assert done.code == 1
        said = f"error: could not listen at 127.0.0.1:{port}: Address already in use\n"
        assert done.err == f"{said}hint: name another address or port, or end what listens there\n"


@pytest.mark.servers
def test_a_real_prometheus_scrapes_it_and_takes_the_alerts(root, tmp_path):
    count(root, hits=41, saved_s=2.5)
    with served(root) as address:
        rules = HERE / "docs/examples/gpucache-alerts.yml"
        target = f"{address.host}:{address.port}"
        with prometheus(tmp_path / "prometheus", target, rules) as server:
            hits = 'gpucache_hits_total{directory="0",level="own"}'
            until = time.monotonic() + PATIENCE_S
            while server.value(hits) != 41:
                assert time.monotonic() < until, server.ask("targets")
            count(root, hits=1, errors_degraded=1)
            while server.value(hits) != 42:
                assert time.monotonic() < until
            assert server.value("up") == 1
            assert server.value("sum(gpucache_saved_seconds_total)") == 2.5
            groups = server.ask("rules")["groups"]
            assert [rule["lastError"] for rule in groups[0]["rules"] if rule.get("lastError")] == []
            board = json.loads((HERE / "docs/grafana.json").read_text())
            for expression in expressions(board):
                server.ask("query", query=shown(expression))  # raises where it makes no sense


def expressions(board: object) -> Iterator[str]:
    """Every query of a Grafana board."""
    if isinstance(board, dict):
        if isinstance(board.get("expr"), str):
            yield board["expr"]
        board = list(board.values())
    if isinstance(board, list):
        for part in board:
            yield from expressions(part)


def shown(expression: str) -> str:
    """A query as Grafana asks it, with its variables replaced."""
    for name, value in {
        "$root": ".*",
        "$host": ".*",
        "$__rate_interval": "1m",
        "$__range": "1h",
    }.items():
        expression = expression.replace(name, value)
    return expression
