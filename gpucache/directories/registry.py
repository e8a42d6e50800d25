"""`DeviceCacheRegistry`: every device of this process, and its Triton cache directory."""

from __future__ import annotations

import os

from gpucache import configuration, environment
from gpucache.directories.merging import directories, merge
from gpucache.directories.record import Record, read_record, recorded
from gpucache.directories.visible_by_record import sees_all, visible_by_record
from gpucache.disk.record_use import stamp_use
from gpucache.disk.vetting import Trust, vet, vet_child, vet_file
from gpucache.errors import DeviceIndexError, DeviceNameError, RecordError
from gpucache.layout import paths
from gpucache.machine import device_files
from gpucache.machine.device import Device, Snapshot, Status, requested_fakes
from gpucache.machine.visible import Visible, visible_devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpucache.directories.provision import Provision
    from gpucache.disk.sharing import Sharing

_SETTINGS = (
    environment.DISABLE.name,
    environment.TRUST_UIDS.name,
    environment.TRUST_GROUPS.name,
    environment.TRUST_WORLD_WRITABLE.name,
    environment.VISIBLE_DEVICES.name,
    environment.DEVICE_ORDER.name,
)


class DeviceCacheRegistry:
    """The devices this process sees, in CUDA's order, each with its own Triton cache directory.

    Constructing it makes nothing on disk; `provision` does. `path`, ``len``, ``in`` and iteration make no system call
    and read no environment. A registry can be pickled, used after ``fork`` and in spawned processes, and shared by
    threads.
    """

    __slots__ = (
        "_paths",
        "_settings",
        "checked",
        "devices",
        "directories",
        "root",
        "snapshot",
        "visible",
    )

    root: str
    """Absolute path of the cache root."""
    devices: tuple[Device, ...]
    """The devices of this process; position = CUDA ordinal."""
    directories: dict[str, str]
    """UUID of every device of the machine, seen by this process or not, to the path of its directory."""
    snapshot: Snapshot
    """Every device of the machine, as discovered or as recorded."""
    checked: bool
    """Whether the devices are surely this process's: discovered now, or the very ones that the kernel shows it."""
    visible: Visible
    """How `CUDA_VISIBLE_DEVICES` made ``devices`` out of the snapshot."""

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        snapshot: Snapshot | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Take the devices of ``snapshot``, or discover them, and apply ``environ``'s `CUDA_VISIBLE_DEVICES`.

        Args:
            root: the cache root; by default `GPUCACHE_DIR`, `TORCHINDUCTOR_CACHE_DIR` or torch's default.
            snapshot: what `gpucache.discover` returned; None discovers now.
            environ: the environment of the process that will use the devices; by default ``os.environ``. What files
                say holds where it says nothing (`gpucache.configuration`).

        Raises:
            DiscoveryError: the node is sick.
        """
        environ = configuration.environ(environ, root)
        if snapshot is None:
            from gpucache.machine.nvml import discover

            snapshot = discover(environ)
        root = paths.resolve_root(root, environ)
        known = recorded(root)
        if snapshot.cuda_order is None and known is not None:
            snapshot = snapshot.with_order(known.cuda_order)
        record = merge(known, snapshot, paths.host_name())
        self.checked = True
        visible = visible_devices(snapshot, environ)
        self._set(root, snapshot, environ, record, visible)

    @classmethod
    def load(
        cls,
        root: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> DeviceCacheRegistry:
        """The registry from this host's record, without NVML: what a worker calls.

        `GPUCACHE_DEVICE` (a UUID, as `environ` and `gpucache run` set it) makes that device the only one, ordinal 0
        here whatever CUDA calls it; otherwise `CUDA_VISIBLE_DEVICES` decides. ``environ`` is ``os.environ`` by default.

        Raises:
            RecordError: the record is missing, torn, another host's, fake on a machine with the NVIDIA driver, or does
                not tell which of its devices this process sees.
            UnsafeDirectoryError: somebody else could plant code in the root.
        """
        environ = configuration.environ(environ, root)
        root = paths.resolve_root(root, environ)
        path = paths.record_path(root, paths.host_name())
        record = _vetted_record(root, path, Trust.parse(environ))
        requested = requested_fakes(environ)
        if record.fake and requested is None and _has_gpus(record):
            fact = "the record has fake devices, but this machine has the NVIDIA driver"
            raise RecordError(path, "fake", fact)
        whole = sees_all(record)
        snapshot = requested or record.snapshot()
        visible = visible_by_record(path, record, snapshot, environ, whole)
        registry = cls.__new__(cls)
        registry.checked = bool(whole) or requested is not None
        registry._set(root, snapshot, environ, record, visible)
        return registry

    def path(self, ordinal: int) -> str:
        """The Triton cache directory of the device with this CUDA ordinal; a pure lookup.

        Raises:
            DeviceIndexError: this process has no such device (``-1`` included).
        """
        try:
            return self._paths[ordinal]
        except KeyError:
            raise DeviceIndexError(ordinal, len(self._paths), self.visible.cut) from None

    def ordinal(self, device: int | str) -> int:
        """The CUDA ordinal of a device that is named by a UUID, or by what only one UUID begins with.

        A number is taken for the ordinal.

        Raises:
            DeviceIndexError: this process has no device of that ordinal.
            DeviceNameError: this process has no device of that UUID, or several whose UUIDs begin so.
        """
        if not isinstance(device, str):
            self.path(device)
            return device
        from gpucache.machine.visible import named_devices

        found = named_devices(device, self.snapshot)
        there = tuple(one.uuid for one in self.devices)
        uuids = tuple(one.uuid for devices in found.values() for one in devices)
        seen = [ordinal for ordinal, uuid in enumerate(there) if uuid in uuids]
        if len(found) > 1 or len(seen) > 1:
            raise DeviceNameError(device, uuids, there)
        if not seen:
            raise DeviceNameError(device, (), there, hidden=bool(found))
        return seen[0]

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[int]:
        return iter(self._paths)

    def __contains__(self, ordinal: object) -> bool:
        return ordinal in self._paths

    def __repr__(self) -> str:
        return f"DeviceCacheRegistry(root={self.root!r}, devices={len(self)})"

    def environ(
        self,
        ordinal: int,
        *,
        plugin: bool = False,
        caches: Sequence[str] | str = (),
        given: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """The variables that give a child process this device's directory.

        Empty when `GPUCACHE_DISABLE=1`. The device is pinned by its UUID, so that the child finds it whatever mask,
        cgroup or container it runs in. ``plugin`` adds the Triton plug-in, by which a node compiles each kernel once:
        only for children that can import gpucache, such as those of this interpreter. Triton imports it inside a
        kernel launch, which fails where that cannot be.

        ``caches`` adds the variables of JIT caches (``"all"``, ``["flashinfer", "tilelang"]``: `gpucache caches`
        lists them) that are not set in ``given``, the environment that the child has otherwise, by default
        ``os.environ``. Their directories are made; what cannot be had here is left out (`gpucache caches` says why).

        Raises:
            DeviceIndexError: this process has no such device.
            ConfigurationError: a word of ``caches`` is no cache's name.
        """
        path = self.path(ordinal)
        if environment.DISABLE.read(self._settings):
            return {}
        from gpucache.disk.members import base_of_others  # who asks for paths only needs it not

        base = base_of_others(self.root)
        variables = {
            environment.ROOT.name: self.root,
            environment.PINNED_DEVICE.name: self.devices[ordinal].uuid,
            environment.INDUCTOR_ROOT.name: base,
            environment.TRITON_DIRECTORY.name: path,
        }
        if plugin:
            variables[environment.MANAGER.name] = environment.OUR_MANAGER
        if caches:
            from gpucache.directories.jit_launch import jit_launch  # most processes choose none

            given = os.environ if given is None else given
            jit = jit_launch(base, (self.devices[ordinal],), given, caches, self._settings)
            variables |= jit.variables
        return variables

    def provision(self, timeout_s: float = 60.0, sharing: Sharing | None = None) -> Provision:
        """Make the root, its tag, a directory for every device of the snapshot, and the record, where missing.

        Where only libcuda knows the order of the GPUs (unlike ones, MIG, a lost one) it is asked once, in a child with
        this process's environment less the mask; the answer, or that there was none, is recorded until something
        changes.

        Any number of processes and threads may call it at once: each directory is made once, under one lock. Where
        everything is there it takes no lock. A process killed at any instant leaves nothing that the next call does
        not complete. Atomic for readers, not durable across a power cut. The record merges what other processes have
        seen of this host; if that gave a device another name meanwhile, this registry takes it over.

        Args:
            timeout_s: how long to wait for another process that provisions.
            sharing: with whom a new root is shared; by default nobody. Of a root that has entries it changes the
                directories only: `gpucache provision --shared` changes these as well.

        Raises:
            UnsafeDirectoryError: somebody else could plant code in the root. Nothing was made.
            ProvisionError: the operating system refused (read-only, full, no permission). What was made until then
                stays, each directory and file of it whole, and the next call goes on from there.
            LockTimeoutError: another process held the lock all the time; the message names it.
        """
        from gpucache.directories.provision import Provision, provision  # a worker needs neither

        if environment.DISABLE.read(self._settings):
            return Provision(
                root=self.root,
                devices=self.snapshot.devices,
                warnings=(f"{environment.DISABLE}=1: nothing was made",),
            )
        trust = Trust.parse(self._settings)
        record, done = provision(self.root, self.snapshot, trust, os.environ, timeout_s, sharing)
        visible = self.visible
        if visible.how == "guess":  # libcuda may have been asked now
            self.snapshot = self.snapshot.with_order(record.cuda_order)
            visible = visible_devices(self.snapshot, self._settings)
        self._show(record, visible)
        return done

    def _set(
        self,
        root: str,
        snapshot: Snapshot,
        environ: Mapping[str, str],
        record: Record,
        visible: Visible,
    ) -> None:
        """Fill every slot but ``checked``; the two constructors differ in where the values come from."""
        self.root = root
        self.snapshot = snapshot
        self._settings = {}
        for name in _SETTINGS:
            if name in environ:
                self._settings[name] = environ[name]
        self._show(record, visible)

    def _show(self, record: Record, visible: Visible) -> None:
        """Take over which devices are visible, and the directories on record."""
        self.visible = visible
        self.devices = visible.devices
        names = record.names | directories(record, self.snapshot)
        self.directories = {}
        for uuid, name in names.items():
            self.directories[uuid] = paths.device_directory(self.root, name)
        self._paths = {}
        for ordinal, device in enumerate(visible.devices):
            self._paths[ordinal] = self.directories[device.uuid]


def _has_gpus(record: Record) -> bool:
    """Whether there should be real devices on this machine, whose record has fake ones.

    A driver without any GPU, as NVML has answered when the record was made, is no reason; device files of GPUs are.
    """
    if record.status is Status.NO_DEVICES:
        return bool(device_files.openable_gpus())
    return device_files.driver_loaded()


def _vetted_record(root: str, path: str, trust: Trust) -> Record:
    """Read this host's record, after checking that nobody else can plant code in the root or a directory on record.

    Raises:
        UnsafeDirectoryError, RecordError: as `DeviceCacheRegistry.load`.
    """
    trust = trust.in_root(root)
    vet(root, trust)
    for directory in paths.provisioned_directories(root):
        vet_child(directory, trust)
    vet_file(path, trust)
    record = read_record(path, paths.host_name())
    for name in record.names.values():
        vet_child(paths.device_directory(root, name), trust)
    stamp_use(path)
    return record
