from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.gpus import LIKE, gpus, show

import gpucache
from gpucache import (
    Device,
    DeviceCacheRegistry,
    DeviceIndexError,
    RecordError,
    Unavailable,
    UnsafeDirectoryError,
)
from gpucache.layout import paths
from gpucache.machine.device import Snapshot, Status, fake_devices

pytestmark = pytest.mark.usefixtures("bare_dev")


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


def names(registry: DeviceCacheRegistry) -> list[str]:
    return [os.path.basename(registry.path(ordinal)) for ordinal in registry]


# ---- looking up


def test_constructing_makes_nothing(root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {})
    assert registry.path(7) == f"{root}/triton/7"
    assert not Path(root).exists()


@pytest.mark.parametrize("ordinal", [8, -1, 10**30, None, "0", 0.5])
def test_an_ordinal_that_does_not_exist_is_an_error_that_says_what_does(root, ordinal):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {})
    with pytest.raises(DeviceIndexError, match="ordinals 0 to 7") as caught:
        registry.path(ordinal)
    assert isinstance(caught.value, IndexError)
    assert ordinal not in registry


def test_it_is_a_collection_of_ordinals(root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {})
    assert len(registry) == 8
    assert list(registry) == list(range(8))
    assert 7 in registry
    assert 8 not in registry


def test_a_masked_process_resolves_to_the_same_directories_as_an_unmasked_one(root):
    launcher = DeviceCacheRegistry(root, gpus(*LIKE), {})
    worker = DeviceCacheRegistry(root, gpus(*LIKE), {"CUDA_VISIBLE_DEVICES": "3,5"})
    assert [worker.path(0), worker.path(1)] == [launcher.path(3), launcher.path(5)]
    assert worker.devices == (LIKE[3], LIKE[5])


def test_an_empty_mask_has_no_ordinals_and_says_why(root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(DeviceIndexError, match=r"no device.*CUDA_VISIBLE_DEVICES is empty"):
        registry.path(0)


def test_the_root_is_the_argument_or_the_environments(tmp_path, root):
    at = {"GPUCACHE_DIR": str(tmp_path / "a"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "b")}
    assert DeviceCacheRegistry(root, gpus(), at).root == root
    assert DeviceCacheRegistry(None, gpus(), at).root == str(tmp_path / "a")
    assert DeviceCacheRegistry(None, gpus(), {**at, "GPUCACHE_DIR": ""}).root == str(tmp_path / "b")
    assert (
        DeviceCacheRegistry(None, gpus(), {"USER": "u"}).root
        == f"{os.environ['TMPDIR']}/torchinductor_u"
    )


def test_it_can_be_pickled(root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {"CUDA_VISIBLE_DEVICES": "3,5"})
    again = pickle.loads(pickle.dumps(registry))
    assert (again.root, again.devices, names(again)) == (
        registry.root,
        registry.devices,
        ["3", "5"],
    )
    assert again.environ(1) == registry.environ(1)


def _spawned(registry: DeviceCacheRegistry, queue: object) -> None:
    queue.put((names(registry), registry.environ(0)))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_it_works_in_child_processes(method, root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {"CUDA_VISIBLE_DEVICES": "6"})
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=_spawned, args=(registry, queue))
    child.start()
    assert queue.get() == (["6"], registry.environ(0))
    child.join(60)
    assert child.exitcode == 0


