"""README, CONTRIBUTING and the pages name what is there, and all pages are in the site and its first page."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import click
import pytest
from support.snippets import ALL_TEXT, DOCS, HERE, PAGES, all_snippets

import gpucache
from gpucache.cli.commands import cli
from gpucache.diagnosis.environment_checks import TESTED_TRITON
from gpucache.errors import LIBRARIES

README, CONTRIBUTING = (HERE / name for name in ("README.md", "CONTRIBUTING.md"))


def imports_of(text: str) -> list[tuple[str, str]]:
    """Module and name of each import in a document's Python examples."""
    lines = re.findall(r"^>>> (from gpucache\S* import .+)$", text, re.MULTILINE)
    statements = [node for line in lines for node in ast.parse(line).body]
    return [
        (node.module or "", name.name)
        for node in statements
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    ]


def test_every_import_in_the_pages_works():
    found = imports_of(ALL_TEXT)
    assert len(found) > 3
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), f"from {module} import {name}"


@pytest.mark.parametrize("name", gpucache.__all__)
def test_every_public_name_is_where_the_pages_say(name):
    assert hasattr(importlib.import_module("gpucache"), name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("gpucache.triton", "DeviceCacheManager"),
        ("gpucache.triton", "CacheManager"),
        ("gpucache.report", "scan"),
        ("gpucache.errors", "GpuCacheError"),
        ("gpucache.errors", "CacheMissError"),
        ("gpucache.errors", "DeviceIndexError"),
    ],
)
def test_what_is_documented_in_a_folder_is_there(module, name):
    """Whatever has been imported before: a submodule must not hide the function of its name."""
    for path in sorted((HERE / module.replace(".", "/")).glob("*.py")):
        importlib.import_module(f"{module}.{path.stem}".removesuffix(".__init__"))
    assert callable(getattr(importlib.import_module(module), name))


def test_the_files_that_contributing_names_are_there():
    named = re.findall(r"`(gpucache/[\w/]+\.py)`", CONTRIBUTING.read_text())
    assert len(named) > 10
    assert [name for name in named if not (HERE / name).is_file()] == []


def test_the_drawing_in_contributing_names_every_room():
    text = CONTRIBUTING.read_text()
    rooms = [path.parent.name for path in (HERE / "gpucache").glob("*/__init__.py")]
    ground = [path.stem for path in (HERE / "gpucache").glob("[a-z]*.py")]
    assert [name for name in rooms if f"{name}/ " not in text] == []
    assert [name for name in ground if not re.search(rf"\b{name}\b", text)] == []


def test_contributing_can_be_read_in_one_sitting():
    assert len(CONTRIBUTING.read_text().splitlines()) < 230


def anchors_of(page: Path) -> set[str]:
    """The names by which headings of a page are led to, as the site and hosting platforms make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading.replace("`", "")).lower()
        found.add(re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", [page for page in PAGES if page.exists()], ids=lambda p: p.name)
def test_every_link_leads_to_a_file_and_a_heading_in_it(path):
    links = re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", path.read_text(encoding="utf-8"))
    assert [link for link, _ in links if link and not (path.parent / link).exists()] == []
    for link, anchor in links:
        target = path.parent / link if link else path
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target), f"{link}#{anchor}"


def linked(page: Path) -> list[str]:
    """The pages in the same folder that a page's lists lead to first, in their order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^- \[[^\]]*\]\(([\w-]+\.md)\)", text, re.MULTILINE)


def test_every_page_is_in_the_first_page_and_in_the_sites_navigation():
    """Add a page to both, `docs/index.md` and `mkdocs.yml`, at the same place."""
    pages = {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    first = linked(DOCS / "index.md")
    # Between the navigation and the end of the file are only names of pages and groups.
    site = (HERE / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    navigation = re.findall(r"^ +- ([\w-]+\.md)$", site, re.MULTILINE)
    assert sorted(first) == sorted(pages)
    assert navigation == ["index.md", *first]


def test_the_readme_leads_to_the_first_page():
    assert "(docs/index.md)" in README.read_text(encoding="utf-8")


def test_what_the_page_on_support_calls_tested_is_what_ci_runs():
    """Beside the newest Triton, which is what installing brings, and which `doctor` knows."""
    tested = {}
    for line in (DOCS / "support.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 1:
            tested[cells[0]] = re.findall(r"\d+\.\d+\.\d+", cells[1])
    sessions = (HERE / "noxfile.py").read_text(encoding="utf-8")
    oldest, newest = (".".join(map(str, version)) for version in TESTED_TRITON)
    tritons = tested["Triton, the plug-in"]
    assert tritons[0].startswith(f"{oldest}.")
    assert tritons[-1].startswith(f"{newest}.")
    of_sessions = [*tritons[:-1], *tested["torch"], *tested["launchers"]]
    assert len(of_sessions) > 4
    assert [version for version in of_sessions if version not in sessions] == []


def test_every_command_that_a_page_names_is_there():
    """What is removed or renamed in the code is so in the pages; the changelog tells of what was."""
    pages = [page for page in PAGES if page.exists() and page.name != "CHANGELOG.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    lines = "\n".join(line for snippet in all_snippets() for line in snippet.lines)
    named = set(re.findall(r"`gpucache ([a-z]+)\b", text))
    named |= set(re.findall(r"(?:^|&& |-- |sudo )gpucache ([a-z]+)\b", lines, re.MULTILINE))
    assert len(named) > 15
    context = click.Context(cli)
    known = {name for name in named if cli.get_command(context, name) is not None}
    assert named - known == {"help"}  # as `--help` after the words


def test_the_first_page_says_how_to_install_and_where_to_report():
    """Who comes by the site has no README before their eyes."""
    first = (DOCS / "index.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert "`pip install .`" in first
    assert [name for name in re.findall(r"`(\w+\.md)`", first) if not (HERE / name).is_file()] == []
    assert "`SECURITY.md`" in first


def test_an_extra_that_is_missing_is_told_by_the_libraries_it_has():
    """`pyproject.toml` is the list; the message of a program has no file to look into."""
    text = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    for extra, libraries in LIBRARIES.items():
        (listed,) = re.findall(rf"^{extra} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
        assert re.findall(r'"([\w-]+)>=', listed) == libraries.split()


def test_nobody_is_told_to_take_gpucache_from_an_index():
    """It is on none: whoever takes the name there first would have their code run on every node."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("gpucache/**/*.py"))
    assert re.findall(r"pip install[^`\n]*gpucache-devices.*", ALL_TEXT + code) == []


def test_a_session_of_nox_names_the_tree_once():
    """Pip refuses two requirements of one project: `.[test]` beside `.[docs]`."""
    sessions = (HERE / "noxfile.py").read_text(encoding="utf-8")
    assert re.findall(r'_python\(session,[^)]*"\.\[', sessions) == []
