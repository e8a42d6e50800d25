"""Which device the plug-in's process works for, as far as the record tells: its directory and its silicon."""

from __future__ import annotations

import hashlib
import os

from gpucache import environment
from gpucache.disk.node import node_id
from gpucache.layout import paths
from gpucache.log import WARNING, tell_in_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.directories.record import Record
    from gpucache.machine.device import Device


def own_device(known: Record, environ: Mapping[str, str]) -> Device | None:
    """The device of this process: the pinned one, else the only one that is there; None where there are several."""
    pinned = environment.PINNED_DEVICE.text(environ)
    if pinned:
        devices = {listed.device.uuid: listed.device for listed in known.devices}
        return devices.get(pinned)
    return known.present[0] if len(known.present) == 1 else None


def tell_of_contradiction(known: Record | None, environ: Mapping[str, str]) -> None:
    """Warn where the process is pinned to one device and sees others: its kernels are cached for the wrong one.

    That is easy with Ray, which masks the devices of an actor itself. Without a pin and a mask nothing is looked at.
    """
    is_masked = environment.VISIBLE_DEVICES.text(environ) is not None
    if known is None or not is_masked or not environment.PINNED_DEVICE.text(environ):
        return
    from gpucache.directories.visible_by_record import contradiction, sees_all

    numbers_hold = known.fake or bool(sees_all(known))
    against = contradiction(known.snapshot(), environ, numbers_hold)
    if against is not None:
        tell_in_job(WARNING, "%s: %s", against.fact, against.fix)


def default_directory(root: str, known: Record | None, environ: Mapping[str, str]) -> str:
    """Without `TRITON_CACHE_DIR`: the directory on record of the one device of this process, else Triton's default."""
    device = own_device(known, environ) if known is not None else None
    if known is not None and device is not None:
        return paths.device_directory(root, known.names[device.uuid])
    home = environment.TRITON_HOME.text(environ) or os.path.expanduser("~")
    try:
        return os.path.abspath(os.path.join(home, ".triton", "cache"))
    except OSError:
        return home


def silicon(known: Record | None, environ: Mapping[str, str]) -> str | None:
    """What decides an autotuner's timings: compute capability, core count and name of the device of this process.

    An H200 has the first two of an H100, and another memory. Of several devices, what all of them have in common; None
    where they differ, or where a device does not tell.
    """
    if known is None:
        return None
    device = own_device(known, environ)
    devices = known.present if device is None else (device,)
    kinds = {one.silicon for one in devices}
    return kinds.pop() if len(kinds) == 1 else None


def nobody_elses(known: Record | None, environ: Mapping[str, str], directory: str) -> str:
    """What stands for the silicon of this process where that is not known: nobody has the same who may have another.

    The device, by its UUID, where the record tells which one that is; else, and for a fake, this node since its start,
    by its host name for containers beside each other, and the device directory.
    """
    device = own_device(known, environ) if known is not None else None
    if device is not None and not device.fake:
        said = device.uuid
    else:
        said = "\0".join((node_id(), paths.host_name(), directory))
    digest = hashlib.sha256(said.encode(errors="surrogateescape"))
    return f"only-{digest.hexdigest()[:16]}"
