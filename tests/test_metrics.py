"""`gpucache metrics`: each number is what was counted, no counter ever falls, and Prometheus' own programs read it."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from support.processes import PATIENCE_S
from support.servers import prometheus, promtool
from support.snippets import snippets

from gpucache import __version__
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.store import counter_fold, counts, stats
from gpucache.store.counter_files import host_label
from gpucache.store.last_findings import note_findings
from gpucache.store.size import set_total
from gpucache.store.stats import Stats
from gpucache.watch.metrics import exposition
from gpucache.watch.metrics.families import families, names
from gpucache.watch.metrics.serving import Address, MetricsServer

HERE = Path(__file__).parents[1]
Series = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
def root(root: Path) -> Path:
    """A root with the device directories 0 and 1, in which nothing was counted yet."""
    for part in ("gpucache/v1/stats", "gpucache/v1/tmp", "triton/0", "triton/1"):
        (root / part).mkdir(parents=True, mode=0o700)
    for path in (root, root / "gpucache", root / "gpucache/v1", root / "triton"):
        path.chmod(0o700)
    return root


def count(root: Path, device: str = "0", **amounts: float) -> None:
    counters = Stats(paths.ours(str(root), "stats"), device)
    for name, amount in amounts.items():
        counters.add(name, amount)
    counters.flush()


def series(
    text: str, parse: Callable[[str], object] = text_string_to_metric_families
) -> dict[Series, float]:
    """The numbers in a text, by name and labels; each series stands there once."""
    found: dict[Series, float] = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def seen(root: Path, hosts: str = "own") -> dict[Series, float]:
    return series(exposition.text(families(str(root), {}, hosts)).decode())


def of(found: Mapping[Series, float], name: str, **labels: str) -> float:
    """The sum of the series of this name that have these labels."""
    wanted = labels.items()
    values = [value for (one, has), value in found.items() if one == name and wanted <= has]
    assert values, (name, labels)
    return sum(values)


class TestNumbers:
    def test_each_counter_is_in_one_metric_by_host_directory_and_level(self, root):
        for number, name in enumerate((*counts.COUNTERS, *counts.SECONDS), 1):
            count(root, "1", **{name: 1000 * number})
        found = seen(root)
        raw = stats.totals(str(root))["1"]
        expected = {
            ("hits", "own"): raw["hits"],
            ("hits", "store"): max(
                0, raw["shared_hits"] - raw["fallback_hits"] - raw["remote_hits"]
            ),
            ("hits", "fallback"): raw["fallback_hits"],
            ("hits", "remote"): raw["remote_hits"],
            ("misses", "own"): raw["shared_hits"] + raw["misses"],
            ("misses", "store"): raw["misses"] + raw["fallback_hits"] + raw["remote_hits"],
            ("misses", "fallback"): raw["fallback_misses"],
            ("misses", "remote"): raw["remote_misses"],
            ("level_errors", "fallback"): raw["fallback_errors"],
            ("level_errors", "remote"): raw["remote_errors"] + raw["remote_bad"],
            ("level_seconds", "fallback"): raw["fallback_s"],
            ("level_seconds", "remote"): raw["remote_s"],
            ("level_bytes", "fallback"): raw["fallback_bytes"],
            ("level_bytes", "remote"): raw["remote_bytes"],
        }
        here = {"root": str(root), "host": host_label()}
        for (name, level), value in expected.items():
            labels = {**here, "directory": "1", "level": level}
            assert of(found, f"gpucache_{name}_total", **labels) == value, (name, level)
        for name, counter in {
            "compiles": "misses",
            "compile_seconds": "compiled_s",
            "saved_seconds": "saved_s",
            "waits": "waits",
            "wait_seconds": "waited_s",
            "degraded": "errors_degraded",
            "refused": "remote_bad",
            "evictions": "evicted",
            "evicted_bytes": "evicted_bytes",
        }.items():
            labels = {**here, "directory": "1"}
            assert of(found, f"gpucache_{name}_total", **labels) == raw[counter], name
        for name, counter in {
            "pulled_entries": "pulled",
            "pulled_bytes": "pulled_bytes",
            "pull_seconds": "pull_s",
            "pushed_entries": "pushed",
            "push_errors": "push_errors",
            "pushed_bytes": "pushed_bytes",
            "push_seconds": "push_s",
        }.items():
            assert of(found, f"gpucache_{name}_total", **here) == raw[counter], name

    def test_what_was_pulled_for_no_device_is_the_hosts(self, root):
        count(root, stats.REMOTE, pulled=3, pulled_bytes=9)
        found = seen(root)
        assert of(found, "gpucache_pulled_entries_total", host=host_label()) == 3
        assert not [has for _, has in found if ("directory", "remote") in has]

    def test_a_directory_in_which_nothing_was_counted_is_there_with_zeros(self, root):
        """Prometheus sees no increase of a counter that begins at 5."""
        assert of(seen(root), "gpucache_hits_total", directory="1", level="own") == 0

    def test_all_directories_outside_the_root_are_one(self, root):
        count(root, "/job/1", hits=3)
        count(root, "/job/2", hits=4)
        assert of(seen(root), "gpucache_hits_total", directory="elsewhere") == 7

    def test_the_store_is_told_by_its_kept_size_and_is_not_walked(self, root, monkeypatch):
        set_total(str(root), 12_345)
        looked_at: list[str] = []
        for name in ("scandir", "listdir", "open"):
            real = getattr(os, name)

            def spied(path, *words, real=real, **more):
                looked_at.append(str(path))
                return real(path, *words, **more)

            monkeypatch.setattr(os, name, spied)
        found = series(exposition.text(families(str(root), {"GPUCACHE_MAX_SIZE": "1MB"})).decode())
        monkeypatch.undo()
        assert of(found, "gpucache_store_bytes", root=str(root)) == 12_345
        assert of(found, "gpucache_store_limit_bytes", root=str(root)) == 1_000_000
        assert [path for path in looked_at if "/store" in path] == []
        assert any(path.endswith("/stats/size") for path in looked_at)

    def test_a_store_that_nobody_counted_or_limits_has_no_number(self, root):
        found = exposition.text(families(str(root), {"GPUCACHE_MAX_SIZE": "0"})).decode()
        assert "gpucache_store_" not in found

    def test_what_doctor_and_verify_have_found_is_there_by_code_with_its_time(self, root):
        before = time.time()
        finding = Finding("digest", "error", "subject", "fact", "fix")
        note_findings(str(root), "verify", [finding, finding])
        note_findings(str(root), "doctor", [])
        found = seen(root)
        labels = {"command": "verify", "level": "error", "code": "digest"}
        assert of(found, "gpucache_findings", **labels) == 2
        for command in ("doctor", "verify"):
            at = of(found, "gpucache_examined_timestamp_seconds", command=command)
            assert before <= at <= time.time()

    def test_it_says_which_gpucache_tells(self, root):
        assert of(seen(root), "gpucache_build_info", version=__version__) == 1

    @pytest.mark.parametrize("hosts", ["own", "all"])
    def test_of_other_hosts_nothing_is_told_unless_all_are_asked_for(
        self, root, hosts, monkeypatch
    ):
        with monkeypatch.context() as patch:
            patch.setattr(stats, "host_label", lambda: "node7")
            count(root, hits=7)
        count(root, hits=1)
        found = seen(root, hosts)
        told = {dict(has).get("host") for _, has in found} - {None}
        assert told == {host_label()} | ({"node7"} if hosts == "all" else set())
        assert of(found, "gpucache_hits_total", level="own") == (8 if hosts == "all" else 1)


class TestHostileNames:
    @pytest.mark.parametrize(
        "name", ['a"} 1\nx{b="', "\x1b[2Jevil", "\ud800\udcff", "back\\slash", "{}", "\u202e", ""]
    )
    def test_a_host_of_any_name_leaves_the_text_whole(self, root, monkeypatch, name):
        monkeypatch.setattr(stats, "host_label", lambda: name)
        count(root, hits=3)
        text = exposition.text(families(str(root), {}, "all")).decode()
        assert of(series(text), "gpucache_hits_total", level="own") == 3
        assert [letter for letter in text if not letter.isprintable()] == ["\n"] * text.count("\n")

    def test_two_names_that_look_alike_are_one_series(self, root, monkeypatch):
        """Of two Prometheus would refuse the whole scrape."""
        for name in ("a\x1b", "a\\x1b"):
            with monkeypatch.context() as patch:
                patch.setattr(stats, "host_label", lambda name=name: name)
                count(root, hits=1)
        found = seen(root, "all")  # asserts that each is there once
        assert of(found, "gpucache_hits_total", host="a\\x1b", level="own") == 2

    def test_a_thousand_directories_of_any_name_are_one(self, root):
        for number in range(1000):
            (root / f"triton/x{number}").mkdir()
        assert len({dict(has).get("directory") for _, has in seen(root)}) <= 4


COUNTING = """
import sys
from gpucache.store.stats import Stats
counters = Stats(sys.argv[1], sys.argv[2])
while True:
    counters.add("hits", 3)
    counters.brought("remote_hits")
    counters.add("remote_s", 0.0123, now=True)
    counters.add_shared()
    counters.add("saved_s", 0.1, now=True)
