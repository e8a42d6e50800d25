"""The plug-in under the real Triton: many processes, killed, stopped and failing ones, damaged and unusable disks.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton and gpucache, for the processes that compile.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest
from support.gpus import record_device
from support.ranks import PLUGIN, python_with_triton, together, warm
from support.templates import made_by_a_rank
from support.writers import put_kernel

from gpucache import CacheMissError, log
from gpucache.disk.locks import holder
from gpucache.log import warn_once
from gpucache.store import manifest, stats
from gpucache.store.lookup import sound

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install '.[test]' on Linux", allow_module_level=True)

from gpucache.triton.manager import DeviceCacheManager

STRICT = {"PYTHONWARNINGS": "error", "TRITON_DEFAULT_FP_FUSION": "1"}


def physical(root):
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            found[path.stat().st_ino] = path.stat().st_size
    return sum(found.values())


def entries(root):
    """Every entry of the store; each of them is whole."""
    found = sorted((root / "gpucache/v1/store").glob("*/*"))
    for path in found:
        assert sound(str(path), True, 0.0)
    return found


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)  # a poll of another process, not an order of events


def waits_for_a_lock(rank):
    """Whether a thread of the rank sleeps in flock."""
    try:
        wanted = {task.name for task in Path(f"/proc/{rank.process.pid}/task").iterdir()}
        return any(
            (Path("/proc") / task / "wchan").exists() and _in_flock(rank.process.pid, task)
            for task in wanted
        )
    except OSError:
        return False


def _in_flock(pid, task):
    return Path(f"/proc/{pid}/task/{task}/syscall").read_text().startswith("73 ")  # flock on x86-64


@pytest.fixture
def first(one_kernel, root):
    """One kernel is there, compiled through the plug-in for `triton/0`; what its process said of the binary."""
    one_kernel.at(root)
    return one_kernel.digests


@pytest.fixture
def first_of_stock(one_stock_kernel, root):
    """The same, compiled by stock Triton."""
    one_stock_kernel.at(root)
    return one_stock_kernel.digests


# ---- once per node


@pytest.fixture(scope="module")
def twelve_kernels(tmp_path_factory, triton):
    """What one rank makes alone; do not change it."""
    return made_by_a_rank(tmp_path_factory.mktemp("alone") / "root", 12)


@pytest.mark.parametrize("private", [True, False], ids=["private directories", "one directory"])
def test_eight_ranks_compile_twelve_kernels_twelve_times(private, ranks, root, twelve_kernels):
    directories = [f"triton/{n if private else 0}" for n in range(8)]
    said = together([ranks(directory, count=12) for directory in directories])
    assert sum(one["compiled"] for one in said) == 12
    assert len({json.dumps(one["digests"]) for one in said}) == 1
    assert [one["dangling"] for one in said] == [[]] * 8
    assert len(entries(root)) == 12
    assert physical(root) < 1.1 * physical(twelve_kernels.root)
    again = together([ranks(directory, count=12) for directory in directories])
    assert sum(one["compiled"] for one in again) == 0
    assert not list((root / "gpucache/v1/locks").glob("*.lock"))
    assert not list((root / "gpucache/v1/tmp").iterdir())


def test_two_architectures_are_two_kernels(ranks, root, twelve_kernels):
    """Those for sm_90 are there; four ranks find them, and four compile for sm_80."""
    twelve_kernels.at(root)
    said = together([ranks(f"triton/{n}", count=12, arch=(90 - 10 * (n % 2),)) for n in range(8)])
    assert sum(one["compiled"] for one in said[::2]) == 0
    assert sum(one["compiled"] for one in said[1::2]) == 12
    assert len(entries(root)) == 24


def test_threads_of_one_process_compile_once(root, tmp_path, triton):
    code = """if True:
        import sys, threading
        import kernels, triton
        from triton.backends.compiler import GPUTarget
        compiled = kernels.count_compiles()
        gate = threading.Barrier(4)
        def work():
            gate.wait()
            triton.compile(kernels.source(0), target=GPUTarget("cuda", 90, 32))
        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        print(len(compiled))
    """
    env = {
        **os.environ,
        **PLUGIN,
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": str(root / "triton/0"),
    }
    assert python_with_triton(code, env=env) == "1\n"


NESTED = """if True:
    import sys
    import kernels, triton
    from triton.backends.compiler import GPUTarget
    outer, inner = int(sys.argv[1]), int(sys.argv[2])
    backend = triton.backends.backends["nvidia"].compiler
    make, static = backend.make_ptx, isinstance(vars(backend)["make_ptx"], staticmethod)
    def compiled(number):
        return triton.compile(kernels.source(number), target=GPUTarget("cuda", 90, 32))
    def nesting(*words):
        backend.make_ptx = staticmethod(make) if static else make
        print("holding", flush=True)
        sys.stdin.readline()
        compiled(inner)
        return make(*words)
    backend.make_ptx = staticmethod(nesting) if static else nesting
    compiled(outer)
    print("done", flush=True)
