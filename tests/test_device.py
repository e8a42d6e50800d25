from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucache.errors import ConfigurationError
from gpucache.machine.device import (
    Device,
    Snapshot,
    Status,
    Unavailable,
    fake_devices,
    requested_fakes,
)

INSTANCE = Device(
    uuid="MIG-22222222-c95f-5ef2-a935-195bd0094fbd",
    index=1,
    minor=1,
    pci_bus_id="00000000:0b:00.0",
    name="NVIDIA A100-SXM4-80GB MIG 3g.40gb",
    compute_capability=(8, 0),
    memory_bytes=40 << 30,
    parent_uuid="GPU-bbbbbbbb-0000-4000-8000-000000000001",
    slot=2,
    gpu_instance=5,
    compute_instance=0,
    multiprocessor_count=42,
)
SNAPSHOT = Snapshot(
    status=Status.OK,
    source="nvml",
    devices=(INSTANCE,),
    mig_parents=(Device(uuid="GPU-bbbbbbbb-0000-4000-8000-000000000001", index=1),),
    lost=(Unavailable(2, 15, "GPU is lost"),),
    hidden=(Unavailable(3, 4, "Insufficient Permissions"),),
    driver="580.95.05",
    cuda=13000,
)

_text = st.none() | st.text()
_number = st.none() | st.integers()
_devices = st.builds(
    Device,
    uuid=st.text(min_size=1),
    index=_number,
    minor=_number,
    pci_bus_id=_text,
    name=_text,
    compute_capability=st.none() | st.tuples(st.integers(), st.integers()),
    memory_bytes=_number,
    core_count=_number,
    parent_uuid=_text,
    slot=_number,
    gpu_instance=_number,
    compute_instance=_number,
    multiprocessor_count=_number,
    fake=st.booleans(),
)


# ---- a device


@settings(deadline=None, database=None)
@given(_devices)
def test_a_device_survives_json(device):
    assert Device.parse(json.loads(json.dumps(device.as_json()))) == device


@settings(deadline=None, database=None)
@given(_devices)
def test_a_device_survives_pickle(device):
    assert pickle.loads(pickle.dumps(device)) == device


def test_the_json_of_a_device_holds_what_is_known_and_nothing_else():
    assert Device(uuid="GPU-1", index=0).as_json() == {"uuid": "GPU-1", "index": 0}
    assert INSTANCE.as_json()["compute_capability"] == [8, 0]
    assert fake_devices(1)[0].as_json() == {
        "uuid": "FAKE-0",
        "index": 0,
        "name": "fake",
        "fake": True,
    }


def test_every_field_goes_through_json():
    """A field added to the class must be added to what `parse` reads."""
    full = dataclasses.replace(INSTANCE, core_count=6912, fake=True)
    assert full.as_json().keys() == {field.name for field in dataclasses.fields(Device)}
    assert Device.parse(full.as_json()) == full


def test_a_device_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        INSTANCE.index = 7
    assert hash(INSTANCE) == hash(dataclasses.replace(INSTANCE))


def test_fields_of_a_later_version_are_passed_over():
    assert Device.parse({"uuid": "GPU-1", "nvlink": [1, 2], "index": None}) == Device(uuid="GPU-1")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "GPU-1",
        ["GPU-1"],
        {},
        {"uuid": ""},
        {"uuid": None},
        {"uuid": 1},
        {"uuid": "GPU-1", "index": "0"},
        {"uuid": "GPU-1", "index": 1.0},
        {"uuid": "GPU-1", "index": True},
        {"uuid": "GPU-1", "slot": [2]},
        {"uuid": "GPU-1", "name": 5},
        {"uuid": "GPU-1", "fake": 1},
        {"uuid": "GPU-1", "fake": "true"},
        {"uuid": "GPU-1", "compute_capability": "9.0"},
        {"uuid": "GPU-1", "compute_capability": 9.0},
        {"uuid": "GPU-1", "compute_capability": [9]},
        {"uuid": "GPU-1", "compute_capability": [9, 0, 0]},
        {"uuid": "GPU-1", "compute_capability": [9, "0"]},
        {"uuid": "GPU-1", "compute_capability": [True, False]},
        {"uuid": "GPU-1", "compute_capability": []},
    ],
)
def test_what_is_not_a_device_is_refused(value):
    with pytest.raises(ValueError, match="device|capability"):
        Device.parse(value)


