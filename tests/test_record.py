"""What a host's record keeps of each look at it, and what a reader makes of a file that is not one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucache import Device, DeviceCacheRegistry, RecordError, Snapshot, Status, Unavailable
from gpucache.directories.merging import directories, merge
from gpucache.directories.record import (
    Listed,
    Record,
    parse_record,
    read_record,
    readable,
)
from gpucache.errors import DiscoveryError
from gpucache.layout import paths
from gpucache.machine import device_files
from gpucache.machine.device import fake_devices
from gpucache.machine.visible import visible_devices

HOST = "node7"
EIGHT = tuple(
    Device(
        uuid=f"GPU-{number:08x}-0000-4000-8000-000000000000",
        index=number,
        pci_bus_id=f"00000000:{16 + number:02x}:00.0",
        name="NVIDIA H100 80GB HBM3",
        compute_capability=(9, 0),
        memory_bytes=80 * 2**30,
    )
    for number in range(8)
)


def view(*devices: Device, **facts: object) -> Snapshot:
    return Snapshot(
        **{
            "status": Status.OK,
            "source": "nvml",
            "devices": devices,
            "driver": "580.95.05",
            **facts,
        }
    )


def container(*devices: Device, **facts: object) -> Snapshot:
    """What NVML shows where only these GPUs were let in: numbered from 0."""
    numbers = {
        uuid: index
        for index, uuid in enumerate(dict.fromkeys(device.gpu_uuid for device in devices))
    }
    return view(
        *(dataclasses.replace(device, index=numbers[device.gpu_uuid]) for device in devices),
        **facts,
    )


def record(*snapshots: Snapshot, known: Record | None = None) -> Record:
    """What is known after these looks, one after the other; a look that changes nothing is one that was not needed."""
    for snapshot in snapshots:
        known = merge(known, snapshot, HOST)
        assert merge(known, snapshot, HOST) == known
    assert known is not None
    return known


def indices(known: Record) -> dict[str, int | None]:
    return {entry.directory: entry.device.index for entry in known.devices}


def present(known: Record) -> list[str]:
    return [entry.directory for entry in known.devices if entry.present]


FULL = view(*EIGHT)
FAKE = Snapshot(status=Status.NO_LIBRARY, source="fake", devices=fake_devices(2))


# ---- names


def test_a_device_is_named_by_its_number():
    known = record(FULL)
    assert known.names == {gpu.uuid: str(gpu.index) for gpu in EIGHT}
    assert directories(known, FULL) == known.names
    assert len(known.gpus) + len(known.lost) == 8
    assert not known.renumbered


def test_entries_stand_in_the_order_of_their_numbers():
    many = [
        dataclasses.replace(EIGHT[0], uuid=f"GPU-{index}", index=index) for index in (10, 9, 2, 0)
    ]
    assert list(indices(record(view(*many)))) == ["0", "2", "9", "10"]


def test_a_taken_number_gives_the_next_free_one():
    known = record(view(EIGHT[0], EIGHT[1]), container(EIGHT[5]))
    assert known.names[EIGHT[5].uuid] == "2"
    assert directories(known, container(EIGHT[5])) == {EIGHT[5].uuid: "2"}


def test_numbers_that_are_free_go_to_those_who_own_them_first():
    """GPU 0's number is taken; the others keep theirs, and the newcomer gets what is left."""
    known = record(container(EIGHT[7]), view(*EIGHT[:3]))
    assert known.names == {
        EIGHT[7].uuid: "0",
        EIGHT[1].uuid: "1",
        EIGHT[2].uuid: "2",
        EIGHT[0].uuid: "3",
    }


def test_a_device_without_a_number_gets_the_next_free_one():
    unnumbered = dataclasses.replace(EIGHT[3], index=None)
    assert record(view(unnumbered, EIGHT[0])).names == {EIGHT[0].uuid: "0", unnumbered.uuid: "1"}


def test_a_name_is_never_given_again():
    """Not even when its device has been replaced for good."""
    new = dataclasses.replace(EIGHT[3], uuid="GPU-new")
    known = record(FULL, view(*EIGHT[:3], new, *EIGHT[4:]), view(*EIGHT[:3], new, *EIGHT[4:]))
    assert known.names == {gpu.uuid: str(gpu.index) for gpu in EIGHT} | {"GPU-new": "8"}
    newer = dataclasses.replace(EIGHT[3], uuid="GPU-newer")
    assert record(view(*EIGHT[:3], newer, *EIGHT[4:]), known=known).names["GPU-newer"] == "9"


def test_what_directories_promises_is_what_merging_gives():
    known = record(container(EIGHT[4]))
    for look in (FULL, container(EIGHT[2], EIGHT[3]), container(EIGHT[4])):
        assert directories(known, look) == directories(record(look, known=known), look)


