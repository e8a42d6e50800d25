"""Which Python runs a program is told by files alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpucache import launch_environ
from gpucache.directories.jit_level import torch_version
from gpucache.directories.jit_python import python_of, this_python

pytestmark = pytest.mark.usefixtures("bare_dev")


@pytest.fixture
def other(tmp_path) -> Path:
    """An environment with another Python and a torch; its Python is a link, as venv makes it."""
    prefix = tmp_path / "venv"
    packages = prefix / "lib/python3.12/site-packages"
    (packages / "torch").mkdir(parents=True)
    (packages / "torch/version.py").write_text("__version__ = '2.9.1+cu128'\n")
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(sys.executable)
    return prefix


def script(path: Path, first: str) -> Path:
    path.write_text(f"{first}\nimport vllm\n")
    path.chmod(0o755)
    return path


def found(program: object, prefix: Path) -> tuple[str, str]:
    python = python_of(str(program), {"PATH": f"{prefix}/bin:/bin"})
    return python.tag, python.path[-1]


def test_a_python_is_of_its_own_environment(other):
    expected = ("cp312", f"{other}/lib/python3.12/site-packages")
    assert found(other / "bin/python", other) == expected
    assert found("python", other) == expected


def test_a_script_is_of_the_python_in_its_first_line(other):
    expected = ("cp312", f"{other}/lib/python3.12/site-packages")
    assert found(script(other / "bin/vllm", f"#!{other}/bin/python"), other) == expected
    assert found("vllm", other) == expected
    assert found(script(other / "bin/b", "#!/usr/bin/env python"), other) == expected
    assert found(script(other / "bin/c", "#!/usr/bin/env -S python -u"), other) == expected


@pytest.mark.parametrize("first", ["#!/bin/sh", "\x7fELF", "#!", "#!/usr/bin/env", "echo"])
def test_of_anything_else_the_own_python_stands(other, first):
    assert python_of(str(script(other / "bin/x", first)), {"PATH": "/bin"}) == this_python()


def test_of_several_pythons_of_a_system_the_link_tells_which(tmp_path):
    for name in ("python3.11", "python3.13t"):
        (tmp_path / "usr/lib" / name).mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir()
    script(tmp_path / "usr/bin/python3.13t", "ELF")
    (tmp_path / "usr/bin/python3").symlink_to("python3.13t")
    packages = tmp_path / "usr/local/lib/python3.13t/dist-packages"
    python = python_of("python3", {"PATH": f"{tmp_path}/usr/bin"})
    assert (python.tag, python.path[0]) == ("cp313t", str(packages))
    (tmp_path / "usr/bin/python3").unlink()
    script(tmp_path / "usr/bin/python3", "ELF")
    assert python_of("python3", {"PATH": f"{tmp_path}/usr/bin"}) == this_python()


def test_of_what_is_not_there_the_own_python_stands(other):
    assert python_of("no-such-program", {"PATH": f"{other}/bin"}) == this_python()
    assert python_of(f"{other}/nothing/bin/python", {"PATH": ""}) == this_python()


def test_the_own_python_is_itself_by_any_name():
    assert python_of(sys.executable, {"PATH": "/bin"}) == this_python()


def test_pythonpath_comes_first(other, tmp_path):
    environ = {"PATH": f"{other}/bin", "PYTHONPATH": f"{tmp_path}/a:"}
    assert python_of("python", environ).path[0] == f"{tmp_path}/a"


def test_the_users_own_packages_come_before_those_of_a_python_that_is_no_venv(other):
    python = python_of(str(other / "bin/python"), {"HOME": "/home/ada"})
    assert python.path[0] == "/home/ada/.local/lib/python3.12/site-packages"
    (other / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    python = python_of(str(other / "bin/python"), {"HOME": "/home/ada"})
    assert all(path.startswith(f"{other}/") for path in python.path)


def test_a_venv_that_shows_the_systems_packages_has_the_systems_torch(tmp_path, other):
    """As in images whose torch is the system's: `python -m venv --system-site-packages`."""
    venv = tmp_path / "shown"
    (venv / "lib/python3.12/site-packages").mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(other / "bin/python")
    settings = f"home = {other}/bin\ninclude-system-site-packages = true\nversion = 3.12.1\n"
    (venv / "pyvenv.cfg").write_text(settings)
    assert torch_version(python_of(str(venv / "bin/python"), {}).path) == "2.9.1+cu128"
    (venv / "pyvenv.cfg").write_text(settings.replace("true", "false"))
    assert torch_version(python_of(str(venv / "bin/python"), {}).path) is None


def test_the_torch_of_the_program_names_the_place_of_its_extensions(other, tmp_path):
    base = {"PATH": f"{other}/bin:/bin", "HOME": str(tmp_path)}
    base |= {"GPUCACHE_DIR": f"{tmp_path}/root", "GPUCACHE_FAKE_DEVICES": "1xH100:9.0"}
    environ, _ = launch_environ(base, caches="torch-extensions", program="python")
    place = f"{tmp_path}/root/jit/torch-extensions/cp312-torch2.9.1+cu128-sm_90"
    assert environ["TORCH_EXTENSIONS_DIR"] == place
    given = {**base, "TORCH_EXTENSIONS_DIR": "/mine"}
    environ, _ = launch_environ(given, caches="torch-extensions", program="python", force=True)
    assert environ["TORCH_EXTENSIONS_DIR"] == place, "also if a variable of the user's is replaced"
