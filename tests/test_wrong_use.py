"""Each wrong use of the command line that people were seen to make, and others of its kind: exit code and words.

Good is a message that names the word that is wrong, and says what is right or what there is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from support.cli import Command
from support.trees import stock_entry

if TYPE_CHECKING:
    from pathlib import Path

# Words (with {root} and {tmp}), exit code, what the error is, what the hint says. Of a directory that is no cache there
# is nothing to advise.
WRONG = [
    # ---- commands and options that are none
    ("lsx", 2, "there is no command 'gpucache lsx'", "`gpucache ls` may be meant"),
    ("clear", 2, "there is no command 'gpucache clear'", "`gpucache clean` may be meant"),
    ("delete", 2, "there is no command 'gpucache delete'", "`gpucache rm` may be meant"),
    ("remote chek", 2, "there is no command 'gpucache remote chek'", "`gpucache remote check` may"),
    ("remote", 2, "the command is missing", "name one of check, ls"),
    ("ls --kernal x", 2, "no such option --kernal", "--kernel may be meant"),
    ("ls -5", 2, "no such option -5", "`gpucache ls --help`"),
    ("--root {root} keygen k", 2, "`gpucache keygen` has no option --root", "leave --root out"),
    ("ls A B", 2, r"got unexpected extra argument \(B\)", "`gpucache ls --help`"),
    ("ls --kernel", 2, "--kernel needs a value", "`gpucache ls --help`"),
    ("--root {root} ls --kernel", 2, "--kernel needs a value", "`gpucache ls --help`"),
    ("--root", 2, "--root needs a value", "`gpucache --help`"),
    ("explain", 2, "KEY is missing", "write it `gpucache explain"),
    ("path", 2, "DEVICE is missing", "write it `gpucache path"),
    ("run", 2, "COMMAND is missing", "write it `gpucache run"),
    # ---- values that make no sense
    ("ls --older-than 30", 2, "--older-than: '30' is not a time like 30d, 12h", "--help"),
    ("ls --larger-than 20Q", 2, "--larger-than: '20Q' is not a size like 20GiB", "--help"),
    ("ls --sort age", 2, "--sort: 'age' is not one of 'used', 'created'", "--help"),
    ("ls --limit 0", 2, "--limit: '0' is not a whole number from 1 on", "--help"),
    ("ls --limit many", 2, "--limit: 'many' is not a whole number from 1 on", "--help"),
    ("prune --max-size -5", 2, "--max-size: '-5' is not a size like", "--help"),
    ("prune --max-entries -1", 2, "--max-entries: '-1' is not a whole number from 0 on", "--help"),
    ("prune --triton-version latest", 2, "--triton-version='latest' is not a version", "leave it"),
    ("prune --triton-version latest -n", 2, "--triton-version='latest' is not a", "leave it out"),
    ("ls --cache nosuch", 2, "--cache='nosuch' is not a name that `gpucache caches` lists", "leave"),
    ("path abc", 2, "DEVICE: 'abc' is not an ordinal like 0, or a UUID like GPU-", "--help"),
    ("env 0 --format xml", 2, "--format: 'xml' is not one of 'sh', 'fish'", "--help"),
    ("du --by age", 2, "--by: 'age' is not one of", "--help"),
    ("run --device abc -- true", 2, "--device: 'abc' is not an ordinal like 0, or a UUID", "--help"),
    ("run --caches -- true", 2, "--caches: '--' looks like an option: the name is missing", "--help"),
    ("run --root -- true", 2, "--root: '--' looks like an option", "--help"),
    ("run --jobs 2 -- true", 2, "--jobs is for --warm", "--help"),
    ("provision --shared all", 2, "--shared: 'all' is not one of 'private', 'read'", "--help"),
    ("provision --shared group --group -5", 2, "--group: '-5' looks like an option", "--help"),
    ("provision --shared group --group=", 2, "--group: the name is empty", "--help"),
    ("config --user", 2, "--user is for --init", "--help"),
    ("completion tcsh", 2, "SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'", "--help"),
    # ---- nobody to be asked
    ("prune --max-size 1GiB", 2, "nobody can be asked here", "say --yes, or --dry-run"),
    ("clean", 2, "nobody can be asked here", "say --yes, or --dry-run"),
    # ---- what is not there
    ("ls NOPE", 1, "no entry in {root} has a key that begins with 'NOPE'", r"--kernel '\*NOPE\*'"),
    ("ls triton_mm_7", 1, "no entry in .* 'triton_mm_7'", r"`gpucache ls --kernel '\*triton_mm_7\*'`"),
    ("ls T", 1, "2 entries in {root} have keys that begin with 'T'", "say more of the key"),
    ("ls --kernel attn", 1, "nothing cached in {root} has --kernel 'attn'", "there is k"),
    ("ls --arch hopper", 1, "nothing cached in {root} has --arch 'hopper'", "there is sm_80, sm_90"),
    ("ls --directory 9", 1, "nothing cached in {root} has --directory '9'", "there is 0, 1, 2, 3"),
    ("path 99", 1, "no device with ordinal 99: this process has ordinals 0 to 3", "CUDA_VISIBLE"),
    ("path GPU-zz", 1, "no device has the UUID 'GPU-zz'", "there is FAKE-0, FAKE-1, FAKE-2, FAKE-3"),
    ("run --device 7 -- true", 1, "no device with ordinal 7", "CUDA_VISIBLE_DEVICES"),
    ("run --device GPU-zz -- true", 1, "no device has the UUID 'GPU-zz'", "there is FAKE-0"),
    ("run -- nosuchcmd", 127, "nosuchcmd: No such file or directory", "no directory of PATH has"),
    ("run -- ./nosuch", 127, "./nosuch: No such file or directory", "there is no such path"),
    ("warm /nonexistent", 1, "/nonexistent: No such file", "name a file that `gpucache recipe`"),
    ("unpack /nonexistent", 1, "/nonexistent: No such file", "name a file that `gpucache pack`"),
    # ---- roots that are none
    ("ls --root /nonexistent", 1, "there is no /nonexistent", "correct --root, or make it"),
    ("stats --root /nonexistent", 1, "there is no /nonexistent", "correct --root, or make it"),
    ("verify --root /nonexistent", 1, "there is no /nonexistent", "correct --root, or make it"),
    ("du --root /nonexistent", 1, "there is no /nonexistent", "correct --root, or make it"),
    ("ls --root {tmp}/file", 1, "{tmp}/file is no directory", "correct --root"),
    ("ls --root /etc", 1, "/etc is no cache: nothing in it", ""),
    ("stats --root /etc", 1, "/etc is no cache: nothing in it", ""),
    ("clean --root / --yes", 1, "/ is no cache: nothing in it", ""),
    ("clean --root /home/.. --yes", 1, "/ is no cache", ""),
    ("prune --root {tmp}/open --yes", 1, "{tmp}/open: everybody may write it", "`chmod o-w {tmp}/open`"),
    ("provision --root {tmp}/file", 1, "could not look at {tmp}/file: Not a directory", "move that"),
    ("provision --root /proc/x", 1, "could not make /proc/x: No such file", "makes no directories there"),
    ("devices --root=", 2, "--root: the path is empty", "--help"),
]  # fmt: skip


@pytest.fixture
def used(root: Path, tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of four devices with three kernels; beside it a file, and a directory that all may write."""
    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "4")
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    assert here("provision").code == 0
    for key, arch, name in (("A" * 52, 90, "0"), ("T" + "B" * 51, 80, "1"), ("TC" * 26, 90, "2")):
        stock_entry(root / "triton" / name, key, arch=arch)
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    return root


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"), WRONG, ids=[words for words, *_ in WRONG]
)
def test_a_wrong_use_says_what_is_wrong_and_what_is_right(
    words: str, code: int, error: str, hint: str, used: Path, tmp_path: Path, here: Command
) -> None:
    places = {"root": str(used), "tmp": str(tmp_path)}
    done = here(*words.format(**places).split())
    assert done.code == code, done
    assert "Traceback" not in done.err
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in done.err.splitlines() if line.startswith("hint: ")]
    assert len(errors) == 1, done.err
    assert re.search(error.format(**places), errors[0]), done.err
    if hint:
        assert re.search(hint.format(**places), hints[0]), done.err
    else:
        assert hints == []


