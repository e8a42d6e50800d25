"""Roots that others may read: the modes of all that is made in them, and readers beside the owner's ranks and commands.

Each command and launch is another user's own process.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.launches import kernel, launched
from support.other_user import Done, be, command_as, done_as
from support.processes import PATIENCE_S
from support.ranks import PLUGIN, compile_kernels, warm
from support.users import ADA, BOB, directory

from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.layout import paths
from gpucache.store.levels import levels
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.store.stats import totals
from gpucache.triton.manager import current_location

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("as_root")]

KERNELS = {seed: kernel(seed) for seed in ("first", "second", "third")}
FAKE = {"GPUCACHE_FAKE_DEVICES": "1", "HOME": "/nowhere"}
PUBLISHED = ("gpucache/v1/store", "gpucache/v1/devices", "triton")


@pytest.fixture
def ada(everyones: Path) -> Path:
    """A directory of the owner's that all can reach."""
    return directory(everyones / "ada", 0o755, ADA)


@pytest.fixture
def bob(everyones: Path) -> Path:
    """A directory of the reader's own."""
    return directory(everyones / "bob", 0o700, BOB)


class Owner:
    """The owner of a root that others may read."""

    def __init__(self, root: Path, umask: int = 0o077) -> None:
        self.root = root
        self.umask = umask

    def says(self, *words: object) -> Done:
        """Run a command of gpucache's on the root; it must succeed."""
        done = command_as(ADA, *words, "--root", self.root, umask=self.umask, **FAKE)
        assert done.value == 0, done.err
        return done

    def provisions(self) -> None:
        self.says("provision", "--shared", "read")

    def launches(self, seed: str, device: str = "0") -> bool:
        return launches(ADA, self.root, seed, self.umask, device)

    def acts(self, act: Callable[[], object]) -> None:
        done_as(ADA, act, FAKE, self.umask)


def launches(
    uid: int, root: Path, seed: str, umask: int = 0o077, device: str = "0", **more: str
) -> bool:
    """Launch a kernel as a user; whether it was a hit, of the right bytes."""
    key, files = KERNELS[seed]

    def launch() -> bool:
        hit, contents = launched(key, files)
        assert contents == files
        current_location().stats.leave()
        return hit

    where = {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(root / "triton" / device)}
    hit: bool = done_as(uid, launch, {**FAKE, **where, **more}, umask).value
    return hit


def reads(bob: Path, root: Path, seed: str, **more: str) -> bool:
    """Launch a kernel as a reader, who has the root as his fallback."""
    trust = {"GPUCACHE_FALLBACK": str(root), "GPUCACHE_TRUST_UIDS": str(ADA)}
    return launches(BOB, bob / "own", seed, **{**trust, **more})


def wrong_modes(root: Path) -> list[str]:
    """What below a read root has another mode than it should; what stock Triton has left has its own."""
    wrong = []
    for path in [root, *root.rglob("*")]:
        name = path.relative_to(root).as_posix()
        mode = stat.S_IMODE(path.lstat().st_mode)
        if _wanted(name, path.is_dir()) not in (mode, None):
            wrong.append(f"{name} {mode:04o}")
    return wrong


def _wanted(name: str, is_directory: bool) -> int | None:
    """The mode of what has this name in a root; None for what lies in the quarantine, which nobody else can enter."""
    if name.startswith("gpucache/v1/quarantine/"):
        return None
    is_way = name in (".", "gpucache", "gpucache/v1", *PUBLISHED)
    is_open = is_way or name.startswith(tuple(f"{part}/" for part in PUBLISHED))
    if name in ("CACHEDIR.TAG", "gpucache/v1/sharing.json"):
        is_open = True
    if is_directory:
        return 0o755 if is_open else 0o700
    return 0o644 if is_open else 0o600


