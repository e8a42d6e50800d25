"""Triton's own key is taken from the root where no file of Triton's has changed, and else made by Triton."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import stand_in_triton
from support.processes import python_path
from support.ranks import PLUGIN, PYTHON
from support.stand_in_triton import LIBRARY
from support.users import ADA, BOB
from support.warm import WarmPython

import gpucache
from gpucache.kernels import kept_key
from gpucache.kernels.triton_files import File, Installation
from gpucache.layout import paths

PACKAGE = Path(gpucache.__file__).parent.parent

PROGRAM = """
import builtins, inspect, json, os, sys
from gpucache.triton import remember
library, options = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, library)
if options.get("settled", True):
    remember.SETTLED_S = -3600.0  # the files are new
if "uid" in options:
    os.setgroups([])
    os.setegid(options["uid"])
    os.seteuid(options["uid"])
import triton
function = remember._tritons_function()
module = sys.modules[function.__wrapped__.__module__]
read = []
def counted(path, *words):
    if "libtriton" in str(path):
        read.append(path)
        exec(options.get("while hashing", ""))
    return builtins.open(path, *words)
module.open = counted
exec(options.get("before", ""))
ended = remember.remember_key(compute=options.get("compute", True))
exec(options.get("after", ""))
hashed = len(read)
options.clear()
key = function()
used = len(read)
honest = function.__wrapped__()
assert function is remember._tritons_function()
print(json.dumps({"ended": ended, "key": key, "hashed": hashed, "used": used, "right": key == honest}))
"""
PRELOAD = (
    "import filelock, sysconfig, pkgutil, inspect, zipimport\n"
    "from gpucache.triton import remember\n"
    "import gpucache.triton.manager, gpucache.once, logging, random, shlex, shutil, tempfile\n"
    "sysconfig.get_config_var('EXT_SUFFIX')\n"
)


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    made = WarmPython([sys.executable], PRELOAD, {**os.environ, "PYTHONPATH": str(PACKAGE)})
    yield made
    made.close()


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(python: WarmPython, everyones: Path) -> Ask:
    """Let a new process remember the key of the stand-in below ``everyones``; what it said."""

    def asked(library: str = "library", **options: Any) -> dict[str, Any]:
        done = python.run(PROGRAM, everyones / library, json.dumps(options), env=environ(everyones))
        assert done.returncode == 0, done.stderr
        return {**json.loads(done.stdout), "log": done.stderr}

    return asked


def environ(home: Path) -> dict[str, str]:
    """The variables of the processes that ask."""
    return {
        "PATH": os.environ["PATH"],
        "GPUCACHE_DIR": str(home / "root"),
        "GPUCACHE_REMEMBER_KEY": "1",
        "GPUCACHE_LOG": "info",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture(params=["runtime/cache", "compiler/compiler"])
def triton_of_both_homes(request: pytest.FixtureRequest, everyones: Path) -> Path:
    return stand_in_triton.make(everyones / "library", request.param)


@pytest.fixture
def made(everyones: Path) -> Path:
    """The stand-in."""
    return stand_in_triton.make(everyones / "library")


def files(home: Path) -> list[Path]:
    """The keys that are kept."""
    return sorted(Path(paths.ours(str(home / "root"), "tritons")).glob("*"))


# ---- a key that is kept is used


def test_the_next_process_does_not_hash(ask, triton_of_both_homes, everyones):
    first = ask()
    second = ask()
    assert (first["ended"], first["hashed"], first["used"]) == ("kept", 1, 1)
    assert (second["ended"], second["hashed"], second["used"]) == ("used", 0, 0)
    assert first["key"] == second["key"]
    assert first["right"]
    assert second["right"]
    (file,) = files(everyones)
    assert file.stat().st_mode & 0o7777 == 0o600


def test_tritons_function_stays_what_it_is(ask, made):
    """Whoever has imported its name has the key; it can be cleared, and then hashes; and its source is Triton's."""
    ask()
    said = ask(
        before="mine = function; code = function.__wrapped__.__code__",
        after="""
assert mine() == function() and not read
assert function.__wrapped__.__code__ is code
assert "libtriton_hash.update" in inspect.getsource(function)
assert function.cache_info().currsize == 1
function.cache_clear()
assert function.cache_info().currsize == 0
""",
    )
    assert (said["ended"], said["used"], said["right"]) == ("used", 1, True)