def test_a_directory_is_named_by_index_and_slot():
    assert Device(uuid="GPU-1", index=3).directory_name == "3"
    assert INSTANCE.directory_name == "1.2"
    assert dataclasses.replace(INSTANCE, index=0, slot=0).directory_name == "0.0"
    assert Device(uuid="GPU-1").directory_name is None


def test_an_instance_belongs_to_its_parents_gpu():
    assert INSTANCE.gpu_uuid == INSTANCE.parent_uuid
    assert Device(uuid="GPU-1").gpu_uuid == "GPU-1"


# ---- a snapshot


def test_a_snapshot_survives_pickle():
    assert pickle.loads(pickle.dumps(SNAPSHOT)) == SNAPSHOT


def test_the_json_of_a_snapshot_has_every_field():
    answer = json.loads(json.dumps(SNAPSHOT.with_order((INSTANCE.uuid,)).as_json()))
    assert answer == {
        "status": "ok",
        "source": "nvml",
        "fake": False,
        "detail": "",
        "advice": "",
        "devices": [INSTANCE.as_json()],
        "mig_parents": [{"uuid": "GPU-bbbbbbbb-0000-4000-8000-000000000001", "index": 1}],
        "lost": [{"index": 2, "code": 15, "text": "GPU is lost"}],
        "hidden": [{"index": 3, "code": 4, "text": "Insufficient Permissions"}],
        "driver": "580.95.05",
        "nvml": None,
        "cuda": 13000,
        "cuda_order": ["MIG-22222222-c95f-5ef2-a935-195bd0094fbd"],
    }


def test_an_order_changes_nothing_else():
    ordered = SNAPSHOT.with_order((INSTANCE.uuid,))
    assert ordered.cuda_order == (INSTANCE.uuid,)
    assert ordered.with_order(None) == SNAPSHOT


def test_a_snapshot_with_a_fake_device_is_fake_wherever_it_was_read():
    assert Snapshot(status=Status.REQUESTED, source="record", devices=fake_devices(1)).fake
    assert not SNAPSHOT.fake


# ---- fake devices


@pytest.mark.parametrize(
    ("text", "count", "name", "capability"),
    [
        ("8", 8, "fake", None),
        (" 8 ", 8, "fake", None),
        ("1024", 1024, "fake", None),
        ("2xH100", 2, "H100", None),
        ("8xH100:9.0", 8, "H100", (9, 0)),
        ("1xNVIDIA RTX 4090:8.9", 1, "NVIDIA RTX 4090", (8, 9)),
        ("4:12.1", 4, "fake", (12, 1)),
    ],
)
def test_fakes_are_asked_for_by_count_name_and_capability(text, count, name, capability):
    devices = requested_fakes({"GPUCACHE_FAKE_DEVICES": text}).devices
    assert [device.uuid for device in devices] == [f"FAKE-{index}" for index in range(count)]
    assert [device.index for device in devices] == list(range(count))
    assert {(device.name, device.compute_capability, device.fake) for device in devices} == {
        (name, capability, True)
    }


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        "1025",
        "99999",
        "8.0",
        "x",
        "8x",
        "8xH100:9",
        "8xH100:sm_90",
        "8:",
        "eight",
        "٨",
        "8,8",
    ],
)
def test_a_fake_machine_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigurationError) as caught:
        requested_fakes({"GPUCACHE_FAKE_DEVICES": text})
    assert (caught.value.name, caught.value.value) == ("GPUCACHE_FAKE_DEVICES", text)


def test_an_empty_request_for_fakes_is_none():
    assert requested_fakes({}) is None
    assert requested_fakes({"GPUCACHE_FAKE_DEVICES": ""}) is None


def test_requested_fakes_are_plainly_marked():
    snapshot = requested_fakes({"GPUCACHE_FAKE_DEVICES": "2"})
    assert (snapshot.status, snapshot.source, snapshot.fake) == (Status.REQUESTED, "fake", True)
    assert snapshot.detail == "GPUCACHE_FAKE_DEVICES is set to 2"
