"""`clean` takes all that is cached, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.processes import running
from tree import make

from gpucache.layout import paths
from gpucache.report.cache_report import scan
from gpucache.store.key_lock import KeyLock
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.upkeep.clean import CleanPolicy
from gpucache.upkeep.plan import Plan, plan

GRACE_S = 900.0
OLD = time.time() - 3 * 3600
HASH = base64.b32encode(hashlib.sha256(b"graph").digest()).decode()[:51].lower()
CODE = f"c{HASH}"
INDUCTORS = (
    f"{CODE[1:3]}/{CODE}.py",
    f"{CODE[1:3]}/{CODE}.main.so",
    f"fxgraph/{HASH[1:3]}/{HASH}/{HASH}",
    f"aotautograd/a{HASH}/{HASH}",
    f"locks/{CODE}.lock",
    f"cache/{'0f' * 32}",
    f"{CODE[1:3]}/.123.456.tmp",
)
MINE = (
    *(
        "notes.txt",
        "ab/notes.txt",
        "cache/data.bin",
        "locks/door.lock",
        "models/.1.2.tmp",
        ".git/objects/ab/cd",
        "a b\n",
    ),
    *(
        "triton/my-project/src.py",
        "triton/0/notes.txt",
        f"project/{'a' * 64}/weights.bin",
        f"models/{CODE[1:3]}/{CODE}.py",
    ),
    *("triton/1/tmp.mine", "deep/er/tmp.pid_1_a.txt"),
)


def put(root: Path, *names: str, when: float = OLD) -> list[Path]:
    """Files that were last used then."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        os.utime(path, (when, when))
    return [root / name for name in names]