def test_numbers_are_a_renumbering_only_when_two_devices_share_one():
    assert record(container(EIGHT[3]), container(EIGHT[4])).renumbered
    assert not record(container(EIGHT[3]), container(EIGHT[3], EIGHT[4])).renumbered


# ---- one host seen in parts


@settings(max_examples=60, deadline=None)
@given(first=st.permutations(range(8)), second=st.permutations(range(8)))
def test_eight_tasks_that_each_see_another_gpu_as_0(first, second):
    """Eight directories; and when all have been there once, no order of coming again changes a byte."""
    known = record(*(container(EIGHT[number]) for number in first))
    assert sorted(known.names.values()) == list("01234567")
    assert present(known) == list("01234567")
    assert len(known.gpus) + len(known.lost) == 8
    assert known.renumbered
    again = record(*(container(EIGHT[number]) for number in second), known=known)
    assert again.dumps() == known.dumps()
    for gpu in EIGHT:
        assert directories(again, container(gpu)) == {gpu.uuid: known.names[gpu.uuid]}


def test_a_full_view_renews_the_numbers_and_keeps_the_names():
    parts = record(*(container(gpu) for gpu in reversed(EIGHT)))
    whole = record(FULL, known=parts)
    assert whole.names == parts.names
    assert indices(whole) == {str(7 - gpu.index): gpu.index for gpu in EIGHT}
    assert not whole.renumbered


def test_a_partial_view_leaves_a_full_one_alone():
    known = record(FULL)
    for look in (container(EIGHT[5]), container(EIGHT[6], EIGHT[2]), container(*EIGHT[1:])):
        assert record(look, known=known).dumps() == known.dumps()


def test_hidden_gpus_make_a_view_partial_even_where_nothing_was_known():
    """A cgroup hides by permission; what is not shown is then not gone."""
    hidden = (Unavailable(1, 4, "no permission"),)
    known = record(view(*EIGHT[:2]))
    assert present(record(view(EIGHT[0], hidden=hidden), known=known)) == ["0", "1"]
    moved = dataclasses.replace(EIGHT[1], index=0)
    assert indices(record(view(moved, hidden=hidden), known=known)) == {"0": 0, "1": 1}


def test_a_partial_view_brings_news_of_everything_but_the_number():
    better = dataclasses.replace(EIGHT[5], index=0, core_count=16896)
    entry = record(FULL, view(better)).devices[5]
    assert entry == Listed("5", dataclasses.replace(better, index=5))


def test_newcomers_in_a_partial_view_join_the_known():
    known = record(view(*EIGHT[:4]), container(*EIGHT[4:6]))
    assert known.names == {gpu.uuid: str(gpu.index) for gpu in EIGHT[:6]}
    assert len(known.gpus) + len(known.lost) == 6


def test_a_view_of_other_gpus_takes_none_away():
    known = record(container(*EIGHT[:4]), container(*EIGHT[4:]))
    assert present(known) == list("01234567")


# ---- GPUs that go and come back


def test_a_replaced_gpu_is_absent_and_keeps_its_name():
    """Another GPU sits on its bus; if it comes back elsewhere, its directory is waiting."""
    new = dataclasses.replace(EIGHT[3], uuid="GPU-new")
    swapped = view(*EIGHT[:3], new, *EIGHT[4:])
    known = record(FULL, swapped)
    assert present(known) == ["0", "1", "2", "4", "5", "6", "7", "8"]
    assert known.names[EIGHT[3].uuid] == "3"
    assert len(known.gpus) + len(known.lost) == 8
    assert [gpu.uuid for gpu in known.snapshot().devices] == [
        gpu.uuid for gpu in (*EIGHT[:3], *EIGHT[4:], new)
    ]
    assert not known.renumbered
    back = record(FULL, known=known)
    assert present(back) == list("01234567")


def test_a_replacement_is_noticed_in_a_partial_view_too():
    new = dataclasses.replace(EIGHT[3], uuid="GPU-new")
    known = record(FULL, container(new))
    assert present(known) == ["0", "1", "2", "4", "5", "6", "7", "8"]
    assert len(known.gpus) + len(known.lost) == 8


def test_a_lost_gpu_is_absent_until_it_recovers():
    lost = (Unavailable(2, 15, "GPU is lost"),)
    healthy = record(FULL)
    sick = record(view(*EIGHT[:2], *EIGHT[3:], lost=lost), known=healthy)
    assert present(sick) == ["0", "1", "3", "4", "5", "6", "7"]
    assert sick.lost == lost
    assert len(sick.gpus) + len(sick.lost) == 8
    assert sick.snapshot().lost == lost
    assert record(FULL, known=sick) == healthy