def test_path_makes_no_system_call(python, tmp_path):
    """Between two marked calls a thousand lookups leave no trace."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    code = """if True:
        import os
        from gpucache import DeviceCacheRegistry
        registry = DeviceCacheRegistry("/r", environ={"GPUCACHE_FAKE_DEVICES": "8"})
        os.access("/before", 0)
        for _ in range(1000):
            registry.path(7); len(registry); 3 in registry
        os.access("/after", 0)
    """
    trace = tmp_path / "trace"
    os.spawnv(os.P_WAIT, strace, ["strace", "-o", str(trace), sys.executable, "-c", code])
    calls = trace.read_text().splitlines()
    (start,) = (n for n, call in enumerate(calls) if '"/before"' in call)
    (end,) = (n for n, call in enumerate(calls) if '"/after"' in call)
    assert calls[start + 1 : end] == []


# ---- the environment for a child


def test_environ_names_the_root_the_device_and_its_directory(root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {"CUDA_VISIBLE_DEVICES": "5"})
    assert registry.environ(0) == {
        "GPUCACHE_DIR": root,
        "GPUCACHE_DEVICE": LIKE[5].uuid,
        "TORCHINDUCTOR_CACHE_DIR": root,
        "TRITON_CACHE_DIR": f"{root}/triton/5",
    }
    assert registry.environ(0, plugin=True) == {
        **registry.environ(0),
        "TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager",
    }
    with pytest.raises(DeviceIndexError):
        registry.environ(1)


def test_disabled_it_steps_aside(root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {"GPUCACHE_DISABLE": "1"})
    assert registry.environ(0) == {}
    assert "GPUCACHE_DISABLE" in registry.provision().warnings[0]
    assert not Path(root).exists()


@pytest.mark.parametrize(
    ("mask", "shows", "is_told"),
    [
        (LIKE[5].uuid, LIKE[:1], True),  # whatever the kernel shows, a UUID is a UUID
        ("5", LIKE, True),
        ("0", LIKE[2:3], False),  # a container of that one GPU, which has the number 0 there
        ("2", LIKE, False),
        (LIKE[2].uuid[:12], LIKE, False),
        ("", LIKE, False),
    ],
)
def test_loading_says_that_a_pin_wins_over_a_mask_of_another_device(
    mask, shows, is_told, root, bare_dev, caplog
):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    show(bare_dev, *shows)
    environ = {"GPUCACHE_DEVICE": LIKE[2].uuid, "CUDA_VISIBLE_DEVICES": mask}
    registry = DeviceCacheRegistry.load(root, environ)
    assert registry.path(0) == f"{root}/triton/2"
    said = "GPUCACHE_DEVICE wins"
    assert (said in caplog.text) == (said in registry.visible.cut) == is_told


def test_nothing_but_the_drop_ins_writes_the_environment(root):
    before = dict(os.environ)
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {})
    registry.provision()
    DeviceCacheRegistry.load(root, registry.environ(2))
    gpucache.launch_environ({"GPUCACHE_DIR": root})
    assert dict(os.environ) == before


# ---- from the record


def test_load_gives_what_was_provisioned(root):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    loaded = DeviceCacheRegistry.load(root, {})
    assert loaded.devices == tuple(LIKE)
    assert names(loaded) == list("01234567")
    assert loaded.snapshot.source == "record"


def test_load_applies_the_mask_of_this_process(root):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    assert names(DeviceCacheRegistry.load(root, {"CUDA_VISIBLE_DEVICES": "6,1"})) == ["6", "1"]
    assert names(DeviceCacheRegistry.load(root, {"CUDA_VISIBLE_DEVICES": LIKE[4].uuid[:12]})) == [
        "4"
    ]


def test_a_pinned_device_is_the_only_one_whatever_the_mask(root):
    launcher = DeviceCacheRegistry(root, gpus(*LIKE), {})
    launcher.provision()
    worker = DeviceCacheRegistry.load(
        environ={**launcher.environ(6), "CUDA_VISIBLE_DEVICES": "1,2"}
    )
    assert worker.devices == (LIKE[6],)
    assert worker.path(0) == launcher.path(6)


def test_a_pin_that_is_not_on_record_is_an_error(root):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    with pytest.raises(RecordError, match="GPU-unknown.*gpucache provision"):
        DeviceCacheRegistry.load(root, {"GPUCACHE_DEVICE": "GPU-unknown"})


def test_load_without_a_record_says_to_provision(root):
    with pytest.raises(RecordError, match="no record.*gpucache provision"):
        DeviceCacheRegistry.load(root, {})


def test_a_fake_record_is_refused_where_the_driver_is(root, bare_dev):
    DeviceCacheRegistry(root, environ={"GPUCACHE_FAKE_DEVICES": "2"}).provision()
    assert len(DeviceCacheRegistry.load(root, {})) == 2
    (bare_dev / "nvidiactl").touch()
    with pytest.raises(RecordError, match=r"fake.*gpucache provision"):
        DeviceCacheRegistry.load(root, {})
    assert len(DeviceCacheRegistry.load(root, {"GPUCACHE_FAKE_DEVICES": "2"})) == 2


def test_where_nvml_has_found_a_driver_without_gpus_its_fakes_hold_until_gpus_come(root, bare_dev):
    nothing = Snapshot(status=Status.NO_DEVICES, source="fake", devices=fake_devices(1))
    DeviceCacheRegistry(root, nothing, {}).provision()
    (bare_dev / "nvidiactl").touch()
    assert len(DeviceCacheRegistry.load(root, {})) == 1
    (bare_dev / "nvidia0").touch()
    with pytest.raises(RecordError, match=r"fake.*gpucache provision"):
        DeviceCacheRegistry.load(root, {})


def test_fakes_asked_for_beside_a_real_record_are_the_ones_loaded(root):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    fakes = {"GPUCACHE_FAKE_DEVICES": "3"}
    launcher = DeviceCacheRegistry(root, environ=fakes)
    launcher.provision()
    worker = DeviceCacheRegistry.load(root, fakes)
    assert names(worker) == names(launcher) == ["0", "1", "2"]
    assert DeviceCacheRegistry.load(root, {}).devices == tuple(LIKE)


def test_a_number_means_nothing_to_a_process_that_sees_only_part_of_the_host(root, bare_dev):
    """A cgroup renumbers from 0: the record cannot tell which GPU that is, a UUID can."""
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    show(bare_dev, LIKE[5])
    for environ in ({}, {"CUDA_VISIBLE_DEVICES": "0"}):
        with pytest.raises(RecordError, match=r"does not see just the 8 GPUs.*gpucache run"):
            DeviceCacheRegistry.load(root, environ)
    assert names(DeviceCacheRegistry.load(root, {"CUDA_VISIBLE_DEVICES": LIKE[5].uuid})) == ["5"]
    assert names(DeviceCacheRegistry.load(root, {"GPUCACHE_DEVICE": LIKE[5].uuid})) == ["5"]
    show(bare_dev, *LIKE)
    assert len(DeviceCacheRegistry.load(root, {})) == 8


@pytest.mark.parametrize("uuids", [False, True], ids=["by minor", "by uuid"])
def test_as_many_gpus_as_on_record_are_not_yet_the_same_ones(root, bare_dev, uuids):
    """Two tasks of two GPUs each: the record of the first means nothing to the second."""
    DeviceCacheRegistry(root, gpus(*LIKE[:2]), {}).provision()
    show(bare_dev, *LIKE[2:4], uuids=uuids)
    with pytest.raises(RecordError, match="does not see just the 2 GPUs"):
        DeviceCacheRegistry.load(root, {})
    show(bare_dev, *LIKE[:2], uuids=uuids)
    loaded = DeviceCacheRegistry.load(root, {})
    assert loaded.checked
    assert loaded.devices == tuple(LIKE[:2])


def test_a_gpu_exchanged_for_another_in_its_place_is_noticed(root, bare_dev):
    DeviceCacheRegistry(root, gpus(*LIKE[:2]), {}).provision()
    new = dataclasses.replace(LIKE[1], uuid="GPU-ffffffff-0000-4000-8000-000000000000")
    show(bare_dev, LIKE[0], new, uuids=True)
    with pytest.raises(RecordError, match="new GPUs"):
        DeviceCacheRegistry.load(root, {})


def test_the_node_of_a_lost_gpu_is_expected(root, bare_dev):
    sick = dataclasses.replace(gpus(*LIKE[:3]), lost=(Unavailable(3, 15, "GPU is lost"),))
    DeviceCacheRegistry(root, sick, {}).provision()
    show(bare_dev, *LIKE[:4])
    assert DeviceCacheRegistry.load(root, {}).checked


def test_without_nodes_to_look_at_the_record_is_believed_but_not_checked(root):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    assert not DeviceCacheRegistry.load(root, {}).checked


def test_two_gpus_seen_under_one_number_are_told_apart_by_uuid_only(root):
    for device in LIKE[:2]:
        seen = Device.parse({**device.as_json(), "index": 0})
        DeviceCacheRegistry(root, gpus(seen), {}).provision()
    with pytest.raises(RecordError, match="does not see just"):
        DeviceCacheRegistry.load(root, {})
    assert names(DeviceCacheRegistry.load(root, {"GPUCACHE_DEVICE": LIKE[1].uuid})) == ["1"]


def test_load_vets_the_root_and_the_device_directories(root, as_root):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    os.chown(f"{root}/triton/3", 65534, 65534)
    with pytest.raises(UnsafeDirectoryError, match="triton/3.*65534"):
        DeviceCacheRegistry.load(root, {})
    os.chown(root, 65534, 65534)
    with pytest.raises(UnsafeDirectoryError, match="GPUCACHE_TRUST_UIDS=65534"):
        DeviceCacheRegistry.load(root, {})


@pytest.mark.parametrize(
    "inner", ["triton", "gpucache", "gpucache/v1", "gpucache/v1/devices", "record"]
)
def test_what_everybody_may_write_is_not_believed(root, inner):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    path = paths.record_path(root, paths.host_name()) if inner == "record" else f"{root}/{inner}"
    os.chmod(path, 0o777)
    with pytest.raises(UnsafeDirectoryError, match="everybody may write"):
        DeviceCacheRegistry.load(root, {})


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir])
def test_what_is_no_file_in_the_records_place_blocks_nobody_and_goes_as_the_hint_says(plant, root):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    path = paths.record_path(root, paths.host_name())
    os.unlink(path)
    plant(path)
    with pytest.raises(UnsafeDirectoryError, match="not a plain file") as caught:
        DeviceCacheRegistry.load(root, {})
    subprocess.run(caught.value.hint.split("`")[1], shell=True, check=True)
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    assert DeviceCacheRegistry.load(root, {})


def test_path_neither_vets_nor_looks(root):
    registry = DeviceCacheRegistry(root, gpus(*LIKE), {})
    registry.provision()
    shutil.rmtree(root)
    assert registry.path(3) == f"{root}/triton/3"


def test_a_registry_takes_over_the_name_that_another_process_gave_meanwhile(root):
    """Two containers see different GPUs as index 0; both constructed before either provisioned."""
    first, second = (
        DeviceCacheRegistry(root, gpus(Device.parse({**device.as_json(), "index": 0})), {})
        for device in LIKE[:2]
    )
    assert first.path(0) == second.path(0)
    first.provision()
    done = second.provision()
    assert (names(first), names(second)) == (["0"], ["1"])
    assert done.created == ("1",)


def test_the_record_of_another_host_is_not_ours(root, monkeypatch):
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    monkeypatch.setattr(paths, "host_name", lambda: "another-node")
    with pytest.raises(
        RecordError, match=f"no record of host another-node .only of {os.uname().nodename}"
    ):
        DeviceCacheRegistry.load(root, {})
