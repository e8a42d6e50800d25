from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from support import bad_servers
from support.bad_servers import bad_server, says
from support.launches import kernel
from support.processes import KEY_HOLDER, lock_holder, running
from support.trees import everything_below
from support.users import ADA, BOB, acting_as, link

from gpucache import DeviceCacheRegistry, environment
from gpucache.archive.signature import SigningKey, make_key
from gpucache.diagnosis import codes as codes_module
from gpucache.diagnosis import remote_checks, trust_checks, why_missed
from gpucache.diagnosis.doctor import CODES, examine
from gpucache.directories.launch import launch_environ
from gpucache.directories.python_path import SITE
from gpucache.disk import locks, mounts
from gpucache.disk.lock_place import LockPlace
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.machine import device_files, nvml
from gpucache.remote.breaker import Breaker
from gpucache.remote.meeting import Meeting
from gpucache.remote.object_names import entry_object
from gpucache.remote.outbox import leave
from gpucache.remote.pulls import Pull
from gpucache.remote.pusher_lock import push_breaker
from gpucache.remote.remote import Patience
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.store.pulled import Pulled, PulledEntry, note_pulled
from gpucache.store.size import set_total
from gpucache.store.stats import Stats

Mount = Callable[..., Path]
Put = Callable[[str], None]
Findings = tuple[Finding, ...]

EIGHT = "[gpu]\n" * 8
KEY = "K" * 52
HOUR_S = 3600


