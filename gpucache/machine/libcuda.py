"""Ask libcuda in which order it enumerates the devices, always in a child process.

`cuInit` in this process would break CUDA in every child it forks (vllm#32611, triton#10938), so the parent only starts
this file as a script of its own, without a mask, and reads a line per device.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the child has nothing but the standard library
    from collections.abc import Mapping

    from gpucache.machine.device import Snapshot

_TIMEOUT_S = 20.0


def ask_order(
    snapshot: Snapshot,
    environ: Mapping[str, str],
    timeout_s: float = _TIMEOUT_S,
) -> tuple[str, ...] | None:
    """UUIDs of the snapshot's devices in CUDA's default order, unmasked; None when libcuda gives no usable answer.

    Takes as long as `cuInit` in the child: about half a second, up to the time limit. A child that hangs is killed and
    not waited for, since a process stuck in a driver cannot be reaped.
    """
    uuid_of: dict[str, str] = {}
    for device in snapshot.devices:
        uuid_of[_digits(device.uuid)] = device.uuid
    answer = _answer_of_child(environ, timeout_s)
    order = []
    for digits in answer.split():
        if digits not in uuid_of:
            return None
        order.append(uuid_of[digits])
    return tuple(order) or None


def _answer_of_child(environ: Mapping[str, str], timeout_s: float) -> str:
    """Run this file as a script of its own and return what it prints; ``""`` where it fails or takes too long."""
    import subprocess
    import threading
    from contextlib import suppress

    from gpucache.environment import DEVICE_ORDER, VISIBLE_DEVICES
    from gpucache.threads import start

    if not sys.executable:
        return ""
    unmasked = dict(environ)
    for mask in (VISIBLE_DEVICES, DEVICE_ORDER):
        unmasked.pop(mask.name, None)
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
        reaper = threading.Thread(target=child.wait, name="gpucache-reap", daemon=True)
        with suppress(OSError):  # then Python's own `subprocess` reaps the child some time
            start(reaper)
        return ""
    return answer if child.returncode == 0 else ""


def _digits(uuid: str) -> str:
    """The 32 hexadecimal digits of a UUID like ``GPU-9942190a-aa31-…``, which is all that libcuda knows of it."""
    _, _, digits = uuid.partition("-")
    return digits.replace("-", "").lower()


def _enumerate() -> list[str]:
    """The 32 digits of each device, in CUDA's order. Only the child may call this: it initialises CUDA.

    Raises:
        SystemExit: a call of libcuda failed.
    """
    import ctypes

    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    _require_success(cuda.cuInit(0))
    _require_success(cuda.cuDeviceGetCount(ctypes.byref(count)))
    found = []
    for ordinal in range(count.value):
        device = ctypes.c_int()
        uuid = (ctypes.c_ubyte * 16)()
        _require_success(cuda.cuDeviceGet(ctypes.byref(device), ordinal))
        _require_success(cuda.cuDeviceGetUuid_v2(ctypes.byref(uuid), device))
        found.append(bytes(uuid).hex())
    return found


def _require_success(result: int) -> None:
    if result != 0:  # CUDA_SUCCESS
        raise SystemExit(1)


if __name__ == "__main__":
    lines = "\n".join(_enumerate())
    os.write(1, lines.encode("ascii"))