"""


def test_compiles_inside_compiles_do_not_deadlock(root, triton):
    """Each of two processes holds the key that the other one needs in the middle of its own compile."""
    env = {
        **os.environ,
        **PLUGIN,
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": str(root / "triton/0"),
    }
    pair = [warm().start(NESTED, *order, env=env) for order in ("01", "10")]
    try:
        assert [process.stdout.readline() for process in pair] == ["holding\n"] * 2
        for process in pair:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.communicate(timeout=25)[0] for process in pair] == ["done\n"] * 2
    finally:
        for process in pair:
            process.end()
    assert len(entries(root)) == 2


# ---- a holder that dies, stops, fails or takes long

STAGES = ("make_ttir", "make_ttgir", "make_llir", "make_ptx", "make_cubin")


@pytest.mark.parametrize("stage", STAGES)
def test_when_the_holder_is_killed_a_waiter_takes_over(stage, ranks, root):
    victim = ranks(env={"KERNELS_AT": f"{stage}:block"})
    victim.go()
    victim.expect(f"at {stage}")
    waiter = ranks("triton/1")
    waiter.go()
    wait_until(lambda: waits_for_a_lock(waiter))
    assert "for scaled" in holder(
        next(str(path) for path in (root / "gpucache/v1/locks").glob("*.lock"))
    )
    victim.process.kill()
    assert waiter.said(timeout=25)["compiled"] == 1, "well before the stall timeout of 30 s"
    assert len(entries(root)) == 1


def test_a_stopped_holder_is_waited_for_until_the_stall_timeout(ranks, root):
    victim = ranks(env={"KERNELS_AT": "make_ptx:block"})
    victim.go()
    victim.expect("at make_ptx")
    victim.process.send_signal(signal.SIGSTOP)
    waiter = ranks("triton/1", env={"GPUCACHE_STALL_TIMEOUT_S": "1"})
    waiter.go()
    assert waiter.said()["compiled"] == 1
    assert "waited in vain for a compile" in waiter.err
    victim.process.send_signal(signal.SIGCONT)
    assert victim.said()["compiled"] == 1
    assert len(entries(root)) == 1
    assert ranks("triton/2").said()["compiled"] == 0


def test_a_long_compile_is_waited_for_and_not_repeated(ranks, root):
    """Its heartbeat goes on, though no stage ends, for longer than the stall timeout."""
    holding = ranks(env={"KERNELS_AT": "make_ptx:block"})
    holding.go()
    holding.expect("at make_ptx")
    waiter = ranks("triton/1", env={"GPUCACHE_STALL_TIMEOUT_S": "1.5"})
    waiter.go()
    wait_until(lambda: waits_for_a_lock(waiter))
    lock = next((root / "gpucache/v1/locks").glob("*.lock"))
    since = time.time()
    # twice the stall timeout, by the holder's own beats
    wait_until(lambda: lock.stat().st_mtime > since + 3)
    assert waiter.process.poll() is None
    assert holding.said()["compiled"] == 1
    assert waiter.said()["compiled"] == 0


def test_a_compile_that_raised_blocks_nobody_though_its_exception_is_kept(ranks, root):
    failing = ranks(env={"KERNELS_AT": "make_llir:raise"})
    failing.go()
    failing.expect("at make_llir")
    failing.expect("failed")
    waiter = ranks("triton/1")
    waiter.go()
    assert waiter.said(timeout=25)["compiled"] == 1
    assert failing.process.poll() is None


def test_a_forked_child_neither_holds_nor_frees_its_parents_lock(ranks, root, tmp_path):
    code = """if True:
        import os, sys
        os.environ["KERNELS_AT"] = ""
        import kernels, triton
        from triton.backends.compiler import GPUTarget
        backend = triton.backends.backends["nvidia"].compiler
        make, static = backend.make_ptx, isinstance(vars(backend)["make_ptx"], staticmethod)
        def forked(*words):
            backend.make_ptx = staticmethod(make) if static else make
            if os.fork() == 0:
                os._exit(0) if sys.argv[1] == "exit" else (print("child", flush=True), sys.stdin.read(), os._exit(0))
            if sys.argv[1] == "exit":
                os.wait()
                print("waited", flush=True)
                sys.stdin.readline()
            else:
                os.kill(os.getpid(), 9)
            return make(*words)
        backend.make_ptx = staticmethod(forked) if static else forked
        triton.compile(kernels.source(0), target=GPUTarget("cuda", 90, 32))
    """
    env = {
        **os.environ,
        **PLUGIN,
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": str(root / "triton/0"),
    }
    for how, line in (("exit", "waited"), ("live", "child")):
        shutil.rmtree(root, ignore_errors=True)
        parent = warm().start(code, how, env=env)
        try:
            assert parent.stdout.readline() == line + "\n"
            waiter = ranks("triton/1")
            waiter.go()
            if how == "exit":
                wait_until(lambda waiter=waiter: waits_for_a_lock(waiter))
                parent.stdin.write("\n")
                parent.stdin.flush()
                assert waiter.said()["compiled"] == 0
            else:
                assert waiter.said(timeout=25)["compiled"] == 1
        finally:
            parent.end()


# ---- damage


def only(root, pattern):
    (path,) = (root / "triton/0").glob(f"*/{pattern}")
    return path


def emptied(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def removed(path):
    path.unlink()


DAMAGE = [
    ("__grp__*.json", emptied),
    ("__grp__*.json", removed),
    ("scaled.json", emptied),
    ("scaled.json", removed),
    ("scaled.cubin", emptied),
    ("scaled.cubin", truncated),
    ("scaled.cubin", flipped),
    ("scaled.cubin", removed),
    ("scaled.ptx", removed),
    ("__entry__.json", emptied),
    ("__entry__.json", removed),
]


@pytest.mark.parametrize(
    ("pattern", "damage"), DAMAGE, ids=lambda value: getattr(value, "__name__", value)
)
def test_every_damage_heals_in_the_next_two_processes(pattern, damage, ranks, root, first):
    damage(only(root, pattern))
    second, third = ranks().said(), ranks().said()
    assert second["digests"] == third["digests"] == first
    assert third["compiled"] == 0
    assert len(entries(root)) == 1


def test_damage_that_keeps_size_and_time_is_found_by_verification(ranks, root, first):
    cubin = only(root, "scaled.cubin")
    before = cubin.stat()
    flipped(cubin)
    os.utime(cubin, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ranks().said()["digests"] != first, "the limit that is stated"
    assert ranks(env={"GPUCACHE_VERIFY": "always"}).said()["digests"] == first


def test_damage_is_found_at_the_first_use_after_a_reboot(ranks, root, first):
    cubin, manifest = only(root, "scaled.cubin"), only(root, "__entry__.json")
    before = cubin.stat()
    flipped(cubin)
    os.utime(cubin, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(manifest, (1, 1))  # last used before this machine started
    assert ranks().said()["digests"] == first


# ---- beside Triton's own manager


def test_stock_triton_reads_our_directories(ranks, root):
    first = ranks(count=3).said()
    stock = ranks(count=3, plugin=False).said()
    assert (stock["compiled"], stock["digests"]) == (0, first["digests"])


def test_a_directory_of_stock_triton_is_adopted(ranks, root):
    first = ranks(count=3, plugin=False).said()
    ours = ranks(count=3).said()
    assert (ours["compiled"], ours["digests"]) == (0, first["digests"])
    assert ranks("triton/1", count=3).said()["compiled"] == 0
    assert ranks(count=3, plugin=False).said()["compiled"] == 0


def test_a_device_directory_that_was_moved_is_hit_and_stock_triton_follows(ranks, root):
    ranks(count=2).said()
    shutil.rmtree(root / "gpucache")
    shutil.copytree(root / "triton/0", root / "triton/9", copy_function=shutil.copyfile)
    shutil.rmtree(root / "triton/0")
    assert ranks("triton/9", count=2).said()["compiled"] == 0
    assert ranks("triton/9", count=2, plugin=False).said()["compiled"] == 0


def test_a_cubin_of_stock_triton_that_was_cut_is_not_adopted(ranks, root, first_of_stock):
    truncated(only(root, "scaled.cubin"))
    for path in only(root, "scaled.cubin").parent.iterdir():
        os.utime(path, (1, 1))
    assert ranks().said()["digests"] == first_of_stock
    assert ranks("triton/1").said()["digests"] == first_of_stock


@pytest.mark.parametrize("left", ["empty", "half-made", "only a cubin"])
@pytest.mark.usefixtures("first_of_stock")
def test_what_others_leave_behind_heals(left, ranks, root):
    (key,) = (root / "triton/0").iterdir()
    for path in list(key.iterdir()):
        if left == "empty" or (left == "only a cubin") != (path.suffix == ".cubin"):
            path.unlink()
    for path in key.iterdir():
        os.utime(path, (1, 1))
    assert ranks().said()["compiled"] == 1
    assert ranks().said()["compiled"] == 0
    assert ranks(plugin=False).said()["compiled"] == 0


# ---- Triton's own modes


@pytest.mark.usefixtures("first")
def test_always_compile_compiles_and_keeps_the_result_to_itself(ranks, root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("scaled.*")}
    always = ranks(env={"TRITON_ALWAYS_COMPILE": "1"}).said()
    assert always["compiled"] == 1
    assert {
        path: path.stat().st_mtime_ns for path in root.rglob("scaled.*") if path in before
    } == before
    assert ranks().said()["compiled"] == 0


def test_an_overridden_kernel_reaches_nobody(ranks, root, tmp_path):
    env = {"TRITON_KERNEL_OVERRIDE": "1", "TRITON_OVERRIDE_DIR": str(tmp_path / "override")}
    assert ranks(env=env).said()["compiled"] == 1
    assert not list(root.glob("triton/0/*"))
    assert entries(root) == []
    assert ranks().said()["compiled"] == 1
    assert ranks(env=env).said()["compiled"] == 1


def test_a_dump_is_tritons_own(ranks, root, tmp_path):
    env = {"TRITON_KERNEL_DUMP": "1", "TRITON_DUMP_DIR": str(tmp_path / "dump")}
    assert ranks(env=env).said()["compiled"] == 1
    assert list((tmp_path / "dump").glob("*/scaled.ptx"))
    assert ranks().said()["compiled"] == 0


def test_use_ir_loc_is_tritons_own(ranks, root):
    """It bakes the path of the cache into the code."""
    assert ranks(env={"USE_IR_LOC": "ttir"}).said()["compiled"] == 1
    assert entries(root) == []


def test_always_compile_publishes_nothing_where_nothing_was(ranks, root):
    assert ranks(env={"TRITON_ALWAYS_COMPILE": "1"}).said()["compiled"] == 1
    assert not (root / "gpucache/v1/store").exists() or entries(root) == []


def test_a_slim_entry_is_a_hit(ranks, root):
    assert ranks(env={"TRITON_STORE_BINARY_ONLY": "1"}).said()["compiled"] == 1
    assert ranks().said()["compiled"] == 0


def test_disabled_it_is_stock_triton(ranks, root):
    assert ranks(env={"GPUCACHE_DISABLE": "1"}).said()["compiled"] == 1
    assert not (root / "gpucache").exists()


def test_locks_that_a_cleaner_swept_are_made_again_and_the_next_kernel_is_shared(root, monkeypatch):
    """A process that made its directories at the start would compile each new kernel alone, for life."""
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    for name, value in {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": f"{root}/triton/0"}.items():
        monkeypatch.setenv(name, value)
    put_kernel("A" * 52)
    locks = Path(DeviceCacheManager("A" * 52)._location.locks.directory())
    shutil.rmtree(locks)
    put_kernel("B" * 52)
    assert locks.is_dir()
    assert locks.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{root}/triton/1")
    assert DeviceCacheManager("B" * 52).get_group("add.json") is not None


@pytest.mark.usefixtures("first")
def test_a_deliberately_fresh_directory_is_not_shared(ranks, root, guard):
    fresh = str(guard / "tmp" / "tmpabcdef78")
    assert ranks(env={"TRITON_CACHE_DIR": fresh}).said()["compiled"] == 1
    shutil.rmtree(fresh)
    assert ranks(env={"TRITON_CACHE_DIR": fresh, "GPUCACHE_SHARE": "1"}).said()["compiled"] == 0


@pytest.mark.usefixtures("first")
def test_a_directory_in_the_temporary_one_is_shared(ranks, root, guard):
    """As published recipes choose it: /tmp/triton-cache-$USER-$SLURM_JOB_ID."""
    chosen = str(guard / "tmp" / "triton-cache-ada-4711")
    assert ranks(env={"TRITON_CACHE_DIR": chosen}).said()["compiled"] == 0


def test_a_required_hit_names_what_is_missing(root, monkeypatch):
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    monkeypatch.setenv("GPUCACHE_REQUIRE_HIT", "1")
    with pytest.raises(CacheMissError, match="kernel scaled with key KEY") as caught:
        DeviceCacheManager("KEY").get_group("scaled.json")
    assert str(root / "triton/0/KEY") in caught.value.looked
    assert not list((root / "gpucache/v1/locks").iterdir())


def test_a_required_hit_stops_the_launch_and_only_that(ranks, root):
    required = {"GPUCACHE_REQUIRE_HIT": "1"}
    missing = ranks(env=required)
    _, said = missing.process.communicate("\n", timeout=60)
    assert "CacheMissError: kernel scaled with key" in said
    ranks().said()
    assert ranks(env=required).said()["compiled"] == 0


@pytest.mark.parametrize("unsafe", ["triton/0", "."])
def test_a_directory_that_everybody_may_write_is_neither_read_nor_shared(unsafe, ranks, root):
    ranks(env=STRICT).said()
    (root / unsafe).chmod(0o777)
    rank = ranks(env=STRICT)
    assert rank.said()["compiled"] == 1
    assert "everybody may write it" in one_warning(rank)


# ---- disks that refuse


@pytest.fixture
def mounted(as_root, root):
    """A small disk of the root's own."""
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", root], check=True)
    yield root
    subprocess.run(["umount", "-l", root], check=True)


