"""The plug-in is turned on in each Python that imports Triton under `gpucache run`, and in none that lacks gpucache."""

from __future__ import annotations

import ast
import os
import py_compile
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.processes import python_path
from support.ranks import PYTHON

from gpucache.directories.python_path import (
    SITE,
    hidden_by,
    is_on_path,
    manager,
    with_site,
    without_site,
)
from gpucache.environment import OUR_MANAGER

OURS = OUR_MANAGER
PACKAGE = Path(SITE).parent.parent
LAUNCH = "import triton; triton.launch()"
STAND_IN = """
import importlib, os

def launch():
    '''What a launch does with the variable (`triton/runtime/cache.py` of 3.2.0 to 3.9.0).'''
    chosen = os.environ.get("TRITON_CACHE_MANAGER")
    if chosen:
        module, name = chosen.split(":")
        getattr(importlib.import_module(module), name)
    print(chosen or "stock")
"""


@pytest.fixture
def environ(tmp_path):
    """A Python of this environment has gpucache, and a stand-in for Triton that does not compile."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "triton.py").write_text(STAND_IN)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{PACKAGE}:{library}",
        "GPUCACHE_FAKE_DEVICES": "1",
        "GPUCACHE_DIR": str(tmp_path / "root"),
    }


@pytest.fixture
def other(tmp_path):
    """The Python of another environment, which has Triton (the stand-in) and lacks gpucache."""
    made = tmp_path / "other"
    venv = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", made]
    subprocess.run(venv, check=True)
    library = next(made.glob("lib/python*/site-packages"))
    (library / "triton.py").write_text(STAND_IN)
    return made / "bin" / "python"


ALONE = "cd /; export PYTHONPATH=${PYTHONPATH%%:*}"
"""A script's line after which the directory of `gpucache run` is all of `PYTHONPATH`, and gpucache is not on it."""