def test_a_forked_process_has_the_key(ask, made):
    ask()
    after = """
pid = os.fork()
if pid == 0:
    function()
    again = remember.remember_key()
    os._exit(0 if (read, again) == ([], "used") else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    assert ask(after=after)["used"] == 0


def test_a_process_that_has_hashed_before_is_asked_keeps_what_it_hashes_between_two_looks(
    ask, made, everyones
):
    """The order without a GPU. Whoever comes next does not hash for it again."""
    first = ask(before="function()")
    assert (first["ended"], first["hashed"], first["right"]) == ("kept", 2, True)
    second = ask(before="function()")
    assert (second["ended"], second["hashed"]) == ("computed before", 1)
    assert ask()["ended"] == "used"


def test_what_was_hashed_before_the_look_is_not_believed(ask, made):
    """The library is replaced by another in the same process: its first key is that of no file there is."""
    swap = f"function(); open({str(made / LIBRARY)!r}, 'wb').write(b'another')"
    assert (
        ask(before=swap)["right"] is False
    )  # Triton's own answer, which lasts as long as the process
    said = ask()
    assert (said["ended"], said["right"]) == ("used", True)


def test_where_none_is_kept_and_none_is_to_be_computed_nothing_happens_yet(ask, made, everyones):
    """Under `gpucache run`, while Triton is being imported; the plug-in asks again later."""
    again = "assert remember.remember_key() == 'kept'"
    assert ask(compute=False, after=again)["ended"] == "none kept"
    assert len(files(everyones)) == 1
    assert ask(compute=False)["ended"] == "used"


# ---- a key of other files is not used


def keeping_times(path: Path, data: bytes) -> None:
    """Write to a file in place, and set its time of modification back."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path, data: bytes) -> None:
    """Put another file in its place, with its time of modification."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.rename(other, path)


def flipped(path: Path) -> bytes:
    """As many bytes, one of them another."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    return bytes(data)


def new_module(triton: Path) -> None:
    (triton / "language/new.py").touch()


def new_package(triton: Path) -> None:
    (triton / "backends/amd").mkdir()
    (triton / "backends/amd/__init__.py").touch()


def package_at_last(triton: Path) -> None:
    """A directory that was none becomes a package."""
    (triton / "language/plain/__init__.py").touch()


def module_gone(triton: Path) -> None:
    (triton / "language/core.py").unlink()


def of_both_a_module_and_a_library(triton: Path) -> None:
    """Python prefers the library."""
    (triton / "language/core.abi3.so").write_bytes(b"library")


def through_a_link(triton: Path) -> None:
    """A link that leads to another file."""
    (triton / "language/linked.py").unlink()
    (triton / "language/linked.py").symlink_to(triton / "tools.py")