def one_warning(rank):
    lines = [line for line in rank.err.splitlines() if "compiling without the shared cache" in line]
    assert len(lines) == 1, rank.err
    return lines[0]


@pytest.mark.root
def test_on_a_full_disk_the_kernel_is_returned_with_one_warning(ranks, mounted):
    (mounted / "triton/0").mkdir(parents=True)
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={mounted / 'full'}", "bs=4k"], capture_output=True, check=False
    )
    rank = ranks(count=2, env=STRICT)
    assert rank.said()["compiled"] == 2
    assert "No space left" in one_warning(rank)


@pytest.mark.root
def test_on_a_read_only_disk_hits_go_on_and_misses_stay_private(ranks, mounted):
    ranks(count=1, env=STRICT).said()
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    rank = ranks(count=2, env=STRICT)
    assert rank.said()["compiled"] == 1
    assert "Read-only" in one_warning(rank)


@pytest.mark.root
def test_a_library_is_kept_where_it_can_be_loaded(mounted, manager):
    subprocess.run(["mount", "-o", "remount,noexec", mounted], check=True)
    path = manager().put(b"library", LIBRARY)
    assert not path.startswith(str(mounted))
    assert Path(path).read_bytes() == b"library"
    assert manager().get_file(LIBRARY) is None, "built again rather than failing to load"


