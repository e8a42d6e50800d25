"""README and CONTRIBUTING name what is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import gpucache

HERE = Path(__file__).parent.parent
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


def test_every_import_in_the_readme_works():
    found = imports_of(README.read_text())
    assert len(found) > 3
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), f"from {module} import {name}"


@pytest.mark.parametrize("name", gpucache.__all__)
def test_every_public_name_is_where_the_readme_says(name):
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
    assert len(CONTRIBUTING.read_text().splitlines()) < 200


@pytest.mark.parametrize("path", [README, CONTRIBUTING, *sorted((HERE / "docs").glob("*.md"))])
def test_every_link_leads_to_a_file(path):
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", README.read_text()))
    assert linked == {f"docs/{path.name}" for path in (HERE / "docs").iterdir()}