def there(base: Path) -> set[str]:
    """Every file and link below."""
    return {
        str(path.relative_to(base))
        for path in base.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def planned(root: Path, grace_s: float = GRACE_S) -> Plan:
    return plan(scan(str(root)), CleanPolicy(grace_s=grace_s), {})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root of ours with three kernels in two device directories, and what TorchInductor keeps."""
    root = tmp_path / "root"
    make(str(root), 3, 2)
    put(root, *INDUCTORS)
    return root


@pytest.fixture
def keys(root: Path) -> list[str]:
    return [path.name for path in sorted(root.glob("triton/0/*"))]


class TestWhatGoes:
    def test_all_that_is_cached_and_what_workers_resolve_by_stays(self, root, gpucache):
        (root / "gpucache/v1/stats").mkdir(exist_ok=True)
        put(root, "gpucache/v1/stats/host.json")
        record = f"gpucache/v1/devices/{paths.host_name()}.json"
        before = (root / record).read_bytes()
        environ = {**os.environ, "GPUCACHE_DIR": str(root)}
        done = planned(root).execute()
        assert (done.entries, done.skipped) == (3, ())
        assert {
            path
            for path in there(root)
            if not path.startswith(("gpucache/v1/locks/", "gpucache/v1/mounts/"))
        } == {
            "CACHEDIR.TAG",
            record,
            "gpucache/v1/stats/host.json",
        }
        assert (root / record).read_bytes() == before
        assert {path.name for path in root.iterdir()} == {"CACHEDIR.TAG", "gpucache", "triton"}
        assert {path.name for path in (root / "triton").iterdir()} == {"0", "1"}
        assert gpucache("path", 1, env=environ).stdout == f"{root}/triton/1\n"

    def test_what_it_frees_is_told_before_and_after(self, root):
        outside = root.parent / "outside"
        os.link(root / INDUCTORS[0], outside)
        plan = planned(root)
        before = sum(one.physical_bytes for one in scan(str(root)).usage)
        done = plan.execute()
        after = sum(one.physical_bytes for one in scan(str(root)).usage)
        assert done.freed.physical_bytes == plan.physical_bytes
        assert before - after == plan.physical_bytes + outside.stat().st_size
        assert done.freed.logical_bytes == plan.logical_bytes

    def test_nothing_of_it_is_followed_by_an_empty_plan(self, root):
        planned(root).execute()
        plan = planned(root)
        assert (plan.removing, plan.strays, plan.files, plan.left) == ((), (), (), ())

    def test_strays_go_once_nobody_is_at_them(self, root):
        dead, alive = root / "triton/0/tmp.gpucache-dead", root / "triton/0/tmp.gpucache-alive"
        for path in (dead, alive):
            path.mkdir()
            put(path, "file")
        os.utime(dead, (OLD, OLD))
        plan = planned(root)
        assert str(dead) in [stray.path for stray in plan.strays]
        assert (str(alive), "somebody may be at it") in [(one.key, one.why) for one in plan.kept]
        plan.execute()
        assert (dead.exists(), alive.exists()) == (False, True)
        assert plan.left == ()

    def test_the_whole_default_directory_of_stock_triton_goes(self, root, tmp_path):
        stock = tmp_path / ".triton/cache"
        shutil.copytree(root / "triton/0", stock, ignore=shutil.ignore_patterns(MANIFEST))
        put(
            stock,
            f"{'A' * 43}/cuda_utils.so",
            f"{'b' * 64}/add.ttir",
            f"{'C' * 52}/add.autotune.json",
            "my-notes/a",
        )
        for path in stock.rglob("*"):
            os.utime(path, (OLD, OLD))
        plan = planned(stock)
        assert plan.left == (f"{stock}/my-notes",)
        assert plan.execute().entries == 6
        assert there(stock) == {"my-notes/a"}

    @pytest.mark.torch
    def test_what_a_real_inductor_leaves_goes(self, tmp_path):
        code = "import torch; torch.compile(lambda a, b: a @ b)(torch.ones(4, 4), torch.ones(4, 4))"
        root = tmp_path / "root"
        environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root), "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        assert {path.split("/")[0] for path in there(root)} >= {"fxgraph", "aotautograd"}
        put(root, "fxgraph/notes.txt")
        assert planned(root).files == ()
        plan = planned(root, -math.inf)
        assert plan.left == (f"{root}/fxgraph/notes.txt",)
        assert plan.execute().skipped == ()
        assert there(root) == {"fxgraph/notes.txt"}
        assert [path.name for path in root.iterdir()] == ["fxgraph"]


class TestWhatStays:
    def test_a_users_own_files_beside_it_stay_and_are_told(self, root):
        """As in a home directory; what has nothing of a cache in it is told by one path."""
        mine = put(root, *MINE)
        plan = planned(root)
        assert plan.left == tuple(
            sorted(
                f"{root}/{name}"
                for name in (
                    *(
                        "notes.txt",
                        "ab",
                        "cache/data.bin",
                        "locks/door.lock",
                        "models",
                        ".git",
                        "a b\n",
                        "project",
                        "deep",
                    ),
                    *("triton/my-project/src.py", "triton/0/notes.txt", "triton/1/tmp.mine"),
                )
            )
        )
        plan.execute()
        assert [path.read_bytes() for path in mine] == [name.encode() for name in MINE]
        assert {
            path
            for path in there(root)
            if not path.startswith("gpucache/") and path != "CACHEDIR.TAG"
        } == set(MINE)

    def test_directories_that_are_only_named_like_keys_stay(self, root):
        """Forty-three letters are a key of Triton 3.2, or a project's long name."""
        name = "my-experiments-with-attention-kernels-noteA"
        assert len(name) == 43
        (project, a, b, c) = (f"triton/0/{name}", *(f"triton/1/{letter * 52}" for letter in "DEF"))
        mine = (
            f"{project}/train.py",
            f"{a}/src/a.ttir",
            f"{b}/README.md",
            f"{c}/add.ttir",
            f"{c}/.git/HEAD",
        )
        put(root, *mine)
        plan = planned(root)
        assert plan.left == tuple(f"{root}/{path}" for path in (project, a, b, c))
        plan.execute()
        assert {path for path in there(root) if path.startswith("triton/")} == set(mine)

    def test_links_are_never_followed_and_their_targets_stay(self, root, keys, tmp_path):
        outside = tmp_path / "outside"
        inside = {
            f"cache/{'1e' * 32}": outside / "file",
            "fxgraph/zz": outside,
            "triton/2": outside,
            f"triton/0/{'F' * 52}": outside,
            f"triton/0/{keys[0]}/link": outside,
            "triton/0/tmp.gpucache-link": outside,
            "gpucache/v1/tmp/tmp.gpucache-link": outside,
            "gpucache/v1/quarantine/link": outside,
            f"{CODE[1:3]}/.9.9.tmp": outside,
            "precompiled_headers": outside,
        }
        put(outside, "file", f"{HASH}/{HASH}", f"{'F' * 52}/add.so", f"{CODE}.h")
        for name, target in inside.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)
            os.utime(root / name, (OLD, OLD), follow_symlinks=False)
        before = there(outside)
        plan = planned(root, -math.inf)
        assert {
            f"{root}/{name}" for name in ("triton/2", "fxgraph/zz", f"cache/{'1e' * 32}")
        } <= set(plan.left)
        plan.execute()
        assert there(outside) == before
        assert (outside / "file").read_bytes() == b"file"

    def test_a_root_that_is_a_link_is_cleaned_where_it_leads(self, root, tmp_path):
        (tmp_path / "link").symlink_to(root)
        assert planned(tmp_path / "link").execute().entries == 3
        assert (tmp_path / "link").is_symlink()

    def test_what_was_used_within_the_grace_stays_without_force(self, root, keys):
        now = time.time()
        os.utime(f"{entry_path(str(root), keys[0])}/{MANIFEST}", (now - 60, now - 60))
        os.utime(root / INDUCTORS[0], (now - 60, OLD))
        os.utime(root / INDUCTORS[2], (OLD, now - 60))
        plan = planned(root)
        assert [(one.key, one.why) for one in plan.kept[:1]] == [(keys[0], "used 1 min ago")]
        assert {(one.key, one.why) for one in plan.kept[1:]} == {
            (f"{root}/{INDUCTORS[number]}", "in use") for number in (0, 2)
        }
        plan.execute()
        assert there(root) >= {INDUCTORS[0], INDUCTORS[2], f"triton/1/{keys[0]}/{MANIFEST}"}
        assert len(scan(str(root)).entries) == 1
        planned(root, -math.inf).execute()
        assert scan(str(root)).entries == ()
        assert not (root / INDUCTORS[0]).exists()

    def test_with_force_even_what_is_dated_tomorrow_goes(self, root, keys):
        for path in (f"{entry_path(str(root), keys[0])}/{MANIFEST}", root / INDUCTORS[0]):
            os.utime(path, (time.time() + 86400,) * 2)
        assert [one.why for one in planned(root).kept] == ["used now", "in use"]
        done = planned(root, -math.inf).execute()
        assert (done.entries, done.skipped) == (3, ())

    def test_a_lock_that_somebody_holds_stays(self, root, keys):
        """Inductor's and ours, held by another process, when the plan is made and when it is carried out."""
        code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print('held', flush=True); input()"
        lock, plan = root / f"locks/{CODE}.lock", planned(root)
        with running(code, str(lock)):
            assert [(one.key, one.why) for one in planned(root).kept] == [(str(lock), "in use")]
            done = plan.execute()
            assert [(one.key, one.why) for one in done.skipped] == [(str(lock), "it is locked")]
        assert lock.exists()
        assert planned(root).execute().skipped == ()
        assert not lock.exists()

    def test_an_entry_whose_key_is_locked_stays(self, root, keys):
        lock = KeyLock(paths.ours(str(root), "locks", f"{keys[0]}.lock"))
        assert lock.try_acquire(sys._getframe(), "kernel")
        done = planned(root).execute()
        lock.release()
        (skipped,) = done.skipped
        assert skipped.key == keys[0]
        assert skipped.why.startswith("it is locked by ")
        assert len(scan(str(root)).entries) == 1

    @pytest.mark.parametrize("change", ["read", "written", "replaced", "a link"])
    def test_a_file_that_is_used_between_the_plan_and_the_removal_stays(self, change, root):
        plan, path = planned(root), root / INDUCTORS[0]
        if change == "read":
            os.utime(path, (time.time(), OLD))
        elif change == "written":
            path.write_text("new")
        else:
            path.rename(root.parent / "moved")
            path.write_text("new") if change == "replaced" else path.symlink_to(
                root.parent / "moved"
            )
        done = plan.execute()
        assert [(one.key, one.why) for one in done.skipped] == [
            (str(path), "it was used or replaced meanwhile")
        ]
        assert os.path.lexists(path)

    def test_what_another_process_removed_meanwhile_is_no_error(self, root):
        plan = planned(root)
        shutil.rmtree(root)
        done = plan.execute()
        assert done.freed.files == 0
        assert [one.key for one in done.skipped if "/" in one.key] == []

    def test_what_may_not_be_removed_is_told(self, root, as_root):
        directory = (root / INDUCTORS[0]).parent
        if subprocess.run(["chattr", "+i", directory], capture_output=True, check=False).returncode:
            pytest.skip("needs a file system that knows immutable directories")
        try:
            done = planned(root).execute()
        finally:
            subprocess.run(["chattr", "-i", directory], check=True)
        assert {(one.key, one.why) for one in done.skipped} >= {
            (f"{root}/{INDUCTORS[0]}", "Operation not permitted")
        }

    def test_a_tree_deeper_than_python_calls_is_looked_through(self, root):
        deep = [f"{root}/deep{'/d' * level}" for level in range(sys.getrecursionlimit() + 100)]
        for path in deep:
            os.mkdir(path)
        Path(f"{deep[-1]}/file").touch()
        try:
            plan = planned(root)
        finally:
            os.unlink(f"{deep[-1]}/file")
            for path in reversed(deep):  # pytest could not
                os.rmdir(path)
        assert plan.left == (f"{root}/deep",)


