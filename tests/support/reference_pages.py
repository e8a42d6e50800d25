"""The parts of reference pages that are made from the code: the variables of the environment, and codes of findings.

A test compares. ``python -m support.reference_pages`` in ``tests/`` writes them into the pages anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpucache.diagnosis.doctor import CODES as OF_DOCTOR
from gpucache.diagnosis.why_missed import CODES as OF_EXPLAIN
from gpucache.environment import PREFIX, VARIABLES, Variable
from gpucache.upkeep.jit_verify import UNIT_CODES
from gpucache.upkeep.verify import CODES as OF_VERIFY
from support.snippets import DOCS

BEGIN = "<!-- made from the code by `python -m support.reference_pages` in tests/: {} -->"
END = "<!-- end -->"


def parts() -> dict[tuple[Path, str], str]:
    """Each part by its page and its name."""
    environment, codes = DOCS / "environment.md", DOCS / "codes.md"
    return {
        (environment, "own"): _variables(own=True),
        (environment, "of others"): _variables(own=False),
        (codes, "doctor"): _codes(OF_DOCTOR),
        (codes, "verify"): _codes({**OF_VERIFY, **UNIT_CODES}),
        (codes, "explain"): _codes(OF_EXPLAIN),
    }


def written(text: str, name: str, part: str) -> str:
    """A page's text with this part in its place."""
    before, begin, rest = text.partition(BEGIN.format(name))
    _, end, after = rest.partition(END)
    assert begin, f"no part {name!r}"
    assert end, f"no end of the part {name!r}"
    return f"{before}{begin}\n\n{part}\n{end}{after}"


def _variables(own: bool) -> str:
    lines = ["| variable | default | in a file | meaning |", "|---|---|---|---|"]
    for variable in VARIABLES:
        if variable.name.startswith(PREFIX) == own:
            cells = (f"`{variable.name}`", _default(variable), _file(variable), _cell(variable))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _default(variable: Variable[object]) -> str:
    return _escaped(variable.default_text or "")


def _file(variable: Variable[object]) -> str:
    if variable.in_file is None:
        return ""
    where = ", of a root too" if variable.in_root else ""
    return f"`{variable.name_in_file}`{where}"


def _cell(variable: Variable[object]) -> str:
    return _escaped(variable.meaning)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _codes(codes: Mapping[str, str]) -> str:
    lines = ["| code | meaning |", "|---|---|"]
    lines += [f"| `{code}` | {_escaped(meaning)} |" for code, meaning in codes.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all parts into their pages."""
    for (page, name), part in parts().items():
        page.write_text(written(page.read_text(encoding="utf-8"), name, part), encoding="utf-8")


if __name__ == "__main__":
    main()