CHANGES: dict[str, Callable[[Path], None]] = {
    "library in place, with its times": lambda triton: keeping_times(
        triton / LIBRARY, flipped(triton / LIBRARY)
    ),
    "another library, with its times": lambda triton: replaced(
        triton / LIBRARY, flipped(triton / LIBRARY)
    ),
    "longer library": lambda triton: keeping_times(triton / LIBRARY, bytes(2**20 + 1)),
    "backend": lambda triton: keeping_times(triton / "backends/nvidia/driver.py", b"# other\n"),
    "the module of the function": lambda triton: replaced(
        triton / "runtime/cache.py", (triton / "runtime/cache.py").read_bytes() + b"\n"
    ),
    "new module": new_module,
    "new package": new_package,
    "package at last": package_at_last,
    "module gone": module_gone,
    "library beside a module": of_both_a_module_and_a_library,
    "link": through_a_link,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_key_of_other_files_is_not_used(change, ask, made, everyones):
    """Whatever is done so that size, time or name stay as they were."""
    (made / "language/plain").mkdir()
    (made / "language/linked.py").symlink_to(made / "testing.py")
    before = ask()
    assert ask()["ended"] == "used"
    change(made)
    after = ask()
    assert (after["ended"], after["used"], after["right"]) == ("kept", 1, True)
    assert after["key"] != before["key"]
    assert ask()["ended"] == "used"
    assert len(files(everyones)) == 2


def test_the_same_bytes_in_another_file_are_hashed_once_more(ask, made):
    before = ask()
    replaced(made / LIBRARY, (made / LIBRARY).read_bytes())
    after = ask()
    assert (after["ended"], after["key"]) == ("kept", before["key"])


def test_a_file_that_is_no_module_by_its_name_is_in_no_key(ask, made):
    """`pkgutil.iter_modules` passes it over."""
    (made / "language/a.b.py").touch()
    assert ask()["ended"] == "kept"
    assert ask()["ended"] == "used"


def test_another_version_and_another_python_are_other_installations(ask, made, everyones):
    ask()
    older = ask(before="module.__version__ = '3.8.0'")
    assert (older["ended"], older["key"][:5], older["right"]) == ("kept", "3.8.0", True)
    of_python = "from importlib.machinery import EXTENSION_SUFFIXES as s; s[0] = '.cpython-399.so'"
    assert ask(before=of_python)["ended"] == "kept"
    assert len(files(everyones)) == 3


def test_a_moved_installation_is_another(ask, made, everyones):
    ask()
    os.rename(everyones / "library", everyones / "moved")
    said = ask("moved")
    assert (said["ended"], said["right"]) == ("kept", True)


@pytest.mark.parametrize("when", ["before", "while hashing"])
def test_a_file_that_changes_between_the_looks_is_never_kept(when, ask, made, everyones):
    """Once before Triton hashes, once while it does: what it then says is of files that nobody saw whole."""
    path = str(made / LIBRARY)
    write = f"builtins.open({path!r}, 'ab').write(b'more')"
    if when == "before":
        look = f"def late(*_):\n    {write}\nremember._is_recent = late"
        said = ask(before=look)
    else:
        said = ask(**{"while hashing": write})
    assert said["ended"] == "refused"
    assert "changed meanwhile" in said["log"]
    assert files(everyones) == []


def test_a_file_that_has_changed_just_now_may_change_again_unseen(ask, made, everyones):
    said = ask(settled=False)
    assert (said["ended"], said["hashed"], said["right"]) == ("too new", 0, True)
    assert "has changed just now" in said["log"]
    assert files(everyones) == []


# ---- what cannot be remembered


def test_a_triton_that_hashes_other_files_is_not_remembered(ask, everyones):
    """A later one perhaps. It hashes once, as ever, though it had done so before."""
    more = stand_in_triton.TRITON_KEY.replace(
        "return f'{__version__}'",
        "contents.append(hashlib.sha256(b'of something else').hexdigest())\n"
        "    return f'{__version__}'",
    )
    stand_in_triton.make(everyones / "library", triton_key=more)
    for before in ("", "function()"):
        said = ask(before=before)
        assert (said["ended"], said["hashed"], said["right"]) == ("refused", 1, True)
        assert "is of other files too" in said["log"]
    assert files(everyones) == []


def test_a_key_that_lacks_a_module_is_kept_for_nobody(ask, made, everyones):
    """`pkgutil` takes a directory that cannot be listed at this moment for an empty one."""
    once = """
def unlistable(path, listdir=os.listdir):
    if path.endswith("language") and sys._getframe(1).f_globals["__name__"] == "pkgutil":
        os.listdir = listdir
        raise OSError("not now")
    return listdir(path)
os.listdir = unlistable
"""
    said = ask(before=once)
    assert (said["ended"], said["right"]) == ("refused", False)
    assert "lacks" in said["log"]
    assert files(everyones) == []
    assert ask()["right"]


@pytest.mark.parametrize("says", ["'3.9.0'", "'4' + 64 * '0'", "None", "'3.9.0' + 64 * 'x'"])
def test_a_key_of_another_form_is_not_remembered(says, ask, everyones):
    other = f"import functools\nfrom .. import __version__\n@functools.lru_cache\ndef triton_key(): return {says}"
    stand_in_triton.make(everyones / "library", triton_key=other)
    assert ask()["ended"] == "refused"
    assert files(everyones) == []


def test_a_function_in_the_place_of_tritons_is_left_alone(ask, made, everyones):
    """As in the workers of Triton's own pool (`_compile_warmup_pool.py` of 3.9.0)."""
    ask()
    before = "module.triton_key = lambda: 'theirs'"
    after = "assert module.triton_key() == 'theirs'; module.triton_key = function"
    said = ask(before=before, after=after)
    assert (said["ended"], said["right"]) == ("not Triton's", True)


def test_a_triton_that_is_installed_for_its_development_is_not_remembered(ask, made, everyones):
    """Its backends are links into another tree (`setup.py` of Triton 3.4.0)."""
    os.rename(made / "backends/nvidia", everyones / "nvidia")
    (made / "backends/nvidia").symlink_to(everyones / "nvidia")
    said = ask()
    assert (said["ended"], said["hashed"], said["right"]) == ("refused", 0, True)
    assert "is a link" in said["log"]


def test_a_package_with_modules_in_another_place_is_not_remembered(ask, made, everyones):
    (everyones / "more").mkdir()
    (made / "language/__init__.py").write_text(f"__path__.append({str(everyones / 'more')!r})\n")
    said = ask(before="import triton.language")
    assert (said["ended"], said["right"]) == ("refused", True)
    assert "has modules in" in said["log"]


def test_a_triton_in_an_archive_is_not_remembered(made, ask, everyones):
    """Nor can it hash itself."""
    archive = everyones / "triton.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in made.rglob("*.py"):
            file.write(path, path.relative_to(made.parent))
    shutil.rmtree(made)
    raises = "module.triton_key = None; raise SystemExit(ended != 'refused')"
    with pytest.raises(json.JSONDecodeError):  # it ended there, and well
        ask("triton.zip", after=raises)


def test_without_its_library_triton_fails_as_ever(ask, made):
    (made / LIBRARY).unlink()
    after = """
assert ended == "refused"
try:
    function()
except FileNotFoundError:
    raise SystemExit
"""
    with pytest.raises(json.JSONDecodeError):
        ask(after=after)


# ---- what lies in the root


def planted(path: Path, plant: str) -> None:
    kept = json.loads(path.read_text())
    other = kept["triton"] + "-".join("0" * 64 for _ in kept["files"])
    path.unlink()
    if plant == "fifo":
        os.mkfifo(path)
    elif plant == "link":
        path.symlink_to("/dev/zero")
    elif plant == "directory":
        path.mkdir()
    elif plant == "huge":
        path.touch()
        os.truncate(path, 2**40)
    elif plant == "closed":
        path.write_text("")
        path.chmod(0)
    else:
        kept["key"] = other
        kept["files"][0][5] += 1
        texts = {
            "another's": json.dumps(kept),
            "torn": json.dumps(kept)[:-40],
            "deep": "[" * 100_000,
            "no object": "[]",
            "no key": "{}",
            "bytes": "\udcff\udcfe",
            "digits": "9" * 5000,
        }
        path.write_text(texts[plant], errors="surrogateescape")


PLANTS = ["fifo", "link", "directory", "huge", "closed", "another's", "torn", "deep", "no object"]
PLANTS += ["no key", "bytes", "digits"]


@pytest.mark.parametrize("plant", PLANTS)
def test_whatever_is_in_the_place_of_a_key_triton_has_the_right_one(plant, ask, made, everyones):
    ask()
    (path,) = files(everyones)
    planted(path, plant)
    said = ask()
    assert said["right"]
    assert said["ended"] in ("kept", "refused")
    assert said["hashed"] <= 1


@pytest.mark.parametrize("key", ["4.0.0" + "0" * 64, "3.9.0" + "0" * 63, "3.9.0", 7, None])
def test_a_kept_key_of_another_form_is_none(key, ask, made, everyones):
    ask()
    (path,) = files(everyones)
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": key}))
    said = ask()
    assert (said["ended"], said["right"]) == ("kept", True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which only root can")
@pytest.mark.parametrize("what", ["root", "directory", "file"])
def test_what_another_user_could_have_written_is_not_used(what, ask, made, everyones):
    """A poisoned key would let this user run whatever the other one compiled."""
    everyones.chmod(0o777 | 0o1000)
    ask(uid=BOB)
    (path,) = files(everyones)
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "3.9.0" + "0" * 64}))
    for one in (everyones / "root").rglob("*"):
        os.chown(one, ADA, ADA)
    os.chown(everyones / "root", ADA, ADA)
    whose = {"root": everyones / "root", "directory": path.parent, "file": path}[what]
    os.chown(whose, BOB, BOB)
    (everyones / "root").chmod(0o755)
    said = ask(uid=ADA)
    assert (said["ended"], said["hashed"], said["used"], said["right"]) == ("refused", 0, 1, True)
    assert f"belongs to uid {BOB}" in said["log"]


