"""What each value of CUDA_VISIBLE_DEVICES shows, and how sure anyone can be of the order.

``basis`` in a table says what a row stands on. doc: NVIDIA's text. drv: a test or a run against a driver. drv~: follows
from those rules. open: nobody has shown it, the value is our proposal.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from itertools import takewhile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpucache import Device, DeviceCacheRegistry, Snapshot, Status, Unavailable, visible_devices
from gpucache.machine import device_files
from gpucache.machine.device import fake_devices

FOUR = (
    "GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1",
    "GPU-9e8d35e3-a134-0fdd-0e01-23811fdbd293",
    "GPU-e429a63e-c61c-4795-b757-5132caeb8e70",
    "GPU-eee1dfbc-0a0f-6ad8-5ff6-dc942a8b9d98",
)
HOWS = {"uuid", "order", "alike", "driver", "fake", "none", "guess"}


def gpu(uuid: str, index: int | None, **facts: object) -> Device:
    known: dict[str, object] = {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": (9, 0),
        "memory_bytes": 80 * 2**30,
        "core_count": 16896,
    }
    if index is not None:
        known["pci_bus_id"] = f"00000000:{16 + 11 * index:02x}:00.0"
    return Device(**{**known, "uuid": uuid, "index": index, **facts})


def snapshot(*devices: Device, **facts: object) -> Snapshot:
    return Snapshot(
        **{
            "status": Status.OK,
            "source": "nvml",
            "devices": devices,
            "driver": "580.95.05",
            **facts,
        }
    )


LIKE = snapshot(*(gpu(uuid, index) for index, uuid in enumerate(FOUR)))
MIXED = snapshot(
    gpu(FOUR[0], 0, name="NVIDIA RTX PRO 4000", compute_capability=(12, 0)),
    *(gpu(uuid, index) for index, uuid in enumerate(FOUR[1:], 1)),
)


def show(
    machine: Snapshot, mask: str | None = None, **environ: str
) -> tuple[list[str | None], str, str | None]:
    """The directory names that a process with this mask sees, how that is known, and what was cut."""
    visible = visible_devices(
        machine, environ if mask is None else {**environ, "CUDA_VISIBLE_DEVICES": mask}
    )
    assert visible.how in HOWS
    return [device.directory_name for device in visible.devices], visible.how, visible.cut


# ---- four like GPUs

TABLE: list[tuple[str | None, list[int], str]] = [
    (None, [0, 1, 2, 3], "doc"),
    ("", [], "doc"),
    ("0", [0], "doc"),
    ("2,1", [2, 1], "doc"),
    ("0,2,-1,1", [0, 2], "doc"),
    ("0,7,1", [0], "doc"),
    ("0,0", [], "drv"),
    ("1gpu2,2ampere", [1, 2], "drv"),
    ("2,+3,-0,1", [2, 3, 0, 1], "drv"),
    ("0 1", [0], "drv~"),
    ("all", [], "drv~"),
    ("GPU-9e8d35e3", [1], "doc"),
    ("GPU-e4,GPU-9e8d35e3", [2, 1], "drv"),
    ("GPU-9e8d35e3,GPU-e,GPU-99", [1], "drv"),
    ("GPU-9e8d35e3,2", [1], "drv"),
    ("MIG-9e8d35e3-a134-0fdd-0e01-23811fdbd293", [], "doc"),
    # numbers
    ("1,0", [1, 0], "doc"),
    ("3,2,1,0", [3, 2, 1, 0], "doc"),
    ("-1", [], "doc"),
    ("-1,0", [], "doc"),
    ("99", [], "doc"),
    ("4", [], "doc"),
    ("0,abc,1", [0], "drv~"),
    ("one,two,3", [], "drv"),
    ("none", [], "drv~"),
    ("NoDevFiles", [], "drv~"),
    ("1.5", [1], "drv~"),
    ("0x1", [0], "open"),  # strtoul to base 10; to base 0 it would be 1
    ("010", [], "open"),  # ten; to base 0 it would be 8, which is not there either
    ("01", [1], "drv~"),
    ("0-2", [0], "drv"),
    ("0;1", [0], "drv~"),
    ("9e8d35e3", [], "drv~"),
    ("2, +3, -0, 1", [2, 3, 0, 1], "drv"),
    (" 0", [0], "drv~"),
    ("\t1\n, 0 ", [1, 0], "drv~"),
    ("0 ,1 ", [0, 1], "drv~"),
    (" ", [], "drv~"),
    ("+", [], "drv~"),
    ("-", [], "drv~"),
    ("0,+", [0], "drv~"),
    ("+-1", [], "drv~"),
    ("--1", [], "drv~"),
    ("+ 1", [], "drv~"),
    (",", [], "drv~"),
    (",0", [], "drv~"),
    ("0,", [0], "drv~"),
    ("0,,1", [0], "drv~"),
    ("\u00b2", [], "drv~"),  # superscript two: a digit to Python, not to C
    ("\u0663", [], "drv~"),  # Arabic three
    ("1\u0663", [1], "drv~"),
    ("\u00a00", [], "drv~"),  # a no-break space is no blank to C
    ("4294967296", [], "open"),  # a driver that keeps 32 bits would see 0
    ("0,4294967297,1", [0], "open"),
    ("18446744073709551616", [], "open"),
    ("-4294967296", [], "open"),
    ("9" * 5000, [], "open"),
    ("-" + "9" * 5000, [], "open"),
    ("0" * 5000 + "1", [1], "drv~"),
    ("2," + "9" * 5000 + ",1", [2], "open"),
    # repeats
    ("0,1,0", [], "drv"),
    ("0,00", [], "drv~"),
    ("0,-0", [], "drv~"),
    ("0,1,2,3,-1,0,6,7", [0, 1, 2, 3], "drv"),
    ("0,7,0", [0], "drv~"),
    ("0,abc,0", [0], "drv~"),
    ("7,7", [], "drv~"),
    # UUIDs
    (",".join(FOUR[::-1]), [3, 2, 1, 0], "doc"),
    ("GPU-9", [], "drv"),
    ("GPU-", [], "drv~"),
    ("GPU-zzz", [], "drv"),
    ("GPU-9e,GPU-zzz,GPU-e4", [1], "drv"),
    ("GPU-9e,GPU-9e", [], "drv"),
    ("GPU-9e8d,GPU-9e", [], "drv"),
    ("GPU-9e,GPU-zzz,GPU-9e", [1], "drv~"),
    ("0,GPU-9e8d35e3", [0], "drv~"),
    (f"{FOUR[1]}0", [], "drv~"),
    ("GPU-9e,", [1], "drv~"),
    ("GPU-9e,,GPU-e4", [1], "drv~"),
    (" GPU-9e", [], "open"),
    ("GPU-9e, GPU-e4", [1], "open"),
    ("GPU-9e ,GPU-e4", [], "open"),
    ("gpu-9e", [], "open"),
    ("GPU-9E", [], "open"),
    ("GPU9e", [], "drv~"),
    ("GPU", [], "drv~"),
]


def label(value: object) -> str | None:
    if value is None:
        return "unset"
    if isinstance(value, str):
        return ascii(value) if len(value) < 60 else f"{value[:12]!a}...({len(value)})"
    return "" if value == [] else None


@pytest.mark.parametrize(("mask", "expected", "basis"), TABLE, ids=label)
def test_four_like_gpus(mask, expected, basis):
    """The devices are those of the table; ``cut`` says why when not every token counted, and only then."""
    assert basis in {"doc", "drv", "drv~", "open"}
    names, _, cut = show(LIKE, mask)
    assert names == [str(index) for index in expected]
    every_token_counted = mask is None or len(expected) == len(mask.split(","))
    assert (cut is None) == every_token_counted


def test_the_table_has_no_mask_twice():
    assert len({mask for mask, _, _ in TABLE}) == len(TABLE)


def test_a_cut_quotes_the_token_shortened():
    assert show(LIKE, "0,abc")[2] == "'abc' is not a number: the list ends before it"
    assert show(LIKE, "0,7")[2] == "'7' names none of the 4 GPUs: the list ends before it"
    assert show(LIKE, "0,0")[2] == "'0' names a GPU again: CUDA then shows none at all"
    assert show(LIKE, "GPU-zzz")[2] == "'GPU-zzz' names no device: the list ends before it"
    assert show(LIKE, "GPU-9")[2] == "'GPU-9' fits several devices: the list ends before it"
    assert (
        show(LIKE, "GPU-9e8d,GPU-9e")[2]
        == "'GPU-9e' names a device again: CUDA then shows none at all"
    )
    assert len(show(LIKE, "9" * 5000)[2] or "") < 120


def test_a_cut_can_be_printed_whatever_the_variable_holds():
    """What is not UTF-8 in the environment reaches Python as surrogates, which no terminal takes."""
    assert (show(LIKE, "\udcff\x1b[2J")[2] or "").isprintable()


def test_an_empty_variable_says_so_and_a_blank_one_is_read():
    assert show(LIKE, "")[1:] == ("none", "CUDA_VISIBLE_DEVICES is empty: no device")
    assert show(LIKE, " ")[1] == "alike"


# ---- MIG: GPU 0 plain; GPU 1 in MIG mode with slots 0 (GI 3) and 2 (GI 5); GPU 2 in MIG mode without an instance

PLAIN, PARENT, EMPTY = (
    f"GPU-{digit * 8}-0000-4000-8000-00000000000{i}" for i, digit in enumerate("abc")
)
SLOT_0 = "MIG-11111111-df4c-5451-979d-3231ccb0822e"
SLOT_2 = "MIG-22222222-c95f-5ef2-a935-195bd0094fbd"


def instance(uuid: str, parent: Device, slot: int, gi: int | None, ci: int | None = 0) -> Device:
    return dataclasses.replace(
        parent,
        uuid=uuid,
        parent_uuid=parent.uuid,
        slot=slot,
        gpu_instance=gi,
        compute_instance=ci,
        core_count=None,
    )


def mig(driver: str | None = "580.95.05", **facts: object) -> Snapshot:
    parent = gpu(PARENT, 1)
    return snapshot(
        gpu(PLAIN, 0),
        instance(SLOT_0, parent, slot=0, gi=3),
        instance(SLOT_2, parent, slot=2, gi=5),
        mig_parents=(parent, gpu(EMPTY, 2)),
        driver=driver,
        **facts,
    )


# mask, before R570, since R570, how, basis
MIG_TABLE: list[tuple[str | None, list[str], list[str], str, str]] = [
    (None, ["1.0"], ["0", "1.0", "1.2"], "guess", "doc"),
    ("0", ["0"], ["0"], "guess", "doc"),
    ("1", ["1.0"], ["1.0", "1.2"], "guess", "drv / open"),
    ("0,1", ["1.0"], ["0", "1.0", "1.2"], "guess", "open"),
    ("2", [], [], "guess", "open"),
    (SLOT_2, ["1.2"], ["1.2"], "uuid", "doc"),
    ("MIG-22222222", ["1.2"], ["1.2"], "uuid", "open"),
    (f"MIG-{PARENT}/5/0", ["1.2"], ["1.2"], "uuid", "doc"),
    (f"{SLOT_0},{SLOT_2}", ["1.0"], ["1.0", "1.2"], "uuid", "drv / doc"),
    (PARENT, ["1.0"], ["1.0", "1.2"], "guess", "open"),
    ("MIG-99999999-c95f-5ef2-a935-195bd0094fbd", [], [], "uuid", "doc"),
    # ours
    ("", [], [], "none", "doc"),
    ("3", [], [], "guess", "doc"),
    ("1,0", ["1.0"], ["1.0", "1.2", "0"], "guess", "open"),
    ("2,0", ["0"], ["0"], "guess", "open"),
    ("0,2,1", ["1.0"], ["0", "1.0", "1.2"], "guess", "open"),
    ("1,1", [], [], "guess", "drv~"),
    (f"{SLOT_2},{SLOT_0}", ["1.2"], ["1.2", "1.0"], "uuid", "drv~"),
    (f"{SLOT_0},{SLOT_0}", [], [], "uuid", "drv~"),
    (f"{SLOT_0},MIG-{PARENT}/3/0", [], [], "uuid", "drv~"),
    (f"{SLOT_0},MIG-9,{SLOT_2}", ["1.0"], ["1.0"], "uuid", "drv~"),
    ("MIG-", [], [], "uuid", "drv~"),
    ("mig-22222222", [], [], "guess", "open"),
    (f"MIG-{PARENT}", [], [], "uuid", "drv~"),
    (f"MIG-{PARENT}/5", ["1.2"], ["1.2"], "uuid", "open"),
    (f"MIG-{PARENT}/5/1", [], [], "uuid", "drv~"),
    (PLAIN, ["0"], ["0"], "uuid", "doc"),
    (EMPTY, [], [], "guess", "open"),
    ("GPU-bbbb", ["1.0"], ["1.0", "1.2"], "guess", "open"),
    (f"{PLAIN},{SLOT_2}", ["0"], ["0", "1.2"], "uuid", "open / doc"),
    (f"{SLOT_2},{PLAIN}", ["1.2"], ["1.2", "0"], "uuid", "open / doc"),
    (f"{PARENT},{SLOT_2}", ["1.0"], ["1.0", "1.2"], "guess", "open"),
]


@pytest.mark.parametrize(("mask", "before", "since", "how", "basis"), MIG_TABLE, ids=label)
def test_mig_before_and_since_r570(mask, before, since, how, basis):
    assert basis
    assert show(mig("560.35.03"), mask)[:2] == (before, how)
    assert show(mig("580.95.05"), mask)[:2] == (since, how)
    assert show(mig(None), mask)[:2] == (since, how), "an unknown driver counts as a modern one"


def test_a_parent_behind_its_instance_adds_the_others():
    """Before R570 the first token fixes the kind, so the list ends before the parent."""
    assert show(mig("580"), f"{SLOT_2},{PARENT}")[:2] == (["1.2", "1.0"], "guess")
    assert show(mig("560"), f"{SLOT_2},{PARENT}")[:2] == (["1.2"], "uuid")


@pytest.mark.parametrize(
    ("mask", "driver", "counted"),
    [
        (None, "580", True),
        (None, "560", True),
        ("0,1", "580", True),
        ("1", "560", True),
        ("0,1", "560", False),  # the plain GPU is not shown
        ("2", "580", False),  # nothing to show
        ("0,2", "580", False),
        (EMPTY, "580", False),
        (f"{SLOT_0},{SLOT_2}", "580", True),
        (f"{SLOT_0},{SLOT_2}", "560", False),
        (f"{SLOT_0},MIG-9", "580", False),
    ],
)
def test_a_token_that_shows_no_device_is_cut_and_told(mask, driver, counted):
    assert (show(mig(driver), mask)[2] is None) == counted


def test_of_two_compute_instances_of_one_gpu_instance_only_the_first_is_shown():
    parent = gpu(PARENT, 0)
    first, second = (
        instance("MIG-a", parent, 0, gi=3, ci=0),
        instance("MIG-b", parent, 1, gi=3, ci=1),
    )
    other = instance("MIG-c", parent, 2, gi=5, ci=0)
    machine = snapshot(first, second, other, mig_parents=(parent,))
    assert show(machine)[0] == ["0.0", "0.2"]
    assert show(machine, "0")[0] == ["0.0", "0.2"]
    assert show(machine, "MIG-b,MIG-c")[0] == ["0.1", "0.2"]
    names, _, cut = show(machine, "MIG-b,MIG-a")
    assert names == ["0.1"]
    assert cut


def test_instances_whose_gpu_instance_is_unknown_count_apart():
    """What NVML does not tell is no reason to leave a device out."""
    parent = gpu(PARENT, 0)
    devices = [instance(f"MIG-{slot}", parent, slot, gi=None, ci=None) for slot in range(2)]
    assert show(snapshot(*devices, mig_parents=(parent,)))[0] == ["0.0", "0.1"]


def test_at_most_64_devices_are_shown_where_there_is_mig():
    parents = [gpu(f"GPU-{index:08x}", index) for index in range(10)]
    devices = [
        instance(f"MIG-{index}-{slot}", parent, slot, gi=slot + 7)
        for index, parent in enumerate(parents)
        for slot in range(7)
    ]
    names = show(snapshot(*devices, mig_parents=tuple(parents)))[0]
    assert len(names) == 64
    assert names[-1] == "9.0"


def test_more_than_64_plain_gpus_are_all_shown():
    assert len(show(snapshot(*(gpu(f"GPU-{index:08x}", index) for index in range(72))))[0]) == 72


# ---- the order of the integers


@pytest.mark.parametrize("mask", [None, "0,1,2,3"])
def test_like_gpus_count_by_bus_whatever_nvmls_list(mask):
    machine = snapshot(*LIKE.devices[::-1])
    assert show(machine, mask)[:2] == (["0", "1", "2", "3"], "alike")
    renumbered = snapshot(
        *(dataclasses.replace(device, index=3 - index) for index, device in enumerate(LIKE.devices))
    )
    assert show(renumbered, mask)[:2] == (["3", "2", "1", "0"], "alike")


def test_the_bus_is_compared_with_its_domain():
    far = dataclasses.replace(LIKE.devices[0], pci_bus_id="00010000:01:00.0")
    assert show(snapshot(far, *LIKE.devices[1:]))[0] == ["1", "2", "3", "0"]


def test_without_every_bus_id_nvmls_order_stands():
    unknown = dataclasses.replace(LIKE.devices[0], pci_bus_id=None)
    assert show(snapshot(*LIKE.devices[1:], unknown))[:2] == (["0", "1", "2", "3"], "alike")


def test_one_gpu_needs_no_order():
    assert show(snapshot(gpu(FOUR[0], 0, compute_capability=None, name=None)))[:2] == (
        ["0"],
        "alike",
    )
    assert show(snapshot(gpu(FOUR[0], None)))[:2] == ([None], "alike")


def test_gpus_of_unknown_capability_are_not_alike():
    devices = [dataclasses.replace(device, compute_capability=None) for device in LIKE.devices]
    assert show(snapshot(*devices))[1] == "guess"


@pytest.mark.parametrize(
    "fact",
    [
        {"name": "NVIDIA H200"},
        {"compute_capability": (9, 1)},
        {"memory_bytes": 1},
        {"core_count": 1},
    ],
)
def test_gpus_that_differ_in_anything_a_heuristic_may_use_are_not_alike(fact):
    odd = dataclasses.replace(LIKE.devices[3], **fact)
    assert show(snapshot(*LIKE.devices[:3], odd))[1] == "guess"


@pytest.mark.parametrize("mask", [None, "0,1,2,3"])
def test_mixed_gpus_without_an_answer_are_a_guess(mask):
    assert show(MIXED, mask)[:2] == (["0", "1", "2", "3"], "guess")
    assert show(MIXED, mask, CUDA_DEVICE_ORDER="FASTEST_FIRST")[1] == "guess"
    assert show(MIXED, mask, CUDA_DEVICE_ORDER="pci_bus_id")[1] == "guess"


@pytest.mark.parametrize("mask", [None, "0,1,2,3"])
def test_pci_bus_id_decides_the_order_of_mixed_gpus(mask):
    machine = snapshot(*MIXED.devices[::-1])
    assert show(machine, mask, CUDA_DEVICE_ORDER="PCI_BUS_ID")[:2] == (
        ["0", "1", "2", "3"],
        "order",
    )


def test_libcudas_answer_decides_unmasked_and_for_integers():
    machine = MIXED.with_order((FOUR[1], FOUR[2], FOUR[3], FOUR[0]))
    assert show(machine)[:2] == (["1", "2", "3", "0"], "driver")
    assert show(machine, "3,0")[:2] == (["0", "1"], "driver")
    assert show(machine, "GPU-9942,GPU-9e")[:2] == (["0", "1"], "uuid")


@pytest.mark.parametrize("mask", [None, "0,1,2,3"])
def test_pci_bus_id_wins_over_an_answer_for_the_default_order(mask):
    machine = MIXED.with_order(FOUR[::-1])
    assert show(machine, mask, CUDA_DEVICE_ORDER="PCI_BUS_ID")[0] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "stale",
    [(), FOUR[:3], (*FOUR, "GPU-ffffffff"), ("GPU-ffffffff", *FOUR[1:])],
    ids=["empty", "one is missing", "one too many", "another one"],
)
def test_an_answer_about_other_devices_is_ignored(stale):
    assert show(MIXED.with_order(stale))[1] == "guess"
    assert show(MIXED.with_order(stale), "0")[1] == "guess"


def test_an_answer_does_not_turn_like_gpus_around():
    assert show(LIKE.with_order(FOUR[::-1]))[:2] == (["0", "1", "2", "3"], "alike")


def test_a_lost_gpu_leaves_nothing_alike():
    """Nobody knows whether CUDA counts it, unless libcuda was asked."""
    machine = dataclasses.replace(
        LIKE, devices=LIKE.devices[:1] + LIKE.devices[2:], lost=(Unavailable(1, 15, "GPU is lost"),)
    )
    assert show(machine)[:2] == (["0", "2", "3"], "guess")
    assert show(machine, CUDA_DEVICE_ORDER="PCI_BUS_ID")[1] == "guess"
    assert show(machine.with_order((FOUR[0], FOUR[2], FOUR[3])), "1")[:2] == (["2"], "driver")
    assert show(machine, FOUR[2])[1] == "uuid"
    assert show(machine, "GPU-e4")[1] == "guess", "the lost GPU's UUID may begin like that too"


def test_a_hidden_gpu_is_not_counted():
    machine = dataclasses.replace(
        LIKE, devices=LIKE.devices[1:], hidden=(Unavailable(0, 4, "no permission"),)
    )
    assert show(machine, "0")[:2] == (["1"], "alike")


def test_fakes_count_by_position():
    machine = Snapshot(status=Status.NO_LIBRARY, source="fake", devices=fake_devices(4))
    assert show(machine)[:2] == (["0", "1", "2", "3"], "fake")
    assert show(machine, "2,1")[:2] == (["2", "1"], "fake")
    assert show(machine, "GPU-9e")[0] == []


def test_the_instances_stand_in_libcudas_order():
    machine = mig().with_order((SLOT_0, SLOT_2, PLAIN))
    assert show(machine)[:2] == (["1.0", "1.2", "0"], "driver")


def test_an_answer_does_not_place_a_gpu_that_it_cannot_name():
    """Integers count an empty GPU in MIG mode, and libcuda lists only what it can run on."""
    parent = gpu(PLAIN, 0)
    machine = snapshot(*LIKE.devices[1:], mig_parents=(parent,), cuda_order=FOUR[1:])
    assert show(machine)[:2] == (["1", "2", "3"], "driver")
    assert show(machine, "1")[:2] == (["1"], "guess")


# ---- whatever the variable holds

TOKENS = st.one_of(
    st.integers(-3, 6).map(str),
    st.sampled_from(
        [
            "",
            " ",
            "+1",
            "-0",
            " 2",
            "1x",
            "0x1",
            "1e9",
            "+",
            "-",
            "\u00b2",
            "all",
            "NoDevFiles",
            "9" * 20,
        ]
    ),
    st.sampled_from(
        [*FOUR, PLAIN, PARENT, EMPTY, SLOT_0, SLOT_2, "MIG-x", "GPU-x", f"MIG-{PARENT}/3/0"]
    ),
    st.tuples(st.sampled_from([*FOUR, PARENT, SLOT_0, SLOT_2]), st.integers(0, 14)).map(
        lambda pair: pair[0][: pair[1]]
    ),
    st.text(st.characters(exclude_characters=","), max_size=6),
)
LISTS = st.lists(TOKENS, max_size=6).map(",".join)
ANYTHING = st.text(st.characters(exclude_categories=()))


@st.composite
def machines(draw: st.DrawFn) -> Snapshot:
    """Up to four GPUs, like or not, plain or in MIG mode, some lost, with or without libcuda's answer."""
    plain: list[Device] = []
    parents: list[Device] = []
    for index, uuid in enumerate(
        draw(st.permutations([*FOUR[:2], PARENT, EMPTY]))[: draw(st.integers(1, 4))]
    ):
        device = gpu(
            uuid, index, compute_capability=draw(st.sampled_from([(9, 0), (9, 0), (12, 0), None]))
        )
        if draw(st.integers(0, 4)) == 0:
            device = dataclasses.replace(device, pci_bus_id=None)
        if uuid not in FOUR and draw(st.booleans()):
            parents.append(device)
            if uuid == PARENT:
                gi, ci = draw(st.sampled_from([(5, 0), (3, 1), (None, None)]))
                plain += [instance(SLOT_0, device, 0, 3, 0), instance(SLOT_2, device, 2, gi, ci)]
        else:
            plain.append(device)
    order = draw(
        st.none()
        | st.permutations(
            [device.uuid for device in plain] + ["GPU-gone"] * draw(st.integers(0, 1))
        )
    )
    return snapshot(
        *plain,
        mig_parents=tuple(parents),
        lost=(Unavailable(9, 15, "lost"),) if draw(st.integers(0, 4)) == 0 else (),
        driver=draw(st.sampled_from([None, "560.35.03", "580.95.05", "\u00b2"])),
        cuda_order=None if order is None else tuple(order),
    )


