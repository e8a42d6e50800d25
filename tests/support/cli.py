"""The command line as a person or a script meets it, and what the page on JSON says that is printed."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from support.processes import PATIENCE_S

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
FIELDS = (README.parent / "docs/json.md").read_text(encoding="utf-8")

# What a field of each name holds, wherever it is printed.
TEXTS = {
    "key",
    "kind",
    "kernel",
    "target",
    "arch",
    "triton_version",
    "name",
    "why",
    "path",
    "cubin",
}
TEXTS |= {"code", "level", "subject", "fact", "fix", "note", "root", "by"}
NUMBERS = {"created", "used"}
COUNTS = {
    "logical_bytes",
    "physical_bytes",
    "held_bytes",
    "files",
    "entries",
    "slimmed",
    "strays",
    "registers",
}
COUNTS |= {"uid", "shared_bytes", "warps", "views", "units", "leftovers"}
SWITCHES = {"stored", "recipe", "dry_run", "repaired"}


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        """What is in the object that was printed, behind the format that each begins with."""
        return told(self.out)


def told(text: str) -> Any:
    """The fields of the JSON object that a command has printed, behind the format that each begins with."""
    fields = json.loads(text)
    assert next(iter(fields.items())) == ("format", 1)
    del fields["format"]
    return fields


Command = Callable[..., Done]


MAIN = "import sys; from gpucache.cli.main import main; sys.exit(main())"


def on_a_terminal(
    *words: object,
    answer: bytes = b"",
    env: Mapping[str, str] | None = None,
    before: str = "",
) -> tuple[int, str]:
    """Exit code and all that a person sees, who types ``answer`` when asked. ``before`` is code that runs first."""
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "TERM": "dumb", "COLUMNS": "160", "LINES": "50", **(env or {})}
        os.execve(
            sys.executable,
            [sys.executable, "-c", f"{before}\n{MAIN}", *map(os.fspath, map(_word, words))],
            environ,
        )
    seen, end = b"", time.monotonic() + PATIENCE_S
    readable = select.poll()  # `select.select` takes no descriptor above 1,023
    readable.register(terminal, select.POLLIN)
    while time.monotonic() < end:
        asked = bool(answer) and b"[y/N]: " in seen
        if not readable.poll(500 if asked else PATIENCE_S * 1000):
            # an interrupt just before Python waits for input does not wake it
            os.write(terminal, answer)
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
        seen += piece
        if answer and not asked and b"[y/N]: " in seen:
            os.write(terminal, answer)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode().replace("\r\n", "\n")


def _word(word: object) -> str | bytes | Path:
    return word if isinstance(word, (bytes, Path)) else str(word)


def table(text: str) -> list[list[str]]:
    """The cells of a table without colours."""
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


def documented(command: str) -> tuple[list[list[str]], dict[str, list[str]]]:
    """The names in a row of the page on JSON: before and after each colon or semicolon, and those in parentheses."""
    (cell,) = re.findall(rf"^\| [^|]*`{re.escape(command)}`[^|]*\| (.*) \|$", FIELDS, re.MULTILINE)
    added = {
        name: re.findall(r"`([\w-]+)`", inner)
        for name, inner in re.findall(r"`(\w+)` \(([^)]*)\)", cell)
    }
    groups = [
        re.findall(r"`(\w+)`", part) for part in re.split(r"[:;]", re.sub(r" \([^)]*\)", "", cell))
    ]
    return [group for group in groups if group], {
        name: inner for name, inner in added.items() if inner
    }


def check(said: Mapping[str, Any], names: list[str], **other: type | tuple[type, ...]) -> None:
    """The object has these fields and no others, in this order, and each has the type that its name has everywhere."""
    assert list(said) == names
    for name, value in said.items():
        kind = other.get(name) or (
            (
                str
                if name in TEXTS
                else float
                if name in NUMBERS
                else int
                if name in COUNTS
                else None
            )
            or (bool if name in SWITCHES else list)
        )
        assert isinstance(value, kind), (name, value)
        assert kind is bool or not isinstance(value, bool), (name, value)
