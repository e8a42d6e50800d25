"""A pack is written and read back whole, is the same for the same input, and is an archive that tar can list."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import tarfile
from subprocess import PIPE

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile_parts import Parts, zst
from support.packs import CONTENT, Source, read_all
from support.processes import PATIENCE_S

from gpucache.archive import compression, ustar
from gpucache.archive.errors import BadPack
from gpucache.archive.read import Limits, PackReader
from gpucache.archive.signature import anyone, make_key
from gpucache.archive.trusted_keys import TrustedKeys


@pytest.fixture
def signing(tmp_path):
    return make_key("ci", str(tmp_path / "ci.key"))


@pytest.fixture
def trusted(signing):
    return TrustedKeys.parse(signing.public_text)


def refusal(data, judge) -> str:
    with pytest.raises(BadPack) as refused:
        read_all(data, judge)
    return refused.value.code


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


WRITER = """
import sys
data = sys.stdin.buffer.read()
sys.stdout.buffer.write(data)
sys.stdout.flush()
"""


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_pack_is_read_from_the_pipe_of_another_process(signing, trusted, cut):
    """Or refused where that process ends before the pack does."""
    pack = Source().add().packed(signing)
    child = subprocess.Popen([sys.executable, "-c", WRITER], stdin=PIPE, stdout=PIPE)
    child.stdin.write(pack[: len(pack) - cut])
    child.stdin.close()
    try:
        with child.stdout as pipe:
            if cut == 0:
                assert read_all(pipe, trusted.judge)[0].signer == "ci"
            else:
                assert refusal(pipe, trusted.judge) == "truncated"
    finally:
        child.wait(PATIENCE_S)


def test_a_source_without_bytes_for_now_is_an_error_of_the_system(signing, trusted):
    """A pipe that does not block gives None, which is no end."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    with open(ours, "rb", buffering=0) as pipe, open(theirs, "wb"):
        with pytest.raises(BlockingIOError):
            read_all(pipe, trusted.judge)


def test_a_pack_is_read_once_and_not_after_it_is_closed(signing, trusted):
    pack = Source().add().packed(signing)
    reader, _ = read_all(pack, trusted.judge)
    with pytest.raises(ValueError, match="read once"):
        next(reader.files())
    with PackReader(io.BytesIO(pack), trusted.judge, source_name="p") as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        for _ in closed.files():
            pass


def test_with_any_bit_flipped_a_pack_is_refused_or_the_same(signing, trusted):
    """Some bits mean nothing to zstd; the checksum tells whether the content is the same."""
    source = Source().add({"a.json": b"{}"})
    pack = source.packed(signing)
    same = []
    for at in range(len(pack)):
        changed = bytearray(pack)
        changed[at] ^= 1 << at % 8
        try:
            _, found = read_all(bytes(changed), trusted.judge)
        except BadPack:
            continue
        assert found == source.content
        same.append(at)
    assert len(same) < len(pack) / 20


BLOCKS = st.sampled_from([b"\0" * 512, b"x" * 512, b"ustar", b"../", b"0", b"gpucache-pack.json"])


@given(st.data())
@settings(max_examples=200)
def test_any_tar_is_refused_or_the_same(data):
    """Signatures are believed here, so that nothing but the reader refuses."""
    source = Source().add({"a.json": b"{}"})
    tar = bytearray(tar_of(source.packed()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(tar)))
        tar[at : at + data.draw(st.sampled_from([0, 1, 8, 512]))] = data.draw(
            st.binary(max_size=9) | BLOCKS
        )
    try:
        reader, found = read_all(zstandard.compress(bytes(tar), 1), anyone)
    except BadPack as error:
        assert error.fact.isprintable()  # noqa: PT017
    else:
        assert {key for key, _ in found} == {entry.key for entry in reader.statement.entries}
        sizes = {file.name: file.size_bytes for file in reader.statement.entries[0].files}
        assert {name: len(content) for (_, name), content in found.items()} == sizes


@given(st.binary(max_size=100))
def test_any_bytes_are_no_pack(data):
    for beginning in (b"", b"\x28\xb5\x2f\xfd"):
        assert refusal(beginning + data, anyone)


def test_a_pack_ends_where_its_pipe_ends(signing, trusted):
    """Cut after any byte it is refused, and nothing is waited for."""
    pack = Source().add().packed(signing)
    for length in range(len(pack)):
        assert refusal(pack[:length], trusted.judge) in ("truncated", "not-zstd")


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


def is_refused(pack: bytes, judge) -> bool:
    """As `refusal`; `pytest.raises` would keep the error."""
    try:
        read_all(pack, judge)
    except BadPack:
        return True
    return False


def test_nothing_of_a_refused_pack_is_kept_alive_by_its_error(signing, trusted):
    """A statement has 64 MiB, and one process may read one pack after the other."""
    sound = Parts(signing)
    wrong = Parts(signing).edit(lambda _, entries: entries[1].update(kind="cubin"))
    late = zst(sound.tar() + b"x")
    gc.collect()
    gc.disable()
    try:
        for pack in (zst(wrong.tar()), late, late[:-20], Source().add().packed()):
            assert is_refused(pack, trusted.judge)
        kept = [one for one in gc.get_objects() if isinstance(one, (BadPack, PackReader))]
    finally:
        gc.enable()
    assert kept == []


@pytest.mark.parametrize(
    "name", ["a/" + "b" * 101, "/" * 300, "a\nb", "ä", "a" * 155 + "/" + "b" * 101]
)
def test_a_name_that_no_header_can_hold_is_told(name):
    assert not ustar.fits(name)
    with pytest.raises(ValueError, match="no ustar header"):
        ustar.header(name, 1)
