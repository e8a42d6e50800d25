"""One fault in every operation, at each libc call that it makes below its root: no harm is done, whatever fails.

A seeded sample runs with the other tests. ``pytest tests/faults/test_sweep.py --all-faults`` tries every fault, which
takes hours; ``--faults 500`` so many for each operation; ``--fault compile:63:EIO:once`` that one again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from support.counted_calls import counted_twice
from support.fault_list import KILL, NONE, SHORT, Fault, every_fault, sampled
from support.faults import Seen, Sweep, all_tried

pytestmark = [pytest.mark.compiles, pytest.mark.faults]

NAMES = [
    *("first-compile", "compile", "hit", "view", "view-elsewhere", "adopt", "mend", "evict"),
    "add-recipe",
    *("fall-back", "library-fall-back"),
    *("library", "library-hit", "library-view", "autotune", "autotune-hit"),
    *("provision", "provision-again", "prune", "slim", "clean", "verify", "repair"),
    *("stats", "ls", "du", "doctor", "path"),
    *("run-warm", "run-auto"),
    *("pack", "unpack", "pull", "run-pack", "leave-word", "push", "ask"),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Iterator[Sweep]:
    made = Sweep(tmp_path_factory.mktemp("sweep"))
    yield made
    made.close()


def told(seen: list[Seen]) -> str:
    """What was wrong, fault by fault, each with the option that tries it again."""
    lines = []
    for one in seen:
        lines += [
            f"--fault {one.fault} at {one.call or 'no call'}",
            *(f"    {w}" for w in one.wrong),
        ]
    return "\n".join(lines)


@pytest.mark.parametrize("operation", NAMES)
def test_no_fault_does_harm(sweep, operation, request):
    """Right bytes, no exception out of a launch, no defect, no hang, nothing that grows; then `verify` is clean."""
    option = request.config.getoption
    calls = sweep.calls(operation)
    if option("--fault"):
        asked = [Fault.parse(text) for text in option("--fault")]
        faults = [fault for fault in asked if fault.operation == operation]
    elif option("--all-faults"):
        faults = list(every_fault(calls, operation))
    else:
        draw = random.Random(f"{option('--faults-seed')} {operation}")
        faults = sampled(calls, operation, option("--faults"), draw)
    seen = all_tried(sweep, faults)
    hit = sum(bool(one.call) for one in seen)
    print(f"{operation}: {len(calls)} calls, {len(seen)} faults tried, {hit} hit a call")
    bad = [one for one in seen if one.wrong]
    assert not bad, told(bad)


class TestTheInjection:
    """A sweep proves nothing if its faults do not happen."""

    def test_every_kind_of_fault_happens(self, sweep):
        calls = sweep.calls("compile")
        (write, *_) = (number for number, call in enumerate(calls, 1) if call.startswith("write "))
        for what, mode in (("EIO", "once"), ("EIO", "afterwards"), ("ENOSPC", "same-on")):
            seen = sweep.tried(Fault("compile", write, what, mode))
            assert seen.call.startswith("write "), mode
            assert not seen.wrong
        assert sweep.tried(Fault("compile", write, "KILL")).killed
        assert (NONE, SHORT, KILL) == (0, -1, -2)

    def test_a_launch_that_reads_wrong_bytes_is_found(self, sweep):
        """The check itself: an entry whose file was replaced by one of the same size and time."""
        assert any(
            "WrongBytesError" in text for text in sweep.tried(Fault("forged", 0, "NONE")).wrong
        )

    def test_no_call_below_the_root_is_overlooked(self, sweep, strace, tmp_path):
        """The library counts as many calls as the kernel sees, of each of those that change the disk or a lock."""
        ours, kernels = counted_twice(sweep, "compile", strace, tmp_path / "trace")
        assert ours == kernels
        assert sum(ours.values()) > 60
