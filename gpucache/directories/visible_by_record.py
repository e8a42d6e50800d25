"""Which of the devices on record this process sees, by its environment and by what the kernel lets it open."""

from __future__ import annotations

from gpucache.environment import PINNED_DEVICE, VISIBLE_DEVICES
from gpucache.errors import RecordError
from gpucache.machine import device_files
from gpucache.machine.visible import Visible, guess_advice, visible_devices
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.directories.record import Record
    from gpucache.machine.device import Device, Snapshot

_MOST_NAMED = 4


class Contradiction(Value):
    """A device that `GPUCACHE_DEVICE` names, and that CUDA does not show. The pin wins, and may be wrong."""

    pinned: str
    """The UUID of the device whose directory the process has."""
    shown: tuple[str, ...]
    """The UUIDs of the devices on which the process can run instead."""
    mask: str | None
    """The value of `CUDA_VISIBLE_DEVICES`."""

    @property
    def fact(self) -> str:
        """What contradicts what, and which of the two wins, in words."""
        others = ", ".join(self.shown[:_MOST_NAMED])
        if len(self.shown) > _MOST_NAMED:
            others = f"{others} and others"
        shows = "CUDA shows"
        if self.mask is not None:
            shows = f"{VISIBLE_DEVICES}={self.mask} shows"
        return (
            f"{PINNED_DEVICE}={self.pinned} names a device, and {shows} {others} only: {PINNED_DEVICE} wins, "
            "so that the kernels of one device are cached for another"
        )

    @property
    def fix(self) -> str:
        """What to do about the contradiction."""
        return f"unset {PINNED_DEVICE}, or show the device by its UUID in {VISIBLE_DEVICES}"


def contradiction(
    snapshot: Snapshot,
    environ: Mapping[str, str],
    numbers_hold: bool,
) -> Contradiction | None:
    """What contradicts the pin of a process with this environment; None where nothing surely does.

    ``numbers_hold`` says that the process sees just the snapshot's GPUs, so that a mask's numbers mean what they say.
    A mask that shows no device at all contradicts nothing: a process that only compiles may have that.
    """
    pinned = PINNED_DEVICE.text(environ)
    if not pinned:
        return None
    visible = visible_devices(snapshot, environ)
    is_sure = visible.how == "uuid" or (numbers_hold and visible.how != "guess")
    shown = tuple(device.uuid for device in visible.devices)
    if not is_sure or not shown or pinned in shown:
        return None
    return Contradiction(pinned, shown, VISIBLE_DEVICES.text(environ))


def visible_by_record(
    path: str,
    record: Record,
    snapshot: Snapshot,
    environ: Mapping[str, str],
    whole: bool | None,
) -> Visible:
    """What this process sees of the recorded devices; ``whole`` is what `sees_all` answered.

    Raises:
        RecordError: the record does not tell which of its devices this process sees.
    """
    pinned = PINNED_DEVICE.text(environ)
    if pinned:
        device = _pinned(path, pinned, record, snapshot)
        cut = f"{PINNED_DEVICE}={pinned} pins this process to it"
        against = contradiction(snapshot, environ, bool(whole) or snapshot.fake)
        if against is not None:
            _tell("%s: %s", against.fact, against.fix)
            cut = against.fact
        return Visible((device,), "uuid", cut)
    visible = visible_devices(snapshot, environ)
    if visible.how == "guess":
        fact, fix = guess_advice(snapshot)
        _tell("%s: %s: %s", path, fact, fix)
    needs_no_number = visible.how in ("uuid", "none", "fake")
    probably_whole = whole is None and not record.renumbered
    if needs_no_number or whole or probably_whole:
        return visible
    raise RecordError(
        path,
        "not-whole",
        f"this process does not see just the {len(record.gpus)} GPUs on record (a container, a cgroup, or new GPUs), "
        "so a number does not say which GPU is meant",
        f"start it under `gpucache run`, or set {PINNED_DEVICE} or {VISIBLE_DEVICES} to a UUID; "
        "if the host's GPUs have changed, run `gpucache provision` (delete the record first if some are gone)",
    )


def _pinned(path: str, uuid: str, record: Record, snapshot: Snapshot) -> Device:
    """The device that `GPUCACHE_DEVICE` names: one on record, though it may be absent now, or a requested fake one.

    Raises:
        RecordError: no such device has this UUID.
    """
    recorded = [listed.device for listed in record.devices]
    for device in (*snapshot.devices, *recorded):
        if device.uuid == uuid:
            return device
    raise RecordError(
        path,
        "pin-unknown",
        f"{PINNED_DEVICE}={uuid} is not on record",
        f"run `gpucache provision` on this host, or unset {PINNED_DEVICE}",
    )


def sees_all(record: Record) -> bool | None:
    """Whether this process may open exactly the GPUs on record, by the kernel's word; None where that cannot be told.

    A lost GPU has no UUID on record, but its device file is still there.
    """
    openable = device_files.openable_gpus()
    if openable is None or record.fake:
        return None
    minors = record.gpus.values()
    recorded_count = len(record.gpus) + len(record.lost)
    if all(file.uuid for file in openable):
        seen: set[object] = {file.uuid for file in openable}
        known: set[object] = set(record.gpus)
    elif None not in minors:
        seen = {file.minor for file in openable}
        known = set(minors)
    elif len(openable) == recorded_count:
        return None
    else:
        return False
    unknown = seen - known
    may_all_be_lost = len(unknown) <= len(record.lost)
    return known <= seen and may_all_be_lost


def _tell(message: str, *words: object) -> None:
    """Warn once in a job."""
    from gpucache.log import WARNING, tell_in_job  # in most starts nothing is told

    tell_in_job(WARNING, message, *words)