def said(done) -> str:
    """The one line that a program printed, which ended well."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- on


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", LAUNCH],
        ["bash", "-c", f"python -c '{LAUNCH}'"],
        ["bash", "-c", f"source /dev/null; exec env python -c '{LAUNCH}'"],
        ["bash", "-c", f"echo | xargs python -c '{LAUNCH}'"],
        ["bash", "-c", f'PYTHONPATH="$PWD:$PYTHONPATH" python -c "{LAUNCH}"'],
        [sys.executable, "-m", "gpucache", "run", "--", "bash", "-c", f"python -c '{LAUNCH}'"],
        ["bash", "-c", f"python -m gpucache run -- python -c '{LAUNCH}'"],
        # as torchrun starts its ranks
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]],"
            "env=os.environ.copy(), start_new_session=True))",
            LAUNCH,
        ],
        [
            sys.executable,
            "-c",
            "import multiprocessing, triton\n"
            "if __name__ == '__main__':\n"
            "    child = multiprocessing.get_context('spawn').Process(target=triton.launch)\n"
            "    child.start(), child.join()",
        ],
    ],
    ids=["python", "script", "exec", "xargs", "prefixed", "outer", "inner", "torchrun", "spawn"],
)
def test_any_command_turns_it_on_in_the_python_that_imports_triton(command, gpucache, environ):
    assert said(gpucache("run", "--", *command, env=environ)) == OURS


@pytest.mark.compiles
def test_the_ranks_of_a_shell_script_compile_each_kernel_once(gpucache, triton, tmp_path, root):
    kernels = Path(__file__).parent / "support" / "compile_kernel.py"
    script = tmp_path / "train.sh"
    script.write_text(
        f"set -e\nfor rank in 0 1; do echo | {PYTHON} {kernels.with_name('kernels.py')} 2 90; done\n"
    )
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1xH100:9.0", "GPUCACHE_DIR": str(root)}
    environ["PYTHONPATH"] = python_path(PACKAGE)
    done = gpucache("run", "--", "bash", script, env=environ)
    compiled = [
        line.split('"compiled": ')[1][0] for line in done.stdout.splitlines() if "{" in line
    ]
    assert compiled == ["2", "0"], done.stdout + done.stderr


# ---- off


def test_another_environment_of_a_script_compiles_as_stock_and_is_told_so_once(
    gpucache, environ, other
):
    script = f"{ALONE}; for rank in 0 1 2; do LOCAL_RANK=$rank {other} -c '{LAUNCH}'; done"
    done = gpucache("run", "--", "bash", "-c", script, env=environ)
    assert said(done) == "stock\nstock\nstock"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gpucache: ")]
    assert line.startswith(f"gpucache: {other} cannot import gpucache, so that each rank compiles")
    assert "install gpucache-devices there" in line


def test_an_environment_that_is_no_venv_is_another_one_too(gpucache, environ, tmp_path):
    """As those of conda: an interpreter of its own, and no `pyvenv.cfg`."""
    base = os.path.realpath(sys.executable)
    program = tmp_path / "train.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(tmp_path / 'library')!r}); {LAUNCH}")
    script = f"{ALONE}; export CONDA_PREFIX=/conda; {base} -s {program}"
    assert said(gpucache("run", "--", "bash", "-c", script, env=environ)) == "stock"


def test_a_python_without_triton_is_not_told_that_it_lacks_gpucache(gpucache, environ, other):
    next(other.parent.parent.glob("lib/python*/site-packages/triton.py")).unlink()
    script = f"{ALONE}; {other} -c 'import triton'"
    done = gpucache("run", "--", "bash", "-c", script, env=environ)
    assert "No module named 'triton'" in done.stderr
    assert "cannot import" not in done.stderr


@pytest.mark.parametrize(
    ("has_triton", "python_path"), [(True, "kept"), (False, "kept"), (False, "replaced")]
)
def test_a_program_may_start_another_environments_python(
    gpucache, environ, other, has_triton, python_path
):
    """Its own environment is handed on, in which nothing may name what the other Python cannot import."""
    code = "import triton\n" if has_triton else ""
    code += "import os, subprocess, sys\nenviron = dict(os.environ)\n"
    paths = environ["PYTHONPATH"]
    code += f"environ['PYTHONPATH'] = environ['PYTHONPATH'].replace({paths!r}, '')\n"
    if python_path == "replaced":
        code += "environ['PYTHONPATH'] = ''\n"
    code += f"subprocess.run([{str(other)!r}, '-c', {LAUNCH!r}], env=environ, cwd='/', check=True)"
    assert said(gpucache("run", "--", sys.executable, "-c", code, env=environ)) == "stock"


@pytest.mark.parametrize(
    "script",
    [
        "PYTHONPATH={library} python -c '{launch}'",
        "env -i PYTHONPATH={library} {python} -c '{launch}'",
        "cd {library}; python -S -c '{launch}'",
        "cd {library}; python -E -c '{launch}'",
        "python -I -c 'import sys; sys.path.insert(0, \"{library}\"); {launch}'",
    ],
    ids=["replaced", "env-i", "-S", "-E", "-I"],
)
def test_a_python_that_is_not_reached_compiles_as_stock(script, gpucache, environ, tmp_path):
    line = script.format(library=tmp_path / "library", launch=LAUNCH, python=sys.executable)
    assert said(gpucache("run", "--", "bash", "-c", line, env=environ)) == "stock"


def test_what_turns_it_off(gpucache, environ):
    command = ("bash", "-c", f"python -c '{LAUNCH}'")
    assert said(gpucache("run", "--no-plugin", "--", *command, env=environ)) == "stock"
    inner = (sys.executable, "-m", "gpucache", "run", "--no-plugin", "--", *command)
    assert said(gpucache("run", "--", *inner, env=environ)) == "stock"
    assert (
        said(gpucache("run", "--", *command, env={**environ, "GPUCACHE_DISABLE": "1"})) == "stock"
    )
    later = ("bash", "-c", f"GPUCACHE_DISABLE=1 python -c '{LAUNCH}'")
    assert said(gpucache("run", "--", *later, env=environ)) == "stock"


@pytest.mark.parametrize("options", [[], ["--no-plugin"]])
def test_an_inner_run_takes_back_what_a_program_hands_on(options, gpucache, environ, other):
    """A program that has imported Triton has the variable, and starts another run, whose script is of elsewhere."""
    inner = [sys.executable, "-m", "gpucache", "run", *options, "--"]
    script = f"python -c '{LAUNCH}'; cd /; PYTHONPATH= {other} -c '{LAUNCH}'"
    code = (
        f"import subprocess, triton; subprocess.run({[*inner, 'bash', '-c', script]}, check=True)"
    )
    done = gpucache("run", "--", sys.executable, "-c", code, env=environ)
    assert said(done) == f"{'stock' if options else OURS}\nstock"


def test_turned_off_in_another_environment_it_is_not_asked_for_there_either(environ, other):
    """By a program that has imported Triton, and hands the variable on."""
    environ["PYTHONPATH"] = SITE
    environ["TRITON_CACHE_MANAGER"] = OURS
    environ["GPUCACHE_DISABLE"] = "1"
    done = subprocess.run(
        [other, "-c", LAUNCH], env=environ, cwd="/", capture_output=True, text=True
    )
    assert said(done) == "stock"
    assert done.stderr == ""


def test_it_is_on_where_triton_comes_on_the_path_late(gpucache, environ, tmp_path):
    library = str(tmp_path / "library")
    environ["PYTHONPATH"] = str(PACKAGE)
    code = (
        "import importlib.util, sys\n"
        "found, sys.path = sys.path, ['/nowhere']\n"
        "assert importlib.util.find_spec('triton') is None\n"
        f"sys.path = [{library!r}, *found]\n"
    )
    done = gpucache("run", "--", sys.executable, "-c", code + LAUNCH, env=environ)
    assert said(done) == OURS


def test_a_directory_that_is_called_triton_is_not_taken_for_triton(environ, other, tmp_path):
    """As that in a root of gpucache."""
    next(other.parent.parent.glob("lib/python*/site-packages/triton.py")).unlink()
    (tmp_path / "triton").mkdir()
    environ["PYTHONPATH"] = SITE
    done = subprocess.run(
        [other, "-c", "import triton"], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_finder_whose_specs_lack_everything_stops_no_import(environ, other):
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return self if name == 'gpucache' else None\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environ["PYTHONPATH"] = SITE
    assert output(other, code + LAUNCH, environ)[0] == "stock\n"


def test_a_manager_that_the_user_has_chosen_wins(gpucache, environ):
    command = ("bash", "-c", f"python -c '{LAUNCH}'")
    chosen = {**environ, "TRITON_CACHE_MANAGER": "json:JSONEncoder"}
    done = gpucache("run", "--", *command, env=chosen)
    assert said(done) == "json:JSONEncoder"
    assert "note: kept TRITON_CACHE_MANAGER=json:JSONEncoder: you set it" in done.stderr
    assert said(gpucache("run", "--force", "--", *command, env=chosen)) == OURS
    code = f"import os; os.environ.setdefault('TRITON_CACHE_MANAGER', 'json:JSONDecoder'); {LAUNCH}"
    assert (
        said(gpucache("run", "--", sys.executable, "-c", code, env=environ)) == "json:JSONDecoder"
    )


def test_another_package_of_the_name_is_not_taken_for_gpucache(gpucache, environ, other):
    library = next(other.parent.parent.glob("lib/python*/site-packages"))
    (library / "gpucache").mkdir()
    (library / "gpucache" / "__init__.py").write_text("raise ImportError('unrelated')")
    script = f"{ALONE}; {other} -c '{LAUNCH}'"
    assert said(gpucache("run", "--", "bash", "-c", script, env=environ)) == "stock"


def test_a_gpucache_for_newer_pythons_is_not_used_by_an_older_one(environ):
    code = f"import sys; sys.version_info = (3, 9, 0); {LAUNCH}"
    environ["PYTHONPATH"] = with_site(environ["PYTHONPATH"])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "stock\n"
    assert "use Python 3.10 or a later one there, or start with" in done.stderr


# ---- the one that is shadowed

MINE = "import sys; sys.flags_of_mine = [p for p in sys.path if p.endswith('gpucache/site')]"
TOLD = "import sys, sitecustomize; print(sitecustomize.__file__, sys.flags_of_mine)"


@pytest.mark.parametrize("where", ["on PYTHONPATH", "in site-packages"])
def test_a_users_own_sitecustomize_runs_as_it_would_have(where, other, tmp_path):
    library = next(other.parent.parent.glob("lib/python*/site-packages"))
    if where == "on PYTHONPATH":
        library = tmp_path / "mine"
        library.mkdir()
    (library / "sitecustomize.py").write_text(MINE)
    environ = {"PYTHONPATH": with_site(str(library))}
    assert output(other, TOLD, environ) == (f"{library}/sitecustomize.py []\n", "")
    assert output(other, LAUNCH, environ)[0] == "stock\n"


def output(python, code, environ) -> tuple[str, str]:
    """What a program prints, and says on stderr but for what is told of gpucache."""
    done = subprocess.run(
        [python, "-c", code],
        env=environ,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines(True) if not line.startswith("gpucache: ")]
    return done.stdout, "".join(lines)


@pytest.mark.parametrize(
    "error",
    [
        "raise ValueError('mine')",
        "import nosuchmodule",
        "raise ImportError('x', name='sitecustomize')",
    ],
)
def test_an_error_in_it_is_told_as_python_tells_it(error, other, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(error)
    alone = output(other, LAUNCH, {"PYTHONPATH": str(tmp_path)})
    assert output(other, LAUNCH, {"PYTHONPATH": with_site(str(tmp_path))}) == alone


def test_an_error_in_it_is_told_to_another_that_loads_this_one(other, tmp_path):
    """As those of New Relic load the next: a loader that has the module put back, or fails by itself."""
    (tmp_path / "sitecustomize.py").write_text("raise ValueError('mine')")
    first = tmp_path / "first"
    first.mkdir()
    (first / "sitecustomize.py").write_text(
        "import sys\nfrom importlib.machinery import PathFinder\n"
        f"sys.path.remove({str(first)!r})\n"
        "PathFinder.find_spec('sitecustomize').loader.load_module('sitecustomize')\n"
    )
    alone = output(other, LAUNCH, {"PYTHONPATH": f"{first}:{tmp_path}"})
    assert "ValueError: mine" in alone[1]
    assert output(other, LAUNCH, {"PYTHONPATH": f"{first}:{SITE}:{tmp_path}"}) == alone


def test_the_path_and_the_modules_of_a_program_are_those_that_it_would_have(other, tmp_path):
    code = "import sys; print(sys.path, sorted(set(sys.modules) - {'sitecustomize'}))"
    alone = output(other, code, {"PYTHONPATH": str(tmp_path)})
    assert output(other, code, {"PYTHONPATH": with_site(str(tmp_path))}) == alone


def test_a_usercustomize_runs_beside_it(tmp_path):
    python = os.path.realpath(sys.executable)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = tmp_path / "lib" / version / "site-packages"
    library.mkdir(parents=True)
    (library / "usercustomize.py").write_text("print('usercustomize')")
    environ = {"PYTHONUSERBASE": str(tmp_path), "PYTHONPATH": SITE}
    assert output(python, "print('program')", environ)[0] == "usercustomize\nprogram\n"


def test_both_gpucaches_of_two_environments_may_be_on_the_path(environ, tmp_path):
    twin = tmp_path / "twin" / "gpucache" / "site"
    twin.mkdir(parents=True)
    (twin / "sitecustomize.py").write_bytes(Path(SITE, "sitecustomize.py").read_bytes())
    mine = tmp_path / "library" / "sitecustomize.py"
    mine.write_text("print('mine')")
    environ["PYTHONPATH"] = f"{SITE}:{twin}:{environ['PYTHONPATH']}"
    assert output(sys.executable, LAUNCH, environ)[0] == f"mine\n{OURS}\n"


def test_the_file_which_imports_nothing_of_gpucache_says_what_gpucache_says():
    text = Path(SITE, "sitecustomize.py").read_text()
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    (oldest,) = re.findall(r'requires-python = ">=(\d+)\.(\d+)"', pyproject.read_text())
    assert f'_OURS = "{OUR_MANAGER}"' in text
    assert f"_OLDEST = ({', '.join(oldest)})" in text


def test_the_file_can_be_read_by_any_python():
    """Python 2's grammar is not to be had here; that of 3.4 has no annotations of variables and no f-strings."""
    text = Path(SITE, "sitecustomize.py").read_text(encoding="ascii")
    tree = ast.parse(text, feature_version=(3, 4))
    annotated = [node for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation]
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    assert annotated + formatted == []