@pytest.mark.parametrize(
    ("name", "value", "words", "said"),
    [
        ("GPUCACHE_MAXSIZE", "20GiB", "config", "warning: GPUCACHE_MAXSIZE .*; GPUCACHE_MAX_SIZE may"),
        ("GPUCACHE_MAX_SIZE", "lots", "config", "warning: GPUCACHE_MAX_SIZE: .*'lots' is not a size"),
        ("GPUCACHE_LOG", "verbose", "config", "warning: GPUCACHE_LOG: .*'verbose'"),
        ("GPUCACHE_FAKE_DEVICES", "many", "devices", "error: GPUCACHE_FAKE_DEVICES='many' is not a count"),
        ("CUDA_VISIBLE_DEVICES", "GPU-zzz", "path 0", r"error: no device .*'GPU-zzz' names no device"),
        ("GPUCACHE_DISABLE", "1", "provision", "hint: to have directories made, unset GPUCACHE_DISABLE"),
        ("GPUCACHE_DIR", "/nonexistent", "stats", "hint: correct GPUCACHE_DIR, or make it"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(
    name: str, value: str, words: str, said: str, used: Path, here: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    done = here(*words.split())
    assert re.search(f"^{said}", done.err, re.MULTILINE), done.err


def test_a_command_that_is_not_there_makes_nothing(
    root: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    assert here("run", "--", "nosuchcmd").code == 127
    assert not root.exists()


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("disable = true\n", "provision", "hint: to have directories made, take it out of {file}:1\n"),
        ("[abc]\nx = 1\n", "config", "'abc' is a table, and settings are in none; write each as NAME = "),
    ],
    ids=["disabled", "table"],
)  # fmt: skip
def test_what_is_wrong_in_a_file_names_the_file_and_the_way_out(
    text: str, words: str, said: str, used: Path, tmp_path: Path, here: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = tmp_path / "config/gpucache/gpucache.toml"
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_text(text)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    done = here(*words.split())
    assert done.code == 0
    assert said.format(file=file) in done.err
    assert str(file) in done.err
