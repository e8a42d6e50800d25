"""Real processes, on a machine with files of settings: the system's in a real ``/etc``, a user's, a root's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import told
from support.launches import another_process, kernel, launched
from support.processes import PATIENCE_S
from support.settings_files import Machine, forms, written

from gpucache import configuration, log
from gpucache.configuration import places
from gpucache.configuration.template import EXAMPLES
from gpucache.directories.python_path import SITE
from gpucache.disk.lock_place import LockPlace
from gpucache.log import FIELDS
from gpucache.remote.write_behind import write_behind
from gpucache.store.size import set_total, total_bytes

NEVER_IMPORTED = {"tomllib", "tomli", "platformdirs", "difflib", "gpucache.configuration.toml"}
SLOW = NEVER_IMPORTED | {"click", "rich", "typing", "logging", "tempfile", "inspect", "dataclasses"}
PACKAGE = Path(__file__).parent.parent
_TOLD = """
import atexit, sys
sys.path.insert(0, sys.argv[1])
atexit.register(lambda: sys.stderr.write("MODULES " + " ".join(sys.modules)))
"""
_WORDS = "os = __import__('os'); os.execvpe = lambda *_: sys.exit()\n"
STARTS = {
    "worker": "from gpucache import DeviceCacheRegistry; print(DeviceCacheRegistry.load().path(0))",
    "path": f"{_WORDS}from gpucache.cli.main import main; sys.exit(main(['path', '0']))",
    "env": f"{_WORDS}from gpucache.cli.main import main; sys.exit(main(['env', '0']))",
    "run": f"{_WORDS}from gpucache.cli.main import main\n"
    "sys.exit(main(['run', '--device', '1', '--', 'true']))",
    "drop-in": "import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = os.environ['HOME'] + '/../root'\n"
    "import gpucache; gpucache.cache_dir()",
    "plug-in": "import gpucache.triton",
    "hit": "from gpucache.triton.manager import current_location; print(current_location().mode)",
}


@pytest.fixture
def machine(can_mount, tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def three_files(machine) -> Machine:
    """A machine with all three files, on which two fake devices are provisioned."""
    machine.system(f'dir = "{machine.root}"\nlock_timeout_s = 60\nlog = "info"\n')
    machine.user('stall_timeout_s = 20\ntrust_keys = ["me:PN94B0"]\n')
    assert machine.gpucache("provision").returncode == 0
    machine.of_root('max_size = "1GiB"\n')
    assert machine.gpucache("path", 0).stdout == f"{machine.root}/triton/0\n"
    return machine


def modules(machine: Machine, code: str) -> set[str]:
    done = machine.run(sys.executable, "-S", "-c", _TOLD + code, PACKAGE)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


@pytest.mark.mounts
@pytest.mark.parametrize("start", STARTS)
def test_what_starts_fast_parses_no_toml_with_three_files_there(start, three_files):
    found = modules(three_files, STARTS[start])
    assert found.isdisjoint(NEVER_IMPORTED)
    if start not in ("plug-in", "hit"):
        assert found.isdisjoint(SLOW)
    reads = "gpucache.configuration.form" in found
    assert reads == (start != "plug-in")


@pytest.mark.mounts
@pytest.mark.parametrize("words", [("path", "0"), ("run", "--device", "0", "--", "true")])
def test_a_file_costs_six_system_calls_and_none_costs_one(words, three_files, strace, tmp_path):
    def calls() -> int:
        trace = tmp_path / "trace"
        filters = ["-e", "trace=file,read,pread64,fstat,newfstatat,close,lseek"]
        command = [strace, "-f", "-o", trace, *filters, sys.executable, "-m", "gpucache", *words]
        assert (
            three_files.run(*command, env={"GPUCACHE_DIR": str(three_files.root)}).returncode == 0
        )
        lines = trace.read_text().splitlines()
        ours = ("/gpucache.toml", "/gpucache/user.json", "/system.json")
        return sum(any(name in line for name in ours) for line in lines)

    readings = 1 if words[0] == "path" else 2  # `run` reads what its command will read
    with_files = calls()
    assert with_files <= readings * 3 * 2  # a stat and an open of each
    for path in (three_files.etc / "gpucache", three_files.home / ".config"):
        path.rename(path.with_name("away"))
    (three_files.root / "gpucache.toml").unlink()
    assert calls() <= readings * 3


@pytest.mark.mounts
def test_config_shows_the_file_and_line_of_each_setting(three_files):
    done = three_files.gpucache("config", "--json", env={"GPUCACHE_LOG": "debug"})
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    found = {
        one["name"]: (one["value"], one["source"], one["file"], one["line"])
        for one in said["settings"]
        if one["source"] not in ("default",) and one["name"] != "PYTHONPATH"
    }
    system, user = (
        "/etc/gpucache/gpucache.toml",
        f"{three_files.home}/.config/gpucache/gpucache.toml",
    )
    of_root = f"{three_files.root}/gpucache.toml"
    assert found == {
        "GPUCACHE_DIR": (str(three_files.root), "system", system, 1),
        "GPUCACHE_FAKE_DEVICES": ("2", "environment", None, None),
        "GPUCACHE_LOCK_TIMEOUT_S": ("60", "system", system, 2),
        "GPUCACHE_STALL_TIMEOUT_S": ("20", "user", user, 1),
        "GPUCACHE_TRUST_KEYS": ("me:PN94B0", "user", user, 2),
        "GPUCACHE_MAX_SIZE": ("1GiB", "root", of_root, 1),
        "GPUCACHE_LOG": ("debug", "environment", None, None),
    }
    assert said["files"] == [system, user, of_root]
    rows = [line.split("\t") for line in three_files.gpucache("config").stdout.splitlines()]
    assert ["GPUCACHE_MAX_SIZE", "1GiB", f"{of_root}:1"] in rows


@pytest.mark.mounts
def test_a_command_gets_of_files_only_its_directories(three_files):
    """It reads the files itself; secrets and limits of files are in nobody's environment."""
    words = ("run", "--device", "1", "--", sys.executable, "-c")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    done = three_files.gpucache(*words, code)
    ours = {
        name: value
        for name, value in json.loads(done.stdout).items()
        if name.startswith("GPUCACHE_") and not name.startswith("GPUCACHE_TEST_")
    }
    assert set(ours) == {
        "GPUCACHE_DIR",
        "GPUCACHE_DEVICE",
        "GPUCACHE_FAKE_DEVICES",
        "GPUCACHE_SET",
    }
    assert ours["GPUCACHE_DIR"] == str(three_files.root)
    exported = three_files.gpucache("env", "0", "--json").stdout
    assert set(json.loads(exported)["variables"]) == {
        "GPUCACHE_DIR",
        "GPUCACHE_DEVICE",
        "GPUCACHE_SET",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
    }