@settings(max_examples=500, deadline=None)
@given(
    machine=machines(),
    mask=st.none() | LISTS | ANYTHING,
    order=st.sampled_from(["", "PCI_BUS_ID", "FASTEST_FIRST"]),
)
@example(machine=mig(), mask=f"{PARENT},{SLOT_0}", order="")
def test_no_value_raises_or_shows_what_cuda_could_not(machine, mask, order):
    """A subset of the machine without repeats, of each GPU instance one, before R570 one instance in all."""
    environ = (
        {"CUDA_DEVICE_ORDER": order}
        if mask is None
        else {"CUDA_DEVICE_ORDER": order, "CUDA_VISIBLE_DEVICES": mask}
    )
    visible = visible_devices(machine, environ)
    assert visible.how in HOWS
    assert visible == visible_devices(machine, environ)
    assert set(visible.devices) <= set(machine.devices)
    assert len(set(visible.devices)) == len(visible.devices)
    instances = [device for device in visible.devices if device.parent_uuid]
    known = [
        (device.parent_uuid, device.gpu_instance)
        for device in instances
        if device.gpu_instance is not None
    ]
    assert len(set(known)) == len(known) or visible.how == "driver"
    if instances and machine.driver == "560.35.03" and visible.how != "driver":
        assert len(visible.devices) == 1
    if not visible.devices and mask is not None:
        assert visible.cut


