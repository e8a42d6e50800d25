from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from gpucache import DeviceCacheRegistry, log
from gpucache.environment import DISABLE
from gpucache.errors import UnsafeDirectoryError
from gpucache.layout import paths
from gpucache.log import warn_once
from gpucache.machine.device import Device, Snapshot, Status
from gpucache.store.recency import boot_time
from gpucache.triton.location import NO_VIEWS, Location, locate, store_only

H100 = Device(
    uuid="GPU-0", index=0, name="NVIDIA H100", compute_capability=(9, 0), core_count=16896
)
MIG = dataclasses.replace(H100, uuid="MIG-0", parent_uuid="GPU-9", slot=0, multiprocessor_count=16)


def another(uuid: str, index: int, device: Device = H100, **changed: object) -> Device:
    return dataclasses.replace(device, uuid=uuid, index=index, **changed)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process warns once of each cause; each test is one."""
    monkeypatch.setattr(log, "_warned", set())


def provision(root: Path, *devices: Device) -> None:
    snapshot = Snapshot(status=Status.OK, source="nvml", devices=devices)
    DeviceCacheRegistry(root, snapshot, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).provision()


def at(root: Path, directory: str | Path | None = None, **environ: str) -> Location:
    text = None if directory is None else str(directory)
    return locate(text, {"GPUCACHE_DIR": str(root), **environ})


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "gpucache"]


class TestDirectory:
    @pytest.fixture(autouse=True)
    def provisioned(self, root: Path) -> None:
        provision(root, H100, another("GPU-1", 1))

    def test_an_explicit_directory_comes_first(self, root, tmp_path):
        found = at(root, tmp_path / "chosen", GPUCACHE_DEVICE="GPU-1")
        assert (found.directory, found.mode) == (str(tmp_path / "chosen"), "shared")

    def test_an_explicit_directory_is_made_absolute(self, root, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert at(root, "chosen").directory == str(tmp_path / "chosen")

    @pytest.mark.parametrize("unset", [None, ""])
    def test_else_it_is_the_pinned_devices_on_record(self, root, unset):
        found = at(root, unset, GPUCACHE_DEVICE="GPU-1")
        assert (found.directory, found.mode) == (f"{root}/triton/1", "shared")

    def test_a_single_device_needs_no_pin(self, tmp_path):
        provision(tmp_path / "other", H100)
        assert at(tmp_path / "other").directory == f"{tmp_path}/other/triton/0"

    @pytest.mark.parametrize("pinned", ["", "GPU-unknown"])
    def test_of_two_without_a_pin_it_is_tritons_default(self, root, pinned):
        found = at(root, TRITON_HOME="/home/ada", GPUCACHE_DEVICE=pinned)
        assert (found.directory, found.mode) == ("/home/ada/.triton/cache", "shared")

    def test_without_a_home_of_tritons_own_it_is_the_users(self, root, monkeypatch):
        monkeypatch.setenv("HOME", "/home/bob")
        assert at(root).directory == "/home/bob/.triton/cache"

    def test_without_a_record_it_is_tritons_default_and_told(self, tmp_path, caplog):
        found = at(tmp_path / "new", TRITON_HOME="/home/ada")
        assert (found.directory, found.mode) == ("/home/ada/.triton/cache", "shared")
        (line,) = lines(caplog)
        assert line.startswith("no record: ")
        assert line.endswith("caching where Triton does by default")

    def test_without_a_record_an_explicit_directory_is_no_cause_to_warn(self, tmp_path, caplog):
        assert at(tmp_path / "new", tmp_path / "chosen").mode == "shared"
        assert not lines(caplog)

    def test_a_torn_record_is_told(self, root, caplog):
        Path(paths.record_path(str(root), paths.host_name())).write_text("{")
        assert at(root, TRITON_HOME="/home/ada").directory == "/home/ada/.triton/cache"
        assert len(lines(caplog)) == 1

    def test_the_store_is_the_one_under_the_root(self, root, tmp_path):
        found = at(root, tmp_path / "chosen")
        assert found.root == str(root)
        assert found.locks.directory() == f"{root}/gpucache/v1/locks"
        assert found.staging.preferred == f"{root}/gpucache/v1/tmp"
        assert found.stats.directory == f"{root}/gpucache/v1/stats"

    def test_each_directory_counts_for_itself_however_it_is_spelled(self, root, tmp_path):
        """Two elsewhere may have one base name."""
        found = {}
        for path in (root / "triton/3", root / "triton", root, tmp_path / "a/3", tmp_path / "b/3"):
            path.mkdir(parents=True, exist_ok=True)
            found[path.relative_to(tmp_path).as_posix()] = at(root, path).stats.device
        (tmp_path / "link").symlink_to(root / "triton/3")
        found["link"] = at(root, tmp_path / "link").stats.device
        inside = root.relative_to(tmp_path).as_posix()
        assert found == {
            f"{inside}/triton/3": "3",
            f"{inside}/triton": "triton",
            inside: ".",
            "a/3": f"{tmp_path}/a/3",
            "b/3": f"{tmp_path}/b/3",
            "link": "3",
        }

    def test_what_is_missing_below_the_root_is_made(self, tmp_path):
        at(tmp_path / "new", tmp_path / "chosen")
        made = {
            path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*")
        }
        parts = {"locks", "tmp", "store"}
        assert made == {"gpucache", "gpucache/v1", *(f"gpucache/v1/{part}" for part in parts)}

    def test_the_chosen_directory_is_not_made(self, root, tmp_path):
        at(root, tmp_path / "chosen")
        assert not (tmp_path / "chosen").exists()


class TestMode:
    @pytest.fixture
    def fresh(self) -> str:
        """As torch's `fresh_cache` makes it."""
        return f"{tempfile.gettempdir()}/tmpabcdef78/triton"

    def test_a_fresh_directory_is_left_to_triton(self, root, fresh):
        assert at(root, fresh).mode == "stock"
        assert not root.exists()

    def test_the_log_tells_why(self, root, fresh, caplog):
        with caplog.at_level(logging.INFO, "gpucache"):
            at(root, fresh)
        assert (
            "fresh on purpose, by its part tmpabcdef78; GPUCACHE_SHARE=1 shares it" in caplog.text
        )

    def test_another_one_in_the_temporary_directory_is_shared(self, root, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert at(root, tmp_path / "triton-cache-ada-4711").mode == "shared"

    def test_on_request_it_is_shared(self, root, fresh):
        assert at(root, fresh, GPUCACHE_SHARE="1").mode == "shared"

    def test_one_below_the_root_is_not_fresh(self):
        """Torch's default root is in the temporary directory."""
        with tempfile.TemporaryDirectory() as root:
            assert at(Path(root), f"{root}/triton/0").mode == "shared"

    def test_one_that_only_begins_like_the_temporary_directory_is_not_fresh(self, root):
        assert at(root, f"{tempfile.gettempdir()}-of-mine/triton").mode == "shared"

    @pytest.mark.parametrize("directory", [None, "", "/somewhere"])
    def test_sharing_may_be_forbidden(self, root, directory):
        assert at(root, directory, GPUCACHE_SHARE="0", TRITON_HOME="/home/ada").mode == "stock"
        assert not root.exists()

    def test_what_is_not_shared_counts_in_memory_only(self, root, fresh):
        assert at(root, fresh).stats.directory is None


class TestPrivate:
    def test_an_unsafe_root_is_not_used_and_told_once(self, root, tmp_path, caplog):
        root.mkdir()
        root.chmod(0o777)
        for _ in range(2):
            found = at(root, tmp_path / "chosen")
        assert found.mode == "private"
        assert not list(root.iterdir())
        (line,) = lines(caplog)
        assert line.startswith("the store cannot be used: ")
        assert str(root) in line
        assert line.endswith("compiling without the shared cache")

    def test_nothing_of_a_private_place_lies_below_the_root(self, root, tmp_path):
        root.mkdir()
        root.chmod(0o777)
        found = at(root, tmp_path / "chosen")
        assert not found.staging.preferred.startswith(str(root))
        assert found.stats.directory is None

    def test_an_unsafe_root_may_be_trusted(self, root, tmp_path):
        root.mkdir()
        root.chmod(0o777)
        assert at(root, tmp_path / "chosen", GPUCACHE_TRUST_WORLD_WRITABLE="1").mode == "shared"

    @pytest.mark.parametrize(
        "part",
        ["gpucache", "gpucache/v1", *(f"gpucache/v1/{n}" for n in ("locks", "tmp", "store"))],
    )
    def test_an_unsafe_directory_in_a_safe_root_is_not_used(self, root, tmp_path, caplog, part):
        """Who may write there plants what every process loads."""
        assert at(root, tmp_path / "chosen").mode == "shared"
        (root / part).chmod(0o777)
        assert at(root, tmp_path / "chosen").mode == "private"
        assert str(root / part) in lines(caplog)[0]

    def test_a_file_where_the_root_should_be_is_told(self, root, tmp_path, caplog):
        root.write_text("mine")
        assert at(root, tmp_path / "chosen").mode == "private"
        assert "Not a directory" in lines(caplog)[0]

    @pytest.mark.parametrize("text", ["ada", "1" * 5000, "\udcff"])
    def test_a_trust_that_makes_no_sense_is_told_once_and_extends_to_nobody(
        self, root, tmp_path, caplog, text
    ):
        for _ in range(2):
            found = at(root, tmp_path / "chosen", GPUCACHE_TRUST_UIDS=text)
            assert found.mode == "shared"
        (line,) = lines(caplog)
        assert line.startswith("GPUCACHE_TRUST_UIDS=")
        assert len(line) < 500
        (root / "gpucache/v1/store").chmod(0o777)
        assert at(root, tmp_path / "chosen", GPUCACHE_TRUST_WORLD_WRITABLE="yes").mode == "private"

    def test_a_root_that_makes_no_sense_is_told_and_counts_as_unset(self, tmp_path, caplog):
        environ = {"GPUCACHE_DIR": "  ", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torchs")}
        found = locate(str(tmp_path / "chosen"), environ)
        assert (found.root, found.mode) == (str(tmp_path / "torchs"), "shared")
        assert "GPUCACHE_DIR='  ' is not the path of a directory" in lines(caplog)[0]

    @pytest.mark.root
    @pytest.mark.usefixtures("as_root")
    def test_a_read_only_root_is_told(self, root, tmp_path, caplog):
        root.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700,ro", "none", root], check=True)
        try:
            assert at(root, tmp_path / "chosen").mode == "private"
        finally:
            subprocess.run(["umount", "-l", root], check=True)
        assert "Read-only file system" in lines(caplog)[0]

    @pytest.mark.parametrize(
        ("root", "directory"), [("here", None), ("here", "/chosen"), ("/root-of-mine", "chosen")]
    )
    def test_a_current_directory_that_is_gone_is_told(
        self, tmp_path, monkeypatch, caplog, root, directory
    ):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        found = at(Path(root), directory, TRITON_HOME="/home/ada")
        assert (found.mode, found.directory) == ("private", directory or "/home/ada/.triton/cache")
        assert "the current directory is gone" in lines(caplog)[0]
        assert not Path("/root-of-mine").exists()

    def test_without_a_temporary_directory_it_is_told(self, root, tmp_path, monkeypatch, caplog):
        def none() -> str:
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr(tempfile, "gettempdir", none)
        assert at(root, tmp_path / "chosen").mode == "shared", "only the default root is there"
        assert lines(caplog) == []
        assert locate(str(tmp_path / "chosen"), {}).mode == "private"
        assert "No usable temporary directory" in lines(caplog)[0]


class TestSilicon:
    def test_it_is_the_compute_capability_and_the_core_count(self, root):
        provision(root, H100)
        assert at(root).silicon == "sm_90-16896-NVIDIA H100"

    def test_it_is_known_in_any_directory(self, root, tmp_path):
        provision(root, H100)
        assert at(root, tmp_path / "chosen").silicon == "sm_90-16896-NVIDIA H100"

    def test_of_a_mig_instance_it_is_its_own_multiprocessors(self, root):
        provision(root, MIG)
        assert at(root).silicon == "sm_90-16sm-NVIDIA H100"

    def test_mig_instances_of_unlike_sizes_are_unlike(self, root):
        provision(root, MIG, another("MIG-1", 0, MIG, slot=1, multiprocessor_count=32))
        assert at(root).silicon is None
        assert at(root, GPUCACHE_DEVICE="MIG-1").silicon == "sm_90-32sm-NVIDIA H100"

    def test_like_devices_have_one(self, root):
        provision(root, H100, another("GPU-1", 1))
        assert at(root).silicon == "sm_90-16896-NVIDIA H100"

    @pytest.mark.parametrize(
        "changed",
        [{"core_count": 14592}, {"compute_capability": (8, 9)}, {"name": "NVIDIA H200"}],
    )
    def test_unlike_devices_have_none(self, root, changed):
        """H100 SXM and PCIe differ in their cores only, H100 and H200 in their memory."""
        provision(root, H100, another("GPU-1", 1, **changed))
        assert at(root).silicon is None

    def test_of_unlike_devices_the_pinned_one_has_its_own(self, root):
        provision(root, H100, another("GPU-1", 1, core_count=14592))
        assert at(root, GPUCACHE_DEVICE="GPU-1").silicon == "sm_90-14592-NVIDIA H100"

    @pytest.mark.parametrize("unknown", ["core_count", "compute_capability", "name"])
    @pytest.mark.parametrize("count", [1, 2])
    def test_what_is_not_known_is_shared_with_none(self, root, unknown, count):
        devices = [another(f"GPU-{index}", index, **{unknown: None}) for index in range(count)]
        provision(root, *devices)
        assert at(root).silicon is None

    def test_a_mig_instance_without_its_multiprocessors_is_not_known(self, root):
        provision(root, dataclasses.replace(MIG, multiprocessor_count=None))
        assert at(root).silicon is None

    def test_without_a_record_it_is_not_known(self, root, tmp_path):
        assert at(root, tmp_path / "chosen").silicon is None


class TestSettings:
    def test_the_defaults(self, root, tmp_path):
        found = at(root, tmp_path / "chosen")
        assert (found.stall_s, found.timeout_s, found.verify, found.require_hit) == (
            30.0,
            300.0,
            False,
            False,
        )
        assert abs(found.boot - boot_time()) < 60

    def test_what_the_environment_says(self, root, tmp_path, caplog):
        environ = {
            "GPUCACHE_STALL_TIMEOUT_S": "0.5",
            "GPUCACHE_LOCK_TIMEOUT_S": "0",
            "GPUCACHE_VERIFY": "always",
            "GPUCACHE_REQUIRE_HIT": "1",
        }
        found = at(root, tmp_path / "chosen", **environ)
        assert (found.stall_s, found.timeout_s, found.verify, found.require_hit) == (
            0.5,
            0.0,
            True,
            True,
        )
        assert not lines(caplog)

    @pytest.mark.parametrize("name", ["GPUCACHE_STALL_TIMEOUT_S", "GPUCACHE_LOCK_TIMEOUT_S"])
    @pytest.mark.parametrize("text", ["soon", "30s", "-1", "nan", "inf", "1e999"])
    def test_a_number_that_is_none_is_told_and_the_default_holds(
        self, root, tmp_path, caplog, name, text
    ):
        found = at(root, tmp_path / "chosen", **{name: text})
        assert (found.stall_s, found.timeout_s) == (30.0, 300.0)
        default = "30" if "STALL" in name else "300"
        assert lines(caplog) == [
            f"{name}={text!r} is not a number of seconds: ignored; it is {default}"
        ]

    @pytest.mark.parametrize("name", ["GPUCACHE_STALL_TIMEOUT_S", "GPUCACHE_LOCK_TIMEOUT_S"])
    def test_an_empty_number_counts_as_unset(self, root, tmp_path, caplog, name):
        found = at(root, tmp_path / "chosen", **{name: ""})
        assert (found.stall_s, found.timeout_s) == (30.0, 300.0)
        assert not lines(caplog)

    @pytest.mark.parametrize(
        ("environ", "off"),
        [({}, False), ({"GPUCACHE_DISABLE": "0"}, False), ({"GPUCACHE_DISABLE": "1"}, True)],
    )
    def test_it_may_be_disabled(self, environ, off):
        assert DISABLE.read_or_default(environ) is off

    def test_a_switch_that_makes_no_sense_is_told_and_disables_nothing(self, caplog):
        assert DISABLE.read_or_default({"GPUCACHE_DISABLE": "yes"}) is False
        (line,) = lines(caplog)
        assert line == "GPUCACHE_DISABLE='yes' is not 0 or 1: ignored; it is 0"


class TestWarnOnce:
    def test_it_logs_each_cause_once(self, caplog):
        for cause in ("full", "full", "gone", "full"):
            warn_once("the disk", cause)
        end = "compiling without the shared cache"
        assert lines(caplog) == [f"the disk: full; {end}", f"the disk: gone; {end}"]
        assert {record.levelno for record in caplog.records} == {logging.WARNING}

    def test_it_never_uses_warnings(self, caplog):
        """``-W error`` would turn one into an exception out of a kernel launch."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_once("the disk", OSError(os.EX_IOERR, "failed"))
        assert not caught
        assert lines(caplog)


class TestPin:
    """A pin of one device, and a mask of another."""

    @pytest.mark.parametrize(
        ("mask", "is_told"), [("GPU-1", True), ("GPU-0,GPU-1", False), ("", False), (None, False)]
    )
    def test_what_contradicts_it_is_told(self, root, mask, is_told, bare_dev, caplog):
        provision(root, H100, another("GPU-1", 1))
        environ = {"GPUCACHE_DEVICE": "GPU-0"}
        if mask is not None:
            environ["CUDA_VISIBLE_DEVICES"] = mask
        assert at(root, **environ).directory == f"{root}/triton/0"
        assert ("GPUCACHE_DEVICE=GPU-0 names a device" in caplog.text) == is_told

    def test_a_number_may_mean_any_device_where_the_kernel_does_not_show_all(
        self, root, bare_dev, caplog
    ):
        provision(root, H100, another("GPU-1", 1))
        at(root, GPUCACHE_DEVICE="GPU-1", CUDA_VISIBLE_DEVICES="0")
        assert "names a device" not in caplog.text


LOCATE = "from gpucache.triton import manager; manager.current_location()"
UNSAFE = "mkdir {root}; chmod 777 {root}"
MODES = {
    "no record": ("true", {}, "run `gpucache provision`"),
    "unsafe root": (UNSAFE, {}, "`chmod o-w /"),
    "no root": ("touch {root}", {}, "choose another root, or move that away"),
    "fresh": ("true", {"TRITON_CACHE_DIR": "/scratch/tmpabcdef78"}, "GPUCACHE_SHARE=1 shares it"),
    "disabled": ("true", {"GPUCACHE_DISABLE": "1"}, "GPUCACHE_DISABLE=1: nothing of gpucache acts"),
    "not sharing": ("true", {"GPUCACHE_SHARE": "0"}, "GPUCACHE_SHARE=0: each rank compiles"),
    "paths in the code": ("true", {"USE_IR_LOC": "ttir"}, "USE_IR_LOC=ttir: Triton's own cache"),
    "always compiling": ("true", {"TRITON_ALWAYS_COMPILE": "1"}, "TRITON_ALWAYS_COMPILE=1: every"),
}


@pytest.mark.parametrize("rank", ["LOCAL_RANK", "NOTHING"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_in_which_nothing_is_shared_is_told_once_by_all_ranks_with_the_way_out(
    mode, rank, root
):
    prepare, more, way_out = MODES[mode]
    python = f"{rank}=$n {sys.executable} -c {shlex.quote(LOCATE)} & "
    script = f"{prepare.format(root=root)}; for n in 0 1 2 3; do {python} done; wait"
    environ = {**os.environ, "GPUCACHE_DIR": str(root), "GPUCACHE_LOG": "info", **more}
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, text=True, start_new_session=True
    )
    told = [line for line in done.stderr.splitlines() if way_out in line]
    assert len(told) == 1, done.stderr


@pytest.mark.parametrize("mode", ["disabled", "not sharing", "always compiling"])
def test_what_the_user_has_turned_off_himself_is_not_warned_of(mode, root, tmp_path, caplog):
    provision(root, H100)
    at(root, tmp_path / "chosen", **MODES[mode][1])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class TestStoreOnly:
    """The location of whoever compiles for later."""

    def test_publishes_into_the_store_and_makes_no_view(self, root):
        found = store_only(str(root), {})
        assert (found.views, found.mode, found.root) == (NO_VIEWS, "shared", str(root))
        assert (root / "gpucache/v1/store").is_dir()
        assert not (root / "triton").exists()

    def test_raises_where_a_launch_would_go_on_alone(self, root):
        root.mkdir()
        root.chmod(0o777)
        with pytest.raises(UnsafeDirectoryError, match="everybody may write it"):
            store_only(str(root), {})