@pytest.mark.mounts
def test_what_is_wrong_in_a_file_is_told_once_by_each_command_and_the_command_goes_on(three_files):
    path = three_files.user('max_sise = "1GiB"\n')
    line = f"warning: {path}:1: 'max_sise' is no setting; max_size may be meant\n"
    for words in (("path", "0"), ("stats",), ("run", "--device", "0", "--", "true"), ("config",)):
        done = three_files.gpucache(*words)
        assert (done.returncode, done.stderr.count(line)) == (0, 1), words


@pytest.mark.mounts
def test_a_root_of_a_file_that_is_not_there_names_the_file(three_files):
    three_files.user('dir = "/nowhere/kernels"\n')
    done = three_files.gpucache("stats")
    assert done.returncode == 1
    path = f"{three_files.home}/.config/gpucache/gpucache.toml:1"
    assert done.stderr.startswith(
        f"error: there is no /nowhere/kernels\nhint: correct {path}, or make it"
    )


@pytest.mark.mounts
@pytest.mark.root
def test_sudo_with_the_users_home_ignores_his_file(machine):
    machine.user('dir = "/tmp/his"\n')
    for one in (machine.home, *machine.home.rglob("*")):
        os.chown(one, 1234, 1234)
    done = machine.gpucache("config", "--json", "--root", machine.home)
    found = {one["name"]: one["source"] for one in json.loads(done.stdout)["settings"]}
    assert found["GPUCACHE_DIR"] == "argument"
    assert "belongs to uid 1234, not to uid 0" in done.stderr
    assert not forms(machine.home).exists()


@pytest.mark.mounts
def test_a_file_disables_and_enables_what_a_variable_does(machine):
    machine.root.mkdir(mode=0o700)
    machine.user(f'dir = "{machine.root}"\ndisable = true\n')
    done = machine.gpucache("run", "--device", "0", "--", "env")
    assert done.returncode == 0
    assert "TRITON_CACHE_DIR" not in done.stdout
    path = f"{machine.home}/.config/gpucache/gpucache.toml:2"
    assert f"nothing of gpucache acts; take it out of {path} to share\n" in done.stderr
    assert list(machine.root.iterdir()) == []
    done = machine.gpucache("run", "--device", "0", "--", "env", env={"GPUCACHE_DISABLE": "0"})
    assert f"TRITON_CACHE_DIR={machine.root}/triton/0" in done.stdout


# ---- config --init


