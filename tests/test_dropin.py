"""The drop-ins beside the real torch: the same directory, in the same environment, always."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpucache import UnsafeDirectoryError
from gpucache.directories import dropin

USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
BOTH = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable of ours, a temporary directory of this test, and nothing remembered."""
    saved = dict(os.environ)
    for name in (*BOTH, *USER_NAMES):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(dropin, "_settled", (None, ""))
    monkeypatch.chdir(tmp_path)
    yield
    for name in BOTH:  # the functions write them back, as torch does
        os.environ.pop(name, None)
        if name in saved:
            os.environ[name] = saved[name]


def test_the_default_is_made_private_and_written_back(tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "carol")
    expected = str(tmp_path / "tmp" / "torchinductor_carol")
    assert dropin.default_cache_dir() == expected
    assert not Path(expected).exists()
    assert dropin.cache_dir() == expected == os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert Path(expected).stat().st_mode & 0o777 == 0o700


def test_a_relative_value_is_frozen_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "here")
    assert dropin.cache_dir() == str(tmp_path / "here")
    monkeypatch.chdir("/")
    assert dropin.cache_dir() == str(tmp_path / "here")


def test_the_ordinal_is_joined_unmapped(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "root"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert dropin.triton_cache_dir(0) == str(tmp_path / "root" / "triton" / "0")
    assert dropin.triton_cache_dir(None) == str(tmp_path / "root" / "triton" / "None")
    assert not (tmp_path / "root" / "triton").exists()


def test_triton_cache_dir_wins_verbatim(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "relative/x ")
    assert dropin.triton_cache_dir(3) == "relative/x "
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_change_of_the_environment_is_honoured_at_the_next_call(tmp_path, monkeypatch):
    for name in ("a", "b", "a"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))
        assert dropin.cache_dir() == str(tmp_path / name)
        assert dropin.triton_cache_dir(1) == str(tmp_path / name / "triton" / "1")
        assert (tmp_path / name).is_dir()
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert dropin.triton_cache_dir(1) == "/elsewhere"
    monkeypatch.delenv("TRITON_CACHE_DIR")
    assert dropin.triton_cache_dir(1) == str(tmp_path / "a" / "triton" / "1")


@pytest.mark.parametrize("name", BOTH)
def test_an_empty_variable_counts_as_unset(name, tmp_path, monkeypatch):
    """Torch would cache in the current directory, or answer ``""``."""
    monkeypatch.setenv("USER", "carol")
    monkeypatch.setenv(name, "")
    assert dropin.triton_cache_dir(2) == str(
        tmp_path / "tmp" / "torchinductor_carol" / "triton" / "2"
    )


def test_an_unsafe_root_is_refused_and_the_environment_left(tmp_path, monkeypatch):
    root = tmp_path / "open"
    root.mkdir()
    root.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "open")
    for call in (dropin.cache_dir, lambda: dropin.triton_cache_dir(0)):
        with pytest.raises(UnsafeDirectoryError, match="0777"):
            call()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "open"


def test_disabled_it_does_not_vet(tmp_path, monkeypatch):
    root = tmp_path / "open"
    root.mkdir()
    root.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(root))
    monkeypatch.setenv("GPUCACHE_DISABLE", "1")
    assert dropin.cache_dir() == str(root)


@pytest.mark.parametrize("before", [{}, dict.fromkeys(BOTH, "/old"), {"TRITON_CACHE_DIR": "/old"}])
def test_temporary_cache_dir_moves_both_caches_and_restores_both(before, tmp_path, monkeypatch):
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    with dropin.temporary_cache_dir(str(tmp_path / "fresh")):
        assert dropin.triton_cache_dir(0) == str(tmp_path / "fresh" / "triton" / "0")
        os.environ["TRITON_CACHE_DIR"] = "/set-by-a-first-kernel"
    assert {name: os.environ[name] for name in BOTH if name in os.environ} == before


def test_temporary_cache_dir_restores_after_an_exception(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/old")
    with pytest.raises(KeyError), dropin.temporary_cache_dir(str(tmp_path)):
        raise KeyError
    assert os.environ["TRITON_CACHE_DIR"] == "/old"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_using_them_imports_neither_torch_nor_pynvml_nor_filelock(python, tmp_path):
    code = """if True:
        import sys, gpucache
        gpucache.cache_dir(), gpucache.triton_cache_dir(0)
        with gpucache.temporary_cache_dir("x"):
            pass
        print([name for name in ("torch", "triton", "pynvml", "filelock", "click") if name in sys.modules])
    """
    done = python(code, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "root")})
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---- beside the real torch