@settings(max_examples=150, deadline=None)
@given(mask=LISTS | ANYTHING)
def test_on_plain_gpus_nothing_is_cut_exactly_when_every_token_counted(mask):
    names, _, cut = show(LIKE, mask)
    assert (cut is None) == (len(names) == len(mask.split(",")) and mask != "")


@pytest.fixture(scope="module")
def no_device_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real GPU beside the test says nothing about the machine in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_files, "DEV", str(tmp_path_factory.mktemp("dev")))
        yield


MACHINES = {
    "like": LIKE,
    "mixed": MIXED.with_order((FOUR[1], FOUR[2], FOUR[3], FOUR[0])),
    "mig": mig().with_order((PLAIN, SLOT_0, SLOT_2)),
    "mig before R570": mig("560.35.03").with_order((SLOT_0,)),
    "fake": Snapshot(status=Status.NO_LIBRARY, source="fake", devices=fake_devices(4)),
}


@pytest.fixture(scope="module", params=MACHINES)
def launcher(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, no_device_nodes: None
) -> DeviceCacheRegistry:
    """The unmasked registry of a provisioned root."""
    root = tmp_path_factory.mktemp("agreement") / "root"
    registry = DeviceCacheRegistry(root, MACHINES[request.param], {})
    registry.provision()
    return registry


