from __future__ import annotations

import enum
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import ClassVar, NamedTuple, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipes import recipe as example

from gpucache.kernels.decoding import BadEncoding
from gpucache.kernels.encoding import MOST_BITS, MOST_DEPTH, Kind, function_of
from gpucache.kernels.recipe import (
    BadRecipe,
    Recipe,
    Unencodable,
    decode,
    encode,
    from_text,
    key_in,
    to_text,
)

KINDS = get_args(Kind)


class Shape(NamedTuple):
    rows: int
    columns: object


class Mode(enum.IntEnum):
    FAST = 1
    EXACT = 2


@dataclass
class Doubled:
    once: int
    twice = 0

    def __post_init__(self):
        self.twice = 2 * self.once


@dataclass
class Cached:
    KIND: ClassVar[str] = "cached"
    once: int

    @cached_property
    def twice(self):
        return 2 * self.once


class Endless(NamedTuple):
    rows: int

    def __iter__(self):
        while True:
            yield 0


class Letters(str):
    pass


class Fake:
    """Makes tuples that say what was asked for."""

    def __getattr__(self, kind):
        return lambda *said: (kind, *said)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**100),
        "",
        "a\n\ud800é",
        1.5,
        -0.0,
        math.inf,
        -math.inf,
        5e-324,
        (),
        (1, (None,)),
        [1, [2]],
        {"a": (1,)},
    ],
)
def test_a_plain_value_comes_back_with_its_type(value):
    again = decode(json.loads(json.dumps(encode(value))), Fake())
    assert again == value
    assert repr(again) == repr(value)


def test_a_dataclass_is_encoded_if_its_fields_are_all_that_it_has():
    with pytest.raises(Unencodable, match="Doubled, which has twice beside its fields"):
        encode(Doubled(1))
    cached = Cached(1)
    assert cached.twice == 2
    assert encode(cached) == {"dataclass": [__name__, "Cached", [["once", 1]]]}


def test_nan_comes_back():
    assert math.isnan(decode(encode(math.nan), Fake()))


def test_a_member_of_an_enum_is_no_int_and_a_named_tuple_no_tuple():
    here = __name__
    assert encode(Mode.FAST) == {"enum": [here, "Mode", "FAST"]}
    assert encode(Shape(1, Mode.EXACT)) == {
        "namedtuple": [here, "Shape", [1, {"enum": [here, "Mode", "EXACT"]}]]
    }
    assert encode(Endless(3)) == {"namedtuple": [here, "Endless", [3]]}
    assert decode(encode(Shape(1, 2.0)), Fake()) == ("namedtuple", here, "Shape", [1, 2.0])


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("/a/kernels.py", "/a/kernels.py"),
        ("kernels.py", "{here}/kernels.py"),
        ("<stdin>", "<stdin>"),
        ("/a/\x1b.py", None),
    ],
)
def test_a_function_is_told_with_its_file(file, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "kernels"}
    exec(compile("def add(): pass", file, "exec"), scope)
    jit = SimpleNamespace(fn=scope["add"], hash="recursion:add")
    expected = told and told.format(here=tmp_path)
    assert function_of(jit) == ("kernels", "add", expected, "")


@pytest.mark.torch
def test_a_dtype_of_torch_is_encoded_by_its_name():
    import torch

    assert encode(torch.float16) == {"torch_dtype": "float16"}
    assert decode({"torch_dtype": "float16"}, Fake()) == ("torch_dtype", "float16")