CLEAN = (
    SCRIPT
    + """
from gpucache.upkeep.clean import CleanPolicy
from gpucache.upkeep.plan import plan
from gpucache.report.cache_report import scan
made = plan(scan(sys.argv[2]), CleanPolicy(grace_s=900.0), {})
mark("begin")
made.execute()
mark("end")
"""
)


def test_killed_at_any_system_call_it_leaves_entries_whole_or_gone_and_nothing_else_touched(
    every_call,
):
    """SIGKILL before each call that changes the disk or a lock; what is left is whole, and goes the next time."""
    mine = ("notes.txt", "triton/0/notes.txt", "cache/data.bin")

    def start(home: Path) -> list[object]:
        root = home / "root"
        make(str(root), 1, 2)
        put(root, *INDUCTORS[:2], INDUCTORS[4], *mine)
        put(home, "outside/file")
        (root / "cache/link").symlink_to(home / "outside")
        return [root]

    def check(home: Path, line: str) -> None:
        root = home / "root"
        assert [(root / name).read_bytes() for name in mine] == [name.encode() for name in mine], (
            line
        )
        assert (home / "outside/file").read_bytes() == b"outside/file", line
        assert (root / f"gpucache/v1/devices/{paths.host_name()}.json").exists(), line
        assert (root / "triton/1").is_dir(), line
        for name in INDUCTORS:
            assert not (root / name).exists() or (root / name).read_bytes() == name.encode(), line
        for entry in scan(str(root)).entries:
            manifest = json.loads((Path(entry.copies[0].path) / MANIFEST).read_text())
            for copy in entry.copies:
                assert {
                    name: (Path(copy.path) / name).stat().st_size for name in manifest["files"]
                } == {name: size for name, (size, _, _) in manifest["files"].items()}, line
        for path in [
            *root.rglob("tmp.gpucache-*"),
            *(found.parent for found in root.rglob("*.removed")),
        ]:
            os.utime(path, (OLD, OLD))
        planned(root, -math.inf).execute()
        left = {name for name in there(root) if not name.startswith("gpucache/")}
        assert left == {*mine, "CACHEDIR.TAG", "cache/link"}, line

    every_call.killed_everywhere(CLEAN, start, check, least=15)
