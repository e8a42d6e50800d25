from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from gpucache.machine.device import Device, Snapshot, Status
from gpucache.machine.libcuda import ask_order

H100 = "GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1"
RTX = "GPU-e429a63e-c61c-4795-b757-5132caeb8e70"
MIG = "MIG-22222222-c95f-5ef2-a935-195bd0094fbd"
UNKNOWN = "GPU-eee1dfbc-0a0f-6ad8-5ff6-dc942a8b9d98"


def snapshot_of(*uuids):
    return Snapshot(
        status=Status.OK, source="nvml", devices=tuple(Device(uuid=uuid) for uuid in uuids)
    )


SNAPSHOT = snapshot_of(H100, RTX)


@pytest.fixture
def cuda(fakenvml):
    """The environment in which libcuda enumerates these devices."""

    def environ(*uuids, **more):
        listed = ",".join(uuid.partition("-")[2] for uuid in uuids)
        return {"LD_LIBRARY_PATH": str(fakenvml), "FAKECUDA_UUIDS": listed, **more}

    return environ


@pytest.fixture
def children(monkeypatch):
    """The processes that are started; each is gone when the test ends."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield started
    for child in started:
        child.kill()
        child.wait(timeout=60)


@pytest.fixture
def spy(tmp_path, monkeypatch):
    """The directory where the child's environment and process state are written down as it starts."""
    path = tmp_path / "python"
    path.write_text(
        "#!/bin/sh\n"
        f'/usr/bin/env > "{tmp_path}/environ"\n'
        f'read -r line < /proc/$$/stat; echo "$line" > "{tmp_path}/stat"\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return tmp_path


@pytest.mark.parametrize("order", [(H100, RTX), (RTX, H100)])
def test_the_order_is_what_libcuda_says(cuda, order):
    assert ask_order(SNAPSHOT, cuda(*order)) == order


def test_libcuda_may_know_fewer_devices_than_nvml(cuda):
    assert ask_order(SNAPSHOT, cuda(RTX)) == (RTX,)


def test_a_mig_instance_has_its_place(cuda):
    assert ask_order(snapshot_of(MIG, H100), cuda(H100, MIG)) == (H100, MIG)


@pytest.mark.parametrize(
    "uuid",
    [
        "GPU-9942190a-0000-4ff1-0000-c388d80f0000",
        "GPU-00000000-0000-4000-8000-000000000000",
        "GPU-0a0d2009-0a0d-2009-0a0d-20090a0d2009",
    ],
)
def test_a_uuid_with_zero_bytes_stays_whole(cuda, uuid):
    """Read as a C string it would end at the first zero."""
    assert ask_order(snapshot_of(RTX, uuid), cuda(uuid, RTX)) == (uuid, RTX)


def test_a_uuid_is_given_back_as_nvml_spells_it(cuda):
    assert ask_order(snapshot_of(H100.upper()), cuda(H100)) == (H100.upper(),)


@pytest.mark.parametrize(
    "more",
    [{"FAKECUDA_INIT": "100"}, {"FAKECUDA_INIT": "803"}, {"FAKECUDA_UUIDS": ""}],
    ids=["no-device", "driver-mismatch", "nothing-to-enumerate"],
)
def test_a_libcuda_that_fails_has_no_answer(cuda, more):
    assert ask_order(SNAPSHOT, cuda(H100, RTX, **more)) is None


def test_a_device_that_nvml_does_not_know_spoils_the_answer(cuda):
    assert ask_order(SNAPSHOT, cuda(H100, UNKNOWN, RTX)) is None


def test_without_libcuda_there_is_no_answer(cuda, tmp_path):
    (tmp_path / "libcuda.so.1").write_text("no library, on any machine")
    assert ask_order(SNAPSHOT, cuda(H100, RTX, LD_LIBRARY_PATH=str(tmp_path))) is None


def test_a_libcuda_without_the_symbols_has_no_answer(cuda, fakenvml, tmp_path):
    (tmp_path / "libcuda.so.1").symlink_to(fakenvml / "libnvidia-ml.so.1")
    assert ask_order(SNAPSHOT, cuda(H100, RTX, LD_LIBRARY_PATH=str(tmp_path))) is None


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python"])
def test_without_an_interpreter_there_is_no_answer(cuda, monkeypatch, executable):
    """Embedded Python knows none; an upgrade may have removed it."""
    monkeypatch.setattr(sys, "executable", executable)
    assert ask_order(SNAPSHOT, cuda(H100, RTX)) is None


def test_the_child_has_the_callers_environment_without_the_masks(cuda, spy):
    environ = cuda(
        H100, RTX, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_CACHE_PATH="/kept"
    )
    before = dict(environ)
    assert ask_order(SNAPSHOT, environ) == (H100, RTX)
    assert environ == before
    child = dict(line.split("=", 1) for line in (spy / "environ").read_text().splitlines())
    of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert child.keys() - of_the_shell == before.keys() - {
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
    }
    assert child["CUDA_CACHE_PATH"] == "/kept"


def test_the_child_is_in_a_session_of_its_own(cuda, spy):
    """An interrupt at the terminal is not the driver's business."""
    assert ask_order(SNAPSHOT, cuda(H100, RTX)) == (H100, RTX)
    pid, _, _, _, _, session, *_ = (spy / "stat").read_text().split()
    assert session == pid != str(os.getsid(0))


def test_the_child_reads_nothing_of_the_users_python(cuda, tmp_path):
    """Isolated mode: no PYTHONPATH, no module beside the working directory."""
    (tmp_path / "ctypes.py").write_text("raise SystemExit('planted')\n")
    assert ask_order(SNAPSHOT, cuda(H100, RTX, PYTHONPATH=str(tmp_path))) == (H100, RTX)


def test_a_child_that_crashes_after_its_answer_has_none(cuda, tmp_path, monkeypatch):
    crashing = tmp_path / "python"
    crashing.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nkill -SEGV $$\n')
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    assert ask_order(SNAPSHOT, cuda(H100, RTX)) is None


def test_a_child_that_hangs_is_killed(cuda, children):
    assert ask_order(SNAPSHOT, cuda(H100, RTX, FAKECUDA_SLEEP_MS="600000"), timeout_s=0.2) is None
    [child] = children
    assert child.wait(timeout=60) == -signal.SIGKILL


def test_libcuda_is_never_loaded_here(python, machine, fakenvml):
    code = f"""
import os
from gpucache.machine.device import Device, Snapshot, Status
from gpucache.machine.libcuda import ask_order
snapshot = Snapshot(status=Status.OK, source="nvml", devices=(Device(uuid="{H100}"),))
print(ask_order(snapshot, os.environ), "libcuda" in open("/proc/self/maps").read())
"""
    done = python(code, env={**machine("h100x4"), "FAKECUDA_UUIDS": H100.partition("-")[2]})
    assert done.stdout == f"('{H100}',) False\n", done.stderr
