"""The tests' own rules: what they share is in `support`, and each may run without the others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(source: str) -> set[str]:
    """The modules that are imported anywhere, in a function too, and in code that is run in another process."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(
                re.findall(r"(?:^|;)\s*(?:from|import) (test_\w+)", node.value, re.MULTILINE)
            )
    return found


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_no_test_imports_another_test(path):
    """What two tests need belongs to `support`."""
    tests = {other.stem for other in TESTS.glob("test_*.py")}
    source = path.read_text(encoding="utf-8")
    assert not tests & {part for name in imported(source) for part in name.split(".")}


@pytest.mark.parametrize(
    "source",
    [
        "import test_other",
        "from test_other import mode",
        "def act():\n    import test_other",
        'code = "import sys; from test_other import act"',
    ],
)
def test_such_an_import_would_be_found(source):
    assert imported(source) == {"test_other"}
