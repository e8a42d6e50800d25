"""Ask libcuda in which order it enumerates the devices, always in a child process.

`cuInit` in this process would break CUDA in every child it forks (vllm#32611, triton#10938), so the parent only starts
this file as a script of its own, without a mask, and reads a line per device.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


if TYPE_CHECKING:  # the child has nothing but the standard library
    from gpucache.machine.device import Snapshot

_TIMEOUT_S = 20.0


def ask_order(
    snapshot: Snapshot, environ: Mapping[str, str], timeout_s: float = _TIMEOUT_S
) -> tuple[str, ...] | None:
    """UUIDs of the snapshot's devices in CUDA's default order, unmasked; None when libcuda gives no usable answer.

    Takes as long as `cuInit` in the child: about half a second, up to the time limit. A child that hangs is killed and
    not waited for, since a process stuck in a driver cannot be reaped.
    """
    answer = _answer_of_child(environ, timeout_s)
    by_digits = {_digits(device.uuid): device.uuid for device in snapshot.devices}
    order = answer.split()
    if not order or any(digits not in by_digits for digits in order):
        return None
    return tuple(by_digits[digits] for digits in order)


def _answer_of_child(environ: Mapping[str, str], timeout_s: float) -> str:
    """What this file prints as a script of its own; empty where it fails or takes too long."""
    import subprocess
    import threading

    from gpucache.environment import DEVICE_ORDER, VISIBLE_DEVICES

    if not sys.executable:
        return ""
    masks = (VISIBLE_DEVICES.name, DEVICE_ORDER.name)
    unmasked = {name: value for name, value in environ.items() if name not in masks}
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", __file__],
            env=unmasked,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
    except OSError:  # the interpreter was removed by an upgrade, or there is no process to be had
        return ""
    try:
        answer, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        if child.stdout is not None:
            child.stdout.close()
        threading.Thread(target=child.wait, name="gpucache-reap", daemon=True).start()
        return ""
    return answer if child.returncode == 0 else ""


def _digits(uuid: str) -> str:
    """``GPU-9942190a-aa31-…`` as the 32 hexadecimal digits that libcuda knows."""
    return uuid.partition("-")[2].replace("-", "").lower()


def _enumerate() -> list[str]:
    """The 32 digits of each device, in CUDA's order. Only in the child."""
    import ctypes

    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        raise SystemExit(1)
    found = []
    for ordinal in range(count.value):
        device = ctypes.c_int()
        uuid = (ctypes.c_ubyte * 16)()
        if cuda.cuDeviceGet(ctypes.byref(device), ordinal):
            raise SystemExit(1)
        if cuda.cuDeviceGetUuid_v2(ctypes.byref(uuid), device):
            raise SystemExit(1)
        found.append(bytes(uuid).hex())
    return found


if __name__ == "__main__":
    os.write(1, "\n".join(_enumerate()).encode("ascii"))
