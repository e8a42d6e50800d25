"""What of a pack fits the devices that a root has on record."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from support.packs import CONTENT, Source

from gpucache import DeviceCacheRegistry, Snapshot, Status, UnsafeDirectoryError
from gpucache.archive import compression, ustar
from gpucache.archive.errors import BadPack
from gpucache.archive.members import STATEMENT
from gpucache.archive.read import PackReader
from gpucache.archive.signature import anyone
from gpucache.archive.unpack import everything
from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust
from gpucache.layout import paths
from gpucache.machine.device import Device
from gpucache.store.manifest import Facts, digest_of, single_key
from gpucache.store.publish import publish_entry
from gpucache.store.pulled import use_of_pulled
from gpucache.transfer.bring import bring, judge_of, vet_source

KEY = "A" * 52
NAME = "matmul.autotune.json"
H100 = Device(
    uuid="GPU-1", index=0, name="NVIDIA H100", compute_capability=(9, 0), core_count=16896
)
H200 = Device(
    uuid="GPU-2", index=1, name="NVIDIA H200", compute_capability=(9, 0), core_count=16896
)


def provisioned(root: Path, *devices: Device) -> Path:
    snapshot = Snapshot(status=Status.OK, source="nvml", devices=devices)
    DeviceCacheRegistry(str(root), snapshot, {}).provision()
    return root


@pytest.fixture
def pack(tmp_path, here) -> Path:
    """A pack of what an autotuner has measured on an H100."""
    root = provisioned(tmp_path / "root", H100)
    staging = Staging(paths.ours(str(root), "tmp"))
    path = Path(staging.directory(), NAME)
    path.write_text('{"configs_timings": []}')
    tag = H100.silicon
    facts = Facts(NAME, None, tag=tag)
    files = {NAME: (str(path), digest_of(str(path)))}
    assert publish_entry(str(root), single_key(KEY, NAME, tag), files, facts, staging, False)
    assert here("pack", "-o", tmp_path / "n.tar.zst", "--root", root).code == 0
    return tmp_path / "n.tar.zst"


def test_who_may_have_written_a_pack_is_asked_before_any_of_it_is_parsed(tmp_path):
    """The bytes that are refused here are no statement."""
    path = tmp_path / "n.tar.zst"
    with path.open("wb") as file, compression.compressed(file) as out:
        out.write(ustar.header(STATEMENT, 3) + b"no!" + bytes(509) + ustar.END)

    def refuse() -> None:
        raise UnsafeDirectoryError(str(path), "is another user's", "")

    with path.open("rb") as source, pytest.raises(UnsafeDirectoryError):
        PackReader(source, judge_of(None, refuse), source_name=str(path))


@pytest.mark.parametrize(
    ("devices", "made", "why"),
    [
        ((H100,), 1, []),
        ((H200,), 0, ["device"]),
        ((H100, H200), 1, []),
        ((), 0, ["device"]),
    ],
)
def test_an_autotuners_result_is_taken_where_a_device_of_its_kind_is_on_record(
    devices, made, why, pack, tmp_path, here
):
    other = tmp_path / "other"
    if devices:
        provisioned(other, *devices)
    done = here("unpack", pack, "--unsigned", "--root", other, "--json")
    said = json.loads(done.out)
    assert len(said["made"]) == made
    assert [row["why"] for row in said["skipped"]] == why


def test_of_a_pack_that_ends_too_early_what_came_is_known_as_pulled(tmp_path):
    source, root = Source(), str(tmp_path / "root")
    for _ in range(4):
        source.add({**CONTENT, "add.cubin": os.urandom(2**18)})
    cut = io.BytesIO(source.packed()[: 5 * 2**17])
    with pytest.raises(BadPack) as error, PackReader(cut, anyone, source_name="cut") as reader:
        bring(reader, root, Trust(), chosen=everything)
    assert use_of_pulled(root).entries == error.value.taken > 0


def test_a_named_pipe_that_everybody_may_write_vouches_for_nothing(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    with open(os.open(path, os.O_RDWR | os.O_NONBLOCK), "rb") as pipe:
        vet_source(pipe, str(path), Trust())
        path.chmod(0o622)
        with pytest.raises(UnsafeDirectoryError, match="everybody may write it"):
            vet_source(pipe, str(path), Trust())


def test_a_pipe_without_a_name_is_its_makers():
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "rb") as pipe:
        vet_source(pipe, "-", Trust())
        vet_source(pipe, f"/dev/fd/{reading}", Trust())