# ---- the variable


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, SITE),
        ("", SITE),
        ("/a", f"{SITE}:/a"),
        (":/a:", f"{SITE}::/a:"),
        (f"/a:{SITE}", f"{SITE}:/a"),
        (SITE, SITE),
        (f"{SITE}/", SITE),
        (f"{SITE}/.:/b", f"{SITE}:/b"),
        ("/mine/gpucache/site:/b", f"{SITE}:/mine/gpucache/site:/b"),
    ],
)
def test_the_directory_stands_first_and_once_and_the_rest_is_the_users(before, after):
    assert with_site(before) == after
    assert with_site(after) == after
    assert is_on_path({"PYTHONPATH": after})


@pytest.mark.parametrize(
    ("before", "after"),
    [(SITE, None), (f"{SITE}:/a", "/a"), ("/a:", "/a:"), (f"/a:{SITE}:", "/a:")],
)
def test_without_the_directory_the_rest_is_the_users(before, after):
    assert without_site(before) == after


def test_the_directory_of_another_gpucache_goes_and_one_of_the_users_that_is_called_so_stays(
    tmp_path,
):
    """As of ``pip install --target …/gpucache/site``."""
    other = tmp_path / "other" / "gpucache"
    mine = tmp_path / "mine" / "gpucache"
    for package in (other, mine):
        (package / "site").mkdir(parents=True)
    (other / "once.py").touch()
    (mine / "site" / "once.py").touch()
    before = f"{other}/site:{mine}/site"
    assert with_site(before) == f"{SITE}:{mine}/site"
    assert without_site(before) == f"{mine}/site"


