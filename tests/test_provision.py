from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.every_call import SCRIPT
from support.processes import BARE, INTERPRETER, PATIENCE_S, lock_holder
from support.trees import everything_below
from support.users import ADA, BOB, acting_as, directory

from gpucache import DeviceCacheRegistry, Provision
from gpucache.directories import provision as provision_module
from gpucache.directories.making import Making
from gpucache.directories.merging import merge
from gpucache.directories.record import Record, read_record
from gpucache.disk import locks, mounts
from gpucache.disk.files import write_whole
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import locked
from gpucache.disk.sharing import mark_of
from gpucache.errors import LockTimeoutError, ProvisionError, RecordError
from gpucache.layout import paths
from gpucache.machine import libcuda
from gpucache.machine.device import Device, Snapshot, Status, Unavailable, fake_devices

TAG = b"Signature: 8a477f597d28d172789f06886806bc55"


def machine_of(count: int) -> Snapshot:
    """A machine with equal GPUs, whose order needs no libcuda."""
    devices = (
        Device(uuid=f"GPU-{number}", index=number, name="NVIDIA H100", compute_capability=(9, 0))
        for number in range(count)
    )
    return Snapshot(status=Status.OK, source="nvml", devices=tuple(devices))


FOUR = machine_of(4)
NAMES = ("0", "1", "2", "3")
NO_GPU = Snapshot(
    status=Status.NO_DRIVER, source="fake", detail="there is no driver", devices=fake_devices(1)
)


def provision(
    root: Path | str, snapshot: Snapshot = FOUR, timeout_s: float = PATIENCE_S, **environ: str
) -> Provision:
    return DeviceCacheRegistry(root, snapshot, environ).provision(timeout_s)


def record_file(root: Path | str) -> Path:
    return Path(paths.record_path(str(root), paths.host_name()))


def record_of(root: Path | str) -> Record:
    return read_record(str(record_file(root)), paths.host_name())


def whole(root: Path, count: int = 4) -> bool:
    """Whether all is there as it should be, and nothing else."""
    names = {str(number) for number in range(count)}
    assert {path.name for path in (root / "triton").iterdir()} == names
    assert (root / "CACHEDIR.TAG").read_bytes().startswith(TAG)
    assert record_of(root) == merge(None, machine_of(count), paths.host_name())
    return True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o700)
    return parent / "root"