@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
class TestModes:
    @pytest.fixture
    def owner(self, ada: Path, umask: int) -> Iterator[Owner]:
        owner = Owner(ada / "root", umask)
        owner.provisions()
        yield owner
        assert wrong_modes(owner.root) == []

    def test_of_what_is_provisioned(self, owner):
        owner.provisions()
        owner.says("provision")

    def test_of_what_is_compiled_and_viewed(self, owner):
        for seed in KERNELS:
            assert owner.launches(seed) is False
            assert owner.launches(seed, "1")

    def test_of_what_gets_a_recipe(self, owner):
        owner.launches("first")
        owner.launches("first", "1")
        key = KERNELS["first"][0]
        entry, view = entry_path(str(owner.root), key), f"{owner.root}/triton/1/{key}"
        lock = f"{paths.ours(str(owner.root), 'locks')}/{key}.lock"

        def add() -> None:
            from gpucache.store.recipe_file import add_recipe

            assert add_recipe(entry, view, key, b"{}", lambda: lock)

        owner.acts(add)
        assert Path(entry, "__recipe__.json").exists()

    def test_of_what_is_made_smaller(self, owner):
        owner.launches("first")
        owner.launches("first", "1")
        age(owner.root)
        owner.says("prune", "--keep-binaries", "--yes")
        assert not list(owner.root.rglob("add.ptx"))

    def test_of_what_is_repaired(self, owner):
        for seed in KERNELS:
            owner.launches(seed)
        views = owner.root / "triton/0"
        (views / KERNELS["first"][0] / MANIFEST).unlink()
        (views / KERNELS["second"][0] / "__grp__add.json").unlink()
        os.truncate(Path(entry_path(str(owner.root), KERNELS["third"][0])) / MANIFEST, 0)
        command_as(ADA, "verify", "--repair", "--root", owner.root, umask=owner.umask, **FAKE)
        owner.says("verify")

    def test_of_what_is_packed_and_unpacked(self, owner, ada):
        owner.launches("first")
        pack = ada / "pack"
        owner.says("pack", "-o", pack)
        owner.acts(
            lambda: os.rename(entry_path(str(owner.root), KERNELS["first"][0]), ada / "gone")
        )
        owner.says("unpack", pack, "--unsigned")
        assert Path(entry_path(str(owner.root), KERNELS["first"][0])).exists()

    def test_of_what_is_damaged_and_compiled_again(self, owner):
        owner.launches("first")
        (owner.root / "triton/0" / KERNELS["first"][0] / "add.ptx").write_bytes(b"!")
        assert owner.launches("first") is False
        assert list((owner.root / "gpucache/v1/quarantine").iterdir())

    def test_of_what_reading_commands_leave(self, owner):
        owner.launches("first")
        for command in ("ls", "du", "stats", "verify", "doctor"):
            command_as(ADA, command, "--root", owner.root, umask=owner.umask, **FAKE)

    def test_of_what_removing_commands_leave(self, owner):
        owner.launches("first")
        owner.launches("second")
        age(owner.root)
        owner.says("prune", "--max-entries", "1", "--yes")
        owner.says("clean", "--yes")
        assert owner.launches("first") is False

    def test_of_an_entry_without_its_key_that_gets_it(self, owner):
        """As an older gpucache has left it."""
        owner.launches("first")
        manifest = Path(entry_path(str(owner.root), KERNELS["first"][0])) / MANIFEST
        said = json.loads(manifest.read_text())
        del said["key"]
        manifest.write_text(json.dumps(said))
        assert owner.launches("first")
        assert json.loads(manifest.read_text())["key"] == KERNELS["first"][0]


