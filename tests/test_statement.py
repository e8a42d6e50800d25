"""A statement is read as it was written, and whatever else is read raises nothing but `BadPack`."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.packs import Source, key

from gpucache.archive.errors import BadPack
from gpucache.archive.parsing import parsed
from gpucache.archive.statement import (
    SIGNED_BEFORE,
    ArchivedEntry,
    ArchivedFile,
    Statement,
    encoded,
    is_name,
)
from gpucache.store.manifest import RECIPE, Facts

PRINTABLE = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
TEXTS = st.text(PRINTABLE, max_size=40)
PLAIN = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/"), min_size=1, max_size=40
)
PLAIN = PLAIN.filter(lambda name: name not in (".", "..") and not name.startswith("__"))
SIZES = st.integers(0, 2**30)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
SECONDS = st.none() | st.floats(0, allow_infinity=False) | st.integers(0, 10**9)
FITS = st.dictionaries(TEXTS, TEXTS, max_size=5)
PACK_NAMES = st.text(string.ascii_letters + string.digits + "._-", max_size=20).filter(
    lambda name: name == "" or is_name(name)
)


def files(names, **options):
    return st.lists(
        st.builds(ArchivedFile, names, SIZES, DIGESTS),
        min_size=1,
        unique_by=lambda f: f.name,
        **options,
    )


@st.composite
def kernels(draw):
    found = tuple(draw(files(PLAIN, max_size=5)))
    facts = Facts(
        draw(TEXTS),
        found[0].name,
        draw(st.none() | TEXTS),
        draw(st.none() | TEXTS),
        draw(SECONDS),
        draw(TEXTS),
    )
    recipe = draw(
        st.none() | st.builds(ArchivedFile, st.just(RECIPE), st.integers(0, 2**20), DIGESTS)
    )
    return ArchivedEntry("", "kernel", facts, found, recipe, draw(FITS))


@st.composite
def alone(draw):
    kind, end, fits = draw(
        st.sampled_from(
            [
                ("library", ".so", {"machine": "x86_64", "abi": "", "libc": "glibc-2.36"}),
                ("autotune", ".autotune.json", {"device": "NVIDIA H100 80GB HBM3"}),
            ]
        )
    )
    (file,) = draw(files(PLAIN.map(lambda name: name + end), max_size=1))
    facts = Facts(file.name, None, None, draw(st.none() | TEXTS), None, draw(TEXTS))
    return ArchivedEntry("", kind, facts, (file,), None, {**draw(FITS), **fits})


@st.composite
def graphs(draw):
    """The files of one unit of TorchInductor's."""
    unit = f"cab{draw(st.text('abcdefghijklmnopqrstuvwxyz234567', min_size=48, max_size=49))}"
    ends = st.sampled_from(["", ".py", ".cpp", ".best_config"])
    found = draw(files(ends.map(lambda end: f"ab/{unit}{end}"), max_size=4))
    facts = Facts(unit, None, None, draw(st.none() | TEXTS), None, draw(TEXTS))
    return ArchivedEntry("", "inductor", facts, tuple(found), None, draw(FITS))


@st.composite
def statements(draw):
    entries = []
    for number, entry in enumerate(draw(st.lists(kernels() | alone(), max_size=5))):
        entries.append(entry._replace(key=key(number)))
    entries += draw(st.lists(graphs(), max_size=3, unique_by=lambda entry: entry.facts.kernel))
    return Statement(draw(PACK_NAMES), draw(st.integers(0, 2**63 - 1)), tuple(entries))


@given(statements())
def test_a_statement_is_read_as_it_was_written(statement):
    data = encoded(statement)
    assert parsed(data) == statement
    assert parsed(SIGNED_BEFORE + data, len(SIGNED_BEFORE)) == statement
    assert encoded(parsed(data)) == data


@given(statements())
def test_a_statement_is_json_for_whoever_else_reads_it(statement):
    said = json.loads(encoded(statement))
    assert (said["format"], said["version"], said["name"]) == ("gpucache pack", 1, statement.name)
    assert [entry["arch"] for entry in said["entries"]] == [
        entry.arch for entry in statement.entries
    ]


def is_refused_or_read(data: bytes) -> None:
    try:
        parsed(data)
    except BadPack as error:
        assert error.fact.isprintable()  # noqa: PT017
        assert len(error.fact) < 500  # noqa: PT017


@given(statements(), st.data())
def test_a_statement_with_other_bytes_in_it_is_refused_or_read(statement, data):
    content = bytearray(encoded(statement))
    at = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, 20))
    content[at : at + length] = data.draw(st.binary(max_size=20) | st.sampled_from(TOKENS))
    is_refused_or_read(bytes(content))


TOKENS = [
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"',
    b"\n",
    b",",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"\\u0000",
    b"-0",
    b"9" * 30,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
FIELDS = st.sampled_from(
    (
        "key",
        "kind",
        "arch",
        "kernel",
        "group",
        "target",
        "triton_version",
        "compile_s",
        "tag",
        "files",
        "recipe",
        "fits",
    )
)


@given(FIELDS, JSON)
@settings(max_examples=500)
@example("files", [[{}, 1, "0" * 64]])
@example("files", [["x", 1, ["0" * 64]]])
@example("fits", {"\ud800": "x"})
@example("recipe", [RECIPE, [], {}])
@example("group", [])
def test_any_value_of_any_field_is_refused_or_read(field, value):
    said = json.loads(encoded(Source().add().statement))
    said["entries"][0][field] = value
    (entry,) = said.pop("entries")
    head = json.dumps({**said, "entries": []}, separators=(",", ":"))
    is_refused_or_read(f"{head[:-2]}\n{json.dumps(entry)}\n]}}\n".encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    with pytest.raises(BadPack):
        parsed(data)


def test_what_a_later_gpucache_says_of_an_entry_is_passed_over():
    """Only another version is not."""
    statement = Source().add().statement
    data = encoded(statement).replace(b'"tag":""', b'"tag":"","license":{"of":["x"]}')
    assert parsed(data) == statement


def test_a_number_as_large_as_can_be_is_read():
    statement = Source(number=2**63 - 1).statement
    assert parsed(encoded(statement)) == statement


@pytest.mark.parametrize("name", ["nightly", "a", "0.1-rc_2", "x" * 100])
def test_a_pack_may_be_called_so(name):
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", "_x", "a/b", "a b", "ä", "a\n", "x" * 101, "a:b", "a,b", "a%2f"]
)
def test_a_pack_may_not_be_called_so(name):
    """A name is one component of an object's name, of a path and of a list."""
    assert not is_name(name)


def test_an_entry_knows_its_key_in_the_store_and_its_bytes():
    (entry,) = Source().add(recipe=b"{}").statement.entries
    assert entry.store_key == entry.key
    assert entry.arch == "sm_90"
    assert [file.name for file in entry.members][-1] == RECIPE
    assert entry.size_bytes == sum(file.size_bytes for file in entry.files) + 2
    library = ArchivedEntry(key(1), "library", Facts("x.so", None, tag="abi"), ())
    assert library.store_key.startswith(f"{key(1)}-")
    assert library.arch is None
