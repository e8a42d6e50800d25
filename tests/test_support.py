"""The tests' own rules: what they share is in `support`, and each may run without the others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, in a function too, and in code that it runs in another process."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "import test_" in node.value
        ):
            found.add(node.value)
    return found


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_no_test_imports_another_test(path):
    """What two tests need belongs to `support`."""
    tests = {other.stem for other in TESTS.glob("test_*.py")}
    assert not tests & {name.partition(".")[0] for name in imported(path)}