@settings(max_examples=60, deadline=None)
@given(mask=LISTS, order=st.sampled_from(["", "PCI_BUS_ID"]))
@example(mask="", order="")
@example(mask="3", order="")
@example(mask="GPU-9e", order="")
@example(mask="1,0", order="PCI_BUS_ID")
def test_masked_workers_and_the_unmasked_launcher_name_the_same_directory(launcher, mask, order):
    """A worker reads the record, a launcher asks NVML; each UUID has one directory, whatever either sees."""
    environ = {"CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": order}
    worker = DeviceCacheRegistry.load(launcher.root, environ)
    assert worker.devices == DeviceCacheRegistry(launcher.root, launcher.snapshot, environ).devices
    assert worker.directories == launcher.directories
    for ordinal, device in enumerate(worker.devices):
        assert worker.path(ordinal) == launcher.directories[device.uuid]
        assert os.path.isdir(worker.path(ordinal))


def test_unmasked_workers_see_what_the_launcher_sees(launcher):
    worker = DeviceCacheRegistry.load(launcher.root, {})
    assert worker.visible == launcher.visible
    assert [worker.path(ordinal) for ordinal in worker] == [
        launcher.path(ordinal) for ordinal in launcher
    ]


def test_on_a_whole_machine_a_directory_is_the_index(launcher):
    for device in launcher.snapshot.devices:
        assert os.path.basename(launcher.directories[device.uuid]) == device.directory_name