def test_a_gpu_that_was_lost_at_the_first_look_gets_its_own_number():
    known = record(view(*EIGHT[:2], *EIGHT[3:], lost=(Unavailable(2, 15, "GPU is lost"),)), FULL)
    assert known == record(FULL)


def test_a_lost_gpu_seen_from_a_container_is_not_the_hosts_news():
    known = record(FULL, container(EIGHT[0], lost=(Unavailable(1, 15, "GPU is lost"),)))
    assert known == record(FULL)


def test_gpus_that_moved_on_the_bus_are_the_same_gpus():
    moved = [
        dataclasses.replace(gpu, pci_bus_id=f"00000000:{17 + gpu.index:02x}:00.0") for gpu in EIGHT
    ]
    known = record(FULL, view(*moved))
    assert known.names == record(FULL).names
    assert present(known) == list("01234567")
    assert [entry.device for entry in known.devices] == moved


# ---- MIG


def instance(
    number: int, slot: int, gi: int, uuid: str | None = None, parent: Device = EIGHT[1]
) -> Device:
    return dataclasses.replace(
        parent,
        uuid=uuid or f"MIG-{number}",
        parent_uuid=parent.uuid,
        slot=slot,
        gpu_instance=gi,
        compute_instance=0,
    )


PARTS = (instance(1, slot=0, gi=3), instance(2, slot=2, gi=5))


def partitioned(*parts: Device) -> Snapshot:
    """Eight GPUs, of which number 1 is in MIG mode."""
    return view(EIGHT[0], *parts, *EIGHT[2:], mig_parents=(EIGHT[1],))


def test_mig_switched_on_and_off():
    """Its GPU is absent meanwhile, and every name stays."""
    known = record(FULL)
    on = record(partitioned(*PARTS), known=known)
    assert present(on) == ["0", "1.0", "1.2", "2", "3", "4", "5", "6", "7"]
    assert on.names["MIG-2"] == "1.2"
    assert len(on.gpus) + len(on.lost) == 8
    assert on.mig_parents == (EIGHT[1],)
    assert not on.renumbered
    off = record(FULL, known=on)
    assert present(off) == list("01234567")
    assert off.mig_parents == ()
    assert off.names == on.names
    assert record(partitioned(*PARTS), known=off) == on


@pytest.mark.parametrize("bus", [EIGHT[1].pci_bus_id, None])
def test_mig_switched_on_hides_the_gpu_whether_or_not_its_bus_is_known(bus):
    plain = dataclasses.replace(EIGHT[1], pci_bus_id=bus)
    parts = [dataclasses.replace(part, pci_bus_id=bus) for part in PARTS]
    known = record(view(EIGHT[0], plain), view(EIGHT[0], *parts, mig_parents=(plain,)))
    assert present(known) == ["0", "1.0", "1.2"]


def test_mig_mode_without_an_instance_is_a_gpu_without_a_device():
    known = record(FULL, partitioned())
    assert present(known) == ["0", "2", "3", "4", "5", "6", "7"]
    assert len(known.gpus) + len(known.lost) == 8


def test_a_mig_instance_replaced_in_its_place_is_absent():
    new = instance(3, slot=2, gi=5)
    known = record(partitioned(*PARTS), partitioned(PARTS[0], new))
    assert present(known) == ["0", "1.0", "1.1", "2", "3", "4", "5", "6", "7"]
    assert known.names["MIG-2"] == "1.2"
    assert known.names["MIG-3"] == "1.1", "the next free number of its GPU: slots have holes"


def test_a_mig_instance_in_another_place_leaves_the_first_present():
    """Nothing tells whether the first is gone, or only hidden from this process."""
    known = record(partitioned(*PARTS), partitioned(PARTS[0], instance(3, slot=1, gi=9)))
    assert present(known) == ["0", "1.0", "1.1", "1.2", "2", "3", "4", "5", "6", "7"]


def test_containers_with_a_mig_instance_each():
    """Each is number 0 in its container; the record has both, whoever comes first, and stays as it is."""
    looks = [
        container(part, mig_parents=(dataclasses.replace(EIGHT[1], index=0),)) for part in PARTS
    ]
    for order in (looks, looks[::-1]):
        known = record(*order)
        assert len(set(known.names.values())) == 2
        assert len(present(known)) == 2
        assert len(known.gpus) + len(known.lost) == 1
        assert record(*looks, known=known).dumps() == known.dumps()


def test_a_container_does_not_renumber_a_gpu_in_mig_mode():
    known = record(partitioned(*PARTS))
    inside = container(PARTS[1], mig_parents=(dataclasses.replace(EIGHT[1], index=0),))
    assert record(inside, known=known).dumps() == known.dumps()


