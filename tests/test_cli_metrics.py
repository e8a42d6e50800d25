"""The command `gpucache metrics`, its page, its board and its alerts."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.metrics import count, counted_root, of, series
from support.servers import promtool
from support.snippets import snippets

from gpucache.findings import Finding
from gpucache.store.last_findings import note_findings
from gpucache.store.size import set_total
from gpucache.watch.metrics import exposition
from gpucache.watch.metrics.families import names

HERE = Path(__file__).parents[1]


@pytest.fixture
def root(root: Path) -> Path:
    return counted_root(root)


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
        assert "pip install prometheus-client jinja2 matplotlib" in done.err

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


WELL = {
    'gpucache_build_info{root="/r",host="n"}': "1x240",
    'gpucache_examined_timestamp_seconds{root="/r",host="n",command="doctor"}': "0x240",
    'gpucache_degraded_total{root="/r",host="n",directory="0"}': "5x240",
    'gpucache_refused_total{root="/r",host="n",directory="0"}': "5x240",
    'gpucache_compiles_total{root="/r",host="n",directory="0"}': "0+1x240",
    'gpucache_hits_total{root="/r",host="n",directory="0",level="own"}': "0+100x240",
    'gpucache_evictions_total{root="/r",host="n",directory="0"}': "0+1x240",
    'gpucache_store_bytes{root="/r"}': "100x240",
    'gpucache_store_limit_bytes{root="/r"}': "100x240",
    'gpucache_findings{root="/r",host="n",command="doctor",level="warning",code="x"}': "3x240",
}
"""A node on which all is well, minute by minute for four hours."""


class TestAlerts:
    @pytest.mark.parametrize(
        ("name", "alert", "values"),
        [
            ("degraded_total", "GpucacheDegraded", "0x235 1x5"),
            ("refused_total", "GpucacheRemoteRefused", "0x235 1x5"),
            ("compiles_total", "GpucacheCompilesAll", "0+150x240"),
            ("evictions_total", "GpucacheThrashes", "0+20x240"),
            ("store_bytes", "GpucacheStoreOverLimit", "120x240"),
            ("build_info", "GpucacheMetricsGone", "1x100 _x140"),
            ("examined_timestamp_seconds", "GpucacheNotExamined", "-700000x240"),
        ],
    )
    def test_a_loss_is_told_by_its_alert_alone(self, tmp_path, name, alert, values):
        series = {
            key: values if key.startswith(f"gpucache_{name}{{") else well
            for key, well in WELL.items()
        }
        assert firing(tmp_path, series, [alert]) == ""

    def test_an_error_of_doctor_is_told(self, tmp_path):
        error = 'gpucache_findings{root="/r",host="n",command="verify",level="error",code="digest"}'
        assert firing(tmp_path, {**WELL, error: "2x240"}, ["GpucacheFindings"]) == ""

    def test_where_all_is_well_none_is(self, tmp_path):
        assert firing(tmp_path, WELL, []) == ""

    def test_old_metrics_of_node_exporter_are_told(self, tmp_path):
        age = 'node_textfile_mtime_seconds{file="/x/gpucache.prom"}'
        assert firing(tmp_path, {**WELL, age: "0x240"}, ["GpucacheMetricsGone"]) == ""


def firing(directory: Path, series: Mapping[str, str], alerts: list[str]) -> str:
    """What promtool says against these alerts, and no others, firing after four hours; empty where it agrees."""
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
    question = {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "238m",
        "exp_samples": expected,
    }
    rows = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": rows, "promql_expr_test": [question]}
    rules = str(HERE / "docs/examples/gpucache-alerts.yml")
    whole = {"rule_files": [rules], "evaluation_interval": "1m", "tests": [test]}
    (directory / "test.yml").write_text(json.dumps(whole))  # which is YAML, too
    done = promtool("test", "rules", directory / "test.yml")
    return "" if done.returncode == 0 else done.stdout + done.stderr
