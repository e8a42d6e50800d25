"""The fenced blocks of every page, and for each by what it is run, or why it can't be.

A block of `pycon` is a doctest, and each line of a block of `sh` is said in a shell: both without a word
(`test_snippets`). Any other block, and one of these that is run elsewhere, has a comment above it:

- ``<!-- run by tests/test_oci.py -->``, which reads the page;
- ``<!-- not run: why -->``.

``<!-- all run by tests/test_containers.py -->`` anywhere in a page holds for its blocks that have no comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parents[2]
DOCS = HERE / "docs"
PAGES = (
    *(HERE / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
)
ALL_TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.exists())
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)(?P<rest>.*)$")
_MARK = re.compile(r"<!-- (?P<how>run by|not run:) (?P<what>.+?) -->")
_ALL = re.compile(r"^<!-- all run by (?P<what>\S+) -->$", re.MULTILINE)


class Snippet(NamedTuple):
    """One fenced block of a page."""

    page: Path
    line: int
    """Of the fence, from 1."""
    language: str
    """Empty where the fence names none."""
    text: str
    run_by: str | None
    """The file of tests that is said to run the block, from the repository's root."""
    not_run: str | None
    """Why the block can't be run."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(HERE)}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """The commands of a block of `sh`: comments and blank lines are left out, continued lines are joined."""
        joined = self.text.replace("\\\n", " ").splitlines()
        commands = [line.partition("  #")[0].strip() for line in joined]
        return [command for command in commands if command and not command.startswith("#")]


def snippets(page: Path) -> list[Snippet]:
    """The blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    of_all = _ALL.search(text)
    by_all = of_all["what"] if of_all else None
    return list(_found(page, text.splitlines(), by_all))


def _found(page: Path, lines: list[str], by_all: str | None) -> Iterator[Snippet]:
    start: int | None = None
    language = indent = mark = ""
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, language, indent = number, fence["language"], fence["indent"]
            mark = lines[number - 1].strip() if number else ""
            continue
        if fence["language"] or fence["rest"].strip():
            continue  # a fence within a block
        body = [one.removeprefix(indent) for one in lines[start + 1 : number]]
        said = _MARK.fullmatch(mark)
        run_by = not_run = None
        if said is None:
            run_by = by_all
        elif said["how"] == "run by":
            run_by = said["what"]
        else:
            not_run = said["what"]
        yield Snippet(page, start + 1, language, "\n".join(body) + "\n", run_by, not_run)
        start = None
    assert start is None, f"{page}:{start}: a block without an end"


def all_snippets() -> list[Snippet]:
    """The blocks of all pages."""
    return [snippet for page in PAGES if page.exists() for snippet in snippets(page)]
