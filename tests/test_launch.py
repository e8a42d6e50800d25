from __future__ import annotations

import pytest
from support.gpus import LIKE, gpus, show

from gpucache import (
    DeviceCacheRegistry,
    DeviceIndexError,
    RecordError,
    UnsafeDirectoryError,
    launch_environ,
    once,
)
from gpucache.directories import python_path
from gpucache.directories.local_rank import RANK_VARIABLES, local_rank, tasks_here

pytestmark = pytest.mark.usefixtures("bare_dev")

EIGHT = {"GPUCACHE_FAKE_DEVICES": "8"}
OURS = ["GPUCACHE_DIR", "GPUCACHE_DEVICE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"]


@pytest.fixture
def base(tmp_path):
    return {**EIGHT, "GPUCACHE_DIR": str(tmp_path / "root"), "PATH": "/bin"}


def actions(report):
    return {setting.name: setting.action for setting in report.settings}


# ---- which device


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        # torchrun's word is enough
        ({"LOCAL_RANK": "3"}, (3, "LOCAL_RANK")),
        ({"LOCAL_RANK": "0"}, (0, "LOCAL_RANK")),
        (
            {"LOCAL_RANK": "3", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "8"},
            (3, "LOCAL_RANK"),
        ),
        # mpirun
        (
            {"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            (2, "OMPI_COMM_WORLD_LOCAL_RANK"),
        ),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, (None, None)),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0"}, (None, None)),
        ({"MPI_LOCALRANKID": "5", "MPI_LOCALNRANKS": "8"}, (5, "MPI_LOCALRANKID")),
        ({"MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}, (None, None)),
        ({"PMI_LOCAL_RANK": "1", "MPI_LOCALNRANKS": "2"}, (1, "PMI_LOCAL_RANK")),
        ({"PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}, (1, "PMI_LOCAL_RANK")),
        ({"PMI_LOCAL_RANK": "0", "PMI_LOCAL_SIZE": "1"}, (None, None)),
        (
            {"MV2_COMM_WORLD_LOCAL_RANK": "6", "MV2_COMM_WORLD_LOCAL_SIZE": "8"},
            (6, "MV2_COMM_WORLD_LOCAL_RANK"),
        ),
        ({"MV2_COMM_WORLD_LOCAL_RANK": "0", "MV2_COMM_WORLD_LOCAL_SIZE": "1"}, (None, None)),
        ({"HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}, (1, "HOROVOD_LOCAL_RANK")),
        # HPE Cray
        ({"PALS_LOCAL_RANKID": "3", "PALS_LOCAL_SIZE": "4"}, (3, "PALS_LOCAL_RANKID")),
        ({"PALS_LOCAL_RANKID": "0", "PALS_LOCAL_SIZE": "1"}, (None, None)),
        ({"PALS_LOCAL_RANKID": "3"}, (None, None)),
        ({"PMI_LOCAL_RANK": "2", "PALS_LOCAL_SIZE": "4"}, (2, "PMI_LOCAL_RANK")),
        ({"PMIX_LOCAL_RANK": "2", "PALS_LOCAL_SIZE": "4"}, (2, "PMIX_LOCAL_RANK")),
        ({"PMIX_LOCAL_RANK": "2", "PMIX_LOCAL_SIZE": "4"}, (2, "PMIX_LOCAL_RANK")),
        # jsrun
        (
            {"JSM_NAMESPACE_LOCAL_RANK": "5", "JSM_NAMESPACE_LOCAL_SIZE": "6"},
            (5, "JSM_NAMESPACE_LOCAL_RANK"),
        ),
        ({"JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_LOCAL_SIZE": "1"}, (None, None)),
        # Flux: the tasks of all nodes
        (
            {"FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_SIZE": "8", "FLUX_JOB_NNODES": "2"},
            (1, "FLUX_TASK_LOCAL_ID"),
        ),
        (
            {"FLUX_TASK_LOCAL_ID": "0", "FLUX_JOB_SIZE": "3", "FLUX_JOB_NNODES": "2"},
            (0, "FLUX_TASK_LOCAL_ID"),
        ),
        (
            {"FLUX_TASK_LOCAL_ID": "0", "FLUX_JOB_SIZE": "4", "FLUX_JOB_NNODES": "4"},
            (None, None),
        ),
        ({"FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_SIZE": "4"}, (1, "FLUX_TASK_LOCAL_ID")),
        (
            {"FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_SIZE": "4", "FLUX_JOB_NNODES": "0"},
            (1, "FLUX_TASK_LOCAL_ID"),
        ),
        # one launcher in another: the inner one, of several tasks, holds
        (
            {
                "OMPI_COMM_WORLD_LOCAL_RANK": "2",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "2",
            },
            (2, "OMPI_COMM_WORLD_LOCAL_RANK"),
        ),
        (
            {
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
                "FLUX_TASK_LOCAL_ID": "3",
                "FLUX_JOB_SIZE": "4",
                "FLUX_JOB_NNODES": "1",
            },
            (3, "FLUX_TASK_LOCAL_ID"),
        ),
        # srun: one task a node may be a launcher itself
        ({"SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "8"}, (3, "SLURM_LOCALID")),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}, (None, None)),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, (None, None)),
        (
            {"SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"},
            (3, "SLURM_LOCALID"),
        ),
        (
            {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "2"},
            (None, None),
        ),
        (
            {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "0"},
            (1, "SLURM_LOCALID"),
        ),
        (
            {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,2", "SLURM_NODEID": "1"},
            (1, "SLURM_LOCALID"),
        ),
        (
            {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,2", "SLURM_NODEID": "7"},
            (None, None),
        ),
        (
            {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "7"},
            (1, "SLURM_LOCALID"),
        ),
        ({"SLURM_LOCALID": "0"}, (None, None)),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "many"}, (None, None)),
        (
            {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "999999(x999999)"},
            (1, "SLURM_LOCALID"),
        ),
        # not numbers
        ({}, (None, None)),
        ({"LOCAL_RANK": ""}, (None, None)),
        ({"LOCAL_RANK": "-1"}, (None, None)),
        (
            {"LOCAL_RANK": "x", "SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "4"},
            (2, "SLURM_LOCALID"),
        ),
    ],
)
def test_the_local_rank_of_each_launcher(environ, expected):
    assert local_rank(environ) == expected


@pytest.mark.parametrize(
    ("environ", "tasks"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_RANK": "1"}, 0),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, 0),
        (
            {
                "SLURM_LOCALID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
                "SLURM_NODEID": "2",
            },
            2,
        ),
    ],
)
def test_how_many_tasks_a_launcher_has_put_on_the_node(environ, tasks):
    assert tasks_here(environ) == tasks


@pytest.mark.parametrize(
    ("fakes", "architectures"),
    [("2xH100:9.0", ("sm_90",)), ("1xB200:10.0", ("sm_100",)), ("2", ())],
)
def test_the_architectures_of_the_devices_are_told_where_they_are_known(base, fakes, architectures):
    _, report = launch_environ({**base, "GPUCACHE_FAKE_DEVICES": fakes})
    assert report.architectures == architectures


def test_what_tells_a_rank_from_its_launcher_knows_the_variable_of_each_launcher():
    ranks = dict.fromkeys(RANK_VARIABLES, "0")
    others = {"RANK": "0", "LOCAL_WORLD_SIZE": "8", "SLURM_JOB_ID": "1", "HOME": "/"}
    assert once._ranks([*ranks.items(), *others.items()]) == ranks
    shell = {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert once._ranks(shell.items()) == {}


def test_the_rank_chooses_the_device(base, tmp_path):
    environ, report = launch_environ({**base, "LOCAL_RANK": "5"})
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "5")
    assert environ["GPUCACHE_DEVICE"] == "FAKE-5"
    assert report.device == 5
    assert "LOCAL_RANK" in report.choice
    assert (tmp_path / "root" / "triton" / "5").is_dir()


def test_the_one_visible_device_is_chosen_without_a_rank(base, tmp_path):
    environ, _ = launch_environ({**base, "CUDA_VISIBLE_DEVICES": "6", "LOCAL_RANK": "3"})
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "6")


@pytest.mark.parametrize("more", [{}, {"LOCAL_RANK": "8"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_without_a_device_only_the_root_is_set(base, tmp_path, more):
    environ, report = launch_environ({**base, **more})
    assert actions(report) == {
        "GPUCACHE_DIR": "kept",
        "TORCHINDUCTOR_CACHE_DIR": "set",
        "PYTHONPATH": "set",
    }
    assert environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "root")
    assert "TRITON_CACHE_DIR" not in environ
    assert report.device is None
    assert "root only" in report.choice


def test_a_device_that_is_asked_for_must_exist(base):
    assert launch_environ(base, device=7)[0]["GPUCACHE_DEVICE"] == "FAKE-7"
    with pytest.raises(DeviceIndexError):
        launch_environ(base, device=8)


def test_one_srun_task_a_node_leaves_the_choice_to_the_launcher_inside(base):
    outer = {**base, "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}
    environ, _ = launch_environ(outer)
    seen = {
        launch_environ({**environ, "LOCAL_RANK": str(rank)})[0]["TRITON_CACHE_DIR"]
        for rank in range(8)
    }
    assert len(seen) == 8


# ---- whose value wins


def test_what_the_user_set_is_kept_and_said(base):
    environ, report = launch_environ({**base, "TRITON_CACHE_DIR": "/mine", "LOCAL_RANK": "1"})
    assert environ["TRITON_CACHE_DIR"] == "/mine"
    (kept,) = (setting for setting in report.settings if setting.name == "TRITON_CACHE_DIR")
    assert (kept.action, kept.value) == ("kept", "/mine")
    assert kept.by == "user"
    assert "you set it" in kept.reason
    assert {setting.by for setting in report.settings if setting is not kept} == {"gpucache"}
    assert "TRITON_CACHE_DIR" not in environ["GPUCACHE_SET"]


def test_force_replaces_what_the_user_set(base, tmp_path):
    environ, report = launch_environ(
        {**base, "TRITON_CACHE_DIR": "/mine", "LOCAL_RANK": "1"}, force=True
    )
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "1")
    assert actions(report)["TRITON_CACHE_DIR"] == "replaced"


def test_force_chooses_another_device_than_the_one_that_the_user_has_pinned(base):
    pinned = {**base, "GPUCACHE_DEVICE": "FAKE-3"}
    environ, report = launch_environ(pinned, device=5, force=True)
    assert (environ["GPUCACHE_DEVICE"], report.device_count) == ("FAKE-5", 8)
    assert actions(report)["GPUCACHE_DEVICE"] == "replaced"
    assert report.warnings == launch_environ(base, device=5)[1].warnings
    environ, _ = launch_environ({**pinned, "LOCAL_RANK": "5"}, force=True)
    assert environ["GPUCACHE_DEVICE"] == "FAKE-3", "no other device is asked for"


def test_an_empty_variable_counts_as_unset(base, tmp_path):
    environ, report = launch_environ({**base, "TRITON_CACHE_DIR": "", "LOCAL_RANK": "1"})
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "1")
    assert actions(report)["TRITON_CACHE_DIR"] == "set"


def test_an_inner_launch_replaces_exactly_what_the_outer_one_set(base, tmp_path):
    outer, _ = launch_environ({**base, "TORCHINDUCTOR_CACHE_DIR": "/mine"}, device=2)
    assert [mark.split(":")[0] for mark in outer["GPUCACHE_SET"].split(",")] == [
        "GPUCACHE_DEVICE",
        "TRITON_CACHE_DIR",
    ]
    inner, report = launch_environ({**outer, "LOCAL_RANK": "5"})
    assert inner["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "5")
    assert inner["GPUCACHE_DEVICE"] == "FAKE-5"
    assert inner["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    assert actions(report)["TRITON_CACHE_DIR"] == "replaced"


def test_an_inner_launch_without_a_device_removes_the_outer_ones(base):
    outer, _ = launch_environ(base, device=2)
    inner, report = launch_environ(outer)
    assert "TRITON_CACHE_DIR" not in inner
    assert "GPUCACHE_DEVICE" not in inner
    assert actions(report)["TRITON_CACHE_DIR"] == "removed"


def test_a_third_launch_still_knows_what_the_first_one_set(base, tmp_path):
    """The second finds every value right and sets nothing; the mark must survive it."""
    first, _ = launch_environ(base, device=2)
    second, report = launch_environ(first, device=2)
    assert set(actions(report).values()) == {"kept"}
    third, _ = launch_environ(second, device=4)
    assert third["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "4")


def test_a_device_pinned_by_the_user_is_the_device(base, tmp_path):
    environ, _ = launch_environ({**base, "GPUCACHE_DEVICE": "FAKE-3", "LOCAL_RANK": "1"})
    assert environ["GPUCACHE_DEVICE"] == "FAKE-3"
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "3")
    with pytest.raises(RecordError, match="FAKE-99"):
        launch_environ({**base, "GPUCACHE_DEVICE": "FAKE-99"})


@pytest.mark.parametrize("mask", ["5", "5,6", "FAKE"])
def test_a_mask_that_contradicts_the_users_pin_is_told_and_the_pin_wins(base, tmp_path, mask):
    pinned = {**base, "GPUCACHE_DEVICE": "FAKE-3"}
    environ, report = launch_environ({**pinned, "CUDA_VISIBLE_DEVICES": mask})
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "3")
    told = [warning for warning in report.warnings if "GPUCACHE_DEVICE=FAKE-3" in warning]
    if mask == "FAKE":  # shows nothing
        assert told == []
        return
    (warning,) = told
    assert f"CUDA_VISIBLE_DEVICES={mask} shows FAKE-5" in warning
    assert "GPUCACHE_DEVICE wins" in warning
    assert "unset GPUCACHE_DEVICE" in warning


@pytest.mark.parametrize("mask", ["3", "1,3", "", "-1", None])
def test_a_mask_that_shows_the_pinned_device_or_none_at_all_contradicts_nothing(base, mask):
    environ = {**base, "GPUCACHE_DEVICE": "FAKE-3"}
    if mask is not None:
        environ["CUDA_VISIBLE_DEVICES"] = mask
    _, report = launch_environ(environ)
    assert not [warning for warning in report.warnings if "wins" in warning]


def test_the_pin_of_an_outer_launch_contradicts_nothing(base):
    outer, _ = launch_environ(base, device=2)
    inner, report = launch_environ({**outer, "CUDA_VISIBLE_DEVICES": "5"})
    assert inner["GPUCACHE_DEVICE"] == "FAKE-5"
    assert not [warning for warning in report.warnings if "wins" in warning]


def test_where_the_plug_in_cannot_be_turned_on_that_is_told(base, monkeypatch):
    monkeypatch.setattr(python_path, "SITE", "/opt/a:b/gpucache/site")
    environ, report = launch_environ(base, device=1)
    assert "PYTHONPATH" not in environ
    (warning,) = [text for text in report.warnings if "PYTHONPATH" in text]
    assert warning.startswith(
        "each rank compiles each kernel: /opt/a:b/gpucache/site has a ':' in it"
    )
    assert not [text for text in launch_environ(base, plugin=False)[1].warnings if "rank" in text]


def test_disabled_nothing_changes(base, tmp_path):
    environ, report = launch_environ({**base, "GPUCACHE_DISABLE": "1", "LOCAL_RANK": "1"})
    assert environ == {**base, "GPUCACHE_DISABLE": "1", "LOCAL_RANK": "1"}
    assert "GPUCACHE_DISABLE" in report.choice
    assert not (tmp_path / "root").exists()


def test_the_base_is_not_changed(base):
    before = dict(base)
    launch_environ(base, device=1)
    assert base == before


def test_an_unsafe_root_is_an_error(base, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root").chmod(0o777)
    with pytest.raises(UnsafeDirectoryError):
        launch_environ(base)


# ---- the record, when it is current


@pytest.fixture
def no_nvml(monkeypatch):
    monkeypatch.setattr(
        "gpucache.machine.nvml.discover", lambda *_, **__: pytest.fail("NVML was asked")
    )


def test_a_current_record_is_used_without_asking_nvml(tmp_path, no_nvml, bare_dev):
    root = str(tmp_path / "root")
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    show(bare_dev, *LIKE)
    environ, _ = launch_environ({"GPUCACHE_DIR": root, "LOCAL_RANK": "4"})
    assert environ["GPUCACHE_DEVICE"] == LIKE[4].uuid


def test_a_missing_directory_is_made_again_from_the_record(tmp_path, no_nvml, bare_dev):
    root = tmp_path / "root"
    DeviceCacheRegistry(str(root), gpus(*LIKE), {}).provision()
    show(bare_dev, *LIKE)
    (root / "triton" / "4").rmdir()
    launch_environ({"GPUCACHE_DIR": str(root), "LOCAL_RANK": "4"})
    assert (root / "triton" / "4").is_dir()


def test_a_mask_that_hides_all_is_answered_from_the_record_too(tmp_path, no_nvml, bare_dev):
    root = str(tmp_path / "root")
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    show(bare_dev, *LIKE)
    environ, _ = launch_environ({"GPUCACHE_DIR": root, "CUDA_VISIBLE_DEVICES": ""})
    assert "GPUCACHE_DEVICE" not in environ


def test_on_a_host_without_gpus_among_hosts_with_gpus_only_the_root_is_set(
    tmp_path, on_machine, monkeypatch
):
    root = tmp_path / "root"
    DeviceCacheRegistry(root, gpus(*LIKE), {}).provision()
    monkeypatch.setattr("gpucache.layout.paths.host_name", lambda: "login")
    on_machine("init_error = DRIVER_NOT_LOADED\n")
    environ, report = launch_environ({"GPUCACHE_DIR": str(root)})
    assert "TRITON_CACHE_DIR" not in environ
    assert "GPUCACHE_DEVICE" not in environ
    assert report.choice == "no GPU here, among hosts with GPUs: the root only"
    assert "no record of login is made" in report.warnings[0]
    assert not list(root.glob("gpucache/v1/devices/login*"))
    with pytest.raises(DeviceIndexError, match="no GPU here"):
        launch_environ({"GPUCACHE_DIR": str(root)}, device=0)


def test_each_task_of_a_cgroup_gets_its_own_gpu_starting_from_nothing(tmp_path, on_machine, conf):
    """One after another, each sees another GPU as index 0; there are no nodes here to tell them apart by."""
    root = tmp_path / "root"
    seen = []
    for number in range(4):
        on_machine(
            f"[gpu]\nuuid = {LIKE[number].uuid}\nbus_id = {LIKE[number].pci_bus_id}\nminor = {number}\n"
        )
        environ, _ = launch_environ({"GPUCACHE_DIR": str(root)})
        seen.append((environ["TRITON_CACHE_DIR"], environ["GPUCACHE_DEVICE"]))
    assert seen == [(str(root / "triton" / str(number)), LIKE[number].uuid) for number in range(4)]


def test_a_guessed_order_is_told(tmp_path, on_machine):
    on_machine("mixed")
    _, report = launch_environ({"GPUCACHE_DIR": str(tmp_path / "root"), "LOCAL_RANK": "0"})
    assert "libcuda did not say in which order" in report.warnings[0]


def test_what_the_user_set_between_two_launches_is_kept(base):
    outer, _ = launch_environ(base, device=2)
    inner, report = launch_environ({**outer, "TRITON_CACHE_DIR": "/user"}, device=1)
    assert inner["TRITON_CACHE_DIR"] == "/user"
    assert actions(report)["TRITON_CACHE_DIR"] == "kept"


def test_a_root_that_is_given_wins(base, tmp_path):
    environ, report = launch_environ(base, device=1, root=str(tmp_path / "other"))
    assert environ["GPUCACHE_DIR"] == environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "other")
    assert actions(report)["GPUCACHE_DIR"] == "replaced"
    assert "GPUCACHE_DIR:" in environ["GPUCACHE_SET"]


def test_a_relative_root_is_made_absolute_for_the_command(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ, _ = launch_environ({**base, "GPUCACHE_DIR": "./root/"})
    assert environ["GPUCACHE_DIR"] == str(tmp_path / "root")


@pytest.mark.parametrize("stale", ["partial view", "torn", "unasked fakes", "lost", "unknown uuid"])
def test_a_record_that_is_not_current_is_renewed_through_nvml(
    stale, tmp_path, on_machine, bare_dev
):
    root = tmp_path / "root"
    on_machine("h100x4")
    seen = gpus(*LIKE)
    if stale == "unasked fakes":
        on_machine("init_error = DRIVER_NOT_LOADED\n")
        seen = None
    DeviceCacheRegistry(str(root), seen, {}).provision()
    show(bare_dev, *(LIKE[:1] if stale == "partial view" else LIKE))
    mask = {"CUDA_VISIBLE_DEVICES": "GPU-9942190a"} if stale == "unknown uuid" else {}
    if stale == "torn":
        record = next((root / "gpucache/v1/devices").iterdir())
        record.write_bytes(record.read_bytes()[:40])
    elif stale == "lost":
        on_machine("odd")
        DeviceCacheRegistry(str(root), None, {}).provision()
    on_machine("h100x4")
    environ, _ = launch_environ({"GPUCACHE_DIR": str(root), "LOCAL_RANK": "0", **mask})
    assert environ["GPUCACHE_DEVICE"] == "GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1"
