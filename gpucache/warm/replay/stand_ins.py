"""Stand-ins for the arguments of a launch: what Triton looks at when it specialises a kernel, and nothing else.

Triton's versions differ in what they make of the same arguments: 3.9 has an empty attribute for every constant, 3.6 has
none, 3.2 another class for them all. So a recipe is not translated: the arguments that it tells of are made again, and
given to the code by which the running Triton specialises its own launches (`gpucache.warm.replay.running_triton`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gpucache.errors import GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from gpucache.kernels.recipe import Path, Recipe

    MakeDescriptor = Callable[["Pointer", list[int]], object]
    """Makes a tensor descriptor with blocks of these sizes over a base."""

DIVISIBILITY = "tt.divisibility"
"""The attribute of what is a multiple of 16."""
EQUAL_TO = "tt.equal_to"
"""The attribute of an int that is 1, in Triton 3.2; later versions make a constant of such an argument."""
POINTER_RANGE = "tt.pointer_range"
"""The attribute of AMD's backend of a tensor below 2 GiB, whose offsets fit into 32 bits."""


class NoStandInError(GpuCacheError, ValueError):
    """A recorded type of which no argument can be made: ``type`` is its text."""

    def __init__(self, type_: str) -> None:
        super().__init__(f"no argument can be made for the recorded type {type_!r}", "", type_)
        self.type = type_


class Pointer:
    """Stands for a tensor: its type, whether its address is a multiple of 16, and whether it is below 2 GiB."""

    def __init__(self, dtype: DType, aligned: bool, small: bool) -> None:
        self.dtype = dtype
        self._address = 0 if aligned else 1
        self._size = 0 if small else 2**40

    def data_ptr(self) -> int:
        """The address: only its divisibility counts."""
        return self._address

    def ptr_range(self) -> int:
        """The size, as AMD's backend asks a mock tensor for it."""
        return self._size


class DType(str):
    """The name of an element type, as Triton writes it in a signature; a tensor descriptor asks for the rest."""

    __slots__ = ()

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        bits = re.search(r"[0-9]+", self)
        return max(int(bits[0]) // 8, 1) if bits else 1

    @property
    def is_floating_point(self) -> bool:
        """Whether this is a floating-point type."""
        return self.startswith(("fp", "bf"))


class OldDescriptor:
    """Stands for a TMA descriptor as Triton 3.2 has it: an object with this attribute."""

    tma_desc_cpu_ptr = 0


class Argument(NamedTuple):
    """What a recipe says of one argument, or of one element of a tuple."""

    type: str
    properties: Mapping[str, int] | None
    """What was found out, by name; None where Triton has not looked."""
    is_for_amd: bool
    """Whether AMD's backend recorded this, which alone tells of the size of a tensor."""


def stand_in(argument: Argument, descriptor: MakeDescriptor) -> object:
    """An argument of the recorded type and properties; ``descriptor`` makes a tensor descriptor over a base.

    Raises:
        NoStandInError: there is none for this type.
    """
    said = argument.type
    if said.startswith("*"):
        return _pointer(argument)
    if said in ("u1", "i1"):
        # To Triton 3.2 a falsehood is a multiple of 16.
        return DIVISIBILITY not in (argument.properties or {})
    if said == "nvTmaDesc":
        return OldDescriptor()
    if re.fullmatch(r"fp[0-9a-z]+|bf16", said):
        return 1.5
    if re.fullmatch(r"[iu](?:8|16|32|64)", said):
        return _int(argument)
    match = re.fullmatch(r"tensordesc<([a-z0-9]+)\[([0-9, ]+)\]>", said)
    if match is None:
        raise NoStandInError(said)
    shape = [int(size) for size in match[2].split(",")]
    return descriptor(Pointer(DType(match[1]), aligned=True, small=True), shape)


def _pointer(argument: Argument) -> Pointer:
    name = re.fullmatch(r"\*k?([a-z0-9]+)", argument.type)
    if name is None:
        raise NoStandInError(argument.type)
    properties = argument.properties or {}
    # A recipe for NVIDIA does not tell: nearly every tensor is that small.
    small = not argument.is_for_amd or POINTER_RANGE in properties
    # Triton's versions call this one differently in a signature, and alike in a tensor.
    element = "bool" if name[1] in ("u1", "i1") else name[1]
    return Pointer(DType(element), DIVISIBILITY in properties, small)


_WIDE = {"i64": 2**40, "u64": 2**63}
"""Ints that Triton gives these types by their size; every other int is an i32, or what the annotation says."""


def _int(argument: Argument) -> int:
    properties = argument.properties
    if properties is not None and EQUAL_TO in properties:
        return 1
    wide = _WIDE.get(argument.type, 0)
    if properties is not None and DIVISIBILITY in properties:
        return wide + 16
    if properties is None and not wide:
        # Annotated with a type and equal to 1, which leaves no trace of its own; or Triton was told not to look.
        return 1
    return wide + 3


def arguments(
    recipe: Recipe,
    names: list[str],
    types: Mapping[str, object],
    constants: Mapping[Path, object],
    descriptor: MakeDescriptor,
) -> dict[str, object]:
    """The arguments of the recorded launch, by the names of parameters.

    ``names`` are those of the recorded parameters in their order, ``types`` and ``constants`` the decoded ones of the
    recipe.

    Raises:
        NoStandInError: a recorded type is one of which no argument can be made.
    """
    found = {path: dict(properties) for path, properties in recipe.specialized}
    # Triton 3.2 says of an argument only what it has found out.
    otherwise: dict[str, int] | None = {} if is_before_3_3(recipe) else None
    is_for_amd = recipe.target.backend == "hip"

    def leaf(path: Path, type_: str) -> object:
        if path in constants:
            return constants[path]
        argument = Argument(type_, found.get(path, otherwise), is_for_amd)
        return stand_in(argument, descriptor)

    made = {}
    for index, name in enumerate(names):
        made[name] = _nested(types.get(name, "constexpr"), (index,), leaf)
    return made


def is_before_3_3(recipe: Recipe) -> bool:
    """Whether a recipe is one of Triton 3.2, whose signatures have no constants."""
    return recipe.triton_version.startswith("3.2.")


def _nested(types: object, path: Path, leaf: Callable[[Path, str], object]) -> Any:
    """The argument for a type, or the tuple of arguments for a tuple of types; ``leaf`` makes each."""
    if isinstance(types, str):
        return leaf(path, types)
    if not isinstance(types, tuple):
        raise NoStandInError(repr(types))
    made = []
    for index, inner in enumerate(types):
        made.append(_nested(inner, (*path, index), leaf))
    return tuple.__new__(type(types), made)