def test_instances_of_unknown_place_do_not_displace_each_other():
    nowhere = [
        dataclasses.replace(part, gpu_instance=None, compute_instance=None) for part in PARTS
    ]
    known = record(view(*nowhere, mig_parents=(EIGHT[1],)))
    assert len(present(record(view(nowhere[0], mig_parents=(EIGHT[1],)), known=known))) == 2


def test_a_lost_gpu_takes_its_instances_along():
    """One GPU is lost, though two devices are gone."""
    lost = (Unavailable(1, 15, "GPU is lost"),)
    known = record(partitioned(*PARTS), view(EIGHT[0], *EIGHT[2:], lost=lost))
    assert present(known) == ["0", "2", "3", "4", "5", "6", "7"]
    assert known.lost == lost
    assert len(known.gpus) + len(known.lost) == 8


# ---- libcuda's order


def order(*numbers: int) -> tuple[str, ...]:
    return tuple(EIGHT[number].uuid for number in numbers)


def test_an_order_stays_until_a_newer_one():
    known = record(FULL.with_order(order(7, 6, 5, 4, 3, 2, 1, 0)), FULL)
    assert known.cuda_order == order(7, 6, 5, 4, 3, 2, 1, 0)
    assert record(FULL.with_order(order(*range(8))), known=known).cuda_order == order(*range(8))


def test_an_order_of_a_part_does_not_replace_that_of_the_whole():
    known = record(FULL.with_order(order(*range(8))))
    assert record(container(*EIGHT[4:]).with_order(order(5, 4, 6, 7)), known=known) == known


def test_a_lost_gpu_makes_libcudas_order_of_the_others_the_one_that_counts():
    """The order of all eight no longer fits, so without the new one libcuda would be asked for ever."""
    sick = view(*EIGHT[:7], lost=(Unavailable(7, 15, "GPU is lost"),)).with_order(
        order(6, 5, 4, 3, 2, 1, 0)
    )
    known = record(FULL.with_order(order(*range(8))), sick)
    assert known.cuda_order == sick.cuda_order
    assert visible_devices(known.snapshot(), {}).how == "driver"


# ---- fakes


def test_a_real_record_replaces_a_fake_one():
    known = record(FAKE)
    assert known.fake
    assert known.names == {"FAKE-0": "0", "FAKE-1": "1"}
    assert record(FULL, known=known) == record(FULL)


def test_a_fake_never_replaces_a_real_one():
    known = record(FULL)
    assert merge(known, FAKE, HOST) is known
    assert merge(known, record(FAKE).snapshot(), HOST) is known


def test_a_fake_record_is_replaced_whole():
    more = dataclasses.replace(FAKE, status=Status.REQUESTED, devices=fake_devices(4))
    assert record(FAKE, more) == record(more)
    assert record(more, FAKE) == record(FAKE)


def test_fakes_beside_a_real_record_keep_their_own_numbers():
    known = record(*(container(gpu) for gpu in reversed(EIGHT)))
    assert directories(known, FAKE) == {"FAKE-0": "0", "FAKE-1": "1"}


@pytest.mark.parametrize(
    "look",
    [
        FULL,
        FAKE,
        partitioned(*PARTS),
        view(*EIGHT[:7], lost=(Unavailable(7, 15, "lost"),)).with_order(order(0)),
    ],
    ids=["real", "fake", "mig", "lost"],
)
def test_a_record_learns_nothing_from_itself(look):
    known = record(look)
    assert merge(known, known.snapshot(), HOST) is known
    later = record(view(*EIGHT, driver="590.1"), known=known)
    if not look.fake:
        assert merge(later, known.snapshot(), HOST) is later, (
            "what was read from a record may be old"
        )


def test_a_record_can_be_made_again_from_its_snapshot():
    """Somebody removed the file under a running worker."""
    known = record(*(container(gpu) for gpu in EIGHT))
    assert merge(None, known.snapshot(), HOST) == known


# ---- whatever is seen