# ---- torch

# Where torch 2.13's own parser says something else of four like GPUs.
TORCH_DIFFERS: dict[str | None, object] = {
    "MIG-9e8d35e3-a134-0fdd-0e01-23811fdbd293": "asks CUDA",
    # it takes Python's digits and blanks for C's
    "\u00b2": "ValueError",
    "\u0663": [3],
    "1\u0663": [],
    "\u00a00": [0],
    # it expects a digit behind a sign
    **dict.fromkeys(["+", "-", "0,+", "+-1", "--1", "+ 1"], "ValueError"),
    # Python reads no more than 4300 digits
    **dict.fromkeys(
        ["9" * 5000, "-" + "9" * 5000, "0" * 5000 + "1", "2," + "9" * 5000 + ",1"], "ValueError"
    ),
    # it looks for repeats before bounds, and behind the end of a list of UUIDs
    "0,7,0": [],
    "GPU-9e,GPU-zzz,GPU-9e": [],
}


def torchs() -> object:
    """The NVML indices that torch makes of the variable."""
    import torch

    try:
        parsed = torch.cuda._parse_visible_devices()
    except ValueError:
        return "ValueError"
    if parsed and isinstance(parsed[0], str):
        return (
            "asks CUDA"
            if parsed[0].startswith("MIG-")
            else torch.cuda._transform_uuid_to_ordinals(parsed, FOUR)
        )
    return list(takewhile(lambda number: number < len(FOUR), parsed))


@pytest.mark.torch
def test_torchs_own_parser_differs_where_we_know_it_does(monkeypatch):
    differs = {}
    for mask, expected, _ in TABLE:
        if mask is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        if (answer := torchs()) != expected:
            differs[mask] = answer
    assert differs == TORCH_DIFFERS
