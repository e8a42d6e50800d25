"""`gpucache.values`: what a frozen dataclass is, and to `dataclasses` one."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucache.values import Value, as_dict, replace


class Point(Value):
    """A value with a default."""

    x: int
    y: str = "y"

    @property
    def double(self) -> int:
        """Computed from a field."""
        return 2 * self.x


class Named(Value, kw_only=True):
    """A value that is made by name only."""

    x: int
    y: str = "y"


class Deep(Point):
    """A value that inherits fields."""

    z: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    """What `Point` is by `dataclasses`."""

    x: int
    y: str = "y"


fields = st.tuples(st.integers(), st.text())


@given(fields, fields)
def test_it_is_made_compared_hashed_and_shown_as_a_frozen_dataclass_is(one, other):
    ours, theirs = [Point(*one), Point(*other)], [Twin(*one), Twin(*other)]
    assert (ours[0] == ours[1]) == (theirs[0] == theirs[1])
    assert hash(ours[0]) == hash(theirs[0])
    assert repr(ours[0]).replace("Point", "Twin") == repr(theirs[0])
    assert (ours[0].x, ours[0].y) == one
    assert as_dict(ours[0]) == dataclasses.asdict(theirs[0]) == dataclasses.asdict(ours[0])  # type: ignore[call-overload]


@pytest.mark.parametrize("values", [(), (1, "y", 3)])
def test_too_few_or_too_many_fields_are_refused(values):
    for made in (Point, Twin):
        with pytest.raises(TypeError):
            made(*values)


def test_unknown_and_repeated_names_are_refused():
    with pytest.raises(TypeError, match="'w'"):
        Point(1, w=2)
    with pytest.raises(TypeError, match="'x'"):
        Point(1, x=2)
    with pytest.raises(TypeError, match="by name"):
        Named(1)
    assert Named(x=1) == Named(y="y", x=1)


def test_no_field_can_be_set_added_or_deleted():
    value = Point(1)
    for act in (
        lambda: setattr(value, "x", 2),
        lambda: setattr(value, "w", 2),
        lambda: delattr(value, "x"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            act()
    assert not hasattr(value, "__dict__")


def test_values_of_different_classes_are_never_equal():
    assert Point(1) != Named(x=1)
    assert Point(1) != Deep(1)
    assert Point(1) != (1, "y")


@pytest.mark.parametrize("value", [Point(1, "a"), Named(x=2), Deep(1, "b", (3,))])
def test_it_is_pickled_copied_replaced_and_matched(value):
    for again in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert again == value
    assert replace(value, x=7) == dataclasses.replace(value, x=7) != value
    assert value.__replace__(x=7) == replace(value, x=7)  # by `copy.replace` of Python 3.13
    with pytest.raises(TypeError):
        replace(value, w=1)
    match value:
        case Point(x, y) | Named(x=x, y=y):
            assert (x, y) == (value.x, value.y)


def test_dataclasses_finds_its_fields_and_defaults():
    assert dataclasses.is_dataclass(Deep)
    found = {field.name: field.default for field in dataclasses.fields(Deep)}
    assert found == {"x": dataclasses.MISSING, "y": "y", "z": ()}
    assert Point.__match_args__ == ("x", "y")


def test_properties_are_the_classs():
    assert Point(4).double == 8


def test_it_imports_neither_dataclasses_nor_typing(python):
    code = "import sys; before = set(sys.modules); import gpucache.values; "
    code += "print(sorted(set(sys.modules) - before - {'__future__'}))"
    done = python(code)
    assert done.stdout == "['gpucache', 'gpucache.values']\n"