@pytest.mark.parametrize("what", ["root", "directory", "file"])
def test_what_everybody_may_write_is_not_used(what, ask, made, everyones):
    ask()
    (path,) = files(everyones)
    {"root": everyones / "root", "directory": path.parent, "file": path}[what].chmod(0o777)
    said = ask()
    assert (said["ended"], said["right"]) == ("refused", True)
    assert "everybody may write" in said["log"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
def test_a_root_that_cannot_be_written_serves_and_nobody_hashes_for_it_in_vain(
    ask, made, everyones
):
    everyones.chmod(0o777 | 0o1000)
    ask(uid=ADA)
    for one in (everyones / "root").rglob("*"):
        if one.is_dir():
            one.chmod(0o500)
    assert ask(uid=ADA)["ended"] == "used"
    keeping_times(made / LIBRARY, b"another")
    said = ask(uid=ADA, before="function()")
    assert (said["ended"], said["hashed"], said["right"]) == ("refused", 1, True)
    assert "cannot be written" in said["log"]
    assert "unset GPUCACHE_REMEMBER_KEY" in said["log"]


def test_a_full_disk_is_no_error_of_the_launch(ask, made, everyones):
    full = """
import errno
def full(*words):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.rename = full
"""
    said = ask(before=full)
    assert (said["ended"], said["right"]) == ("refused", True)
    assert "No space left" in said["log"]
    assert list((everyones / "root/gpucache/v1/tmp").iterdir()) == []


FAILING = """
import errno, itertools
honest = function.__wrapped__()
names = "open stat lstat fstat scandir listdir rename unlink mkdir fsync utime access".split()
calls = {name: getattr(os, name) for name in names}
left = 0

def failing(name):
    def called(*words, **named):
        global left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return calls[name](*words, **named)
    return called

seen = set()
for number in itertools.count(1):
    remember._outcome = None
    function.cache_clear()
    left = number
    for name in names:
        setattr(os, name, failing(name))
    ended = remember.remember_key()
    for name in names:
        setattr(os, name, calls[name])
    seen.add(ended)
    function.cache_clear()  # it may lack a module, if it was Triton that failed
    remember._outcome = None
    assert remember.remember_key() in ("used", "kept") and function() == honest, (number, ended)
    if left > 0:
        break
    if not options["kept"]:
        shutil.rmtree(os.environ["GPUCACHE_DIR"], ignore_errors=True)
assert number > 25 and "refused" in seen, (number, seen)
"""


@pytest.mark.parametrize("kept", [False, True], ids=["none kept", "kept"])
def test_whichever_call_of_the_disk_fails_triton_has_the_right_key(kept, ask, made):
    if kept:
        ask()
    assert ask(before="import shutil\n" + FAILING, kept=kept)["right"]


def test_eight_processes_at_once_keep_one_whole_key(python, made, everyones):
    at_barrier = "print('ready', flush=True); sys.stdin.readline()"
    words = json.dumps({"before": at_barrier})
    started = [
        python.start(PROGRAM, everyones / "library", words, env=environ(everyones))
        for _ in range(8)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [json.loads(process.communicate()[0]) for process in started]
    assert {one["ended"] for one in said} <= {"kept", "used"}
    assert all(one["right"] for one in said)
    (file,) = files(everyones)
    assert json.loads(file.read_text())["key"] == said[0]["key"]


def test_of_two_threads_one_acts(ask, made):
    before = """
import threading
held = remember._acting
held.acquire()
other = remember.remember_key()
held.release()
assert other == "busy"
"""
    assert ask(before=before)["ended"] == "kept"


# ---- bounds


def installation(number: int) -> Installation:
    return Installation("/nowhere", "3.9.0", ".so", (File("_C/libtriton.so", number, 0, 0, 0, 0),))


KEY = "3.9.0" + "0" * 64


def keep(root: Path, number: int, age_s: float = 0.0) -> None:
    kept_key.keep(str(root), installation(number), KEY)
    path = kept_key.path_of(str(root), installation(number))
    then = time.time() - age_s
    os.utime(path, (then, then))


@pytest.fixture
def place(root: Path) -> Path:
    for part in ("tritons", "tmp"):
        Path(paths.ours(str(root), part)).mkdir(parents=True)
    return Path(paths.ours(str(root), "tritons"))


def test_of_too_many_keys_those_go_that_nobody_has_used_for_longest(root, place):
    for number in range(kept_key.MOST):
        keep(root, number, age_s=1000.0 - number)
    keep(root, 1000)
    assert len(list(place.iterdir())) == kept_key.MOST
    assert kept_key.kept(str(root), installation(0)) is None
    assert kept_key.kept(str(root), installation(1)) == KEY


def test_a_key_that_nobody_has_used_for_a_month_goes_and_a_use_is_told(root, place):
    day_s = 86400.0
    keep(root, 1, age_s=29 * day_s)
    keep(root, 2, age_s=29 * day_s)
    assert kept_key.kept(str(root), installation(1)) == KEY
    path = kept_key.path_of(str(root), installation(2))
    then = time.time() - 31 * day_s
    os.utime(path, (then, then))
    keep(root, 3)
    assert kept_key.kept(str(root), installation(1)) == KEY
    assert kept_key.kept(str(root), installation(2)) is None


def test_nothing_is_removed_behind_a_link_in_the_place_of_the_directory(root, place, tmp_path):
    other = tmp_path / "other"
    place.rename(other)
    (other / "old.json").touch()
    os.utime(other / "old.json", (0, 0))
    place.symlink_to(other)
    keep(root, 1)
    assert (other / "old.json").exists()


# ---- when


def test_unless_it_is_asked_for_nothing_is_looked_at(python, everyones, made):
    for value in ("", "0", "yes"):
        env = {**environ(everyones), "GPUCACHE_REMEMBER_KEY": value}
        done = python.run(PROGRAM, made.parent, "{}", env=env)
        assert json.loads(done.stdout)["ended"] == "off", done.stderr
    env = {**environ(everyones), "GPUCACHE_DISABLE": "1"}
    done = python.run(PROGRAM, made.parent, "{}", env=env)
    assert json.loads(done.stdout)["ended"] == "off", done.stderr
    assert files(everyones) == []


REAL = """
import builtins, json, os, sys
sys.path.insert(0, sys.argv[1])
import triton, kernels
from triton.compiler import compiler
from triton.runtime import cache
module = cache if hasattr(cache, "triton_key") else compiler
read = []
def counted(path, *words):
    if "libtriton" in str(path):
        read.append(path)
    return builtins.open(path, *words)
module.open = counted
{order}
compiled = kernels.count_compiles()
hashes = [triton.compile(kernels.source(0), target=kernels.GPUTarget("cuda", 90, 32)).hash]
assert module.triton_key() == module.triton_key.__wrapped__()
ended = getattr(sys.modules.get("gpucache.triton.remember"), "_outcome", None)
print(json.dumps([ended, len(read) - 1, len(compiled), hashes]))
"""
"""A program with the real Triton. The last reading of the library is that of the comparison."""
CUDA_UTILS = """
try:
    from triton.backends.nvidia.driver import CudaUtils
    CudaUtils()
except Exception as error:  # there is no libcuda to link with
    print(error, file=sys.stderr)
"""
BY_HAND = "from gpucache.triton.remember import remember_key; remember_key()"


def real(
    root: Path, tmp_path: Path, order: str = "", *, run: bool = False, **more: str
) -> list[Any]:
    """How remembering ended, how often the library was read, how many kernels were compiled, and their keys."""
    support = Path(__file__).parent / "support"
    command = [PYTHON, "-c", REAL.format(order=order), support]
    if run:
        command = [PYTHON, "-m", "gpucache", "run", "--device", "0", "--", *command]
    env = {
        **os.environ,
        "PYTHONPATH": python_path(PACKAGE),
        "GPUCACHE_DIR": str(root),
        "GPUCACHE_FAKE_DEVICES": "1xH100:9.0",
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "GPUCACHE_REMEMBER_KEY": "1",
        **({} if run else {**PLUGIN, "TRITON_CACHE_DIR": f"{root}/triton/0"}),
        **more,
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_with_a_gpu_the_plug_in_is_asked_before_the_key_is(triton, root, tmp_path):
    """Triton's driver asks a cache manager for the library by which it speaks to CUDA, before it compiles anything."""
    ended, read, compiled, keys = real(root, tmp_path, CUDA_UTILS)
    assert (ended, read, compiled) == ("kept", 1, 1)
    assert real(root, tmp_path, CUDA_UTILS) == ["used", 0, 0, keys]


def test_without_a_gpu_the_key_is_asked_first_unless_the_program_calls(triton, root, tmp_path):
    ended, read, compiled, keys = real(root, tmp_path)
    assert (ended, read, compiled) == ("kept", 2, 1)
    assert real(root, tmp_path) == ["computed before", 1, 0, keys]
    assert real(root, tmp_path, BY_HAND) == ["used", 0, 0, keys]


def test_under_gpucache_run_the_key_is_there_before_anything_asks(triton, root, tmp_path):
    ended, read, compiled, keys = real(root, tmp_path, run=True)
    assert (ended, read, compiled) == ("kept", 2, 1)
    assert real(root, tmp_path, run=True) == ["used", 0, 0, keys]
    assert real(root, tmp_path, CUDA_UTILS, run=True) == ["used", 0, 0, keys]


@pytest.mark.torch
def test_torch_has_the_key_by_the_name_that_it_imported_before(triton, root, tmp_path):
    """Inductor's keys and those of `torch.utils._triton` are made of it (torch 2.13.0)."""
    order = """
from torch._inductor import codecache
from torch._inductor.runtime import triton_compat
from gpucache.triton.remember import remember_key
ended = remember_key()
assert triton_compat.triton_key() == codecache.triton_key()
assert bool(read) is (ended == "kept"), (ended, read)
"""
    assert real(root, tmp_path, order)[:2] == ["kept", 1]
    assert real(root, tmp_path, order)[:2] == ["used", 0]


def test_a_process_that_replays_recipes_takes_the_key_too(triton, root, tmp_path):
    """And so do all that the pool forks of it."""
    prepare = "from gpucache.warm.replay.running_triton import hash_triton; hash_triton()"
    ended, read, compiled, keys = real(root, tmp_path, prepare)
    assert (ended, read, compiled) == ("kept", 1, 1)
    assert real(root, tmp_path, prepare) == ["used", 0, 0, keys]


def test_without_the_variable_no_module_of_this_is_imported(triton, root, tmp_path):
    for run in (False, True):
        ended, read, *_ = real(root, tmp_path, run=run, GPUCACHE_REMEMBER_KEY="0")
        assert (ended, read) == (None, 1)
    assert not Path(paths.ours(str(root), "tritons")).exists()


def test_a_real_library_that_was_swapped_makes_its_kernels_anew(triton, everyones):
    """A copy of the installed Triton, whose library gets one byte more behind its end, and its times back."""
    code = "import os, triton; print(os.path.dirname(triton.__file__))"
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    shutil.copytree(found.stdout.strip(), everyones / "triton", symlinks=True)
    root, library = everyones / "root", everyones / "triton/_C/libtriton.so"
    more = {"PYTHONPATH": python_path(everyones, PACKAGE)}
    settled = "from gpucache.triton import remember; remember.SETTLED_S = -3600.0\n"
    first = real(root, everyones, settled + BY_HAND, **more)
    assert first[:3] == ["kept", 1, 1]
    assert real(root, everyones, settled + BY_HAND, **more) == ["used", 0, 0, first[3]]
    before = library.stat()
    with open(library, "ab") as file:
        file.write(b"\0")
    os.utime(library, ns=(before.st_atime_ns, before.st_mtime_ns))
    swapped = real(root, everyones, settled + BY_HAND, **more)
    assert swapped[:3] == ["kept", 1, 1]
    assert swapped[3] != first[3]