@st.composite
def looks(draw: st.DrawFn) -> Snapshot:
    """A machine of up to three GPUs as a host or a container may show it: some in MIG mode, some lost or hidden."""
    devices: list[Device] = []
    parents: list[Device] = []
    chosen = draw(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=3, unique=True))
    renumbered = draw(st.booleans())
    for position, number in enumerate(chosen):
        # Number 3 sits where number 2 did.
        gpu = dataclasses.replace(EIGHT[number], pci_bus_id=EIGHT[min(number, 2)].pci_bus_id)
        gpu = dataclasses.replace(
            gpu, index=position if renumbered else draw(st.sampled_from([number, number, None]))
        )
        if draw(st.integers(0, 3)):
            devices.append(gpu)
            continue
        parents.append(gpu)
        for slot, gi in draw(
            st.lists(
                st.sampled_from([(0, 3), (1, 5), (2, 5)]), max_size=2, unique_by=lambda p: p[1]
            )
        ):
            devices.append(instance(0, slot, gi, f"MIG-{number}-{slot}", gpu))
    away = [
        Unavailable(7, code, "away")
        for code in draw(st.lists(st.sampled_from([4, 15]), max_size=2))
    ]
    return view(
        *devices,
        mig_parents=tuple(parents),
        lost=tuple(gpu for gpu in away if gpu.code == 15),
        hidden=tuple(gpu for gpu in away if gpu.code == 4),
        cuda_order=draw(
            st.none() | st.permutations([device.uuid for device in devices]).map(tuple)
        ),
    )


@settings(max_examples=300, deadline=None)
@given(history=st.lists(looks() | st.just(FAKE), min_size=1, max_size=5))
def test_whatever_is_seen_names_stay_and_no_two_devices_share_one(history):
    known: Record | None = None
    for look in history:
        before, known = known, record(look, known=known)
        assert len(set(known.names.values())) == len(known.names) == len(known.devices)
        if before is not None and before.fake == known.fake and not known.fake:
            assert before.names.items() <= known.names.items()
        if look.fake == known.fake:
            shown = {device.uuid for device in look.devices}
            there = {entry.device.uuid for entry in known.devices if entry.present}
            assert shown <= there
            assert directories(known, look) == {uuid: known.names[uuid] for uuid in shown}
            assert not {parent.uuid for parent in known.mig_parents} & there
        assert merge(known, known.snapshot(), HOST) is known
        assert parse_record(known.dumps()) == known


# ---- the file

NUMBERS = st.none() | st.integers(0, 2**64)
TEXTS = st.none() | st.text(max_size=8)
DEVICES = st.builds(
    Device,
    uuid=st.text(min_size=1, max_size=8),
    index=NUMBERS,
    pci_bus_id=TEXTS,
    name=TEXTS,
    compute_capability=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)),
    memory_bytes=NUMBERS,
    core_count=NUMBERS,
    parent_uuid=TEXTS,
    slot=NUMBERS,
    gpu_instance=NUMBERS,
    compute_instance=NUMBERS,
    multiprocessor_count=NUMBERS,
    fake=st.booleans(),
)
NAMES = st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,9})?", fullmatch=True)
RECORDS = st.builds(
    Record,
    host=st.text(max_size=8),
    source=st.sampled_from(["nvml", "fake"]),
    status=st.sampled_from(Status),
    devices=st.lists(
        st.builds(Listed, NAMES, DEVICES, st.booleans()),
        max_size=3,
        unique_by=(lambda entry: entry.directory, lambda entry: entry.device.uuid),
    ).map(tuple),
    mig_parents=st.lists(DEVICES, max_size=2).map(tuple),
    lost=st.lists(
        st.builds(Unavailable, st.integers(), st.none() | st.integers(), st.text()), max_size=2
    ).map(tuple),
    driver=TEXTS,
    nvml=TEXTS,
    cuda=NUMBERS,
    cuda_order=st.none() | st.lists(st.text(max_size=8), max_size=3).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
WHOLE = record(
    partitioned(*PARTS).with_order(order(0)), view(*EIGHT[:7], lost=(Unavailable(7, 15, "lost"),))
)


@given(known=RECORDS)
def test_a_record_reads_back_as_it_was_written(known):
    assert parse_record(known.dumps()) == known
    assert parse_record(known.dumps()).dumps() == known.dumps()


def test_the_record_holds_nothing_of_the_process_or_the_time():
    """Only facts of the machine: it is byte-identical when nothing changed."""
    value = json.loads(WHOLE.dumps())
    assert value.keys() == {
        *(
            "version",
            "host",
            "source",
            "status",
            "driver",
            "nvml",
            "cuda",
            "cuda_order",
            "mig_parents",
            "lost",
        ),
        "devices",
    }
    assert {key for device in value["devices"] for key in device} == {
        "directory",
        "present",
        "device",
    }
    fields = {field.name for field in dataclasses.fields(Device)}
    assert all(device["device"].keys() <= fields for device in value["devices"])


def test_every_torn_record_is_refused():
    text = WHOLE.dumps()
    for length in range(len(text) - 1):  # without its last newline it is still whole
        with pytest.raises(ValueError, match="."):
            parse_record(text[:length])


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], {}])
def test_another_version_is_refused(version):
    with pytest.raises(ValueError, match="version"):
        parse_record(altered(("version",), version))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../0",
            "0/..",
            "/0",
            "0/0",
            "0\\0",
            "/etc",
            "\0",
            "0\0",
            "0\n",
            " 0",
            "0 ",
            "+0",
            "-1",
        ),
        *(
            "a",
            "0.",
            ".0",
            "0.0.0",
            "0..0",
            "1e3",
            "\u0663",
            "\u00b2",
            "9" * 10,
            0,
            None,
            ["0"],
            1.5,
        ),
    ],
)
def test_a_directory_name_that_is_more_than_a_number_is_refused(name):
    """It becomes part of a path."""
    with pytest.raises(ValueError, match="."):
        parse_record(altered(("devices", 0, "directory"), name))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("host",), None),
        (("source",), 1),
        (("status",), "well"),
        (("status",), []),
        (("driver",), 580),
        (("cuda",), "13000"),
        (("cuda",), True),
        (("cuda_order",), "GPU-1"),
        (("cuda_order",), {"GPU-1": 1}),
        (("cuda_order",), [1]),
        (("lost",), {}),
        (("lost",), ["abc"]),
        (("lost", 0), [7, 15]),
        (("lost", 0, 0), "7"),
        (("lost", 0, 1), [15]),
        (("lost", 0, 2), None),
        (("mig_parents",), ""),
        (("mig_parents",), [None]),
        (("mig_parents",), [{}]),
        (("devices",), ""),
        (("devices",), {}),
        (("devices",), 8),
        (("devices",), ["0"]),
        (("devices", 0), [0]),
        (("devices", 0, "present"), "no"),
        (("devices", 0, "present"), 0),
        (("devices", 0, "device"), "GPU-1"),
        (("devices", 0, "device", "uuid"), ""),
        (("devices", 0, "device", "uuid"), 1),
        (("devices", 0, "device", "index"), "0"),
        (("devices", 0, "device", "index"), True),
        (("devices", 0, "device", "index"), 0.0),
        (("devices", 0, "device", "compute_capability"), [9]),
        (("devices", 0, "device", "compute_capability"), "9.0"),
        (("devices", 0, "device", "fake"), 1),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(place, value):
    with pytest.raises(ValueError, match="."):
        parse_record(altered(place, value))


