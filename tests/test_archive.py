"""A pack is written and read back whole, is the same for the same input, and is an archive that tar can list."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
import zstandard
from support.packs import CONTENT, Source, read_all

from gpucache.archive import compression, ustar
from gpucache.archive.errors import BadPack
from gpucache.archive.read import Limits, PackReader
from gpucache.archive.signature import TrustedKeys, anyone, make_key


@pytest.fixture
def signing(tmp_path):
    return make_key("ci", str(tmp_path / "ci.key"))


@pytest.fixture
def trusted(signing):
    return TrustedKeys.parse(signing.public_text)


def tar_of(pack: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(pack)


def test_what_is_packed_is_read_back(signing, trusted):
    source = Source().add().add(recipe=b"{}").add({"k" * 200 + ".json": b"long", "ä.cubin": b"x"})
    reader, found = read_all(source.packed(signing), trusted.judge)
    assert reader.signer == "ci"
    assert reader.statement == source.statement
    assert found == source.content


def test_an_unsigned_pack_is_read_where_the_judge_accepts_it(trusted):
    pack = Source().add().packed()
    reader, _ = read_all(pack, anyone)
    assert reader.signer is None
    with pytest.raises(BadPack) as refused:
        read_all(pack, trusted.judge)
    assert refused.value.code == "unsigned"


def test_equal_input_gives_equal_bytes(signing):
    """At every level the tar is the same; at one level the pack, too."""
    packs = [Source().add().add().packed(signing, level=level) for level in (1, 9, 9, 19)]
    assert packs[1] == packs[2]
    assert len({tar_of(pack) for pack in packs}) == 1


def test_the_tar_is_the_one_that_tarfile_writes(signing):
    """So that any tar can list and extract a pack."""
    tar = tar_of(Source().add().packed(signing))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = archive.getmembers()
        for member in members:
            begin = member.offset
            assert tar[begin : begin + 512] == member.tobuf(tarfile.USTAR_FORMAT)
            assert (member.mode, member.mtime, member.uid, member.uname) == (0o644, 0, 0, "")
    names = [member.name.rpartition("/")[2] for member in members]
    assert names == ["gpucache-pack.json", "gpucache-pack.sig", *sorted(CONTENT)]


def test_what_of_a_file_was_not_asked_for_is_read_and_checked(signing, trusted):
    source = Source().add({"a.json": b"x" * 10**6}).add()
    with PackReader(io.BytesIO(source.packed(signing)), trusted.judge, source_name="p") as reader:
        names = [file.name for _, file, _ in reader.files()]
    assert names == ["a.json", *sorted(CONTENT)]


def test_a_pack_is_read_from_a_pipe_that_gives_a_byte_at_a_time(signing, trusted):
    class Dripping(io.RawIOBase):
        def __init__(self, data):
            self.data, self.at = data, 0

        def read(self, _=-1):
            self.at += 1
            return self.data[self.at - 1 : self.at]

    source = Source().add().add()
    _, found = read_all(Dripping(source.packed(signing)), trusted.judge)
    assert found == source.content


def test_a_pack_ends_where_its_pipe_ends(signing, trusted):
    """Cut after any byte it is refused, and nothing is waited for."""
    pack = Source().add().packed(signing)
    for length in range(len(pack)):
        with pytest.raises(BadPack) as refused:
            read_all(pack[:length], trusted.judge)
        assert refused.value.code in ("truncated", "not-zstd")


def test_a_file_that_changes_while_it_is_packed_ends_the_pack(signing):
    source = Source().add()
    source.content[source.statement.entries[0].key, "add.json"] = b'{"name": "sub"}'
    with pytest.raises(BadPack) as refused:
        source.packed(signing)
    assert refused.value.code == "file-changed"


def test_a_reader_takes_no_more_bytes_than_its_limit(signing, trusted):
    pack = Source().add().packed(signing)
    total = sum(map(len, CONTENT.values()))
    read_all(pack, trusted.judge, limits=Limits(total_bytes=total))
    with pytest.raises(BadPack) as refused:
        read_all(pack, trusted.judge, limits=Limits(total_bytes=total - 1))
    assert refused.value.code == "too-large"


def test_a_window_is_never_larger_than_a_reader_allows():
    out = io.BytesIO()
    with compression.compressed(out, level=22) as stream:
        stream.write(os.urandom(2**20))
    parameters = zstandard.get_frame_parameters(out.getvalue())
    assert parameters.window_size <= compression.WINDOW_BYTES


@pytest.mark.parametrize(
    "name", ["a/" + "b" * 101, "/" * 300, "a\nb", "ä", "a" * 155 + "/" + "b" * 101]
)
def test_a_name_that_no_header_can_hold_is_told(name):
    assert not ustar.fits(name)
    with pytest.raises(ValueError, match="no ustar header"):
        ustar.header(name, 1)