@pytest.mark.mounts
def test_a_file_to_begin_with_is_written_once_and_never_over_another(machine):
    done = machine.gpucache("config", "--init")
    path = machine.home / ".config" / "gpucache" / "gpucache.toml"
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert all(f"\n# {name} = {toml}\n" in text for name, toml in EXAMPLES.items())
    path.write_text("stamp_s = 7\n")
    again = machine.gpucache("config", "--init", "--user")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith(f"error: could not write {path}: File exists\nhint: edit")
    assert path.read_text() == "stamp_s = 7\n"


@pytest.mark.mounts
def test_a_root_gets_a_file_of_its_own(three_files):
    (three_files.root / "gpucache.toml").rename(three_files.root / "gone")
    done = three_files.gpucache("config", "--init", "--root", three_files.root, "--json")
    path = three_files.root / "gpucache.toml"
    assert told(done.stdout) == {"file": str(path)}
    assert "# max_size = " in path.read_text()
    assert "# dir = " not in path.read_text()
    assert three_files.gpucache("config").stderr == ""


@pytest.mark.parametrize(("sharing", "mode"), [("group", 0o660), ("read", 0o644)])
def test_a_roots_file_is_shared_as_the_root_is_and_stays_when_all_that_is_cached_goes(
    sharing, mode, root, gpucache
):
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1", "GPUCACHE_DIR": str(root)}
    assert gpucache("provision", env=environ).returncode == 0
    path = written(root / "gpucache.toml", "stamp_s = 7\n", 0o604)
    assert gpucache("provision", "--shared", sharing, "--yes", env=environ).returncode == 0
    assert path.stat().st_mode & 0o777 == mode
    done = gpucache("clean", "--yes", env=environ)
    assert "gpucache.toml" not in done.stderr
    assert path.read_text() == "stamp_s = 7\n"


@pytest.mark.mounts
def test_init_asks_for_one_file(machine):
    done = machine.gpucache("config", "--init", "--user", "--root", machine.home)
    assert done.returncode == 2
    assert machine.gpucache("config", "--user").returncode == 2


@pytest.mark.mounts
@pytest.mark.root
def test_init_writes_nothing_into_the_home_of_another_user(machine):
    os.chown(machine.home, 1234, 1234)
    done = machine.gpucache("config", "--init")
    assert done.returncode == 1
    assert f"{machine.home}: belongs to uid 1234" in done.stderr
    assert list(machine.home.iterdir()) == []


# ---- launches


