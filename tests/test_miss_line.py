"""The line of a miss names the nearest earlier entry of the kernel, and what differs: with the real Triton."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.ranks import PLUGIN, python_with_triton, warm
from support.tuning import KERNEL, LAUNCH

from gpucache.store.manifest import entry_path
from gpucache.store.of_kernel import entries_of_kernel
from gpucache.triton import miss_line

SOURCE = "source of scaled or a callee"


def differs(line: str) -> str:
    """What differs from the nearest entry, as a line says."""
    (words,) = re.findall(r"; nearest is [\w-]{12} of (?:now|\d+ \w+ ago): (.*)$", line)
    return words


def block() -> str:
    """The name of the kernel's last constant, which Triton 3.2 does not write down."""
    version = python_with_triton("import triton; print(triton.__version__)")
    return "#4" if version.startswith("3.2") else "BLOCK"


def test_the_first_compile_of_a_kernel_is_said_to_be_that(tuned):
    assert tuned.lines["first"].endswith("; the store has no other scaled")


def test_what_differs_from_the_nearest_entry_is_told_by_name(tuned):
    assert differs(tuned.lines["constant"]) == f"{block()} 512 -> 1024"
    assert differs(tuned.lines["options"]) == "num_stages 3 -> 4, num_warps 4 -> 8"
    assert differs(tuned.lines["type"]) == "x *fp32 -> *fp16"
    assert differs(tuned.lines["target"]) == "cuda:90 -> cuda:80"
    assert differs(tuned.lines["variable"]) == "TRITON_DISABLE_LINE_INFO unset -> true"


def test_a_function_that_was_only_moved_is_told_from_one_that_was_changed(tuned):
    """Though what it calls, which is part of Triton's digest with its own line, has moved too."""
    assert differs(tuned.lines["moved"]) == "tune.py:9 was line 8"
    assert differs(tuned.lines["source"]) == differs(tuned.lines["helper"]) == SOURCE


def test_a_program_that_reads_the_log_gets_the_difference_as_fields(tuned):
    line = json.loads(tuned.lines["json"])
    assert len(line["nearest"]) == len(line["key"])
    assert line["differs"] == [{"kind": "constant", "name": block(), "a": "1024", "b": "2048"}] or (
        line["differs"] == [{"kind": "constant", "name": block(), "a": "512", "b": "2048"}]
    )


def test_what_a_launch_finds_out_about_arguments_is_told_too(triton, tmp_path):
    """Triton 3.2 does not write down which parameter is which."""
    file, root = tmp_path / "tune.py", tmp_path / "root"
    file.write_text(KERNEL)
    environ = {**os.environ, **PLUGIN, "GPUCACHE_DIR": str(root), "GPUCACHE_LOG": "info"}
    done = warm().run(
        LAUNCH, file, 4096, 4097, env={**environ, "TRITON_CACHE_DIR": f"{root}/triton/0"}
    )
    assert done.returncode == 0, done.stderr
    _, line = re.findall(r"^.*miss: .*$", done.stderr, re.MULTILINE)
    of_3_2 = "#2 divisible by 16 -> unset"
    assert differs(line) == ("n i32, divisible by 16 -> i32" if block() == "BLOCK" else of_3_2)


# ---- without Triton


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    """A root that this process launches in."""
    root = tmp_path / "root"
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)
    return root


def test_the_newest_entries_of_one_name_are_found_newest_first(root):
    keys = []
    for number in range(4):
        key, files = kernel(f"seed {number}", "add" if number else "mul")
        launched(key, files)
        os.utime(f"{entry_path(str(root), key)}/{next(iter(files))}", (number, number))
        keys.append(key)
    found = entries_of_kernel(str(root), "add.json", 2, time.monotonic() + 60)
    assert [entry.key for entry in found.entries] == [keys[3], keys[2]]
    assert found.is_all


def test_the_search_ends_with_its_time_and_says_so(root):
    launched(*kernel("seed"))
    found = entries_of_kernel(str(root), "add.json", 2, time.monotonic() - 1)
    assert found == ((), False)


def test_a_store_that_is_not_there_has_none(tmp_path):
    assert entries_of_kernel(str(tmp_path), "add.json", 2, time.monotonic() + 60) == ((), True)


def test_nothing_is_looked_for_at_other_levels_of_the_log(root, monkeypatch):
    monkeypatch.setattr(miss_line, "tell_miss", lambda *_: pytest.fail("it was told"))
    assert launched(*kernel("seed"))[0] is False


def test_whatever_fails_the_line_is_written_and_the_kernel_launched(root, monkeypatch, caplog):
    def broken(*_):
        raise LookupError("a defect")

    monkeypatch.setattr(miss_line, "is_compile", lambda frame: True)
    monkeypatch.setattr(miss_line, "entries_of_kernel", broken)
    with caplog.at_level(logging.INFO, "gpucache"):
        assert launched(*kernel("seed"))[0] is False
        assert launched(*kernel("seed"))[0] is True
    (miss,) = [said for said in caplog.messages if said.startswith("miss: ")]
    assert miss.endswith("; the nearest entry cannot be told: LookupError: a defect")