"""


class TestNeverLess:
    @given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8), st.randoms())
    def test_a_sum_of_seconds_is_the_same_in_whatever_order_it_was_folded(self, values, order):
        """Else the last bit of a float made a counter fall, and Prometheus would add all of it once more."""
        where = counts.Where("h", "0")

        def summed(some: list[float]) -> counts.Sums:
            sums: counts.Sums = {}
            for value in some:
                counts.add(sums, where, {"saved_s": value})
            return sums

        whole = summed(values)
        order.shuffle(values)
        half = len(values) // 2
        folded = summed(values[:half])
        counts.add_all(folded, summed(values[half:]))
        assert folded == whole

    @pytest.mark.kills
    def test_beside_processes_that_are_killed_and_folds_no_counter_falls(self, root):
        directory = paths.ours(str(root), "stats")
        before = seen(root)
        looks = 0
        for _ in range(6):
            writers = [
                subprocess.Popen([sys.executable, "-c", COUNTING, directory, str(number)])
                for number in range(2)
            ]
            try:
                until = time.monotonic() + PATIENCE_S
                start = of(before, "gpucache_hits_total", level="own")
                # Some looks beside the writers, more beside the fold that follows.
                more = 0
                while more < 5:
                    assert time.monotonic() < until
                    now = seen(root)
                    assert_no_less(before, now)
                    more += of(now, "gpucache_hits_total", level="own") > start
                    before, looks = now, looks + 1
            finally:
                for writer in writers:
                    writer.kill()
                    writer.wait()
            folding = threading.Thread(target=counter_fold.fold, args=(str(root),))
            folding.start()
            while folding.is_alive() or looks % 5:
                now = seen(root)
                assert_no_less(before, now)
                before, looks = now, looks + 1
            folding.join()
        (name,) = [name for name in os.listdir(directory) if name.endswith(".folded")]
        assert name
        assert_no_less(before, seen(root))
        assert of(before, "gpucache_saved_seconds_total") > 0

    def test_after_hours_have_gone_into_one_sum_nothing_is_less(self, root, monkeypatch):
        hour = counts.this_hour()
        for ago in (400, 20, 0):
            with monkeypatch.context() as patch:
                patch.setattr(stats, "this_hour", lambda ago=ago: hour - ago)
                count(root, hits=5, saved_s=0.1)
                count(root, "/outside", hits=5)
        for counters in stats._all:
            counters.leave()
        before = seen(root)
        monkeypatch.setattr(counter_fold, "_SUMS_BYTES", 110 + len(host_label()))
        counter_fold.fold(str(root))
        assert {where.hour for where in stats.sums_of(str(root))} == {counts.ANY_TIME}
        assert_no_less(before, seen(root))

    def test_a_host_that_was_silent_for_14_days_is_others_and_begins_anew(self, root, monkeypatch):
        """To Prometheus that is a restart of its counters, of which it loses nothing."""
        hour = counts.this_hour()
        with monkeypatch.context() as patch:
            patch.setattr(stats, "host_label", lambda: "node7")
            patch.setattr(stats, "this_hour", lambda: hour - 400)
            count(root, hits=5)
        count(root, hits=1)
        for counters in stats._all:
            counters.leave()
        monkeypatch.setattr(counter_fold, "_SUMS_BYTES", 50)
        counter_fold.fold(str(root))
        found = seen(root, "all")
        assert of(found, "gpucache_hits_total", host="others", level="own") == 5
        assert of(found, "gpucache_hits_total", host=host_label(), level="own") == 1
        assert "node7" not in str(found)


def assert_no_less(before: Mapping[Series, float], now: Mapping[Series, float]) -> None:
    """Check that each counter is still there, and has no less."""
    for key, value in before.items():
        if key[0].endswith("_total"):
            assert now[key] >= value, key


class TestCommand:
    def test_stdout_is_prometheus_text(self, here, root):
        count(root, hits=5)
        done = here("metrics", "--root", root)
        assert (done.code, done.err) == (0, "")
        assert of(series(done.out), "gpucache_hits_total", directory="0", level="own") == 5
        assert "# EOF" not in done.out
        assert done.out.endswith("\n")
        assert not done.out.endswith("\n\n")

    def test_promtool_has_nothing_to_say_of_names_units_and_help(self, here, root):
        note_findings(str(root), "verify", [Finding("digest", "error", "s", "f", "x")])
        set_total(str(root), 9)
        count(root, hits=5)
        done = here("metrics", "--all-hosts", "--root", root)
        checked = promtool("check", "metrics", text=done.out)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

    def test_without_the_library_it_says_which_extra_to_install(self, here, root, monkeypatch):
        monkeypatch.setattr(exposition, "find_spec", lambda name: None)
        done = here("metrics", "--root", root)
        assert (done.code, done.out) == (1, "")
        assert "pip install 'gpucache-devices[watch]'" in done.err

    def test_a_root_that_is_not_there_is_an_error(self, here, tmp_path):
        done = here("metrics", "--root", tmp_path / "none")
        assert (done.code, done.out) == (1, "")

    def test_a_file_is_whole_and_for_everybody_to_read(self, here, root, tmp_path):
        file = tmp_path / "gpucache.prom"
        old = os.umask(0o077)
        try:
            assert here("metrics", "--textfile", file, "--root", root).code == 0
        finally:
            os.umask(old)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        assert of(series(file.read_text()), "gpucache_build_info") == 1
        assert os.listdir(tmp_path / "..") is not None
        assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []

    def test_until_it_is_whole_node_exporter_reads_the_one_before(
        self, here, root, tmp_path, monkeypatch
    ):
        file = tmp_path / "gpucache.prom"
        file.write_text("before 1\n")
        there: list[set[str]] = []
        real = os.rename

        def rename(old, new, *words, **more):
            if str(new) == str(file):
                assert file.read_text() == "before 1\n"
                there.append({name for name in os.listdir(tmp_path) if name.endswith(".prom")})
            return real(old, new, *words, **more)

        monkeypatch.setattr(os, "rename", rename)
        assert here("metrics", "--textfile", file, "--root", root).code == 0
        assert there == [{"gpucache.prom"}]
        assert file.read_text().startswith("# HELP")

    def test_where_it_cannot_be_written_the_one_before_stays(self, here, root, tmp_path):
        done = here("metrics", "--textfile", tmp_path / "none/gpucache.prom", "--root", root)
        assert done.code == 1
        assert "name a file in a directory that is there" in done.err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--textfile", "x.txt"), "files that end in .prom, not 'x.txt'"),
            (("--serve", "nowhere"), "'nowhere' is not an address like 9400"),
            (("--serve", "127.0.0.1:99999"), "is not an address like 9400"),
            (
                ("--serve", "9400", "--textfile", "x.prom"),
                "--textfile and --serve exclude each other",
            ),
        ],
    )
    def test_a_wrong_use_is_told(self, here, root, words, said):
        done = here("metrics", *words, "--root", root)
        assert (done.code, done.out) == (2, "")
        assert said in done.err


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


class TestDocuments:
    def test_the_lines_of_the_page_do_what_it_says(self, here, root, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GPUCACHE_DIR", str(root))
        lines = []
        for snippet in snippets(HERE / "docs/prometheus.md"):
            if snippet.language == "sh" and snippet.run_by:
                lines += snippet.lines
        assert len(lines) == 3
        for line in lines:
            assert here(*line.split()[1:]).code == 0, line
        assert (tmp_path / "gpucache.prom").exists()

    def test_promtool_takes_the_scrape_of_the_page(self, tmp_path):
        (scrape,) = [one for one in snippets(HERE / "docs/prometheus.md") if one.language == "yaml"]
        (tmp_path / "prometheus.yml").write_text(scrape.text)
        checked = promtool("check", "config", tmp_path / "prometheus.yml")
        assert checked.returncode == 0, checked.stderr

    def test_board_alerts_and_page_name_no_metric_that_is_not_there(self):
        known = set(names())
        for file in (
            "docs/grafana.json",
            "docs/examples/gpucache-alerts.yml",
            "docs/prometheus.md",
        ):
            text = (HERE / file).read_text()
            told = set(re.findall(r"\bgpucache_[a-z_]+\b", text))
            assert told <= known, (file, told - known)
            assert told

    def test_the_page_tells_of_every_metric(self):
        text = (HERE / "docs/prometheus.md").read_text()
        assert [name for name in names() if f"`{name}`" not in text] == []

    def test_promtool_takes_the_alerts(self):
        checked = promtool("check", "rules", HERE / "docs/examples/gpucache-alerts.yml")
        assert checked.returncode == 0, checked.stderr