def test_what_killed_processes_left_in_a_device_directory_is_swept(ranks, root):
    for name, age in (
        ("tmp.gpucache-old", 1),
        ("tmp.gpucache-new", None),
        ("tmp.someone-elses", 1),
    ):
        (root / "triton/0" / name).mkdir(parents=True)
        if age:
            os.utime(root / "triton/0" / name, (age, age))
    (root / "triton/0/tmp.gpucache-file").write_text("of a killed put")
    os.utime(root / "triton/0/tmp.gpucache-file", (1, 1))
    ranks().said()
    left = {path.name for path in (root / "triton/0").glob("tmp.*")}
    assert left == {"tmp.gpucache-new", "tmp.someone-elses"}


@pytest.mark.root
def test_a_store_of_another_user_is_not_used(ranks, root, as_root):
    root.mkdir(mode=0o700)
    os.chown(root, 54321, 54321)
    rank = ranks(env=STRICT)
    assert rank.said()["compiled"] == 1
    assert "belongs to uid 54321" in one_warning(rank)
    assert list(root.iterdir()) == []


def test_a_root_that_vanishes_under_a_running_compile_costs_nothing(ranks, root):
    rank = ranks(count=3, env={**STRICT, "KERNELS_AT": "make_ptx:block"})
    rank.go()
    rank.expect("at make_ptx")
    shutil.rmtree(root)
    assert rank.said()["compiled"] == 3


