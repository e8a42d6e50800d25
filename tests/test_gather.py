"""Which entries a pack has: those that were chosen, are whole, and could not have been planted."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.packs import read_all
from support.trees import KERNEL, KEY, Tree, left_by_stock
from support.users import ADA

from gpucache.archive.errors import BadPack
from gpucache.archive.signature import anyone
from gpucache.disk.staging import sweep_dead
from gpucache.disk.vetting import Trust
from gpucache.report.cache_report import scan
from gpucache.store.lookup import sound
from gpucache.store.manifest import entry_path
from gpucache.transfer.gather import Gathered, gathered
from gpucache.upkeep.verify import verify

OTHER = "B" * 52


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    Tree(tmp_path, OTHER)
    return Tree(tmp_path)


def entries_of(tree: Tree):
    return scan(str(tree.root)).entries


def written(found: Gathered, name: str = "nightly", number: int | None = None) -> bytes:
    out = io.BytesIO()
    found.write(out, found.statement(name, number), None)
    return out.getvalue()


def test_a_pack_of_a_root_has_its_entries_and_their_bytes(tree):
    with gathered(str(tree.root), entries_of(tree), Trust()) as found:
        reader, content = read_all(written(found), anyone)
    assert [entry.key for entry in reader.statement.entries] == [KEY, OTHER]
    assert content == {(key, name): KERNEL[name] for key in (KEY, OTHER) for name in KERNEL}


def test_equal_input_gives_equal_bytes_and_a_new_entry_a_higher_number(tree):
    packs, numbers = [], []
    for entries in (entries_of(tree), entries_of(tree)[::-1]):
        with gathered(str(tree.root), entries, Trust()) as found:
            packs.append(written(found))
            numbers.append(found.newest)
    assert packs[0] == packs[1]
    when = numbers[0] + 100
    os.utime(left_by_stock(tree.root / "triton/0", "C" * 52) / "add.cubin", (when, when))
    with gathered(str(tree.root), entries_of(tree), Trust()) as found:
        assert found.newest == when


def test_what_is_removed_while_the_pack_is_written_is_packed_all_the_same(tree):
    with gathered(str(tree.root), entries_of(tree), Trust()) as found:
        tree.remove()
        _, content = read_all(written(found), anyone)
    assert (KEY, "add.cubin") in content
    assert list((tree.root / "gpucache/v1/tmp").glob("*/*")) == []


def test_pins_go_also_where_the_writing_ends_by_an_error(tree):
    def write() -> None:
        with gathered(str(tree.root), entries_of(tree), Trust()) as found:
            assert found.collected[0].pinned is not None
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write()
    assert list((tree.root / "gpucache/v1/tmp").glob("*/*")) == []


def test_what_is_damaged_is_left_out_and_the_rest_packed(tree):
    (tree.entry / "add.cubin").write_bytes(b"other")
    with gathered(str(tree.root), entries_of(tree), Trust()) as found:
        assert [one.entry.key for one in found.collected] == [OTHER]
        assert [(one.key, one.why) for one in found.left_out] == [(KEY, "damaged")]


def test_a_damaged_entry_is_taken_from_a_copy_that_is_whole(tree):
    """As a device directory has one where nothing can be linked, or stock Triton has compiled it itself."""
    cubin = tree.entry / "add.cubin"
    when = cubin.stat().st_mtime_ns
    cubin.unlink()
    cubin.write_bytes(bytes(len(KERNEL["add.cubin"])))
    os.utime(cubin, ns=(when, when))
    with gathered(str(tree.root), entries_of(tree), Trust()) as found:
        assert {one.entry.key for one in found.collected} == {KEY, OTHER}
        assert found.left_out == ()


@pytest.mark.parametrize("what", ["file", "directory", "open file"])
def test_what_somebody_else_could_have_planted_is_left_out(what, as_root, tree):
    """To sign it would be to vouch for it."""
    for directory in tree.directories:
        if what == "file":
            os.chown(directory / "add.cubin", ADA, ADA)
        elif what == "directory":
            os.chown(directory, ADA, ADA)
        else:
            os.chmod(directory / "add.cubin", 0o666)
    with gathered(str(tree.root), entries_of(tree), Trust()) as found:
        assert [(one.key, one.why) for one in found.left_out] == [(KEY, "unsafe")]
    trusting = Trust(uids=frozenset({ADA}), world_writable=True)
    with gathered(str(tree.root), entries_of(tree), trusting) as found:
        assert found.left_out == ()


def test_what_cannot_be_pinned_and_goes_meanwhile_ends_the_pack(tree, monkeypatch):
    """On a read-only disk nothing is pinned; another node may remove there all the same."""
    monkeypatch.setattr("gpucache.transfer.gather._pins", lambda root: None)
    with gathered(str(tree.root), entries_of(tree), Trust()) as found:
        tree.remove()
        with pytest.raises(BadPack, match="was removed") as refused:
            written(found)
    assert refused.value.code == "file-changed"


def test_progress_tells_entries_and_then_bytes(tree):
    looked, wrote = [], []
    with gathered(
        str(tree.root), entries_of(tree), Trust(), on_progress=lambda *said: looked.append(said)
    ) as found:
        found.write(
            io.BytesIO(),
            found.statement("a"),
            None,
            lambda done, total: wrote.append((done, total)),
        )
    assert looked == [(0, 2), (1, 2)]
    assert wrote == sorted(wrote)
    assert wrote[-1][1] == found.size_bytes > wrote[-1][0]


PACK = (
    SCRIPT
    + """
import tempfile
import zstandard
from gpucache.archive import compression, signature
from gpucache.cli.output_file import whole_file
from gpucache.disk.staging import sweep_dead
from gpucache.disk.vetting import Trust
from gpucache.report.cache_report import scan
from gpucache.transfer.gather import gathered
root, pack = sys.argv[2:]
tempfile.gettempdir()  # which tries whether it can be written
entries = scan(root).entries
mark("begin")
with gathered(root, entries, Trust()) as found, whole_file(pack) as out:
    found.write(out, found.statement("nightly", 7), None)
mark("end")
"""
)


def test_killed_at_any_system_call_a_pack_leaves_the_store_as_it_was(every_call):
    """And the file that was there before, until the new one is whole."""

    def start(home: Path) -> list[object]:
        Tree(home, OTHER)
        tree = Tree(home)
        (home / "pack").write_bytes(b"old")
        return [tree.root, home / "pack"]

    def check(home: Path, line: str) -> None:
        for key in (KEY, OTHER):
            entry = Path(entry_path(str(home / "root"), key))
            assert sound(str(entry), True, 0.0) is not None, line
        data = (home / "pack").read_bytes()
        if data != b"old":
            reader, _ = read_all(data, anyone)
            assert len(reader.statement.entries) == 2, line
        sweep_dead(f"{home}/root/gpucache/v1/tmp")
        assert list((home / "root/gpucache/v1/tmp").glob("*/*")) == [], line
        assert not verify(str(home / "root")).findings, line

    every_call.killed_everywhere(PACK, start, check, least=15)