def age(root: Path) -> None:
    """Have nothing been used for a day."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            found = path.stat()
            os.utime(path, (found.st_atime - 86_400, found.st_mtime - 86_400))
    for manifest in root.rglob(MANIFEST):
        assert manifest.exists()


class TestReaders:
    """A reader of another user's root, who has it as his fallback."""

    @pytest.fixture
    def owner(self, ada: Path) -> Owner:
        owner = Owner(ada / "root")
        owner.provisions()
        for seed in ("first", "second"):
            assert owner.launches(seed) is False
        return owner

    def test_a_reader_compiles_only_what_is_not_there(self, owner, bob):
        assert reads(bob, owner.root, "first")
        assert reads(bob, owner.root, "third") is False
        assert reads(bob, owner.root, "third")
        found = done_as(BOB, lambda: levels_of(bob / "own"), FAKE).value
        assert found == {"own": 1, "store": 0, "fallback": 1, "remote": 0, "compiled": 1}

    def test_the_owner_must_be_trusted(self, owner, bob):
        assert reads(bob, owner.root, "first", GPUCACHE_TRUST_UIDS="") is False

    def test_who_names_it_as_his_own_root_is_told_what_to_do(self, owner):
        """What is there is a hit all the same."""
        key, files = KERNELS["first"]
        where = {
            **FAKE,
            "GPUCACHE_DIR": str(owner.root),
            "TRITON_CACHE_DIR": str(owner.root / "triton/0"),
            "GPUCACHE_TRUST_UIDS": str(ADA),
            "GPUCACHE_LOG": "warning",
        }
        done = done_as(BOB, lambda: launched(key, files)[0], where)
        assert done.value
        said = f"others may only read this root: {owner.root}; what is cached there is used"
        assert said in done.err
        assert f"GPUCACHE_FALLBACK={owner.root}" in done.err

    def test_nothing_changes_there(self, owner, bob):
        before = state(owner.root)
        for seed in KERNELS:
            reads(bob, owner.root, seed)
        assert state(owner.root) == before

    def test_nothing_is_opened_there_to_be_written_or_locked(self, owner, bob, strace, everyones):
        """Each system call that names something below the root opens for reading, or only looks."""
        trace = everyones / "trace"
        trace.touch()
        trace.chmod(0o666)
        with traced(strace, trace):
            reads(bob, owner.root, "first")
        calls = [line for line in trace.read_text().splitlines() if str(owner.root) in line]
        assert any("add.ptx" in line for line in calls)
        changing = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "flock(", "fcntl(", "utime")
        assert not [line for line in calls if any(word in line for word in changing)]

    def test_a_read_only_mount_is_read(self, owner, bob, mount, everyones):
        there = mount(everyones / "mounted", "--bind", str(owner.root))
        subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
        assert reads(bob, there, "first")

    def test_reading_commands_show_what_may_be_read(self, owner, bob):
        """They say what they cannot read, and go on."""
        trust = {**FAKE, "GPUCACHE_TRUST_UIDS": str(ADA)}
        said = {}
        for command in ("ls", "du", "verify", "stats"):
            done = command_as(BOB, command, "--root", owner.root, **trust)
            assert done.value == 0, done
            said[command] = done
        assert len(said["ls"].out.splitlines()) == 2
        for command in ("ls", "du"):
            (line,) = said[command].err.splitlines()
            assert line.startswith(f"warning: {owner.root}: only its owner may read ")
            assert line.count(" locks, ") == 1
            assert "; nothing has to be done: " in line
        assert said["verify"].err == f"note: 2 entries checked in {owner.root}, 0 findings\n"
        assert f"note: the counters of {owner.root} are for its owner alone" in said["stats"].err

    def test_the_owner_does_not_notice_a_reader_who_locks_all_that_he_can_open(self, owner, bob):
        """As long as it holds, kernels are compiled, viewed and found, and all is pruned, verified and repaired."""
        with locking_all(owner.root) as locked:
            names = {path.relative_to(owner.root).parts[0:3] for path in locked}
            assert ("gpucache", "v1", "store") in names
            assert not any(set(parts) & {"locks", "stats", "tmp"} for parts in names)
            for name in ("locks", "precompiled_headers"):  # torch's
                assert stat.S_IMODE((owner.root / name).stat().st_mode) == 0o700
            assert owner.launches("third") is False
            assert owner.launches("first", "1")
            owner.says("verify", "--repair")
            age(owner.root)
            owner.says("prune", "--max-entries", "1", "--yes")
            assert len(list(owner.root.glob("gpucache/v1/store/*/*"))) == 1
            owner.provisions()
            owner.says("clean", "--yes")
        assert list(owner.root.glob("gpucache/v1/store/*/*")) == []

    def test_what_a_reader_uses_is_not_pruned(self, owner, bob):
        age(owner.root)
        assert reads(bob, owner.root, "first")
        owner.says("prune", "--max-age", "12h", "--yes")
        assert [path.name for path in owner.root.glob("gpucache/v1/store/*/*")] == [
            KERNELS["first"][0]
        ]


def levels_of(root: Path) -> dict[str, int]:
    sums: dict[str, float] = {}
    for values in totals(str(root)).values():
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value
    return {name: level.hits for name, level in levels(sums).items()}