class TestWhatItMakes:
    def test_the_first_call_makes_everything(self, root):
        done = provision(root)
        assert done == Provision(
            root=str(root),
            devices=FOUR.devices,
            directories=NAMES,
            created=NAMES,
            warnings=done.warnings,
        )
        assert whole(root)

    def test_every_directory_it_makes_is_private(self, root):
        old = os.umask(0)
        try:
            provision(root)
        finally:
            os.umask(old)
        made = [root.parent, root, *(path for path in root.rglob("*") if path.is_dir())]
        assert len(made) == 2 + 7 + 4
        assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}

    def test_nothing_of_it_can_be_read_by_others(self, root):
        provision(root)
        files = [path for path in root.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}

    def test_the_second_call_changes_nothing_and_takes_no_lock(self, root, monkeypatch):
        provision(root)
        before, text = everything_below(root), record_file(root).read_bytes()
        monkeypatch.setattr(provision_module, "locked", pytest.fail)
        monkeypatch.setattr(Making, "directory", pytest.fail)
        again = provision(root)
        assert (again.created, again.existing) == ((), NAMES)
        assert everything_below(root) == before
        assert record_file(root).read_bytes() == text

    def test_constructing_makes_nothing(self, root):
        DeviceCacheRegistry(root, FOUR, {})
        assert not root.exists()

    def test_disabled_it_makes_nothing(self, root):
        done = provision(root, GPUCACHE_DISABLE="1")
        assert done == Provision(
            root=str(root), devices=FOUR.devices, warnings=("GPUCACHE_DISABLE=1: nothing was made",)
        )
        assert not root.exists()

    def test_fake_devices_are_told(self, root):
        fakes = Snapshot(
            status=Status.NO_DRIVER,
            source="fake",
            detail="there is no driver",
            devices=fake_devices(2),
        )
        assert (
            "the devices are fake (no-driver): there is no driver"
            in provision(root, fakes).warnings
        )

    def test_a_host_without_gpus_among_hosts_with_gpus_gets_no_record(self, root, monkeypatch):
        monkeypatch.setattr(paths, "host_name", lambda: "gpu1")
        provision(root)
        before = everything_below(root)
        monkeypatch.setattr(paths, "host_name", lambda: "login")
        done = provision(root, NO_GPU)
        assert everything_below(root) == before
        assert done.unrecorded
        assert (done.created, done.existing, done.directories) == ((), (), ())
        (warning,) = done.warnings
        assert warning == (
            "no record of login is made, since its one device would be fake (no-driver: there is no driver), "
            "and the root has the real ones of gpu1; set GPUCACHE_FAKE_DEVICES=1 if a fake one is meant"
        )
        with pytest.raises(RecordError, match="no record of host login"):
            DeviceCacheRegistry.load(root, {})

    @pytest.mark.parametrize("other", ["a fake one", "a torn one", "none"])
    def test_where_no_other_host_has_gpus_it_gets_a_fake_record(self, other, root, monkeypatch):
        monkeypatch.setattr(paths, "host_name", lambda: "first")
        if other != "none":
            provision(root, NO_GPU)
        if other == "a torn one":
            record_file(root).write_text("{")
        monkeypatch.setattr(paths, "host_name", lambda: "login")
        done = provision(root, NO_GPU)
        assert not done.unrecorded
        assert record_of(root).fake

    def test_fake_devices_that_were_asked_for_are_recorded_beside_any_other(
        self, root, monkeypatch
    ):
        monkeypatch.setattr(paths, "host_name", lambda: "gpu1")
        provision(root)
        monkeypatch.setattr(paths, "host_name", lambda: "login")
        registry = DeviceCacheRegistry(root, environ={"GPUCACHE_FAKE_DEVICES": "2"})
        assert not registry.provision().unrecorded
        assert len(record_of(root).devices) == 2

    def test_a_host_that_has_lost_its_gpus_keeps_its_record(self, root):
        provision(root)
        text = record_file(root).read_bytes()
        assert not provision(root, NO_GPU).unrecorded
        assert record_file(root).read_bytes() == text

    def test_lost_gpus_are_told(self, root):
        lost = Snapshot(
            status=Status.OK,
            source="nvml",
            devices=FOUR.devices[:2],
            lost=(Unavailable(2, 15, "GPU is lost"),),
        )
        registry = DeviceCacheRegistry(root, lost, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
        assert "GPU 2 is lost: GPU is lost" in registry.provision().warnings

    def test_what_others_put_into_the_root_stays(self, root):
        (root / "triton" / "0" / "KEY").mkdir(parents=True)
        (root / "triton" / "0" / "KEY" / "kernel.cubin").write_text("compiled")
        (root / "fxgraph").mkdir()
        assert provision(root).created == ("1", "2", "3")
        assert (root / "triton" / "0" / "KEY" / "kernel.cubin").read_text() == "compiled"
        assert (root / "fxgraph").is_dir()


class TestRepair:
    @pytest.fixture(autouse=True)
    def provisioned(self, root: Path) -> None:
        provision(root)

    def test_a_missing_device_directory_is_made_again(self, root):
        (root / "triton" / "2").rmdir()
        done = provision(root)
        assert (done.created, done.existing) == (("2",), ("0", "1", "3"))
        assert whole(root)

    def test_a_missing_tag_is_written_again(self, root):
        (root / "CACHEDIR.TAG").unlink()
        assert provision(root).created == ()
        assert whole(root)

    def test_a_tag_that_leads_nowhere_is_replaced(self, root, tmp_path):
        (root / "CACHEDIR.TAG").unlink()
        (root / "CACHEDIR.TAG").symlink_to(tmp_path / "nowhere")
        provision(root)
        assert whole(root)
        assert not (tmp_path / "nowhere").exists()

    def test_a_missing_record_is_written_again(self, root):
        text = record_file(root).read_bytes()
        record_file(root).unlink()
        assert provision(root).created == ()
        assert record_file(root).read_bytes() == text

    @pytest.mark.parametrize("length", [0, 1, 200, -2])
    def test_a_torn_record_is_written_again_under_the_same_names(self, root, length):
        text = record_file(root).read_bytes()
        record_file(root).write_bytes(text[:length])
        with pytest.raises(RecordError):
            record_of(root)
        assert provision(root).directories == NAMES
        assert record_file(root).read_bytes() == text

    @pytest.mark.parametrize(
        "part", ["gpucache", "gpucache/v1/locks", "gpucache/v1/tmp", "gpucache/v1/devices"]
    )
    def test_every_part_of_ours_may_be_missing(self, root, part):
        shutil.rmtree(root / part)
        assert provision(root).created == ()
        assert whole(root)

    def test_a_worker_can_repair_from_the_record_alone(self, root):
        (root / "triton" / "2").rmdir()
        text = record_file(root).read_bytes()
        assert DeviceCacheRegistry.load(root, {}).provision().created == ("2",)
        assert record_file(root).read_bytes() == text

    def test_a_host_that_has_grown_keeps_its_names(self, root):
        done = provision(root, machine_of(6))
        assert (done.created, done.existing) == (("4", "5"), NAMES)
        assert whole(root, 6)

    def test_a_file_where_a_device_directory_should_be_is_told(self, root):
        (root / "triton" / "2").rmdir()
        (root / "triton" / "2").write_text("mine")
        with pytest.raises(
            ProvisionError,
            match="triton/2: Not a directory; choose another root, or move that away",
        ):
            provision(root)
        assert (root / "triton" / "2").read_text() == "mine"

    def test_a_file_where_triton_should_be_is_told(self, root):
        shutil.rmtree(root / "triton")
        (root / "triton").write_text("mine")
        with pytest.raises(ProvisionError, match="triton: Not a directory"):
            provision(root)
        with pytest.raises(ProvisionError, match="triton.*: Not a directory"):
            DeviceCacheRegistry.load(root, {})


class TestRaces:
    def test_the_loser_does_no_work_and_says_so(self, root, monkeypatch):
        """Another process provisions while this one waits for the lock."""
        locked = locks.locked

        @contextmanager
        def after_the_winner(path: str, *, timeout_s: float) -> Iterator[None]:
            monkeypatch.setattr(provision_module, "locked", locked)
            assert provision(root).created == NAMES
            monkeypatch.setattr(provision_module, "write_whole", pytest.fail)
            with locked(path, timeout_s=timeout_s):
                yield

        monkeypatch.setattr(provision_module, "locked", after_the_winner)
        done = provision(root)
        assert (done.created, done.existing) == ((), NAMES)
        assert whole(root)

    def test_the_record_takes_in_what_another_process_saw_meanwhile(self, root, monkeypatch):
        """Two containers with two GPUs each, both numbered from 0, provision at once."""
        here, there = two_containers()
        locked = locks.locked

        @contextmanager
        def after_the_other(path: str, *, timeout_s: float) -> Iterator[None]:
            monkeypatch.setattr(provision_module, "locked", locked)
            assert provision(root, there).created == ("0", "1")
            with locked(path, timeout_s=timeout_s):
                yield

        registry = DeviceCacheRegistry(root, here, {})
        before = registry.directories[here.devices[0].uuid]
        monkeypatch.setattr(provision_module, "locked", after_the_other)
        assert registry.provision().created == ("2", "3")
        assert [registry.path(ordinal) for ordinal in registry] == [
            f"{root}/triton/2",
            f"{root}/triton/3",
        ]
        assert before == f"{root}/triton/0"
        names = record_of(root).names
        assert sorted(names.values()) == list(NAMES)

    def test_a_cache_that_vanishes_under_the_lock_is_told_and_made_by_the_next_call(
        self, root, monkeypatch
    ):
        """Somebody removes the whole cache while it is provisioned."""
        publish = write_whole

        def after_the_removal(path: str, data: bytes, staging: str) -> None:
            monkeypatch.setattr(provision_module, "write_whole", publish)
            shutil.rmtree(root)
            publish(path, data, staging)

        monkeypatch.setattr(provision_module, "write_whole", after_the_removal)
        with pytest.raises(ProvisionError) as caught:
            provision(root)
        assert caught.value.errno == errno.ENOENT
        assert provision(root).created == NAMES
        assert whole(root)

    @pytest.mark.parametrize("shared", [False, True], ids=["own registry", "one registry"])
    def test_sixteen_threads_at_once_make_each_directory_once(self, tmp_path, shared):
        for number in range(5):
            root = tmp_path / str(number)
            start = threading.Barrier(16)
            one = DeviceCacheRegistry(root, FOUR, {})
            registries = [one if shared else DeviceCacheRegistry(root, FOUR, {}) for _ in range(16)]

            def run(registry: DeviceCacheRegistry, start: threading.Barrier = start) -> Provision:
                start.wait(PATIENCE_S)
                return registry.provision()

            with ThreadPoolExecutor(16) as pool:
                done = list(pool.map(run, registries))
            assert sorted(name for each in done for name in each.created) == list(NAMES)
            assert all(sorted(each.created + each.existing) == list(NAMES) for each in done)
            assert whole(root)

    def test_sixty_four_processes_at_once_make_each_directory_once(self, tmp_path):
        """Twenty rounds, a fresh root each; no error, and every process finds all eight."""
        eight = sorted(map(str, range(8)))
        with workers(64) as everybody:
            for number in range(20):
                answers = everybody.provision(tmp_path / f"round-{number}", *[(0, 8)] * 64)
                assert sorted(name for created, _ in answers for name in created) == eight
                assert all(sorted(created + existing) == eight for created, existing in answers)
                assert whole(tmp_path / f"round-{number}", 8)

    def test_containers_that_provision_at_once_lose_nothing_of_each_others(self, tmp_path):
        """Each sees one GPU, numbered 0; without the lock the last writer would forget the others."""
        with workers(8) as containers:
            for number in range(20):
                root = tmp_path / f"round-{number}"
                answers = containers.provision(root, *((gpu, gpu + 1) for gpu in range(8)))
                assert sorted(name for created, _ in answers for name in created) == sorted(
                    map(str, range(8))
                )
                names = record_of(root).names
                assert sorted(names) == [f"GPU-{gpu}" for gpu in range(8)]
                assert sorted(names.values()) == sorted(map(str, range(8)))


def two_containers() -> tuple[Snapshot, Snapshot]:
    """What two containers of one host see: other GPUs, the same numbers."""
    four = machine_of(4).devices
    hidden = (Unavailable(2, 4, "no permission"), Unavailable(3, 4, "no permission"))

    def container(devices: Sequence[Device]) -> Snapshot:
        renumbered = tuple(
            Device(uuid=device.uuid, index=index, name=device.name, compute_capability=(9, 0))
            for index, device in enumerate(devices)
        )
        return Snapshot(status=Status.OK, source="nvml", devices=renumbered, hidden=hidden)

    return container(four[2:]), container(four[:2])


# ---- many processes

MACHINE = """
import json, os, sys
from gpucache.machine.device import Device, Snapshot, Status, Unavailable
from gpucache.directories.registry import DeviceCacheRegistry
import filelock, tempfile, hashlib
def registry(root, first, last, count):
    devices = tuple(
        Device(uuid=f"GPU-{number}", index=number - first, name="NVIDIA H100", compute_capability=(9, 0))
        for number in range(first, last)
    )
    hidden = tuple(Unavailable(index, 4, "no permission") for index in range(len(devices), count))
    return DeviceCacheRegistry(root, Snapshot(status=Status.OK, source="nvml", devices=devices, hidden=hidden), {})
"""

WORKER = (
    MACHINE
    + """
gate = int(sys.argv[1])
for line in sys.stdin:
    ours = registry(*json.loads(line))
    print("ready", flush=True)
    os.read(gate, 1)
    done = ours.provision()
    print(json.dumps([done.created, done.existing]), flush=True)
"""
)


class Workers:
    """Processes that provision when the gate opens for all of them at once."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], gate: int) -> None:
        self._processes = processes
        self._gate = gate

    def provision(self, root: Path, *views: tuple[int, int]) -> list[tuple[list[str], list[str]]]:
        """What each made and found of eight GPUs, of which the nth process sees the range ``views[n]``."""
        for process, (first, last) in zip(self._processes, views, strict=True):
            process.stdin.write(json.dumps([str(root), first, last, 8]) + "\n")
            process.stdin.flush()
        assert [process.stdout.readline() for process in self._processes] == ["ready\n"] * len(
            self._processes
        )
        os.write(self._gate, b"!" * len(self._processes))
        return [json.loads(process.stdout.readline()) for process in self._processes]


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    gate, opener = os.pipe()
    command = [INTERPRETER, "-S", "-c", WORKER, str(gate)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, env=BARE, pass_fds=[gate], **pipes) for _ in range(count)
    ]
    try:
        yield Workers(processes, opener)
        for process in processes:
            process.stdin.close()
        assert {process.wait(PATIENCE_S) for process in processes} == {0}
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
            process.wait()
        os.close(gate)
        os.close(opener)


# ---- every system call

PROVISION = (
    SCRIPT
    + MACHINE
    + """
ours = registry(sys.argv[1] + "/root", 0, 4, 4)
mark("begin")
ours.provision()
mark("end")
"""
)


class TestEverySystemCall:
    def test_where_all_is_there_it_neither_locks_nor_writes(self, every_call):
        def start(home: Path) -> list[object]:
            provision(home / "root")
            return []

        assert every_call.changes(PROVISION, start) == []
        assert every_call.changes(PROVISION, lambda _: [], "from-nothing"), (
            "the trace saw nothing of provision()"
        )

    @pytest.mark.parametrize("before", [0, 2], ids=["from nothing", "from two devices"])
    def test_killed_at_any_of_them_it_leaves_nothing_that_the_next_call_does_not_complete(
        self, every_call, before
    ):
        """SIGKILL before each call that changes the disk or a lock; afterwards the record is whole, the lock free."""

        def start(home: Path) -> list[object]:
            if before:
                provision(home / "root", machine_of(before))
            return []

        def check(home: Path, line: str) -> None:
            check_after_kill(home / "root", before)

        names = every_call.killed_everywhere(PROVISION, start, check, least=18)
        assert {"write", "fsync", "flock"} <= names

    @pytest.mark.root
    @pytest.mark.usefixtures("as_root")
    @pytest.mark.parametrize("sharing", ["group", "read"])
    def test_so_it_is_of_a_root_that_is_shared_whose_mark_comes_when_all_is_there(
        self, every_call, sharing
    ):
        gid = 54400

        def start(home: Path) -> list[object]:
            (home / "root").mkdir(mode=0o700)
            os.chown(home / "root", -1, gid)
            return [sharing]

        def check(home: Path, line: str) -> None:
            root = home / "root"
            if mark_of(str(root)) is not None:
                assert is_shared_whole(root, sharing, gid), line
            done = DeviceCacheRegistry(root, FOUR, {}).provision(0, sharing)
            assert done.sharing == sharing
            assert is_shared_whole(root, sharing, gid), line

        script = PROVISION.replace("provision()", "provision(sharing=sys.argv[2])")
        every_call.killed_everywhere(script, start, check, least=30)


def is_shared_whole(root: Path, sharing: str, gid: int) -> bool:
    """Whether everything that a new root has is there, and whoever shares the root can use that."""
    of_group = sharing == "group"
    used = [root, root / "triton", *(root / "triton" / name for name in NAMES)]
    parts = paths.our_directories(str(root)) if of_group else []
    expected = 0o2770 if of_group else 0o755
    for path in [*used, *map(Path, parts)]:
        found = path.stat()
        if stat.S_IMODE(found.st_mode) != expected or (of_group and found.st_gid != gid):
            return False
    return record_file(root).exists()


def check_after_kill(root: Path, before: int) -> None:
    if before or record_file(root).exists():
        states = [merge(None, machine_of(count), paths.host_name()) for count in (before, 4)]
        record = record_of(root)  # it is not torn
        assert record in states
        assert all((root / "triton" / name).is_dir() for name in record.names.values())
    locks, staging = (root / "gpucache" / "v1" / name for name in ("locks", "tmp"))
    if locks.is_dir():
        with locked(str(locks / "provision.lock"), timeout_s=0):
            pass
    left = set(staging.glob("*"))
    assert len(left) <= 1
    done = provision(root, timeout_s=0)
    assert sorted(done.created + done.existing) == list(NAMES)
    assert whole(root)
    assert provision(root).created == ()
    assert set(staging.glob("*")) == left, (
        "the young leftover is not yet swept, and there is no other"
    )


# ---- what the disk refuses

Mount = Callable[..., Path]


def remount(point: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", point], check=True)


def tmpfs(mount: Mount, point: Path, options: str = "size=1m") -> Path:
    return mount(point, "-t", "tmpfs", "-o", f"mode=0700,{options}", "none")


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
class TestDisk:
    @pytest.fixture(params=["read-only file system", "read-only bind mount"])
    def read_only(
        self, request: pytest.FixtureRequest, tmp_path: Path, mount: Mount
    ) -> Callable[[], None]:
        """The root is on a mount that can be made read-only."""
        point = tmp_path / "root"
        if request.param == "read-only file system":
            tmpfs(mount, point)
            return lambda: remount(point, "ro")
        directory(tmp_path / "shown", 0o700)
        mount(point, "--bind", str(tmp_path / "shown"))
        return lambda: remount(point, "bind,ro")

    def test_on_a_read_only_disk_a_whole_cache_is_used(self, tmp_path, read_only):
        root = tmp_path / "root"
        provision(root)
        read_only()
        done = provision(root)
        assert (done.created, done.existing) == ((), NAMES)
        told = f"{root} is on a read-only file system: what is cached is used, nothing new is kept"
        assert told in done.warnings

    @pytest.mark.parametrize(
        "missing", [".", "triton", "triton/2", "CACHEDIR.TAG", "gpucache", "gpucache/v1/locks"]
    )
    def test_on_a_read_only_disk_what_is_missing_is_told(self, tmp_path, read_only, missing):
        root = tmp_path / "root"
        if missing != ".":
            provision(root)
            shutil.rmtree(root / missing) if (root / missing).is_dir() else (
                root / missing
            ).unlink()
        read_only()
        with pytest.raises(
            ProvisionError, match="Read-only file system; mount it writable"
        ) as caught:
            provision(root)
        assert caught.value.errno == errno.EROFS
        assert caught.value.path.startswith(f"{root}/")
        assert caught.value.path in str(caught.value)

    def test_on_a_read_only_disk_a_missing_record_is_told(self, tmp_path, read_only):
        root = tmp_path / "root"
        provision(root)
        record_file(root).unlink()
        read_only()
        with pytest.raises(ProvisionError) as caught:
            provision(root)
        assert caught.value.errno == errno.EROFS

    @pytest.mark.parametrize("pages", [0, 1, 2])
    def test_a_full_disk_is_told_and_leaves_nothing_half_made(self, tmp_path, mount, pages):
        """With no page left the tag does not fit, with two the record does not."""
        page = os.sysconf("SC_PAGE_SIZE")
        root = tmpfs(mount, tmp_path / "root", f"size={16 * page}")
        (root / "ballast").write_bytes(bytes((16 - pages) * page))
        with pytest.raises(ProvisionError, match="No space left on device; make room") as caught:
            provision(root)
        assert caught.value.errno == errno.ENOSPC
        nothing_half_made(root)
        (root / "ballast").unlink()
        provision(root)
        assert whole(root)

    @pytest.mark.parametrize("inodes", range(2, 15))
    def test_a_disk_without_inodes_is_told_and_leaves_nothing_half_made(
        self, tmp_path, mount, inodes
    ):
        """Whichever of the fourteen files and directories it is that cannot be made."""
        root = tmpfs(mount, tmp_path / "root", f"nr_inodes={inodes}")
        with pytest.raises(ProvisionError) as caught:
            provision(root)
        assert caught.value.errno == errno.ENOSPC
        nothing_half_made(root)
        remount(root, "nr_inodes=100")
        provision(root)
        assert whole(root)

    def test_little_space_is_told(self, tmp_path, mount):
        root = tmpfs(mount, tmp_path / "root", "size=1m,nr_inodes=100")
        told = provision(root).warnings
        assert f"{root} has 0 MiB left" in told
        assert f"{root} has 83 inodes left, and a kernel takes nine" in told

    def test_a_mount_without_execution_is_told(self, tmp_path, mount):
        root = tmpfs(mount, tmp_path / "root", "noexec")
        assert (
            f"{root} is mounted noexec: Triton cannot load its launcher from there"
            in provision(root).warnings
        )

    def test_a_roomy_disk_gives_no_warning(self, tmp_path, mount):
        assert provision(tmpfs(mount, tmp_path / "root", "size=1g,nr_inodes=100k")).warnings == ()

    @pytest.mark.parametrize("mode", [0o500, 0o000])
    def test_a_root_that_may_not_be_written_is_told(self, everyones, mode):
        root = directory(everyones / "root", mode, ADA)
        with (
            acting_as(ADA),
            pytest.raises(
                ProvisionError, match=rf"Permission denied; `chmod u\+rwx {root}`, which has mode"
            ) as caught,
        ):
            provision(root)
        assert caught.value.errno == errno.EACCES
        assert caught.value.path.startswith(str(root))

    def test_a_whole_cache_of_roots_is_used_by_users_who_may_only_read(self, everyones):
        root = everyones / "root"
        provision(root)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        with acting_as(ADA):
            done = provision(root)
        assert (done.created, done.existing) == ((), NAMES)


def nothing_half_made(root: Path) -> None:
    assert not list((root / "gpucache" / "v1" / "tmp").glob("*"))
    assert not record_file(root).exists()
    tag = root / "CACHEDIR.TAG"
    assert not tag.exists() or tag.read_bytes().startswith(TAG)


class TestLock:
    def test_a_lock_that_another_process_keeps_is_told(self, root):
        (root / "gpucache" / "v1" / "locks").mkdir(parents=True)
        lock = str(root / "gpucache" / "v1" / "locks" / "provision.lock")
        with lock_holder(lock) as process, pytest.raises(LockTimeoutError) as caught:
            provision(root, timeout_s=0.05)
        assert (caught.value.path, caught.value.timeout_s) == (lock, 0.05)
        assert f"held by process {process.pid} on {paths.host_name()} since 20" in str(caught.value)
        assert not (root / "triton" / "0").exists()

    def test_a_lock_that_another_process_keeps_does_not_matter_where_all_is_there(self, root):
        provision(root)
        with lock_holder(str(root / "gpucache" / "v1" / "locks" / "provision.lock")):
            assert provision(root, timeout_s=0).existing == NAMES


class TestNetwork:
    @pytest.fixture
    def locks(self, root: Path, shared_memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The root is on NFS, as far as we are told; where its locks then are."""
        monkeypatch.setattr(mounts, "file_system", lambda _: "nfs4")
        os.makedirs(paths.ours(str(root), "locks"), mode=0o700)
        return Path(LockPlace(str(root)).directory())

    def test_it_is_told(self, root, locks):
        told = f"{root} is on a network file system (nfs4), where Triton is known to fail with stale handles"
        assert any(warning.startswith(told) for warning in provision(root).warnings)

    def test_the_lock_is_taken_on_this_node(self, root, locks):
        provision(root)
        assert (locks / "provision.lock").exists()
        assert not (root / "gpucache/v1/locks/provision.lock").exists()
        assert whole(root)

    @pytest.mark.root
    @pytest.mark.usefixtures("as_root")
    def test_a_lock_directory_that_another_user_planted_is_not_used(self, root, locks):
        locks.rmdir()
        directory(locks, 0o777, BOB)
        provision(root)
        assert whole(root)
        assert not list(locks.iterdir())


# ---- the order that only libcuda knows

MIXED = """
import json, sys
from gpucache import DeviceCacheRegistry
registry = DeviceCacheRegistry(sys.argv[1])
before = registry.visible.how
done = registry.provision()
loaded = open("/proc/self/maps").read()
assert "libnvidia-ml" in loaded and "libcuda" not in loaded, "CUDA belongs into a child"
print(json.dumps([before, registry.visible.how, [device.index for device in registry.devices], done.directories]))
"""


class TestOrder:
    """Two different GPUs, which CUDA may enumerate in either order."""

    FIRST, SECOND = "aaaaaaaa000040008000000000000000", "bbbbbbbb000040008000000000000001"

    @pytest.fixture
    def run(
        self, python: Callable[..., Any], machine: Callable[[str], dict[str, str]], root: Path
    ) -> Callable[..., Any]:
        def run(*order: str, **environ: str) -> list[Any]:
            env = {**machine("mixed"), "FAKECUDA_UUIDS": ",".join(order), **environ}
            done = python(MIXED, root, env=env)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        return run

    def test_it_is_asked_once_and_recorded(self, run, root):
        """The answer to a second question would be another one."""
        assert run(self.SECOND, self.FIRST) == ["guess", "driver", [1, 0], ["0", "1"]]
        text = record_file(root).read_bytes()
        assert run(self.FIRST, self.SECOND) == ["driver", "driver", [1, 0], ["0", "1"]]
        assert record_file(root).read_bytes() == text
        assert record_of(root).cuda_order == tuple(
            f"GPU-{digits[:8]}-0000-4000-8000-{digits[20:]}" for digits in (self.SECOND, self.FIRST)
        )

    def test_numbers_in_a_mask_count_in_that_order(self, run):
        assert run(self.SECOND, self.FIRST, CUDA_VISIBLE_DEVICES="0") == [
            "guess",
            "driver",
            [1],
            ["0", "1"],
        ]

    @pytest.mark.parametrize("environ", [{"FAKECUDA_INIT": "100"}, {"FAKECUDA_UUIDS": "ff" * 16}])
    def test_without_an_answer_it_stays_a_guess_and_is_not_asked_again(self, run, root, environ):
        """A question costs up to the time limit; it is repeated when something has changed."""
        assert run(**environ) == ["guess", "guess", [0, 1], ["0", "1"]]
        assert record_of(root).cuda_order == ()
        assert run(self.SECOND, self.FIRST) == ["guess", "guess", [0, 1], ["0", "1"]]

    def test_after_a_driver_update_it_is_asked_again(self, root, monkeypatch):
        two = Snapshot(
            status=Status.OK,
            source="nvml",
            devices=(
                Device(uuid="GPU-a", index=0, name="A100"),
                Device(uuid="GPU-b", index=1, name="H200"),
            ),
        )
        monkeypatch.setattr(libcuda, "ask_order", lambda *_: None)
        done = DeviceCacheRegistry(root, two, {}).provision()
        assert "libcuda did not say in which order" in done.warnings[0]
        monkeypatch.setattr(libcuda, "ask_order", lambda *_: ("GPU-b", "GPU-a"))
        assert DeviceCacheRegistry(root, two, {}).provision().warnings == done.warnings
        registry = DeviceCacheRegistry(root, dataclasses.replace(two, driver="999.1"), {})
        assert registry.provision().warnings == ()
        assert [device.index for device in registry.devices] == [1, 0]

    def test_what_another_process_was_answered_meanwhile_needs_no_second_question(
        self, root, monkeypatch
    ):
        two = Snapshot(
            status=Status.OK,
            source="nvml",
            devices=(
                Device(uuid="GPU-a", index=0, name="A100"),
                Device(uuid="GPU-b", index=1, name="H200"),
            ),
        )
        winner, loser = (DeviceCacheRegistry(root, two, {}) for _ in range(2))
        monkeypatch.setattr(libcuda, "ask_order", lambda *_: ("GPU-b", "GPU-a"))
        winner.provision()
        monkeypatch.setattr(libcuda, "ask_order", pytest.fail)
        loser.provision()
        assert (
            [device.index for device in loser.devices]
            == [device.index for device in winner.devices]
            == [1, 0]
        )

    def test_equal_gpus_need_no_question(self, root, monkeypatch):
        monkeypatch.setattr(libcuda, "ask_order", pytest.fail)
        provision(root)


@pytest.mark.parametrize("at", ["fitness", "learn"])
def test_a_disk_that_gives_no_advice_takes_nothing_back(tmp_path, monkeypatch, at):
    def refused(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(provision_module, at, refused)
    assert len(provision(tmp_path / "root").created) == 4
