"""`gpucache report`: what the page of a cache has, in its file and in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.browser import opened
from support.templates import made_by_a_rank
from support.trees import KEY, Cache, left_by_stock

from gpucache.findings import Finding
from gpucache.kernels.description import describe
from gpucache.report.cache_report import scan
from gpucache.report.entries import Entry
from gpucache.store.foreign import remember
from gpucache.watch.page import values
from gpucache.watch.page.charts import MOST_BARS, REST, stacked_bars
from gpucache.watch.page.html import to_html
from gpucache.watch.page.values import Page, page_of

MARKUP = "<img src=x onerror=alert(1)>$x^{2$\x1b[2J"
HOST = "the-name-of-the-host"
FINDINGS = (
    Finding("root-missing", "warning", "/home/ada/kernels", "it is not there", "make it"),
    *[Finding("group-elsewhere", "error", f"/moved/{n}", "moved", "mend") for n in range(5)],
)


def page(root: Path, redact: bool = False, findings: tuple[Finding, ...] = ()) -> Page:
    def described(entry: Entry):
        return describe(entry.copies[0].path, entry.kernel)

    return page_of(scan(str(root)), findings, described, host=HOST, redact=redact)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Path:
    """A root with three kernels that a rank compiled; do not change it."""
    return made_by_a_rank(tmp_path_factory.mktemp("page") / "root", 3).root


@pytest.fixture
def named_markup(tmp_path: Path) -> Path:
    """A root in which stock Triton has cached a kernel whose name is markup, a formula, and a terminal's command."""
    home = left_by_stock(tmp_path / "root/triton/0", KEY)
    for path in home.iterdir():
        path.rename(home / path.name.replace("add", MARKUP))
    return tmp_path / "root"


def column(table: values.Table, name: str) -> list[str]:
    place = table.columns.index(name)
    return [row[place].text for row in table.rows]


class TestValues:
    @pytest.mark.compiles
    def test_a_row_tells_what_a_kernel_was_compiled_with(self, compiled):
        entries = page(compiled).entries
        assert column(entries, "arch") == ["sm_90"] * 3
        assert len(set(column(entries, "constants"))) > 1
        assert all(int(text) > 0 for text in column(entries, "registers"))

    @pytest.mark.compiles
    def test_redacted_it_has_no_path_no_host_and_no_constant(self, compiled):
        whole = page(compiled, findings=FINDINGS)
        shown = to_html(whole)
        redacted = to_html(page(compiled, redact=True, findings=FINDINGS))
        secrets = [str(compiled), HOST, "/home/ada", "/moved", *column(whole.entries, "constants")]
        for secret in secrets:
            assert secret in shown
            assert secret not in redacted
        assert str(compiled.name) + "/" not in redacted
        assert all(name in redacted for name in column(whole.entries, "kernel"))

    def test_a_directory_outside_the_root_has_no_name_where_paths_are_left_out(self, tmp_path):
        cache = Cache(tmp_path)
        assert cache.publish()
        outside = tmp_path / "elsewhere"
        assert cache.link(outside / cache.view.name)
        remember(str(cache.root), str(outside))
        assert str(outside) in to_html(page(cache.root))
        assert str(outside) not in to_html(page(cache.root, redact=True))

    def test_findings_of_one_code_are_one_with_three_examples_and_errors_come_first(self, tmp_path):
        first, second = page(Cache(tmp_path).root, findings=FINDINGS).findings
        assert (first.code, first.count, len(first.examples)) == ("group-elsewhere", 5, 3)
        assert (second.code, second.count) == ("root-missing", 1)

    def test_the_largest_entries_are_listed_and_the_others_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(values, "MOST_ROWS", 0)
        cache = Cache(tmp_path)
        assert cache.publish()
        listed = page(cache.root)
        assert (listed.entries.rows, listed.unlisted) == ((), 1)
        assert "1 smaller" in to_html(listed)