def test_a_python_without_gpucache_is_not_given_the_plug_in(gpucache, tmp_path):
    """It would die of a ModuleNotFoundError inside its first kernel launch."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", tmp_path / "venv"], check=True
    )
    code = "import os; print('TRITON_CACHE_MANAGER' in os.environ)"
    env = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1", "GPUCACHE_DIR": str(tmp_path / "root")}
    done = gpucache("run", "--", tmp_path / "venv/bin/python", "-c", code, env=env)
    assert done.stdout == "False\n"


# ---- single files, through the manager itself


@pytest.fixture
def manager(root, monkeypatch):
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    monkeypatch.delenv("TRITON_CACHE_MANAGER", raising=False)
    return lambda key="KEY": DeviceCacheManager(key)


LIBRARY = f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"


def test_a_library_is_published_at_once_and_found_by_all(manager, root):
    assert manager().get_file(LIBRARY) is None
    path = manager().put(b"library", LIBRARY)
    assert path == str(root / "triton/0/KEY" / LIBRARY)
    assert manager().get_file(LIBRARY) == path
    shutil.rmtree(root / "triton/0")
    assert Path(manager().get_file(LIBRARY)).read_bytes() == b"library"


def test_a_library_that_was_found_and_is_put_again_was_bad(manager, root):
    """Triton 3.4 and later builds a library anew that does not load."""
    manager().put(b"does not load", LIBRARY)
    again = manager()
    again.get_file(LIBRARY)
    path = again.put(b"loads", LIBRARY)
    assert Path(path).read_bytes() == b"loads"
    assert Path(manager().get_file(LIBRARY)).read_bytes() == b"loads"
    assert list((root / "gpucache/v1/quarantine").iterdir())


BUILD = '''if True:
    from triton.runtime import build
    source = """
    #include <Python.h>
    static PyObject *answer(PyObject *self, PyObject *args) { return PyLong_FromLong(42); }
    static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
    static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "small", NULL, -1, methods};
    PyMODINIT_FUNC PyInit_small(void) { return PyModule_Create(&module); }
    """
    real = build._build
    def counted(*words, **options):
        print("built")
        return real(*words, **options)
    build._build = counted
    print(build.compile_module_from_src(source, "small", [], [], []).answer())
'''


@pytest.mark.parametrize(
    "damage",
    [emptied, truncated, "a page less", "does not load"],
    ids=lambda damage: getattr(damage, "__name__", damage),
)
def test_a_real_library_heals_in_the_next_two_processes(damage, root, triton):
    """Stock Triton 3.9 dies of SIGBUS at every start when a library was cut by a page."""
    env = {
        **os.environ,
        **PLUGIN,
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": str(root / "triton/0"),
    }

    def said():
        done = warm().run(BUILD, env=env)
        if "has no attribute 'compile_module_from_src'" in done.stderr:
            return None
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first = said()
    if first is None:
        return  # Triton before 3.4 builds its libraries elsewhere, and without healing
    assert first == ["built", "42"]
    assert said() == ["42"]
    library = only(root, "small*.so")
    if damage == "a page less":
        library.write_bytes(library.read_bytes()[:-4096])
    elif damage == "does not load":  # published so: every digest is right
        for path in (library.parent, *(root / "gpucache/v1/store").glob("*/*")):
            shutil.rmtree(path)
        key, name = library.parent.name, library.name
        code = f"import triton, gpucache.triton as p; p.DeviceCacheManager({key!r}).put(bytes(16384), {name!r})"
        python_with_triton(code, env=env)
    else:
        damage(library)
    assert said() == ["built", "42"]
    assert said() == ["42"]


def test_a_rebuilt_library_is_not_thrown_out_by_the_next_rebuild(manager, root):
    """Eight ranks find the same bad one; each puts its own, and all must go on loading."""
    manager().put(b"bad", LIBRARY)
    ranks = [manager() for _ in range(3)]
    assert all(Path(rank.get_file(LIBRARY)).read_bytes() == b"bad" for rank in ranks)
    paths = [Path(rank.put(b"good", LIBRARY)) for rank in ranks]
    assert [path.read_bytes() for path in paths] == [b"good"] * 3
    quarantined = [
        path.read_bytes() for path in (root / "gpucache/v1/quarantine").glob(f"*/{LIBRARY}")
    ]
    assert set(quarantined) == {b"bad"}


def test_while_another_rank_replaces_a_bad_library_ones_own_is_used(manager, root):
    from gpucache.store.key_lock import KeyLock

    manager().put(b"bad", LIBRARY)
    late = manager()
    late.get_file(LIBRARY)
    lock = KeyLock(f"{root}/gpucache/v1/locks/{late._single.entry_key}.lock")
    assert lock.try_acquire(sys._getframe(), "another rank")
    assert Path(late.put(b"good", LIBRARY)).read_bytes() == b"good"
    lock.release()


def test_two_files_under_one_key_do_not_fight(manager, root):
    for name in ("a.so", LIBRARY):
        manager().put(name.encode(), name)
    for _ in range(3):
        for name in ("a.so", LIBRARY):
            assert Path(manager().get_file(name)).read_bytes() == name.encode()
    assert not (root / "gpucache/v1/quarantine").exists()


def test_a_file_of_any_name_that_was_asked_for_is_kept(manager):
    one = manager()
    assert one.get_file("table.bin") is None
    one.put(b"table", "table.bin")
    assert Path(manager().get_file("table.bin")).read_bytes() == b"table"


def test_a_library_that_stock_triton_left_is_used(manager, root):
    """An image without a compiler brings it along."""
    (root / "triton/0/KEY").mkdir(parents=True)
    (root / "triton/0/KEY" / LIBRARY).write_bytes(b"prebuilt")
    assert Path(manager().get_file(LIBRARY)).read_bytes() == b"prebuilt"


def test_a_bad_store_leaves_a_good_directory_to_stock_triton(ranks, tmp_path):
    directory = str(tmp_path / "elsewhere" / "cache")
    Path(directory).mkdir(parents=True)
    env = {
        **STRICT,
        "GPUCACHE_DIR": "/proc/nowhere",
        "TRITON_CACHE_DIR": directory,
        "GPUCACHE_SHARE": "1",
    }
    first = ranks(env=env)
    assert first.said()["compiled"] == 1
    assert "the store cannot be used" in one_warning(first)
    assert ranks(env=env).said()["compiled"] == 0


@pytest.mark.usefixtures("first")
def test_a_disk_that_does_not_answer_once_does_not_condemn_an_entry(ranks, root, monkeypatch):
    (entry,) = entries(root)

    def fails(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "digest_of", fails)
        with pytest.raises(OSError, match="Input"):
            sound(str(entry), True, 0.0)
    assert sound(str(entry), True, 0.0)


@pytest.mark.parametrize("damage", [emptied, lambda path: path.write_bytes(bytes(8192)[:4096])])
def test_a_damaged_library_is_never_handed_out(damage, manager, root):
    """Stock Triton dies of SIGBUS at every start when a library was cut by a page."""
    path = Path(manager().put(bytes(range(256)) * 32, LIBRARY))
    damage(path)
    again = manager()
    assert again.get_file(LIBRARY) is None
    assert Path(again.put(b"new", LIBRARY)).read_bytes() == b"new"
    assert Path(manager().get_file(LIBRARY)).read_bytes() == b"new"


def test_a_library_without_an_abi_tag_is_for_equal_pythons_only(manager, monkeypatch):
    """Triton 3.2 and 3.3 name it so."""
    manager().put(b"of this python", "cuda_utils.so")
    assert manager().get_file("cuda_utils.so") is not None
    assert Path(manager().get_file("cuda_utils.so")).read_bytes() == b"of this python"
    monkeypatch.setattr("gpucache.triton.single_file._libc", lambda: ("another", "libc"))
    other = manager()
    assert other.get_file("cuda_utils.so") is None
    assert Path(other.put(b"of another", "cuda_utils.so")).read_bytes() == b"of another"
    assert Path(manager().get_file("cuda_utils.so")).read_bytes() == b"of another"
    monkeypatch.undo()


def test_autotune_results_hold_for_the_same_silicon(manager, root, monkeypatch):
    name, timings = "kernel.autotune.json", json.dumps({"key": [1], "configs_timings": []})
    assert manager().put(timings, name, binary=False)
    assert manager().get_file(name), "unknown silicon is kept for this node and device directory"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/1"))
    assert manager().get_file(name) is None, "and not shared"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    record_device(root, (9, 0), 16896)
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    first = manager()
    assert first.get_file(name) is None
    first.put(timings, name, binary=False)
    second = manager()
    second.put(json.dumps({"key": [2], "configs_timings": []}), name, binary=False)
    assert json.loads(Path(manager().get_file(name)).read_text())["key"] == [1], (
        "the first complete file wins"
    )
    shutil.rmtree(root / "gpucache/v1/devices")
    record_device(root, (9, 0), 14592)
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    other = manager()
    assert other.get_file(name) is None, "another core count is another silicon"
    path = other.put(json.dumps({"key": [9], "configs_timings": []}), name, binary=False)
    assert json.loads(Path(path).read_text())["key"] == [9]


def test_a_broken_autotune_result_is_a_miss(manager, root, monkeypatch):
    record_device(root, (9, 0), 16896)
    name = "kernel.autotune.json"
    manager().put('{"key": [1], "configs_ti', name, binary=False)
    again = manager()
    assert again.get_file(name) is None
    again.put(json.dumps({"key": [3], "configs_timings": []}), name, binary=False)
    assert json.loads(Path(manager().get_file(name)).read_text())["key"] == [3]


# ---- what it costs and counts


def test_it_imports_no_triton_no_nvml_and_no_registry(python):
    code = """if True:
        import sys, gpucache.triton
        heavy = ("triton", "torch", "pynvml", "filelock", "click")
        heavy += ("gpucache.directories.registry", "gpucache.machine.nvml")
        print([name for name in heavy if name in sys.modules])
    """
    assert python(code).stdout == "[]\n"


@pytest.mark.usefixtures("first")
def test_a_hit_takes_no_lock_and_writes_nothing(ranks, root):
    os.utime(only(root, "__entry__.json"))
    before = {path: path.stat().st_mtime_ns for path in (root / "triton").rglob("*")}
    for path in (root / "gpucache/v1/locks", root / "gpucache/v1/store"):
        before |= {inner: inner.stat().st_mtime_ns for inner in [path, *path.rglob("*")]}
    ranks().said()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_counters_are_summed_over_processes(ranks, root, gpucache):
    together([ranks(f"triton/{n}", count=2) for n in range(4)])
    ranks("triton/0", count=2).said()
    said = json.loads(gpucache("stats", "--json", "--root", root).stdout)
    assert said["all"]["misses"] == 2
    assert said["all"]["hits"] + said["all"]["shared_hits"] == 8
    assert set(said["devices"]) == {"0", "1", "2", "3"}
    assert stats.totals(str(root))["0"]["hits"] >= 2


def test_a_manager_in_a_thread_of_its_own_place_is_reused(manager):
    """Places are settled once for each value of `TRITON_CACHE_DIR`."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(manager()._location)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.directory for one in found}) == 1


