"""The environment variables in Triton's key, as recorded for one recipe and as they were for the next."""

from __future__ import annotations

import os

import pytest

from gpucache.warm.replay.variables import VariableError, as_recorded

KNOWN = (
    "DISABLE_LLVM_OPT",
    "TRITON_DISABLE_LINE_INFO",
    "TRITON_F32_DEFAULT",
    "TRITON_PLUGIN_PATHS",
)


def listed() -> dict[str, str]:
    """As Triton's `get_cache_invalidating_env_vars`: those that it knows and that are set, in its form."""
    words = {"1": "true", "0": "false"}
    return {
        name: words.get(os.environ[name], os.environ[name]) for name in KNOWN if name in os.environ
    }


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)


def test_are_set_for_the_block_only():
    with as_recorded({"TRITON_F32_DEFAULT": "ieee", "DISABLE_LLVM_OPT": "true"}, listed):
        assert listed() == {"TRITON_F32_DEFAULT": "ieee", "DISABLE_LLVM_OPT": "true"}
        assert os.environ["DISABLE_LLVM_OPT"] == "1"  # as Python code of 3.2 reads it
    assert listed() == {}


def test_that_are_set_here_and_were_not_are_unset_for_the_block(monkeypatch):
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    with as_recorded({}, listed):
        assert "TRITON_DISABLE_LINE_INFO" not in os.environ
    assert os.environ["TRITON_DISABLE_LINE_INFO"] == "1"


def test_keep_the_words_of_the_user_where_these_mean_the_same(monkeypatch):
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    with as_recorded({"TRITON_DISABLE_LINE_INFO": "true"}, listed):
        assert os.environ["TRITON_DISABLE_LINE_INFO"] == "1"


def test_that_this_triton_does_not_have_in_its_key_are_left_alone(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "mine:Manager")
    with as_recorded({"TRITON_CACHE_MANAGER": "evil:Manager", "PATH": "x"}, listed):
        assert os.environ["TRITON_CACHE_MANAGER"] == "mine:Manager"
        assert os.environ["PATH"] != "x"


def test_are_restored_after_an_exception():
    with pytest.raises(KeyboardInterrupt), as_recorded({"TRITON_F32_DEFAULT": "ieee"}, listed):
        raise KeyboardInterrupt
    assert listed() == {}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("TRITON_PLUGIN_PATHS", "evil.so", "names a file"),
        ("LLVM_PASS_PLUGIN_PATH", "evil.so", "names a file"),
        ("TRITON_DUMP_MIR", "x", "names a file"),
        ("MLIR_DUMP_PATH", "x", "names a file"),
        ("USE_IR_LOC", "ttir", "names a file"),
        ("TRITON_F32_DEFAULT", "/etc/passwd", "names a file"),
        ("DISABLE_LLVM_OPT", "disable-lsr", "names flags of LLVM, which stay set"),
    ],
)
def test_that_name_a_file_or_flags_that_stay_are_not_set(name, value, why):
    with pytest.raises(VariableError) as caught, as_recorded({name: value}, listed):
        pytest.fail("entered")
    assert caught.value.problem == f"the variable {name} {why}, and is not changed for a recipe"
    assert caught.value.hint == f"set {name}={value!r} yourself"
    assert name not in os.environ


def test_that_name_a_file_stay_where_the_user_has_set_them_alike(monkeypatch):
    monkeypatch.setenv("TRITON_PLUGIN_PATHS", "mine.so")
    with as_recorded({"TRITON_PLUGIN_PATHS": "mine.so"}, listed):
        assert os.environ["TRITON_PLUGIN_PATHS"] == "mine.so"
    with pytest.raises(VariableError) as caught, as_recorded({}, listed):
        pytest.fail("entered")
    assert caught.value.hint == "unset TRITON_PLUGIN_PATHS"
