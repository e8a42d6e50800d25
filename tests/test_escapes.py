"""Names that another user has chosen command no terminal: through a pipe, in an error, in the log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from support.cli import on_a_terminal
from support.trees import KEY, Tree, stock_entry

from gpucache.log import WARNING, tell

NASTY = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\x9b1m\udcff\u2028"
COMMANDS = [
    ["ls"],
    ["ls", KEY],
    ["du"],
    ["du", "--by", "kernel"],
    ["stats"],
    ["verify"],
    ["prune", "--max-age", "0", "--dry-run"],
    ["clean", "--dry-run"],
    ["clean", "--force", "--dry-run"],
    ["doctor"],
    ["explain", KEY],
    ["why", KEY],
    ["why", "*"],
    ["compare", KEY, "B" * 52],
    ["ls", "B" * 52],
    ["config"],
    ["devices"],
    ["ls", "no such key " + NASTY],
    ["ls", "--arch", NASTY],
    ["ls", "--kernel", NASTY],
    ["provision"],
    ["path", "7"],
    ["run", "--strict", "--device", "7", "true"],
]


@pytest.fixture
def planted(tmp_path):
    """A cache whose owner has given everything the name that does most harm."""
    base = tmp_path / "base"
    base.mkdir()
    tree = Tree(base)
    root = base / NASTY
    os.rename(tree.root, root)
    for where in (
        "triton/0",
        "gpucache/v1/tmp",
        "gpucache/v1/quarantine",
        "gpucache/v1/store",
        ".",
    ):
        (root / where).mkdir(exist_ok=True)
        (root / where / f"tmp.gpucache-{NASTY}").mkdir()
        (root / where / f"{NASTY}.lock").write_text(NASTY, errors="surrogateescape")
        (root / where / f"link{NASTY}").symlink_to(NASTY)
    (root / "gpucache/v1/devices").mkdir(exist_ok=True)
    (root / f"gpucache/v1/devices/{NASTY}.json").write_text("{}")
    stock_entry(root / f"triton/{NASTY}", "B" * 52, triton_version=NASTY.replace("\udcff", ""))
    for path in root.rglob("tmp.gpucache-*"):
        os.utime(path, (1e9, 1e9))
    return root


def obeys_nothing(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda words: " ".join(words).encode("unicode_escape").decode()
)
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_no_output_through_a_pipe_commands_a_terminal(command, as_json, planted):
    name, *rest = command
    json_too = as_json and name != "run"
    words = [name, "--root", str(planted), *(["--json"] if json_too else []), *rest]
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "gpucache", *words], capture_output=True, env=environ, timeout=60
    )
    assert done.returncode in (0, 1)
    assert obeys_nothing(done.stderr.decode()), done.stderr
    assert obeys_nothing(done.stdout.decode()), done.stdout
    if json_too and done.stdout:
        json.loads(done.stdout)


def test_the_question_of_prune_shows_what_goes_and_obeys_nothing(planted):
    code, seen = on_a_terminal("prune", "--max-age", "0", "--root", planted, answer=b"n\n")
    assert code == 1
    assert "\\x1b[2J" in seen
    assert "\x1b" not in seen
    assert "\u202e" not in seen


def test_a_line_of_the_log_obeys_nothing_whoever_prints_it(caplog):
    """The program's own handler too."""
    cause = OSError(2, "No such file", f"/root/{NASTY}")
    tell(WARNING, "%s: %s after %d s", f"/root/{NASTY}", cause, 3)
    (record,) = caplog.records
    assert isinstance(record, logging.LogRecord)
    assert record.getMessage().isprintable()
    assert record.getMessage().endswith("after 3 s")


def test_a_traceback_obeys_nothing(python):
    code = """if True:
        import sys
        from gpucache.cli import main, quick
        def broken(*_):
            raise ValueError("\\x1b[2J")
        quick.read = broken
        sys.exit(main.main(["path", "0"]))
    """
    done = python(code)
    assert done.returncode == 3
    assert "\x1b" not in done.stderr
