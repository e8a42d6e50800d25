"""`cat`: the files of an entry, and the instructions in its cubin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import Done, on_a_terminal
from support.processes import PATIENCE_S
from support.ranks import python_with_triton
from support.trees import KEY, stock_entry

from gpucache.diagnosis import disassembly
from gpucache.diagnosis.disassembly import disassembler, instruction_count, without_addresses


@pytest.fixture
def cubin(tuned) -> bytes:
    return _file(tuned, "cubin")


def _file(tuned, form: str) -> bytes:
    return (tuned.root / "triton/0" / tuned.keys["first"] / f"scaled.{form}").read_bytes()


@pytest.mark.parametrize("form", ["ttir", "ttgir", "llir", "ptx", "cubin", "json"])
def test_each_file_comes_byte_by_byte(form, tuned, capfdbinary):
    from gpucache.cli.main import main

    assert main(["cat", tuned.keys["first"][:20], form, "--root", str(tuned.root)]) == 0
    assert capfdbinary.readouterr().out == _file(tuned, form)


def test_the_recipe_is_a_form_too(tuned, here):
    done = here("cat", tuned.keys["first"], "recipe", "--root", tuned.root)
    assert json.loads(done.out)["kernel"] == "scaled"


def test_sass_comes_from_the_disassembler_beside_triton(tuned, here):
    done = here("cat", tuned.keys["first"], "sass", "--root", tuned.root)
    assert done.code == 0
    assert "scaled" in done.out
    assert "EXIT" in done.out
    assert instruction_count(done.out) > 10


def test_triton_is_not_imported_to_find_the_disassembler(tuned):
    command = [sys.executable, "-X", "importtime", "-m", "gpucache", "cat"]
    words = [tuned.keys["first"], "sass", "--root", str(tuned.root)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=PATIENCE_S)
    assert "EXIT" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "gpucache.diagnosis.disassembly" in imported
    assert "triton" not in imported


def test_a_form_that_is_not_there_is_an_error_that_lists_what_is(tuned, here):
    done = here("cat", tuned.keys["first"], "ptxx", "--root", tuned.root)
    assert (done.code, done.out) == (1, "")
    problem, hint = done.err.splitlines()
    assert problem == f"error: scaled {tuned.keys['first']} has no ptxx"
    assert hint.endswith("ttir, ttgir, llir, ptx, cubin, json, recipe, sass")


@pytest.mark.parametrize("said", ["PTX", ".ptx", "scaled.ptx"])
def test_a_file_is_named_as_people_name_it(said, tuned, here):
    done = here("cat", tuned.keys["first"], said, "--root", tuned.root)
    assert done == Done(0, _file(tuned, "ptx").decode(), "")


def test_a_kernels_name_in_the_place_of_a_key_is_known_as_that(tuned, here):
    done = here("cat", "scaled", "ptx", "--root", tuned.root)
    assert (done.code, done.out) == (1, "")
    assert "hint: that is a kernel's name: `gpucache ls --kernel scaled`" in done.err
    for odd in ("nothing", "../scaled", "a/b", ""):
        assert "that is a kernel's name" not in here("cat", odd, "ptx", "--root", tuned.root).err


def test_which_file_is_asked_of_an_entry_that_has_several(tuned, here):
    done = here("cat", tuned.keys["first"], "--root", tuned.root)
    assert (done.code, done.out) == (2, "")
    assert "say which file of scaled: " in done.err


def test_the_only_file_of_an_entry_needs_no_form(tmp_path, here):
    directory = tmp_path / "root/triton/0" / KEY
    directory.mkdir(parents=True)
    (directory / "add.autotune.json").write_text('{"configs_timings": []}')
    done = here("cat", KEY, "--root", tmp_path / "root")
    assert done == Done(0, '{"configs_timings": []}', "")
    assert here("cat", KEY, "json", "--root", tmp_path / "root").out == done.out


def test_a_terminal_gets_no_binary_and_no_letter_that_commands_it(tuned, tmp_path):
    code, seen = on_a_terminal("cat", tuned.keys["first"], "cubin", "--root", tuned.root)
    assert code == 1
    assert "\0" not in seen
    assert f"gpucache cat {tuned.keys['first'][:12]} cubin > scaled.cubin" in seen
    root = tmp_path / "root"
    stock_entry(root / "triton/0", KEY)
    (root / "triton/0" / KEY / "k.ptx").write_text("\tmov\x1b[2J;\n")
    code, seen = on_a_terminal("cat", KEY, "ptx", "--root", root)
    assert (code, seen) == (0, "\tmov\\x1b[2J;\n")


def test_a_file_that_is_no_file_is_refused(tmp_path, here):
    root = tmp_path / "root"
    stock_entry(root / "triton/0", KEY)
    ptx = root / "triton/0" / KEY / "k.ptx"
    os.mkfifo(ptx)
    done = here("cat", KEY, "ptx", "--root", root)
    assert (done.code, done.out) == (1, "")
    assert str(ptx) in done.err


class TestDisassembler:
    """Which program disassembles, and what becomes of its refusals."""

    def program(self, path: Path, text: str = "") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def test_what_triton_was_told_of_comes_first(self, tmp_path):
        path = self.program(tmp_path / "nvdisasm")
        assert disassembler({"TRITON_NVDISASM_PATH": str(path), "PATH": "/bin"}) == str(path)

    def test_that_of_the_shells_triton_is_found_where_gpucache_is_installed_apart(self, tmp_path):
        venv = tmp_path / "venv"
        beside = f"lib/python3.{sys.version_info[1]}/site-packages/triton/backends/nvidia/bin"
        path = self.program(venv / beside / "nvdisasm")
        self.program(venv / "bin/python")
        (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
        assert disassembler({"PATH": f"{venv}/bin"}) == str(path)

    def test_without_any_the_error_says_where_one_comes_from(self, monkeypatch, tuned, here):
        monkeypatch.setattr(disassembly, "disassembler", lambda environ: None)
        done = here("cat", tuned.keys["first"], "sass", "--root", tuned.root)
        assert done.code == 1
        assert "hint: install triton in this environment" in done.err

    @pytest.mark.parametrize(
        ("does", "said"),
        [("echo no such arch >&2; exit 3", "no such arch"), ("true", "it ended with 0")],
        ids=["refuses", "says nothing"],
    )
    def test_a_refusal_is_told_with_the_programs_words(
        self, does, said, tmp_path, tuned, here, monkeypatch
    ):
        path = self.program(tmp_path / "nvdisasm", does)
        monkeypatch.setenv("TRITON_NVDISASM_PATH", str(path))
        done = here("cat", tuned.keys["first"], "sass", "--root", tuned.root)
        assert done.code == 1
        assert done.err.startswith(f"error: {path} refuses the cubin: {said}\n")

    def test_a_cubin_that_is_none_is_refused(self, tmp_path, tuned, here):
        with pytest.raises(Exception, match="refuses the cubin"):
            disassembly.disassemble(b"\x7fELF" + bytes(4096), os.environ)

    def test_both_programs_count_the_same_instructions(self, cubin, tmp_path):
        """And say the same but for addresses and encodings."""
        beside = disassembler(os.environ)
        assert beside is not None
        other = Path(beside).with_name("cuobjdump")
        one = disassembly.disassemble(cubin, os.environ)
        two = disassembly.disassemble(cubin, {**os.environ, "TRITON_NVDISASM_PATH": str(other)})
        assert instruction_count(one) == instruction_count(two) > 10
        assert "/*0010*/" in one
        assert "/*0010*/" not in without_addresses(one)
        assert "/* 0x" not in without_addresses(two)


def test_json_of_the_cli_stays_out_of_the_file(tuned, here):
    """What is printed is the file, which has no field ``format``."""
    done = here("cat", tuned.keys["first"], "json", "--root", tuned.root)
    assert json.loads(done.out)["name"] == "scaled"


def test_triton_itself_agrees_on_the_instructions(cubin):
    """`triton.tools.disasm` of the same Triton, which uses its cuobjdump, has as many lines with an instruction."""
    code = "import sys; from triton.tools.disasm import get_sass; print(get_sass(bytes.fromhex(sys.stdin.read())))"
    lines = python_with_triton(code, text=cubin.hex()).splitlines()
    theirs = [line for line in lines if line.endswith(";") and "\tNOP" not in line]
    assert len(theirs) == instruction_count(disassembly.disassemble(cubin, os.environ))
