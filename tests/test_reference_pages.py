"""What reference pages say is what the code says; the site has every command, option and public name."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.processes import PATIENCE_S
from support.reference_pages import parts, written
from support.snippets import HERE

import gpucache
import gpucache.warm
from gpucache.cli.commands import cli


@pytest.mark.parametrize(("page", "name"), parts(), ids=lambda one: getattr(one, "name", one))
def test_each_part_is_what_the_code_says(page: Path, name: str) -> None:
    """Else say `python -m support.reference_pages` in `tests/`."""
    text = page.read_text(encoding="utf-8")
    assert text == written(text, name, parts()[page, name])


def test_a_part_that_is_not_there_is_told() -> None:
    with pytest.raises(AssertionError, match="no part"):
        written("# A page\n", "own", "| a |\n")


def commands(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
    """Each command with its words, those of groups too."""
    yield words, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from commands(inner, f"{words} {name}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `nox -s docs` does."""
    if shutil.which("mkdocs") is None:
        pytest.skip("needs mkdocs: pip install -e '.[docs]'")
    made = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(made)],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return made


def words_of(page: Path) -> str:
    """What a page of the site says, without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.docs
def test_the_site_has_every_command_and_option(site: Path) -> None:
    text = words_of(site / "commands.html")
    for words, command in commands(cli, "gpucache"):
        if command.hidden:
            continue
        assert words in text
        for parameter in command.params:
            for name in parameter.opts:
                if name.startswith("--") and not getattr(parameter, "hidden", False):
                    assert name in text, f"{words} {name}"


@pytest.mark.docs
def test_the_site_has_every_public_name(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    headings = set(re.findall(r'<h3 id="[\w.]*?\.?(\w+)"', page))
    names = {*gpucache.__all__, *gpucache.warm.__all__} - {"__version__"}
    assert names - headings == set()