def state(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything below a root with what a writer would change; access times are left out."""
    found = {}
    for path in [root, *root.rglob("*")]:
        seen = path.lstat()
        times = (seen.st_mtime_ns, seen.st_ctime_ns)
        found[str(path)] = (seen.st_ino, seen.st_mode, seen.st_nlink, seen.st_size, *times)
    return found


@contextmanager
def traced(strace: str, trace: Path) -> Iterator[None]:
    """Write what this process and those that it starts do with files to ``trace``; descriptors with their paths."""
    calls = "%file,%desc,flock"
    command = [strace, "-f", "-y", "-s", "4096", "-e", f"trace={calls}", "-o", str(trace)]
    with subprocess.Popen(
        [*command, "-p", str(os.getpid())], stderr=subprocess.PIPE, text=True
    ) as tracing:
        assert tracing.stderr is not None
        assert "attached" in tracing.stderr.readline()
        try:
            yield
        finally:
            tracing.terminate()
            tracing.wait(PATIENCE_S)


@contextmanager
def locking_all(root: Path) -> Iterator[list[Path]]:
    """Hold a lock on everything in a root that a stranger can open, exclusively; gives the paths."""
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(to_child)
            be(BOB)
            os.write(to_parent, pickle.dumps(_locked_below(root)))
            os.close(to_parent)
            os.read(from_parent, 1)
        finally:
            os._exit(0)
    os.close(to_parent)
    try:
        with os.fdopen(from_child, "rb") as said:
            yield pickle.loads(said.read())
    finally:
        os.close(to_child)
        os.close(from_parent)
        os.waitpid(child, 0)


def _locked_below(root: Path) -> list[Path]:
    """Lock what can be opened, and what cannot is no directory to go into; the descriptors stay open."""
    locked = []
    for path in [root, *root.rglob("*")]:
        try:
            fd = os.open(path, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        locked.append(path)
    return locked


def test_what_stock_triton_left_is_read_once_it_was_adopted(ada, bob):
    """Its files are the owner's own, for nobody else; what is published of them is for all."""
    owner = Owner(ada / "root")
    owner.provisions()
    key, files = KERNELS["first"]
    device = owner.root / "triton/0"
    owner.acts(lambda: stock_leaves(device, key, files))
    assert owner.launches("first")
    assert stat.S_IMODE((device / key / "add.ptx").stat().st_mode) == 0o600
    assert reads(bob, owner.root, "first")


def test_a_private_root_is_read_once_it_is_shared_and_no_longer_once_it_is_private(ada, bob):
    owner = Owner(ada / "root")
    owner.says("provision")
    owner.launches("first")
    assert reads(bob, owner.root, "first") is False
    shutil.rmtree(bob / "own")
    owner.says("provision", "--shared", "read", "--yes")
    assert wrong_modes(owner.root) == []
    assert reads(bob, owner.root, "first")
    assert owner.launches("second") is False
    owner.says("provision", "--shared", "private", "--yes")
    assert reads(bob, owner.root, "second") is False
    assert reads(bob, owner.root, "first"), "it is his own by now"


def test_the_roots_settings_are_for_all_to_see(ada):
    owner = Owner(ada / "root")
    owner.provisions()
    owner.says("config", "--init")
    file = owner.root / "gpucache.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    file.write_text('max_size = "5GiB"\n')
    shown = command_as(BOB, "config", "--root", owner.root, GPUCACHE_TRUST_UIDS=str(ADA), **FAKE)
    assert f"GPUCACHE_MAX_SIZE\t5GiB\t{file}:1" in shown.out.splitlines()


def stock_leaves(device: Path, key: str, files: Mapping[str, bytes]) -> None:
    home = device / key
    home.mkdir()
    for name, data in files.items():
        (home / name).write_bytes(data)
    children = {name: str(home / name) for name in files}
    (home / "__grp__add.json").write_text(json.dumps({"child_paths": children}))


def test_the_lines_of_the_documentation_work(ada, bob):
    """Of the section for clusters, each line said by whom it is for."""
    page = (Path(__file__).parents[1] / "docs/sharing.md").read_text()
    section = page.partition("## A cluster")[2].partition("\n## ")[0]
    made, filled, read = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    root = ada / "kernels"

    def said(line: str, **more: str) -> None:
        _, *words = shlex.split(line.replace("/opt/kernels", str(root)))
        done = command_as(ADA, *words, **FAKE, **more)
        assert done.value == 0, done.err

    said(made)
    launching, unpacking = filled.splitlines()
    assert launching == "GPUCACHE_DIR=/opt/kernels gpucache run -- python warmup.py"
    Owner(root).launches("first")
    Owner(ada / "elsewhere").launches("second")
    pack = str(ada / "llama.tar.zst")
    done = command_as(ADA, "pack", "-o", pack, "--root", ada / "elsewhere", **FAKE)
    assert done.value == 0, done.err
    said(f"{unpacking.replace('llama.tar.zst', pack)} --unsigned")
    name, _, value = read.strip().removeprefix("export ").partition("=")
    trust = {"GPUCACHE_TRUST_UIDS": str(ADA)}
    for seed in ("first", "second"):
        assert launches(
            BOB, bob / "own", seed, **{name: value.replace("/opt/kernels", str(root))}, **trust
        )


def test_a_group_root_is_a_fallback_for_who_trusts_the_group(everyones):
    """A reader who is in the group, and has a root of his own."""
    team = 54_321
    root = directory(everyones / "team", 0o2770, ADA)
    os.chown(root, ADA, team)
    os.chmod(root, 0o2770)
    command = ("provision", "--root", root, "--shared", "group", "--yes")
    done = command_as(ADA, *command, groups=(team,), **FAKE)
    assert done.value == 0, done.err
    key, files = KERNELS["first"]
    where = {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(root / "triton/0")}
    assert (
        done_as(ADA, lambda: launched(key, files)[0], {**FAKE, **where}, groups=(team,)).value
        is False
    )
    own = directory(everyones / "bob", 0o700, BOB) / "own"
    reader = {
        **FAKE,
        "GPUCACHE_DIR": str(own),
        "TRITON_CACHE_DIR": str(own / "triton/0"),
        "GPUCACHE_FALLBACK": str(root),
    }
    trusting = {**reader, "GPUCACHE_TRUST_GROUPS": str(team)}
    assert done_as(BOB, lambda: launched(key, files)[0], reader, groups=(team,)).value is False
    shutil.rmtree(own)
    assert done_as(BOB, lambda: launched(key, files)[0], trusting, groups=(team,)).value


COMPILE_AS = """
import os, sys
sys.path.insert(0, {tests!r})
from support.other_user import be, load_all
load_all()
import kernels
from triton.compiler.compiler import make_backend
backend = make_backend(kernels.GPUTarget("cuda", 90, 32))
backend.hash(), backend.parse_options({{}}).hash()  # of files which only root can reach here; Triton remembers them
be({uid})
kernels.main()
"""


@pytest.mark.compiles
def test_readers_of_real_triton_compile_nothing_that_is_there(triton, everyones):
    """Two users, two processes each, three kernels; the root is an administrator's."""
    root = everyones / "root"
    DeviceCacheRegistry(str(root), environ=FAKE).provision(sharing="read")
    made = compile_kernels(environ_of(root), 3)
    assert made["compiled"] == 3
    before = state(root)
    for uid in (ADA, BOB):
        own = directory(everyones / str(uid), 0o700, uid) / "own"
        environ = {
            **environ_of(own),
            "GPUCACHE_FALLBACK": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        code = COMPILE_AS.format(tests=str(Path(__file__).parent), uid=uid)
        ranks = [warm().start(code, 3, env={**os.environ, **environ}) for _ in range(2)]
        for rank in ranks:
            rank.stdin.write("\n")
            rank.stdin.flush()
        for rank in ranks:
            out, err = rank.communicate("\n", PATIENCE_S)
            assert rank.returncode == 0, err
            said = json.loads(out.splitlines()[-1])
            assert (said["compiled"], said["digests"]) == (0, made["digests"])
        assert levels_of(own)["fallback"] == 3, "each kernel is copied once"
    assert state(root) == before


def environ_of(root: Path) -> dict[str, str]:
    return {**PLUGIN, **FAKE, "GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(root / "triton/0")}