@pytest.mark.parametrize(
    "place",
    [
        *((key,) for key in json.loads(WHOLE.dumps())),
        *(("devices", 0, key) for key in ("directory", "present")),
    ],
)
def test_a_record_without_one_of_its_parts_is_refused(place):
    with pytest.raises(ValueError, match="."):
        parse_record(altered(place, ...))


def altered(place: tuple[str | int, ...], value: object) -> bytes:
    """A whole record but for the value at one place; an ellipsis takes it out."""
    whole = json.loads(WHOLE.dumps())
    inner = reduce(lambda part, key: part[key], place[:-1], whole)
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b'"',
        b"\xff\xfe",
        b"\x80",
        b"\0" * 64,
        b"NaN",
        b"1" * 5000,
        b"[" * 100_000,
    ],
    ids=lambda text: f"{text[:8]!r}*{len(text)}",
)
def test_what_is_no_record_at_all_is_refused(text):
    with pytest.raises(ValueError, match="."):
        parse_record(text)


@given(text=st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_text_raises_anything_but_value_error(text):
    with pytest.raises(ValueError, match="."):
        parse_record(text)


def places(value: object, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every value inside."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [way for key, part in inner for way in ((*here, key), *places(part, (*here, key)))]


@settings(max_examples=400)
@given(place=st.sampled_from(places(json.loads(WHOLE.dumps()))), value=JSON)
def test_a_record_with_anything_anywhere_is_refused_or_sound(place, value):
    """What is read can be written, read again and used; what cannot be is a ValueError and no other."""
    try:
        known = parse_record(altered(place, value))
    except ValueError:
        return
    assert parse_record(known.dumps()) == known
    assert all(
        os.path.basename(name) == name not in ("", ".", "..") for name in known.names.values()
    )
    assert record(known.snapshot(), known=known) == known
    visible_devices(known.snapshot(), {"CUDA_VISIBLE_DEVICES": "0"})


# ---- reading


def kept(directory: Path, known: Record, host: str | None = None) -> str:
    """Write a record where that of a host belongs."""
    path = Path(paths.record_path(str(directory), host or known.host))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(known.dumps())
    return str(path)


def refused(path: str, host: str = HOST) -> str:
    """The message of the error, which says what to do whatever happened."""
    with pytest.raises(RecordError) as caught:
        read_record(path, host)
    assert caught.value.path == path
    assert path in str(caught.value)
    assert "`gpucache provision`" in str(caught.value)
    return caught.value.fact


def test_what_was_written_is_read(tmp_path):
    assert read_record(kept(tmp_path, WHOLE), HOST) == WHOLE


def test_a_missing_record_is_told_with_the_hosts_that_have_one(tmp_path):
    path = paths.record_path(str(tmp_path), HOST)
    assert refused(path) == "there is no record of host node7"
    kept(tmp_path, WHOLE, "node2")
    kept(tmp_path, WHOLE, "node1")
    assert refused(path) == "there is no record of host node7 (only of node1, node2)"
    for host in ("node3", "node4", "node5"):
        kept(tmp_path, WHOLE, host)
    assert (
        refused(path)
        == "there is no record of host node7 (only of node1, node2, node3, node4 and others)"
    )


@pytest.mark.parametrize("text", [b"", WHOLE.dumps()[:-40], b"{}"])
def test_a_torn_record_is_told(tmp_path, text):
    path = Path(kept(tmp_path, WHOLE))
    path.write_bytes(text)
    assert "cannot be understood" in refused(str(path))


def test_the_record_of_another_host_is_told(tmp_path):
    """Two names that differ only in what a file name cannot hold share a file."""
    path = kept(tmp_path, WHOLE)
    assert refused(path, "node8") == "this is the record of host node7, not of node8"


def test_a_record_that_cannot_be_read_is_told(tmp_path):
    directory = tmp_path / "directory.json"
    directory.mkdir()
    assert refused(str(directory)) == "the record cannot be read: Is a directory"
    circle = tmp_path / "circle.json"
    circle.symlink_to(circle)
    assert refused(str(circle)) == "the record cannot be read: Too many levels of symbolic links"
    assert refused(str(circle / "node7.json")).startswith("the record cannot be read")


@pytest.mark.root
def test_the_record_of_another_user_is_told(as_root, everyones, python):
    path = Path(kept(everyones, WHOLE))
    path.chmod(0o600)
    code = """if True:
        import os, sys
        from gpucache.directories import record
        os.setuid(65534)
        try:
            record.read_record(sys.argv[1], "node7")
        except record.RecordError as error:
            print(error)
    """
    for directory in path.parents[:4]:
        directory.chmod(0o755)
    done = python(code, path)
    assert (
        "the record cannot be read: Permission denied; run as the user who provisioned"
        in done.stdout
    ), done.stderr


def test_reading_imports_neither_nvml_nor_locks(tmp_path, python):
    """A worker resolves its directory from the record alone."""
    path = kept(tmp_path, WHOLE)
    code = """if True:
        import sys
        from gpucache.directories import record
        assert len(record.read_record(sys.argv[1], "node7").devices) == 10
        print(sorted({"pynvml", "filelock", "torch", "triton"} & set(sys.modules)))
    """
    done = python(code, path)
    assert done.stdout == "[]\n", done.stderr


# ---- real processes

TASK = """if True:
    import sys
    from gpucache import DeviceCacheRegistry
    registry = DeviceCacheRegistry(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    registry.provision()
    print(registry.devices[0].index, registry.devices[0].uuid, registry.path(0))
"""
CGROUP = """
[gpu]
name = {gpu.name}
uuid = {gpu.uuid}
bus_id = {gpu.pci_bus_id}
cc = 9.0
"""


def run_tasks(root: Path, environments: list[dict[str, str]]) -> list[list[str]]:
    """Start one process for each environment, let all provision at the same time, and give back what each said."""
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TASK, root],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for env in environments
    ]
    try:
        for task in tasks:
            assert task.stdout is not None
            assert task.stdout.readline() == "ready\n"
        for task in tasks:
            assert task.stdin is not None
            task.stdin.write("go\n")
            task.stdin.flush()
        said = [task.communicate(timeout=120)[0].split() for task in tasks]
        assert [task.returncode for task in tasks] == [0] * len(tasks)
        return said
    finally:
        for task in tasks:
            task.kill()
            task.wait()