def itself():
    found = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    "value",
    [
        Letters("x"),
        object(),
        len,
        lambda: 0,
        1j,
        b"x",
        {1},
        itself(),
        1 << MOST_BITS,
        "x" * 2**20,
        [0] * 10**6,
        enum.Enum("Own", "ONE").ONE,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_another_process_could_not_be_given_is_refused(value):
    with pytest.raises(Unencodable):
        encode(value)


def test_a_recipe_comes_back_from_its_text():
    one = example(source="x = 1\n")
    text = to_text(one)
    assert b"\n" not in text
    assert key_in(text) == one.key
    assert from_text(text) == one


def test_a_recipe_that_another_tool_has_spaced_is_read():
    assert from_text(json.dumps(json.loads(to_text(example()))).encode()) == example()


def test_a_recipe_whose_key_is_not_first_is_refused():
    """Who reads only the beginning of a line would not find it."""
    with pytest.raises(BadRecipe, match="first field"):
        from_text(json.dumps(json.loads(to_text(example())), sort_keys=True).encode())


def test_a_field_of_a_later_version_is_passed_over():
    said = json.loads(to_text(example()))
    assert from_text(json.dumps({**said, "later": 1}, separators=(",", ":")).encode()) == example()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "../../etc/passwd/and/more"),
        ("key", None),
        ("kernel", "a\x1b[2J"),
        ("function", ["m", "q", None]),
        ("function", ["m", "q", "/a\n", ""]),
        ("target", ["cuda", True, 32]),
        ("target", ["cuda", -1, 32]),
        ("signature", []),
        ("signature", {"x": 1.5}),
        ("constants", [[[0], {"float": "much"}]]),
        ("constants", [[[0], {"code": "x"}]]),
        ("constants", [[[-1], 0]]),
        ("constants", [[[0], 0], [[0], 1]]),
        ("specialized", [[[0], [["tt.divisibility", "16"]]]]),
        ("options", {"num_warps": {}}),
        ("variables", {"DISABLE_LLVM_OPT": 1}),
        ("variables", {"a=b": "1"}),
        ("constants", [[[0], {"unencoded": "builtins.set"}]]),
        ("launched", 1),
        ("globals", [["m", "\n", 1]]),
        ("globals", [["m", "n"]]),
        ("source", 1),
    ],
)
def test_a_recipe_with_a_hostile_field_is_refused(field, value):
    said = json.loads(to_text(example()))
    with pytest.raises(BadRecipe):
        from_text(json.dumps({**said, field: value}, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff",
        b"NaN",
        b"[" * 10**5,
        b"{" + b'"key":"' + b"A" * 2**21,
        b'{"key":"' + b"A" * 52 + b'"}',
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bytes_that_are_no_recipe_are_refused(data):
    with pytest.raises(BadRecipe):
        from_text(data)


def test_a_second_key_in_a_line_is_refused():
    """Who reads only the first bytes of a line, and who reads it whole, must see one key."""
    text = to_text(example())
    with pytest.raises(BadRecipe, match="twice"):
        from_text(text[:-1] + b',"key":"' + b"B" * 52 + b'"}')


def test_a_structure_that_is_too_deep_is_refused_by_the_reader_too():
    encoded = 0
    for _ in range(MOST_DEPTH + 1):
        encoded = {"tuple": [encoded]}
    with pytest.raises(BadEncoding):
        decode(encoded, Fake())


# ---- whatever there may be

PLAIN = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.text() | st.floats()
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=20,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*KINDS, "other", ""]), inner, max_size=2)
    ),
    max_leaves=20,
)


@settings(deadline=None, database=None)
@given(VALUES)
def test_any_plain_value_comes_back_as_it_was(value):
    again = decode(json.loads(json.dumps(encode(value))), Fake())
    assert repr(again) == repr(value)


@settings(deadline=None, database=None)
@given(JSON)
def test_any_json_is_decoded_or_refused(said):
    with suppress(BadEncoding):
        decode(said, Fake())


@settings(deadline=None, database=None)
@given(st.sampled_from(Recipe._fields), JSON)
def test_any_json_in_a_field_of_a_recipe_is_read_or_refused(field, said):
    whole = json.loads(to_text(example()))
    with suppress(BadRecipe):
        one = from_text(json.dumps({**whole, field: said}, separators=(",", ":")).encode())
        assert from_text(to_text(one)) == one


@settings(deadline=None, database=None)
@given(st.binary())
def test_any_bytes_are_refused(data):
    with pytest.raises(BadRecipe):
        from_text(data)


@settings(deadline=None, database=None)
@given(st.integers(0, 700), st.binary(min_size=1, max_size=3))
def test_a_recipe_with_other_bytes_somewhere_is_read_or_refused(place, data):
    text = to_text(example())
    with suppress(BadRecipe):
        one = from_text(text[:place] + data + text[place + len(data) :])
        assert from_text(to_text(one)) == one