Env = dict[str, str]
ENVIRONMENTS: list[Env] = [
    {},
    {"USER": "carol"},
    {"LOGNAME": "dave", "USER": "carol"},
    {"LOGNAME": "", "USER": "carol"},
    {"LNAME": "erin", "USERNAME": "frank"},
    {"USER": 'DOMAIN\\car/ol:*?"<>|x'},
    {"USER": "name with blanks"},
    {"USER": "zoë-李"},
    {"USER": "caf\udce9"},  # bytes that are not UTF-8
    {"USER": ".."},
    {"USER": "carol", "TMPDIR": "{tmp}/other"},
    {"USER": "carol", "TMPDIR": "{tmp}/does-not-exist"},
    {"TORCHINDUCTOR_CACHE_DIR": "{tmp}/root"},
    {"TORCHINDUCTOR_CACHE_DIR": "{tmp}/root/"},
    {"TORCHINDUCTOR_CACHE_DIR": "{tmp}/a/../b//c/."},
    {"TORCHINDUCTOR_CACHE_DIR": "relative/dir"},
    {"TORCHINDUCTOR_CACHE_DIR": "~/not-expanded"},
    {"TORCHINDUCTOR_CACHE_DIR": " {tmp}/blank "},
    {"TRITON_CACHE_DIR": "{tmp}/t"},
    {"TRITON_CACHE_DIR": "relative/t"},
    {"TRITON_CACHE_DIR": "{tmp}/t", "TORCHINDUCTOR_CACHE_DIR": "{tmp}/root"},
]


@pytest.fixture
def torch_functions() -> object:
    from torch._inductor.runtime import cache_dir_utils

    return cache_dir_utils


def _answers(functions: object, environment: Env, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the three functions say, what they leave in the environment, and whether the root exists."""
    with monkeypatch.context() as patch:
        for name in (*BOTH, *USER_NAMES):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(dropin, "_settled", (None, ""))
        said = [functions.default_cache_dir()]
        said += [functions.triton_cache_dir(device) for device in (0, 3, 7, None)]
        said += [os.environ.get(name) for name in BOTH]
        said += [functions.cache_dir(), *(os.environ.get(name) for name in BOTH)]
        said += [functions.triton_cache_dir(1), os.path.isdir(functions.cache_dir())]
        for name in BOTH:
            os.environ.pop(name, None)
    return said


@pytest.mark.torch
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: ascii(environment))
def test_torch_and_we_name_the_same_directories(
    environment, torch_functions, tmp_path, monkeypatch
):
    (tmp_path / "other").mkdir()
    environment = {name: value.format(tmp=tmp_path) for name, value in environment.items()}
    ours = _answers(dropin, environment, monkeypatch)
    assert ours == _answers(torch_functions, environment, monkeypatch)


@pytest.mark.torch
def test_torch_and_we_agree_on_a_user_without_a_passwd_entry(python, as_root, everyones):
    code = """if True:
        import os, sys, gpucache.directories.dropin
        from torch._inductor.runtime import cache_dir_utils
        os.setgid(54321), os.setuid(54321)
        for functions in (cache_dir_utils, gpucache.directories.dropin):
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
            print(functions.default_cache_dir(), functions.cache_dir(), functions.triton_cache_dir(4))
    """
    everyones.chmod(0o1777)
    environment = {name: value for name, value in os.environ.items() if name not in USER_NAMES}
    done = python(code, env={**environment, "TMPDIR": str(everyones)})
    root = everyones / "torchinductor_uid_54321"
    assert done.stdout.splitlines() == [f"{root} {root} {root}/triton/4"] * 2, done.stderr


@pytest.mark.torch
def test_what_inductor_keeps_in_memory_is_cleared_on_both_ways(torch_functions, tmp_path):
    utils = sys.modules["torch._inductor.utils"]
    cleared: list[Callable[[], None]] = []

    @utils.clear_on_fresh_cache
    class Cache:
        @staticmethod
        def cache_clear() -> None:
            cleared.append(Cache.cache_clear)

    try:
        with dropin.temporary_cache_dir(str(tmp_path)):
            assert len(cleared) == 1
        assert len(cleared) == 2
    finally:
        utils._registered_caches.remove(Cache)


@pytest.mark.torch
def test_the_defects_of_torch_that_we_do_not_share_are_still_there(
    torch_functions, tmp_path, monkeypatch
):
    """When torch mends one of these, the drop-ins should lose the difference."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    assert torch_functions.cache_dir() == os.getcwd()
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    assert torch_functions.triton_cache_dir(0) == ""
    monkeypatch.setenv("TRITON_CACHE_DIR", "/old")
    with torch_functions.temporary_cache_dir(str(tmp_path)):
        assert torch_functions.triton_cache_dir(0) == "/old"
