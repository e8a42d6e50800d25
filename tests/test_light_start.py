"""What must not be imported where a process starts: each of these modules costs a launch or a worker milliseconds.

Nothing is timed here; `benchmarks/bench_startup.py` does that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.recipes import recipe_file

import gpucache

SLOW = {
    *("click", "rich", "packaging", "filelock", "pynvml", "torch", "triton"),
    *("dataclasses", "inspect", "typing", "collections.abc", "logging"),
    *(
        "shutil",
        "tempfile",
        "secrets",
        "hashlib",
        "threading",
        "subprocess",
        "ctypes",
        "traceback",
        "datetime",
    ),
}
NOT_FOR_A_HIT = {
    *("gpucache.disk.capabilities", "gpucache.disk.lock_token", "gpucache.disk.within"),
    *("gpucache.store.counter_fold", "gpucache.store.counter_look", "gpucache.store.key_lock"),
    *("gpucache.store.quarantine", "gpucache.store.size", "gpucache.triton.shared_kernel"),
    *("gpucache.triton.remember", "gpucache.kernels.triton_files"),
    *("gpucache.remote", "gpucache.archive", "gpucache.triton.fetched", "socket", "select"),
}
OF_SHARED_ROOTS_AND_FILES = {
    *("gpucache.disk.sharing", "gpucache.disk.access_acl", "gpucache.directories.making"),
    *("gpucache.layout.inductor", "gpucache.layout.keys"),
    *("gpucache.configuration.reading", "gpucache.configuration.believing"),
    *("gpucache.configuration.form", "gpucache.configuration.parsed"),
}
OF_COUNTERS = {"gpucache.store.counter_fold", "gpucache.store.counter_look"}
"""What a process that has counted imports at its end."""
PACKAGE = Path(gpucache.__file__).parent.parent


def imported(code: str, environ: dict[str, str], *, with_site: bool = False) -> set[str]:
    """Which modules the code imports, in a Python without site-packages, which may import something of their own."""
    told = "import atexit, sys; sys.path.insert(0, sys.argv[1])\n"
    told += "atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))\n"
    flags = [] if with_site else ["-S"]
    command = [sys.executable, *flags, "-c", told + code, PACKAGE]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.fixture
def provisioned(tmp_path, gpucache) -> dict[str, str]:
    """The environment of a process on a machine with two fake devices, whose directories are there."""
    environ = {"PATH": os.environ["PATH"], "GPUCACHE_DIR": f"{tmp_path}/root"}
    environ["GPUCACHE_FAKE_DEVICES"] = "2"
    assert gpucache("provision", env={**os.environ, **environ}).returncode == 0
    return environ


def test_a_worker_imports_nothing_slow(provisioned):
    code = "from gpucache import DeviceCacheRegistry; DeviceCacheRegistry.load().path(0)"
    assert imported(code, provisioned).isdisjoint(SLOW)


@pytest.mark.parametrize(
    "words",
    [["path", "0"], ["env", "0", "--format", "fish"], ["run", "--device", "1", "--", "true"]],
    ids=lambda words: words[0],
)
def test_the_commands_that_start_ranks_import_nothing_slow(words, provisioned):
    assert of_command(words, provisioned).isdisjoint(SLOW)


def of_command(words: list[str], environ: dict[str, str]) -> set[str]:
    """Which modules a command imports, `run` until it becomes the other one."""
    code = "os = __import__('os'); os.execvpe = lambda *_: sys.exit()\n"
    code += f"from gpucache.cli.main import main; sys.exit(main({words!r}))"
    return imported(code, environ)


def test_a_start_without_settings_in_a_private_root_imports_nothing_for_shared_ones_or_files(
    provisioned,
):
    code = "from gpucache import DeviceCacheRegistry; DeviceCacheRegistry.load().path(0)"
    of_worker = imported(code, provisioned)
    assert of_worker.isdisjoint(OF_SHARED_ROOTS_AND_FILES | {"gpucache.disk.members"})
    assert of_worker.isdisjoint({"gpucache.disk.refusal", "gpucache.log"})
    assert of_command(["path", "0"], provisioned).isdisjoint(OF_SHARED_ROOTS_AND_FILES)
    words = ["run", "--device", "1", "--", "true"]
    assert of_command(words, provisioned).isdisjoint(OF_SHARED_ROOTS_AND_FILES)


def test_the_help_of_all_commands_imports_nothing_that_finds_devices(provisioned):
    code = "from gpucache.cli.main import main; sys.exit(main(['--help']))"
    found = imported(code, provisioned, with_site=True)
    assert not any(name.startswith("gpucache.directories") for name in found)


def test_other_jit_caches_are_looked_at_only_where_they_are_chosen(provisioned):
    plain = of_command(["run", "--device", "1", "--", "true"], provisioned)
    assert not any("jit" in module for module in plain if module.startswith("gpucache."))
    words = ["run", "--device", "1", "--caches", "warp", "--", "true"]
    of_command(words, provisioned)  # the first one makes the directory
    chosen = of_command(words, provisioned)
    assert "gpucache.layout.jit_caches" in chosen
    assert chosen.isdisjoint(SLOW)


def test_nor_does_a_run_that_compiles_ahead(provisioned, tmp_path):
    recipe_file(tmp_path / "r.jsonl", 3)
    for more in (["--warm", f"{tmp_path}/r.jsonl"], ["--warm", "auto"], ["--record", "x"]):
        words = ["run", "--device", "1", *more, "--", "true"]
        code = "os = __import__('os'); os.execvpe = lambda *_: sys.exit()\n"
        code += f"from gpucache.cli.main import main; sys.exit(main({words!r}))"
        found = imported(code, provisioned)
        assert found.isdisjoint(SLOW)
        assert ("gpucache.warm.ahead.ahead" in found) == ("--warm" in more)


def test_the_drop_ins_import_nothing_slow(tmp_path):
    environ = {"PATH": os.environ["PATH"], "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/root"}
    code = "import gpucache; gpucache.cache_dir(), gpucache.triton_cache_dir(0)"
    assert imported(code, environ).isdisjoint(SLOW)


def test_the_plug_in_makes_no_dataclass(provisioned):
    """Triton has imported most of the rest itself, but each dataclass costs as much as a small module."""
    found = imported("import gpucache.triton", provisioned)
    assert found.isdisjoint({"dataclasses", "inspect", "click", "rich", "pynvml", "filelock"})


def test_a_process_that_hits_imports_nothing_of_a_remote_that_is_set(provisioned, monkeypatch):
    key, files = kernel("hit")
    environ = {**provisioned, "TRITON_CACHE_DIR": f"{provisioned['GPUCACHE_DIR']}/triton/0"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    another_process(monkeypatch)
    launched(key, files)
    code = "from gpucache.triton.manager import DeviceCacheManager\n"
    code += f"assert DeviceCacheManager({key!r}).get_group('add.json')"
    remote = {"GPUCACHE_REMOTE": "s3://bucket/prefix", "GPUCACHE_TRUST_KEYS": "me:key"}
    found = imported(code, {**environ, **remote})
    assert found.isdisjoint(NOT_FOR_A_HIT - OF_COUNTERS)
    assert not [name for name in found if name.startswith(("gpucache.remote", "gpucache.archive"))]


def test_the_import_of_the_plug_in_takes_nothing_that_only_a_miss_or_a_fold_needs(provisioned):
    assert imported("import gpucache.triton", provisioned).isdisjoint(NOT_FOR_A_HIT)
