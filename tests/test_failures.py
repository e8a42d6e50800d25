"""How a command tells that it failed: the same on stderr as ever, and with `--json` one object on stdout."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from support.cli import FIELDS, Command, Done, on_a_terminal, told

import gpucache
from gpucache import errors
from gpucache.cli import quick
from gpucache.cli.failures import wants_json
from gpucache.errors import GpuCacheError

if TYPE_CHECKING:
    from collections.abc import Iterator


def failure(done: Done) -> dict[str, str]:
    """The failure in the object on stdout, which is all that is there and what stderr says."""
    (error,) = done.json.values()
    hint = f"hint: {error['hint']}\n" if error["hint"] else ""
    assert done.err.endswith(f"error: {error['problem']}\n{hint}")
    return dict(error)


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (["ls", "--root", "/nonexistent"], 1, "no-root"),
        (["stats", "--root", "/nonexistent"], 1, "no-root"),
        (["ls", "NOPE", "--root", "{root}"], 1, "no-entry"),
        (["path", "0", "--root", "{root}"], 1, "record"),
        (["env", "0", "--root", "{root}"], 1, "record"),
        (["ls", "--limit", "0"], 2, "usage"),
        (["ls", "--kernal", "x"], 2, "usage"),
        (["lsx"], 2, "usage"),
        (["prune", "--max-size", "1"], 2, "usage"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_an_error_is_an_object_too(
    words: list[str], code: int, kind: str, here: Command, tmp_path: Path
) -> None:
    words = [word.format(root=tmp_path) for word in words]
    plain = here(*words)
    done = here(*words, "--json")
    assert (plain.code, plain.out) == (code, "")
    assert (done.code, done.err) == (plain.code, plain.err)
    assert failure(done)["kind"] == kind


def test_what_nobody_expected_is_an_object_behind_its_traceback(
    here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "read", lambda *_: 1 / 0)
    done = here("ls", "--json")
    assert done.code == 3
    assert "ZeroDivisionError" in done.err
    assert failure(done)["kind"] == "defect"


def test_what_the_system_refuses_is_an_object(
    here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(5, "Input/output error", "/r")

    monkeypatch.setattr(quick, "read", refused)
    done = here("ls", "--json")
    assert done.code == 1
    assert failure(done)["problem"] == "/r: Input/output error"
    assert failure(done)["kind"] == "system"


def test_who_reads_both_streams_on_one_screen_sees_the_error_once() -> None:
    code, seen = on_a_terminal("ls", "--root", "/nonexistent", "--json")
    assert (code, seen.count("there is no /nonexistent")) == (1, 1)
    assert told(seen)["error"]["kind"] == "no-root"


def test_config_has_the_error_behind_its_fields(here: Command) -> None:
    done = here("config", "--json", "--root", "/nonexistent")
    assert done.code == 1
    assert list(done.json) == ["files", "settings", "error"]
    assert done.json["error"]["kind"] == "no-root"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("ls --json", True),
        ("--json ls", True),
        ("env 0 --format json", True),
        ("env 0 --format=json", True),
        ("env 0 --format sh", False),
        ("ls", False),
        ("run -- prog --json", False),
        ("run prog --json", False),
        ("run --root r prog --json", False),
        ("", False),
        ("why run --json", True),
        ("ls --kernel run --json", True),
        ("--root run ls --json", True),
        ("--root r run prog --json", False),
        ("--json run prog", True),
    ],
)
def test_a_command_line_asks_for_json_or_does_not(words: str, answer: bool) -> None:
    assert wants_json(words.split()) is answer


def _kinds() -> Iterator[str]:
    """The kind of each class of errors, wherever the class is."""
    for module in pkgutil.walk_packages(gpucache.__path__, "gpucache."):
        if "replay" not in module.name and "__main__" not in module.name:
            import_module(module.name)
    left: list[type[GpuCacheError]] = [GpuCacheError]
    while left:
        one = left.pop()
        left += one.__subclasses__()
        yield one.error_kind


def test_the_page_on_json_lists_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    _, section = FIELDS.split("## Kinds of errors\n")
    rows = section.split("\n## ")[0].splitlines()
    listed = set()
    for row in rows:
        listed |= (
            set(re.findall(r"`([\w-]+)`", row.split("|")[1])) if row.startswith("|") else set()
        )
    without_class = {"usage", "system", "defect"}
    assert listed == {*_kinds(), *without_class}
    literal: dict[str, Any] = {}
    source = Path(errors.__file__).read_text(encoding="utf-8")
    found = re.search(r"ErrorKind = (Literal\[.*?\])", source, re.DOTALL)
    assert found is not None
    exec(f"from typing import Literal\nkinds = {found.group(1)}", literal)
    assert set(get_args(literal["kinds"])) == listed