class TestChart:
    def test_of_many_names_the_smaller_ones_are_one_bar(self):
        sums = {f"kernel_{number}": {"sm_90": 1000 - number} for number in range(40)}
        drawn = stacked_bars(sums, "bytes")
        assert drawn.count(">kernel_") == MOST_BARS
        assert REST in drawn

    def test_of_many_kinds_the_smaller_ones_are_one_and_no_name_is_a_command(self):
        kinds = {f"\x1b<script>{number}" + "x" * 5000: number for number in range(4000)}
        drawn = stacked_bars({"add": kinds, "sub": kinds}, "bytes")
        assert len(drawn) < 200_000
        assert "\x1b" not in drawn
        assert "<script" not in drawn
        assert REST in drawn

    def test_it_is_the_same_each_time(self):
        sums = {"add": {"sm_90": 5, "sm_80": 7}}
        assert stacked_bars(sums, "bytes") == stacked_bars(sums, "bytes")

    def test_a_letter_that_the_font_lacks_is_told_by_nobody(self, capfd, recwarn):
        assert "加算" in stacked_bars({"加算": {"sm_90": 5}}, "bytes")
        assert capfd.readouterr().err == ""
        assert not recwarn.list


class TestInChromium:
    @pytest.mark.compiles
    def test_its_numbers_are_those_of_du_and_its_table_can_be_searched_and_sorted(
        self, compiled, gpucache
    ):
        file = compiled.parent / "cache.html"
        said = gpucache("report", "--root", compiled, "-o", file, "--json")
        assert json.loads(said.stdout)["entries"] == 3
        du = json.loads(gpucache("du", "--root", compiled, "--json").stdout)
        with opened(file) as shown:
            last = shown.locator("#usage tbody tr").last.locator("td.number")
            numbers = [int(cell.get_attribute("data-number")) for cell in last.all()]
            everything = du["all"]
            assert numbers == [
                everything["files"],
                everything["logical_bytes"],
                everything["physical_bytes"],
            ]
            assert shown.locator("figure svg").is_visible()

            rows = shown.locator("#entries tbody tr:visible")
            assert rows.count() == 3
            key = rows.nth(1).locator("td").first.inner_text()
            shown.fill("#search", f"{key.lower()} SM_90")
            assert rows.count() == 1
            assert shown.locator("#shown").inner_text() == "1 of 3 rows"
            shown.fill("#search", "no such words")
            assert rows.count() == 0
            shown.fill("#search", "")

            heads = shown.locator("#entries th").all_inner_texts()
            place = heads.index("size") + 1
            sizes = shown.locator(f"#entries tbody tr td:nth-child({place})")
            head = shown.get_by_role("button", name="size")
            for direction in (1, -1):
                head.click()
                found = [int(cell.get_attribute("data-number")) for cell in sizes.all()]
                assert found == sorted(found)[::direction]

    def test_a_kernel_whose_name_is_markup_is_a_name(self, named_markup):
        file = named_markup.parent / "cache.html"
        file.write_text(to_html(page(named_markup)))
        with opened(file) as shown:
            assert shown.locator("img").count() == 0
            assert (
                "<img src=x onerror=alert(1)>$x^{2$\\x1b[2J"
                in shown.locator("#entries").inner_text()
            )
            assert "<img src=x" in shown.locator("figure svg").inner_html().replace("&lt;", "<")

    def test_markup_that_got_in_all_the_same_would_run_no_script(self, tmp_path):
        file = tmp_path / "cache.html"
        text = to_html(page(Cache(tmp_path).root))
        file.write_text(text.replace("<h1>", "<script>document.title = 'run'</script><h1>"))
        with pytest.raises(AssertionError, match="Content Security Policy"), opened(file) as shown:
            assert shown.title() != "run"


class TestCommand:
    def test_without_its_libraries_it_names_the_extra(self, tmp_path, python):
        root = Cache(tmp_path).root
        code = (
            "import sys, importlib.util\n"
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name: None if name == 'jinja2' else find(name)\n"
            "from gpucache.cli.main import main\n"
            f"sys.exit(main(['report', '--root', {str(root)!r}, '-o', {str(tmp_path / 'x')!r}]))"
        )
        done = python(code)
        assert (done.returncode, done.stdout) == (1, "")
        assert "jinja2 is not installed" in done.stderr
        assert "pip install prometheus-client jinja2 matplotlib" in done.stderr
        assert not (tmp_path / "x").exists()

    def test_of_a_root_that_is_not_there_it_writes_no_page(self, tmp_path, gpucache):
        file = tmp_path / "cache.html"
        done = gpucache("report", "--root", tmp_path / "no", "-o", file)
        assert done.returncode == 1
        assert not file.exists()