def test_eight_processes_that_each_see_another_gpu_as_0(tmp_path, machine, monkeypatch):
    """Eight directories, each process alone in its own; and nothing changes when they all come again."""
    environments = [machine(CGROUP.format(gpu=gpu)) for gpu in EIGHT]
    root = tmp_path / "root"
    first = run_tasks(root, environments)
    assert [said[:2] for said in first] == [["0", gpu.uuid] for gpu in EIGHT]
    assert {said[2] for said in first} == {f"{root}/triton/{number}" for number in range(8)}
    assert sorted(os.listdir(root / "triton")) == list("01234567")
    host = paths.host_name()
    file = Path(paths.record_path(str(root), host))
    text, inode = file.read_bytes(), file.stat().st_ino
    assert read_record(str(file), host).names == {
        uuid: os.path.basename(path) for _, uuid, path in first
    }
    assert run_tasks(root, environments[::-1]) == first[::-1]
    assert file.read_bytes() == text
    assert file.stat().st_ino == inode, "it was not even written again"
    monkeypatch.setattr(device_files, "DEV", str(tmp_path / "no-dev"))
    for _, uuid, path in first:
        assert DeviceCacheRegistry.load(root, {"CUDA_VISIBLE_DEVICES": uuid}).path(0) == path
    with pytest.raises(RecordError, match="does not see just the 8 GPUs"):
        DeviceCacheRegistry.load(root, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.parametrize("shared", ["directory", "uuid"])
def test_a_directory_or_a_uuid_that_is_there_twice_is_refused(shared):
    value = json.loads(WHOLE.dumps())
    first, second = value["devices"][:2]
    if shared == "directory":
        second["directory"] = first["directory"]
    else:
        second["device"]["uuid"] = first["device"]["uuid"]
    with pytest.raises(ValueError, match="twice"):
        parse_record(json.dumps(value).encode())


def test_a_container_with_another_cuda_does_not_rewrite_the_hosts():
    host = dataclasses.replace(view(*EIGHT), driver="580.95.05", cuda=13000)
    inside = dataclasses.replace(view(EIGHT[5]), driver="580.95.05", cuda=12080)
    assert merge(record(host), inside, HOST) == record(host)


# ---- what is written is read

NUMBERS = st.none() | st.integers(0, 2**32 - 1)
TEXTS = st.none() | st.text() | st.sampled_from(["", "\0", "x" * 4096, "\udcff", "N/A"])


@st.composite
def odd_machines(draw) -> Snapshot:
    """What NVML may answer of a machine: any name, holes in the numbers, one bus address twice, MIG slots."""
    uuids = draw(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True))
    indices = draw(st.lists(st.integers(0, 40), min_size=len(uuids), max_size=len(uuids)))
    devices = []
    for uuid, index in zip(uuids, indices, strict=True):
        is_instance = draw(st.booleans())
        device = Device(
            uuid=uuid,
            index=index,
            slot=draw(st.integers(0, 6)) if is_instance else None,
            parent_uuid=f"parent of {index}" if is_instance else None,
            minor=draw(NUMBERS),
            pci_bus_id=draw(
                st.none() | st.sampled_from(["00000000:1b:00.0", "\ufffd"]) | st.text()
            ),
            name=draw(TEXTS),
            compute_capability=draw(st.none() | st.tuples(st.integers(), st.integers())),
            memory_bytes=draw(st.none() | st.integers(-(2**63), 2**64)),
            core_count=draw(NUMBERS),
            gpu_instance=draw(NUMBERS),
            compute_instance=draw(NUMBERS),
            multiprocessor_count=draw(NUMBERS),
        )
        devices.append(device)
    lost = draw(st.lists(st.builds(Unavailable, st.integers(), NUMBERS, st.text()), max_size=2))
    order = draw(st.none() | st.lists(st.sampled_from(uuids), max_size=3))
    return view(
        *devices,
        lost=tuple(lost),
        driver=draw(TEXTS),
        nvml=draw(TEXTS),
        cuda=draw(NUMBERS),
        cuda_order=None if order is None else tuple(order),
    )