@pytest.fixture(autouse=True)
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev and a temporary directory of this test's own; and it is no Jetson."""
    for name in ("dev", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(device_files, "DEV", str(tmp_path / "dev"))
    monkeypatch.setattr(device_files, "PROC", str(tmp_path / "dev" / "proc"))
    monkeypatch.setattr(nvml, "_TEGRA_MARKS", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "dev"


@pytest.fixture
def put(on_machine: Put) -> Put:
    """The machine under this process: eight healthy GPUs until another one is put there."""
    on_machine(EIGHT)
    return on_machine


@pytest.fixture
def root(tmp_path: Path, put: Put) -> str:
    """A provisioned root."""
    return provisioned(tmp_path / "root")


def provisioned(root: Path | str, **environ: str) -> str:
    DeviceCacheRegistry(root, environ=environ).provision()
    return str(root)


def healthy(root: str, **changed: str) -> dict[str, str]:
    """The environment of a process under `gpucache run`, with what a test changes in it."""
    variables = {
        "GPUCACHE_DIR": root,
        "TORCHINDUCTOR_CACHE_DIR": root,
        "TRITON_CACHE_DIR": f"{root}/triton/0",
        "TRITON_CACHE_MANAGER": environment.OUR_MANAGER,
    }
    return variables | changed


def look(root: str, **changed: str) -> Findings:
    return sound(examine(root, healthy(root, **changed)).findings)


def sound(found: Findings) -> Findings:
    for finding in found:
        assert finding.code in CODES
        assert finding.level in ("error", "warning")
        assert all(finding.as_json().values()), finding
    return found


def codes(found: Findings) -> list[str]:
    return [finding.code for finding in found]


def told(found: Findings, code: str, level: str) -> Finding:
    """The one finding of this code."""
    (finding,) = [finding for finding in found if finding.code == code]
    assert finding.level == level
    return finding


def silent(found: Findings, *unwanted: str) -> None:
    assert not set(unwanted) - CODES.keys()
    assert not set(unwanted).intersection(codes(found)), found


def lock_file(root: str, name: str = KEY) -> Path:
    return Path(paths.ours(root, "locks", f"{name}.lock"))


def record_file(root: str) -> Path:
    return Path(paths.record_path(root, paths.host_name()))


def aged(path: Path | str, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# ---- the whole


def in_memory(root: str) -> set[str]:
    """What is told of any root where the tests' own directory is in memory."""
    return {"tmpfs"} if mounts.file_system(root) == "tmpfs" else set()


def test_of_a_healthy_machine_there_is_nothing_to_tell(root):
    assert set(codes(look(root))) == in_memory(root)


def test_of_what_run_sets_up_there_is_nothing_to_tell(tmp_path, put):
    root = str(tmp_path / "root")
    environ, _ = launch_environ({}, device=3, root=root, plugin=True)
    assert set(codes(sound(examine(root, environ).findings))) == in_memory(root)


def test_a_device_in_a_container_with_its_own_gpu_is_healthy(root, put, dev):
    """The process is pinned by UUID, which no renumbering touches."""
    (dev / "nvidia5").touch()
    uuid = next(uuid for uuid, name in names(root).items() if name == "5")
    put(f"[gpu]\nuuid = {uuid}\n")
    found = look(root, GPUCACHE_DEVICE=uuid, TRITON_CACHE_DIR=f"{root}/triton/5")
    assert set(codes(found)) == in_memory(root)


def names(root: str) -> dict[str, str]:
    return {
        os.path.basename(uuid): os.path.basename(path)
        for uuid, path in registry(root).directories.items()
    }


def registry(root: str) -> DeviceCacheRegistry:
    return DeviceCacheRegistry(root, environ={})


def test_every_code_has_a_test_that_brings_it_about_and_one_that_does_not():
    for helper in ("told", "silent"):
        assert CODES.keys() - mentioned(helper) == set(), helper


def mentioned(helper: str) -> set[str]:
    """Every text in those tests, of this file and its neighbours, that call the helper."""
    texts: set[str] = set()
    neighbours = ("test_fallback_checks.py", "test_jit_checks.py", "test_sharing_checks.py")
    files = [Path(__file__), *map(Path(__file__).with_name, neighbours)]
    trees = [ast.parse(file.read_text()) for file in files]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            inner = list(ast.walk(node))
            if any(isinstance(one, ast.Name) and one.id == helper for one in inner):
                texts |= {
                    one.value
                    for one in inner
                    if isinstance(one, ast.Constant) and isinstance(one.value, str)
                }
    return texts


def test_a_code_is_explained_in_one_line():
    assert all(meaning and "\n" not in meaning for meaning in CODES.values())


def test_looking_changes_nothing(root, tmp_path):
    """But for the times of the temporary directory, where a file was for an instant."""

    def state() -> dict[str, tuple[int, ...]]:
        found = everything_below(tmp_path)
        del found[paths.ours(root, "tmp")]
        return found

    before = state()
    look(root)
    assert state() == before
    assert os.listdir(paths.ours(root, "tmp")) == []


def test_a_root_that_is_not_there_is_not_made(tmp_path, put):
    before = everything_below(tmp_path)
    look(str(tmp_path / "no" / "root"))
    assert everything_below(tmp_path) == before


EXAMINE = """
import json, os, sys
from gpucache.machine import nvml
from gpucache.diagnosis.doctor import examine
nvml._TEGRA_MARKS = ()
found = examine(sys.argv[1], dict(os.environ)).findings
assert "libcuda" not in open("/proc/self/maps").read(), "CUDA does not belong here"
assert not {"torch", "triton"} & sys.modules.keys()
print(json.dumps([finding.as_json() for finding in found]))
"""


@pytest.fixture
def elsewhere(python: Callable[..., Any]) -> Callable[..., Findings]:
    """Look in a process of its own."""

    def look(root: str, env: dict[str, str]) -> Findings:
        done = python(EXAMINE, root, env=env)
        assert done.returncode == 0, done.stderr
        return sound(tuple(Finding(**value) for value in json.loads(done.stdout)))

    return look


# ---- the machine


@pytest.mark.parametrize(
    ("machine", "code", "fix"),
    [
        ("init_error = 18\n", "gpu-version-mismatch", "reboot, or reload the nvidia modules"),
        ("init_error = 4\n", "gpu-no-permission", "access to /dev/nvidiactl"),
        ("init_error = 17\n", "gpu-no-permission", "cgroup or container"),
        ("init_error = 999\n", "gpu-error", "nvidia-smi"),
        ("all_lost", "gpu-error", "reset or reboot"),
    ],
)
def test_a_sick_node_is_told_with_the_way_out(root, put, machine, code, fix):
    silent(look(root), code)
    put(machine)
    found = look(root, CUDA_VISIBLE_DEVICES="0")
    assert fix in told(found, code, "error").fix
    assert set(codes(found)) == {code} | in_memory(root), (
        "of devices that nobody knows nothing else is told"
    )


@pytest.mark.parametrize(
    ("machine", "code", "fix"),
    [
        ("init_error = 12\n", "gpu-no-library", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
        ("init_error = 9\n", "gpu-no-driver", "load the NVIDIA kernel module"),
    ],
)
def test_a_driver_that_nvml_does_not_find_is_told(root, put, dev, machine, code, fix):
    put(machine)
    silent(look(root), code)
    (dev / "nvidiactl").touch()
    assert fix in told(look(root), code, "error").fix


def test_a_driver_without_the_bindings_is_told(root, put, dev, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    silent(look(root), "gpu-no-bindings")
    (dev / "nvidiactl").touch()
    assert "nvidia-ml-py" in told(look(root), "gpu-no-bindings", "error").fix


def test_an_nvml_that_hangs_is_told(root, elsewhere, machine):
    found = elsewhere(
        root, machine("init_sleep_ms = -1\n") | healthy(root, GPUCACHE_NVML_TIMEOUT_S="0.1")
    )
    assert told(found, "gpu-timeout", "error").fact == "NVML did not answer within 0.1 s"


def test_an_nvml_that_answers_is_not_told(root, elsewhere, machine):
    found = elsewhere(root, machine(EIGHT) | healthy(root))
    silent(found, "gpu-timeout", "gpu-wrong-bindings")


def test_old_bindings_are_told(root, elsewhere, machine, tmp_path):
    (tmp_path / "old" / "pynvml").mkdir(parents=True)
    (tmp_path / "old" / "pynvml" / "__init__.py").write_text("def nvmlInit(): pass\n")
    found = elsewhere(root, machine(EIGHT) | healthy(root, PYTHONPATH=str(tmp_path / "old")))
    finding = told(found, "gpu-wrong-bindings", "error")
    assert str(tmp_path / "old" / "pynvml") in finding.fact
    assert finding.fix.startswith("pip uninstall pynvml")


def test_without_a_gpu_the_fakes_are_told_with_the_reason(root, put):
    silent(look(root), "fake-devices")
    put("init_error = 9\n")
    found = look(root, CUDA_VISIBLE_DEVICES="0,1,2")
    silent(found, "record-outdated")
    finding = told(found, "fake-devices", "warning")
    assert finding.fact.startswith("the devices are fake: NVML: Driver Not Loaded (code 9)")
    assert finding.fix == "load the NVIDIA kernel module"


def test_fakes_that_were_asked_for_are_told_too(root):
    finding = told(look(root, GPUCACHE_FAKE_DEVICES="2"), "fake-devices", "warning")
    assert (finding.subject, finding.fact) == (
        "GPUCACHE_FAKE_DEVICES",
        "the devices are fake: GPUCACHE_FAKE_DEVICES is set to 2",
    )


def test_a_lost_gpu_among_healthy_ones_is_an_error(root, put):
    silent(look(root), "gpu-lost")
    put("[gpu]\n[gpu]\nerror.nvmlDeviceGetHandleByIndex_v2 = GPU_IS_LOST\n")
    finding = told(look(root), "gpu-lost", "error")
    assert (finding.subject, finding.fact) == ("GPU 1", "GPU is lost (NVML's code 15)")
    assert "reset or reboot" in finding.fix


def test_a_gpu_that_this_process_may_not_open_is_not_lost(root, put):
    put("[gpu]\n[gpu]\nerror.nvmlDeviceGetHandleByIndex_v2 = NO_PERMISSION\n")
    silent(look(root), "gpu-lost")


@pytest.mark.parametrize("mask", [None, "3,1", "GPU-fa000002"])
def test_a_mask_of_which_every_token_counts_is_not_told(root, mask):
    silent(look(root, **{"CUDA_VISIBLE_DEVICES": mask} if mask else {}), "mask-cut")


@pytest.mark.parametrize(
    ("mask", "level", "why"),
    [
        ("0,1,8,2", "warning", "'8' names none of the 8 GPUs: the list ends before it"),
        ("0,one", "warning", "'one' is not a number"),
        ("", "warning", "CUDA_VISIBLE_DEVICES is empty: no device"),
        ("-1", "warning", "'-1' names none"),
        ("NoDevFiles", "warning", "'NoDevFiles' is not a number"),
        ("0,0", "error", "'0' names a GPU again: CUDA then shows none at all"),
        ("GPU-nowhere", "error", "'GPU-nowhere' names no device"),
    ],
)
def test_a_mask_that_cuda_cuts_short_is_told(root, mask, level, why):
    """As an error where nothing is left, unless the mask plainly means that."""
    found = look(root, CUDA_VISIBLE_DEVICES=mask)
    finding = told(found, "mask-cut", level)
    assert finding.fact.startswith(f"{mask!r}: {why}")


def test_a_mask_says_nothing_where_the_one_device_is_made_up(root, put):
    put("init_error = 9\n")
    silent(look(root, CUDA_VISIBLE_DEVICES="0,1"), "mask-cut")
    told(look(root, CUDA_VISIBLE_DEVICES="0,1", GPUCACHE_FAKE_DEVICES="1"), "mask-cut", "warning")


class TestOrder:
    """Two different GPUs, which CUDA may count in either order."""

    FIRST, SECOND = "aaaaaaaa000040008000000000000000", "bbbbbbbb000040008000000000000001"
    INSTANCES = ("11111111df4c5451979d3231ccb0822e", "22222222c95f5ef2a935195bd0094fbd")

    @pytest.fixture
    def mixed(self, tmp_path: Path, put: Put) -> str:
        put("mixed")
        return str(tmp_path / "mixed")

    def asked(
        self, root: str, machine: Any, python: Any, name: str = "mixed", **answer: str
    ) -> None:
        """Provision in a process that has a libcuda to ask."""
        code = "import sys; from gpucache import DeviceCacheRegistry; DeviceCacheRegistry(sys.argv[1]).provision()"
        done = python(code, root, env=machine(name) | answer)
        assert done.returncode == 0, done.stderr

    def test_an_order_that_was_never_asked_for_is_told(self, mixed):
        finding = told(look(mixed), "order-guess", "warning")
        assert "it has not been asked" in finding.fact
        assert finding.fix.startswith(
            f"run `gpucache provision --root {mixed}`, which asks it once; or set CUDA_DEV"
        )

    def test_an_order_that_libcuda_did_not_tell_is_told(self, mixed, machine, python):
        self.asked(mixed, machine, python, FAKECUDA_INIT="100")
        finding = told(look(mixed), "order-guess", "warning")
        assert finding.fact.startswith("libcuda did not say in which order")
        assert finding.fix.startswith("set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name devices by UUID")

    def test_an_order_that_is_on_record_is_no_guess_but_not_nvidia_smis(
        self, mixed, machine, python
    ):
        self.asked(mixed, machine, python, FAKECUDA_UUIDS=f"{self.SECOND},{self.FIRST}")
        found = look(mixed)
        silent(found, "order-guess")
        finding = told(found, "mixed-gpus", "warning")
        assert finding.fact.startswith(
            "NVIDIA A100-SXM4-80GB, NVIDIA H200: CUDA counts fastest first; "
        )
        assert finding.fact.endswith("are nvidia-smi's 1, 0")

    @pytest.mark.parametrize(
        "way_out",
        [
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            {"CUDA_VISIBLE_DEVICES": "GPU-bbbbbbbb,GPU-aaaaaaaa"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("asked", [False, True])
    def test_both_ways_out_work(self, mixed, machine, python, way_out, asked):
        if asked:
            self.asked(mixed, machine, python, FAKECUDA_UUIDS=f"{self.SECOND},{self.FIRST}")
        silent(look(mixed, **way_out), "order-guess", "mixed-gpus", "mask-cut")

    def test_looking_asks_neither_libcuda_nor_a_child(self, mixed, elsewhere, machine):
        env = machine("mixed") | healthy(mixed, FAKECUDA_UUIDS=f"{self.SECOND},{self.FIRST}")
        told(elsewhere(mixed, env), "order-guess", "warning")

    def test_gpus_of_one_kind_are_not_mixed_where_mig_needs_libcudas_order(
        self, tmp_path, put, machine, python
    ):
        root = str(tmp_path / "mig")
        self.asked(
            root, machine, python, "mig", FAKECUDA_UUIDS=",".join((*self.INSTANCES, self.FIRST))
        )
        put("mig")
        silent(look(root), "order-guess", "mixed-gpus")

    def test_equal_gpus_are_counted_alike(self, root):
        silent(look(root), "order-guess", "mixed-gpus")


# ---- the record


def test_a_root_that_is_not_there_is_told_once(tmp_path, put, root):
    silent(look(root), "root-missing", "record-missing")
    finding = told(look(str(tmp_path / "no root")), "root-missing", "warning")
    assert finding.fix == f"run `gpucache provision --root '{tmp_path}/no root'`"
    silent(look(str(tmp_path / "no root")), "record-missing", "unreadable", "not-writable")


def test_a_root_that_was_named_and_is_not_there_is_an_error(root, tmp_path):
    environ = healthy(root)
    found = sound(examine(str(tmp_path / "typo"), environ, named="--root").findings)
    assert told(found, "root-missing", "error").fact == "it is not there"
    (tmp_path / "link").symlink_to("nowhere")
    found = sound(examine(str(tmp_path / "link"), environ, named="--root").findings)
    assert told(found, "root-missing", "error").fact == "it is a link that leads nowhere"


def test_of_a_directory_that_is_no_cache_nothing_else_is_told(root, tmp_path):
    silent(look(root), "root-no-cache")
    (tmp_path / "home").mkdir(mode=0o777)
    (tmp_path / "home").chmod(0o777)
    (tmp_path / "home/letter").touch()
    found = look(str(tmp_path / "home"))
    told(found, "root-no-cache", "error")
    silent(found, "unsafe-directory", "record-missing")


def test_a_missing_record_is_told_and_provisioning_helps(root):
    record_file(root).rename(record_file(root).with_name("other.json"))
    finding = told(look(root), "record-missing", "warning")
    assert finding.fact == f"there is no record of host {paths.host_name()} (only of other)"
    provisioned(root)
    silent(look(root), "record-missing")


@pytest.mark.parametrize("length", [0, 1, 200, -2])
def test_a_torn_record_is_told_and_provisioning_helps(root, length):
    record_file(root).write_bytes(record_file(root).read_bytes()[:length])
    finding = told(look(root), "record-unusable", "error")
    assert finding.fact.startswith("the record cannot be understood")
    provisioned(root)
    silent(look(root), "record-unusable")


def test_another_hosts_record_under_our_name_is_told(root):
    ours = json.dumps(paths.host_name()).encode()
    record_file(root).write_bytes(record_file(root).read_bytes().replace(ours, b'"elsewhere"'))
    assert (
        "this is the record of host elsewhere" in told(look(root), "record-unusable", "error").fact
    )


def test_a_record_of_fakes_is_told_where_there_is_a_driver(tmp_path, put, dev):
    root = provisioned(tmp_path / "root", GPUCACHE_FAKE_DEVICES="2")
    silent(look(root), "record-fake")
    (dev / "nvidiactl").touch()
    silent(look(root, GPUCACHE_FAKE_DEVICES="2"), "record-fake")
    told(look(root), "record-fake", "error")
    provisioned(root)
    silent(look(root), "record-fake")


def test_other_gpus_than_those_on_record_are_told(root, dev):
    for minor in range(8):
        (dev / f"nvidia{minor}").touch()
    silent(look(root), "record-mismatch")
    (dev / "nvidia7").unlink()
    finding = told(look(root), "record-mismatch", "warning")
    assert "this process does not see just the 8 GPUs on record" in finding.fact
    silent(look(root, CUDA_VISIBLE_DEVICES="GPU-fa000001"), "record-mismatch")


def test_devices_that_are_new_are_told_and_provisioning_helps(root, put):
    silent(look(root), "record-outdated")
    put("[gpu]\n" * 9)
    finding = told(look(root), "record-outdated", "warning")
    assert "GPU-fa000008-0000-4000-8000-000000000008" in finding.fact
    provisioned(root)
    silent(look(root), "record-outdated")


def test_a_pin_that_is_not_on_record_is_told(root):
    silent(look(root, GPUCACHE_DEVICE="GPU-fa000000-0000-4000-8000-000000000000"), "pin-unknown")
    finding = told(look(root, GPUCACHE_DEVICE="GPU-gone"), "pin-unknown", "error")
    assert finding.fact == "GPUCACHE_DEVICE=GPU-gone is not on record"


def test_a_pin_that_is_not_on_a_record_of_fakes_is_told(tmp_path, put):
    root = provisioned(tmp_path / "root", GPUCACHE_FAKE_DEVICES="2")
    told(look(root, GPUCACHE_DEVICE="GPU-gone"), "pin-unknown", "error")


# ---- the environment


@pytest.mark.parametrize(
    "name",
    [
        "GPUCACHE_DISABLE",
        "GPUCACHE_TRUST_UIDS",
        "GPUCACHE_TRUST_WORLD_WRITABLE",
        "GPUCACHE_FAKE_DEVICES",
        "GPUCACHE_NVML_TIMEOUT_S",
        "GPUCACHE_CACHES",
    ],
)
def test_a_value_that_makes_no_sense_is_told_and_the_rest_examined(root, name):
    found = look(root, **{name: "nonsense", "CUDA_VISIBLE_DEVICES": "0,0"})
    finding = told(found, "bad-value", "error")
    assert (finding.subject, finding.fix) == (name, f"correct or unset {name}")
    assert finding.fact.startswith(f"{name}='nonsense' is not ")
    told(found, "mask-cut", "error")


def test_several_such_values_are_all_told(root):
    found = look(
        root, GPUCACHE_TRUST_UIDS="ada", GPUCACHE_TRUST_WORLD_WRITABLE="yes", GPUCACHE_DISABLE="off"
    )
    assert codes(found)[:3] == ["bad-value"] * 3


def test_what_in_a_file_of_settings_does_not_hold_is_told_with_its_line(root):
    Path(root, "gpucache.toml").write_text('max_size = "20GiB"\ntrust_uids = [1000]\n')
    finding = told(look(root), "settings", "warning")
    assert finding.subject == f"{root}/gpucache.toml:2"
    assert finding.fact == "'trust_uids' is nothing that a root may decide"
    assert "GPUCACHE_TRUST_UIDS" in finding.fix


def test_a_file_of_settings_that_holds_is_not_told(root):
    silent(look(root), "settings")
    Path(root, "gpucache.toml").write_text('max_size = "20GiB"\n')
    silent(look(root), "settings")


@pytest.mark.parametrize("value", ["", "0"])
def test_values_that_turn_nothing_on_are_not_told(root, value):
    names = (
        "SHARE",
        "VERIFY",
        "REQUIRE_HIT",
        "REMEMBER_KEY",
        "STALL_TIMEOUT_S",
        "LOCK_TIMEOUT_S",
        "STAMP_S",
        "DISABLE",
        "TRUST_UIDS",
    )
    silent(
        look(root, **{f"GPUCACHE_{name}": value for name in names}), "bad-value", "ignored-value"
    )


def test_values_that_make_sense_are_not_told(root):
    values = {
        "SHARE": "1",
        "VERIFY": "always",
        "STAMP_S": "1e3",
        "MAX_SIZE": "20GiB",
        "LOG": "Debug",
        "TRUST_UIDS": "7",
        "CACHES": "all,jax",
    }
    silent(
        look(root, **{f"GPUCACHE_{name}": value for name, value in values.items()}),
        "bad-value",
        "ignored-value",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUCACHE_SHARE", "yes"),
        ("GPUCACHE_VERIFY", "1"),
        ("GPUCACHE_REQUIRE_HIT", "true"),
        ("GPUCACHE_REMEMBER_KEY", "yes"),
        ("GPUCACHE_STALL_TIMEOUT_S", "30s"),
        ("GPUCACHE_STALL_TIMEOUT_S", "nan"),
        ("GPUCACHE_LOCK_TIMEOUT_S", "-1"),
        ("GPUCACHE_STAMP_S", "inf"),
        ("GPUCACHE_MAX_SIZE", "lots"),
        ("GPUCACHE_LOG", "loud"),
    ],
)
def test_a_value_that_the_plugin_ignores_is_told(root, name, value):
    finding = told(look(root, **{name: value}), "ignored-value", "warning")
    assert finding.subject == name
    assert finding.fact.startswith(f"{name}={value!r} is not ")


def relaunched(root: str, **changed: str) -> Findings:
    """The findings in the environment that `gpucache run --force` makes of this one."""
    environ, _ = launch_environ(healthy(root, **changed), device=0, force=True, root=root)
    return sound(examine(root, environ).findings)


@pytest.mark.parametrize(
    ("name", "consequence"),
    [
        ("TRITON_CACHE_DIR", "raises an exception"),
        ("TORCHINDUCTOR_CACHE_DIR", "caches in the current directory"),
    ],
)
def test_an_empty_cache_directory_is_told_and_run_helps(root, name, consequence):
    silent(look(root), "cache-dir-empty")
    finding = told(look(root, **{name: ""}), "cache-dir-empty", "error")
    assert finding.subject == name
    assert consequence in finding.fact
    silent(relaunched(root, **{name: ""}), "cache-dir-empty")


CACHE_VARIABLES = ("GPUCACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.mark.parametrize("name", CACHE_VARIABLES)
def test_blanks_around_a_cache_directory_are_told(root, name):
    silent(look(root), "cache-dir-blanks")
    found = look(root, **{name: " /scratch/cache "})
    finding = told(found, "cache-dir-blanks", "warning")
    assert (finding.subject, finding.fix) == (name, f"set {name}=/scratch/cache")
    silent(found, "cache-dir-relative")
    if name == "GPUCACHE_DIR":  # ours: no path at all, and refused
        assert told(look(root, GPUCACHE_DIR=" "), "bad-value", "error").subject == name
    else:
        found = look(root, **{name: " "})
        assert told(found, "cache-dir-blanks", "warning").fix == f"unset {name}"


@pytest.mark.parametrize("name", CACHE_VARIABLES)
def test_a_relative_cache_directory_is_told(root, name):
    silent(look(root), "cache-dir-relative")
    finding = told(look(root, **{name: "cache"}), "cache-dir-relative", "warning")
    assert finding.subject == name
    assert finding.fact.startswith("'cache' is another directory for each process")


def test_of_cache_directories_that_are_not_set_nothing_is_told(root):
    found = sound(examine(root, {}).findings)
    silent(
        found, "cache-dir-empty", "cache-dir-blanks", "cache-dir-relative", "triton-dir-hijacked"
    )


@pytest.mark.parametrize("where", ["other/triton/3", "other/triton/1.2/", "other/triton/None"])
def test_a_directory_of_another_root_is_told_and_run_helps(root, tmp_path, where):
    silent(look(root), "triton-dir-hijacked")
    finding = told(
        look(root, TRITON_CACHE_DIR=f"{tmp_path}/{where}"), "triton-dir-hijacked", "warning"
    )
    assert f"is in another root, {tmp_path}/other, and the root is {root}" in finding.fact
    silent(
        relaunched(root, TRITON_CACHE_DIR=f"{tmp_path}/{where}"),
        "triton-dir-hijacked",
        "triton-dir-other-device",
    )


def test_torchs_default_directory_is_told(root):
    default = paths.default_root({})
    for where in (f"{default}/triton/0", default):
        finding = told(look(root, TRITON_CACHE_DIR=where), "triton-dir-hijacked", "warning")
        assert f"is in torch's default directory, {default}" in finding.fact


@pytest.mark.parametrize("where", ["my/kernels", "kernels/3", "triton/cache", "triton"])
def test_a_directory_of_the_users_choice_is_not_told(root, tmp_path, where):
    silent(look(root, TRITON_CACHE_DIR=f"{tmp_path}/{where}"), "triton-dir-hijacked")


def test_a_root_reached_through_a_link_is_not_another_one(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    silent(look(root, TRITON_CACHE_DIR=f"{tmp_path}/link/triton/0"), "triton-dir-hijacked")
    silent(look(f"{tmp_path}/link", TRITON_CACHE_DIR=f"{root}/triton/0"), "triton-dir-hijacked")


def test_another_devices_directory_than_the_pinned_ones_is_told_and_run_helps(root):
    pin = {"GPUCACHE_DEVICE": "GPU-fa000002-0000-4000-8000-000000000002"}
    silent(look(root, TRITON_CACHE_DIR=f"{root}/triton/2", **pin), "triton-dir-other-device")
    finding = told(
        look(root, TRITON_CACHE_DIR=f"{root}/triton/1", **pin), "triton-dir-other-device", "warning"
    )
    assert finding.fix.startswith(
        f"set TRITON_CACHE_DIR={root}/triton/2, or start the program under `gpucache run"
    )
    silent(relaunched(root, TRITON_CACHE_DIR=f"{root}/triton/1", **pin), "triton-dir-other-device")


def test_a_pin_of_one_device_and_a_mask_of_another_are_an_error(root):
    second = "GPU-fa000002-0000-4000-8000-000000000002"
    pin = {"GPUCACHE_DEVICE": second, "TRITON_CACHE_DIR": f"{root}/triton/2"}
    for mask in ("2", "0,2", second[:12], ""):
        silent(look(root, CUDA_VISIBLE_DEVICES=mask, **pin), "pin-contradicts-mask")
    silent(look(root, **pin), "pin-contradicts-mask")
    finding = told(look(root, CUDA_VISIBLE_DEVICES="5", **pin), "pin-contradicts-mask", "error")
    shown = "GPU-fa000005-0000-4000-8000-000000000005"
    assert f"CUDA_VISIBLE_DEVICES=5 shows {shown} only: GPUCACHE_DEVICE wins" in finding.fact
    assert finding.fix.startswith("unset GPUCACHE_DEVICE")
    found = look(root, GPUCACHE_DEVICE="GPU-gone", CUDA_VISIBLE_DEVICES="5")
    silent(found, "pin-contradicts-mask")
    told(found, "pin-unknown", "error")


def test_a_host_without_gpus_among_hosts_with_gpus_needs_no_record(root, put, monkeypatch):
    monkeypatch.setattr(paths, "host_name", lambda: "login")
    told(look(root), "record-missing", "warning")
    put("init_error = DRIVER_NOT_LOADED\n")
    found = look(root)
    silent(found, "record-missing")
    told(found, "fake-devices", "warning")


def test_on_a_machine_without_gpus_a_pin_contradicts_no_mask(root, put):
    put("init_error = DRIVER_NOT_LOADED\n")
    pin = {"GPUCACHE_DEVICE": "GPU-fa000002-0000-4000-8000-000000000002"}
    silent(look(root, CUDA_VISIBLE_DEVICES="0", **pin), "pin-contradicts-mask")


@pytest.mark.parametrize(
    ("value", "who"),
    [("", "it is not set"), ("json:Manager", "Triton's cache belongs to json:Manager")],
)
def test_another_manager_than_ours_is_told_and_run_helps(root, value, who):
    silent(look(root), "plugin-inactive")
    found = look(root, TRITON_CACHE_MANAGER=value)
    assert told(found, "plugin-inactive", "warning").fact.startswith(who)
    environ, _ = launch_environ(healthy(root, TRITON_CACHE_MANAGER=value), force=bool(value))
    silent(examine(root, environ).findings, "plugin-inactive")


def test_a_sitecustomize_that_hides_the_plug_in_is_told_and_run_helps(root, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "sitecustomize.py").touch()
    hidden = {"TRITON_CACHE_MANAGER": "", "PYTHONPATH": f"{tmp_path}/src:{SITE}"}
    finding = told(look(root, **hidden), "plugin-inactive", "warning")
    assert f"{tmp_path}/src/sitecustomize.py stands before gpucache's own" in finding.fact
    environ, _ = launch_environ(healthy(root, **hidden))
    silent(examine(root, environ).findings, "plugin-inactive")


def test_switches_that_turn_us_off_are_told(root):
    silent(look(root), "disabled", "not-sharing", "ir-loc")
    found = look(root, GPUCACHE_DISABLE="1", GPUCACHE_SHARE="0", USE_IR_LOC="ttir")
    assert told(found, "ir-loc", "warning").fix == "unset USE_IR_LOC"
    assert told(found, "disabled", "warning").fix == "unset GPUCACHE_DISABLE"
    assert told(found, "not-sharing", "warning").fix == "unset GPUCACHE_SHARE"


def install(directory: Path, version: str) -> None:
    (directory / "triton.dist-info").mkdir(parents=True)
    (directory / "triton.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: triton\n{version}\n"
    )


@pytest.mark.parametrize("version", ["3.1.0", "3.10.0", "2.99", "4.0.0+git1234", "unknown"])
def test_a_triton_that_was_not_tested_is_told(root, tmp_path, monkeypatch, version):
    install(tmp_path / "site", f"Version: {version}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    finding = told(look(root), "triton-untested", "warning")
    assert finding.fact == f"Triton {version} is installed; the plug-in was tested with 3.2 to 3.9"
    assert "triton>=3.2,<3.10" in finding.fix


def test_a_triton_that_does_not_say_its_version_is_told(root, tmp_path, monkeypatch):
    install(tmp_path / "site", "Summary: broken")
    monkeypatch.syspath_prepend(tmp_path / "site")
    told(look(root), "triton-untested", "warning")


@pytest.mark.parametrize("version", ["3.2.0", "3.4", "3.9.1+git"])
def test_a_triton_that_was_tested_is_not_told(root, tmp_path, monkeypatch, version):
    install(tmp_path / "site", f"Version: {version}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    silent(look(root), "triton-untested")


def test_without_a_triton_none_is_told(root, monkeypatch):
    look(root)  # everything is imported
    monkeypatch.setattr(sys, "path", [])
    silent(look(root), "triton-untested")


# ---- who may write


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
class TestWhoMayWrite:
    INNER = (
        "triton",
        "triton/5",
        "gpucache/v1",
        "gpucache/v1/devices",
        "gpucache/v1/locks",
        "gpucache/v1/store",
    )

    @pytest.mark.parametrize("which", ["", *INNER])
    def test_what_belongs_to_another_user_is_told(self, root, which):
        path = os.path.join(root, which).rstrip("/")
        os.makedirs(path, exist_ok=True)
        silent(look(root), "unsafe-directory")
        os.chown(path, BOB, BOB)
        found = look(root)
        finding = told(found, "unsafe-directory", "error")
        assert finding.subject == path
        assert finding.fact.startswith(f"belongs to uid {BOB}, not to uid 0")
        assert f"GPUCACHE_TRUST_UIDS={BOB}" in finding.fix
        silent(look(root, GPUCACHE_TRUST_UIDS=str(BOB)), "unsafe-directory")

    @pytest.mark.parametrize("which", ["", *INNER])
    def test_what_everybody_may_write_is_told(self, root, which):
        path = os.path.join(root, which).rstrip("/")
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o777)
        found = look(root)
        assert told(found, "unsafe-directory", "error").subject == path
        os.chmod(path, 0o700)
        silent(look(root), "unsafe-directory")

    def test_a_foreign_link_on_the_way_is_told(self, root, tmp_path):
        link(tmp_path / "link", root, BOB)
        assert (
            told(look(str(tmp_path / "link")), "unsafe-directory", "error").subject
            == f"{tmp_path}/link"
        )

    def test_a_foreign_record_is_told_and_not_believed(self, root):
        os.chown(record_file(root), BOB, BOB)
        found = look(root)
        assert told(found, "unsafe-directory", "error").subject == str(record_file(root))
        silent(found, "record-missing", "record-unusable", "pin-unknown")

    def test_in_an_unsafe_root_no_probe_is_made(self, root):
        os.chmod(root, 0o777)
        before = everything_below(Path(root))
        look(root)
        assert everything_below(Path(root)) == before

    def test_a_root_that_a_user_may_only_read_is_told(self, everyones, put):
        root = provisioned(everyones / "root")
        for path in (Path(root), *Path(root).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        silent(look(root), "not-writable", "unreadable")
        with acting_as(ADA):
            found = look(root)
        finding = told(found, "not-writable", "warning")
        assert finding.fact.startswith(f"this user may not write {root}")
        silent(found, "unreadable", "unsafe-directory")

    def test_a_root_that_a_user_cannot_reach_is_told(self, everyones, put):
        (everyones / "closed").mkdir(mode=0o700)
        root = provisioned(everyones / "closed" / "root")
        look(root)  # everything is imported
        with acting_as(ADA):
            found = look(root)
        told(found, "unreadable", "warning")
        silent(found, "broken-path")

    def test_what_a_user_may_not_look_at_is_told_and_the_rest_examined(self, everyones, put):
        root = provisioned(everyones / "root")
        look(root)  # everything is imported
        with acting_as(ADA):
            found = look(root)
        assert told(found, "unreadable", "warning").subject == root
        for path in (Path(root), *Path(root).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.chmod(paths.ours(root, "locks"), 0o700)
        with acting_as(ADA):
            found = look(root)
        finding = told(found, "unreadable", "warning")
        assert (finding.subject, finding.fact) == (paths.ours(root, "locks"), "Permission denied")
        told(found, "not-writable", "warning")


@pytest.mark.parametrize("share", ["", "1"])
def test_a_directory_outside_the_root_in_which_others_may_plant_code_is_told(root, tmp_path, share):
    """The plug-in shares nothing with such a one, and the log alone would tell."""
    directory = tmp_path / "triton"
    directory.mkdir(mode=0o700)
    environ = {"TRITON_CACHE_DIR": str(directory), "GPUCACHE_SHARE": share}
    silent(look(root, **environ), "unsafe-directory", "no-views")
    directory.chmod(0o777)
    finding = told(look(root, **environ), "unsafe-directory", "error")
    assert finding.subject == str(directory)
    assert "TRITON_CACHE_DIR" in finding.fix
    silent(look(root, **environ | {"GPUCACHE_SHARE": "0"}), "unsafe-directory")


def test_a_directory_in_which_no_view_can_be_made_is_told(root, tmp_path, monkeypatch):
    directory = tmp_path / "triton"
    environ = {"TRITON_CACHE_DIR": str(directory)}
    silent(look(root, **environ), "no-views")
    directory.write_text("a file")
    assert told(look(root, **environ), "no-views", "warning").fact.startswith("Not a directory")
    inside = {"TRITON_CACHE_DIR": f"{root}/triton/0"}
    silent(look(root, **inside), "no-views")
    monkeypatch.setattr(trust_checks, "may", lambda path, _: path == root)
    assert told(look(root, **inside), "no-views", "warning").subject == f"{root}/triton/0"


def test_a_root_that_a_group_may_write_is_told(root):
    silent(look(root), "group-writable")
    os.chmod(root, 0o775)
    finding = told(look(root), "group-writable", "warning")
    assert finding.fact == f"everybody in group {os.stat(root).st_gid} may write it (mode 0775)"
    subprocess.run(finding.fix.partition(",")[0], shell=True, check=True)
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o755
    silent(look(root), "group-writable")


@pytest.mark.parametrize("which", ["", "triton", "triton/3", "gpucache", "gpucache/v1/locks"])
def test_a_file_in_the_way_is_told_once(root, which):
    silent(look(root), "broken-path")
    path = os.path.join(root, which).rstrip("/")
    shutil.rmtree(path)
    Path(path).write_text("mine")
    finding = told(look(root), "broken-path", "error")
    assert (finding.subject, finding.fact) == (path, "Not a directory")
    assert Path(path).read_text() == "mine"


@pytest.mark.parametrize(
    "which", ["", "gpucache/v1/locks", "gpucache/v1/tmp", "triton", "gpucache/v1/store"]
)
def test_links_in_a_circle_are_told(root, which):
    path = os.path.join(root, which).rstrip("/")
    shutil.rmtree(path, ignore_errors=True)
    os.symlink(path, path)
    told(look(root), "broken-path", "error")


def test_a_fifo_does_not_stop_it(root):
    """Opening one waits for a writer."""
    provisioning = lock_file(root, "provision")
    for path in (lock_file(root), provisioning, Path(f"{provisioning}.holder"), record_file(root)):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        aged(path, 2 * HOUR_S)
    found = look(root)
    assert told(found, "unsafe-directory", "error").fact == "is not a plain file"
    silent(found, "lock-stale", "lock-stalled", "provision-lock-held")


# ---- where the root lies


def test_a_network_file_system_is_told(root, monkeypatch):
    silent(look(root), "network-fs")
    monkeypatch.setattr(mounts, "file_system", lambda _: "nfs4")
    finding = told(look(root), "network-fs", "warning")
    assert finding.fact.startswith("it is on a network file system (nfs4)")


@pytest.mark.parametrize(
    ("code", "field"),
    [
        ("no-directory-rename", "renames_directories"),
        ("no-hard-links", "hard_links"),
        ("no-set-times", "sets_times"),
        ("no-flock", "flocks"),
    ],
)
def test_what_the_mount_was_found_to_refuse_is_told_until_it_is_tried_again(code, field, root):
    silent(look(root), code)
    keep(root, **{field: False})
    assert "its mount" in told(look(root), code, "warning").fact
    silent(sound(examine(root, healthy(root), probe=True).findings), code)
    silent(look(root), code)


def keep(root: str, **answers: bool) -> None:
    """Let it be known of the root's mount."""
    (path,) = Path(paths.ours(root, "mounts")).iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | answers))


def test_a_mount_that_cannot_be_tried_is_an_error_where_that_was_asked(root):
    silent(examine(root, healthy(root), probe=True).findings, "not-tried")
    shutil.rmtree(paths.ours(root, "tmp"))
    finding = told(examine(root, healthy(root), probe=True).findings, "not-tried", "error")
    assert finding.subject == root
    silent(look(root), "not-tried")


@pytest.mark.parametrize("trace", ["mounts", "stats", "tmp"])
def test_another_node_on_a_mount_whose_locks_may_not_reach_it_is_told(root, trace, monkeypatch):
    monkeypatch.setattr(mounts, "file_system", lambda _: "fuse.gcsfuse")
    silent(look(root), "other-nodes")
    left = {
        "mounts": "0badcafe.json",
        "stats": "0badcafe.node7.17.1a2b.counts",
        "tmp": "gpucache-staging-0badcafe.x",
    }
    path = Path(paths.ours(root, trace, left[trace]))
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"host": "node7"}')
    finding = told(look(root), "other-nodes", "warning")
    name = "node 0badcafe" if trace == "tmp" else "node node7"
    assert finding.fact.startswith(f"{name} use it too, and locks on its mount (fuse.gcsfuse)")
    aged(path, 8 * 24 * HOUR_S)
    silent(look(root), "other-nodes")


def test_this_node_before_its_last_start_is_no_other_node(root, monkeypatch):
    monkeypatch.setattr(mounts, "file_system", lambda _: "nfs4")
    path = Path(paths.ours(root, "mounts", "0badcafe.json"))
    path.write_text(json.dumps({"host": paths.host_name()}))
    silent(look(root), "other-nodes")


def test_nodes_that_lock_for_each_other_are_not_told(root):
    """A local disk: what lies there of another node was copied with it."""
    Path(paths.ours(root, "mounts", "0badcafe.json")).write_text('{"host": "node7"}')
    silent(look(root), "other-nodes")


@pytest.mark.usefixtures("shared_memory")
def test_the_locks_of_a_network_root_are_looked_for_on_this_node(root, monkeypatch):
    monkeypatch.setattr(mounts, "file_system", lambda _: "nfs4")
    locks = LockPlace(root).directory()
    (Path(locks) / f"{KEY}.lock").touch()
    aged(f"{locks}/{KEY}.lock", 2 * HOUR_S)
    assert told(look(root), "lock-stale", "warning").subject == f"{locks}/{KEY}.lock"
    shutil.rmtree(locks)
    look(root)
    assert not os.path.exists(locks)


@pytest.mark.root
@pytest.mark.usefixtures("as_root", "shared_memory")
def test_a_planted_directory_of_locks_is_told_only_where_there_is_no_other(root, monkeypatch):
    monkeypatch.setattr(mounts, "file_system", lambda _: "nfs4")
    locks = LockPlace(root).directory()
    os.chown(locks, ADA, ADA)
    silent(look(root), "unsafe-directory")
    monkeypatch.setattr("gpucache.disk.lock_token._NAMES", 1)
    assert told(look(root), "unsafe-directory", "error").subject == locks


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
class TestDisk:
    @pytest.fixture
    def disk(self, tmp_path: Path, mount: Mount, put: Put) -> Callable[[str], str]:
        """A provisioned root on a file system with these options."""

        def made(options: str) -> str:
            mount(tmp_path / "disk", "-t", "tmpfs", "-o", f"mode=0700,{options}", "none")
            return provisioned(tmp_path / "disk" / "root")

        return made

    def test_a_root_in_memory_is_told_also_before_it_is_made(self, disk, tmp_path):
        root = disk("size=1g,nr_inodes=100k")
        silent(
            look(root),
            "noexec",
            "read-only",
            "little-space",
            "few-inodes",
            "network-fs",
            "not-writable",
        )
        assert told(look(root), "tmpfs", "warning").fact.startswith("it is in memory (tmpfs)")
        told(look(str(tmp_path / "disk" / "not" / "there")), "tmpfs", "warning")

    @pytest.mark.skipif(
        mounts.file_system("/var/tmp") == "tmpfs", reason="needs a disk that is none of memory"
    )
    def test_a_root_on_a_disk_is_not_in_memory(self, put):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
            silent(look(provisioned(f"{place}/root")), "tmpfs")

    def test_a_mount_without_execution_is_told(self, disk):
        root = disk("noexec")
        finding = told(look(root), "noexec", "error")
        assert "cannot load what they compile" in finding.fact

    def test_a_read_only_mount_is_told(self, root, mount):
        mount(Path(root), "--bind", root)
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        found = look(root)
        assert told(found, "read-only", "warning").fact.startswith(
            "its file system is mounted read-only"
        )
        silent(found, "not-writable", "clock-skew", "unreadable")

    def test_an_image_which_is_always_full_needs_no_room(self, disk):
        root = disk("size=1m,nr_inodes=100")
        set_total(root, 10**6)
        told(look(root, GPUCACHE_MAX_SIZE="1KiB"), "over-limit", "warning")
        subprocess.run(["mount", "-o", "remount,ro", os.path.dirname(root)], check=True)
        found = look(root, GPUCACHE_MAX_SIZE="1KiB")
        told(found, "read-only", "warning")
        silent(found, "little-space", "few-inodes", "over-limit")

    def test_little_room_is_told(self, disk):
        found = look(disk("size=1m,nr_inodes=100"))
        assert told(found, "little-space", "warning").fact == "its file system has 0 MiB left"
        assert told(found, "few-inodes", "warning").fact.endswith(
            " inodes left, and a kernel takes nine"
        )

    def test_a_full_disk_is_no_reason_to_fail(self, disk):
        root = disk("size=200k")
        with pytest.raises(OSError, match="No space"):
            Path(root, "ballast").write_bytes(bytes(2**20))
        silent(look(root), "unreadable", "clock-skew")


def test_precompiled_headers_elsewhere_are_told_with_their_size(root):
    """A sparse file of the size that torch's has."""
    directory = Path(paths.default_root({}), "precompiled_headers")
    silent(look(root), "headers-elsewhere")
    (directory / "flags").mkdir(parents=True)
    with open(directory / "flags" / "header.h.gch", "wb") as file:
        file.truncate(147_000_000)
    finding = told(look(root), "headers-elsewhere", "warning")
    assert (finding.subject, finding.fact.split(" of ")[0]) == (str(directory), "147 MB")
    subprocess.run(finding.fix.split(" while ")[0], shell=True, check=True)
    silent(look(root), "headers-elsewhere")


def test_precompiled_headers_in_the_root_itself_are_not_told(put):
    root = provisioned(paths.default_root({}))
    Path(root, "precompiled_headers").mkdir()
    silent(look(root), "headers-elsewhere", "triton-dir-hijacked")


# ---- locks


@pytest.fixture
def held(root: str) -> Iterator[subprocess.Popen[str]]:
    """Another process compiles a kernel."""
    with running(KEY_HOLDER, str(lock_file(root))) as process:
        yield process
        process.send_signal(signal.SIGCONT)


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def test_a_lock_in_use_is_neither_told_nor_touched(root, held, monkeypatch):
    monkeypatch.setattr(locks, "is_free", pytest.fail)
    silent(look(root), "lock-stalled", "lock-stale")


def test_a_lock_whose_holder_stands_still_is_told(root, held):
    stop(held)
    silent(look(root), "lock-stalled")
    aged(lock_file(root), 40)
    found = look(root)
    finding = told(found, "lock-stalled", "warning")
    assert finding.subject == str(lock_file(root))
    assert finding.fact.startswith(f"process {held.pid} on {paths.host_name()} since 20")
    assert " for add_kernel holds it, and has given no sign of life for 40 s" in finding.fact
    silent(found, "lock-stale")


def test_how_long_a_holder_may_stand_still_is_the_waiters_setting(root, held):
    stop(held)
    aged(lock_file(root), 40)
    silent(look(root, GPUCACHE_STALL_TIMEOUT_S="60"), "lock-stalled")
    aged(lock_file(root), 2 * HOUR_S)
    silent(look(root, GPUCACHE_STALL_TIMEOUT_S=f"{3 * HOUR_S}"), "lock-stalled", "lock-stale")
    aged(lock_file(root), 3)
    told(look(root, GPUCACHE_STALL_TIMEOUT_S="2"), "lock-stalled", "warning")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("failed", "the pull of llama failed: the server failed (3 h ago)"),
        ("older", "the pull of llama: the server failed (3 h ago)"),
        ("unfit", "the pull of llama: the server failed (3 h ago)"),
    ],
)
def test_what_is_wrong_with_the_last_pull_is_told_and_is_no_stale_lock(root, kind, said):
    pull = Pull.begin(str(root), ["file:///remote", "llama"], "the pull of llama")
    assert pull is not None
    pull.bring(["A" * 52])
    silent(look(root), "pull-failed", "pull-older", "pull-unfit")
    pull.leave(kind, "the server failed")
    os.utime(pull.path, (time.time() - 3 * HOUR_S,) * 2)
    found = look(root)
    assert told(found, f"pull-{kind}", "warning").fact == said
    silent(found, "lock-stale", "lock-stalled")


def test_a_lock_whose_holder_has_died_is_told_after_an_hour(root, held):
    held.kill()
    held.wait()
    aged(lock_file(root), 0.9 * HOUR_S)
    silent(look(root), "lock-stale", "lock-stalled")
    aged(lock_file(root), 2 * HOUR_S)
    found = look(root)
    finding = told(found, "lock-stale", "warning")
    assert f"process {held.pid} on {paths.host_name()}" in finding.fact
    assert " died with it 2 h ago" in finding.fact
    assert finding.fix.endswith(f"and rm {lock_file(root)}")
    silent(found, "lock-stalled")


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_another_users_locks_are_passed_over(everyones, put):
    root = provisioned(everyones / "root")
    for path in (Path(root), *Path(root).rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    lock_file(root).touch(mode=0o600)
    aged(lock_file(root), 2 * HOUR_S)
    told(look(root), "lock-stale", "warning")
    with acting_as(ADA):
        silent(look(root), "lock-stale", "lock-stalled", "unreadable")


def test_the_lock_of_provisioning_is_told_only_when_held_for_long(root):
    lock = lock_file(root, "provision")
    aged(lock, 99 * HOUR_S)
    aged(f"{lock}.holder", 99 * HOUR_S)
    silent(look(root), "provision-lock-held", "lock-stale")
    with lock_holder(str(lock)) as process:
        silent(look(root), "provision-lock-held")
        aged(f"{lock}.holder", 90)
        found = look(root)
        finding = told(found, "provision-lock-held", "warning")
        assert finding.subject == str(lock)
        assert finding.fact.startswith(f"process {process.pid} on {paths.host_name()} since 20")
        assert " has held it for 90 s" in finding.fact
        silent(found, "lock-stalled", "lock-stale")


# ---- times


@pytest.fixture
def shifted(
    tmp_path: Path, machine: Callable[[str], dict[str, str]]
) -> Callable[[int], dict[str, str]]:
    """The environment of a process on a machine whose clock is not the file system's."""
    source = tmp_path / "clock.c"
    source.write_text("""
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t clock, struct timespec *now) {
            long result = syscall(SYS_clock_gettime, clock, now);
            if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += atol(getenv("SHIFT_S"));
            return (int)result;
        }
    """)
    library = tmp_path / "clock.so"
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return lambda seconds: machine(EIGHT) | {"LD_PRELOAD": str(library), "SHIFT_S": str(seconds)}


@pytest.mark.parametrize(
    ("shift_s", "which"), [(-600, "600 s ahead of"), (600, "600 s behind"), (-5, "5 s ahead of")]
)
def test_a_clock_that_is_not_the_file_systems_is_told(root, elsewhere, shifted, shift_s, which):
    found = elsewhere(root, shifted(shift_s) | healthy(root))
    assert told(found, "clock-skew", "warning").fact.startswith(
        f"the file system's clock is {which} this machine's"
    )
    assert os.listdir(paths.ours(root, "tmp")) == []


def test_the_same_clock_is_not_told(root, elsewhere, shifted):
    silent(elsewhere(root, shifted(0) | healthy(root)), "clock-skew", "future-times")


def test_files_from_the_future_are_told_and_the_way_out_works(root):
    manifests = [Path(entry_path(root, f"{number:02}{KEY}"), MANIFEST) for number in range(3)]
    for path in manifests:
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    silent(look(root), "future-times")
    aged(manifests[0], -30)
    silent(look(root), "future-times")
    aged(manifests[1], -HOUR_S)
    aged(record_file(root), -2 * HOUR_S)
    finding = told(look(root), "future-times", "warning")
    assert finding.fact.startswith(
        f"2 of 4 files looked at, such as {record_file(root)}, are up to 7"
    )
    subprocess.run(finding.fix.split("then ")[1], shell=True, check=True)
    silent(look(root), "future-times")


def test_of_many_entries_only_some_are_looked_at(root, monkeypatch):
    for number in range(100):
        path = Path(entry_path(root, f"{number:02}{KEY}"), MANIFEST)
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        aged(path, -HOUR_S)
    assert told(look(root), "future-times", "warning").fact.startswith("64 of 65 files looked at")


def test_a_fix_that_is_a_command_is_quoted_for_the_shell(tmp_path, put):
    root = provisioned(tmp_path / "a root; with 'quotes'")
    os.chmod(root, 0o770)
    assert (
        shlex.split(told(look(root), "group-writable", "warning").fix.partition(", unless")[0])[-1]
        == root
    )


@pytest.mark.parametrize("manager", ["nosuch:Thing", "no.such.module:Thing", ":Thing", "..:x"])
def test_a_manager_that_cannot_be_imported_is_told(root, manager):
    """Triton imports it within a kernel launch, and fails there."""
    found = look(root, TRITON_CACHE_MANAGER=manager)
    assert manager in told(found, "plugin-missing", "error").fact
    silent(found, "plugin-inactive")
    silent(look(root), "plugin-missing")
    silent(look(root, TRITON_CACHE_MANAGER="json:Thing"), "plugin-missing")


@pytest.mark.parametrize("name", ["TRITON_ALWAYS_COMPILE", "TRITON_KERNEL_OVERRIDE"])
def test_a_variable_that_always_compiles_is_told(root, name):
    assert told(look(root, **{name: "1"}), "always-compile", "error").subject == name
    silent(look(root, **{name: "0"}), "always-compile")


def test_a_misspelt_variable_of_ours_is_told_with_the_right_one(root):
    finding = told(look(root, GPUCACHE_MAX_SIZ="1GiB"), "unknown-variable", "warning")
    assert (finding.subject, finding.fix) == (
        "GPUCACHE_MAX_SIZ",
        "set GPUCACHE_MAX_SIZE if that is meant",
    )
    silent(look(root, GPUCACHE_MAX_SIZE="1GiB", GPUCACHE_TEST_TRITON="python"), "unknown-variable")


def test_a_store_over_its_limit_is_told(root):
    """By the total that writers keep: all of it was used too recently to be evicted."""
    silent(look(root, GPUCACHE_MAX_SIZE="1KiB"), "over-limit")  # nobody has counted
    size = Path(paths.ours(root, "stats", "size"))
    size.parent.mkdir(exist_ok=True)
    size.write_text(json.dumps([5000, True, time.time()]))
    fact = told(look(root, GPUCACHE_MAX_SIZE="1KiB"), "over-limit", "warning").fact
    assert fact == "the store takes 4.9 KiB, and GPUCACHE_MAX_SIZE allows 1.0 KiB"
    for enough in ("5000", "0", ""):
        silent(look(root, GPUCACHE_MAX_SIZE=enough), "over-limit")
    Path(root, "gpucache.toml").write_text("max_size = 2048\n")
    found = told(look(root, GPUCACHE_MAX_SIZE="1GiB"), "over-limit", "warning")
    by = f"max_size in {root}/gpucache.toml"
    assert found.fact == f"the store takes 4.9 KiB, and {by} allows 2.0 KiB"
    assert found.fix.startswith(f"raise {by}, or wait")


def test_a_directory_of_stock_tritons_needs_no_record(tmp_path, put):
    (tmp_path / ("A" * 52)).mkdir()
    silent(look(str(tmp_path)), "record-missing", "root-missing")
    (tmp_path / "gpucache").mkdir()
    assert told(look(str(tmp_path)), "record-missing", "warning")


def test_a_directory_that_is_fresh_on_purpose_is_told(root):
    silent(look(root, TRITON_CACHE_DIR="/scratch/triton"), "fresh-directory")
    silent(look(root, TRITON_CACHE_DIR=f"{root}/triton/0"), "fresh-directory")
    fresh = {"TRITON_CACHE_DIR": "/scratch/tmpabcdef78/triton"}
    assert "GPUCACHE_SHARE=1" in told(look(root, **fresh), "fresh-directory", "warning").fix
    silent(look(root, **fresh, GPUCACHE_SHARE="1"), "fresh-directory")


def test_every_check_that_declares_codes_is_asked():
    """One that is not named in `doctor` or `explain` would be silent for ever."""
    declared = {code for codes in codes_module._codes.values() for code in codes}
    assert declared - set(CODES) - set(why_missed.CODES) == set()


# ---- the remote


class TestRemote:
    @pytest.fixture
    def shared(self, tmp_path: Path) -> Path:
        """A directory that is a remote, and the key that everybody trusts, in `ci.key` beside it."""
        directory = tmp_path / "shared"
        directory.mkdir()
        return directory

    @pytest.fixture
    def see(self, root: str, shared: Path) -> Callable[..., Findings]:
        """Look, where all is well: a remote that is there, read by a trusted key, and written by it."""
        signing = make_key("ci", str(shared.parent / "ci.key"))

        def looked(**changed: str) -> Findings:
            well = {
                "GPUCACHE_REMOTE": f"file://{shared}?mode=write",
                "GPUCACHE_TRUST_KEYS": signing.public_text,
                "GPUCACHE_SIGN_KEY": str(shared.parent / "ci.key"),
                "AWS_ACCESS_KEY_ID": "reader",
                "AWS_SECRET_ACCESS_KEY": "word",
            }
            return look(root, **{**well, **changed})

        return looked

    def test_of_a_remote_with_which_all_is_well_nothing_is_told(self, see):
        assert not [code for code in codes(see()) if "remote" in code or "outbox" in code]

    def test_without_a_remote_nothing_is_asked(self, see, monkeypatch):
        monkeypatch.setattr(remote_checks, "open_remote", pytest.fail)
        silent(see(GPUCACHE_REMOTE=""), *(code for code in CODES if code.startswith("remote-")))

    def test_a_url_with_a_password_is_told_and_not_shown(self, see):
        silent(see(), "remote-url")
        finding = told(see(GPUCACHE_REMOTE="redis://u:hunter2@host/0"), "remote-url", "error")
        assert "password" in finding.fact
        assert "hunter2" not in finding.fact + finding.fix + finding.subject
        assert "REDISCLI_AUTH" in finding.fix

    @pytest.mark.parametrize("library", ["zstandard", "cryptography", "opendal", "redis"])
    def test_a_library_of_the_extra_that_is_missing_is_told(self, library, see, monkeypatch):
        url = "s3://bucket?endpoint=http://127.0.0.1:9&mode=write"
        if library == "redis":
            url = "redis://127.0.0.1:9/0?mode=write"
        silent(see(), "remote-not-installed")
        monkeypatch.setitem(sys.modules, library, None)
        finding = told(see(GPUCACHE_REMOTE=url), "remote-not-installed", "error")
        assert finding.subject == library
        assert finding.fix == "pip install opendal redis zstandard cryptography"

    def test_a_directory_needs_no_opendal(self, see, monkeypatch):
        monkeypatch.setitem(sys.modules, "opendal", None)
        silent(see(), "remote-not-installed")

    def test_that_nobody_is_trusted_is_told(self, see, shared):
        silent(see(), "remote-no-trusted-key")
        finding = told(see(GPUCACHE_TRUST_KEYS=""), "remote-no-trusted-key", "warning")
        assert "nothing is read" in finding.fact
        silent(
            see(GPUCACHE_TRUST_KEYS="", GPUCACHE_REMOTE=f"file://{shared}?trust=owner"),
            "remote-no-trusted-key",
        )

    def test_a_file_of_keys_that_cannot_be_read_is_told(self, see):
        finding = told(see(GPUCACHE_TRUST_KEYS="/nowhere/keys"), "remote-no-trusted-key", "error")
        assert "/nowhere/keys" in finding.fact

    def test_that_nothing_can_be_signed_is_told_where_the_remote_is_written(self, see, shared):
        silent(see(), "remote-no-sign-key")
        silent(see(GPUCACHE_SIGN_KEY="", GPUCACHE_REMOTE=f"file://{shared}"), "remote-no-sign-key")
        finding = told(see(GPUCACHE_SIGN_KEY=""), "remote-no-sign-key", "warning")
        assert "GPUCACHE_SIGN_KEY" in finding.fix

    def test_a_secret_key_that_others_can_read_is_told(self, see, shared):
        (shared.parent / "ci.key").chmod(0o644)
        assert "chmod 600" in told(see(), "remote-no-sign-key", "error").fix

    def test_a_remote_that_is_not_there_is_told(self, see):
        silent(see(), "remote-unreachable")
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # and does not listen
            port = unused.getsockname()[1]
            told(
                see(GPUCACHE_REMOTE=f"redis://127.0.0.1:{port}/0"), "remote-unreachable", "warning"
            )

    def test_a_remote_that_hangs_is_told_in_time(self, see, monkeypatch):
        monkeypatch.setattr(remote_checks, "_PATIENCE", Patience(0.3, 0.3))
        with bad_server(bad_servers.drips) as server:
            endpoint = f"http://127.0.0.1:{server.port}"
            found = see(GPUCACHE_REMOTE=f"s3://bucket?endpoint={endpoint}")
        assert "remote-unreachable" in codes(found)

    def test_a_remote_that_refuses_is_told_without_what_it_says(self, see):
        silent(see(), "remote-refused", "remote-fails")
        with bad_server(says("403 Forbidden", b"\x1b[2J hunter2")) as server:
            endpoint = f"http://127.0.0.1:{server.port}"
            found = see(GPUCACHE_REMOTE=f"s3://bucket?endpoint={endpoint}")
        finding = told(found, "remote-refused", "warning")
        assert "hunter2" not in str(finding)

    def test_that_there_are_no_credentials_is_told(self, see):
        with bad_server(says("500 Internal Server Error")) as server:
            endpoint = f"http://127.0.0.1:{server.port}"
            url = f"s3://bucket?endpoint={endpoint}"
            silent(see(GPUCACHE_REMOTE=url), "remote-refused")
            found = see(GPUCACHE_REMOTE=url, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
        assert "credentials" in told(found, "remote-refused", "warning").fact

    def test_a_remote_that_fails_is_told(self, see):
        with bad_server(says("500 Internal Server Error")) as server:
            endpoint = f"http://127.0.0.1:{server.port}"
            told(see(GPUCACHE_REMOTE=f"s3://bucket?endpoint={endpoint}"), "remote-fails", "warning")

    @pytest.mark.parametrize(
        ("ahead_s", "which"), [(-7200, "behind"), (7200, "ahead of"), (0, None)]
    )
    def test_a_server_with_another_clock_is_told(self, ahead_s, which, see):
        def behave(connection, over):
            date = formatdate(time.time() + ahead_s, usegmt=True)
            says("404 Not Found", Date=date)(connection, over)

        with bad_server(behave) as server:
            endpoint = f"http://127.0.0.1:{server.port}"
            found = see(GPUCACHE_REMOTE=f"s3://bucket?endpoint={endpoint}")
        if which is None:
            silent(found, "remote-clock")
        else:
            fact = told(found, "remote-clock", "warning").fact
            assert re.match(rf"the server's clock is (7199|720[01]) s {which} this", fact), fact

    def test_entries_for_another_triton_only_are_told(self, see, shared, monkeypatch):
        monkeypatch.setattr(remote_checks, "installed_triton", lambda: "3.9.0")
        other = shared / entry_object("3.6.0", KEY)
        other.parent.mkdir(parents=True)
        other.touch()
        finding = told(see(), "remote-other-triton", "warning")
        assert finding.fact == "it has entries for Triton 3.6.0, and none for 3.9.0"
        own = shared / entry_object("3.9.0", KEY)
        own.parent.mkdir(parents=True)
        own.touch()
        silent(see(), "remote-other-triton")

    @pytest.mark.parametrize("what", ["asked for nothing", "given nothing"])
    def test_a_remote_that_is_left_alone_is_told(self, what, see, root, shared):
        silent(see(), "remote-paused")
        text = f"file://{shared}?mode=write"
        locks = paths.ours(root, "locks")
        breaker = push_breaker(locks, text)
        if what == "asked for nothing":
            trust = SigningKey.read(str(shared.parent / "ci.key")).public_text
            breaker = Breaker(Meeting.of(locks, root, text, trust).state)
        breaker.closed("timeout", "no answer within 1 s")
        finding = told(see(), "remote-paused", "warning")
        assert finding.fact.startswith(f"it is {what} for ")
        assert finding.fact.endswith("s more: no answer within 1 s")

    def test_that_a_remote_has_nothing_is_no_failure(self, see, root, shared):
        trust = SigningKey.read(str(shared.parent / "ci.key")).public_text
        meeting = Meeting.of(paths.ours(root, "locks"), root, f"file://{shared}?mode=write", trust)
        for _ in range(20):
            Breaker(meeting.state).missed()
        silent(see(), "remote-paused")

    def test_what_no_trusted_key_has_signed_is_told(self, see, root):
        silent(see(), "remote-bad-entries")
        Stats(paths.ours(root, "stats"), "0").add("remote_bad", 3, now=True)
        finding = told(see(), "remote-bad-entries", "error")
        assert finding.fact.startswith("3 times in the last day")

    @pytest.mark.parametrize(("count", "age_s"), [(101, 5), (1, 2 * HOUR_S)])
    def test_an_outbox_that_grows_is_told(self, count, age_s, see, root):
        for number in range(3):
            leave(root, kernel(f"kernel {number}")[0])
        silent(see(), "outbox-grows")
        for number in range(count):
            leave(root, kernel(f"kernel {number}")[0])
        for marker in Path(paths.ours(root, "outbox")).rglob("*"):
            aged(marker, age_s)
        told(see(), "outbox-grows", "warning")

    @pytest.mark.parametrize(
        ("target", "version", "is_told"),
        [
            ("cuda:80", "3.9.0", True),
            ("cuda:90", "3.6.0", True),
            ("cuda:90", "3.9.0", False),
            (None, None, False),
        ],
    )
    def test_a_pack_of_which_nothing_can_be_used_is_told(
        self, target, version, is_told, see, tmp_path, put, monkeypatch
    ):
        put("[gpu]\ncompute_capability = 9.0\n")
        monkeypatch.setattr(remote_checks, "installed_triton", lambda: "3.9.0")
        note_pulled(
            root := provisioned(tmp_path / "root"),
            Pulled("llama", 1, 1.0, {KEY: PulledEntry(target, version)}),
        )
        found = look(root)
        if not is_told:
            silent(found, "pulled-for-others")
            return
        finding = told(found, "pulled-for-others", "warning")
        assert finding.subject == "llama"
        assert finding.fact.endswith("here are devices of sm_90, and Triton 3.9.0")