def test_a_cause_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(log, "_warned", set())
    with caplog.at_level(logging.WARNING, "gpucache"):
        for _ in range(3):
            warn_once("the disk", "is full")
    assert len(caplog.records) == 1


def test_even_our_defect_ends_in_a_compile_of_ones_own(manager, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("a defect")

    for name in ("location.sound", "shared_kernel.publish_entry", "shared_kernel.link_view"):
        monkeypatch.setattr(f"gpucache.triton.{name}", broken)
    monkeypatch.setattr("gpucache.triton.manager.DeviceCacheManager._hit", lambda *_: None)
    monkeypatch.setattr(log, "_warned", set())
    one = manager()
    with caplog.at_level(logging.WARNING, "gpucache"):
        assert one.get_group("scaled.json") is None
        group = {name: one.put("{}", name) for name in ("scaled.cubin", "scaled.json")}
        one.put_group("scaled.json", group)
        assert Path(group["scaled.json"]).read_text() == "{}"
        library = manager("OTHER")
        assert library.get_file(LIBRARY) is None
        assert Path(library.put(b"library", LIBRARY)).read_bytes() == b"library"
    assert "a defect" in caplog.text


def test_even_a_defect_where_the_cache_is_chosen_ends_in_a_compile_of_ones_own(
    manager, monkeypatch, caplog
):
    def broken(*_, **__):
        raise LookupError("unknown encoding: ascii")

    monkeypatch.setattr("gpucache.triton.manager.locate", broken)
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    monkeypatch.setattr(log, "_warned", set())
    with caplog.at_level(logging.WARNING, "gpucache"):
        one = manager()
        assert one.get_group("scaled.json") is None
        group = {name: one.put("{}", name) for name in ("scaled.cubin", "scaled.json")}
        one.put_group("scaled.json", group)
    assert Path(group["scaled.json"]).read_text() == "{}"
    assert "unknown encoding" in caplog.text


# ---- what is logged


def lines(rank):
    return [line.partition("] ")[2] for line in rank.err.splitlines() if "gpucache[" in line]


def test_at_level_info_a_compile_says_where_it_looked_and_a_hit_says_nothing(ranks, root):
    first = ranks(env={**STRICT, "GPUCACHE_LOG": "info"})
    first.said()
    key = only(root, "scaled.json").parent.name
    missed, published = lines(first)
    places = f"{root}/triton/0 and in the store of {root}"
    assert missed == f"INFO miss: scaled {key}: absent in {places}; the store has no other scaled"
    assert published.startswith(f"INFO published: scaled {key}: compiled in ")
    assert published.endswith(f" s, to {root}/triton/0/{key}")
    again = ranks(env={**STRICT, "GPUCACHE_LOG": "info"})
    assert (again.said()["compiled"], lines(again)) == (0, [])


@pytest.mark.usefixtures("first")
def test_at_level_debug_a_hit_says_where_it_was(ranks, root):
    key = only(root, "scaled.json").parent.name
    own, other = (
        ranks(env={"GPUCACHE_LOG": "DEBUG"}),
        ranks("triton/1", env={"GPUCACHE_LOG": "debug"}),
    )
    own.said(), other.said()
    assert lines(own) == [
        f"DEBUG caching in {root}/triton/0, store in {root}, mode shared",
        f"DEBUG hit: scaled {key} in {root}/triton/0/{key}",
    ]
    assert (
        lines(other)[1]
        == f"DEBUG shared hit: scaled {key} from {root}/gpucache/v1/store/{key[:2]}/{key}"
    )


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"TRITON_ALWAYS_COMPILE": "1"}, "always-compile"),
        ({"TRITON_KERNEL_OVERRIDE": "1"}, "override"),
    ],
)
def test_a_setting_that_makes_a_miss_is_named(setting, why, ranks, tmp_path):
    rank = ranks(env={"GPUCACHE_LOG": "info", "TRITON_HOME": str(tmp_path), **setting})
    assert rank.said()["compiled"] == 1
    alone, missed = lines(rank)
    (name,) = setting
    assert alone == f"INFO not shared: {name}=1: every kernel is compiled, whatever is cached"
    assert missed.endswith(f": {why}")