@pytest.fixture
def device(tmp_path, monkeypatch) -> Path:
    """The directory of this process's device, in a root of its own."""
    monkeypatch.setattr(places, "SYSTEM_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("GPUCACHE_DIR", str(tmp_path / "root"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "root" / "triton" / "0"))
    another_process(monkeypatch)
    return tmp_path / "root" / "triton" / "0"


def entries(root: Path) -> int:
    return len(list((root / "gpucache" / "v1" / "store").glob("*/*/__entry__.json")))


def test_above_its_own_lower_limit_a_process_adds_nothing_and_evicts_nothing(
    device, tmp_path, monkeypatch, caplog
):
    root = tmp_path / "root"
    launched(*kernel("first"))
    written(root / "gpucache.toml", 'max_size = "1GiB"\n')
    monkeypatch.setenv("GPUCACHE_MAX_SIZE", "1KiB")
    set_total(str(root), 4096)
    another_process(monkeypatch)
    with caplog.at_level(log.INFO, logger="gpucache"):
        hit, read = launched(*kernel("second"))
    assert not hit
    assert read == kernel("second")[1]
    assert entries(root) == 1
    assert total_bytes(str(root)) == 4096
    assert "not added to the store" in caplog.text
    assert launched(*kernel("first"))[0]
    monkeypatch.setenv("GPUCACHE_MAX_SIZE", "2GiB")
    another_process(monkeypatch)
    launched(*kernel("second"))
    assert entries(root) == 2


def test_a_launch_obeys_the_files_and_fails_for_none(device, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    written(home / ".config" / "gpucache" / "gpucache.toml", "share = false\n")
    assert configuration.environ()["GPUCACHE_SHARE"] == "0"
    from gpucache.triton.manager import current_location

    assert current_location().mode == "stock"
    for text in (b"\xff\xfe", b"[" * 10_000, b"share = 'perhaps'\n"):
        written(home / ".config" / "gpucache" / "gpucache.toml", text)
        another_process(monkeypatch)
        assert not launched(*kernel(repr(text[:9])))[0]


def test_what_pushes_gets_the_environment_and_reads_the_file_itself(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    url = f"file://{tmp_path}/remote?mode=write"
    written(home / ".config" / "gpucache" / "gpucache.toml", f'remote = "{url}"\n')
    given = {"HOME": str(home), "GPUCACHE_SIGN_KEY": "/ci.key"}
    writing = write_behind(str(tmp_path), LockPlace(str(tmp_path)), configuration.environ(given))
    assert writing._environ == given
    assert configuration.environ(writing._environ)["GPUCACHE_REMOTE"] == url


_TRITON = """
import sys
import triton, triton.testing
print("gpucache.triton.remember" in sys.modules, "gpucache.configuration" in sys.modules)
"""


@pytest.mark.parametrize(
    ("text", "variable", "expected"),
    [
        ("remember_key = true", None, "True True"),
        ("remember_key = false", None, "False True"),
        ("remember_key = true", "0", "False False"),
        ("", "1", "True True"),
        ("", None, "False True"),
    ],
)
def test_a_file_may_have_tritons_key_remembered_where_triton_is_imported(
    text, variable, expected, tmp_path
):
    library, home = tmp_path / "library", tmp_path / "home"
    written(library / "triton" / "__init__.py", "from triton import testing")
    written(library / "triton" / "testing.py", "")
    written(home / ".config" / "gpucache" / "gpucache.toml", f"{text}\n")
    environ = {**os.environ, "HOME": str(home)}
    environ["PYTHONPATH"] = os.pathsep.join([SITE, str(library), str(PACKAGE)])
    if variable is not None:
        environ["GPUCACHE_REMEMBER_KEY"] = variable
    command = [sys.executable, "-c", _TRITON]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


# ---- the log as JSON

_LAUNCH = """
import sys, logging
from support.cli import told
from support.launches import kernel
from gpucache.log import warn_once
from gpucache.triton.manager import DeviceCacheManager
if sys.argv[1:] == ["own"]:
    logging.basicConfig(format="OWN %(message)s")
key, files = kernel("json")
manager = DeviceCacheManager(key)
assert manager.get_group("add.json") is None
manager.put_group("add.json", {name: manager.put(data, name) for name, data in files.items()})
warn_once("a\\nthing", "caus\\u00e9 \\udcff", "so")
"""


def logged(root: Path, *words: str, **environ: str) -> list[str]:
    path = os.pathsep.join([str(PACKAGE), str(PACKAGE / "tests")])
    env = {**os.environ, "GPUCACHE_DIR": str(root), "PYTHONPATH": path, **environ}
    env["TRITON_CACHE_DIR"] = f"{root}/triton/0"
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        start_new_session=True,
    )
    return done.stderr.splitlines()


def test_each_line_of_the_log_is_a_json_object_where_a_file_says_so(root, tmp_path):
    root.mkdir(mode=0o700)
    written(root / "gpucache.toml", 'log_format = "json"\n')
    lines = [json.loads(line) for line in logged(root, GPUCACHE_LOG="info", LOCAL_RANK="3")]
    key, _ = kernel("json")
    by_word = {line["message"].partition(":")[0]: line for line in lines}
    assert {"miss", "published"} < set(by_word)
    for line in lines:
        assert list(line)[:6] == ["time", "level", "pid", "host", "rank", "message"]
        assert (line["host"], line["rank"]) == (os.uname().nodename, 3)
        assert line["time"].endswith("Z")
    assert by_word["miss"]["key"] == key
    assert "seconds" not in by_word["miss"]
    assert by_word["published"]["key"] == key
    assert 0 <= by_word["published"]["seconds"] < PATIENCE_S
    warned = lines[-1]
    assert warned["level"] == "warning"
    assert warned["message"].startswith("a\\nthing: caus\u00e9 ")


def test_without_a_level_json_is_what_warnings_are_and_only_where_the_program_logs_nothing(root):
    (line,) = logged(root, GPUCACHE_LOG_FORMAT="json")
    assert json.loads(line)["level"] == "warning"
    assert json.loads(line)["rank"] is None
    (own,) = logged(root.with_name("other"), "own", GPUCACHE_LOG_FORMAT="json")
    assert own.startswith("OWN a")


def test_a_format_that_is_none_is_text(root):
    lines = logged(root, GPUCACHE_LOG="info", GPUCACHE_LOG_FORMAT="xml")
    assert any("GPUCACHE_LOG_FORMAT='xml' is not text or json" in line for line in lines)
    assert any(" INFO published: " in line for line in lines)


def test_the_fields_of_a_line_are_there_for_the_programs_own_handlers(device, caplog):
    with caplog.at_level(log.INFO, logger="gpucache"):
        launched(*kernel("fields"))
    published = [one for one in caplog.records if one.getMessage().startswith("published")]
    assert getattr(published[0], FIELDS)["key"] == kernel("fields")[0]
