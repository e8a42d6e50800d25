"""What a pack may say of TorchInductor's files, and what it may not."""

from __future__ import annotations

import pytest
from support.inductor import code, digest
from support.packs import Source, archived, read_all

from gpucache.archive.errors import BadPack
from gpucache.archive.members import member_name
from gpucache.archive.parsing import parsed
from gpucache.archive.statement import ArchivedEntry, encoded
from gpucache.store.manifest import RECIPE, Facts

NAME = code("one")
SO = f"{NAME[1:3]}/{NAME}.main.so"
CPP = f"{NAME[1:3]}/{NAME}.main.cpp"
GRAPH = f"fxgraph/ab/f{digest('g')}/{digest('h')}"
OTHER = f"aotautograd/a{digest('g')}/{digest('h')}"


def unit(name: str, *files: str, **changed) -> ArchivedEntry:
    listed = tuple(archived(file, file.encode()) for file in files)
    return ArchivedEntry("", "inductor", Facts(name, None), listed)._replace(**changed)


def source(*entries: ArchivedEntry) -> Source:
    made = Source(*entries)
    for entry in entries:
        made.content |= {("", file.name): file.name.encode() for file in entry.files}
    return made


def flaw(*entries: ArchivedEntry) -> str:
    with pytest.raises(BadPack) as caught:
        parsed(encoded(source(*entries).statement))
    return caught.value.code


def test_units_are_packed_and_read_by_their_paths_below_a_root():
    units = unit(NAME, CPP, SO), unit(GRAPH, GRAPH), unit(OTHER, OTHER)
    reader, found = read_all(source(*units).packed(), lambda *_: None)
    assert reader.statement.entries == units
    assert found == {("", name): name.encode() for name in (CPP, SO, GRAPH, OTHER)}
    assert member_name(units[1], units[1].files[0]) == f"inductor/{GRAPH}"


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "ab/../x", "fxgraph/x", f"locks/{NAME}.lock", f"{SO}/x", "a"]
)
def test_no_other_name_is_read(name):
    assert flaw(unit(name, name)) == "file-name"


def test_files_of_two_units_are_no_entry():
    assert flaw(unit(NAME, SO, GRAPH)) == "group"
    assert flaw(unit(GRAPH, OTHER)) == "group"


def test_a_unit_stands_once():
    assert flaw(unit(GRAPH, GRAPH), unit(OTHER, OTHER), unit(GRAPH, GRAPH)) == "repeated-key"
    assert flaw(unit(NAME, SO), unit(NAME, CPP)) == "repeated-key"
    assert flaw(unit(NAME, SO, SO)) == "repeated-name"


def test_a_unit_has_neither_key_nor_group_nor_recipe():
    entry = unit(NAME, SO)
    assert flaw(entry._replace(key="A" * 52)) == "key"
    assert flaw(entry._replace(facts=Facts(NAME, SO))) == "group"
    assert flaw(entry._replace(recipe=archived(RECIPE, b"x"))) == "value"