@pytest.mark.usefixtures("first")
def test_a_miss_for_damage_is_named(ranks, root):
    emptied(only(root, "scaled.cubin"))
    rank = ranks(env={"GPUCACHE_LOG": "info"})
    assert rank.said()["compiled"] == 1
    assert ": damaged in " in lines(rank)[0]


def test_without_a_store_a_miss_is_private(ranks, root):
    root.mkdir()
    root.chmod(0o777)
    rank = ranks(env={"GPUCACHE_LOG": "info"})
    assert rank.said()["compiled"] == 1
    assert lines(rank)[0].startswith("WARNING the store cannot be used: ")
    assert lines(rank)[1].endswith(": private")


def test_without_the_variable_nothing_is_configured(ranks):
    rank = ranks(env=STRICT)
    rank.said()
    assert rank.err == ""


def test_a_level_that_makes_no_sense_is_told_once(ranks):
    rank = ranks(count=2, env={**STRICT, "GPUCACHE_LOG": "loud"})
    rank.said()
    assert rank.err == (
        "GPUCACHE_LOG='loud' is not debug or info or warning or error: ignored; it is unset\n"
    )


def test_a_handler_of_the_program_that_raises_does_not_reach_a_kernel_launch(manager, monkeypatch):
    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("a broken handler")

    log = logging.getLogger("gpucache")
    monkeypatch.setattr(log, "handlers", [Broken()])
    monkeypatch.setattr(log, "level", logging.DEBUG)
    log.manager._clear_cache()
    one = manager("KEY")
    assert one.get_group("scaled.json") is None
    group = {name: one.put("{}", name) for name in ("scaled.cubin", "scaled.json")}
    one.put_group("scaled.json", group)
    assert manager("KEY").get_group("scaled.json")
    log.manager._clear_cache()