@settings(max_examples=200, deadline=None)
@given(odd_machines(), odd_machines())
def test_a_record_of_whatever_nvml_answers_is_read_as_it_was_written(first, second):
    for known in (merge(None, first, HOST), record(first), merge(record(first), second, HOST)):
        assert parse_record(readable(known)) == known


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ((EIGHT[0], dataclasses.replace(EIGHT[1], uuid=EIGHT[0].uuid)), "there twice"),
        ((dataclasses.replace(EIGHT[0], uuid=""),), "without a uuid"),
        ((dataclasses.replace(EIGHT[0], index=-1),), "not a directory name"),
        ((dataclasses.replace(EIGHT[0], index=10**9),), "not a directory name"),
        ((dataclasses.replace(EIGHT[0], minor=True),), "a device's minor is not True"),
        ((dataclasses.replace(EIGHT[0], memory_bytes=1.5),), "a device's memory_bytes"),
        ((dataclasses.replace(EIGHT[0], name="x" * 5 * 2**20),), "longer than"),
    ],
)
def test_what_no_reader_would_take_is_not_written(devices, why, tmp_path):
    """A snapshot may be anybody's: NVML's twins are refused where they are discovered."""
    snapshot = view(*devices)
    with pytest.raises(DiscoveryError, match=why):
        readable(merge(None, snapshot, HOST))
    root = tmp_path / "root"
    with pytest.raises(DiscoveryError, match=why):
        DeviceCacheRegistry(root, snapshot, {}).provision()
    assert list(root.glob("gpucache/v1/devices/*")) == []