def test_which_manager_a_process_will_use():
    on = {"PYTHONPATH": with_site(None)}
    assert manager({}) is None
    assert manager({**on, "TRITON_CACHE_MANAGER": ""}) == OURS
    assert manager({**on, "TRITON_CACHE_MANAGER": "other:One"}) == "other:One"


def test_another_sitecustomize_in_front_hides_it(tmp_path):
    mine = tmp_path / "sitecustomize.py"
    behind = {"PYTHONPATH": f"{tmp_path}:{SITE}"}
    assert (manager(behind), hidden_by(behind)) == (OURS, None)
    mine.touch()
    assert (manager(behind), hidden_by(behind)) == (None, str(mine))
    in_front = {"PYTHONPATH": with_site(behind["PYTHONPATH"])}
    assert (manager(in_front), hidden_by(in_front)) == (OURS, None)


@pytest.mark.parametrize(
    "what", ["compiled", "a package", "in a zip file", "a mere directory", "no zip file"]
)
def test_whatever_python_imports_by_that_name_hides_it(what, environ, tmp_path):
    part = tmp_path / "part.zip" if "zip" in what else tmp_path / "part"
    if what == "in a zip file":
        with zipfile.ZipFile(part, "w") as archive:
            archive.writestr("sitecustomize.py", "")
    elif what == "no zip file":
        part.write_text("no zip file")
    else:
        package = part / "sitecustomize"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    if what == "compiled":
        py_compile.compile(str(package / "__init__.py"), str(part / "sitecustomize.pyc"))
        shutil.rmtree(package)
    if what == "a mere directory":
        (package / "__init__.py").unlink()
    environ["PYTHONPATH"] = f"{part}:{with_site(environ['PYTHONPATH'])}"
    done, _ = output(sys.executable, LAUNCH, environ)
    is_hidden = hidden_by(environ) is not None
    assert done == ("stock\n" if is_hidden else f"{OURS}\n")
    assert is_hidden == (what in ("compiled", "a package", "in a zip file"))
